"""The card's line beside a bare Prefect limit: `python -m bench.card [--out FILE] [--only CASE ...] [--seed
N]`.

Three arms in one run: ours, a Prefect global concurrency limit of 12 slots with its default storage of leases
(memory), and the same with the filesystem's. Each server is a bare one with a home of its own. Cases: cost
(acquire + release), big (a job of the whole card against a stream of small ones), order (in which order
waiters that came one after the other get in), kill (of the holder: until the waiter has the card; a lease of
60 s, the shortest that Prefect allows, and its default of 300 s), restart (of the server while somebody
holds). Waits are bounded, so a value may read "> 100". Prints a table, writes JSON, ends with 1 when one of
our bars is missed.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench._limit import SLOTS, Arm, Prefect

START_S = 150.0  # for processes to import what they need, on a busy machine
KILLS = {
    "ours": 20
}  # and 3 in the others, each of which takes more than a minute; all 3 at once, on limits of their own
KILL_BOUND_S = 110.0
BIG_BOUND_S = 60.0
ORDER_BOUND_S = 60.0
DOWN_S, HELD_S = 15.0, 75.0  # the server is away this long; somebody holds, with a lease of 60 s, that long
BOUNDS = {"kill": KILL_BOUND_S, "big": BIG_BOUND_S, "order": ORDER_BOUND_S}
Values = dict[str, float]

BARS: Mapping[str, Callable[[float], bool]] = {
    "cost_median_ms": lambda v: v <= 2,
    "big_after_last_before_s": lambda v: v <= 0.5,
    "order_inversions": lambda v: v == 0,
    "kill_most_s": lambda v: v <= 2,
    "restart_holder_ended": lambda v: v == 0,
    "restart_stuck_slots": lambda v: v == 0,
}


def cost(arm: Arm, _choose: random.Random) -> Values:
    """Acquire and release, without other holders."""
    rounds = 500 if arm.name == "ours" else 15
    arm.create("cost")
    holder = arm.start("cost", slots=1, rounds=rounds)
    holder.process.wait(START_S + 60)
    took = [
        (gave - asks) * 1e3 - held
        for asks, gave, held in zip(holder.times("asks"), holder.times("gave"), _held_ms(holder), strict=True)
    ]
    return {
        "cost_median_ms": statistics.median(took[1:]),
        "cost_p90_ms": sorted(took[1:])[int(0.9 * len(took[1:]))],
        "cost_n": len(took) - 1,
    }


def _held_ms(holder: Any) -> list[float]:
    return [(ends - has) * 1e3 for has, ends in zip(holder.times("has"), holder.times("ends"), strict=True)]


def big(arm: Arm, choose: random.Random) -> Values:
    """Three processes take a third of the card for a second, repeatedly; another one needs all of it."""
    arm.create("big")
    small = [
        arm.start("big", slots=SLOTS // 3, hold_s=choose.uniform(0.8, 1.2), rounds=1000) for _ in range(3)
    ]
    _all(small, "has")
    job = arm.start("big", hold_s=0.1)
    asked = job.wait_for("asks", time.monotonic() + START_S)
    has = job.wait_for("has", asked + BIG_BOUND_S)
    time.sleep(0.2)
    ends = [max([t for t in s.times("ends") if t < has], default=asked) for s in small]
    passed = sum(asked < t < has for s in small for t in s.times("has"))
    for holder in [*small, job]:
        holder.end()
    over = math.isinf(has)
    return {
        "big_waited_s": BIG_BOUND_S if over else has - asked,
        "big_bounded": over,
        "big_small_ones_first": passed,
        "big_after_last_before_s": math.inf if over else has - max(*ends, asked),
    }


def order(arm: Arm, _choose: random.Random) -> Values:
    """Six ask for all of it, one after the other, while somebody holds it; each then holds it for 0.3 s."""
    arm.create("order")
    go = arm.folder / "go"
    first = arm.start("order", until=str(go))
    _all([first], "has")
    others = []
    for _ in range(6):
        others.append(arm.start("order", hold_s=0.3))
        _all(others, "asks")
        time.sleep(0.5)
    go.touch()
    freed = first.wait_for("ends", time.monotonic() + START_S)
    has = [o.wait_for("has", freed + ORDER_BOUND_S) for o in others]
    for holder in [first, *others]:
        holder.end()
    pairs = [(a, b) for n, a in enumerate(has) for b in has[n + 1 :]]
    return {
        "order_inversions": sum(a > b for a, b in pairs),
        "order_of": len(pairs),
        "order_missing": sum(map(math.isinf, has)),
        "order_seconds": max(has) - freed,
        "order_shortest_s": 0.3 * (len(others) - 1),
    }


def kill(arm: Arm, choose: random.Random) -> Values:
    """kill -9 of the holder while somebody waits; several at once, each on a limit of its own."""
    plain = [_Kill(arm, f"kill{n}", choose.random(), {"lease_s": 60}) for n in range(KILLS.get(arm.name, 3))]
    usual = [] if arm.name == "ours" else [_Kill(arm, "kill-default", choose.random(), {})]
    for one in [*plain, *usual]:
        one.strike()
    waits = [one.wait() for one in plain]
    found = {"kill_median_s": statistics.median(waits), "kill_most_s": max(waits), "kill_n": len(waits)}
    return found | ({"kill_default_lease_s": usual[0].wait()} if usual else {})


class _Kill:
    def __init__(self, arm: Arm, limit: str, delay: float, lease: dict[str, float]) -> None:
        arm.create(limit)
        self.delay = delay
        self.holder = arm.start(limit, hold_s=600, **lease)
        _all([self.holder], "has")
        self.waiter = arm.start(limit, hold_s=0.1, **lease)

    def strike(self) -> None:
        _all([self.waiter], "asks")
        time.sleep(1 + self.delay)
        self.at = time.monotonic()
        self.holder.end()

    def wait(self) -> float:
        """Seconds; infinity when it takes longer than anybody waits here."""
        has = self.waiter.wait_for("has", self.at + KILL_BOUND_S)
        self.waiter.end()
        return has - self.at


def restart(arm: Arm, _choose: random.Random) -> Values:
    """The server goes away for a while under a holder of all of it.

    Ours has none: its holder is just left alone for as long.
    """
    arm.create("restart")
    holder = arm.start("restart", hold_s=HELD_S, lease_s=60)
    _all([holder], "has")
    time.sleep(5)
    arm.stop()
    time.sleep(DOWN_S)
    arm.prepare()
    over = holder.wait_for("gave", time.monotonic() + HELD_S + 30)
    time.sleep(3)
    broke = len(holder.times("broke"))
    return {
        "restart_holder_ended": broke or int(math.isinf(over)),
        "restart_stuck_slots": arm.held("restart"),
    }


def _all(holders: Sequence[Any], word: str) -> None:
    for holder in holders:
        if math.isinf(holder.wait_for(word, time.monotonic() + START_S)):
            errors = holder.log.with_suffix(".err").read_text()[-500:]
            raise RuntimeError(f"{holder.log.name}: never wrote {word!r}: {errors}")


ALONE = (cost,)  # timed in turn; what is only waited for goes on in all arms at once
TOGETHER = (big, order, kill, restart)


def play(arms: Sequence[Arm], seed: int, only: Sequence[str]) -> dict[str, Values]:
    """Every case in every arm; by arm."""
    found: dict[str, Values] = {arm.name: {} for arm in arms}

    def one(case: Callable[[Arm, random.Random], Values], arm: Arm) -> None:
        print(f"{time.strftime('%H:%M:%S')} {case.__name__}: {arm.name}", file=sys.stderr, flush=True)
        try:
            found[arm.name] |= case(arm, random.Random(seed))
        except (
            RuntimeError,
            OSError,
            subprocess.SubprocessError,
        ) as error:  # what our arm has not measured, it has missed
            print(f"{case.__name__}: {arm.name}: {error}", file=sys.stderr, flush=True)
            found[arm.name][f"{case.__name__}_broke"] = 1

    for case in [c for c in ALONE if not only or c.__name__ in only]:
        for arm in arms:
            one(case, arm)
    for case in [c for c in TOGETHER if not only or c.__name__ in only]:
        with ThreadPoolExecutor() as pool:
            list(pool.map(one, [case] * len(arms), arms))
    return found


def table(found: Mapping[str, Values]) -> tuple[str, list[str]]:
    """The columns of all arms, and which of our bars were missed."""
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    missed = [n for n in names if n in BARS and not BARS[n](found["ours"].get(n, math.nan))]
    missed += [n for n in found["ours"] if n.endswith("_broke")]
    rows = [("", *found, "bar (ours)")]
    for name in names:
        mark = ""
        if name in BARS:
            mark = "MISSED" if name in missed else "met"
        rows.append((name, *(_shown(name, values.get(name)) for values in found.values()), mark))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ), missed


def _shown(name: str, value: float | None) -> str:
    """For people; a wait that was given up is shown as longer than its bound."""
    bound = next((b for case, b in BOUNDS.items() if name.startswith(case)), math.nan)
    if value is None:
        return "-"
    return f"> {bound:.0f}" if math.isinf(value) else f"{value:.4g}"


def facts(seed: int) -> dict[str, Any]:
    """What a figure is worth nothing without."""
    versions = {name: importlib.metadata.version(name) for name in ("overnight", "prefect")}
    processor = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    return {
        "machine": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "seed": seed,
        "load": os.getloadavg(),
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.card", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/out/card.json"))
    parser.add_argument("--only", nargs="*", default=[], choices=[c.__name__ for c in (*ALONE, *TOGETHER)])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-card-") as place:
        arms: list[Arm] = [Arm("ours", Path(place) / "ours")]
        arms += [
            Prefect(f"prefect, {s} leases", Path(place) / s, storage=s) for s in ("memory", "filesystem")
        ]
        try:
            for arm in arms:
                arm.folder.mkdir()
                arm.prepare()
            found = play(arms, asked.seed, asked.only)
        finally:
            for arm in arms:
                arm.close()
    text, missed = table(found)
    print(json.dumps(facts(asked.seed)), text, sep="\n")
    plain = {
        arm: {n: _shown(n, v) if math.isinf(v) else v for n, v in values.items()}
        for arm, values in found.items()
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"facts": facts(asked.seed), "arms": plain, "missed": missed}, indent=1))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
