"""Memory of a language model that answers, by arithmetic: weights + key-value cache + one pass + context.

transformers grows its cache by copying it, which was seen to take twice that; a static cache and llama.cpp
take it once.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from overnight.gpu.cuda_context import UNMEASURED_MIB
from overnight.memory.architectures import Question
from overnight.memory.architectures.shapes import Shape, shape_of
from overnight.memory.architectures.weights import TRANSFORMERS, WAYS, Weights, read_header, weight_bytes

if TYPE_CHECKING:
    from overnight.memory.prediction import MemoryEstimate

MIB, GIB = 2**20, 2**30
CACHE = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}  # bytes of a number
GROWN = 2  # times the cache, where it grows by copies
SLICE = 512  # tokens that llama.cpp computes at a time
MARGIN, MARGIN_MIB = 1.01, 32.0  # of the upper edge
GGUF = {  # sizes of a Shape, and what the header of a GGUF calls them
    "hidden": "embedding_length",
    "inner": "feed_forward_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocab": "vocab_size",
}
SEVERAL = (".gguf", ".safetensors", ".index.json")


class Serving(Question):
    model: str  # a name of shapes.MODELS, a config.json, or a .gguf
    way: str = Field("fp16", description=f"how the weights are kept: {', '.join(WAYS)}")
    shape: Shape | None = None  # where it is known already, instead of the model's own
    weights: str | None = None  # a .gguf, .safetensors or index that has the weights: its header is read
    context: int = Field(4096, ge=1, le=2**24)  # tokens of prompt and answer together
    batch: int = Field(1, ge=1, le=2**16)
    cache: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "f16"
    static: bool = False  # transformers with a static cache

    @field_validator("way")
    @classmethod
    def _known(cls, way: str) -> str:
        if way.lower() not in WAYS:
            raise ValueError(f"quantisation {way!r} is not known; there are {', '.join(WAYS)}")
        return way.lower()


def kv_bytes(shape: Shape, tokens: int, cache: str = "f16", batch: int = 1) -> int:
    """2 x layers x heads of keys x width of a head x bytes x tokens."""
    return round(2 * shape.layers * shape.kv_heads * shape.head_dim * CACHE[cache] * tokens * batch)


@dataclass(frozen=True)
class _Model:
    shape: Shape
    weights: int
    llama_cpp: bool


def _model(serving: Serving) -> _Model:
    if serving.shape is not None:
        size = weight_bytes(serving.shape, serving.way)
        return _Model(serving.shape, size, serving.way not in TRANSFORMERS)
    path = Path(serving.weights or serving.model)
    header = read_header(path) if serving.weights or path.name.endswith(SEVERAL) else None
    if header is not None and header.values:
        return _Model(_of_gguf(header, path), header.bytes, True)
    shape = shape_of(serving.model)
    size = header.bytes if header else weight_bytes(shape, serving.way)
    return _Model(shape, size, serving.way not in TRANSFORMERS)


def shape_of_gguf(path: Path) -> Shape:
    """Raises BadInput."""
    return _of_gguf(read_header(path), path)


def _of_gguf(header: Weights, path: Path) -> Shape:
    kind = header.values.get("general.architecture")
    sizes = {name: header.values.get(f"{kind}.{key}") for name, key in GGUF.items()}
    if isinstance(sizes["kv_heads"], list):  # a number for each layer
        sizes["kv_heads"] = max(sizes["kv_heads"], default=0)
    if sizes["vocab"] is None:
        tokens = header.values.get("tokenizer.ggml.tokens")
        sizes["vocab"] = len(tokens) if isinstance(tokens, list) and tokens else 32000
    return Shape.of(str(path), str(kind), header.tied, sizes)


def form(serving: Serving) -> str:
    return "as the file has them" if serving.weights or serving.model.endswith(SEVERAL) else serving.way


def _parts(serving: Serving) -> dict[str, float]:
    """Bytes by kind; `scores` only where attention is computed without a fused kernel."""
    model = _model(serving)
    shape, tokens = model.shape, serving.context * serving.batch
    cache = kv_bytes(shape, serving.context, serving.cache, serving.batch)
    if model.llama_cpp:
        once = min(SLICE, serving.context)
        plain = 4 * once * (shape.vocab + shape.hidden)  # logits of the slice
        scores = 4 * once * (shape.heads * serving.context + serving.context + 4 * shape.hidden)
        return {"weights": model.weights, "cache": cache, "pass": plain, "scores": max(0, scores - plain)}
    half = 4 if serving.way == "fp32" else 2
    wide = max(3 * shape.inner, 4 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim // 2)
    # of the prompt, all at once
    work = tokens * half * (2 * shape.hidden + wide) + serving.batch * shape.vocab * (half + 4)
    # the largest matrix, made whole again
    whole = 2 * shape.inner * shape.hidden if serving.way in ("nf4", "int8") else 0
    grown = cache * (0 if serving.static else GROWN - 1)
    return {"weights": model.weights, "cache": cache, "copies": grown, "pass": work + whole}


def predict_inference(serving: Serving, context_mib: float = UNMEASURED_MIB) -> "MemoryEstimate":
    """Answering with the context full; the upper edge is without a fused attention kernel.

    Raises BadInput.
    """
    from overnight.memory.prediction import MemoryEstimate

    parts = {kind: size / MIB for kind, size in _parts(serving).items()}
    scores = parts.pop("scores", 0.0)
    live = sum(parts.values())
    high = (live + scores) * MARGIN + MARGIN_MIB + context_mib
    low = parts["weights"] + parts["cache"] + context_mib
    parts |= {"context": context_mib}
    return MemoryEstimate(serving.batch, live + context_mib, low, high, high, parts, "generate")


def most_context(serving: Serving, budget_mib: float) -> int:
    """The longest whose upper edge is within the budget; 0 when none is."""
    return _most(serving, "context", 2**20, budget_mib)


def _most(serving: Serving, key: str, most: int, budget_mib: float) -> int:
    def too_large(n: int) -> bool:
        return predict_inference(serving.model_copy(update={key: n})).needed_mib > budget_mib

    return bisect_left(range(1, most + 1), True, key=too_large)


def layers_that_fit(serving: Serving, budget_mib: float) -> tuple[int, int]:
    """(layers that fit, all of them); llama.cpp can leave the others to the host."""
    model = _model(serving)
    tensors = [(name.startswith("blk."), math.prod(size)) for name, size in model.shape.tensors()]
    share = sum(count for inside, count in tensors if inside) / sum(count for _, count in tensors)
    layers = model.shape.layers
    cache = kv_bytes(model.shape, serving.context, serving.cache, serving.batch)
    each = (model.weights * share + cache) / layers / MIB * MARGIN
    rest = predict_inference(serving).needed_mib - each * layers
    return max(0, min(layers, int((budget_mib - rest) / each))), layers


def refusal(serving: Serving, budget_mib: float) -> str:
    """Why it does not fit; empty when it does."""
    found = predict_inference(serving)
    if found.fits(budget_mib):
        return ""
    count, layers = layers_that_fit(serving, budget_mib)
    gib = found.parts["weights"] * MIB / GIB
    return (
        f"{gib:.1f} GiB of weights ({form(serving)}) for {budget_mib / 1024:.1f} GiB of the card; "
        f"{count} of {layers} layers would fit"
    )


def cheaper(serving: Serving, budget_mib: float) -> list[tuple[str, "MemoryEstimate"]]:
    """Changes that make it fit, the least first: the cache, then the context, then the weights."""
    shorter = most_context(serving, budget_mib)
    smaller = TRANSFORMERS[3:] if serving.way in TRANSFORMERS else WAYS[WAYS.index(serving.way) + 1 :]
    ways = list[tuple[str, dict[str, Any]]]()
    if serving.way not in TRANSFORMERS:
        ways.append(("--cache q8_0", {"cache": "q8_0"}))
    if 512 <= shorter < serving.context:
        ways.append((f"--sequence {shorter}", {"context": shorter}))
    if form(serving) == serving.way:
        ways += [(f"--quant {way}", {"way": way, "weights": None}) for way in smaller]
    tried = [(what, predict_inference(serving.model_copy(update=values))) for what, values in ways]
    return [(what, found) for what, found in tried if found.fits(budget_mib)]


def at_once(serving: Serving, budget_mib: float) -> "MemoryEstimate | None":
    """Of the largest batch that fits; None: not one."""
    most = _most(serving, "batch", 4096, budget_mib)
    return predict_inference(serving.model_copy(update={"batch": most})) if most else None
