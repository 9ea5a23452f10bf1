"""Contestants take turns: each is a process that works only while it has the turn, so that noise hits all alike.

A contestant calls `wait` before every update. It answers "N" (updates to do) with a line of JSON about the turn just
ended, and then blocks until the next; N = 0 asks for a last line about the whole. What libraries print goes to the
error stream.
"""

import json
import os
import resource
import sys
import time
from typing import Any


class Turns:
    """The contestant's side. The first answer, when it is ready, tells of no update."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._times: list[tuple[float, float]] = []
        self._start = _clocks()

    def wait(self) -> bool:
        """Before an update: end the last one, and wait for a turn if this one is over. False: stop."""
        if self._left:
            wall, processor = _clocks()
            self._times.append((wall - self._start[0], processor - self._start[1]))
            self._left -= 1
        if not self._left:
            self.answer(times=self._times)
            self._times = []
            self._left = int(sys.stdin.readline() or 0)
        self._start = _clocks()
        return self._left > 0

    def answer(self, **values: Any) -> None:
        """Tell the parent, together with this process's peak memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**values, "peak_mib": peak}), file=self._out, flush=True)


def _clocks() -> tuple[float, float]:
    """Seconds on the wall, and seconds that a processor worked for this process."""
    return time.perf_counter(), time.process_time()
