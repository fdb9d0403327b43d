"""Published readings of adapters on a Llama of 3 B parameters, and their predictions from a config.

Readings: huggingface/peft, method_comparison/MetaMathQA (torch 2.13, bf16, batch 4, sequences of at most 768
tokens, no checkpointing, AdamW, gradients clipped to 1), GiB reserved at most. Predicted at exactly 4 x 768;
the longest batch of the runs is not published.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from overnight.memory.allocator import reserved_bytes
from overnight.memory.modules import as_recipe
from overnight.memory.prediction import traced

GIB = 2**30
BATCH, LENGTH = 4, 768
QV, MLP = ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]
ROWS: dict[str, tuple[float, str, dict[str, Any]]] = {  # name -> GiB published, peft's config, its values
    "LoRA r32 q,v": (20.76, "LoraConfig", {"r": 32, "target_modules": QV}),
    "LoRA r64 q,v": (21.00, "LoraConfig", {"r": 64, "target_modules": QV}),
    "LoRA r10 gate,up,down": (23.00, "LoraConfig", {"r": 10, "target_modules": MLP}),
    "DoRA r32 q,v": (22.85, "LoraConfig", {"r": 32, "use_dora": True, "target_modules": QV}),
    "IA3": (21.64, "IA3Config", {}),
    "LN tuning": (19.73, "LNTuningConfig", {}),
    "VeRA r256": (20.14, "VeraConfig", {"r": 256, "target_modules": QV}),
    "prompt tuning 200": (22.72, "PromptTuningConfig", {"num_virtual_tokens": 200}),
    "MiSS r64": (18.88, "MissConfig", {"r": 64, "target_modules": QV}),
    "GraLoRA r32 k2": (20.77, "GraloraConfig", {"r": 32, "gralora_k": 2, "target_modules": QV}),
    "C3A b64 q,v": (20.54, "C3AConfig", {"block_size": 64, "target_modules": QV}),
    "RoAd 2": (21.25, "RoadConfig", {"variant": "road_2"}),
    "FourierFT 1000 q,v": (22.03, "FourierFTConfig", {"n_frequency": 1000, "target_modules": QV}),
    "full fine-tune": (36.20, "", {}),
}


def rows(only: str = "") -> Iterator[dict[str, Any]]:
    """Each reading beside its prediction and 4 x the weights; needs transformers and peft, no download."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name, (published, kind, values) in ROWS.items():
        if only not in name:
            continue
        module = _module(kind, values)
        inputs = {
            k: torch.empty(BATCH, LENGTH, dtype=torch.long, device="meta")
            for k in ("input_ids", "attention_mask", "labels")
        }
        trace = traced(replace(as_recipe(module, inputs), clip=1.0), 1, "cuda")
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        found = {
            "live": trace.peak(512).bytes,
            "expandable": reserved_bytes(trace),
            "default": reserved_bytes(trace, expandable=False),
        }
        yield {"case": name, "published_gib": published, "four_weights_gib": 4 * weights / GIB} | {
            k: v / GIB for k, v in found.items()
        }


def _module(kind: str, values: dict[str, Any]) -> torch.nn.Module:
    """The language model of Llama-3.2-3B's shape with an adapter, on the meta device."""
    import peft
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        return (
            peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **values))
            if kind
            else model
        )
