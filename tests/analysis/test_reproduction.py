"""The reproduction's rows against records written by hand, and its claims against what `make reproduction` plans."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from klsweep.analysis.claims import BELOW_ZERO, Claim, OutOfReach
from klsweep.analysis.compare import compare
from klsweep.analysis.decision import ABOVE_ZERO, Region
from klsweep.analysis.exact_claims import GRADIENTS, audited, computed
from klsweep.analysis.measures import Mean, Share, beyond_base, has_collapsed, margin, metric, rise
from klsweep.analysis.reproduction import PARTS, as_objects, exact_grid, grid, reproduce
from klsweep.analysis.reproduction_page import page
from klsweep.cli import main
from klsweep.commands.reproduction import audit_rows
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_run, write_series
from tests.conftest import planned

ROOT = Path(__file__).resolve().parents[2]
UNSEEN = "cannot be seen at this scale"
K1, K3, NONE = {"estimator": "k1"}, {"estimator": "k3"}, {"estimator": "abs"}
CALM, FALLING = (
    [0.4, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8],
    [0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],
)


def write_cells(sweep: SweepFolder, **accuracies: list[float]) -> None:
    for estimator, values in accuracies.items():
        for seed, value in enumerate(values):
            write_run(sweep, plan_row(estimator, seed, estimator=estimator), "done", value)


def rows(sweep: SweepFolder, *claims: Claim | OutOfReach) -> list[list[str]]:
    found = reproduce(compare(sweep), [], [("part", claims)])
    return grid(found, found.parts["part"])


def gain(cell: dict, region=ABOVE_ZERO) -> Claim:
    return Claim("it learns", "accuracy less the base's", region, Mean(beyond_base("in"), [cell]))


def test_a_finding_agrees_does_not_and_cannot_be_seen(sweep):
    """Gains over the base's 0.4: 0.30, 0.31, 0.32, t = 31√3; −0.30, −0.31, −0.32; and 0.1, −0.1, 0.12.

    p = 1 − t/√(2 + t²): 0.000346 twice, 0.626; besides the simulation's 0, Holm takes the first two 3 times.
    """
    write_cells(sweep, k1=[0.70, 0.71, 0.72], k3=[0.10, 0.09, 0.08], abs=[0.5, 0.3, 0.52])
    found = rows(sweep, gain(K1), gain(K3), gain(NONE), OutOfReach("7B learn", "no 7B here"))
    interval = "+0.310 (+0.285 to +0.335)"
    assert found[0] == ["it learns", "accuracy less the base's", "1", "3/3", interval, "above 0", "0.001", "agrees"]
    assert found[1][4:] == ["-0.310 (-0.335 to -0.285)", "above 0", "0.001", "does not"]
    assert found[2][4:] == ["+0.040 (-0.262 to +0.342)", "above 0", "0.626", UNSEEN]
    assert found[3] == ["7B learn", "nothing: no 7B here", "", "", "", "", "", UNSEEN]


def test_differences_are_of_common_seeds(sweep):
    """k1 less the mean of k3 and abs: 0.6 − 0.35, 0.5 − 0.25; the third seed has no k3."""
    write_cells(sweep, k1=[0.6, 0.5, 0.9], k3=[0.4, 0.3], abs=[0.3, 0.2, 0.1])
    found = rows(
        sweep,
        Claim("f", "less", ABOVE_ZERO, Mean(metric("in"), [K1], [K3, NONE])),
        Claim("f", "in %", Region(60, 80), Mean(metric("in"), [K1], [K3, NONE], percent=True)),
        Claim("f", "reversed", BELOW_ZERO, Mean(metric("in"), [K3, NONE], [K1])),
    )
    assert [line[2:5] for line in found] == [
        ["1 less 2, 3", "2/3*", "+0.250 (+0.250 to +0.250)"],
        ["1 less 2, 3", "2/3*", "+85.7 (-95.8 to +267.2)"],  # 71.4 and 100
        ["2, 3 less 1", "2/3*", "-0.250 (-0.250 to -0.250)"],
    ]
    assert [line[-1] for line in found] == ["agrees", UNSEEN, "agrees"]


def test_what_happens_during_runs_is_measured(sweep):
    """Of three runs one falls for good and one diverges; a proxy rises from 0.5 to 0.9; a gap of −0.3 is below 1."""
    write_cells(sweep, k1=[0.5, 0.5], k3=[0.5, 0.5])
    write_run(sweep, plan_row("k1", 2, estimator="k1"), "diverged", None)
    for seed, curve in enumerate([FALLING, CALM]):
        write_series(sweep.run(f"k1-{seed}"), {"reward/correct": curve})
        logged = {"reward/mean": [0.5, 0.9, 0.9, 0.9, 0.9], "bound/x": [1.0] * 5, "gap": [-0.3] * 5}
        write_series(sweep.run(f"k3-{seed}"), logged)
    collapsed = has_collapsed("reward/correct")
    found = rows(
        sweep,
        Claim("f", "falls", Region(low=0.5), Share(collapsed, K1)),
        Claim("f", "rises", ABOVE_ZERO, Mean(rise("reward/mean"), [K3])),
        Claim("f", "leaves", ABOVE_ZERO, Mean(margin("bound/x", "gap"), [K3])),
    )
    assert [line[3:5] for line in found] == [
        ["3/3", "2 of 3 (0.21 to 0.94)"],
        ["2/2", "+0.400 (+0.400 to +0.400)"],
        ["2/2", "+0.700 (+0.700 to +0.700)"],
    ]
    assert [line[-1] for line in found] == [UNSEEN, "agrees", "agrees"]


def test_what_is_not_there_or_not_comparable_is_said(sweep):
    write_cells(sweep, k1=[0.5, 0.6])
    write_run(sweep, plan_row("k3", 0, estimator="k3"), "done", 0.5, science="s2")
    twin = {**plan_row("other", 0), "axes": {**plan_row("other", 0)["axes"], "model": "large"}}
    write_run(sweep, twin, "done", 0.5)
    found = rows(
        sweep,
        gain({"estimator": "k2"}),
        gain(K1),
        Claim("f", "m", ABOVE_ZERO, Mean(metric("in"), [{"estimator": "k1", "model": "tiny"}], [K3])),
    )
    assert [line[1] for line in found] == [
        "nothing: no cell “k2” in these sweeps",
        "nothing: 2 cells, or results of one made otherwise, are “k1”",
        "nothing: results were made otherwise: code, evaluation or prompts differ",
    ]


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """What `make reproduction` types."""
    out = subprocess.run(["make", "-n", "reproduction"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [words[1:] for line in out.splitlines() if (words := shlex.split(line)) and words[0].endswith("klsweep")]


@pytest.mark.slow
def test_every_claim_finds_its_cells_in_what_make_runs(commands, sweep):
    *sweeps, last = commands
    assert last[0] == "reproduce"
    assert last[1:-2] == [words[-1].removeprefix("sweep_dir=") for words in sweeps]
    assert all("seed=range(0,10)" in words for words in sweeps)
    for words in sweeps:
        sweep.extend_plan([run.row for run in planned(*words[1:], "seed=0,1").runs])
    found = reproduce(compare(sweep), [])
    unrun = ("no seed has a result in all of these cells", "no run of this cell has finished", "no run has logged ")
    for row in (row for members in found.parts.values() for row in members):
        expected = row.claim.reason if isinstance(row.claim, OutOfReach) else unrun
        assert row.reason.startswith(expected), row.claim.finding


def test_the_committed_page_has_measured_every_claim():
    text = (ROOT / "docs" / "reproduction.md").read_text()
    claims = [claim for _, members in PARTS for claim in members]
    assert text.count("| nothing: ") == sum(isinstance(claim, OutOfReach) for claim in claims)
    for claim in claims:
        assert f"| {claim.finding} |".replace("|E(r̂ − r*)|", "\\|E(r̂ − r*)\\|") in text


@pytest.mark.slow
def test_exact_rows_are_those_of_the_committed_page():
    text = (ROOT / "docs" / "reproduction.md").read_text()
    exact = [*audited(audit_rows()), *computed()]
    assert len(exact) == 27
    assert all(row.agrees for row in exact)
    for line in exact_grid(exact):
        assert "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" in text


def test_a_gradient_that_is_another_does_not_agree():
    labels = {**GRADIENTS[0].labels, "relative_error": 0.2, "verdict": "biased: token-local reverse KL"}
    first, *others = audited([labels])
    assert first == ("k1 in the reward is unbiased", "unbiased", "biased: token-local reverse KL; 0.200000", False)
    assert {row.found for row in others} == {"no such row"}
    assert not any(row.agrees for row in others)


def test_the_page_counts_what_it_shows(sweep):
    fields = {"train.prompts_per_update": 32, "algorithm.group_size": 8, "train.lr": 5e-4}
    for name, values in {"k1": [0.70, 0.71, 0.72], "k3": [0.10, 0.09, 0.08]}.items():
        for seed, value in enumerate(values):
            row = plan_row(name, seed, estimator=name, algorithm="rloo")
            write_run(sweep, {**row, "fields": fields}, "done", value)
    claims = (gain(K1), gain(K3), gain(NONE))
    found = reproduce(compare(sweep), [], [("a part", claims)])
    text = page(found, {"s": sweep}, ["klsweep", "reproduce", "sweeps/s"])
    assert "**4 findings: 2 agree, 1 do not, 1 cannot be seen at this scale** (1 of these were not measured" in text
    assert "## a part\n\n| finding |" in text
    assert (
        "| 1 | s | k1 loss β=0.1 on_policy | 3/3 | 0–2 | rloo, 32 × 8, lr 0.0005 | 9 | 0.710 ±0.025 | 0.400 ±0.000 |"
        in text
    )
    assert json.loads(json.dumps(as_objects(found)))[0]["verdict"] == "agrees"


def test_the_command_answers_bad_input_in_one_line(sweep, tmp_path, capsys):
    write_cells(sweep, k1=[0.7])
    assert main(["reproduce", str(tmp_path / "none")]) == 2
    assert main(["reproduce", str(sweep.path), "--page", str(tmp_path / "none" / "p.md")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "no sweep there" in first
    assert "p.md: a file in a folder that is there" in second
