"""Budgets, costs and the pool of workers, without SLURM."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest
import yaml
from pydantic import ValidationError

from klsweep.config.compose import CONF
from klsweep.errors import BadInput
from klsweep.record.claims import Owner
from klsweep.record.files import last_row, write_json
from klsweep.record.folder import Job, RunFolder
from klsweep.sweep.budget import Budget
from klsweep.sweep.cost import Measured, estimate, seconds_of
from klsweep.sweep.launch_slurm import _share, _slices, _uninterrupted
from klsweep.sweep.pool import Pool
from klsweep.sweep.resources import Slurm, read_profile
from klsweep.sweep.status import observe, without_numbers
from klsweep.sweep.task import _shares

JOB = Job("7_1", 0)


def run_with(tmp_path, ends: list[tuple[str, int]]) -> RunFolder:
    """A run whose attempts ended as given, each having begun from an update."""
    run = RunFolder(tmp_path / "s/runs/r")
    run.path.mkdir(parents=True)
    for state, start in ends:
        attempt = run.claim()
        assert attempt is not None
        attempt.note(resumed_from=start)
        attempt.finish(state, f"{state} for a reason")
        (run.checkpoints / f"update-{start:06d}").mkdir(parents=True, exist_ok=True)
        write_json(run.checkpoints / f"update-{start:06d}/state.json", {})
    return run


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ([], None),
        ([("preempted", 1), ("preempted", 2)], None),
        ([("preempted", n) for n in range(1, 5)], "4 attempts ended as preempted (launcher.max_preemptions=3)"),
        ([("timeout", 1), ("preempted", 2), ("timeout", 3)], "2 attempts ended as timeout (launcher.max_timeouts=1)"),
        ([("failed", 1)], "1 attempts ended as failed (launcher.max_failures=0)"),
        (
            [("preempted", 4), ("preempted", 4), ("timeout", 4)],
            "no progress beyond update 4 in 3 attempts (launcher.max_without_progress)",
        ),
        ([("preempted", 4), ("preempted", 4), ("timeout", 5)], None),
    ],
)
def test_each_budget_by_itself(tmp_path, ends, reason):
    run = run_with(tmp_path, ends)
    budget = Budget(max_preemptions=3, max_timeouts=1, max_failures=0, max_without_progress=3)
    reason = reason and f"given up: {reason}"
    assert budget.spent(run) == reason
    given_up = budget.give_up(run, JOB)
    assert given_up == (reason is not None)
    if ends and ends[-1][0] == "failed":
        assert run.status()["cause"] == "failed for a reason"  # its own cause stays
    elif given_up:
        assert (run.status()["state"], run.status()["cause"]) == ("failed", reason)
    run.bring_back(uncancel=False)
    assert budget.spent(run) is None


def test_a_restarted_job_takes_its_run_from_its_living_predecessor(tmp_path):
    run = RunFolder(tmp_path / "s/runs/r")
    run.path.mkdir(parents=True)
    first = run.claim(Job("7_1", 0))
    assert first is not None
    assert run.claim(Job("8_1", 0)) is None  # another job may not
    assert run.claim(Job("7_1", 0)) is None
    second = run.claim(Job("7_1", 1))
    assert second is not None
    ended = run.attempts.end_of(1)
    assert ended is not None
    assert (ended["state"], ended["cause"]) == ("preempted", "SLURM started job 7_1 again before it had ended")
    assert first.finish("done")["state"] == "running"
    assert second.finish("done")["state"] == "done"


def test_a_cancelled_run_is_not_begun_and_one_at_work_is_told(tmp_path):
    run = RunFolder(tmp_path / "s/runs/r")
    run.path.mkdir(parents=True)
    run.cancel()
    assert run.claim() is None
    assert (run.status()["state"], run.status()["attempt"]) == ("cancelled", 0)
    run.bring_back(uncancel=True)
    attempt = run.claim()
    assert attempt is not None
    run.cancel()
    assert run.status()["state"] == "running"  # until it stops
    assert attempt.finish("cancelled")["state"] == "cancelled"
    assert run.claim() is None
    run.bring_back(uncancel=True)
    assert run.status()["state"] == "preempted"
    again = run.claim()
    assert again is not None
    run.cancel()
    assert again.finish("done")["state"] == "done"  # finished before it looked


def test_a_run_of_another_machine_is_given_up_when_its_heart_stops(tmp_path, monkeypatch):
    sweep = RunFolder(tmp_path / "s/runs/r").sweep
    run = sweep.run("r")
    run.path.mkdir(parents=True)
    attempt = run.claim()
    assert attempt is not None
    elsewhere = Owner.me()._replace(host="elsewhere", pid=1)._asdict()
    run.attempts.note(1, {"owner": elsewhere})
    beat = run.attempts.heartbeat(1)
    beat.touch()
    assert observe(sweep, ["r"])[0]["r"].status["state"] == "running"
    monkeypatch.setattr("klsweep.sweep.status.LOST_SECONDS", 0.05)
    time.sleep(0.1)
    found = observe(sweep, ["r"])[0]["r"].status
    assert found["state"] == "failed"
    assert found["cause"].startswith("vanished: no heartbeat from elsewhere for")
    assert attempt.finish("done")["state"] == "failed"  # should it live after all: too late


def row(model: str, updates: int = 100, seed: int = 0) -> dict:
    return {"updates": updates, "seed": seed, "axes": {"model": model, "task": "add", "algorithm": "rloo"}}


def test_cost_from_siblings_like_it_by_hand():
    """Two small runs at 1 (and 20 s of start-up) and 3 s per update, one large at 10: medians 210 and 1000 s."""
    small, large = row("small")["axes"], row("large")["axes"]
    siblings = [Measured(small, 1.0, 20.0, 1000), Measured(small, 3.0, 0.0, 3000), Measured(large, 10.0, 0.0, 9000)]
    time_ = seconds_of(row("small"), siblings, [])
    assert time_ is not None
    assert (time_.expected, time_.low, time_.high) == (210.0, 120.0, 300.0)
    assert time_.source == "2 finished runs of this sweep"
    other = seconds_of(row("huge"), siblings, [])
    assert other is not None
    assert other.source == "3 finished runs of this sweep with another model, task or algorithm"
    assert other.expected == 300.0
    rows = [row("small"), row("large"), row("large", 50)]
    cost = estimate(rows, [0.5, 2, 2], "GPU-hours", siblings, [])  # two small ones share a GPU
    assert cost is not None
    assert cost.hours == pytest.approx((105 + 2000 + 1000) / 3600)
    assert cost.by_axis == {"model": pytest.approx({"small": 105 / 3600, "large": 3000 / 3600})}
    assert cost.per_run.expected == pytest.approx((210 + 1000 + 500) / 3)
    assert (cost.unit, cost.disk, cost.longest_run, cost.slowest_update) == ("GPU-hours", 9000, 1000.0, 10.0)
    assert estimate([row("small")], [1], "job-hours", [], []) is None


def test_a_throttle_is_divided_among_arrays_and_gpus_among_workers():
    assert [_share(7, lane, 3) for lane in range(3)] == [3, 2, 2]
    assert [_share(None, lane, 3) for lane in range(3)] == [None] * 3
    assert list(_slices([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert _shares("0,1,2,3", 2) == ["0,1", "2,3"]
    assert _shares("0,1", 4) == ["0", "1"]
    assert _shares("", 4) == []


PROFILE = """\
time: 4:00:00
mem_gb: 1.5
gres: gpu:h100:2
sbatch: {mail-type: FAIL}
"""


def slurm(**fields) -> Slurm:
    node = yaml.safe_load((CONF / "launcher/slurm.yaml").read_text())
    node.pop("_target_")
    return Slurm(**{**node, **fields})


def test_a_profile_fills_in_what_the_launcher_leaves_open(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(PROFILE)
    settled = slurm(profile=str(path), mem_gb=3, time=None).settled()
    assert (settled.minutes, settled.mem_gb, settled.gpus) == (240, 3, 2)  # 4:00:00 is no number of seconds here
    parameters = settled.parameters("name", "comment", 5, None)
    assert (parameters["time"], parameters["mem"], parameters["signal_delay_s"]) == (240, "3072M", 120)
    assert parameters["additional_parameters"] == {"requeue": True, "mail-type": "FAIL"}
    assert slurm(time="1-02:30:01").minutes == 1591
    assert [slurm(gres=gres).gpus for gres in ("gpu", "gpu:3", "gpu:a100", "shard:2")] == [1, 3, 1, 0]
    assert read_profile("example-gpu")["time"] == "4:00:00"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("time: soon", "launcher.time='soon': expected minutes or"),
        ("time: 30:00", "launcher.time='30:00': expected minutes or"),
        ("memory: 3", "memory: unknown key (keys: partition, account"),
        ("- 3", "expected lines of KEY: VALUE"),
        ("a: [", "while parsing"),
        ("time: 60\nsbatch: {comment: mine}", "launcher.sbatch.comment: klsweep sets it itself"),
        ("\xff", "site.yaml: 'utf-8' codec can't decode"),
    ],
)
def test_a_bad_profile_is_one_line(tmp_path, content, message):
    path = tmp_path / "site.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(BadInput) as error:
        slurm(profile=str(path)).settled()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_minutes_that_yaml_made_of_hours_are_refused():
    with pytest.raises(ValidationError, match=r"launcher.time=14400 minutes: YAML reads an unquoted 4:00:00"):
        slurm(time=14400)


def test_an_interrupt_waits_until_the_submission_is_on_record():
    done, before = [], signal.getsignal(signal.SIGINT)

    @_uninterrupted()
    def submit() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        subprocess.run(["sleep", "0.1"], check=True)  # as sbatch, which inherits the mask
        done.append("recorded")

    with pytest.raises(KeyboardInterrupt):
        submit()
    assert done == ["recorded"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_worker_that_does_not_stop_is_killed_and_its_run_ended(tmp_path, monkeypatch):
    """The worker hangs before its first update, as one in a long update would; the pool gives it a second."""
    run = RunFolder(tmp_path / "s/runs/r")
    run.path.mkdir(parents=True)
    os.mkfifo(run.config)  # reading it waits for ever
    seen = []
    with Pool(1, 1, lambda *_: None, lambda _, status: seen.append(status), JOB, grace_seconds=1.0) as pool:
        threading.Timer(6.0, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        pool.run([run])
        assert pool.stopped == "timeout"
    assert (seen[0]["state"], seen[0]["cause"]) == ("timeout", "killed: no update ended in time after the signal")
    assert seen[0]["job"] == {"id": "7_1", "restart": 0, "nodes": 1}


def test_causes_that_differ_in_numbers_alone_are_one():
    one = "OSError: [Errno 28] No space left on device: '/scratch/run-17/x'"
    assert without_numbers(one) == without_numbers(one.replace("17", "99"))
    assert without_numbers("KeyError: a") != without_numbers("KeyError: b")


def test_the_last_row_of_a_long_or_torn_file(tmp_path):
    path = tmp_path / "x.jsonl"
    assert last_row(path) is None
    path.write_text("")
    assert last_row(path) is None
    rows = [{"update": n, "text": "x" * 3000} for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert last_row(path) == rows[-1]
    with path.open("a") as stream:
        stream.write('{"update": 100, "te')
    assert last_row(path) == rows[-1]
    path.write_text(json.dumps({"update": 1, "text": "y" * 100_000}) + "\n")
    assert last_row(path) == {"update": 1, "text": "y" * 100_000}
