"""Memory of a model that answers, from the header or the config of its weights: nothing is fetched for it."""

from collections.abc import Sequence
from functools import partial

from overnight.data.pretrained import Pretrained
from overnight.errors import DataError
from overnight.files import read_json
from overnight.memory.architectures.inference import (
    Serving,
    at_once,
    layers_that_fit,
    most_context,
    predict_inference,
    shape_of_gguf,
)
from overnight.memory.architectures.shapes import Shape, shape_from
from overnight.memory.formulas import MIB, Formula

GIB_MIB = 1024
SMALLER = ("int8", "nf4")
GGUF = {"fp32": "f16", "fp16": "f16", "bf16": "f16", "int8": "q8_0", "nf4": "q4_k_m"}  # of about as many bits
LOGIT = 3 * 4  # bytes of a score: as computed, as float32, and its logarithm
LEAST_CONTEXT = 256


def shape_of(weights: Pretrained) -> Shape:
    """Of the files where they are here, else of the entry's `config`. Raises DataError, BadInput."""
    place = next(iter(weights.found()), None)
    if place is not None and weights.form == "gguf":
        return shape_of_gguf(weights.locate())
    values = read_json(place / "config.json") if place else weights.config
    if not values:
        raise DataError(
            f"{weights.called}: is not here, and its entry has no `config`; write that of its config.json, "
            f"or `overnight weights fetch {weights.name}`"
        )
    return shape_from(values.get("text_config", values), weights.name)


def answering(weights: Pretrained, quant: str, context: int, parallel: int) -> Formula:
    serving = _serving(weights, quant, context, parallel)
    found = predict_inference(serving, 0.0)
    least = predict_inference(serving.model_copy(update={"batch": 1}), 0.0)
    parts = {kind: mib for kind, mib in found.parts.items() if mib}
    why = f"weights in {quant}, {parallel} x {context:,} tokens"
    advice = partial(_advice, serving)
    return Formula(found.low_mib, found.high_mib, parts=parts, why=why, least=least.high_mib, advice=advice)


def comparing(weights: Pretrained, quants: Sequence[str], window: int) -> Formula:
    found = [answering(weights, quant, window, 1) for quant in quants]
    logits = LOGIT * window * shape_of(weights).vocab / MIB
    most = max(found, key=lambda one: one.high)
    return Formula(
        most.low,
        most.high + logits,
        parts=most.parts | {"logits": logits},
        why=f"the largest of {', '.join(quants)}, one at a time, on {window:,} tokens",
        least=most.high + logits,
        advice=partial(
            _fewer, [(quant, one.high + logits) for quant, one in zip(quants, found, strict=True)]
        ),
    )


def on_the_processor(weights: Pretrained, context: int, parallel: int) -> Formula:
    """Nothing of the card; host_mib where the file, or the entry's `bytes` and `config`, are known."""
    why = "llama.cpp computes on the processor: nothing of the card"
    if weights.found():
        path = weights.locate()
        serving = Serving.of(model=str(path), context=context, batch=parallel)
        return Formula(host_mib=predict_inference(serving, 0.0).mib, why=why)
    return Formula(host_mib=sum(file.bytes or 0 for file in weights.files) / MIB, why=why)


def _serving(weights: Pretrained, quant: str, context: int, parallel: int) -> Serving:
    cache = "f32" if quant == "fp32" else "f16"
    shape = shape_of(weights)
    return Serving.of(
        model=weights.name, shape=shape, way=quant, context=context, batch=parallel, cache=cache
    )


def _advice(serving: Serving, budget_mib: float) -> str:
    """What would fit: fewer bits, fewer prompts or tokens at once, or some layers in llama.cpp."""
    weights = predict_inference(serving).parts["weights"]
    gib, room_gib = weights / GIB_MIB, budget_mib / GIB_MIB
    said = f"{gib:.1f} GiB of weights in {serving.way} for {room_gib:.1f} GiB of the card"
    ways = [f"{change} takes {mib:,.0f} MiB" for change, mib in _changes(serving, budget_mib)]
    if ways:
        return f"{said}; what makes it fit: {' or '.join(ways)}"
    way = GGUF[serving.way]
    gguf = serving.model_copy(update={"way": way, "batch": 1, "cache": "f16"})
    layers, all_layers = layers_that_fit(gguf, budget_mib)
    return (
        f"{said}; as a GGUF in {way} {layers} of {all_layers} layers would fit, with the rest on the "
        f"processor: start a llama-server of your own with -ngl {layers} by configs/llama_server.yaml"
    )


def _changes(serving: Serving, budget_mib: float) -> list[tuple[str, float]]:
    """Changes of the config that make it fit -> MiB then."""
    tried = list[tuple[str, Serving]]()
    batch = at_once(serving, budget_mib)
    if batch and batch.micro_batch < serving.batch:
        update = {"batch": batch.micro_batch}
        tried.append((f"ask.parallel={batch.micro_batch}", serving.model_copy(update=update)))
    one = serving.model_copy(update={"batch": 1})
    context = most_context(one, budget_mib)
    if not batch and LEAST_CONTEXT <= context < serving.context:
        tried.append((f"model.context={context}", one.model_copy(update={"context": context})))
    at = SMALLER.index(serving.way) + 1 if serving.way in SMALLER else 0
    tried += [
        (f"model.quant={way}", serving.model_copy(update={"way": way, "cache": "f16"}))
        for way in SMALLER[at:]
    ]
    found = [(change, predict_inference(other).needed_mib) for change, other in tried]
    return [(change, mib) for change, mib in found if mib <= budget_mib]


def _fewer(quants: Sequence[tuple[str, float]], budget_mib: float) -> str:
    fitting = [quant for quant, mib in quants if mib <= budget_mib]
    return f"leave out of compare.quants all but {', '.join(fitting)}" if fitting else "leave out compare"
