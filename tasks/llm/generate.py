"""The most probable answers of a model to prompts, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overnight.training.evaluate import predict_in_batches

AT_ONCE = 8  # prompts


@dataclass(frozen=True)
class Generated:
    """ids: without the end token; ended: by the model, not by the limit."""

    ids: list[int]
    ended: bool


@torch.inference_mode()
def generate(
    model: nn.Module, prompts: Sequence[list[int]], ends: Sequence[int], tokens: int
) -> list[Generated]:
    """prompts: token ids; tokens: the most of an answer. Out of memory makes the batches smaller."""
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = dict[int, Generated]()

    def answer(rows: Tensor) -> Tensor:
        chosen = rows.tolist()
        new = continued(model, [prompts[i] for i in chosen], ends, tokens, rows.device)
        found.update(zip(chosen, (cut(ids, ends) for ids in new), strict=True))
        return rows

    predict_in_batches(answer, torch.tensor(order), next(model.parameters()).device, AT_ONCE)
    return [found[i] for i in range(len(prompts))]


def continued(
    model: Any,
    prompts: Sequence[list[int]],
    ends: Sequence[int],
    tokens: int,
    device: torch.device,
    temperature: float = 0.0,
    streamer: Any = None,
) -> list[list[int]]:
    """The new ids of each prompt, those after its end included; temperature 0: the most probable ones.

    streamer: given the prompts, then each row of new ids.
    """
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.tensor([[ends[0]] * (width - len(one)) + one for one in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=temperature > 0,
        temperature=temperature or 1.0,
        eos_token_id=list(ends),
        pad_token_id=ends[0],
        use_cache=True,
    )
    made: Tensor = model.generate(
        input_ids=ids, attention_mask=attention, generation_config=config, streamer=streamer
    )
    new: list[list[int]] = made[:, width:].tolist()
    return new


def cut(ids: list[int], ends: Sequence[int]) -> Generated:
    at = next((i for i, one in enumerate(ids) if one in ends), None)
    return Generated(ids[:at], at is not None)
