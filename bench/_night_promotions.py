"""False promotions in simulated years, and power; the gate beside other rules, on the same per-item losses.

`python -m bench.night promotions`. A model errs on an ambiguous item with some probability, else never:
models that are trained with another seed differ on these items. All is drawn from fixed seeds; equal models
have the same probability on each item, so every promotion among them is false. The rules beside the gate:
- new > old: promote when the mean loss is lower;
- daily z-test: promote when a paired z-test at 5 % says so, every night;
and each of them compares with the model that it promoted last.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench import _rows
from overnight.config import Gate
from overnight.night import evidence

YEARS, NIGHTS = 1000, 365
AMBIGUOUS = 0.2  # of the items; two equal models that err on half of them disagree on 10 % of all
Losses = np.ndarray[Any, np.dtype[np.float64]]
Draw = Callable[[np.random.Generator], Losses]  # the losses of a new model in each year, (years, items)
TWO_ERRORS = 2 * math.sqrt(0.05 * 0.95 / YEARS)


def coins(items: int, years: int, rng: np.random.Generator) -> Draw:
    """0 or 1 on each of independent items."""
    ambiguous = rng.random((years, items)) < AMBIGUOUS
    return lambda r: ((r.random((years, items), np.float32) < 0.5) & ambiguous).astype(np.float64)


def returns(items: int, years: int, rng: np.random.Generator) -> Draw:
    """Of episodes that start alike in all models: any number, some starts harder than others."""
    hard = rng.beta(2, 2, (years, items))
    return lambda r: np.clip(hard + 0.2 * r.standard_normal((years, items)), 0, 1)


EQUAL = {
    "2,000 items": (coins, 2000),
    "200 items": (coins, 200),
    "100 episodes": (returns, 100),
}


def false_years(kind: str, minimum_effect: float) -> dict[str, float]:
    """The share of years with any false promotion by the gate."""
    make, items = EQUAL[kind]
    rng = np.random.default_rng(0)
    draw = make(items, YEARS, rng)
    champion = draw(rng)
    promoted = np.zeros(YEARS, bool)
    for look in range(1, NIGHTS + 1):
        promoted |= _promotes(champion - draw(rng), minimum_effect, evidence.level(look, Gate().alpha))
    return {"false_years": float(promoted.mean())}


def _promotes(gains: Losses, minimum_effect: float, level: float) -> Any:
    enough = gains.mean(-1) > minimum_effect
    return (evidence.log_capital(gains, minimum_effect, level) >= -np.log(level)) & enough


def other_rules() -> dict[str, float]:
    """The same years of equal models on 2,000 items: false promotions of the rules beside the gate."""
    rng = np.random.default_rng(0)
    draw = coins(2000, YEARS, rng)
    first = draw(rng)
    champions = {"new > old": first, "daily z-test": first.copy()}
    counts = {name: np.zeros(YEARS) for name in champions}
    month = dict.fromkeys(champions, 0.0)
    for night in range(1, NIGHTS + 1):
        new = draw(rng)
        for name, champion in champions.items():
            gains = champion - new
            mean = gains.mean(-1)
            error = gains.std(-1) / gains.shape[-1] ** 0.5
            wins = mean > (0 if name == "new > old" else 1.645 * error)
            counts[name] += wins
            champion[wins] = new[wins]
        if night == 30:
            month = {name: float((count > 0).mean()) for name, count in counts.items()}
    found = {f"{name}: years": float((count > 0).mean()) for name, count in counts.items()}
    found |= {f"{name}: a year": float(count.mean()) for name, count in counts.items()}
    return found | {f"{name}: 30 nights": share for name, share in month.items()}


def after_a_true_one() -> dict[str, float]:
    """Years whose first look promotes a truly better model on these items; the others are its equals."""
    rng = np.random.default_rng(1)
    draw = coins(2000, YEARS, rng)
    first = np.clip(draw(rng) + (rng.random((YEARS, 2000)) < 0.05), 0, 1)  # 4 to 5 points worse
    champion = draw(rng)
    chosen = _promotes(first - champion, Gate().minimum_effect, evidence.level(1, Gate().alpha))
    champion = np.where(chosen[:, None], champion, first)
    promoted = np.zeros(YEARS, bool)
    for look in range(2, NIGHTS + 1):
        spent = evidence.level(look, Gate().alpha)
        promoted |= _promotes(champion - draw(rng), Gate().minimum_effect, spent)
    return {"promoted_first": float(chosen.mean()), "false_years": float(promoted[chosen].mean())}


def power(before: int, runs: int, items: int = 10_000, nights: int = 10) -> dict[str, float]:
    """The share of runs with a promotion, when each night's new model is one point better than the champion.

    10 % of the items are judged otherwise; before: looks that the year has seen already.
    """
    rng = np.random.default_rng(2)
    won = {"gate": np.zeros(runs, bool), "first look": np.zeros(runs, bool)}
    for start in range(0, runs, 200):
        block = slice(start, min(start + 200, runs))
        ambiguous = rng.random((block.stop - start, items), np.float32) < AMBIGUOUS
        old = (rng.random(ambiguous.shape, np.float32) < 0.5) & ambiguous
        for night in range(1, nights + 1):
            new = (rng.random(ambiguous.shape, np.float32) < 0.45) & ambiguous  # 0.2 * 0.05: one point
            gains = old.astype(np.float64) - new
            spent = evidence.level(before + night, Gate().alpha)
            won["gate"][block] |= _promotes(gains, Gate().minimum_effect, spent)
            if night == 1:
                won["first look"][block] = won["gate"][block]
    return {name: float(share.mean()) for name, share in won.items()}


def results(runs: int) -> Iterator[tuple[str, dict[str, float]]]:
    for kind in EQUAL:
        yield f"equal models, {kind}, minimum effect 0", false_years(kind, 0.0)
    yield "other rules, 2,000 items", other_rules()
    yield "after a true promotion", after_a_true_one()
    for before in (0, 30, 100):
        yield f"power after {before} looks", power(before, runs)


def main() -> int:
    """1 when a bar is missed."""
    began = time.perf_counter()
    found = dict[str, dict[str, float]]()
    for name, row in results(1000):
        found[name] = row
        print(f"  {name}: {row}", flush=True)
    seconds = time.perf_counter() - began
    rows = {"machine": _rows.machine(), "years": YEARS, "nights": NIGHTS, "seconds": seconds, "rows": found}
    _rows.write(_rows.OUT / "night_promotions.json", rows)
    print("| what | measured | bar | |\n| --- | --- | --- | --- |")
    worst = max(row["false_years"] for name, row in found.items() if "false_years" in row)
    limit = 0.05 + TWO_ERRORS
    good = _rows.bar(
        "years with a false promotion, the worst kind", f"{worst:.1%}", f"<= {limit:.1%}", worst <= limit
    )
    share = found["power after 0 looks"]["gate"]
    good &= _rows.bar("+1 point on 10,000 items within 10 nights", f"{share:.1%}", ">= 80 %", share >= 0.8)
    for name in ("new > old", "daily z-test"):
        rule = found["other rules, 2,000 items"]
        text = f"{rule[f'{name}: years']:.1%}, {rule[f'{name}: a year']:.1f} a year"
        good &= _rows.bar(f"the same of {name}", text, "to compare", True)
    return 0 if good else 1
