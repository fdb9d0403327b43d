"""Memory of a language model that answers, by arithmetic: weights + key-value cache + one pass + context.

    predict_inference(Serving(model="llama-2-13b", way="q4_k_m", context=4096)) -> Prediction

The cache is exact: 2 x layers x heads of keys x width of a head x bytes x tokens. transformers grows its
cache by copying it, which was seen to take twice that; a static cache and llama.cpp take it once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from overnight.config import Values
from overnight.errors import BadInput
from overnight.memory.architectures import checked
from overnight.memory.architectures.shapes import Shape, shape_of
from overnight.memory.architectures.weights import TRANSFORMERS, WAYS, Weights, read_header, weight_bytes

if TYPE_CHECKING:
    from overnight.memory.prediction import Prediction

MIB, GIB = 2**20, 2**30
CACHE = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}  # bytes of a number
GROWN = 2  # times the cache, where it grows by copies
SLICE = 512  # tokens that llama.cpp computes at a time
SEVERAL = (".gguf", ".safetensors", ".index.json")


class Serving(Values):
    """Which model, in what form, for how many tokens."""

    model: str = Field(description="a name of shapes.MODELS, a config.json, or a .gguf")
    way: str = Field("fp16", description=f"how the weights are kept: {', '.join(WAYS)}")
    weights: str | None = Field(
        None, description="a .gguf, .safetensors or index that has the weights: its header is read"
    )
    context: int = Field(4096, ge=1, le=2**24, description="tokens of prompt and answer together")
    batch: int = Field(1, ge=1, le=2**16)
    cache: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "f16"
    static: bool = Field(False, description="transformers with a static cache")

    @classmethod
    def of(cls, **values: Any) -> "Serving":
        """The same with every mistake in one BadInput."""
        found = checked(cls, **values)
        way = found.way.lower()
        if way not in WAYS:
            raise BadInput(f"quantisation {found.way!r} is not known; there are {', '.join(WAYS)}")
        return found.model_copy(update={"way": way})


def kv_bytes(shape: Shape, tokens: int, cache: str = "f16", batch: int = 1) -> int:
    """The cache of keys and values, exactly."""
    return round(2 * shape.layers * shape.kv_heads * shape.head_dim * CACHE[cache] * tokens * batch)


@dataclass(frozen=True)
class _Model:
    """What the arithmetic needs of a model."""

    shape: Shape
    weights: int
    llama_cpp: bool


def _model(serving: Serving) -> _Model:
    path = Path(serving.weights or serving.model)
    header = read_header(path) if serving.weights or path.name.endswith(SEVERAL) else None
    if header is not None and header.values:
        return _Model(_of_gguf(header, path), header.bytes, True)
    shape = shape_of(serving.model)
    return _Model(
        shape, header.bytes if header else weight_bytes(shape, serving.way), serving.way not in TRANSFORMERS
    )


def _of_gguf(header: Weights, path: Path) -> Shape:
    """The sizes in a GGUF's own header."""
    kind = header.values.get("general.architecture")
    sizes = {
        "hidden": "embedding_length",
        "inner": "feed_forward_length",
        "layers": "block_count",
        "heads": "attention.head_count",
    }
    found = {name: header.values.get(f"{kind}.{key}") for name, key in sizes.items()}
    missing = [sizes[name] for name, value in found.items() if not isinstance(value, int) or value < 1]
    if missing:
        raise BadInput(
            f"{path}: its header says nothing usable of {', '.join(missing)}, so the cache cannot be known"
        )
    heads, hidden = found["heads"], found["hidden"]
    kv = header.values.get(f"{kind}.attention.head_count_kv", heads)
    kv = max(kv, default=0) if isinstance(kv, list) else kv  # a number for each layer
    tokens = header.values.get("tokenizer.ggml.tokens")
    words = (
        header.values.get(f"{kind}.vocab_size") or (len(tokens) if isinstance(tokens, list) else 0) or 32000
    )
    width = header.values.get(f"{kind}.attention.key_length") or hidden // heads  # type: ignore[operator]
    whole: dict[str, Any] = {**found, "kv_heads": kv, "head_dim": width, "vocab": words}
    return Shape(str(kind), tied=False, **whole)


def form(serving: Serving) -> str:
    """How the weights are kept, in a word."""
    return "as the file has them" if serving.weights or serving.model.endswith(SEVERAL) else serving.way


def parts_of(serving: Serving) -> dict[str, float]:
    """MiB by kind; `scores` are there only where attention is computed without a fused kernel.

    Raises BadInput.
    """
    model = _model(serving)
    return {kind: size / MIB for kind, size in _parts(serving, model).items()}


def _parts(serving: Serving, model: _Model) -> dict[str, float]:
    shape, tokens = model.shape, serving.context * serving.batch
    cache = kv_bytes(shape, serving.context, serving.cache, serving.batch)
    if model.llama_cpp:
        once = min(SLICE, serving.context)
        plain = 4 * once * (shape.vocab + shape.hidden)  # logits of the slice
        scores = 4 * once * (shape.heads * serving.context + serving.context + 4 * shape.hidden)
        return {"weights": model.weights, "cache": cache, "pass": plain, "scores": max(0, scores - plain)}
    half = 4 if serving.way == "fp32" else 2
    wide = max(3 * shape.inner, 4 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim // 2)
    work = tokens * half * (2 * shape.hidden + wide) + serving.batch * shape.vocab * (
        half + 4
    )  # of the prompt, all at once
    whole = (
        2 * shape.inner * shape.hidden if serving.way in ("nf4", "int8") else 0
    )  # the largest matrix, made whole again
    grown = cache * (0 if serving.static else GROWN - 1)
    return {"weights": model.weights, "cache": cache, "copies": grown, "pass": work + whole}


def predict_inference(
    serving: Serving, context_mib: float | None = None, margin: float = 0.01, margin_mib: float = 32.0
) -> "Prediction":
    """The peak of answering with the context full; the upper edge is without a fused attention kernel.

    Raises BadInput.
    """
    from overnight.memory.prediction import Constants, Prediction

    parts = parts_of(serving)
    context = Constants().context_mib if context_mib is None else context_mib
    scores = parts.pop("scores", 0.0)
    mib = sum(parts.values()) + context
    high = (mib + scores - context) * (1 + margin) + margin_mib + context
    low = parts["weights"] + parts["cache"] + context
    return Prediction(
        "cuda",
        serving.batch,
        mib,
        low,
        high,
        high,
        mib - context,
        {**parts, "context": context},
        "generate",
        "",
    )


def most_context(serving: Serving, budget_mib: float, most: int = 2**20) -> int:
    """The longest context whose upper edge is within the budget; 0 when none is."""
    return _most(
        lambda n: predict_inference(serving.model_copy(update={"context": n})).needed_mib <= budget_mib, most
    )


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number that fits, where all smaller ones do."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def layers_that_fit(serving: Serving, budget_mib: float) -> tuple[int, int]:
    """How many layers of how many fit, the others being left to the host as llama.cpp can."""
    model = _model(serving)
    tensors = [(name.startswith("blk."), math.prod(size)) for name, size in model.shape.tensors()]
    share = sum(count for inside, count in tensors if inside) / sum(count for _, count in tensors)
    each = (
        (model.weights * share + kv_bytes(model.shape, serving.context, serving.cache, serving.batch))
        / model.shape.layers
        / MIB
    )
    rest = predict_inference(serving).needed_mib - each * model.shape.layers * 1.01
    return max(0, min(model.shape.layers, int((budget_mib - rest) / (each * 1.01)))), model.shape.layers


def refusal(serving: Serving, budget_mib: float) -> str:
    """Why it does not fit, in a sentence; empty when it does."""
    found = predict_inference(serving)
    if found.fits(budget_mib):
        return ""
    count, layers = layers_that_fit(serving, budget_mib)
    gib = found.parts["weights"] * MIB / GIB
    return (
        f"{gib:.1f} GiB of weights ({form(serving)}) for {budget_mib / 1024:.1f} GiB of the card; "
        f"{count} of {layers} layers would fit"
    )


def cheaper(serving: Serving, budget_mib: float) -> list[tuple[str, "Prediction"]]:
    """What to change so that it fits, the least first: the cache, then the context, then the weights."""
    shorter = most_context(serving, budget_mib)
    smaller = TRANSFORMERS[3:] if serving.way in TRANSFORMERS else WAYS[WAYS.index(serving.way) + 1 :]
    ways: list[tuple[str, dict[str, Any]]] = (
        [("--cache q8_0", {"cache": "q8_0"})] if serving.way not in TRANSFORMERS else []
    )
    ways += [(f"--sequence {shorter}", {"context": shorter})] if 512 <= shorter < serving.context else []
    ways += [
        (f"--quant {way}", {"way": way, "weights": None}) for way in smaller if form(serving) == serving.way
    ]
    tried = [(what, predict_inference(serving.model_copy(update=values))) for what, values in ways]
    return [(what, found) for what, found in tried if found.fits(budget_mib)]


def at_once(serving: Serving, budget_mib: float) -> "Prediction | None":
    """Of the largest batch that fits; None: not one."""
    most = _most(
        lambda n: predict_inference(serving.model_copy(update={"batch": n})).needed_mib <= budget_mib, 4096
    )
    return (
        replace(predict_inference(serving.model_copy(update={"batch": most})), micro_batch=most)
        if most
        else None
    )
