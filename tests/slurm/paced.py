"""A plugin for torture: the usual reward, which sleeps or breaks when a control file says so. Results do not change.

`$TORTURE/control.json` holds `pace` (seconds of sleep per update) and `faults`: by run id, what happens at its n-th
update in this process (raise, exit, segv, touch memory until there is none, or reserve it).
"""

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

from klsweep.component import component
from klsweep.tasks.base import Grade, Item

BLOCK = 32 * 2**20
calls: dict[str, int] = {}


@component
class Paced:
    """1 if the task's verifier accepts the response, else 0, as the shipped `verifier`."""

    batch: int  # responses of an update

    def __call__(self, item: Item, response: str, grade: Grade) -> float:
        if "TORTURE" in os.environ:
            run = Path(os.readlink("/proc/self/fd/1")).parts[-4]  # a worker's stdout: <run id>/attempts/<n>/stdout
            calls[run] = calls.get(run, 0) + 1
            if calls[run] % self.batch == 0:
                obey(run, calls[run] // self.batch)
        return float(grade.correct)


def obey(run: str, update: int) -> None:
    control = json.loads(Path(os.environ["TORTURE"], "control.json").read_text())
    time.sleep(control.get("pace", 0.0))
    what, when = control.get("faults", {}).get(run, (None, None))
    if what is None or update < when:
        return
    if what == "raise":
        raise RuntimeError("a fault in the reward")
    if what == "exit":
        os._exit(137)
    if what == "segv":
        ctypes.string_at(0)
    held: list[Any] = []
    while True:
        held.append(bytearray(BLOCK))
        if what == "touch":
            held[-1][::4096] = b"x" * (BLOCK // 4096)
