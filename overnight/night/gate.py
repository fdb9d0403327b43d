"""The gate: a new model replaces the champion only when it is better, and the evidence says so.

The gate alone reads test items; early stopping and sweeps never do. docs/promotion.md explains it to users.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overnight.artifact import Artifact
from overnight.config import Gate, Params
from overnight.errors import DataError
from overnight.predictor import ItemLosses, Predictor, load
from overnight.run import Run
from overnight.step import step

if TYPE_CHECKING:
    import numpy as np

YEAR_S = 365 * 86400.0
TIMES = 3  # each model is timed, in turns; the fastest counts
MOST_CLASSES = 20  # named in the evidence
PRINCIPLE = (
    "Both models were scored on the same test items, and a betting e-process (Waudby-Smith and Ramdas, "
    "JRSS B 2024) weighed the differences, those of items that belong together averaged first. Each look "
    "spends a part of the year's error budget, so that at most {alpha:.0%} of years see any false promotion. "
    "docs/promotion.md explains it."
)


class JudgeParams(Params):
    gate: Gate
    level: float  # what this look may spend of the year's budget


@step
def judge(
    run: Run, params: JudgeParams, champion: Artifact, challenger: Artifact, given: list[Artifact]
) -> Artifact:
    """What the decision rests on, as meta.json of an artifact.

    given: the artifacts that the step of the challenger was given. Raises DataError where the two models
    score other items, BadInput where one cannot be loaded.
    """
    models = [load(champion.path), load(challenger.path)]
    old, new = [model.item_losses(*given) for model in models]
    new = _aligned(old, new)
    found = compared(old, new, params.gate, params.level)
    sizes = [sum(file.stat().st_size for file in one.path.rglob("*")) for one in (champion, challenger)]
    found |= {"old_bytes": sizes[0], "new_bytes": sizes[1]}
    if params.gate.latency is not None:
        found |= _timed(models, given)
    return run.save("verdict", meta=found)


def _aligned(old: ItemLosses, new: ItemLosses) -> ItemLosses:
    """The second with its items in the order of the first."""
    import numpy as np

    places = {item: i for i, item in enumerate(new.item.tolist())}
    if len(places) != len(new.item) or set(places) != set(old.item.tolist()):
        raise DataError(
            f"the champion scores {len(old.item)} test items and the new model {len(places)} others: they "
            "cannot be compared; train the champion's config again, or promote by hand"
        )
    order = np.array([places[item] for item in old.item.tolist()], dtype=int)
    return ItemLosses(new.loss[order], old.item, new.cluster[order], new.group[order])


def compared(old: ItemLosses, new: ItemLosses, gate: Gate, level: float) -> dict[str, Any]:
    """Estimates and evidence on the same items in the same order."""
    from overnight.night import evidence

    gains = evidence.cluster_gains(old.loss, new.loss, new.cluster)
    mean, low, high = evidence.interval(gains)
    worse = evidence.worse_groups(old.loss, new.loss, new.cluster, new.group, gate.margin)
    return {
        "items": len(old.item),
        "clusters": len(gains),
        "test_set": items_digest(new),
        "old_loss": float(old.loss.mean()),
        "new_loss": float(new.loss.mean()),
        "gain": mean,
        "low": low,
        "high": high,
        "log_evidence": float(evidence.log_capital(gains, gate.minimum_effect, level)),
        "level": level,
        "detectable": evidence.detectable(gains, gate.minimum_effect, level),
        "worse": dict(sorted(worse.items(), key=lambda one: -one[1])[:MOST_CLASSES]),
    }


def items_digest(losses: ItemLosses) -> str:
    """Of the test set: its items and which of them belong together, in any order."""
    rows = sorted(zip(losses.item.tolist(), _clusters(losses.cluster), losses.group.tolist(), strict=True))
    return hashlib.sha256("\n".join(map(str, rows)).encode()).hexdigest()


def _clusters(numbers: "np.ndarray") -> list[str]:
    return [str(number) for number in numbers.tolist()]


def _timed(models: list[Predictor], given: list[Artifact]) -> dict[str, float]:
    seconds = {"old_s": math.inf, "new_s": math.inf}
    for _ in range(TIMES):
        for name, model in zip(seconds, models, strict=True):
            began = time.perf_counter()
            model.item_losses(*given)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def account_of(account: dict[str, Any], now: float) -> dict[str, Any]:
    """The account of the running year: `began` (unix time) and `looks` so far. A year has 365 days."""
    if "began" in account and 0 <= now - float(account["began"]) < YEAR_S:
        return {"began": account["began"], "looks": int(account.get("looks", 0))}
    return {"began": now, "looks": 0}


@dataclass(frozen=True)
class Verdict:
    promotes: bool
    reason: str  # a sentence


def decide(found: dict[str, Any], gate: Gate) -> Verdict:
    """found: what `judge` saved."""
    if found["level"] <= 0:
        return Verdict(False, "the year's error budget is used up; `overnight promote` decides by hand")
    problem = _too_little(found, gate) or _guarded(found, gate)
    return Verdict(not problem, problem or f"{_scores(found)}; {_strength(found)}")


def _too_little(found: dict[str, Any], gate: Gate) -> str:
    if found["log_evidence"] >= -math.log(found["level"]) and found["gain"] > gate.minimum_effect:
        return ""
    shown = (
        f"on these {found['clusters']:,} independent items a gain of about {found['detectable']:.4f} would "
        "have been needed to see it"
    )
    return f"it is not shown to be better: {_scores(found)}; {_strength(found)}; {shown}"


def _guarded(found: dict[str, Any], gate: Gate) -> str:
    """Which guard keeps a better model from being promoted; empty: none."""
    if found["worse"]:
        name, rise = next(iter(found["worse"].items()))
        more = f" and {len(found['worse']) - 1} more" if len(found["worse"]) > 1 else ""
        rises = f"the loss of {name}{more} rises by {rise:.3f}"
        return f"it is better on the whole, but {rises} (gate.margin {gate.margin})"
    if found["new_bytes"] > gate.size * found["old_bytes"]:
        times = found["new_bytes"] / max(found["old_bytes"], 1)
        return f"it is better, but {times:.1f} times as large as the champion (gate.size {gate.size})"
    if gate.latency is not None and found["new_s"] > gate.latency * found["old_s"]:
        times = found["new_s"] / found["old_s"]
        return f"it is better, but takes {times:.1f} times as long (gate.latency {gate.latency})"
    return ""


def _scores(found: dict[str, Any]) -> str:
    gain = abs(found["gain"])
    word = "lower" if found["gain"] >= 0 else "higher"
    ends = sorted((found["low"], found["high"]))
    if found["gain"] < 0:
        ends = [-ends[1], -ends[0]]
    return (
        f"its loss on {found['items']:,} test items is {found['new_loss']:.4f}, {gain:.4f} {word} than the "
        f"champion's (95 % interval {ends[0]:.4f} to {ends[1]:.4f})"
    )


def _strength(found: dict[str, Any]) -> str:
    strength = math.exp(min(found["log_evidence"], 50))
    return f"evidence {strength:,.3g}, and {1 / found['level']:,.0f} is needed at this look"
