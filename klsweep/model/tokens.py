"""Sequences as tensors: prompts padded on the left, responses on the right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Prompts (left-padded to P) and responses (right-padded to T) of B sequences."""

    prompt_ids: Tensor  # [B, P] int64
    prompt_mask: Tensor  # [B, P] int64, 1 on real tokens
    response_ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] float, 1 on generated tokens, end of sequence included

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> "Tokens":
        """Given prompts with a response to each, as token ids."""
        mask = right_padded([[1.0] * len(response) for response in responses], 0.0)
        return cls(*left_padded(prompts, pad_id), right_padded(responses, pad_id), mask)

    def rows(self, index: Tensor | slice) -> "Tokens":
        """The same for a subset of the sequences."""
        return Tokens(self.prompt_ids[index], self.prompt_mask[index], self.response_ids[index], self.mask[index])

    @property
    def lengths(self) -> Tensor:
        """Generated tokens per sequence ``[B]``, float."""
        return self.mask.sum(1)

    @property
    def widths(self) -> Tensor:
        """Tokens of prompt and response together ``[B]``: what a forward pass costs."""
        return self.prompt_mask.sum(1) + self.lengths.long()

    def aligned(self) -> tuple[Tensor, Tensor]:
        """Prompt and response joined without padding between them or on the left, and what predicts a response token.

        Returns: ids ``[B, W]``, padded on the right to the longest sequence; bool ``[B, W]``, true at the position
        before each response token. Read row by row those positions are in the order of ``response_ids[mask]``.
        """
        ids = torch.cat([self.prompt_ids, self.response_ids], 1)
        generated = torch.cat([torch.zeros_like(self.prompt_mask), self.mask.to(self.prompt_mask.dtype)], 1)
        real = generated + torch.cat([self.prompt_mask, torch.zeros_like(self.mask, dtype=generated.dtype)], 1)
        order = real.argsort(dim=1, descending=True, stable=True)[:, : int(self.widths.max())]
        return ids.gather(1, order), generated.gather(1, order).bool().roll(-1, 1)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[prompts, P]`` int64 of prompts of different lengths, padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    return ids, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def right_padded(rows: Sequence[Sequence[float]], value: float) -> Tensor:
    """Rows of different lengths ``[rows, T]``, filled up with `value`: int64 of integers, else float32."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def micro_batches(tokens: Tokens, rows: Tensor, size: int) -> tuple[Tensor, ...]:
    """`rows` in parts of `size` sequences of similar length, so that little of a forward pass is padding."""
    return rows[tokens.widths[rows].argsort(stable=True).cpu()].split(size)
