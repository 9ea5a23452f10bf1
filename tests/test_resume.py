"""A run that is killed anywhere, again and again, ends with the bytes of an undisturbed one."""

import builtins
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch

import klsweep.training.shards as shards
from klsweep.model.policy import load_base
from klsweep.record.folder import Lost, RunFolder
from klsweep.sweep.job import execute
from klsweep.sweep.plan import write_plan
from klsweep.tracking import Tracker
from klsweep.training.loop import train
from tests.conftest import SMALL, planned

pytestmark = pytest.mark.slow

KILLS = 20
FEW = ["eval.samples_per_prompt=2", "eval.pass_at=[1]"]
CELL = [*SMALL, "train.updates=8", "train.checkpoint_seconds=0", "eval.every=5", *FEW]
ADAPTIVE = ["kl.schedule=adaptive", "kl.target=0.01", "kl.horizon=32", "train.minibatches=2"]
CALIBRATED = ["clip=quantile", "clip.confidence=0.2", "clip.window=4", "clip.on_zero=warn"]
STALE = ["sampling=off_policy", "sampling.async_level=3"]


def prepared(folder: Path, *overrides: str) -> RunFolder:
    plan = planned(*CELL, *overrides, f"sweep_dir={folder}", single=True)
    write_plan(plan)
    load_base(plan.runs[0].spec.model)  # once here, so that the processes below begin at once
    return plan.folder.run(plan.runs[0].run_id)


def in_child(folder: RunFolder, before) -> int:
    """Execute the run in a forked process that calls `before` first; how it ended (a signal is negative)."""
    pid = os.fork()
    if pid == 0:
        before()
        state = execute(folder, lambda: None, lambda *_: None, threads=1)["state"]
        os._exit(0 if state == "done" else 3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at_call(number: int) -> None:
    """SIGKILL ourselves right before or right after the n-th call that touches the file system."""
    calls, after = 0, random.random() < 0.5

    def deadly(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if calls >= number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for module, names in (
        (os, ("rename", "replace", "link", "fsync", "write", "unlink", "rmdir", "mkdir")),
        (shutil, ("rmtree",)),
        (builtins, ("open",)),
        (shards, ("save_file",)),
    ):
        for name in names:
            setattr(module, name, deadly(getattr(module, name)))


def die_after(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def contents(folder: RunFolder) -> dict[str, bytes]:
    """Everything that may not differ: the logs, the evaluations, the weights, the milestones."""
    files = [
        folder.metrics,
        *sorted(folder.evaluations.glob("*.jsonl")),
        *folder.checkpoints.glob("update-*/*.safetensors"),
    ]
    files += folder.path.glob("models/update-*/*.safetensors")
    return {str(file.relative_to(folder.path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("overrides", [[*ADAPTIVE, *CALIBRATED], STALE], ids=["on_policy", "off_policy"])
def test_killed_anywhere_and_resumed_equals_undisturbed(overrides, tmp_path):
    overrides = [*overrides, "checkpoint.keep_at=[3,8]"]
    whole = prepared(tmp_path / "whole", *overrides)
    began = time.monotonic()
    assert in_child(whole, lambda: None) == 0
    duration = time.monotonic() - began
    broken = prepared(tmp_path / "broken", *overrides)
    random.seed(os.getpid())
    deaths = 0
    while deaths < KILLS:
        if deaths % 2:
            code = in_child(broken, lambda: die_at_call(random.randint(1, 150)))
        else:
            code = in_child(broken, lambda: die_after(random.uniform(0.0, duration)))
        deaths += code < 0
        if code == 0:  # it got to its end before we struck: begin another
            assert contents(broken) == contents(whole)
            shutil.rmtree(broken.path)
            broken = prepared(tmp_path / "broken", *overrides)
    assert in_child(broken, lambda: None) == 0
    assert contents(broken) == contents(whole)
    assert sorted(path.name for path in broken.checkpoints.iterdir()) == ["update-000008"]
    assert [path.name for path in broken.checkpoints.glob("*/*")] == [p.name for p in whole.checkpoints.glob("*/*")]


def test_a_process_that_lost_its_run_leaves_without_writing(tmp_path):
    """Attempt 1 is taken over in the middle of an update; what it wrote and would write changes nothing."""
    run, whole = (prepared(tmp_path / name, *STALE) for name in ("run", "whole"))
    assert execute(whole, lambda: None, lambda *_: None, threads=1)["state"] == "done"
    spec = planned(*CELL, *STALE, f"sweep_dir={tmp_path / 'run'}", single=True).runs[0].spec
    first = run.claim()
    assert first is not None
    taken = []

    def take_over(update: int, _) -> None:
        if update == 6 and not taken:
            run.end(1, "failed", "vanished: so it seemed")
            taken.append(run.claim())
            rows = run.metrics.read_bytes()
            first.folder.attempts.heartbeat(1).touch()
            taken.append(rows)

    with pytest.raises(Lost, match="attempt 1"):
        train(spec, first, tmp_path / "run/artifacts", Tracker(None), lambda: None, take_over)
    assert run.metrics.read_bytes() == taken[1]
    outcome = train(spec, taken[0], tmp_path / "run/artifacts", Tracker(None), lambda: None, lambda *_: None)
    taken[0].finish(outcome.state)
    assert contents(run) == contents(whole)


def test_a_checkpoint_written_after_the_run_was_taken_over_does_not_count(tmp_path):
    run = RunFolder(tmp_path / "s/runs/r")
    run.path.mkdir(parents=True)
    assert run.stands(writer=1, update=8, before=None)
    for number, start in ((1, 0), (2, 4), (3, None)):
        attempt = run.claim()
        assert attempt is not None
        if start is not None:
            attempt.note(resumed_from=start)
        if number < 3:
            attempt.finish("preempted")
    assert run.stands(writer=1, update=4, before=3)
    assert not run.stands(writer=1, update=5, before=3)  # attempt 2 began from update 4
    assert run.stands(writer=2, update=9, before=3)


def test_a_stale_log_descriptor_writes_into_nowhere(tmp_path):
    run = RunFolder(tmp_path / "s/runs/r")
    run.path.mkdir(parents=True)
    first = run.claim()
    assert first is not None
    first.begin_logs([run.metrics], -1)
    first.append(run.metrics, [{"update": 0}, {"update": 1}])
    held = first._logs[run.metrics]
    run.end(1, "failed", "vanished")
    second = run.claim()
    assert second is not None
    second.begin_logs([run.metrics], 0)
    os.write(held, b'{"update": 1, "from": "the dead"}\n')
    second.append(run.metrics, [{"update": 1}])
    assert run.metrics.read_text() == '{"update": 0}\n{"update": 1}\n'
    with pytest.raises(Lost):
        first.append(run.metrics, [{"update": 2}])
    assert first.finish("done")["state"] == "running"  # the second's


def test_rollouts_are_kept_where_sampling_again_might_differ(tmp_path, monkeypatch):
    """As on a GPU: a resumed run trains on the batches that the killed one had sampled, and samples none twice."""
    from klsweep.rollout.hf import HFSampler

    monkeypatch.setattr(HFSampler, "repeats_itself", property(lambda _: False))
    generated = []
    generate = HFSampler.generate
    monkeypatch.setattr(HFSampler, "generate", lambda *args: generated.append(args[2]) or generate(*args))
    run, whole = (prepared(tmp_path / name, *STALE, "eval.every=0") for name in ("run", "whole"))
    run_config = [*CELL, *STALE, "eval.every=0"]
    assert execute(whole, lambda: None, lambda *_: None, threads=1)["state"] == "done"
    sampled = generated.count(4)
    generated.clear()
    late = [line.replace("checkpoint_seconds=0", "checkpoint_seconds=600") for line in run_config]
    spec = planned(*late, f"sweep_dir={tmp_path / 'run'}", single=True).runs[0].spec
    attempt = run.claim()
    assert attempt is not None

    def kill(update: int, _) -> None:
        if update == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, attempt, tmp_path / "run/artifacts", Tracker(None), lambda: None, kill)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == [f"rollout-{n:06d}" for n in range(1, 9)]  # update 5 and three ahead; no checkpoint yet
    run.end(1, "failed", "killed")
    assert execute(run, lambda: None, lambda *_: None, threads=1)["state"] == "done"
    assert generated.count(4) == sampled
    assert contents(run) == contents(whole)
    assert not list(run.checkpoints.glob("rollout-*"))


def test_milestones_stay_in_hugging_face_format(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = prepared(tmp_path / "s", "checkpoint.keep_at=[3,8]")
    assert execute(run, lambda: None, lambda *_: None, threads=1)["state"] == "done"
    assert sorted(path.name for path in (run.path / "models").iterdir()) == ["update-000003", "update-000008"]
    final = safetensors.torch.load_file(run.checkpoints / "update-000008/model.safetensors")
    network = AutoModelForCausalLM.from_pretrained(run.path / "models/update-000008")
    assert all((final[name] == parameter).all() for name, parameter in network.named_parameters())
    assert AutoTokenizer.from_pretrained(run.path / "models/update-000003").pad_token is not None
    assert {file.stat().st_mode & 0o777 for file in run.path.rglob("*.safetensors")} == {0o644}  # for a group to read
