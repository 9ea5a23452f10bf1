"""A folder in Hugging Face format of trained weights, and the proof that it is the network that was trained."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from klsweep.config.build import RunSpec
from klsweep.model.parallel import moved
from klsweep.model.policy import Policy
from klsweep.model.tokens import Tokens
from klsweep.objective.objective import build_objective
from klsweep.record.files import read_rows
from klsweep.record.folder import RunFolder
from klsweep.rollout.hf import HF
from klsweep.training import memory
from klsweep.training.trainer import Trainer

PROBES = 4  # recorded items of each suite whose log-probabilities are compared
LONGEST = 512  # tokens of a recorded response that are compared


class Verdict(NamedTuple):
    """What reading an exported folder again showed; `largest` is the largest difference of a token's log-probability.

    In nats; more than `allowed` means that the folder is not what was trained.
    """

    sequences: int
    tokens: int
    largest: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.largest <= self.allowed  # not so for NaN


def export_weights(spec: RunSpec, run: RunFolder, update: int, milestone: Path | None, target: Path) -> Verdict:
    """Write the weights that `run` has kept after `update` to `target`, and compare what can be read from it.

    They are in `milestone`, in HF format, else in the run's last checkpoint. FileNotFoundError if they are damaged.
    """
    trained = _trainer(spec)
    if milestone is not None:
        trained.load_model(milestone)
    else:
        trained.load_weights(run, update)
    tokens = _probes(spec, run, trained.policy)
    before = trained.score(tokens).old_logprobs
    if (template := spec.model.template_text()) is not None:  # which need not be the tokenizer's own
        trained.policy.tokenizer.chat_template = template
    trained.write_model(target)
    generation_config(spec, trained.policy).save_pretrained(target)  # in the place of the base's
    del trained
    memory.release()
    written = dataclasses.replace(spec.model, path=str(target), revision=None)
    after = _trainer(dataclasses.replace(spec, model=written)).score(tokens).old_logprobs
    return _verdict(before, after, tokens, _allowed(spec, before.device.type == "cpu"))


def _trainer(spec: RunSpec) -> Trainer:
    """What scores a run's tokens; responses are not sampled, so no other engine is started."""
    temperature, top_p = spec.rollout.temperature, spec.rollout.top_p
    rollout = HF(temperature=temperature, top_p=top_p, batch_size=spec.eval.batch_size, ignore_stop=False)
    plain = dataclasses.replace(spec, rollout=rollout)
    return Trainer(plain, build_objective(*spec.objective_parts))


def generation_config(spec: RunSpec, policy: Policy) -> Any:
    """How the policy was sampled, and nothing of the base's besides: no top-k (unset, it is 50), no penalties."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=spec.rollout.temperature,
        top_p=spec.rollout.top_p,
        top_k=0,
        max_new_tokens=spec.task.max_response_tokens,
        bos_token_id=policy.network.generation_config.bos_token_id,
        eos_token_id=list(policy.stop_ids),
        pad_token_id=policy.tokenizer.pad_token_id,
    )


def _probes(spec: RunSpec, run: RunFolder, policy: Policy) -> Tokens:
    """Prompts of the evaluation and the responses that are on record for them."""
    prompts, texts = zip(*_recorded(spec, run), strict=True)
    encoded = [policy.tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST] for text in texts]
    responses = [[*ids, policy.stop_ids[0]] for ids in encoded]
    tokens = Tokens.of(policy.encode(prompts), responses, policy.tokenizer.pad_token_id)
    return moved(tokens, policy.network.device)


def _recorded(spec: RunSpec, run: RunFolder) -> Iterator[tuple[str, str]]:
    for name, suite in spec.eval.suites.items():
        rows = list(read_rows(run.evaluations / f"{name}.jsonl"))[-len(suite.eval_items()) :]
        for item, row in list(zip(suite.eval_items(), rows, strict=False))[:PROBES]:
            yield item.prompt, row["greedy_response"]


def _verdict(before: Tensor, after: Tensor, tokens: Tokens, allowed: float) -> Verdict:
    apart = torch.where(tokens.mask.bool(), (after - before).abs(), 0.0)
    return Verdict(len(before), int(tokens.mask.sum()), apart.max().item(), allowed)


def _allowed(spec: RunSpec, repeats_itself: bool) -> float:
    """Nats by which a token's log-probability may differ: an adapter that is added to its weights is rounded anew."""
    adapted = spec.adapter.rank is not None
    if adapted and spec.model.dtype == "bfloat16":
        return 0.25
    return 0.0 if repeats_itself and not adapted else 1e-4
