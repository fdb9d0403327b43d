"""The CNN beside what one writes without it: `python -m bench.cnn input | fashion | cifar | tune | card
[--seeds N] [--fresh] [--device cuda]`.

input: images per CPU-second, crop + flip + scaling, against a torchvision PIL DataLoader; interleaved pairs,
A/A control. fashion: configs/fashion_speedrun.yaml, each seed within 30 CPU-minutes, no test-time
augmentation in the bar. cifar: configs/cifar10_speedrun.yaml against ResNet-20 by the usual recipe in 15
CPU-minutes, in fp32 and in bf16. tune: learning rates of both arms of cifar, judged on val alone; `cifar`
takes the best of ResNet-20's. card: on a CUDA card: seconds of speedrun, cold and warm, and images/s of
resnet18 against the plain fp32 script.

Each writes bench/out/cnn-<name>.json row by row and goes on from there. One thread. Prints a table either
way; ends with 1 when a bar is missed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from bench._cnn_arms import CONFIGS, by_batch, by_pil, experiment, images, jpegs, ours, plain, tensors
from bench._rows import OUT, Row, bar, interval, kept, machine, shown

METHOD = Path(__file__).resolve().parent.parent / "tasks" / "vision"
RATES = (0.05, 0.1, 0.2)
MINUTES = 15.0


def lowered() -> str:
    """bf16 where a core multiplies it, which is several times faster there; else what the engine chooses."""
    return "bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "auto"


def rows_of(name: str, keys: Sequence[Any], make: FunctionType, options: argparse.Namespace) -> list[Row]:
    """Rows by key: see bench/_rows.py."""
    code = [
        Path(__file__).with_name("_cnn_arms.py"),
        *sorted(METHOD.glob("*.py")),
        *sorted(CONFIGS.glob("*_speedrun.yaml")),
    ]
    return kept(
        f"cnn-{name}{'-cuda' if options.device == 'cuda' else ''}",
        keys,
        options.fresh,
        make,
        code,
        minutes=options.minutes,
    )


# ------------------------------------------------------------------------------------------------ input


def input_(options: argparse.Namespace) -> bool:
    """Pairs in turns; ours from the artifact, where every JPEG was decoded once; the peer from decoded
    pictures, and from JPEGs.
    """
    artifact, cost = images(experiment("cifar10_speedrun"))
    data, count = tensors(artifact), 8192
    arms = {"ours": by_batch(data, 4 * count), "pil": by_pil(data, count), "control": by_pil(data, count)}
    arms["jpeg"] = by_pil(data, count, jpegs(data, count))

    def pair(number: int) -> Row:
        names = list(arms)[:: 1 if number % 2 == 0 else -1]
        rows = {name: arms[name]() for name in names}
        return {name: row["images"] / row["cpu_s"] for name, row in rows.items()}

    rows = rows_of("input", list(range(options.pairs)), pair, options)
    speed = {name: [row[name] for row in rows] for name in arms}
    print(
        "\nimages per CPU-second, medians: "
        f"{ {name: round(statistics.median(values)) for name, values in speed.items()} }, n {len(rows)}"
    )
    print(f"| PIL against PIL (control) | {shown(interval(speed['control'], speed['pil']))} | 1 | |")
    found = interval(speed["ours"], speed["pil"])
    good = bar(
        "crop + flip, against PIL from decoded pictures",
        shown(found),
        ">= 5, with the whole interval",
        found[1] >= 5,
    )
    decoded = (
        sum(artifact.spec.counts.values()) / cost["cpu_s"]
    )  # once, when the artifact is made, all checks of images included
    for epochs in (1, 15, 100):
        once = [1 / (1 / s + 1 / (decoded * epochs)) for s in speed["ours"]]
        print(
            f"| with our decoding ({decoded:.0f} images/CPU-s), {epochs} epochs, against PIL from JPEGs | "
            f"{shown(interval(once, speed['jpeg']))} | | |"
        )
    return good


# ------------------------------------------------------------------------------------------------ accuracy


def fashion(options: argparse.Namespace) -> bool:
    config = experiment("fashion_speedrun", lowered())
    rows = rows_of(
        "fashion", list(range(options.seeds)), lambda seed: ours(config, seed, options.device), options
    )
    print(
        f"\nFashion-MNIST, {config.cnn.epochs} epochs, {config.cnn.precision}, seeds "
        f"{[row['seed'] for row in rows]}"
    )
    each(rows)
    scores = [row["accuracy"] for row in rows]
    good = bar(
        f"test accuracy, mean of {len(rows)} (lowest {min(scores):.4f})",
        f"{statistics.mean(scores):.4f}",
        ">= 0.94",
        statistics.mean(scores) >= 0.94,
    )
    longest = max(row["cpu_s"] for row in rows) / 60
    return bar("CPU-minutes of a seed, at most", f"{longest:.1f}", "<= 30", longest <= 30) and good


def each(rows: list[Row]) -> None:
    for row in rows:
        views = f", with test-time augmentation {row['accuracy_tta']:.4f}" if "accuracy_tta" in row else ""
        print(
            f"| {row['key']} | test {row['accuracy']:.4f}{views} | {row['cpu_s'] / 60:.1f} CPU-min, "
            f"{row['wall_s'] / 60:.1f} wall | |"
        )


def tune(options: argparse.Namespace) -> bool:
    """Short runs of both arms, as many of each, judged on images held out of train."""
    config = experiment("cifar10_speedrun", lowered())
    data = tensors(images(config)[0])

    def trial(key: str) -> Row:
        arm, factor = key.split(" ")
        if arm == "resnet20":
            return plain(data, 0, float(factor), options.minutes, lowered(), judged="val")
        params = config.cnn.model_copy(update={"epochs": 2, "lr": float(factor)})
        return ours(config.model_copy(update={"cnn": params}), 0)

    trials = {
        "resnet20": [f"resnet20 {rate}" for rate in RATES],
        "ours": [f"ours {config.cnn.lr * factor}" for factor in (0.5, 1, 2)],
    }
    for row in rows_of("tune", [key for arm in options.trials for key in trials[arm]], trial, options):
        print(
            f"| {row['key']} | val {row.get('val', row['accuracy']):.4f} | {row['cpu_s'] / 60:.1f} CPU-min "
            "| |"
        )
    return True


def best_rate() -> float:
    """Of ResNet-20 in the trials; 0.1 as in the paper where there are none."""
    path = OUT / "cnn-tune.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    trials = {row["rate"]: row["accuracy"] for row in rows if row["key"].startswith("resnet20")}
    return max(trials, key=trials.__getitem__, default=0.1)


def cifar(options: argparse.Namespace) -> bool:
    config, rate = experiment("cifar10_speedrun", lowered()), best_rate()
    data = tensors(images(config)[0])

    def run(key: str) -> Row:
        arm, seed = key.split(" ")
        return (
            ours(config, int(seed), options.device)
            if arm == "ours"
            else plain(data, int(seed), rate, MINUTES, arm.split("-")[1])
        )

    arms = ["ours", *options.peers]
    rows = rows_of("cifar", [f"{arm} {seed}" for seed in range(options.seeds) for arm in arms], run, options)
    print(f"\nCIFAR-10 (JPEG), ResNet-20 with rate {rate}")
    each(rows)
    found = {arm: [row for row in rows if row["key"].startswith(f"{arm} ")] for arm in arms}
    good = [beaten(found["ours"], found[arm], arm) for arm in options.peers]
    return all(good)


def beaten(ours_: list[Row], theirs: list[Row], name: str) -> bool:
    """Whether ours is two points better, or as good in a third of the time."""
    mine, other = (statistics.mean(row["accuracy"] for row in rows) for rows in (ours_, theirs))
    share = statistics.mean(row["cpu_s"] for row in ours_) / statistics.mean(row["cpu_s"] for row in theirs)
    text = (
        f"{mine:.4f} against {other:.4f} ({(mine - other) * 100:+.1f} points), {share:.2f} of its CPU time, "
    )
    text += f"n {len(ours_)} and {len(theirs)}"
    good = (mine - other >= 0.02 and share <= 1.05) or (mine >= other and share <= 1 / 3)
    return bar(f"against {name}", text, ">= +2 points, or as good in <= 1/3 of the time", good)


# ------------------------------------------------------------------------------------------------ on a card


def card(options: argparse.Namespace) -> bool:
    """Needs a CUDA card; both parts train on all images, which the engine moves to the card."""
    if not torch.cuda.is_available():
        print("not run: this machine has no CUDA card")
        return False
    from bench._cnn_card import plain_speed, timed

    options.device = "cuda"
    fast, stock = experiment("cifar10_speedrun"), experiment("cifar10_resnet18")
    artifact, _ = images(fast)
    data = tensors(artifact)
    runs = rows_of(
        "speedrun", list(range(options.seeds + 1)), lambda seed: timed(fast, artifact, data, seed), options
    )
    print(f"| speedrun, cold | {runs[0]['wall_s']} s, {runs[0]['accuracy']:.4f} | | |")
    wall, score = (statistics.median(row[name] for row in runs[1:]) for name in ("wall_s", "accuracy"))
    good = bar(
        f"speedrun, warm, n {len(runs) - 1}",
        f"{wall:.2f} s, {score:.4f}",
        ">= 0.94 in <= 2.5 s (H100)",
        wall <= 2.5 and score >= 0.94,
    )
    short = stock.model_copy(update={"cnn": stock.cnn.model_copy(update={"epochs": 2})})

    def pair(number: int) -> Row:
        first = timed(short, artifact, data, number)["images_per_s"] if number % 2 == 0 else 0.0
        theirs = plain_speed(data, stock.cnn.batch)
        return {"ours": first or timed(short, artifact, data, number)["images_per_s"], "plain": theirs}

    pairs = rows_of("resnet18", list(range(options.pairs)), pair, options)
    found = interval(*([row[arm] for row in pairs] for arm in ("ours", "plain")))
    return (
        bar(
            f"resnet18, images/s against the plain script, n {len(pairs)}",
            shown(found),
            ">= 2.5",
            found[1] >= 2.5,
        )
        and good
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["input", "fashion", "cifar", "tune", "card"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=2.0, help="CPU-minutes of a trial of tune")
    parser.add_argument(
        "--trials", nargs="+", choices=["resnet20", "ours"], default=["resnet20", "ours"], help="of tune"
    )
    parser.add_argument("--peers", nargs="+", default=["resnet20-fp32", "resnet20-bf16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    print(machine(), "configs:", CONFIGS.name)
    return (
        0
        if {"input": input_, "fashion": fashion, "cifar": cifar, "tune": tune, "card": card}[options.what](
            options
        )
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
