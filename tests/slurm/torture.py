"""What clusters do to jobs, done on purpose, and what must come of it: no run lost, none twice, the same bytes.

Each torture returns what was seen. `python -m tests.slurm.torture N FILE` repeats them all N times at random moments
and writes a table (`make torture N=5`); the tests run them once.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from klsweep.record.files import read_json
from tests.slurm.arena import GRID, MAX_ARRAY, PATIENCE_SECONDS, RUNS, Arena, Trial, shell, wait_until

PARALLEL = 4  # tortures at a time that leave the nodes alone


def scancel(arena: Arena, name: str) -> str:
    """scancel: SIGTERM, and SLURM does not bring it back."""
    trial = Trial(arena, name)
    trial.submit()
    trial.strike_point()
    shell("scancel", trial.job())
    status = trial.settle()
    assert trial.states() == ["preempted"], status
    trial.submit()
    trial.finish()
    return f"preempted, not in the queue; the same command submits it again; {trial.check()}"


def requeue(arena: Arena, name: str) -> str:
    """scontrol requeue: the same SIGTERM, and SLURM brings it back."""
    trial = Trial(arena, name)
    trial.submit()
    trial.strike_point()
    shell("scontrol", "requeue", trial.job())
    wait_until(lambda: trial.states() == ["preempted"], "preempted")
    assert trial.run.attempts.end_of(1) is not None
    trial.finish()
    return f"preempted, in the queue; comes back by itself; {trial.check()}"


def kill_worker(arena: Arena, name: str) -> str:
    """kill −9 of the process that trains."""
    trial = Trial(arena, name)
    trial.submit()
    os.kill(trial.strike_point(), signal.SIGKILL)
    (run,) = trial.settle()["runs"]
    assert (run["state"], run["cause"]) == ("failed", "vanished: the worker process ended with signal SIGKILL")
    wait_until(lambda: "JobState=FAILED" in shell("scontrol", "show", "job", trial.job()), "the job's end")
    assert "ExitCode=1:0" in shell("scontrol", "show", "job", trial.job())
    arena.klsweep("retry", trial.directory, "--only", "sigkill")
    trial.finish()
    return f"failed (vanished, SIGKILL), SLURM says FAILED 1:0; retry; {trial.check()}"


def kill_parent(arena: Arena, name: str) -> str:
    """kill −9 of the process that SLURM started, the trainer's parent."""
    trial = Trial(arena, name)
    trial.submit()
    worker = trial.strike_point()
    parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    (run,) = trial.settle()["runs"]
    assert run["state"] in ("failed", "preempted"), run
    assert run["state"] == "preempted" or run["cause"].startswith("vanished"), run
    arena.klsweep("retry", trial.directory)
    trial.finish()
    return f"{run['state']} ({run['cause'] or 'checkpointed when it found itself alone'}); retry; {trial.check()}"


def time_limit(arena: Arena, name: str) -> str:
    """The time limit: USR2 beforehand; klsweep puts the task back into the queue."""
    trial = Trial(arena, name, pace=2.0)
    # SLURM may send it a minute early, and one that finds Python still starting, on a busy machine, would only kill it
    trial.submit("launcher.time=2", "launcher.signal_delay_s=45")
    wait_until(lambda: trial.run.attempts.latest() and trial.run.attempts.end_of(1), "the warning")
    shell("scontrol", "update", f"JobId={trial.job()}", "TimeLimit=30")  # or a busy machine meets it again and again
    trial.pace(0.0)
    trial.finish()
    first = trial.run.attempts.end_of(1)
    assert first is not None
    assert first["state"] == "timeout", first
    return f"timeout at a checkpoint, requeued by the job; {trial.check()}"


def out_of_memory_cgroup(arena: Arena, name: str) -> str:
    """A memory cgroup's limit: the kernel kills the trainer."""
    group = Path("/sys/fs/cgroup/memory") / f"klsweep-{os.getpid()}-{name}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(2 * 2**30))
    wrapper = arena.root / f"python-{name}"
    wrapper.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    try:
        return _out_of_memory(arena, name, "touch", wrapper, "out of memory")
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "an empty cgroup")
        group.rmdir()


def out_of_memory_rlimit(arena: Arena, name: str) -> str:
    """RLIMIT_AS: allocation fails in the trainer."""
    wrapper = arena.root / f"python-{name}"
    wrapper.write_text(f'#!/bin/sh\nulimit -v {7 * 2**20}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return _out_of_memory(arena, name, "reserve", wrapper, "memory")


def _out_of_memory(arena: Arena, name: str, fault: str, wrapper: Path, said: str) -> str:
    trial = Trial(arena, name)
    planned = read_plan(arena, trial)
    trial.faults = {planned[0]: (fault, 12)}
    trial.pace(0.0)
    trial.submit(f"launcher.python={wrapper}")
    (run,) = trial.settle()["runs"]
    assert run["state"] == "failed", run
    assert said in run["cause"].lower(), run
    trial.faults = {}
    trial.pace(0.0)
    arena.klsweep("retry", trial.directory, "--only", said, "launcher.python=null")
    trial.finish()
    return f"failed ({run['cause']}); retry with other resources; {trial.check()}"


def full_disk(arena: Arena, name: str) -> str:
    """The sweep folder's file system is full (a small tmpfs), and later is not."""
    folder = arena.root / f"disk-{name}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "klsweep", str(folder)], check=True)
    try:
        trial = Trial(arena, name, folder=f"disk-{name}/sweep")
        trial.submit()
        (run,) = trial.settle()["runs"]
        assert run["state"] == "failed", run
        subprocess.run(["mount", "-o", "remount,size=128m", str(folder)], check=True)
        arena.klsweep("retry", trial.directory)
        trial.finish()
        return f"failed ({run['cause']}); retry once there is room; {trial.check()}"
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def truncated_checkpoint(arena: Arena, name: str) -> str:
    """The newest checkpoint is cut short while the run is away."""
    return _damaged(arena, name, lambda data: data[: len(data) // 2])


def flipped_bit(arena: Arena, name: str) -> str:
    """One bit of the newest checkpoint flips while the run is away."""

    def flip(data: bytes) -> bytes:
        at = random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]

    return _damaged(arena, name, flip)


def _damaged(arena: Arena, name: str, damage: Callable[[bytes], bytes]) -> str:
    trial = Trial(arena, name)
    trial.submit()
    trial.strike_point()
    shell("scancel", trial.job())
    trial.settle()
    newest = sorted(trial.run.checkpoints.glob("update-*"))[-1]
    file = random.choice(sorted(newest.iterdir()))
    file.write_bytes(damage(file.read_bytes()))
    trial.submit()
    trial.finish()
    warned = (trial.run.attempt(2) / "stderr").read_text()
    assert f"checkpoint {newest.name} is damaged" in warned, warned
    return f"{newest.name}/{file.name} damaged: warned, went on from the one before; {trial.check()}"


def neighbours(arena: Arena, name: str) -> str:
    """Four runs in one job, two at a time: one raises, one calls os._exit(137), one dies of a segmentation fault."""
    trial = Trial(arena, name, "seed=0,1", "sampling=on_policy,off_policy", pace=0.0)
    runs = read_plan(arena, trial)
    trial.faults = dict(zip(runs, [("raise", 9), ("exit", 9), ("segv", 9)], strict=False))
    trial.pace(0.0)
    trial.submit("launcher.runs_per_job=4", "launcher.concurrent=2")
    status = trial.settle()
    found = {run["run_id"]: run["cause"] for run in status["runs"]}
    assert [run["state"] for run in status["runs"]] == ["failed", "failed", "failed", "done"], status
    assert found[runs[0]].startswith("GradingError: reward Paced raised on the prompt "), found
    assert found[runs[0]].endswith(": RuntimeError: a fault in the reward"), found
    assert found[runs[1]] == "vanished: the worker process ended with exit code 137", found
    assert found[runs[2]] == "vanished: the worker process ended with signal SIGSEGV", found
    shown = [line.strip() for line in status["failures"][0]["last_lines"]]
    assert shown[1:] == ['raise RuntimeError("a fault in the reward")', "RuntimeError: a fault in the reward"], shown
    trial.faults = {}
    trial.pace(0.0)
    arena.klsweep("retry", trial.directory)
    trial.finish()
    return f"three failed, each with its cause, the fourth done; retry; {trial.check()}"


def max_array_size(arena: Arena, name: str) -> str:
    """More runs than MaxArraySize, and a throttle over all of them."""
    trial = Trial(arena, name, *GRID, pace=0.0)
    said = trial.submit("launcher.array_parallelism=2")
    assert "2 job arrays" in said, said
    most = 0
    while not all(state == "done" for state in trial.states()):
        most = max(most, shell("squeue", "-h", "-t", "R", "--name", trial.sweep.name).count("\n"))
        time.sleep(0.2)
    assert most <= 2, most
    assert [folder.attempts.latest() for folder in trial.folders()] == [1] * RUNS
    return f"{RUNS} runs as arrays of at most {MAX_ARRAY}, at most {most} at a time; {trial.check()}"


def interrupted_launcher(arena: Arena, name: str) -> str:
    """Ctrl-C on the launcher, at any moment, or while sbatch is at work."""
    trial = Trial(arena, name, *GRID, pace=0.0)
    launcher = arena.start("sweep", *trial.overrides)
    if random.random() < 0.5:
        time.sleep(random.uniform(0.2, 3.0))
    else:
        wait_until(lambda: list(trial.sweep.submissions.path.glob("*/chunk-*.json")), "an array on record")
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=PATIENCE_SECONDS)
    there = _submitted_tasks(trial)
    trial.submit()
    trial.finish()
    assert _submitted_tasks(trial) == RUNS
    assert [folder.attempts.latest() for folder in trial.folders()] == [1] * RUNS
    return f"ended with exit code {launcher.returncode} and {there} of {RUNS} submitted; {trial.check()}"


def two_launchers(arena: Arena, name: str) -> str:
    """The same command twice at once."""
    trial = Trial(arena, name, *GRID, pace=0.0)
    launchers = [arena.start("sweep", *trial.overrides) for _ in range(2)]
    outputs = [launcher.communicate(timeout=PATIENCE_SECONDS) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    trial.finish()
    assert _submitted_tasks(trial) == RUNS
    assert [folder.attempts.latest() for folder in trial.folders()] == [1] * RUNS
    return f"{RUNS} runs submitted once; {trial.check()}"


def _submitted_tasks(trial: Trial) -> int:
    """Tasks of arrays that SLURM took, over all launches."""
    files = trial.sweep.submissions.path.glob("*/chunk-*.job")
    return sum(len(read_json(file.with_suffix(".json"))["tasks"]) for file in files)


def node_down(arena: Arena, name: str) -> str:
    """A node is set down under the run."""
    trial = Trial(arena, name)
    trial.submit()
    old = trial.strike_point()
    node = trial.status()["runs"][0]["host"]
    shell("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=torture")
    try:
        wait_until(lambda: not Path(f"/proc/{old}").exists(), "the old process to go")
        time.sleep(5.0)  # SLURM holds a job whose old copy it finds on the node; two minutes' pause is its remedy
        trial.finish()
    finally:
        shell("scontrol", "update", f"NodeName={node}", "State=RESUME")
    first = trial.run.attempts.end_of(1)
    assert first is not None
    assert first["state"] == "preempted", first
    return f"preempted ({first['cause'] or 'checkpointed on SIGTERM'}), came back by itself; {trial.check()}"


def kill_slurmd(arena: Arena, name: str) -> str:
    """kill −9 of slurmd: SLURM starts the job again on the other node while the old process lives."""
    trial = Trial(arena, name, pace=2.0)
    trial.submit()
    wait_until(lambda: trial.run.status()["state"] == "running", "running")
    old = trial.run.status()["owner"]["pid"]
    node = trial.status()["runs"][0]["host"]
    arena.cluster("node", "kill", node)
    try:
        hold = lambda: shell("scontrol", "update", f"JobId={trial.job()}", "StartTime=now")  # noqa: E731
        wait_until(lambda: hold() or trial.run.attempts.latest() == 2, "a second attempt")
        alive = Path(f"/proc/{old}").exists()
        trial.pace(0.0)
        trial.finish()
        wait_until(lambda: not Path(f"/proc/{old}").exists() or not _is_busy(trial, 1), "the old one to leave")
    finally:
        arena.cluster("node", "start", node)
    left = (trial.run.attempt(1) / "stderr").read_text()
    assert alive
    assert "no longer ours: leaving without writing" in left, left
    return f"the old process, alive, left without writing; {trial.check()}"


def _is_busy(trial: Trial, attempt: int) -> bool:
    return "no longer ours" not in (trial.run.attempt(attempt) / "stderr").read_text()


def read_plan(arena: Arena, trial: Trial) -> list[str]:
    """Ids of the runs that a trial would submit."""
    out = arena.klsweep("plan", *trial.overrides, "--json")
    return json.loads(out)["to_run"]


GENTLE = (
    time_limit,
    requeue,
    scancel,
    kill_worker,
    kill_parent,
    out_of_memory_cgroup,
    out_of_memory_rlimit,
    full_disk,
    truncated_checkpoint,
    flipped_bit,
    neighbours,
    max_array_size,
    interrupted_launcher,
    two_launchers,
)
ROUGH = (node_down, kill_slurmd)  # one after the other: they take nodes away


def run_all(arena: Arena, repeat: int = 0) -> dict[str, str]:
    """Every torture once: what was seen by name, beginning with FAILED where it was not as it should be."""

    def one(torture: Callable[[Arena, str], str]) -> str:
        try:
            text = torture(arena, f"{torture.__name__.replace('_', '-')}-{repeat}")
        except Exception as error:  # whatever it is, the other tortures go on
            text = f"FAILED: {type(error).__name__}: {error}"
        print(f"{torture.__name__} {repeat + 1}: {text}", flush=True)
        return text

    with ThreadPoolExecutor(PARALLEL) as pool:
        seen = list(pool.map(one, GENTLE))
    return dict(zip((t.__name__ for t in (*GENTLE, *ROUGH)), [*seen, *map(one, ROUGH)], strict=True))


def main(repeats: int, file: Path) -> int:
    root = Path(tempfile.mkdtemp(prefix="klsweep-torture."))
    arena = Arena(root)
    results: list[dict[str, str]] = []
    try:
        for i in range(repeats):
            results.append(run_all(arena, i))
            write_table(file, results)  # after every round: an interrupted one still has a true table
    finally:
        arena.close()
    return any(text.startswith("FAILED") for result in results for text in result.values())


def write_table(file: Path, results: list[dict[str, str]]) -> None:
    """Replace the table between the marks in a page: how often each torture went as it should, and what was seen."""
    lines = [f"| what was done | as it should be | seen in the last of {len(results)} |", "|---|---|---|"]
    for torture in (*GENTLE, *ROUGH):
        seen = [result[torture.__name__] for result in results]
        good = sum(not text.startswith("FAILED") for text in seen)
        lines.append(f"| {(torture.__doc__ or '').strip()} | {good}/{len(results)} | {seen[-1].splitlines()[0]} |")
    start, end = "<!-- torture -->\n", "<!-- end -->"
    page = file.read_text()
    head, tail = page[: page.index(start) + len(start)], page[page.index(end) :]
    file.write_text(head + "\n".join(lines) + "\n" + tail)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
