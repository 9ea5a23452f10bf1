"""Submitting, following, cancelling, retrying and looking after sweeps on a real SLURM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from klsweep.cli import main
from klsweep.record.files import read_json
from klsweep.sweep.status import sweep_status
from tests.slurm.arena import HELD, LOCAL_CLUSTER, MAX_ARRAY, Trial, rows_of, shell, wait_until
from tests.slurm.torture import read_plan

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def release(trial: Trial) -> None:
    for job in {run["job"] for run in trial.status()["runs"]}:
        shell("scontrol", "update", f"JobId={job}", "StartTime=now")


def until_queue_is_empty(trial: Trial) -> None:
    wait_until(lambda: shell("squeue", "-h", "--name", trial.sweep.name) == "", "an empty queue")


def test_jobs_run_the_code_that_was_submitted(arena):
    """The whole package and a plugin are edited between submission and start; the results are the reference's."""
    copy = arena.root / "checkout"
    shutil.copytree(REPOSITORY / "klsweep", copy / "klsweep", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).parent / "paced.py", copy)
    trial = Trial(arena, "edited", pace=0.0)
    environment = {**arena.environment, "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "klsweep.cli", "sweep", *trial.overrides, HELD, "--config-dir", "conf"]
    done = subprocess.run(command, cwd=arena.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "submitted 1 runs in 1 tasks as job" in done.stdout
    assert trial.status()["runs"][0]["queue"].startswith("PENDING (BeginTime")
    for file in (copy / "klsweep/training/loop.py", copy / "klsweep/record/files.py", copy / "paced.py"):
        file.write_text("raise SystemExit('edited')\n")
    release(trial)
    trial.finish()
    assert trial.check() == "attempts 1, bit-identical"
    environment = json.loads(trial.run.environment.read_text())
    code = trial.sweep.code / environment["git"]["copy"] if environment["git"] else None
    assert code is None or (code / "klsweep/training/loop.py").exists()


def test_a_job_that_never_reaches_its_run_is_a_failure_with_its_reason(arena):
    trial = Trial(arena, "unborn", pace=0.0)
    trial.submit("launcher.python=/no/such/python")
    status = trial.settle()
    (run,) = status["runs"]
    assert run["state"] == "failed"
    assert run["cause"] == "never started: the job ended as FAILED with exit code 2:0"
    assert "/no/such/python" in " ".join(status["failures"][0]["last_lines"])
    assert run["attempt"] == 0
    trial.submit("launcher.python=null")
    trial.finish()
    assert trial.check() == "attempts 1, bit-identical"


def test_cancelled_runs_stop_and_come_back_only_when_asked(here, capsys):
    trial = Trial(here, "cancelled", "seed=0,1", "sampling=on_policy,off_policy", pace=0.3)
    trial.submit("launcher.array_parallelism=2")
    wait_until(lambda: trial.states().count("running") == 2, "two running")
    wait_until(lambda: max(rows_of(folder) for folder in trial.folders()) > 2, "updates")
    assert main(["cancel", trial.directory]) == 0
    assert "cancelled 4 runs; those at work end after their update" in capsys.readouterr().out
    status = trial.settle()
    assert status["counts"] == {"cancelled": 4}
    assert main(["cancel", trial.directory]) == 0
    assert capsys.readouterr().out == "nothing to cancel: every run of these is finished or cancelled\n"
    until_queue_is_empty(trial)
    again = trial.submit()
    assert "4 cancelled (klsweep retry --only cancelled), 0 to run" in again
    assert trial.settle()["counts"] == {"cancelled": 4}
    trial.pace(0.0)
    assert main(["retry", trial.directory]) == 0
    assert "nothing to retry" in capsys.readouterr().out
    here.klsweep("retry", trial.directory, "--only", "cancelled", "launcher.time=20", "launcher.array_parallelism=null")
    assert {
        c["launcher"]["time"] for c in map(read_json, trial.sweep.submissions.path.glob("2/*.json")) if "tasks" in c
    } == {20}
    trial.finish()
    assert trial.check().endswith("bit-identical")


def test_what_is_queued_is_not_submitted_again_and_a_wider_grid_only_what_is_new(here, capsys):
    trial = Trial(here, "wider", "seed=0", "sampling=on_policy,off_policy", pace=0.0)
    trial.submit(HELD)
    assert "2 running or queued elsewhere, 0 to run" in trial.submit(HELD)
    narrow = trial.overrides
    trial.overrides = [*narrow, "seed=0,1,2", "launcher.array_parallelism=1"]
    out = trial.submit(HELD)
    assert "submitted 4 runs in 4 tasks as 2 job arrays" in out
    trial.overrides = narrow
    page = here.root / "status.html"
    assert main(["status", trial.directory, "--html", str(page)]) == 0
    assert "width=device-width" in page.read_text()
    assert "6 pending" in page.read_text()
    capsys.readouterr()
    assert main(["status", trial.directory, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["counts"] == {"pending": 6}
    assert len({run["job"] for run in status["runs"]}) == 6
    shell("scancel", *{run["job"].split("_")[0] for run in status["runs"]})
    settled = trial.settle()
    assert settled["counts"] == {"pending": 6}
    assert {run["cause"] for run in settled["runs"]} == {"never started: SLURM ended the job as CANCELLED (scancel)"}
    assert main(["cancel", trial.directory]) == 0


def test_one_job_at_a_time_is_a_chain_of_arrays(arena):
    trial = Trial(arena, "chain", "seed=0,1,2", "sampling=on_policy,off_policy", pace=0.0)
    said = trial.submit(HELD, "launcher.array_parallelism=1")
    assert "2 job arrays" in said
    first, second = sorted({run["job"].split("_")[0] for run in trial.status()["runs"]}, key=int)
    assert f"Dependency=afterany:{first}_" in shell("scontrol", "show", "job", second)
    assert f"ArrayTaskId=0-{MAX_ARRAY - 1}" in shell("scontrol", "show", "job", first)
    assert "ArrayTaskThrottle=1" in shell("scontrol", "show", "job", first)
    assert main(["cancel", str(trial.sweep.path)]) == 0


def test_without_slurm_nothing_is_submitted_and_states_say_so(here, monkeypatch, capsys):
    trial = Trial(here, "silent", pace=0.0)
    trial.submit(HELD)
    monkeypatch.setenv("PATH", "/no/such/folder")
    arguments = ["sweep", *trial.overrides, "--config-dir", "conf"]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("klsweep: error: launcher=slurm: SLURM does not answer")
    assert err.count("\n") == 1
    assert main(["status", trial.directory]) == 0
    assert "SLURM does not answer, so states are as last recorded" in capsys.readouterr().out
    for command, said in (
        ("retry", "SLURM does not answer"),
        ("clean", "SLURM does not"),
        ("cancel", "are marked and"),
    ):
        assert main([command, trial.directory]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.undo()
    assert sweep_status(trial.sweep)["counts"] == {"cancelled": 1}
    assert main(["cancel", str(trial.sweep.path)]) == 0  # nothing left to mark, but its job still waits
    until_queue_is_empty(trial)


def test_a_failed_run_that_waits_again_is_in_the_queue(here, capsys):
    """However it ended before: not submitted twice, nothing it needs is cleaned away, and cancel finds its job."""
    trial = Trial(here, "again", pace=0.0)
    (run_id,) = read_plan(here, trial)
    trial.faults = {run_id: ("raise", 5)}
    trial.pace(0.0)
    trial.submit()
    assert trial.settle()["counts"] == {"failed": 1}
    trial.faults = {}
    trial.pace(0.0)
    here.klsweep("retry", trial.directory, HELD)
    (run,) = trial.status()["runs"]
    assert (run["state"], run["attempt"], run["cause"], run["update"]) == ("pending", 1, None, 2)  # two rollouts ahead
    assert run["queue"].startswith("PENDING (BeginTime")
    assert "1 running or queued elsewhere, 0 to run" in trial.submit(HELD)
    assert main(["retry", trial.directory, HELD]) == 0
    assert "nothing to retry" in capsys.readouterr().out
    assert main(["clean", trial.directory]) == 0
    removed = capsys.readouterr().out
    assert f"logs/{trial.job()}_submitted.pkl" not in removed
    assert "(no job in the queue runs it)" not in removed
    release(trial)
    trial.finish()
    assert trial.check() == "attempts 2, bit-identical"
    until_queue_is_empty(trial)  # the process that would write it again is over
    trial.sweep.run(run_id).attempts.folder(2).joinpath("attempt.json").unlink()  # as if killed at its very end
    here.klsweep("retry", trial.directory, HELD)
    job = trial.job()
    assert main(["cancel", trial.directory]) == 0
    wait_until(lambda: "CANCELLED" in shell("scontrol", "show", "job", job), "the job's end")


def test_another_clusters_silence_ends_nothing(here, monkeypatch):
    """SLURM_CONF points to a cluster that does not know the job, and has none: the run goes on and is done once."""
    trial = Trial(here, "elsewhere", pace=0.2)
    trial.submit()
    trial.strike_point()
    other = here.root / "other"
    command = [sys.executable, str(LOCAL_CLUSTER), "--state", str(other)]
    subprocess.run([*command, "start"], check=True, capture_output=True)
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(other / "slurm.conf"))
        for _ in range(3):
            status = trial.status()
            assert [run["state"] for run in status["runs"]] == ["running"]
            assert status["slurm"] is not None
            assert status["slurm"].startswith("this is cluster klsweep-")
    subprocess.run([*command, "stop"], check=True, capture_output=True)
    trial.pace(0.0)
    trial.finish()
    assert trial.check() == "attempts 1, bit-identical"


def test_a_run_by_itself_its_logs_and_what_can_go(here, capsys):
    """`run` carries a run on from where its job left it, `run --into` repeats it; both end in the same bytes."""
    trial = Trial(here, "alone", pace=0.05)
    trial.submit()
    trial.strike_point()
    assert main(["clean", trial.directory]) == 0
    assert "removed 0 entries" in capsys.readouterr().out  # all of it is in use
    shell("scancel", trial.job())
    trial.settle()
    run = str(trial.run.path)
    assert main(["logs", run]) == 0
    out = capsys.readouterr().out
    assert "attempt 1 on" in out
    assert f"job {trial.job()}, checkpoint of update" in out
    assert "preempted: checkpointed on SIGTERM" in out
    assert "slurmstepd" in out  # what SLURM wrote into the job's log
    (trial.run.checkpoints / ".writing.x").mkdir()
    (trial.run.checkpoints / ".writing.x/.state.json.y").touch()
    assert main(["clean", trial.directory, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(".writing.x") == 1
    assert "no job in the queue runs it" in shown
    assert (trial.run.checkpoints / ".writing.x").exists()
    assert main(["clean", trial.directory]) == 0
    assert not (trial.run.checkpoints / ".writing.x").exists()
    assert not list(trial.sweep.submissions.path.glob("*/logs/*.pkl"))
    here.klsweep("run", run)
    assert trial.check() == "attempts 2, bit-identical"
    here.klsweep("run", run, "--into", "again")
    again = here.root / "again/runs" / trial.run.run_id
    assert (again / "metrics.jsonl").read_bytes() == trial.run.metrics.read_bytes()
    assert main(["run", run]) == 0  # finished: exits at once
    assert trial.run.attempts.latest() == 2


BAD = [
    (["launcher.profile=nowhere"], "launcher.profile='nowhere': no such profile (a path to a YAML file, or "),
    (["launcher.time=soon"], "launcher.time='soon': expected minutes or [days-]hours:minutes:seconds"),
    (["launcher.profile=null"], "launcher.time=null: give the time limit of a job"),
    (["launcher.time=1"], "launcher.signal_delay_s=120: must be less than launcher.time=1"),
    (["launcher.nodes=2"], "launcher.nodes=2: parallel=single trains in one process, on one node (parallel=fsdp2)"),
    (["launcher.concurrent=2"], "launcher.concurrent=2: at most launcher.runs_per_job=1"),
    (["launcher.signal_delay_s=5"], "launcher.signal_delay_s=5: Input should be greater than or equal to 30"),
    (["launcher.max_hours=2"], "launcher.max_hours=2: the cost is unknown, nothing has been measured"),
    (["launcher.partition=nowhere"], "launcher=slurm: sbatch: "),
    (["launcher.mem_gb=1e9"], "launcher=slurm: sbatch: "),
    (["launcher.dirty=maybe"], "launcher.dirty='maybe': Input should be 'record' or 'refuse'"),
    (
        ["sweep_dir=reference", "seed=99"],
        "sweep_dir=reference holds another sweep of 4 runs (seed is 0 1 there, 99 here",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_before_anything_runs(here, overrides, message, capsys, request):
    name = f"bad-{abs(hash(str(overrides)))}"
    trial = Trial(here, name, pace=0.0)
    assert main(["sweep", *trial.overrides, *overrides, "--config-dir", "conf"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1, err
    assert not list(trial.sweep.submissions.path.glob("*/*.job"))


BAD_RETRIES = [
    ("kl.coef=2", "kl.coef is not an operational field: a run with another value is another run"),
    ("launcher.tme=3", "launcher.tme: unknown key (did you mean 'time'?"),
    ("launcher.time=1,2", "launcher.time=1,2: give one value to a dotted key"),
    ("launcher=local", "launcher=local: give one value to a dotted key"),
    ("choices.model=x", "choices.model is not an operational field"),
    ("model.path=/no/such/model", "model.path='/no/such/model': no such folder"),
    ("launcher.runs_per_job=0", "launcher.runs_per_job=0: Input should be greater than 0"),
]


def test_what_a_retry_may_not_change(here, capsys):
    trial = Trial(here, "retried", pace=0.0)
    trial.submit("launcher.python=/no/such/python")
    trial.settle()
    for override, message in BAD_RETRIES:
        assert main(["retry", trial.directory, override]) == 2
        assert message in capsys.readouterr().err
    assert main(["retry", trial.directory, "--only", ""]) == 2
    assert "--only='': give a state" in capsys.readouterr().err
    assert main(["cancel", trial.directory, "r1-nope"]) == 2
    assert "r1-nope: no run of" in capsys.readouterr().err
    assert main(["logs", trial.directory]) == 2
    assert "no run folder" in capsys.readouterr().err


def test_what_it_costs(here, capsys):
    """Four finished siblings say what the rest will cost; a ceiling below that refuses."""
    more = ["seed=0,1,2,3", "sampling=on_policy,off_policy", "sweep_dir=reference", "launcher=slurm"]
    trial = Trial(here, "cost", pace=0.0)
    arguments = [*trial.overrides, *more]
    assert main(["plan", *arguments, "--json", "--config-dir", "conf"]) == 0
    cost = json.loads(capsys.readouterr().out)["cost"]
    assert cost["low"] <= cost["hours"] <= cost["high"]
    run = cost["per_run"]
    assert run["source"] == "4 finished runs of this sweep"
    assert run["low"] <= run["expected"] <= run["high"]
    assert cost["hours"] == pytest.approx(4 * run["expected"] / 3600)  # seeds 2 and 3
    assert cost["hours"] == pytest.approx(sum(cost["by_axis"]["sampling"].values()))
    assert cost["unit"] == "job-hours"
    assert cost["disk"] > 1e6
    ceiling = cost["hours"] / 2
    assert main(["sweep", *arguments, f"launcher.max_hours={ceiling}", "--config-dir", "conf"]) == 2
    assert "the plan would cost about" in capsys.readouterr().err
    assert main(["plan", *trial.overrides, "--calibrate", "--config-dir", "conf"]) == 0
    assert "1 calibration" in capsys.readouterr().out


def test_uncommitted_changes_are_recorded_or_refused(here, tmp_path, capsys):
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "klsweep", checkout / "klsweep", ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "klsweep/new.py").write_text("# new\n")
    (checkout / "klsweep/errors.py").open("a").write("# changed\n")
    trial = Trial(here, "dirty", pace=0.0)
    path = f"{checkout}:{Path(__file__).parent}"
    command = [sys.executable, "-m", "klsweep.cli", "sweep", *trial.overrides, HELD, "--config-dir", "conf"]
    options = {"cwd": here.root, "env": {**os.environ, "PYTHONPATH": path}, "capture_output": True, "text": True}
    refused = subprocess.run([*command, "launcher.dirty=refuse"], **options)
    assert refused.returncode == 2
    assert "launcher.dirty=refuse: the git tree has uncommitted changes" in refused.stderr
    assert subprocess.run(command, **options).returncode == 0
    (source,) = trial.sweep.code.glob("*/source.json")
    state = json.loads(source.read_text())
    assert len(state["commit"]) == 40
    assert "+# changed" in state["diff"]
    assert state["untracked"] == "klsweep/new.py\n"
    assert (source.parent / "klsweep/new.py").exists()
    assert main(["cancel", trial.directory]) == 0
    assert sweep_status(trial.sweep)["counts"] == {"cancelled": 1}
