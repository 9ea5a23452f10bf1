"""The floor: an update's calls in a bare loop, `python -m benchmarks.contestants.bare WORK`.

Generation, reference forward, forward and backward, optimiser step; no old log-probabilities, no metrics, no record.
With work["generate"] = "transformers" the generation is `model.generate`, else klsweep's sampler.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants.ours import spec_of
from benchmarks.contestants.turns import Turns
from klsweep.model.policy import Policy, load_policy
from klsweep.model.tokens import Tokens
from klsweep.rollout.random import Stream, prompt_order, uniforms


def chosen_logprobs(network: Any, tokens: Tokens) -> Tensor:
    """Log-probabilities of the response tokens ``[B, T]``."""
    length = tokens.response_ids.shape[1]
    attention = torch.cat([tokens.prompt_mask, tokens.mask.long()], 1)
    logits = network(
        input_ids=torch.cat([tokens.prompt_ids, tokens.response_ids], 1),
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=length + 1,
        use_cache=False,
    ).logits[:, :-1]
    return -torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens.response_ids, reduction="none")


def plain_generation(policy: Policy, texts: list[str], group: int, limit: int) -> Tokens:
    """Sampled by transformers' `generate`."""
    prompts = policy.tokenizer(texts, return_tensors="pt", padding=True)
    width = prompts["input_ids"].shape[1]
    ids = policy.network.generate(
        **prompts,
        do_sample=True,
        top_k=0,
        num_return_sequences=group,
        max_new_tokens=limit,
        pad_token_id=policy.tokenizer.pad_token_id,
    )
    response = ids[:, width:]
    ended = torch.isin(response, torch.tensor(policy.stop_ids))
    mask = ((ended.cumsum(1) - ended.long()) == 0).float()
    return Tokens(ids[:, :width], prompts["attention_mask"].repeat_interleave(group, 0), response, mask)


def main(work: dict) -> None:
    torch.set_num_threads(1)
    spec = spec_of(work)
    policy, reference = load_policy(spec.model), load_policy(spec.model).network
    sampler = spec.rollout.bind(policy, 0)
    optimiser = torch.optim.AdamW(policy.network.parameters(), lr=spec.train.lr)
    items, group, limit = spec.task.train_items(), spec.algorithm.group_size, spec.task.max_response_tokens
    turns, update = Turns(), 0
    while turns.wait():
        update += 1
        prompts = prompt_order(0, update, spec.train.prompts_per_update, len(items))
        texts = [items[p].prompt for p in prompts]
        if work["generate"] == "transformers":
            tokens = plain_generation(policy, texts, group, limit)
        else:
            draws = uniforms(0, Stream.ROLLOUT, update, range(len(prompts)), group, limit)
            tokens = sampler.generate(policy.encode(texts), group, draws, 1.0, 1.0).tokens
        with torch.no_grad():
            chosen_logprobs(reference, tokens)
        (-(chosen_logprobs(policy.network, tokens) * tokens.mask).sum() / len(tokens.mask)).backward()
        torch.nn.utils.clip_grad_norm_(policy.network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    turns.answer()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
