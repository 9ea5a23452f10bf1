"""Tables: what rows and columns hold, by hand or by the statistics they claim; every edge gives a page or one line."""

import json

import pytest
from scipy import stats

from klsweep.analysis.build import Layout, build
from klsweep.analysis.charts import stability_maps
from klsweep.analysis.compare import compare
from klsweep.analysis.effect_table import effect_table
from klsweep.analysis.explain import EQUAL_NOTE
from klsweep.analysis.headline import headline
from klsweep.analysis.paired import seeds_needed
from klsweep.analysis.tables import TEXTS, markdown, print_table
from klsweep.cli import main
from klsweep.errors import BadInput
from klsweep.record.folder import SweepFolder
from tests.analysis.records import plan_row, write_items, write_run, write_series

# accuracy on the trained task of two placements and of no KL, seeds 0 to 3, on and off policy
STUDY = {
    ("none", "on_policy"): [0.50, 0.60, 0.55, 0.58],
    ("reward", "on_policy"): [0.70, 0.81, 0.74, 0.79],
    ("loss", "on_policy"): [0.52, 0.60, 0.58, 0.57],
    ("none", "off_policy"): [0.30, 0.35, 0.33, 0.31],
    ("reward", "off_policy"): [0.32, 0.36, 0.36, 0.30],
}


def cell(placement: str, sampling: str, seed: int, beta: float = 0.1) -> dict:
    inert = placement == "none"
    row = plan_row(f"{placement}-{sampling}-{beta}", seed, placement=placement, sampling=sampling)
    return {
        **row,
        "axes": {**row["axes"], "estimator": None if inert else "k1"},
        "kl_coef": None if inert else beta,
    }


@pytest.fixture
def study(sweep) -> SweepFolder:
    for (placement, sampling), values in STUDY.items():
        for seed, add in enumerate(values):
            write_run(sweep, cell(placement, sampling, seed), "done", add)
    return sweep


def column(table, name: str, group: str = "") -> list:
    place = next(i for i, c in enumerate(table.columns) if (c.name, c.group) == (name, group))
    return [line.entries[place] for line in table.rows]


def rows_of(table) -> dict[str, list]:
    """Entries of each row by its labels."""
    labels = [i for i, c in enumerate(table.columns) if c.name in ("placement", "sampling", "kl.coef")]
    return {" ".join(line.entries[i].text for i in labels): line.entries for line in table.rows}


def test_the_papers_columns(study):
    table = build(compare(study), Layout(columns=["paper"]))
    names = ["estimator", "placement", "sampling", "kl.coef", "runs", "add", "sort", "max", "out", "kl"]
    assert [c.name for c in table.columns] == [*names, "entropy", "divergence"]
    assert [c.title for c in table.columns][3:7] == ["β", "runs", "add (in)", "sort"]
    assert table.rows[0].entries[0].text == "base tiny"
    entry = column(table, "add")[2]
    interval = stats.t.interval(0.95, 3, 0.76, stats.sem(STUDY["reward", "on_policy"]))
    assert entry.values == {
        "n": 4,
        "planned": 4,
        "mean": pytest.approx(0.76),
        "ci_low": pytest.approx(interval[0]),
        "ci_high": pytest.approx(interval[1]),
    }
    assert table.rows[2].cells == ["reward-on_policy-0.1"]
    assert [key.run_id for key in table.rows[2].runs] == [f"reward-on_policy-0.1-{seed}" for seed in range(4)]


def test_the_best_and_what_cannot_be_told_from_it_are_marked(study):
    write_run(study, cell("loss", "off_policy", 0), "done", 0.1)  # one seed: nothing can be said
    table = build(compare(study), Layout(columns=["in"]))
    assert [entry.mark for entry in column(table, "in")] == [None, None, "best", None, None, None, "tied"]
    assert any(note.startswith("◆ best") for note in table.notes)
    plain = build(compare(study), Layout())
    assert [entry.mark for entry in column(plain, "add")] == [None, None, "best", None, None, None, "tied"]


def test_differences_are_paired_with_the_baseline_of_the_rows_own_sampling(study):
    table = build(compare(study), Layout(columns=["in", "out"], metrics=["in"], baseline=["placement=none"]))
    assert [c.name for c in table.columns][-3:] == ["in", "Δ in", "out"]
    found = column(table, "Δ in")
    assert [entry.text for entry in found[:2]] == ["", ""]  # the base model and the baseline itself
    p_values = []
    for i, (placement, sampling) in enumerate(STUDY, 1):
        if placement != "none":
            known = stats.ttest_rel(STUDY[placement, sampling], STUDY["none", sampling])
            values = found[i].values
            assert values["p"] == pytest.approx(known.pvalue)
            assert (values["ci_low"], values["ci_high"]) == tuple(map(pytest.approx, known.confidence_interval()))
            p_values.append((known.pvalue, values["p_holm"]))
    ranked = sorted(p_values)
    assert [holm for _, holm in ranked] == [
        pytest.approx(3 * ranked[0][0]),
        pytest.approx(2 * ranked[1][0]),
        pytest.approx(max(2 * ranked[1][0], ranked[2][0])),
    ]
    assert found[2].text == f"+0.203 ±{found[2].values['ci_high'] - found[2].values['mean']:.3f}, p<0.001"
    assert "no KL on_policy, no KL off_policy; each row from the one of its own sampling" in table.notes[-1]


def test_differences_from_the_base_model(study):
    table = build(compare(study), Layout(columns=["add", "reward"], metrics=["add", "reward"], baseline=["base"]))
    assert column(table, "Δ add")[2].values["mean"] == pytest.approx(0.76 - 0.4)
    assert column(table, "Δ reward")[2].text == "–"  # the base has not been trained


def test_seeds_needed_are_those_of_the_differences(study):
    layout = Layout(columns=["in"], baseline=["placement=none", "sampling=on_policy"], detect=0.05)
    table = build(compare(study), layout)
    entry = column(table, "seeds in")[2]
    spread = stats.tstd([a - b for a, b in zip(STUDY["reward", "on_policy"], STUDY["none", "on_policy"], strict=True)])
    needed = seeds_needed(0.05, spread, 4, 0.05 / 4)  # four rows are held against it
    assert entry.values == needed._asdict()


def test_incomplete_means_are_starred_in_every_column(sweep):
    for seed, (state, add) in enumerate([("done", 0.8), ("done", 0.9), ("diverged", None), ("failed", None)]):
        write_run(sweep, cell("reward", "on_policy", seed), state, add)
    write_run(sweep, cell("none", "on_policy", 0), "done", 0.5)
    write_run(sweep, cell("none", "on_policy", 1), "done", 0.5)
    layout = Layout(columns=["runs", "add", "out", "divergence", "collapse", "iqm/out"], baseline=["placement=none"])
    table = build(compare(sweep), layout)
    first = rows_of(table)["reward 0.1"]
    assert [entry.text.count("*") for entry in first[3:]] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert first[3].text == "2/4"
    assert first[-3].text == "1/3 (6–79 %)*"
    assert "* mean over fewer runs than planned (see runs)." in table.notes
    assert [note for note in table.notes if note.startswith("±0.000")] == [EQUAL_NOTE]  # of 0.5 and 0.5
    assert table.coverage == [
        f"{sweep.path}: 2 cells, 6 runs: 4 done, 1 diverged, 1 failed",
        "of 2 cells 1 have all their results; 1 have fewer than planned (k1 reward β=0.1 on_policy)",
    ]
    for form in ("markdown", "csv", "html", "latex"):
        text = TEXTS[form](table)
        assert text.index("4 done, 1 diverged") < text.index("0.85")


def test_figures_of_diverged_runs_bear_a_sign_in_every_column(sweep):
    for seed, state in enumerate(["done", "done", "diverged"]):
        write_run(sweep, cell("reward", "on_policy", seed), state, 0.8)
        write_run(sweep, cell("none", "on_policy", seed), "done", 0.5 + 0.01 * seed)
    columns = ["add", "out", "reward", "iqm/out", "divergence"]
    table = build(compare(sweep), Layout(columns=columns, metrics=["add"], baseline=["placement=none"]))
    rows = rows_of(table)
    signs = {name: [e.text.count("†") for e in entries[3:]] for name, entries in rows.items()}
    assert signs == {" ": [0] * 6, "reward 0.1": [1, 1, 1, 1, 1, 0], "none –": [0] * 6}
    assert rows["reward 0.1"][3].text == "0.800 ±0.000†"
    assert rows["reward 0.1"][3].values["diverged"] == 1
    assert sum(note.startswith("† over runs of which some diverged") for note in table.notes) == 1
    held = build(compare(sweep), Layout(columns=["add"], metrics=["add"], baseline=["placement=reward"]))
    assert rows_of(held)["none –"][4].text.count("†") == 1  # the baseline's
    apart = build(compare(sweep, where=["state=done"]), Layout(columns=["add"]))
    assert "†" not in markdown(apart)


def test_rows_over_cells_with_other_suites_have_an_interquartile_mean(sweep):
    """Of seed 0 the figures .6 .2 .9, of seed 1 .6 .2: the quarters' edges are at 1.25 and 3.75 of five."""
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    write_run(sweep, plan_row("a", 1), "done", 0.8)
    wider = {**plan_row("b", 0, placement="reward"), "suites": {"add": "in", "sub": "out"}}
    write_run(sweep, wider, "done", 0.8, sub=0.9)
    table = build(compare(sweep), Layout(rows=["sampling"], columns=["iqm/out"]))
    entry = column(table, "iqm/out")[1]
    assert entry.values["value"] == pytest.approx((0.75 * 0.2 + 0.6 + 0.75 * 0.6) / 2.5)
    assert (entry.values["n"], entry.values["planned"]) == (3, 3)


def test_levels_of_an_axis_are_columns(study):
    for seed in range(3):
        write_run(study, cell("reward", "on_policy", seed, beta=0.4), "done", 0.2)
        study.extend_plan([cell("loss", "on_policy", seed, beta=0.4)])
    table = build(compare(study), Layout(rows=["placement"], columns=["sampling", "kl.coef"], metrics=["in"]))
    groups = [c.group for c in table.columns]
    on = "sampling=on_policy, β="
    off = "sampling=off_policy, β="
    assert groups == ["", f"{off}0.1", f"{off}–", f"{on}0.1", f"{on}0.4", f"{on}–"]
    texts = {line.entries[0].text: [entry.text for entry in line.entries[1:]] for line in table.rows}
    assert [text[:5] for text in texts["reward"]] == ["0.335", "", "0.760", "0.200", ""]
    assert [text[:5] for text in texts["loss"]] == ["", "", "0.568", "–", ""]
    assert table.notes[0] == "Entries: in mean."


def test_cells_that_rows_do_not_tell_apart_are_taken_together(study):
    """Means of 0.76 and 0.335: 0.5475; they share seeds, so that the error is that of their means per seed."""
    table = build(compare(study), Layout(rows=["placement"], columns=["runs", "in"], metrics=["in"]))
    entry = {line.entries[0].text: line.entries[2] for line in table.rows}["reward"]
    pairs = zip(STUDY["reward", "on_policy"], STUDY["reward", "off_policy"], strict=True)
    per_seed = [(on + off) / 2 for on, off in pairs]
    interval = stats.t.interval(0.95, 3, 0.5475, stats.sem(per_seed))
    assert entry.values["mean"] == pytest.approx(0.5475)
    assert (entry.values["ci_low"], entry.values["ci_high"]) == tuple(map(pytest.approx, interval))
    assert any(note.startswith("Rows over several cells") for note in table.notes)


def test_a_seed_that_one_of_them_lacks_is_no_pair(study):
    """Cells taken together, one with a fifth seed: the difference is over the four that all have."""
    write_run(study, cell("reward", "on_policy", 4), "done", 0.0)
    write_run(study, cell("none", "on_policy", 4), "done", 0.9)
    layout = Layout(rows=["placement"], columns=["in"], baseline=["placement=none"])
    table = build(compare(study, where=["placement!=loss"]), layout)
    on, off = (
        [a - b for a, b in zip(STUDY["reward", sampling], STUDY["none", sampling], strict=True)]
        for sampling in ("on_policy", "off_policy")
    )
    known = stats.ttest_1samp([(a + b) / 2 for a, b in zip(on, off, strict=True)], 0).confidence_interval()
    values = column(table, "Δ in")[2].values
    assert (values["n"], values["ci_low"], values["ci_high"]) == (4, *map(pytest.approx, known))


def test_what_happened_during_runs(sweep):
    for seed, drop in enumerate([None, 30, 40]):
        write_run(sweep, plan_row("a", seed), "done", 0.8)
        correct = [0.8] * 60 if drop is None else [0.8] * drop + [0.0] * (60 - drop)
        write_series(
            sweep.run(f"a-{seed}"), {"reward/correct": correct, "grad_norm": [1.0] * 50 + [100.0] * 1 + [1.0] * 9}
        )
    table = build(compare(sweep), Layout(columns=["trouble"]))
    assert column(table, "trouble")[1].text == (
        "fell 2/3 (21–94 %) at 33–43 by 100 %, 0 recovered; spikes 3/3 (44–100 %) from 51, 3 settled"
    )


def test_what_happened_in_runs_that_have_not_logged_is_not_known(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    write_series(sweep.run("a-0"), {"reward/correct": [0.8] * 20})
    sweep.extend_plan([plan_row("a", 1)])
    table = build(compare(sweep), Layout(columns=["trouble"]))
    entry = column(table, "trouble")[1]
    assert (entry.text, entry.values["n"], entry.values["planned"]) == ("none*", 1, 2)


def test_runs_on_other_prompts_are_rows_apart_and_compared_on_common_items_if_asked(sweep):
    """Mixed: 4, 2 of 4 right on p, q against 1, 3 on q, r: on q alone that is 1/2 − 1/4."""
    for seed in range(2):
        write_run(sweep, plan_row("a", seed), "done", 0.75)
        write_items(sweep.run(f"a-{seed}"), "add", 9, [4, 2], ["p", "q"])
        write_run(sweep, plan_row("b", seed, placement="none"), "done", 0.5)
        write_items(sweep.run(f"b-{seed}"), "add", 9, [1, 3], ["q", "r"])
    layout = Layout(columns=["add"], baseline=["placement=none"])
    apart = build(compare(sweep), layout)
    assert [c.name for c in apart.columns][-3:] == ["prompts", "add", "Δ add"]
    assert column(apart, "Δ add")[1].text == "–"
    assert [entry.mark for entry in column(apart, "add")] == [None, None, None]  # nothing to be compared with
    assert "different prompt sets" in apart.warnings[0]
    mixed = build(compare(sweep, mix=["prompts"]), layout)
    assert column(mixed, "add")[1].values["mean"] == 0.75
    assert column(mixed, "Δ add")[1].values["mean"] == pytest.approx(0.25)
    assert mixed.warnings == [apart.warnings[0].replace("; kept apart (--mix prompts)", "")]


def test_a_run_that_left_no_final_items_stands_with_those_of_its_prompts(tmp_path):
    """Diverged before its first evaluation: the base's items tell what it would have been asked, else its cell does."""
    one, two = SweepFolder(tmp_path / "one"), SweepFolder(tmp_path / "two")
    write_run(one, plan_row("a", 0), "done", 0.8)
    write_items(one.run("a-0"), "add", 9, [4, 2], ["p", "q"])
    for cell_id in ("b", "c"):
        for seed in range(2):
            row = plan_row(cell_id, seed, placement={"b": "reward", "c": "none"}[cell_id])
            write_run(two, row, "diverged" if seed else "done", None if seed else 0.5)
            update = 0 if seed else 9
            if cell_id == "b" or not seed:
                write_items(two.run(row["run_id"]), "add", update, [1, 3], ["q", "r"])
    table = build(compare(one, two), Layout(columns=["runs", "divergence"]))
    shown = [[entry.text for entry in line.entries[-2:]] for line in table.rows[1:]]
    assert shown == [["1/1", "0/1 (0–79 %)"], ["1/2", "1/2 (9–91 %)"], ["1/2", "1/2 (9–91 %)"]]


def test_results_made_otherwise_are_rows_apart_unless_asked(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    write_run(sweep, plan_row("a", 1), "done", 0.6, science="s2")
    write_run(sweep, {**plan_row("a", 2), "origin": "external"}, "done", 0.1)
    sweep.extend_plan([plan_row("a", 3)])
    comparison = compare(sweep)
    table = build(comparison, Layout())
    assert [c.title for c in table.columns][3:5] == ["code", "origin"]
    assert [line.entries[0].text for line in table.rows[:2]] == ["base tiny", "base tiny external"]
    shown = [[entry.text for entry in line.entries[3:7]] for line in table.rows[2:]]
    assert shown == [
        ["s1", "klsweep", "1/4", "0.800*"],
        ["s2", "klsweep", "1/4", "0.600*"],
        ["external", "external", "1/4", "0.100*"],
    ]
    assert table.coverage[1] == (
        "of 1 cells 0 have all their results; 1 have fewer than planned (k1 loss β=0.1 on_policy)"
    )
    assert table.coverage[0].endswith("1 cells, 4 runs: 3 done, 1 pending (1 external)")
    mixed = build(compare(sweep, mix=["all"]), Layout())
    assert [[e.text for e in line.entries[3:6]] for line in mixed.rows[1:]] == [
        ["external, klsweep", "3/4", "0.500 ±0.896*"]
    ]
    assert len(mixed.warnings) == 2


def test_a_run_without_a_result_stands_where_it_will_be_evaluated_alike(sweep):
    write_run(sweep, plan_row("a", 0), "done", 0.8)
    write_run(sweep, {**plan_row("a", 1), "eval_id": "e2"}, "done", 0.6)
    sweep.extend_plan([{**plan_row("a", 2), "eval_id": "e2"}, {**plan_row("a", 3), "eval_id": "e3"}])
    table = build(compare(sweep), Layout())
    assert [[e.text for e in line.entries[3:5]] for line in table.rows[1:]] == [["e1", "1/4"], ["e2", "1/4"]]


def test_one_run_evaluated_twice_counts_once_if_mixed(tmp_path):
    one, two = SweepFolder(tmp_path / "one"), SweepFolder(tmp_path / "two")
    for seed, (first, second) in enumerate([(0.8, 0.6), (0.9, 0.7)]):
        write_run(one, plan_row("a", seed), "done", first)
        write_run(two, {**plan_row("a", seed), "eval_id": "e2"}, "done", second)
    entry = column(build(compare(one, two, mix=["evaluation"]), Layout()), "add")[1]
    assert (entry.values["n"], entry.values["planned"], entry.values["mean"]) == (2, 2, pytest.approx(0.75))
    apart = column(build(compare(one, two), Layout()), "add")
    assert [entry.values["mean"] for entry in apart[1:]] == [pytest.approx(0.85), pytest.approx(0.65)]


def test_evaluations_by_two_engines_are_two_results(tmp_path):
    """Their ids are equal. One whose engine was not noted, of an older record, is kept apart from neither."""
    sweeps = [SweepFolder(tmp_path / name) for name in ("hf", "vllm", "older")]
    for sweep, engine, add, seeds in zip(
        sweeps, ("hf", "vllm", None), (0.8, 0.6, 0.7), ((0, 1), (0, 1), (2,)), strict=True
    ):
        for seed in seeds:
            write_run(sweep, plan_row("a", seed), "done", add, engine=engine)
    table = build(compare(*sweeps), Layout(columns=["runs", "add"]))
    shown = [[entry.text for entry in line.entries[3:6]] for line in table.rows[1:]]
    assert shown == [["hf", "3/3", "0.767 ±0.143"], ["vllm", "2/3", "0.600 ±0.000*"]]
    assert table.warnings == [
        "finished runs have 2 different engines (hf, vllm): rows may not be comparable; kept apart (--mix engine)"
    ]


def test_the_bases_of_two_evaluations_say_which_they_are_of(sweep):
    for seed, evaluation in enumerate(("e1", "e2")):
        write_run(sweep, {**plan_row("a", seed), "eval_id": evaluation}, "done", 0.8, science=f"s{seed}")
        write_run(sweep, {**plan_row("b", seed, placement="reward"), "eval_id": evaluation}, "done", 0.8)
    for name in ("a-1", "b-1"):
        path = sweep.run(name).metrics
        path.write_text(path.read_text().replace('"eval/add/pass@1": 0.4', '"eval/add/pass@1": 0.05'))
    table = build(compare(sweep), Layout())
    shown = [[entry.text for entry in line.entries if entry.text][:3] for line in table.rows[:2]]
    assert shown == [["base tiny", "e1", "0.400"], ["base tiny", "e2", "s1"]]  # e1 is of two codes


def test_rates_are_of_seeds_though_each_has_two_results(tmp_path):
    one, two = SweepFolder(tmp_path / "one"), SweepFolder(tmp_path / "two")
    for seed in range(3):
        write_run(one, plan_row("a", seed), "diverged", 0.1 * seed)
        write_run(two, {**plan_row("a", seed), "eval_id": "e2"}, "diverged", 0.1)
    comparison = compare(one, two, mix=["evaluation"])
    table = build(comparison, Layout(columns=["divergence", "collapse", "iqm/in"]))
    assert [entry.text for entry in table.rows[1].entries[3:5]] == ["3/3 (44–100 %)"] * 2
    assert table.rows[1].entries[5].values["n"] == 3
    assert table.rows[1].entries[5].values["value"] == pytest.approx((0.25 * 0.05 + 0.1 + 0.25 * 0.15) / 1.5)
    sentences = headline(comparison, effect_table(comparison), ["base"])
    assert sum(line.startswith("3 of 3 ended runs diverged") for line in sentences) == 1
    (stability,) = stability_maps(comparison)
    rate = stability.rates[0][0]
    assert rate is not None
    assert (rate.k, rate.n, stability.planned) == (3, 3, [[3]])


def test_where_chooses_runs_and_says_how_many_are_left_out(study):
    table = build(compare(study, where=["sampling=on_policy", "placement!=none", "seed<3"]), Layout(columns=["in"]))
    assert column(table, "in")[1].values["n"] == 3
    assert table.coverage[0].endswith("2 cells, 6 runs: 6 done (14 runs left out by --where)")


@pytest.mark.parametrize(
    ("condition", "betas"),
    [
        ("kl.coef>=0.2", [0.2, 0.4]),
        ("kl.coef>0.2", [0.4]),
        ("kl.coef<=0.2", [0.1, 0.2]),
        ("kl.coef<0.2", [0.1]),
        ("kl.coef=0.10,0.4", [0.1, 0.4]),
        ("kl.coef!=0.1", [0.2, 0.4, None]),
        ("kl.coef=null", [None]),
        ("estimator=–", [None]),
        ("estimator= k1 , null", [0.1, 0.2, 0.4, None]),
        ("train.steps=1000000", [0.1, 0.2, 0.4, None]),
        ("train.steps=1e6", [0.1, 0.2, 0.4, None]),
        ("task.data=0012300", [0.1, 0.2, 0.4, None]),  # a digest, whose digits are no number
    ],
)
def test_conditions(sweep, condition, betas):
    fields = {"train.steps": 1_000_000, "task.data": "0012300"}
    for beta in (0.1, 0.2, 0.4):
        write_run(sweep, {**cell("reward", "on_policy", 0, beta), "fields": fields}, "done", 0.5)
    write_run(sweep, {**cell("none", "on_policy", 0), "fields": fields}, "done", 0.5)
    assert [found.plan["kl_coef"] for found in compare(sweep, where=[condition]).cells] == betas


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "estimator=k9"], "estimator=k9: no run has that (choose from k1, –)"),
        (["--where", "kl.coef=0.3"], "kl.coef=0.3: no run has that (choose from 0.1, –)"),
        (["--where", "estimater=k1"], "'estimater': no such key (choose from model, estimator,"),
        (["--where", "kl.coef>many"], "'kl.coef>many': > takes one number"),
        (["--where", "kl.coef>1"], "--where kl.coef>1: no run is left of 20"),
        (["--where", "k1"], "'k1': a condition is KEY=VALUE,…"),
        (["--baseline", "placement=none", "estimator=k1"], "--baseline placement=none estimator=k1: no cell is all of"),
        (["--columns", "accuracy"], "'accuracy': no metric of that name (choose from in, out, kl,"),
        (["--rows", "axis"], "'axis': no such key"),
        (["--detect", "0.1"], "--detect=0.1: goes with --baseline"),
        (["--mix", "seeds"], "mix=seeds: choose from evaluation, engine, science, plugins, prompts, origin, all"),
        (["--detect", "nan", "--baseline", "base"], "--detect=nan: the size of a difference, a number above 0"),
        (["--detect", "0", "--baseline", "base"], "--detect=0: the size of a difference, a number above 0"),
        (["--columns", "in/mean"], "'in/mean': no metric of that name (choose from in, out, kl,"),
        (["--json", "--baseline", "base"], "--json: prints cells as a list, without --baseline; --format json prints"),
        (["--json", "--effects"], "--json: prints cells as a list, without --effects; --format json prints the table"),
        (["--plots", __file__], f"--plots={__file__}: cannot be a folder (File exists)"),
        (["--effects", "--rows", "placement"], "--effects and --plots go with --metric, --baseline and --where"),
    ],
)
def test_bad_choices_are_answered_in_one_line(study, capsys, arguments, message):
    assert main(["compare", str(study.path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"klsweep: error: {message}")


LAYOUTS = [
    {},
    {"columns": ["paper", "trouble", "collapse", "iqm/out", "iqm/in", "outcome"], "baseline": ["base"]},
    {"baseline": ["placement=loss"], "detect": 0.1},
    {"columns": ["placement"], "metrics": ["in", "kl"]},
    {"rows": ["estimator"], "columns": ["runs", "in", "divergence"]},
]


def empty(sweep: SweepFolder) -> None:
    sweep.extend_plan([])


def planned_only(sweep: SweepFolder) -> None:
    sweep.extend_plan([plan_row("a", seed) for seed in range(3)])


def one_run(sweep: SweepFolder) -> None:
    write_run(sweep, plan_row("a", 0), "done", 0.8)


def one_seed(sweep: SweepFolder) -> None:
    for name, placement in (("a", "loss"), ("b", "reward")):
        write_run(sweep, plan_row(name, 0, placement=placement), "done", 0.8)


def all_diverged(sweep: SweepFolder) -> None:
    for name, placement in (("a", "loss"), ("b", "reward")):
        for seed in range(3):
            write_run(sweep, plan_row(name, seed, placement=placement), "diverged", None)


def half_written(sweep: SweepFolder) -> None:
    one_seed(sweep)
    torn, broken = sweep.run("a-0").metrics, sweep.run("b-0").metrics
    torn.write_text(torn.read_text()[:-30])
    broken.write_text(broken.read_text().replace("}", "", 2))
    (sweep.run("a-0").attempt(1) / "attempt.json").write_text('{"state": "do')


@pytest.mark.parametrize("fill", [empty, planned_only, one_run, one_seed, all_diverged, half_written])
@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
def test_every_edge_gives_a_page_in_every_format(sweep, fill, layout, capsys):
    fill(sweep)
    if fill is empty and layout.get("columns") == ["placement"]:  # a key that no run has
        layout = {}
    table = build(compare(sweep), Layout(**layout))
    print_table(table)
    pages = [capsys.readouterr().out, *(form(table) for form in TEXTS.values())]
    for page in pages:
        assert f"{len(compare(sweep).records.runs)} runs" in page
        assert "nan" not in page.lower()
    assert len(json.loads(TEXTS["json"](table))["rows"]) == len(table.rows)


def test_what_is_said_of_edges(sweep):
    half_written(sweep)
    table = build(compare(sweep), Layout())
    assert "of 2 cells 0 have all their results; 2 have none" in table.coverage[1]
    (warning,) = table.warnings
    assert warning.startswith("b-0 is as good as without result: ")
    assert "line 1 is not JSON" in warning


@pytest.mark.slow
def test_a_thousand_cells(sweep, capsys):
    rows = []
    for i in range(1000):
        row = plan_row(f"c{i}", 0, placement=f"p{i % 4}")
        rows.append({**row, "kl_coef": i / 100})
    sweep.extend_plan(rows)
    write_run(sweep, {**plan_row("c0", 1, placement="p0"), "kl_coef": 0.0}, "done", 0.5)
    table = build(compare(sweep), Layout(columns=["paper"], baseline=["placement=p0", "kl.coef=0"]))
    assert len(table.rows) == 1001
    assert table.coverage[1].endswith("and 993 more)")
    for form in TEXTS.values():
        assert form(table).count("p3") >= 250
    with pytest.raises(BadInput, match=r"choose from 0, 0\.01"):
        build(compare(sweep), Layout(baseline=["kl.coef=77"]))
