"""The pages of the axes are of this code."""

from pathlib import Path

import pytest

from klsweep.audit.axes import AXES, INDEX, PAGES, page
from klsweep.cli import main
from klsweep.config.compose import CONF, composer

DOCS = Path(__file__).parents[2] / "docs/axes"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_committed_pages_are_of_this_code(name):
    """`make page` writes them."""
    with composer() as session:
        assert page(session, name) == (DOCS / f"{name}.md").read_text()


def test_there_is_a_page_for_every_group_but_those_of_data():
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert groups - set(AXES) == {"eval", "experiment", "preset", "task"}
    assert {path.stem for path in DOCS.glob("*.md")} == set(PAGES)


def test_a_field_that_choices_explain_differently():
    """A cap cuts weights in one choice and drops them in the other."""
    text = (DOCS / "correction.md").read_text()
    assert "masked: weights above are set to 0; truncated: weights above are cut to it; null: plain importance" in text


def test_a_page_says_what_code_schema_and_audit_say():
    clip, placement, index = ((DOCS / f"{name}.md").read_text() for name in ("clip", "placement", INDEX))
    for line in (
        "| `clip.tau` | number > 0 or null | nats: the log-ratio is clipped to [-tau, tau] before the estimator; null: "
        "not at all | `1.0` | – | – |",
        "| `clip.smoothing` | number ≥ 0 and < 1 |",
        "| `clip.mode` | `hard`, `straight_through` | no gradient beyond the bounds, or that of the unclipped "
        "| `hard` | – | `hard` |",
        "Choice `fixed`: constant bounds in nats, −τ and τ unless `low` or `high` replace them.",
        "| k1 | reward sequence inside rloo | sequence τ=1 | – | none | on_policy | 0.378019 | biased by the clip |",
        "nothing to audit: all cells (8) are excluded (clip.level=sequence clips one log-ratio per sequence",
        "; clip=quantile has no threshold before training (audit clip=fixed",
    ):
        assert line in clip
    assert (
        "| k3 | reward_and_loss sequence inside token rloo | none | same | none | on_policy | 0 | unbiased |"
        in placement
    )
    assert "nothing to audit: all cells (12) are excluded (no KL term: nothing to audit)." in placement
    assert "| `k1` | 0 unbiased | 1.000000 zero: β only adds noise |" in index


def test_the_command_writes_them(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr("klsweep.audit.axes.PAGES", ["adapter", "model"])
    assert main(["audit", "--axes", "out"]) == 0
    for name in ("adapter.md", "model.md"):
        assert (in_tmp / "out" / name).read_text() == (DOCS / name).read_text()
    assert capsys.readouterr().out == "written: out/adapter.md, out/model.md\n"
