"""One vLLM engine in this process: started for the first run that needs it, used again by runs that can share it."""

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from klsweep.model.source import Model

SHARED_MEMORY = Path("/dev/shm")
SHARD_BYTES = 2**30
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: it ends with us, and takes an iterator of weights
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # processes that share a machine must not all claim its first cores
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True)
class Settings:
    """What an engine is started with; the sampling settings come with each request."""

    batch_size: int
    gpu_memory_utilization: float
    cpu_cache_gib: float
    tensor_parallel_size: int
    enforce_eager: bool | None
    sleep: bool


class VLLMEngine:
    """A vLLM engine with room for sequences of `longest` tokens. It begins with the base's weights."""

    def __init__(self, settings: Settings, model: Model, longest: int) -> None:
        self.settings, self.content, self.longest = settings, (model.content(), model.dtype), longest
        self._asleep = self._busy = False
        self._joined = torch.distributed.is_initialized()  # sharded training: the process group is the trainer's
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        eager = built_for_cpu() if settings.enforce_eager is None else settings.enforce_eager
        with _torch_threads_kept():
            from vllm import LLM

            self.llm: Any = LLM(
                model.location,
                revision=model.revision,
                dtype=model.dtype,
                skip_tokenizer_init=True,
                max_model_len=longest,
                max_num_seqs=settings.batch_size,
                tensor_parallel_size=settings.tensor_parallel_size,
                distributed_executor_backend="external_launcher" if self._joined else None,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                kv_cache_memory_bytes=int(settings.cpu_cache_gib * 2**30) if built_for_cpu() else None,
                enforce_eager=eager,
                enable_sleep_mode=settings.sleep,
                enable_prefix_caching=True,
                enable_chunked_prefill=not built_for_cpu(),  # which fails there for requests with a seed
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
            )

    def replace_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite the weights in place, and forget what was computed with the old ones.

        vLLM's processes, if it has any, read them from files in shared memory, for which there must be room.
        RuntimeError if some weights were not among those given.
        """
        if self.settings.tensor_parallel_size == 1:
            with _all_weights_replaced():
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        else:
            folder = Path(tempfile.mkdtemp(prefix="klsweep-weights-", dir=SHARED_MEMORY))
            try:
                _save_shards(weights, folder)
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            finally:
                shutil.rmtree(folder)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")

    def generate(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        """vLLM's answer to each prompt, in order. One that fails leaves requests behind: it is the engine's last."""
        self._busy = True
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = [answer.outputs[0] for answer in self.llm.generate(requests, list(parameters), use_tqdm=False)]
        self._busy = False
        return answers

    def wake(self) -> None:
        """Take the GPU's memory back, if it was given away."""
        if self._asleep:
            self.llm.wake_up()
            self._asleep = False

    def rest(self) -> None:
        """With `sleep`: move the weights to the CPU's memory and drop the cache, so that the trainer has the GPU."""
        if self.settings.sleep and not self._asleep:
            self.llm.sleep(level=1)
            self._asleep = True

    def serves(self, settings: Settings, model: Model, longest: int) -> bool:
        """True if an engine for these would be no other; its weights may be newer."""
        same = (settings, (model.content(), model.dtype)) == (self.settings, self.content)
        return same and longest <= self.longest and not self._busy

    def close(self) -> None:
        """End it, its processes too, and free its memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory, destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        if self._joined:
            destroy_model_parallel()
        else:
            cleanup_dist_env_and_memory()


_engine: VLLMEngine | None = None


def engine(settings: Settings, model: Model, longest: int) -> VLLMEngine:
    """This process's engine, started anew if the one there is was for something else."""
    global _engine
    if _engine is None or not _engine.serves(settings, model, longest):
        release()
        _engine = VLLMEngine(settings, model, longest)
    return _engine


def release() -> None:
    """End this process's engine, if it has one."""
    global _engine
    if _engine is not None:
        _engine.close()
    _engine = None


def built_for_cpu() -> bool:
    """True if the installed vLLM is its build for the CPU, which has a name or a version of its own."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return "+cpu" in version("vllm")


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """vLLM on the CPU puts a function that does nothing in the place of `torch.set_num_threads`."""
    setter, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)


@contextmanager
def _all_weights_replaced() -> Iterator[None]:
    """vLLM only warns of layers that keep their old weights. Rotary embeddings have none."""
    kept: list[str] = []

    def look(record: logging.LogRecord) -> bool:
        if "Failed to load weights" not in record.msg:
            return True
        kept.extend(str(name) for name in record.args or () if not str(name).endswith("RotaryEmbedding"))
        return False

    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    logger.addFilter(look)
    try:
        yield
    finally:
        logger.removeFilter(look)
    if kept:
        raise RuntimeError(f"vLLM did not get new weights for {', '.join(kept)}")


def _save_shards(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write safetensors files of about `SHARD_BYTES`, one after the other."""
    shard: dict[str, Tensor] = {}
    for name, tensor in weights:
        shard[name] = tensor.to("cpu", copy=True).contiguous()  # tied weights share memory, which the format refuses
        if sum(t.nbytes for t in shard.values()) >= SHARD_BYTES:
            save_file(shard, folder / f"{len(list(folder.iterdir())):05d}.safetensors")
            shard = {}
    if shard:
        save_file(shard, folder / f"{len(list(folder.iterdir())):05d}.safetensors")
