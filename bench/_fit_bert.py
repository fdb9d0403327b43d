"""Published readings of a BERT-large classifier, 512 tokens, on a 16 GB V100 with software of early 2022.

Readings: the performance guide of transformers of that year, MiB by nvidia-smi, of which 1343 are the
context. Predicted in the mode of
that time: optimizers weight by weight, gradients that are zeroed and kept (as in accumulation), default
segments, eager attention.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from overnight.memory.allocator import reserved_bytes
from overnight.memory.modules import as_recipe
from overnight.memory.prediction import traced

CONTEXT_MIB, MIB = 1343, 2**20
ROWS: dict[
    str, tuple[int, int, bool, str, Any]
] = {  # name -> MiB published, batch, checkpointing, precision, optimizer
    "batch 1, accumulated 4": (8681, 1, False, "fp32", torch.optim.AdamW),
    "the same, checkpointing": (6775, 1, True, "fp32", torch.optim.AdamW),
    "the same, fp16": (7275, 1, True, "fp16", torch.optim.AdamW),
    "the same, Adafactor": (4847, 1, True, "fp16", torch.optim.Adafactor),
    "batch 4": (14949, 4, False, "fp32", torch.optim.AdamW),
    "batch 4, Adafactor": (12295, 4, False, "fp32", torch.optim.Adafactor),
    "batch 4, fp16": (13939, 4, False, "fp16", torch.optim.AdamW),
}
BARS = {1: 0.05, 4: 0.15}


def rows(only: str = "") -> Iterator[dict[str, Any]]:
    """Each reading beside its prediction; needs transformers, downloads nothing."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    config = transformers.BertConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        attn_implementation="eager",
    )
    for name, (published, batch, checkpointing, precision, optimizer) in ROWS.items():
        if only not in name:
            continue
        with torch.device("meta"):
            model = transformers.BertForSequenceClassification(config)
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = {
            k: torch.empty(batch, 512, dtype=torch.long, device="meta")
            for k in ("input_ids", "attention_mask")
        }
        inputs["labels"] = torch.empty(batch, dtype=torch.long, device="meta")
        recipe = as_recipe(
            model,
            inputs,
            optimizer=partial(optimizer, lr=1e-5, foreach=False),
            precision=precision,
            accumulate=2,
        )
        reserved = (
            reserved_bytes(traced(replace(recipe, clip=1.0), 1, "cuda"), expandable=False) / MIB + CONTEXT_MIB
        )
        yield {"case": name, "published_mib": published, "predicted_mib": reserved, "bar": BARS[batch]}
