"""`overnight fit --model NAME`: memory of a language model or Stable Diffusion, without a download."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from overnight.cli.fit import Verdict, constants, print_verdicts, row
from overnight.errors import BadInput
from overnight.gpu.card import Card
from overnight.memory.architectures.diffusion import SIDES, ImageGeneration, predict_image_generation
from overnight.memory.architectures.inference import (
    Serving,
    at_once,
    cheaper,
    form,
    most_context,
    predict_inference,
    refusal,
)
from overnight.memory.architectures.language import Tuning, language_recipe, predict_language, traced_language
from overnight.memory.prediction import Constants, silence
from overnight.memory.search import ScaledPredictions

if TYPE_CHECKING:
    from overnight.memory.trace import Trace

# flag -> field of the kind of model
SERVING = {"quant": "way", "sequence": "context"} | {n: n for n in ("batch", "cache", "static", "weights")}
TUNING = ("method", "batch", "sequence", "precision", "checkpointing", "optimizer", "rank", "targets")
PAINTING = ("method", "batch", "size", "precision", "offload", "checkpointing", "rank")
FLAGS = tuple(dict.fromkeys((*TUNING, *PAINTING, *SERVING)))
CHEAPER: tuple[dict[str, Any], ...] = (  # the cheapest first, as far as they are not set already
    {"checkpointing": True},
    {"checkpointing": True, "precision": "bf16"},
    {"checkpointing": True, "precision": "bf16", "optimizer": "adamw8bit"},
    {"checkpointing": True, "precision": "bf16", "method": "lora"},
    {"checkpointing": True, "precision": "bf16", "method": "qlora"},
)
LOWERED = {"precision": ("fp32", "amp"), "method": ("full", "lora")}  # values that take more than the change


def asked(arguments: argparse.Namespace) -> bool:
    """Raises BadInput for a config and a model, neither, or flags of the other."""
    if (arguments.config is None) == (arguments.model is None):
        example = "(overnight fit --model llama-2-7b --method qlora)"
        raise BadInput(f"give either a config (overnight fit vision) or a model {example}")
    given = ", ".join(f"--{name}" for name in FLAGS if getattr(arguments, name, None) is not None)
    if arguments.config is not None and given:
        raise BadInput(f"{given} belongs to --model; a config is changed by key=value, e.g. cnn.batch=64")
    return arguments.config is None


def show(arguments: argparse.Namespace, card: Card) -> int:
    """Raises BadInput."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return print_verdicts([verdict_of(given, card)], card, arguments.json)


def verdict_of(given: dict[str, Any], card: Card) -> Verdict:
    """given: the flags of --model, without what was left out."""
    method = given.get("method", "infer")
    name = str(given["model"]).strip()
    if name.lower() in SIDES:
        values = _values(given, {n: n for n in PAINTING}, f"{name} with method {method}")
        made = _painting(ImageGeneration.of(model=name.lower(), **values), card)
    elif method == "infer":
        values = _values(given, SERVING | {"method": ""}, "method infer")
        made = _serving(Serving.of(model=name, **values), card)
    else:
        values = _values(given, {n: n for n in TUNING}, f"method {method}")
        made = _tuning(Tuning.of(model=name, **values), card)
    return replace(made, lease_mib=min(made.lease_mib, card.budget_mib))


def _values(given: dict[str, Any], fields: Mapping[str, str], what: str) -> dict[str, Any]:
    """Raises BadInput for flags of another kind of model."""
    extra = [f"--{flag}" for flag in FLAGS if flag in given and flag not in fields]
    if extra:
        takes = ", ".join(f"--{flag}" for flag in fields)
        raise BadInput(f"{', '.join(extra)} has no meaning for {what}; it takes {takes}")
    return {field: given[flag] for flag, field in fields.items() if flag in given and field}


def as_options(values: Mapping[str, Any]) -> str:
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in values.items())


def _serving(serving: Serving, card: Card) -> Verdict:
    budget = card.budget_mib
    found = predict_inference(serving, constants(card).context_mib)
    ways = {} if found.fits(budget) else {way: other.mib for way, other in cheaper(serving, budget)}
    why = refusal(serving, budget) or f"up to {most_context(serving, budget):,} tokens fit"
    return row(f"{serving.model} {form(serving)}", found, card, at_once(serving, budget), ways, why)


class _Batches(ScaledPredictions):
    def __init__(self, tuning: Tuning, constants: Constants) -> None:
        with silence():
            super().__init__(language_recipe(tuning), constants)
        self.tuning = tuning

    def trace(self, n: int) -> "Trace":
        return traced_language(self.tuning.model_copy(update={"batch": n}))


def _tuning(tuning: Tuning, card: Card) -> Verdict:
    label = f"{tuning.model} {tuning.method}"
    scaled = _Batches(tuning, constants(card))
    found = scaled.exact(tuning.batch)
    fits = found.fits(card.budget_mib)
    if found.unknown:
        return row(label, found, card)
    best = scaled.largest(card.budget_mib) if tuning.batch > 1 or fits else None
    if fits:
        return row(label, found, card, best)
    ways = {as_options({"batch": best.micro_batch}): best.mib} if best else _cheaper(tuning, card)
    weights_gib = found.parts.get("weights", 0) / 1024
    why = "" if ways else f"{weights_gib:.1f} GiB of weights for {card.budget_mib / 1024:.1f} GiB of the card"
    return row(label, found, card, best, ways, why)


def _cheaper(tuning: Tuning, card: Card) -> dict[str, float]:
    for values in CHEAPER:
        now = {name: getattr(tuning, name) for name in values}
        new = {n: v for n, v in values.items() if now[n] != v and now[n] in LOWERED.get(n, (now[n],))}
        found = predict_language(tuning.model_copy(update=new), constants(card)) if new else None
        if found and found.fits(card.budget_mib):
            return {as_options(new): found.mib}
    return {}


def _painting(painting: ImageGeneration, card: Card) -> Verdict:
    label = f"{painting.model} {painting.method} {painting.side} px"
    found = predict_image_generation(painting, constants(card))
    offloads: list[dict[str, Any]] = [{"offload": "model"}, {"offload": "sequential"}]
    changes = offloads if painting.method == "infer" else [{"checkpointing": True}]
    for values in changes if found.verdict(card.budget_mib) == "does not fit" else ():
        other = predict_image_generation(painting.model_copy(update=values), constants(card))
        if other.fits(card.budget_mib):
            return row(label, found, card, changes={as_options(values): other.mib})
    return row(label, found, card)
