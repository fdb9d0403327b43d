"""Predicted memory against real runs.

`python -m bench.fit [--only WORD] [--out FILE] [--peft | --bert | --llm]`

Every case is trained for real on the CPU by the training loop itself, two short epochs of made-up batches,
under torch's memory profiler (which shares no code with the prediction), and predicted before. Beside it
stands the usual rule of thumb, 4 x the weights. Bars: every case within 0.5 %, twice the same bytes, and for
nets of images, graphs and agents at most 3 CPU-seconds for a verdict on a card. The second table names, per
case, what a card does differently from the CPU, by operator. With --peft the published readings of
_fit_peft.py take the place of all that: every row within 8 %, half of them within 4 %, none under by more
than 3 %, each in 30 CPU-seconds. With --bert those of _fit_bert.py: batch 1 within 5 %, batch 4 within 15 %.
All of them are held against budgets, too: nothing may be said to fit whose reading exceeds the budget, and at
most 10 % of what fits may be refused (_fit_safety.py). Ends with 1 when a bar is missed.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of its starts

import torch

from bench._fit_recipes import matrix
from bench._fit_safety import CARDS_GB, Reading, judge, scaled, upper
from bench._kernels import Kernels
from bench._measure import live_peak
from overnight.memory.prediction import estimate, traced
from overnight.memory.trace import Trace, alive

ERROR, SECONDS, RSS_MIB = 0.005, 3.0, 4096
TIMED = ("cnn", "gcn", "sage", "gat", "ppo", "dqn")
MIB = 2**20
Row = dict[str, Any]


def measured(name: str, kernels: Kernels) -> Row:
    """One case: predicted, then run."""
    make, micro = matrix()[name]
    here = traced(make(), micro, "cpu", kernels)
    predicted, edge = here.peak(), estimate(here, micro, "cpu")
    began = time.process_time()
    card = traced(make(), micro, "cuda")
    verdict = estimate(card, micro)
    seconds = time.process_time() - began
    again = traced(make(), micro, "cuda")
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        real = live_peak(make(), micro, Path(folder))
    weights = sum(p.numel() * p.element_size() for p in make().build().parameters())
    return {
        "case": name,
        "predicted_mib": predicted.bytes / MIB,
        "measured_mib": real / MIB,
        "high_mib": edge.high_mib,
        "error": predicted.bytes / real - 1,
        "four_weights_error": 4 * weights / real - 1,
        "at": f"{predicted.phase}, {predicted.operator}",
        "card_mib": verdict.mib,
        "card_seconds": seconds,
        "same_twice": (card.events, card.sizes) == (again.events, again.sizes),
        "card_differs": differences(traced(make(), micro, "cpu"), card),
    }


def differences(cpu: Trace, card: Trace) -> dict[str, float]:
    """MiB by operator: alive at the peak on a card, less alive at the peak on the CPU; the five largest."""
    there, here = (_by_operator(trace) for trace in (card, cpu))
    found = {name: (there[name] - here[name]) / MIB for name in {*there, *here}}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1]))[:5])


def _by_operator(trace: Trace) -> Counter[str]:
    now = most = at = 0
    born = dict[int, str]()
    for index, (event, (_, operator)) in enumerate(zip(trace.events, trace.places, strict=True)):
        now += trace.sizes[event] if event >= 0 else -trace.sizes[~event]
        if event >= 0:
            born[event] = operator
        if now > most:
            most, at = now, index
    found = Counter[str]()
    for number in alive(trace.events[: at + 1]):
        found[born[number]] += trace.sizes[number]
    return found


def missed(row: Row) -> list[str]:
    """The bars that a case does not meet."""
    problems = [] if abs(row["error"]) <= ERROR else [f"{row['error']:+.2%}"]
    problems += [] if row["same_twice"] else ["not the same twice"]
    timed = row["case"].startswith(TIMED) and row["card_seconds"] > SECONDS
    return [*problems, f"{row['card_seconds']:.1f} s"] if timed else problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--peft", action="store_true", help="the published readings; transformers and peft must be installed"
    )
    parser.add_argument(
        "--bert", action="store_true", help="readings of 2022; transformers must be installed"
    )
    parser.add_argument(
        "--llm",
        action="store_true",
        help="layers foretold, caches, quantised weights (_fit_llm.py); the extra llm must be installed",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "fit.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for chosen, arm in ((arguments.peft, published), (arguments.bert, bert), (arguments.llm, llm)):
        if chosen:
            return int(arm(arguments.only))
    print(
        f"{platform.processor() or platform.machine()}, torch {importlib.metadata.version('torch')}, "
        "one thread, n = 1 each"
    )
    print(
        f"{'case':30} {'predicted':>10} {'measured':>10} {'error':>8} {'4 x weights':>12} "
        f"{'a card':>8} {'s':>5}"
    )
    rows, kernels = list[Row](), Kernels()
    for name in (name for name in matrix() if arguments.only in name):
        rows.append(measured(name, kernels))
        print(_line(rows[-1]), flush=True)
    _differences(rows)
    return _judge(rows, arguments.out)


def _judge(rows: list[Row], out: Path) -> int:
    """The last line, and what programs read; 1 when a bar is missed."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    late = {row["case"]: missed(row) for row in rows if missed(row)} | (
        {"memory": [f"{rss:.0f} MiB"]} if rss > RSS_MIB else {}
    )
    if wrong := judge([Reading(row["case"], row["high_mib"], row["measured_mib"]) for row in rows], scaled()):
        late["verdicts"] = wrong
    errors = sorted(abs(row["error"]) for row in rows)
    print(
        f"\n{len(rows)} cases; median error {errors[len(rows) // 2]:.3%}, worst {errors[-1]:.3%}; "
        f"{rss:.0f} MiB at most; missed: {late or 'none'}"
    )
    out.parent.mkdir(exist_ok=True)
    out.write_text(
        json.dumps({"torch": torch.__version__, "rows": rows, "rss_mib": rss, "missed": late}, indent=1)
    )
    return 1 if late else 0


def published(only: str) -> int:
    """The table of published readings; the headline is what is reserved with expandable segments."""
    from bench._fit_peft import rows

    print(
        f"{'case':24} {'published':>9} {'predicted':>9} {'error':>7} {'live':>7} "
        f"{'default':>8} {'4 x weights':>12} {'s':>5}   (GiB)"
    )
    errors, late, readings, began = list[float](), list[str](), list[Reading](), time.process_time()
    for row in rows(only):
        seconds, began = time.process_time() - began, time.process_time()
        errors.append(row["expandable"] / row["published_gib"] - 1)
        late += [row["case"]] if not -0.03 <= errors[-1] <= 0.08 or seconds > 30 else []
        readings.append(Reading(row["case"], upper(row["expandable"] * 1024), row["published_gib"] * 1024))
        gib = " ".join(f"{row[k]:{w}.2f}" for k, w in (("published_gib", 9), ("expandable", 9)))
        print(
            f"{row['case']:24} {gib} {errors[-1]:+7.1%} {row['live']:7.2f} "
            f"{row['default']:8.2f} {row['four_weights_gib']:12.1f} {seconds:5.1f}",
            flush=True,
        )
    late += judge(readings, [gb * 1024 for gb in (*CARDS_GB, 32, 48)])
    median = statistics.median(abs(e) for e in errors)
    print(
        f"\n{len(errors)} rows; median {median:.1%}, worst {max(errors, key=abs):+.1%}; "
        f"missed: {late or 'none'}"
    )
    return 1 if late or median > 0.04 else 0


def llm(only: str) -> int:
    """Language models from their configs."""
    from bench import _fit_llm

    return _fit_llm.measure(only)


def bert(only: str) -> int:
    """The table of the readings of 2022."""
    from bench._fit_bert import rows

    late, readings = list[str](), list[Reading]()
    for row in rows(only):
        error = row["predicted_mib"] / row["published_mib"] - 1
        late += [row["case"]] if abs(error) > row["bar"] else []
        readings.append(Reading(row["case"], upper(row["predicted_mib"]), row["published_mib"]))
        print(
            f"{row['case']:24} {row['published_mib']:6} MiB published, "
            f"{row['predicted_mib']:6.0f} predicted, {error:+.1%}",
            flush=True,
        )
    late += judge(readings, [gb * 1024 for gb in CARDS_GB])
    print(f"missed: {late or 'none'}")
    return 1 if late else 0


def _line(row: Row) -> str:
    mib = f"{row['predicted_mib']:10.2f} {row['measured_mib']:10.2f} {row['error']:+8.3%}"
    seconds = f"{row['card_mib']:8.0f} {row['card_seconds']:5.1f}"
    return f"{row['case']:30} {mib} {row['four_weights_error']:+12.0%} {seconds}  {' '.join(missed(row))}"


def _differences(rows: list[Row]) -> None:
    print("\nalive at the peak on a card, less on the CPU, MiB by operator")
    for row in rows:
        parts = ", ".join(
            f"{name.removeprefix('aten.')} {mib:+.1f}"
            for name, mib in row["card_differs"].items()
            if abs(mib) >= 0.1
        )
        print(f"{row['case']:30} {parts}")


if __name__ == "__main__":
    sys.exit(main())
