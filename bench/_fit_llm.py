"""Language models from their configs: predicted against traced layers, caches and files against facts.

Bars: what is foretold is the whole trace, event by event, so its peak is the same; twice the same; at most 30
CPU-seconds for a LoRA of 3 B parameters and 45 for a QLoRA of 7 B with checkpointing, traced whole; 4 GiB of
memory; a cache of 2048 MiB exactly; weights of 4-bit files within 1 % of the sizes they are published with; a
model of 70 B refused.
"""

import resource
import time
from typing import Any

from overnight.memory.allocator import reserved_bytes
from overnight.memory.architectures.inference import Serving, kv_bytes, refusal
from overnight.memory.architectures.language import Tuning, language_recipe, traced_language
from overnight.memory.architectures.layers import _same
from overnight.memory.architectures.shapes import config_of, shape_of
from overnight.memory.architectures.weights import weight_bytes
from overnight.memory.prediction import silence, traced

MIB, GB, RSS_MIB = 2**20, 10**9, 4096
TRAININGS: dict[str, tuple[Tuning, float]] = {  # name -> what, CPU-seconds of the whole trace at most
    "3B LoRA, 4 x 768": (
        Tuning(model="llama-3.2-3b", method="lora", batch=4, sequence=768, targets="q_proj,v_proj", rank=32),
        30,
    ),
    "3B in full, 4 x 768": (Tuning(model="llama-3.2-3b", batch=4, sequence=768), 30),
    "7B QLoRA, checkpointing, 1 x 512": (Tuning(model="llama-2-7b", method="qlora", checkpointing=True), 45),
}
FILES = {  # GB as published
    ("llama-2-7b", "q4_0"): 3.83,
    ("llama-2-7b", "q4_k_m"): 4.08,
    ("llama-2-13b", "q4_k_m"): 7.87,
    ("llama-2-70b", "q4_0"): 38.87,
    ("llama-2-70b", "q4_k_m"): 41.42,
    ("llama-3-8b", "q4_k_m"): 4.92,
    ("mistral-7b", "q4_k_m"): 4.37,
    ("llama-3.2-3b", "q4_k_m"): 2.02,
}
CACHES = {"llama-2-7b": 2048, "command-r-35b": 5120}  # MiB of 4096 tokens in f16


def measure(only: str) -> int:
    """Print all; 1 when a bar is missed."""
    late = list[str]()
    for name in (name for name in TRAININGS if only in name):
        late += _training(name)
    for (model, way), published in FILES.items():
        error = weight_bytes(shape_of(model), way) / (published * GB) - 1
        late += [f"{model} {way}"] if abs(error) > 0.01 else []
        print(f"{model:14} {way:8} {published:6.2f} GB published, {error:+.2%}")
    for model, mib in CACHES.items():
        found = kv_bytes(shape_of(model), 4096) / MIB
        late += [f"{model} cache"] if found != mib else []
        print(f"{model:14} cache of 4096 tokens: {found:g} MiB, {mib} known")
    said = refusal(Serving.of(model="llama-2-70b", way="q4_0"), 11264)
    print(f"llama-2-70b on 12 GB: {said or 'fits'}")
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    late += ([] if said else ["70B fits"]) + (["memory"] if rss > RSS_MIB else [])
    print(f"\n{rss:.0f} MiB at most; missed: {late or 'none'}")
    return 1 if late else 0


def _training(name: str) -> list[str]:
    tuning, bar = TRAININGS[name]
    layers: Any = config_of(tuning.model)["num_hidden_layers"]
    with silence():
        begun = time.process_time()
        whole = traced(language_recipe(tuning.model_copy(update={"layers": layers})), tuning.batch, "cuda")
        traced_at = time.process_time()
        foretold = traced_language(tuning)
        foretold_at = time.process_time()
        again = traced_language(tuning)
    seconds, short = traced_at - begun, foretold_at - traced_at
    same, twice = _same(foretold, whole), (foretold.events, foretold.sizes) == (again.events, again.sizes)
    peaks = [reserved_bytes(trace) / MIB for trace in (whole, foretold)]
    both = f"{peaks[0]:,.0f} MiB traced in {seconds:.1f} s, {peaks[1]:,.0f} foretold in {short:.1f} s"
    print(f"{name:34} {both}, {len(whole.events):,} events {'the same' if same else 'not the same'}")
    missed = [*([] if same else ["foretold otherwise"]), *([] if twice else ["not the same twice"])]
    return [f"{name}: {problem}" for problem in [*missed, *([f"{seconds:.0f} s"] if seconds > bar else [])]]
