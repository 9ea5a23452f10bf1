"""Columns made from buffers hold what pyarrow's own conversion would make of the same values."""

import math

import pyarrow as pa
import pytest

from klsweep.analysis.columns import column, logged_values, table


@pytest.mark.parametrize(
    "values",
    [
        [1, None, 3],
        [1.5, 2, None, -3.25],
        [True, None, False] * 5,
        ["a", None, "", "größer β 😀"],
        [[1.0, 2.5], None, [], [3.0]],
        [None, None],
        [2**62, 0, -1],
        [0.5] * 9,
    ],
)
def test_a_column_is_what_pyarrow_makes_of_the_values(values):
    made, own = column(values), pa.array(values)
    assert made.to_pylist() == own.to_pylist()
    assert made.null_count == own.null_count
    made.validate(full=True)


def test_values_of_several_kinds_are_json_texts():
    assert column([{"a": 1}, "b", None, [1, "c"]]).to_pylist() == ['{"a": 1}', "b", None, '[1, "c"]']


def test_a_figure_that_was_not_finite_is_nan_and_one_that_is_absent_is_null():
    rows = [{"x": 1, "y": 0.5}, {"x": None}, {"x": 2.5, "y": None}]
    x, y = logged_values(rows, "x").to_pylist(), logged_values(rows, "y").to_pylist()
    assert (x[0], x[2]) == (1.0, 2.5)
    assert math.isnan(x[1])
    assert (y[0], y[1]) == (0.5, None)
    assert math.isnan(y[2])


def test_a_figure_that_is_no_number_is_named():
    with pytest.raises(ValueError, match=r"x = 'high' is no number"):
        logged_values([{"x": 1.0}, {"x": "high"}], "x")


def test_a_table_has_the_columns_of_all_rows():
    assert table([{"a": 1}, {"b": "x", "a": None}]).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    assert table([]).num_columns == 0
