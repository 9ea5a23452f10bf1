"""Whole sweeps through the command line, on real worker processes."""

import json
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.spawn
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from klsweep.cli import main
from klsweep.config.compose import composer
from klsweep.model.source import SHIPPED
from klsweep.record.folder import RunFolder, SweepFolder
from klsweep.sweep.launch_local import launch
from klsweep.sweep.plan import make_plan, write_plan
from klsweep.sweep.resources import Local
from tests.conftest import SMALL, small_spec

pytestmark = pytest.mark.slow

KLSWEEP = [sys.executable, "-m", "klsweep.cli"]
QUICK = [*SMALL, "train.updates=2", "launcher.parallel=2", "wandb.mode=disabled", "eval.samples_per_prompt=4"]


def klsweep(*arguments: str, folder) -> subprocess.CompletedProcess:
    return subprocess.run([*KLSWEEP, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three cells × two seeds, with W&B offline."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = [a for a in QUICK if not a.startswith("wandb")]
    done = klsweep("sweep", *arguments, "estimator=k1,k3", "placement=none,loss", "seed=0,1", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_sweep_trains_every_cell_and_prints_a_table(sweep):
    folder, done = sweep
    assert "8 raw − 0 excluded − 2 collapsed = 6 runs" in done.stdout
    assert "runs 6/6" in done.stderr
    assert "run folders: sweeps/default/runs" in done.stdout
    assert "3 cells, 6 runs: 6 done" in done.stdout
    runs = sorted((folder / "sweeps/default/runs").iterdir())
    assert len(runs) == 6
    for run in runs:
        assert RunFolder(run).status()["engine"] == "hf"
        names = {path.name for path in run.iterdir()}
        assert {
            "config.yaml",
            "status.json",
            "env.json",
            "metrics.jsonl",
            "timing.jsonl",
            "eval",
            "checkpoints",
        } <= names
        assert {"attempts", "wandb"} <= names
        assert {path.name for path in (run / "attempts/1").iterdir()} == {
            "attempt.json",
            "claim.json",
            "heartbeat",
            "stdout",
            "stderr",
        }
        environment = json.loads((run / "env.json").read_text())
        assert environment["packages"]["torch"].startswith("2.")
        assert environment["threads"] == 1
        assert (environment["device"], environment["resumed_run_equals"]) == ("cpu", "every byte")
    assert len(list((folder / "sweeps/default/artifacts").glob("b1-*"))) == 1
    assert not (folder / "outputs").exists()
    (launch,) = yaml.safe_load((folder / "sweeps/default/sweep.yaml").read_text())
    assert (launch["raw"], launch["collapsed"], launch["runs"], launch["finished_before"]) == (8, 2, 6, 0)
    assert "seed=0,1" in launch["overrides"]


def test_status_and_compare_read_it(sweep, capsys):
    folder, _ = sweep
    path = str(folder / "sweeps/default")
    assert main(["status", path, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["counts"] == {"done": 6}
    assert {run["update"] for run in status["runs"]} == {2}
    assert main(["compare", path, "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert [(c["estimator"], c["placement"], c["clip"], c["kl_coef"], c["n_seeds"]) for c in cells] == [
        (None, "none", None, None, 2),
        ("k1", "loss", "none", 0.1, 2),
        ("k3", "loss", "none", 0.1, 2),
    ]
    suite = cells[1]["suites"]["add"]
    assert suite["role"] == "in"
    assert suite["ci_low"] <= suite["mean"] <= suite["ci_high"]
    assert cells[0]["suites"]["sort"]["role"] == "out"
    assert main(["compare", path, "--markdown"]) == 0
    assert "| estimator | placement |" in capsys.readouterr().out


def test_the_same_command_runs_nothing_and_a_wider_grid_only_what_is_new(sweep):
    folder, _ = sweep
    before = {p: p.stat().st_mtime_ns for p in folder.glob("sweeps/default/runs/*/metrics.jsonl")}
    arguments = [*QUICK, "estimator=k1,k3", "placement=none,loss"]
    again = klsweep("sweep", *arguments, "seed=0,1", folder=folder)
    assert "6 done, 0 to run" in again.stdout
    wider = klsweep("sweep", *arguments, "seed=0,1,2", folder=folder)
    assert "6 done, 3 to run" in wider.stdout
    assert "about" in wider.stdout  # a cost from finished siblings
    launches = yaml.safe_load((folder / "sweeps/default/sweep.yaml").read_text())
    assert [(launch["runs"], launch["finished_before"]) for launch in launches] == [(6, 0), (6, 6), (9, 6)]
    after = {p: p.stat().st_mtime_ns for p in folder.glob("sweeps/default/runs/*/metrics.jsonl")}
    assert len(after) == 9
    assert all(after[path] == time for path, time in before.items())


def test_one_failing_run_does_not_stop_the_others_and_can_be_run_again(in_tmp):
    """A run whose folder holds an unwritable evaluation path fails by itself; put right, only it is run again."""
    arguments = [*QUICK, "seed=0,1,2"]
    planned = klsweep("plan", *arguments, "--json", folder=in_tmp)
    victim = in_tmp / "sweeps/default/runs" / json.loads(planned.stdout)["to_run"][1]
    victim.mkdir(parents=True)
    (victim / "eval").write_text("a file where a folder should be")
    done = klsweep("sweep", *arguments, folder=in_tmp)
    assert done.returncode == 1
    assert "failed: k1 reward β=0.1 on_policy seed 1: FileExistsError" in done.stderr
    assert "1 failed" in done.stdout
    assert "2/3" in done.stdout
    assert "* mean over fewer runs than planned" in done.stdout
    status = json.loads((victim / "status.json").read_text())
    assert "Traceback" in status["traceback"]
    assert "FileExistsError" in (victim / "attempts/1/stderr").read_text()
    (victim / "eval").unlink()
    again = klsweep("sweep", *arguments, folder=in_tmp)
    assert again.returncode == 0
    assert "2 done, 1 to run" in again.stdout
    assert json.loads((victim / "status.json").read_text())["attempt"] == 2


def _children(pid: int) -> list[int]:
    out = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in out.splitlines() if "spawn_main" in line]


def _wait_until(condition, seconds: float = 90.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def _start(folder, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*KLSWEEP, "sweep", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background shell
    )


def _running(sweep: SweepFolder, update: int) -> list[dict]:
    """Statuses of runs that are running and have logged at least `update` updates."""
    found = []
    for row in sweep.plan():
        folder = sweep.run(row["run_id"])
        status = folder.status()
        if status["state"] == "running" and folder.metrics.exists():
            found += [status] * (len(folder.metrics.read_text().splitlines()) > update)
    return found


def test_a_killed_worker_is_a_failed_run_and_the_rest_goes_on(in_tmp):
    launcher = _start(in_tmp, *[a for a in QUICK if "updates" not in a], "train.updates=40", "seed=0,1,2")
    sweep = SweepFolder(in_tmp / "sweeps/default")
    victim = _wait_until(lambda: _running(sweep, 2))[0]
    os.kill(victim["owner"]["pid"], signal.SIGKILL)
    assert launcher.wait(timeout=200) == 1
    statuses = [sweep.run(row["run_id"]).status() for row in sweep.plan()]
    assert sorted(s["state"] for s in statuses) == ["done", "done", "failed"]
    cause = next(s["cause"] for s in statuses if s["state"] == "failed")
    assert cause == "vanished: the worker process ended with signal SIGKILL"


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_checkpoints_and_the_same_command_goes_on(interrupt, in_tmp):
    arguments = [*[a for a in QUICK if "updates" not in a], "train.updates=60", "seed=0,1"]
    launcher = _start(in_tmp, *arguments)
    sweep = SweepFolder(in_tmp / "sweeps/default")
    _wait_until(lambda: len(_running(sweep, 2)) == 2)
    launcher.send_signal(interrupt)
    assert launcher.wait(timeout=60) == 1
    assert _children(launcher.pid) == []
    statuses = [sweep.run(row["run_id"]).status() for row in sweep.plan()]
    assert [s["state"] for s in statuses] == ["preempted", "preempted"]
    assert klsweep("sweep", *arguments, folder=in_tmp).returncode == 0
    for row in sweep.plan():
        updates = [json.loads(line)["update"] for line in sweep.run(row["run_id"]).metrics.read_text().splitlines()]
        assert updates == list(range(61))


def test_a_second_launcher_leaves_running_runs_alone(in_tmp):
    arguments = [*[a for a in QUICK if "updates" not in a], "train.updates=4000", "seed=0,1"]
    launcher = _start(in_tmp, *arguments)
    sweep = SweepFolder(in_tmp / "sweeps/default")
    _wait_until(lambda: len(_running(sweep, 2)) == 2)
    configs = [sweep.run(row["run_id"]).config.stat().st_mtime_ns for row in sweep.plan()]
    second = klsweep("sweep", *arguments, "train.micro_batch_size=3", folder=in_tmp)
    assert second.returncode == 0, second.stderr
    assert "0 done, 2 running or queued elsewhere, 0 to run" in second.stdout
    assert configs == [sweep.run(row["run_id"]).config.stat().st_mtime_ns for row in sweep.plan()]
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=120) == 1
    ended = [sweep.run(row["run_id"]).status() for row in sweep.plan()]
    assert [(status["state"], status["attempt"]) for status in ended] == [("preempted", 1)] * 2


def test_workers_that_do_not_start_are_told_and_end_the_sweep(tmp_path, monkeypatch):
    multiprocessing.resource_tracker.ensure_running()
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(shutil.which("false") or ""))
    folders = [RunFolder(tmp_path / "runs" / name) for name in "abcdefgh"]
    seen = []
    with pytest.raises(OSError, match="worker processes end with exit code 1 before they begin a run"):
        launch(Local(parallel=2, threads=1), folders, lambda *_: None, lambda folder, status: seen.append(status))
    assert len(seen) <= 3  # two workers and one more: the other runs are left alone
    assert {status["cause"] for status in seen} <= {"the worker process ended with exit code 1 before it began"}
    assert multiprocessing.active_children() == []


def test_an_error_in_the_launcher_ends_its_idle_workers_too(tmp_path):
    folders = [RunFolder(tmp_path / name) for name in ("a", "b", "c")]
    for folder in folders:
        folder.path.mkdir()  # no config.yaml: each run fails at once

    def on_end(*_) -> None:
        raise OSError("the launcher's own trouble")

    with pytest.raises(OSError, match="own trouble"):
        launch(Local(parallel=2, threads=1), folders, lambda *_: None, on_end)
    assert multiprocessing.active_children() == []
    assert {folder.status()["state"] for folder in folders} <= {"failed", "pending"}
    assert any("config.yaml" in str(folder.status().get("cause")) for folder in folders)


def test_other_evaluation_settings_are_said_refused_or_warned_of(in_tmp, capsys):
    arguments = [*QUICK, "train.updates=1"]
    assert klsweep("sweep", *arguments, "seed=0", folder=in_tmp).returncode == 0
    other = [*arguments[:-2], "eval.samples_per_prompt=8", "train.updates=1"]
    second = klsweep("sweep", *other, "seed=0,1", folder=in_tmp)
    assert second.returncode == 0
    assert "1 finished runs were evaluated with other settings and stay as they are" in second.stdout
    assert "warning: finished runs have 2 different evaluation settings" in second.stdout
    sweep = SweepFolder(in_tmp / "sweeps/default")
    begun = sweep.run(sweep.plan()[1]["run_id"])
    (begun.attempt(1) / "attempt.json").unlink()  # as if its process had been killed
    assert main(["sweep", *arguments, "seed=1"]) == 2
    assert "has begun with other evaluation settings" in capsys.readouterr().err


def test_a_run_reads_its_own_config_and_not_conf(in_tmp):
    """`conf/` may change while a run waits: here a choice of the user's, edited between the plan and the run."""
    (in_tmp / "mine/estimator").mkdir(parents=True)
    choice = in_tmp / "mine/estimator/mine.yaml"
    choice.write_text("_target_: klsweep.objective.kl.K2\ngradient: same\nclip_gradient: false\n")
    with composer(in_tmp / "mine") as session:
        plan = make_plan(session, [*QUICK, "estimator=mine", f"sweep_dir={in_tmp / 's'}"])
        write_plan(plan)
    choice.write_text("_target_: no.such.thing\n")
    folder = plan.folder.run(plan.runs[0].run_id)
    ended: list[dict] = []
    launch(Local(parallel=1, threads=1), [folder], lambda *_: None, lambda _, status: ended.append(status))
    assert [status["state"] for status in ended] == ["done"]
    config = yaml.safe_load(folder.config.read_text())
    assert config["estimator"]["_target_"] == "klsweep.objective.kl.K2"
    assert config["eval"]["suites"]["sort"]["operation"] == "sort"
    assert "${" not in folder.config.read_text()


def test_without_wandb_everything_but_wandb_works(in_tmp):
    """The package is hidden from the workers by one of the same name that cannot be imported."""
    (in_tmp / "hidden").mkdir()
    (in_tmp / "hidden/wandb.py").write_text("raise ImportError('no wandb here')\n")
    arguments = [a for a in QUICK if not a.startswith("wandb")]
    done = subprocess.run(
        [*KLSWEEP, "train", *arguments],
        cwd=in_tmp,
        env={**os.environ, "PYTHONPATH": str(in_tmp / "hidden")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    run = next((in_tmp / "sweeps/default/runs").iterdir())
    warnings = (run / "attempts/1/stderr").read_text()
    assert warnings.count("warning: W&B is off for this run: ImportError: no wandb here") == 1
    assert not (run / "wandb").exists()


def test_a_hub_model_from_the_local_cache_is_pinned_to_its_commit(in_tmp):
    """`main` is resolved when the sweep is planned; no network is needed for what is cached."""
    commit, cache = "0123456789abcdef0123456789abcdef01234567", in_tmp / "hf/hub/models--lab--tiny"
    shutil.copytree(SHIPPED["klsweep/tiny"], cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    done = subprocess.run(
        [*KLSWEEP, "train", *QUICK, "model.path=lab/tiny"],
        cwd=in_tmp,
        env={**os.environ, "HF_HOME": str(in_tmp / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    sweep = SweepFolder(in_tmp / "sweeps/default")
    (row,) = sweep.plan()
    assert row["fields"]["model.content"] == f"hub:lab/tiny@{commit}"
    assert yaml.safe_load(sweep.run(row["run_id"]).config.read_text())["model"]["revision"] == commit


def test_hydras_own_multirun_writes_the_same_folders(in_tmp):
    ours = klsweep("train", "-m", *QUICK, "estimator=k1,k2", folder=in_tmp)
    assert ours.returncode == 0, ours.stderr
    theirs = subprocess.run(
        [sys.executable, "-m", "klsweep.train", "-m", *QUICK, "estimator=k1,k2", "sweep_dir=hydra"],
        cwd=in_tmp,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert theirs.returncode == 0, theirs.stderr
    names = [sorted(p.name for p in (in_tmp / d / "runs").iterdir()) for d in ("sweeps/default", "hydra")]
    assert names[0] == names[1]
    for name in names[0]:
        one, other = (in_tmp / d / "runs" / name / "metrics.jsonl" for d in ("sweeps/default", "hydra"))
        assert one.read_bytes() == other.read_bytes()
    assert not (in_tmp / "outputs").exists()
    assert not (in_tmp / "multirun").exists()


def test_hydras_own_multirun_goes_on_after_an_undefined_cell(in_tmp):
    app = [sys.executable, "-m", "klsweep.train"]
    cell = [*QUICK, "clip=fixed", "train.updates=1"]
    both = subprocess.run(
        [*app, "-m", *cell, "estimator=full,k1"], cwd=in_tmp, capture_output=True, text=True, timeout=300
    )
    assert both.returncode == 1
    assert "klsweep: error: estimator=full has no clip" in both.stderr
    (row,) = SweepFolder(in_tmp / "sweeps/default").plan()
    assert (row["axes"]["estimator"], SweepFolder(in_tmp / "sweeps/default").run(row["run_id"]).status()["state"]) == (
        "k1",
        "done",
    )
    one = subprocess.run([*app, *cell, "estimator=full"], cwd=in_tmp, capture_output=True, text=True, timeout=300)
    assert (one.returncode, one.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("parallel", "threads", "workers", "per_worker"),
    [(None, None, 6, 1), (2, None, 2, 3), (None, 4, 1, 4), (4, None, 4, 1), (9, None, 9, 1), (2, 5, 2, 5)],
)
def test_six_cores_are_divided_among_the_workers(parallel, threads, workers, per_worker, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    launcher = Local(parallel=parallel, threads=threads)
    assert (launcher.workers, launcher.threads_per_worker) == (workers, per_worker)


def test_cfg_job_prints_the_composed_configuration(in_tmp, capsys):
    assert main(["train", "kl.coef=0.25", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["kl"]["coef"] == 0.25
    assert list(in_tmp.iterdir()) == []


def test_overrides_and_options_come_in_any_order(in_tmp, capsys):
    assert main(["plan", "estimator=k1,k3", "--json", "seed=0,1"]) == 0
    assert len(json.loads(capsys.readouterr().out)["to_run"]) == 4
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--jsn"])
    assert stopped.value.code == 2


def test_plan_as_json_names_what_is_left_out_and_why(in_tmp, capsys):
    assert main(["plan", "estimator=k1,full", "clip=none,fixed", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["raw"], len(plan["to_run"]), plan["collapsed"]) == (4, 3, 0)
    assert plan["excluded"] == [
        {
            "point": {"estimator": "full", "clip": "fixed"},
            "reason": "estimator=full has no clip: it is no function of the log-ratio (clip=none)",
        }
    ]
    assert main(["plan", "estimator=k1,full", "clip=none,fixed"]) == 0
    text = capsys.readouterr().out
    assert "4 raw − 1 excluded − 0 collapsed = 3 runs; 0 done, 3 to run" in text
    assert "excluded 1: estimator=full has no clip" in text


def test_a_model_is_cached_only_with_all_its_weights(tmp_path, monkeypatch):
    """What a submission looks at: a config without weights, or an index that names an absent shard, fails a job."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--lab--tiny/snapshots" / commit
    model = replace(small_spec().model, path="lab/tiny", revision=commit)
    assert not model.is_cached()
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert not model.is_cached()
    (snapshot / "model.safetensors").write_bytes(b"")
    assert model.is_cached()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").write_bytes(b"")
    assert not model.is_cached()
    (snapshot / "model-2.safetensors").write_bytes(b"")
    assert model.is_cached()


def test_fetch_knows_what_an_experiment_needs(in_tmp, capsys):
    assert main(["fetch", "quickstart"]) == 0
    assert capsys.readouterr().out == f"klsweep/tiny at its folder: {SHIPPED['klsweep/tiny']}\n"
    assert main(["fetch", "model.path=nobody/nothing"]) == 2
    assert "model.path='nobody/nothing'" in capsys.readouterr().err
