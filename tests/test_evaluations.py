"""Evaluating what training left behind: the same rows as training recorded, planned, resumed and compared alike."""

import json
import shutil

import pytest
import yaml

from klsweep.cli import main
from klsweep.config.build import Builder
from klsweep.config.compose import composer
from klsweep.errors import BadInput
from klsweep.model.source import SHIPPED
from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.sweep.evaluations import plan_evaluations
from klsweep.sweep.plan import write_plan
from klsweep.tracking import Tracker
from klsweep.training import reevaluate
from klsweep.training.settings import Subject
from klsweep.training.trainer import Trainer
from tests.conftest import SMALL

pytestmark = pytest.mark.slow

QUICK = [*SMALL, "train.updates=3", "wandb.mode=disabled", "launcher.parallel=1", "launcher.threads=1"]
SUITES = ("add", "subtract", "reverse", "max", "sort")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SweepFolder:
    """Two runs that were evaluated after updates 2 and 3 and have kept their weights of both."""
    path = tmp_path_factory.mktemp("trained") / "study"
    more = ["eval.every=2", "checkpoint.keep_at=[2]", "seed=0,1", f"sweep_dir={path}"]
    assert main(["sweep", *QUICK, *more]) == 0
    return SweepFolder(path)


@pytest.fixture
def sweep(trained, tmp_path) -> SweepFolder:
    """A copy of it."""
    shutil.copytree(trained.path, tmp_path / "study")
    return SweepFolder(tmp_path / "study")


def plans(target, *overrides: str):
    with composer() as session:
        return plan_evaluations(session, target, overrides)


def evaluated(target, *overrides: str, stop_after: int | None = None) -> list[RunFolder]:
    """Carry out the evaluations of a target in this process, interrupted after a number of suites if asked."""
    folders = []
    for plan in plans(target, *overrides):
        write_plan(plan)
        for run in plan.to_run:
            folder, seen = plan.folder.run(run.run_id), list[int]()
            folders.append(folder)
            attempt = folder.claim()
            assert attempt is not None
            outcome = reevaluate.reevaluate(
                run.spec,
                Subject(**run.config["evaluate"]),
                attempt,
                plan.folder.evaluated.artifacts,
                Tracker(None),
                should_stop=lambda seen=seen: (
                    "preempted" if stop_after is not None and len(seen) >= stop_after else None
                ),
                on_suite=lambda number, _, seen=seen: seen.append(number),
            )
            attempt.finish(outcome.state, outcome.cause)
    return folders


def rows(folder: RunFolder, suite: str, update: int) -> list[dict]:
    return [row for row in read_rows(folder.evaluations / f"{suite}.jsonl") if row["update"] == update]


def figures(folder: RunFolder, update: int) -> dict:
    (row,) = (row for row in read_rows(folder.metrics) if row["update"] == update)
    return {key: value for key, value in row.items() if key.startswith("eval/")}


def test_every_kept_weight_is_evaluated_to_the_rows_that_training_recorded(sweep, capsys):
    assert main(["eval", str(sweep.path), "checkpoint=all"]) == 0
    out = capsys.readouterr().out
    (folder,) = (SweepFolder(path) for path in (sweep.path / "evaluations").iterdir())
    assert "4 raw − 0 excluded − 0 collapsed = 4 runs; 0 done, 4 to run" in out
    assert "2 cells, 4 runs: 4 done" in out
    for planned in sweep.plan():
        run = sweep.run(planned["run_id"])
        for update in (2, 3):
            again = folder.run(f"{planned['run_id']}-u{update}")
            for suite in SUITES:
                assert len(rows(run, suite, update)) == 8
                assert rows(again, suite, update) == rows(run, suite, update)
                assert rows(again, suite, 0) == rows(run, suite, 0)
            assert figures(again, update) == figures(run, update)
            assert figures(again, 0) == figures(run, 0)
            assert figures(again, update) != figures(again, 0)
    assert len(list(sweep.artifacts.glob("b1-*"))) == 1  # the base of the training sweep, not another


def test_twice_agrees_byte_for_byte_and_what_is_finished_is_not_done_again(sweep, capsys):
    target = sweep.run(sweep.plan()[0]["run_id"]).path
    (one,) = evaluated(target, "eval.seed=5")
    bytes_of = {path.name: path.read_bytes() for path in (*one.evaluations.iterdir(), one.metrics)}
    assert len(bytes_of) == 6
    assert rows(one, "add", 3) != rows(sweep.run(target.name), "add", 3)  # other draws
    assert main(["eval", str(target), "eval.seed=5"]) == 0
    assert "1 done, 0 to run" in capsys.readouterr().out
    shutil.rmtree(sweep.path / "evaluations")
    shutil.rmtree(sweep.artifacts)
    (two,) = evaluated(target, "eval.seed=5")
    assert {path.name: path.read_bytes() for path in (*two.evaluations.iterdir(), two.metrics)} == bytes_of


def test_a_killed_evaluation_goes_on_with_the_suites_that_are_not_complete(sweep, monkeypatch):
    target = sweep.run(sweep.plan()[0]["run_id"]).path
    (whole,) = evaluated(target, "eval.seed=5")
    bytes_of = {path.name: path.read_bytes() for path in (*whole.evaluations.iterdir(), whole.metrics)}
    shutil.rmtree(whole.path)
    (broken,) = evaluated(target, "eval.seed=5", stop_after=2)
    assert broken.status()["state"] == "preempted"
    assert not list(read_rows(broken.metrics))
    torn = (broken.evaluations / "subtract.jsonl").read_bytes()
    (broken.evaluations / "subtract.jsonl").write_bytes(torn[: len(torn) * 3 // 4])
    asked = []
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda self, only: asked.extend(only) or evaluate(self, only))
    (again,) = evaluated(target, "eval.seed=5")
    assert asked == ["subtract", "reverse", "max", "sort"]
    assert again.status()["state"] == "done"
    assert {path.name: path.read_bytes() for path in (*again.evaluations.iterdir(), again.metrics)} == bytes_of
    assert [row["update"] for row in read_rows(again.timing)] == [1, 2, 3, 4, 5]


def test_compare_reads_it_with_the_base_and_the_settings_are_on_record(sweep, capsys):
    evaluated(sweep.path, "rollout.temperature=0.5", "eval.samples_per_prompt=4", "rollout.top_p=0.9")
    (plan,) = plans(sweep.path, "eval.temperature=0.5", "eval.samples_per_prompt=4", "eval.top_p=0.9")
    assert len(plan.finished) == 2  # rollout.temperature is what an evaluation samples with
    config = yaml.safe_load(plan.folder.run(plan.runs[0].run_id).config.read_text())
    assert (config["eval"]["temperature"], config["eval"]["top_p"]) == (0.5, 0.9)
    capsys.readouterr()
    assert main(["compare", str(plan.folder.path), "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)
    assert (cell["estimator"], cell["kl_coef"], cell["n_seeds"]) == ("k1", 0.1, 2)
    per_run = [figures(plan.folder.run(run.run_id), 3)["eval/add/pass@1"] for run in plan.runs]
    assert cell["suites"]["add"]["mean"] == pytest.approx(sum(per_run) / 2)
    base = figures(plan.folder.run(plan.runs[0].run_id), 0)
    assert cell["base"] == {suite: base[f"eval/{suite}/pass@1"] for suite in SUITES}
    assert cell["base"]["add"] > figures(sweep.run(sweep.plan()[0]["run_id"]), 0)["eval/add/pass@1"]  # 0.5 is sharper
    assert main(["status", str(plan.folder.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"done": 2}


def test_several_values_are_several_evaluations(sweep):
    found = plans(sweep.path, "eval.temperature=0.3,1.0", "launcher.parallel=2")
    assert len({plan.folder.path.name for plan in found}) == 2
    assert [plan.runs[0].spec.eval.temperature for plan in found] == [0.3, 1.0]
    assert {run.row["eval_id"] for run in found[1].runs} == {row["eval_id"] for row in sweep.plan()}


def test_a_model_folder_is_evaluated_like_the_run_it_comes_from(sweep, in_tmp):
    run = sweep.run(sweep.plan()[0]["run_id"])
    folder = run.path / "models/update-000002"
    (found,) = evaluated(folder, "model=tiny", *SMALL[2:], f"sweep_dir={in_tmp}/other")
    assert [row | {"update": 2} for row in rows(found, "add", 1)] == rows(run, "add", 2)
    (alone,) = evaluated(folder, *SMALL[2:])
    assert str(alone.path).startswith("sweeps/update-000002/evaluations/e1-")
    assert {row["kl"] for row in rows(alone, "sort", 1)} == {0.0}
    assert [row["correct"] for row in rows(alone, "sort", 1)] == [row["correct"] for row in rows(run, "sort", 2)]


def test_runs_without_final_weights_are_left_out_and_the_plan_says_why(sweep):
    first, second = (sweep.run(row["run_id"]) for row in sweep.plan())
    shutil.rmtree(first.checkpoints)
    (second.attempts.folder(1) / "attempt.json").write_text('{"state": "diverged", "cause": "update 3: kl"}')
    with pytest.raises(BadInput, match=r"nothing to evaluate \(diverged: its last weights are not kept; done, but no"):
        plans(sweep.path)
    (plan,) = plans(sweep.path, "checkpoint=all")
    assert [run.row["evaluates"]["update"] for run in plan.runs] == [2, 2]
    assert len(plan.excluded) == 2


def test_a_damaged_checkpoint_fails_instead_of_another_being_evaluated(sweep, capsys):
    run = sweep.run(sweep.plan()[0]["run_id"])
    (weights,) = run.checkpoints.glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(FileNotFoundError, match="no sound checkpoint of update 3 is left"):
        evaluated(run.path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval=nonsense"], "eval='nonsense': choose from arithmetic"),
        (["eval.temprature=1"], "eval.temprature: unknown key (did you mean 'temperature'?"),
        (["eval.temperature=-1"], "eval.temperature=-1: Input should be"),
        (["checkpoint=best"], "checkpoint=best: choose from last, all"),
        (["kl.coef=0.2"], "kl.coef: a field of training, which is over (an evaluation takes eval, rollout"),
        (["task=sort"], "task: a field of training"),
        (["+eval.x=1"], "+eval.x=1: an evaluation takes key=value only"),
        (["eval.temperature=0.5", "rollout.temperature=0.6"], "eval.temperature is given another value besides"),
        (
            ["eval.suites.add.seed=5", "eval.suites.add.eval_prompts=64"],
            "eval.suites.add: 1 of its prompts are trained on",
        ),
        (["model.path=/nowhere"], "model.path='/nowhere': no such folder"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(trained, capsys, overrides, message):
    assert main(["eval", str(trained.path), *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (trained.path / "evaluations").exists()


def test_a_target_that_holds_nothing_to_evaluate(trained, in_tmp, capsys):
    assert main(["eval", "nowhere"]) == 2
    assert "nowhere: no sweep, no run folder and no model in HF format is there" in capsys.readouterr().err
    other = in_tmp / "model"
    shutil.copytree(SHIPPED["klsweep/tiny"], other)
    (other / "model.safetensors").unlink()
    assert main(["eval", str(other)]) == 2
    assert "holds no *.safetensors weights" in capsys.readouterr().err


def test_another_base_than_the_run_was_trained_from_is_refused(trained, capsys):
    path = trained.run(trained.plan()[0]["run_id"]).path
    assert main(["eval", str(path), f"model.path={path}/models/update-000002"]) == 2
    assert "was trained from sha256:" in capsys.readouterr().err


def test_an_evaluation_can_be_tried_again_but_not_evaluated(sweep, capsys):
    (folder,) = evaluated(sweep.run(sweep.plan()[0]["run_id"]).path, stop_after=1)
    assert main(["eval", str(folder.sweep.path)]) == 2
    assert "is an evaluation itself" in capsys.readouterr().err
    assert main(["retry", str(folder.sweep.path)]) == 0
    assert folder.status()["state"] == "done"
    assert Builder().run_spec(yaml.safe_load(folder.config.read_text())).root.sweep_dir == str(folder.sweep.path)
