"""`overnight fit --model NAME`: memory of a language model or Stable Diffusion, without a download."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from overnight.cli.fit import Verdict, context_mib, print_verdicts
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
from overnight.memory.prediction import silence
from overnight.memory.request import ROUND_MIB
from overnight.memory.search import ScaledPredictions

if TYPE_CHECKING:
    from overnight.memory.prediction import Constants, MemoryEstimate
    from overnight.memory.trace import Trace

METHODS = ("infer", "full", "lora", "qlora")
SERVING = {
    "quant": "way",
    "sequence": "context",
    "batch": "batch",
    "cache": "cache",
    "static": "static",
    "weights": "weights",
}
TUNING = ("method", "batch", "sequence", "precision", "checkpointing", "optimizer", "rank", "targets")
PAINTING = ("method", "batch", "size", "precision", "offload", "checkpointing", "rank")
CHEAPER: tuple[dict[str, Any], ...] = (  # the cheapest first, as far as they are not set already
    {"checkpointing": True},
    {"checkpointing": True, "precision": "bf16"},
    {"checkpointing": True, "precision": "bf16", "optimizer": "adamw8bit"},
    {"checkpointing": True, "precision": "bf16", "method": "lora"},
    {"checkpointing": True, "precision": "bf16", "method": "qlora"},
)
Ways = list[tuple[str, "MemoryEstimate"]]


def options(parser: argparse.ArgumentParser) -> None:
    """The flags of `overnight fit` that belong to --model."""
    add = parser.add_argument_group(
        "without a config: a model by its name, from its sizes alone"
    ).add_argument
    add("--model", help=f"{', '.join(SIDES)}, a language model as llama-2-7b, a config.json or a .gguf")
    add("--method", choices=METHODS, help="infer when left out")
    add("--batch", type=int, help="sequences or pictures at once")
    add(
        "--sequence", type=int, metavar="TOKENS", help="tokens of a sequence; with infer of prompt and answer"
    )
    add("--quant", metavar="WAY", help="with infer: fp16, int8, nf4, q8_0, q6_k, q5_k_m, q4_k_m, q4_0")
    add("--cache", metavar="KIND", help="with infer: f16 or q8_0, of keys and values")
    add("--static", action="store_const", const=True, help="with infer: a cache that does not grow")
    add(
        "--weights",
        metavar="FILE",
        help="with infer: a .gguf, .safetensors or index whose header tells the bytes",
    )
    add("--precision", help="of training: bf16, fp16, fp32, amp")
    add(
        "--checkpointing",
        action="store_const",
        const=True,
        help="compute activations again in the backward pass",
    )
    add("--optimizer", help="adamw, adamw8bit, adafactor, sgd")
    add("--rank", type=int, help="of adapters")
    add("--targets", metavar="LAYERS", help="of adapters: all-linear, or names with commas between")
    add("--size", type=int, metavar="PIXELS", help="side of a picture")
    add("--offload", choices=("none", "model", "sequential"), help="of Stable Diffusion")


def asked(arguments: argparse.Namespace) -> bool:
    """Whether a model is meant instead of a config.

    Raises BadInput for both, neither, or flags of the other.
    """
    given = [
        f"--{name}"
        for name in dict.fromkeys((*TUNING, *PAINTING, *SERVING))
        if getattr(arguments, name, None) is not None
    ]
    if (arguments.config is None) == (arguments.model is None):
        raise BadInput(
            "give either a config (overnight fit vision) "
            "or a model (overnight fit --model llama-2-7b --method qlora)"
        )
    if arguments.config is not None and given:
        raise BadInput(
            f"{', '.join(given)} belongs to --model; a config is changed by key=value, e.g. cnn.batch=64"
        )
    return arguments.config is None


def show(arguments: argparse.Namespace, card: Card) -> int:
    """Print the verdict; 3 when it does not fit, 2 when it is unknown, else 0. Raises BadInput."""
    row = verdict_of({name: value for name, value in vars(arguments).items() if value is not None}, card)
    print_verdicts([row], card, arguments.json)
    return {"fits": 0, "does not fit": 3}.get(row.verdict, 2)


def verdict_of(given: dict[str, Any], card: Card) -> Verdict:
    """One model on one card. given: what options() names, without what was left out."""
    method, name = given.get("method", "infer"), str(given["model"]).strip()
    known = (*TUNING, *PAINTING, *SERVING)
    if name.lower() in SIDES:
        _only(given, PAINTING, known, f"{name} with method {method}")
        return _painting(
            ImageGeneration.of(model=name.lower(), **{k: given[k] for k in PAINTING if k in given}), card
        )
    if method == "infer":
        _only(given, (*SERVING, "method"), known, "method infer")
        return _serving(
            Serving.of(model=name, **{field: given[k] for k, field in SERVING.items() if k in given}), card
        )
    _only(given, TUNING, known, f"method {method}")
    return _tuning(Tuning.of(model=name, **{k: given[k] for k in TUNING if k in given}), card)


def _only(given: dict[str, Any], allowed: tuple[str, ...], known: tuple[str, ...], what: str) -> None:
    extra = [f"--{name}" for name in dict.fromkeys(known) if name in given and name not in allowed]
    if extra:
        takes = ", ".join(f"--{name}" for name in allowed)
        raise BadInput(f"{', '.join(extra)} has no meaning for {what}; it takes {takes}")


# ---------------------------------------------------------------------- the three kinds


def _serving(serving: Serving, card: Card) -> Verdict:
    found = predict_inference(serving, context_mib(card))
    budget = card.budget_mib
    longest = most_context(serving, budget)
    best = at_once(serving, budget)
    why = refusal(serving, budget) or f"up to {longest:,} tokens fit"
    return _row(
        f"{serving.model} {form(serving)}",
        found,
        card,
        best,
        [] if found.fits(budget) else cheaper(serving, budget),
        why,
    )


class _Batches(ScaledPredictions):
    """Predictions of the same training for any batch."""

    def __init__(self, tuning: Tuning, constants: "Constants") -> None:
        with silence():
            super().__init__(language_recipe(tuning), "cuda", 0.0, constants)
        self.tuning = tuning

    def _traced(self, n: int) -> "Trace":
        if n not in self.traces:
            self.traces[n] = traced_language(self.tuning.model_copy(update={"batch": n}))
        return self.traces[n]


def _tuning(tuning: Tuning, card: Card) -> Verdict:
    label = f"{tuning.model} {tuning.method}"
    budget = card.budget_mib
    scaled = _Batches(tuning, _constants(card))
    found = scaled.exact(tuning.batch)
    if found.unknown:
        return _row(label, found, card, None, [], "")
    best = scaled.largest(budget) if tuning.batch > 1 or found.fits(budget) else None
    if found.fits(budget):
        return _row(label, found, card, best, [], "")
    ways = [(as_options({"batch": best.micro_batch}), best)] if best else _ways(tuning, card)
    least = (
        f"{found.parts.get('weights', 0) / 1024:.1f} GiB of weights for {budget / 1024:.1f} GiB of the card"
        if not ways
        else ""
    )
    return _row(label, found, card, best, ways, least)


def _ways(tuning: Tuning, card: Card) -> Ways:
    """The first change of CHEAPER that makes it fit."""
    for values in CHEAPER:
        changed = tuning.model_copy(
            update={k: v for k, v in values.items() if k not in ("method", "precision") or _more(tuning, k)}
        )
        if changed == tuning:
            continue
        found = predict_language(changed, constants=_constants(card))
        if found.fits(card.budget_mib):
            return [
                (
                    as_options(
                        {k: getattr(changed, k) for k in values if getattr(changed, k) != getattr(tuning, k)}
                    ),
                    found,
                )
            ]
    return []


def as_options(values: Mapping[str, Any]) -> str:
    """Settings as options of the command."""
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in values.items())


def _more(tuning: Tuning, name: str) -> bool:
    """Whether a setting takes more than its change does."""
    return tuning.method != "qlora" if name == "method" else tuning.precision in ("fp32", "amp")


def _painting(painting: ImageGeneration, card: Card) -> Verdict:
    found = predict_image_generation(painting, _constants(card))
    ways = list[Any]()
    if found.verdict(card.budget_mib) == "does not fit":
        changed: list[dict[str, Any]] = (
            [{"offload": "model"}, {"offload": "sequential"}]
            if painting.method == "infer"
            else [{"checkpointing": True}]
        )
        tried = [
            (v, predict_image_generation(painting.model_copy(update=v), _constants(card))) for v in changed
        ]
        ways = [(as_options(v), p) for v, p in tried if p.fits(card.budget_mib)]
    return _row(f"{painting.model} {painting.method} {painting.side} px", found, card, None, ways[:1], "")


def _row(
    label: str, found: "MemoryEstimate", card: Card, best: "MemoryEstimate | None", ways: Ways, why: str
) -> Verdict:
    return Verdict(
        step=label,
        verdict=found.verdict(card.budget_mib),
        mib=round(found.mib, 1),
        low_mib=round(found.low_mib, 1),
        high_mib=round(found.high_mib, 1),
        lease_mib=min(-int(-found.high_mib // ROUND_MIB) * ROUND_MIB, card.budget_mib),
        micro_batch=found.micro_batch,
        largest_micro_batch=best.micro_batch if best else None,
        parts={kind: round(mib, 1) for kind, mib in found.parts.items()},
        peak=f"{found.phase}, {found.operator}".strip(", "),
        changes={what: round(p.mib) for what, p in ways},
        why=found.unknown or why,
    )


def _constants(card: Card) -> "Constants":
    from overnight.memory.prediction import Constants

    return Constants(context_mib=context_mib(card))
