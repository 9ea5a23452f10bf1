"""What a run's W&B run is to hold, and what of it is missing, without W&B."""

import dataclasses
import math

import pytest

from klsweep.mirror.content import Content, Differs, Held, contents, facts_agree, is_unsettled, is_whole, missing_rows
from tests.mirror.records import begin, figures, planned


@pytest.fixture
def content(tmp_path) -> Content:
    """A run that is done, of updates 0 to 5."""
    sweep = planned(tmp_path / "mine", seeds=1)
    work = begin(sweep, "r1-a0").update(0, 4).update(5, 5, loss=None)
    work.end()
    return contents(sweep, {row["run_id"]: sweep.run(row["run_id"]).status() for row in sweep.plan()})["r1-a0"]()


def holding(content: Content, lines: int, **changes) -> Held:
    """What W&B holds after these rows were sent and W&B has said all it has to say."""
    rows = content.rows[:lines]
    summary = {key: value for row in rows for key, value in row.items() if key != "update"}
    step = {"_step": rows[-1]["update"]} if rows else {}
    own = {key: value for key, value in content.summary.items() if key.startswith("klsweep/")}
    both = {**summary, **step, **(own if lines == len(content.rows) else {})}
    tags = frozenset([content.state])
    return dataclasses.replace(Held(lines, both, content.config, tags, content.name, "finished"), **changes)


def summary(content, lines, **changes):
    """The same with another summary; None takes a key out of it."""
    both = {**holding(content, lines).summary, **changes}
    return holding(content, lines, summary={key: value for key, value in both.items() if value is not None})


def updates(rows):
    return [row["update"] for row in rows]


def test_rows_are_those_of_the_record_and_the_summary_their_latest_values(content):
    assert updates(content.rows) == [0, 1, 2, 3, 4, 5]
    assert content.rows[0]["eval/add/pass@1"] == 0.25
    assert math.isnan(content.rows[5]["loss"])
    expected = {**figures(0, 0), **figures(0, 5), "klsweep/state": "done", "klsweep/cause": "", "klsweep/update": 5}
    del expected["update"]
    found = dict(content.summary)
    assert math.isnan(found.pop("loss"))
    assert found == expected
    assert content.withheld == 0


@pytest.mark.parametrize("lines", range(7))
def test_what_is_missing_is_what_comes_after_the_rows_that_are_there(content, lines):
    assert updates(missing_rows(content, holding(content, lines))) == list(range(lines, 6))
    assert is_whole(content, holding(content, lines)) == (lines == 6)


def test_nothing_there_is_everything_missing(content):
    assert updates(missing_rows(content, None)) == [0, 1, 2, 3, 4, 5]
    assert not is_whole(content, None)


def test_a_summary_may_lag_or_be_absent(content):
    """A killed sync leaves rows whose summary was never sent; a new state alone takes `_step` from it."""
    assert updates(missing_rows(content, holding(content, 4, summary={}))) == [4, 5]
    assert updates(missing_rows(content, holding(content, 4, summary=holding(content, 2).summary))) == [4, 5]
    assert missing_rows(content, summary(content, 6, _step=None)) == []
    assert not is_whole(content, holding(content, 6, summary={}))


@pytest.mark.parametrize(
    ("lines", "changes", "text"),
    [
        (3, {"reward/mean": 9.0}, "at step 2, reward/mean is 9.0 there"),
        (3, {"lr": None}, "at step 2, lr is None there, 0.0005 in the record"),
        (3, {"_step": 17}, "it is at step 17, which is not recorded"),
        (6, {"_step": None, "klsweep/update": 5, "reward/mean": 9.0}, "at step 5, reward/mean is 9.0 there"),
    ],
)
def test_other_figures_than_recorded_are_found(content, lines, changes, text):
    with pytest.raises(Differs, match=text):
        missing_rows(content, summary(content, lines, **changes))


def test_a_figure_that_went_through_json_twice_is_the_same(content):
    value = content.rows[2]["reward/mean"]
    assert updates(missing_rows(content, summary(content, 3, **{"reward/mean": value * (1 + 1e-12)}))) == [3, 4, 5]
    with pytest.raises(Differs):
        missing_rows(content, summary(content, 3, **{"reward/mean": value * (1 + 1e-6)}))


def test_rows_beyond_the_record_are_too_many_unless_the_run_goes_on(content):
    held = dataclasses.replace(holding(content, 6), lines=7)
    with pytest.raises(Differs, match="it holds 7 rows, and 6 are recorded"):
        missing_rows(content, held)
    assert missing_rows(dataclasses.replace(content, state="preempted"), held) == []


@pytest.mark.parametrize("lines", [0, 2])
def test_a_count_behind_the_summary_is_unsettled(content, lines):
    held = dataclasses.replace(holding(content, 4), lines=lines)  # 4 rows were sent: the summary is at step 3
    assert is_unsettled(content, held)
    with pytest.raises(Differs, match=f"it holds {lines} rows up to step 3: some before that are missing"):
        missing_rows(content, held)
    assert not is_unsettled(content, holding(content, 4))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "renamed"},
        {"tags": frozenset()},
        {"tags": frozenset(["done", "running"])},
        {"state": "running"},
        {"state": "crashed"},
        {"config": {}},
    ],
)
def test_facts_that_W_and_B_has_otherwise(content, changes):
    assert facts_agree(content, holding(content, 6))
    assert facts_agree(content, holding(content, 6, tags=frozenset(["done", "mine"])))
    assert not facts_agree(content, holding(content, 6, **changes))


@pytest.mark.parametrize(
    ("state", "fits", "does_not"),
    [
        ("diverged", {"finished"}, {"failed", "crashed", "running"}),
        ("failed", {"failed", "crashed"}, {"finished", "running"}),
        ("running", {"running", "crashed", "finished"}, set()),
    ],
)
def test_the_states_of_w_and_b_that_fit_a_run(content, state, fits, does_not):
    run = dataclasses.replace(content, state=state, summary={})
    tags = frozenset([state])
    found = {there for there in fits | does_not if facts_agree(run, holding(content, 6, tags=tags, state=there))}
    assert found == fits
