"""Sampling beside the training: a process with weights of its own collects batches that later updates will need.

The trainer puts weights into shared memory and asks for batches; the process copies them when it comes to the first
batch that is to be sampled from them, which makes room for the next. So a trainer that is faster than its sampler has
to wait, and no more batches wait than the staleness allows.
"""

import ctypes
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.model.policy import Policy, load_policy
from klsweep.model.reward_model import load_reward_model
from klsweep.rollout.engine import Rollout
from klsweep.training.collect import Collector, longest_sequence

LEAVE_SECONDS = 10.0
ALIGNMENT = 16  # bytes
PR_SET_PDEATHSIG = 1
TRAINERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # what they mean, it decides


class SharedWeights:
    """Room for one copy of a policy's trained weights in memory that two processes share. It has no name to be left."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._places: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
        size = 0
        for name, tensor in weights:
            self._places[name] = (size, tensor.shape, tensor.dtype)
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self._bytes = torch.empty(size, dtype=torch.uint8).share_memory_()

    def _views(self) -> Iterator[tuple[str, Tensor]]:
        for name, (start, shape, dtype) in self._places.items():
            yield name, self._bytes[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)

    def put(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights into it."""
        views = dict(self._views())
        for name, tensor in weights:
            views[name].copy_(tensor)

    @torch.no_grad()
    def copy_into(self, policy: Policy) -> None:
        """Copy its weights into a policy that was made as the trainer's was."""
        own = dict(policy.network.named_parameters())
        for name, view in self._views():
            own[name].copy_(view)


class SamplingProcess:
    """The trainer's side. The process ends with `close`, or with the trainer's process, however that ends.

    `reward_model` is the folder of the one that grades, if any; `weights` gives the policy's trained weights as they
    are when it is called.
    """

    def __init__(
        self, spec: RunSpec, reward_model: Path | None, weights: Callable[[], Iterable[tuple[str, Tensor]]]
    ) -> None:
        self._weights, self._shared = weights, SharedWeights(weights())
        self._put = self._taken = -1  # versions
        self._asked: dict[int, list[Rollout]] = {}  # where to put what
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._connection, theirs = get_context("spawn").Pipe()
        arguments = (theirs, os.getpid(), spec, reward_model, self._shared, torch.get_num_threads())
        self._process = get_context("spawn").Process(target=_serve, args=arguments)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINERS)  # a process has blocked what its parent had
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def close(self) -> None:
        """End the process: at once if it is at work, for nobody waits for the result."""
        with suppress(OSError):
            self._connection.send_bytes(pickle.dumps(None))
        self._process.join(0 if self._asked else LEAVE_SECONDS)
        self._process.kill()
        self._process.join()
        self._listener.join()
        self._connection.close()

    def begin(self, index: int, version: int) -> Callable[[], Rollout]:
        """Ask for the batch of update `index`, sampled from the weights as they are now, of this `version`.

        Returns what waits for the batch. Waits itself until the weights handed over before are taken. Both raise
        FloatingPointError if the policy's probabilities were not finite, RuntimeError if the process failed or died.
        """
        if version != self._put:
            self._wait(lambda: self._taken == self._put)
            self._shared.put(self._weights())
            self._put = version
        place: list[Rollout] = []
        with self._changed:
            self._asked[index] = place
        with suppress(OSError):  # it is dead: who waits is told
            self._connection.send_bytes(pickle.dumps((index, version)))

        def fetch() -> Rollout:
            self._wait(lambda: bool(place))
            return place[0]

        return fetch

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._error is not None)
            if self._error is not None and not condition():
                raise self._error

    def _listen(self) -> None:
        """Take what the process sends as soon as it does, so that it need not wait until the trainer looks."""
        while self._error is None:
            try:
                said = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                self._process.join()
                said = RuntimeError(f"the sampling process ended with exit code {self._process.exitcode}")
            with self._changed:
                if isinstance(said, Rollout):
                    self._asked.pop(said.update).append(said)
                elif isinstance(said, Exception):
                    self._error = said
                else:
                    self._taken = said
                self._changed.notify_all()


def _serve(
    connection: Connection,
    trainer: int,
    spec: RunSpec,
    reward_model: Path | None,
    weights: SharedWeights,
    threads: int,
) -> None:
    """The process: collect the batches asked for, until told None or the trainer's process is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != trainer:  # it died before that
        return
    if spec.sampling.device is not None:
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        os.environ["CUDA_VISIBLE_DEVICES"] = (
            names.split(",")[spec.sampling.device] if names else str(spec.sampling.device)
        )
    try:
        _collect(connection, spec, reward_model, weights, threads)
    except FloatingPointError as error:
        connection.send_bytes(pickle.dumps(error))
    except Exception as error:
        told = RuntimeError(f"the sampling process failed: {type(error).__name__}: {error}")
        told.add_note(traceback.format_exc())
        connection.send_bytes(pickle.dumps(told))


def _collect(
    connection: Connection, spec: RunSpec, reward_model: Path | None, weights: SharedWeights, threads: int
) -> None:
    torch.set_num_threads(threads)
    # made as the trainer's was: even how a file's tensors are aligned in memory changes bits
    policy = load_policy(spec.model).trainable_copy(spec.adapter, spec.root.seed)
    sampler = spec.rollout.bind(policy, longest_sequence(spec, policy))
    judge = None if reward_model is None else load_reward_model(reward_model, spec.model)
    collector, current = Collector(spec, policy, sampler, judge), -1
    while (asked := pickle.loads(connection.recv_bytes())) is not None:
        index, version = asked
        if version != current:
            weights.copy_into(policy)
            sampler.take_weights()
            connection.send_bytes(pickle.dumps(version))
            current = version
        rollout = collector.collect(index, version)
        connection.send_bytes(pickle.dumps(rollout.to("cpu")))
