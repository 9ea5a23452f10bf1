"""Sampling in a process of its own: the same bytes as in turn, and no way to hang or to be left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import klsweep.training.ahead as ahead
from klsweep.errors import BadInput
from klsweep.model.policy import load_base
from klsweep.model.weights import trained_weights
from klsweep.sweep.plan import write_plan
from tests.conftest import SMALL, planned, small_spec
from tests.test_training import rows, run, weights

pytestmark = pytest.mark.slow

STALE = ["sampling=off_policy", "sampling.async_level=2", "train.updates=6", "train.minibatches=2", "train.lr=5e-3"]
OVERLAP = "sampling.overlap=true"
FEW = ["eval.samples_per_prompt=2", "eval.pass_at=[1]"]


def children(pid: int) -> list[int]:
    """Processes that `pid` has started, but for Python's helper that cleans up shared memory."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent, command = status.read_text().rpartition(")")[2].split()[1], (status.parent / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and "resource_tracker" not in command:
            found.append(int(status.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def process():
    """A sampling process for the shipped base, and the base."""
    spec = small_spec(*STALE, OVERLAP)
    policy = load_base(spec.model).trainable_copy()
    found = ahead.SamplingProcess(spec, None, lambda: trained_weights(policy))
    yield found
    found.close()


@pytest.mark.parametrize(
    "more",
    [
        ["adapter=lora", "adapter.rank=4"],
        ["sampling.async_level=1", "sampling.sync_every=3", "eval.every=2"],
    ],
    ids=["lora", "sync_every"],
)
def test_overlapped_and_in_turn_write_the_same_bytes(tmp_path, more):
    turn, beside = (run(tmp_path, name, *STALE, *FEW, *more, *how)[1] for name, how in (("a", []), ("b", [OVERLAP])))
    assert beside.metrics.read_bytes() == turn.metrics.read_bytes()
    assert weights(beside) == weights(turn)
    assert (beside.path / "eval/add.jsonl").read_bytes() == (turn.path / "eval/add.jsonl").read_bytes()
    expected = [0, 0, 0, 0, 3, 3] if "sampling.sync_every=3" in more else [0, 0, 0, 1, 2, 3]
    assert [row["update"] - 1 - row["sampler/lag"] for row in rows(beside)[1:]] == expected
    assert not children(os.getpid())


def test_interrupted_and_resumed_in_either_way_equals_undisturbed(tmp_path):
    whole = run(tmp_path, "whole", *STALE, *FEW)[1]
    for first, then in (([OVERLAP], []), ([], [OVERLAP])):
        name = "one" if first else "two"
        outcome, _ = run(tmp_path, name, *STALE, *FEW, *first, stop_after=3)
        assert outcome.state == "preempted"
        broken = run(tmp_path, name, *STALE, *FEW, *then)[1]
        assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
        assert weights(broken) == weights(whole)


def test_a_dead_process_is_an_error_and_no_hang(process):
    fetch = process.begin(1, version=0)
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the sampling process ended with exit code -9"):
        fetch()
    for version in (1, 2, 3):
        with pytest.raises(RuntimeError, match="exit code -9"):
            process.begin(1 + version, version)()


def test_an_error_in_the_process_comes_with_its_traceback(process):
    assert process.begin(1, version=0)().update == 1
    with pytest.raises(RuntimeError, match="the sampling process failed: ") as caught:
        process.begin(2**70, version=0)()  # too large for the counter of draws
    assert "in collect" in caught.value.__notes__[0]


def test_probabilities_that_are_not_finite_end_a_run_as_diverged(tmp_path, monkeypatch):
    """Only the process sees broken weights, as if the trainer's were finite and the sampler's logits were not."""
    put = ahead.SharedWeights.put

    def broken(self, given) -> None:
        put(self, given)
        calls.append(1)
        if len(calls) == 3:
            self._bytes[:] = 255  # NaN

    calls: list[int] = []
    monkeypatch.setattr(ahead.SharedWeights, "put", broken)
    outcome, folder = run(tmp_path, "run", *STALE, *FEW, OVERLAP)
    assert outcome.state == "diverged"
    assert "probabilities are not finite" in str(outcome.cause)
    assert rows(folder)[-1]["update"] < 5
    assert not children(os.getpid())


def test_the_queue_is_bounded_by_the_lag(process):
    """Weights are handed over only when those before are taken: a stopped sampler stops the trainer."""
    process.begin(1, version=0)()
    os.kill(process._process.pid, signal.SIGSTOP)
    process.begin(2, version=1)
    handed = []
    import threading

    thread = threading.Thread(target=lambda: handed.append(process.begin(3, version=2)))
    thread.start()
    thread.join(1.0)
    assert not handed
    os.kill(process._process.pid, signal.SIGCONT)
    thread.join(60.0)
    assert handed[0]().version == 2


TRAIN = """
import sys
from klsweep.record.folder import RunFolder
from klsweep.sweep.job import execute
if __name__ == "__main__":
    from pathlib import Path
    print(execute(RunFolder(Path(sys.argv[1])), lambda: None, lambda *_: None, threads=1)["state"])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_dies_with_its_parent(tmp_path, number):
    plan = planned(*SMALL, *STALE, OVERLAP, "train.updates=100000", f"sweep_dir={tmp_path / 's'}", single=True)
    write_plan(plan)
    folder = plan.folder.run(plan.runs[0].run_id)
    script = tmp_path / "train_it.py"
    script.write_text(TRAIN)
    with subprocess.Popen([sys.executable, str(script), str(folder.path)]) as parent:
        assert until(lambda: folder.metrics.exists() and len(rows(folder)) > 5)
        beside = children(parent.pid)
        assert len(beside) == 1
        parent.send_signal(number)
        assert parent.wait(60) == -number
        assert until(lambda: not is_alive(beside[0]), seconds=10)


def test_overlap_is_refused_where_nothing_can_overlap_and_is_no_part_of_what_a_run_is():
    with pytest.raises(BadInput, match=r"sampling.overlap=true with sampling.async_level=0"):
        planned("sampling=off_policy", "sampling.async_level=0", OVERLAP)
    with pytest.raises(BadInput, match=r"sampling.overlap=true: on policy, a batch is sampled from the weights of"):
        planned(OVERLAP)
    with pytest.raises(BadInput, match=r"sampling.device=9: there are \d+ GPUs here"):
        planned("sampling=off_policy", OVERLAP, "sampling.device=9")
    both = planned("sampling=on_policy,off_policy", OVERLAP)
    assert not [note for note in both.notes if "overlap" in note]
    plain = planned("sampling=on_policy,off_policy")
    assert [run.run_id for run in both.runs] == [run.run_id for run in plain.runs]
    seldom = planned("sampling=off_policy", "sampling.sync_every=2", single=True).runs[0].run_id
    assert seldom not in {run.run_id for run in plain.runs}
