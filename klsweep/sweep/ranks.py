"""The processes that train one run together: started, watched and ended. The leader is the process that owns the run.

Where they meet is a file in the attempt's folder, so that those on a job's other nodes find it, too. A rank that does
not lead writes its output, and why it failed, into files of its own there and nothing else.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from klsweep.config.build import RunSpec
from klsweep.errors import BadInput
from klsweep.record.files import Row, read_json, write_json
from klsweep.record.folder import Attempt, Job, RunFolder

MEETING = "ranks.json"
POLL_SECONDS = 0.5
GRACE_SECONDS = 15.0  # for a process that is to leave by itself
WORD_SECONDS = 3.0  # after a broken connection: whoever broke it has written down why, or its parent has
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # the leader's to heed


class Meeting(NamedTuple):
    """Where ranks meet, and how many there are."""

    host: str
    port: int
    nodes: int
    per_node: int
    threads: int
    device: str


class RankFailed(RuntimeError):
    """Another rank of the run has failed."""


@contextmanager
def leading(spec: RunSpec, attempt: Attempt, nodes: int, threads: int) -> Iterator[Any]:
    """The ranks of a run, led by this process, as its `parallel` node says; they leave with the block.

    Those of this machine are started here, those of a job's other nodes by `serve`. `threads` of torch for each. Raises
    RankFailed, with its cause, if another rank fails.
    """
    from klsweep.model.parallel import ALONE, leave
    from klsweep.model.policy import device_of

    if not spec.parallel.is_sharded:
        yield ALONE
        return
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    host = "127.0.0.1" if nodes == 1 else os.environ.get("MASTER_ADDR", socket.gethostname())
    meeting = Meeting(host, store.port, nodes, processes(spec), threads, device_of(spec.model))
    write_json(attempt.path / MEETING, meeting._asdict())
    with _Guard(attempt) as guard, Party(attempt.folder, attempt.number, meeting, range(1, meeting.per_node)) as party:
        try:
            ranks = _joined(meeting, 0, store)
            yield ranks
            ranks.order(None)
        except Exception as error:
            word = guard.word()
            party.end()  # before the group: they may be waiting in it
            leave()
            if word is None:
                raise
            failed = RankFailed(word["cause"])
            failed.add_note(word.get("traceback") or "")
            raise failed from error
        leave()


def check(spec: RunSpec) -> None:
    """BadInput for what runs of several processes cannot do."""
    if not spec.parallel.is_sharded:
        return
    if spec.model.reference == "offload":
        raise BadInput("model.reference=offload: with parallel=fsdp2 the reference is spread over the GPUs (device)")
    if spec.adapter.rank is not None:
        raise BadInput("adapter=lora: adapters are trained in one process (parallel=single)")
    if (size := getattr(spec.rollout, "tensor_parallel_size", 1)) > 1:
        raise BadInput(f"rollout.tensor_parallel_size={size}: with parallel=fsdp2 each rank samples by itself (1)")
    if spec.sampling.overlap:
        raise BadInput("sampling.overlap=True: with parallel=fsdp2 all GPUs sample, then all train (false)")


def processes(spec: RunSpec) -> int:
    """Ranks per node. BadInput if that is one per GPU and there is none."""
    if not spec.parallel.is_sharded:
        return 1
    import torch

    from klsweep.model.policy import device_of

    found = spec.parallel.processes or (torch.cuda.device_count() if device_of(spec.model) == "cuda" else 0)
    if found == 0:
        raise BadInput("parallel.processes=null: one per GPU of the node, and there is none (give their number)")
    return found


def _joined(meeting: Meeting, rank: int, store: Any) -> Any:
    """Become rank `rank`, on its device."""
    import torch

    from klsweep.model.parallel import join

    if meeting.device == "cuda":
        torch.cuda.set_device(rank % meeting.per_node)
    torch.set_num_threads(meeting.threads)
    return join(store, rank, meeting.nodes * meeting.per_node, meeting.device)


class Party:
    """The ranks on this machine that do not lead: processes of their own. A context manager, which ends them."""

    def __init__(self, folder: RunFolder, attempt: int, meeting: Meeting, ranks: range) -> None:
        self._path, self._ended = folder.attempt(attempt), threading.Event()
        context = get_context("spawn")
        arguments = str(folder.path), attempt, meeting
        self._processes = {rank: context.Process(target=_follow, args=(*arguments, rank)) for rank in ranks}

    def __enter__(self) -> "Party":
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they ignore them
        try:
            for process in self._processes.values():
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._watch = threading.Thread(target=self._look_after, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.wait(GRACE_SECONDS)
        self.end()

    def end(self) -> None:
        """Kill those that are still here."""
        self._ended.set()
        self._watch.join()
        for process in self._processes.values():
            process.kill()
            process.join()

    def wait(self, seconds: float | None = None) -> None:
        """Until all have left by themselves, or for so long."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for process in self._processes.values():
            process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _look_after(self) -> None:
        """Write down what a process that has died could not."""
        while not self._ended.wait(POLL_SECONDS):
            for rank, process in self._processes.items():
                if process.exitcode and not _word_of(self._path, rank).exists():
                    code = process.exitcode
                    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                    _say(self._path, rank, f"rank {rank} on {socket.gethostname()} vanished: it ended with {how}")


class _Guard:
    """Sees to it that a leader does not wait for ranks that failed: it ends the attempt and this process if need be."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt, self._ended = attempt, threading.Event()

    def __enter__(self) -> "_Guard":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._thread.join()

    def word(self) -> Row | None:
        """What another rank failed of, if one did: whoever died before whoever noticed, and the first of those."""
        deadline = time.monotonic() + WORD_SECONDS
        while not (words := _words(self._attempt.path)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if words:
            time.sleep(POLL_SECONDS)  # it may be that of a rank that has only noticed
        return min(_words(self._attempt.path), key=lambda word: ("traceback" in word, word["time"]), default=None)

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            if _words(self._attempt.path):
                if self._ended.wait(GRACE_SECONDS):
                    return
                word = self.word() or {"cause": "a rank failed"}
                self._attempt.folder.end(self._attempt.number, "failed", word["cause"], word.get("traceback"))
                os._exit(1)


def serve(folders: Sequence[RunFolder], job: Job, node: int, is_over: Callable[[], bool]) -> None:
    """On a job's other nodes: the ranks of this one in every attempt that the job's leader begins, until `is_over`."""
    served: set[Path] = set()
    while not is_over():
        for folder in folders:
            number = folder.attempts.latest()
            found = _meeting(folder, number, job)
            if found is not None and folder.attempt(number) not in served:
                served.add(folder.attempt(number))
                first = node * found.per_node
                with Party(folder, number, found, range(first, first + found.per_node)) as party:
                    party.wait()
        time.sleep(POLL_SECONDS)


def _meeting(folder: RunFolder, attempt: int, job: Job) -> Meeting | None:
    """Where the ranks of an attempt meet, if it is one of this job that goes on."""
    if folder.attempts.claim(attempt).get("job") != job._asdict() or not folder.attempts.holds(attempt):
        return None
    found = read_json(folder.attempt(attempt) / MEETING)
    return found and Meeting(**found)


def _follow(folder: str, attempt: int, meeting: Meeting, rank: int) -> None:
    """The process of a rank that does not lead."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    run = RunFolder(Path(folder))
    path = run.attempt(attempt)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        with (path / f"rank-{rank}.{name}").open("a") as file:
            os.dup2(file.fileno(), stream.fileno())
    threading.Thread(target=_leave_with_the_attempt, args=(run, attempt, os.getppid()), daemon=True).start()
    os.environ.update(OMP_NUM_THREADS=str(meeting.threads), TOKENIZERS_PARALLELISM="false")
    try:
        _take_part(meeting, rank)
    except BaseException as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        _say(path, rank, f"rank {rank} on {socket.gethostname()}: {type(error).__name__}: {error}", text)
        os._exit(1)


def _take_part(meeting: Meeting, rank: int) -> None:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    from klsweep.model.parallel import leave
    from klsweep.training.trainer import follow

    follow(_joined(meeting, rank, TCPStore(meeting.host, meeting.port, is_master=False)))
    leave()


def _leave_with_the_attempt(run: RunFolder, attempt: int, parent: int) -> None:
    """End this process once its attempt is over or its parent has gone, whatever it waits for."""
    while run.attempts.holds(attempt) and os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _word_of(path: Path, rank: int) -> Path:
    return path / f"rank-{rank}.json"


def _say(path: Path, rank: int, cause: str, text: str | None = None) -> None:
    with contextlib.suppress(OSError):
        found = {"cause": cause, "time": time.time()}
        write_json(_word_of(path, rank), found if text is None else {**found, "traceback": text})


def _words(path: Path) -> list[Row]:
    return [word for file in path.glob("rank-*.json") if (word := read_json(file))]
