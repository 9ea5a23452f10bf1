"""Weights & Biases as a sink: it mirrors the run folder and is never needed."""

import hashlib
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from klsweep.component import component
from klsweep.record.folder import RunFolder, SweepFolder

ID_LENGTH = 128  # W&B takes no longer id


@component
class Wandb:
    """The `wandb` node. `offline` writes its files into the run folder and needs no account."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


def wandb_group(sweep: SweepFolder) -> str:
    """A sweep's name in W&B; an evaluation's begins with that of the sweep it is of."""
    is_evaluation = sweep.path.resolve().parent.name == "evaluations"
    return f"{SweepFolder(sweep.path.resolve()).evaluated.name}-{sweep.name}" if is_evaluation else sweep.name


def wandb_id(run: RunFolder) -> str:
    """The id of a run's W&B run: of its sweep's name and its own, so the same for every attempt and every sync.

    What W&B does not take in an id is replaced, and a hash keeps apart what that would make equal.
    """
    plain = f"{wandb_group(run.sweep)}-{run.run_id}"
    taken = re.sub(r"[^\w.-]", "-", plain, flags=re.ASCII)
    if taken == plain and len(plain) <= ID_LENGTH:
        return plain
    return f"{hashlib.sha256(plain.encode()).hexdigest()[:8]}-{taken[9 - ID_LENGTH :]}"


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with keys as W&B filters and groups by them: without dots."""
    return {key.replace(".", "_"): value for key, value in config.items()}


def flush() -> None:
    """Wait until W&B has written what it was given; before a process ends that Python's atexit may not reach."""
    if wandb := sys.modules.get("wandb"):
        try:
            wandb.teardown()
        except Exception as error:
            print(f"warning: W&B may not have written everything: {error}", file=sys.stderr, flush=True)


class Tracker:
    """One W&B run. Whatever goes wrong in it is one warning; training goes on."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def start(cls, settings: Wandb, folder: RunFolder, config: dict[str, Any]) -> "Tracker":
        """Open the W&B run of a run, grouped by sweep, with flat config keys."""
        if settings.mode == "disabled":
            return cls(None)
        try:
            import wandb

            run = wandb.init(
                mode=settings.mode,
                project=settings.project,
                entity=settings.entity,
                dir=str(folder.path),
                id=wandb_id(folder),
                name=wandb_id(folder),
                group=wandb_group(folder.sweep),
                config=flat(config),
                resume="allow" if settings.mode == "online" else None,
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )
        except Exception as error:
            return cls(None)._warn(error)
        return cls(run)

    def log(self, update: int, metrics: dict[str, Any]) -> None:
        """Mirror one row of `metrics.jsonl`."""
        self._try("log", metrics, step=update)

    def finish(self, exit_code: int) -> None:
        """Close the W&B run."""
        self._try("finish", exit_code=exit_code)
        self._run = None

    def _try(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._run is None:
            return
        try:
            getattr(self._run, method)(*args, **kwargs)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> "Tracker":
        self._run = None
        print(f"warning: W&B is off for this run: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return self
