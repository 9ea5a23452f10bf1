"""Weights & Biases as a sink: it mirrors the run folder and is never needed."""

import sys
from pathlib import Path
from typing import Any, Literal

from klsweep.component import component


@component
class Wandb:
    """The `wandb` node. `offline` writes its files into the run folder and needs no account."""

    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


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
    def start(cls, settings: Wandb, folder: Path, run_id: str, group: str, config: dict[str, Any]) -> "Tracker":
        """Open the W&B run of `run_id`, grouped by sweep, with flat config keys."""
        if settings.mode == "disabled":
            return cls(None)
        try:
            import wandb

            run = wandb.init(
                mode=settings.mode,
                project=settings.project,
                entity=settings.entity,
                dir=str(folder),
                id=run_id,
                name=run_id,
                group=group,
                config={key.replace(".", "_"): value for key, value in config.items()},
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
