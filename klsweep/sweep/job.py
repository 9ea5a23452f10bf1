"""One run, from its folder: claim it, train or evaluate it, and write down truthfully how that ended."""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from klsweep.config.build import Builder
from klsweep.config.identity import canonical, eval_id
from klsweep.config.plugins import plugin_hash
from klsweep.provenance import environment, science_hash
from klsweep.record.claims import beating
from klsweep.record.files import Row, write_json
from klsweep.record.folder import Attempt, Job, Lost, RunFolder
from klsweep.sweep.ranks import leading, processes
from klsweep.training.settings import Subject

OnUpdate = Callable[[int, Row], None]
# What a resumed run has in common with an undisturbed one, by device.
RESUMED = {"cpu": "every byte", "cuda": "the rollouts sampled before; later ones and weights up to rounding"}
# Why a run ended before its end, which it did after the update at work.
STOPPED = {
    "preempted": "checkpointed on SIGTERM",
    "timeout": "checkpointed at the warning before the time limit",
    "cancelled": "klsweep cancel: checkpointed",
}
ShouldStop = Callable[[], str | None]  # why to stop: preempted, timeout


def execute(
    folder: RunFolder, should_stop: ShouldStop, on_update: OnUpdate, threads: int, job: Job | None = None
) -> Row:
    """Run an attempt at a run; its final status. A run that is finished, cancelled or taken is left alone.

    `threads` of torch, unless the run has begun with another number.
    The resolved `config.yaml` is all that is read: editing `conf/` while a run waits changes nothing. Exceptions end
    in the attempt's record with their traceback, not in the caller.
    """
    attempt = folder.claim(
        job, science_hash=science_hash(), node=os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    )
    if attempt is None:
        return folder.status()

    def reason() -> str | None:
        return "cancelled" if folder.cancellation.exists() else should_stop()

    with _output_into(attempt.path), beating(folder.attempts.heartbeat(attempt.number)):
        try:
            state, cause = _work(attempt, reason, on_update, threads, job.nodes if job else 1)
        except Lost as lost:
            print(lost, file=sys.stderr)
            return attempt.finish("failed", str(lost))  # which changes nothing unless the attempt is still ours
        except Exception as error:
            text = traceback.format_exc()
            print(text, file=sys.stderr)
            return attempt.finish("failed", f"{type(error).__name__}: {error}", text)
    return attempt.finish(state, STOPPED.get(state, cause))


def _work(
    attempt: Attempt, should_stop: ShouldStop, on_update: OnUpdate, threads: int, nodes: int
) -> tuple[str, str | None]:
    import torch

    from klsweep.model.policy import device_of
    from klsweep.objective.objective import build_objective
    from klsweep.rollout.vllm import VLLM
    from klsweep.rollout.vllm_engine import release
    from klsweep.tracking import Tracker
    from klsweep.training import memory
    from klsweep.training.behaviour import prepare_reward_model
    from klsweep.training.loop import train
    from klsweep.training.reevaluate import reevaluate
    from klsweep.training.smoke import smoke

    folder = attempt.folder
    config = yaml.load(folder.config.read_text(), Loader=yaml.CSafeLoader)
    spec = Builder().run_spec(config)
    plugins = plugin_hash(spec.root.plugins)
    # an evaluation's id does not know by which engine: another draws other responses
    attempt.note(eval_id=eval_id(spec), engine=type(spec.rollout).__name__.lower(), plugin_hash=plugins)
    if not isinstance(spec.rollout, VLLM):
        release()  # an earlier run's engine in this process holds memory
    memory.release()  # and so may what it was trained with
    subject = Subject(**config["evaluate"]) if "evaluate" in config else None
    trained = RunFolder(folder.path / subject.run) if subject is not None and subject.run is not None else folder
    ranks = processes(spec)
    threads = folder.threads() or trained.threads() or max(1, threads // ranks)  # another might round differently
    torch.set_num_threads(threads)
    device = device_of(spec.model)
    found = {"threads": threads, "ranks": nodes * ranks, "device": device, "resumed_run_equals": RESUMED[device]}
    found["plugin_hash"] = plugins
    found["chat_template"] = spec.model.template_text()
    write_json(folder.environment, {**environment(), **found})
    trains = subject is None and "smoke" not in config
    if trains and (stopped := prepare_reward_model(config, spec, folder.sweep.artifacts, should_stop)):
        return stopped, None
    identity = canonical(spec.simplified(build_objective(*spec.objective_parts)))
    choices = {f"choice.{group}": choice for group, choice in config["choices"].items()}
    tracker = Tracker.start(spec.wandb, folder, {**choices, **identity})
    try:
        with leading(spec, attempt, nodes, threads) as ranks:
            if subject is None:
                work = smoke if "smoke" in config else train
                outcome = work(spec, attempt, folder.sweep.artifacts, tracker, should_stop, on_update, ranks)
            else:
                shared = folder.sweep.evaluated.artifacts
                outcome = reevaluate(spec, subject, attempt, shared, tracker, should_stop, on_update, ranks)
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish(0)
    return outcome.state, outcome.cause


@contextmanager
def _output_into(folder: Path) -> Iterator[None]:
    """Send this process's stdout and stderr, file descriptors included, into an attempt's folder."""
    assert threading.current_thread() is threading.main_thread()
    saved = []
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        stream.flush()
        descriptor = stream.fileno()
        saved.append((stream, descriptor, os.dup(descriptor)))
        with (folder / name).open("a") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        for stream, descriptor, original in saved:
            stream.flush()
            os.dup2(original, descriptor)
            os.close(original)
