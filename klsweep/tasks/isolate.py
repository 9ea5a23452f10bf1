"""Verifiers in a process of their own, with a time limit: a response can hang one or fill its memory, never the run.

`isolated` asks a child process, which stays for the next call; one that does not answer in time is killed and another
takes its place. Requests and replies are lines of JSON.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

LOAD_SECONDS = 120.0  # to start Python and import the verifier; sympy takes two seconds on a quiet machine
MEMORY_BYTES = 4 * 2**30


class Verdict(NamedTuple):
    """What a verifier returned, or why it did not."""

    value: Any
    error: str | None


class _Child:
    """A process that calls functions it is told of."""

    def __init__(self) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "klsweep.tasks.isolate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.loaded: set[str] = set()

    def ask(self, request: dict[str, Any], seconds: float) -> Verdict | None:
        """The reply, None if the child has to be replaced because it is late or dead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({**request, "seconds": seconds}).encode() + b"\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                return None
            line = self.process.stdout.readline()
        if line:
            return Verdict(**json.loads(line))
        self.process.wait()  # its end of the pipe is closed, so it has ended
        return None

    def end(self) -> int | None:
        """Kill it; the exit status it had by itself, None if it was still at work."""
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # what was left in the buffer has no reader
                stream.close()
        return code


_children: dict[int, _Child] = {}  # by process id: after a fork, the parent's child is not ours
_lock = threading.Lock()


def isolated(target: str, arguments: Sequence[Any], seconds: float) -> Verdict:
    """Call ``module:function`` with these arguments (JSON values) in a child process, for at most `seconds`.

    An exception, a time-out or the end of the process is the verdict's `error`; nothing is raised.
    """
    with _lock:
        child = _children.get(os.getpid())
        if child is None:
            child = _children[os.getpid()] = _Child()
        if target not in child.loaded:
            verdict = child.ask({"load": target}, LOAD_SECONDS)
            if verdict is None or verdict.error is not None:
                return verdict or _replaced(f"{target} could not be loaded in {LOAD_SECONDS:g} s")
            child.loaded.add(target)
        verdict = child.ask({"call": target, "arguments": list(arguments)}, seconds)
        return verdict or _replaced(f"no verdict within {seconds:g} s")


def _replaced(late: str) -> Verdict:
    """Put the child away; why: it was late, or it died."""
    code = _children.pop(os.getpid()).end()
    return Verdict(None, late if code is None else f"the verifier's process ended with exit status {code}")


def _find(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _serve() -> None:
    """The child: answer requests until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they are the parent's to heed: it may still need a verdict
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a verifier prints is no reply
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(int(2 * request["seconds"]) + 1)  # ends us if the parent was killed while we hang
        try:
            if "load" in request:
                _find(request["load"])
                verdict = Verdict(None, None)
            else:
                verdict = Verdict(_find(request["call"])(*request["arguments"]), None)
            reply = json.dumps(verdict._asdict())
        except Exception as error:  # whatever a verifier raises is reported with the response it raised on
            reply = json.dumps({"value": None, "error": f"{type(error).__name__}: {error}"[:500]})
        signal.alarm(0)
        replies.write(reply + "\n")
        replies.flush()


if __name__ == "__main__":
    _serve()
