"""`python bench/training.py overhead | faults | science | kills | all`: what the elastic loop promises, measured.

Every command writes bench/out/training-<name>.json as it goes and goes on from there when it is started again (`--fresh`: anew).
Prints a table either way; exit code 1 when a bar is missed.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _arms import Injector, by_hand, faulty, first_batches, images, plain_net, resnet, tensors
from _kills import kill_and_resume, undisturbed

from overnight.errors import DoesNotFit
from overnight.gpu.counter import Counter
from overnight.loop.elastic import Elastic, Memory
from overnight.loop.precision import Precision
from overnight.run import RecordingRun, SpoolRun
from overnight.training import train
from tasks.cnn import CnnParams

OUT = Path(__file__).resolve().parent / "out"
Row = dict[str, Any]
PARAMS = {  # as in configs/, epochs by what is measured
    "digits": CnnParams(batch=64, width=24, blocks=2, lr=0.1),
    "fashion_mnist": CnnParams(batch=128, width=32, blocks=1, stem=2, flip=True, crop=2, lr=0.2),
}


def kept(name: str, wanted: int, fresh: bool, make: Callable[[int], Row]) -> list[Row]:
    """`wanted` rows, those of an earlier start first; each is written as soon as it is made."""
    path = OUT / f"training-{name}.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.is_file() and not fresh else []
    for number in range(len(rows), wanted):
        rows.append(make(number))
        OUT.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
        part.replace(path)
        print(f"  {name} {number + 1}/{wanted}: {rows[-1]}", flush=True)
    return rows[:wanted]


def machine() -> Row:
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {"cpu": (model or ["?"])[0], "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="overnight-bench-"))


def bar(what: str, measured: object, wanted: object, good: bool) -> bool:
    print(f"| {what} | {measured} | {wanted} | {'ok' if good else 'MISSED'} |")
    return good


def interval(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Ratio of the medians, and 95 % of what resampled pairs give."""
    draws = random.Random(0)
    found = []
    for _ in range(4000):
        chosen = draws.choices(range(len(ours)), k=len(ours))
        found.append(statistics.median(ours[i] for i in chosen) / statistics.median(theirs[i] for i in chosen))
    found.sort()
    return statistics.median(ours) / statistics.median(theirs), found[100], found[-101]


# ------------------------------------------------------------------------------------------------ overhead


def overhead(options: argparse.Namespace) -> bool:
    """CPU-seconds of train() against the plain loop: interleaved, in turns first, with a plain loop beside the plain loop."""
    params = PARAMS[options.data].model_copy(update={"epochs": 1})
    data = tensors(images(options.data), params.batch * 100)
    recipe = resnet(images(options.data), params, judged=False)
    steps = recipe.steps_per_epoch(data)

    def arm(name: str) -> tuple[float, float, list[float]]:
        losses: list[float] = []
        run = RecordingRun(folder()) if name == "equal" else SpoolRun(folder())
        wall, cpu = time.perf_counter(), time.process_time()
        if name in ("ours", "equal"):
            train(recipe, run, data)
        else:
            by_hand(recipe, params, data, 0, losses.append)
        took = time.process_time() - cpu, time.perf_counter() - wall
        return (*took, run.curve("train/loss") if isinstance(run, RecordingRun) else losses)

    def pair(number: int) -> Row:
        names = ["ours", "plain", "control"][:: 1 if number % 2 == 0 else -1]
        found = {name: arm(name) for name in names}
        return {name: found[name][:2] for name in sorted(found)}

    equal, losses = arm("equal")[2], arm("plain")[2]
    rows = kept(f"overhead-{options.data}", options.pairs, options.fresh, pair)
    each = statistics.median(row["plain"][0] for row in rows) / steps * 1e3
    print(f"\n{options.data}: {steps} steps of {params.batch}, {each:.1f} CPU-ms each")
    same = sum(a == b for a, b in zip(equal, losses, strict=True))
    good = bar("losses equal, bit for bit", f"{same} of {len(losses)}", "all", equal == losses)
    return timed(rows) and good


def timed(rows: list[Row]) -> bool:
    """The ratios of an overhead's rows; the bar is on CPU-seconds, wall is shown."""
    good = True
    for clock, name in enumerate(("CPU-s", "wall")):
        ours, plain, control = ([row[arm][clock] for row in rows] for arm in ("ours", "plain", "control"))
        ratio, low, high = interval(ours, plain)
        same, below, above = interval(control, plain)
        print(f"| plain against plain, {name} | {same:.4f} [{below:.4f}, {above:.4f}] | 1 | |")
        good &= (
            bar(f"ours against plain, {name}", f"{ratio:.4f} [{low:.4f}, {high:.4f}], n {len(rows)}", "<= 1.01", ratio <= 1.01)
            or clock == 1
        )
    return good


# ------------------------------------------------------------------------------------------------ faults


PHASES = ("forward", "backward", "optimiser", "evaluation")


def faults(options: argparse.Namespace) -> bool:
    """Trainings with out of memory in every phase and epoch, by injector and by the cap of a card that counts."""
    artifact = images("digits")
    data, params = tensors(artifact, 512), CnnParams(epochs=4, batch=64, width=8, blocks=1, lr=0.05)

    def injected(number: int) -> Row:
        draws, inject = random.Random(number), Injector()
        inject.at = {phase: set(draws.sample(range(1, 5 if phase == "evaluation" else 40), 3)) for phase in PHASES}
        run = RecordingRun(folder(), seed=number)
        try:
            train(faulty(resnet(artifact, params), inject), run, data)
        except DoesNotFit as error:
            return {"by": "injector", "raised": inject.raised, "survived": sum(inject.raised.values()) - 1, "error": str(error)}
        return {"by": "injector", "raised": inject.raised, "survived": sum(inject.raised.values()), "micro_batch": run.micro_batch}

    def capped(number: int) -> Row:
        recipe = resnet(artifact, params)
        with Counter() as free:
            train(recipe, RecordingRun(folder(), seed=number), data)
        run, cap = RecordingRun(folder(), seed=number), int(free.peak() * random.Random(number).uniform(0.45, 0.9))
        with Counter(cap) as card:
            train(recipe, run, data)
        over = card.peak() > cap
        return {"by": "cap", "raised": {"cap": card.refused()}, "survived": 0 if over else card.refused(), "micro_batch": run.micro_batch}

    rows = []
    while sum(row["survived"] for row in rows) < options.faults and len(rows) < options.faults:
        rows = kept("faults", len(rows) + 1, options.fresh and not rows, lambda n: capped(n) if n % 3 == 2 else injected(n))
    raised = sum(sum(row["raised"].values()) for row in rows)
    survived = sum(row["survived"] for row in rows)
    by = {phase: sum(row["raised"].get(phase, 0) for row in rows) for phase in (*PHASES, "cap")}
    return bar(f"faults survived ({by}, {len(rows)} trainings)", f"{survived} of {raised}", f"all of {options.faults}", survived == raised)


# ------------------------------------------------------------------------------------------------ science


def science(options: argparse.Namespace) -> bool:
    """Real images, no normalisation, no dropout: faults against none."""
    artifact = images(options.data)
    params = CnnParams(epochs=options.epochs, batch=64, lr=0.05, crop=2, label_smoothing=0.0)
    data = tensors(artifact, 64 * 100)

    def trained(dtype: torch.dtype, seed: int, broken: bool) -> tuple[RecordingRun, int]:
        inject, draws = Injector(), random.Random(seed)
        if broken:
            inject.at = {p: set(draws.sample(range(1, params.epochs if p == "evaluation" else 300), 3)) for p in PHASES}
        run = RecordingRun(folder(), seed=seed)
        train(faulty(plain_net(artifact, params, dtype), inject), run, data)
        return run, sum(inject.raised.values())

    def row(number: int) -> Row:
        (whole, _), (broken, raised) = trained(torch.float64, number, False), trained(torch.float64, number, True)
        pairs = list(zip(whole.curve("train/loss"), broken.curve("train/loss"), strict=True))
        single = [trained(torch.float32, number, faults)[0].curve("val/accuracy")[-1] for faults in (False, True)]
        return {"steps": len(pairs), "faults": raised, "apart": max(abs(a - b) for a, b in pairs), "fp32": single}

    rows = kept(f"science-{options.data}", options.seeds, options.fresh, row)
    apart, steps = max(r["apart"] for r in rows), min(r["steps"] for r in rows)
    good = bar(
        f"fp64 losses, {steps} steps, {sum(r['faults'] for r in rows)} faults, {len(rows)} seeds",
        f"{apart:.1e} apart",
        "<= 1e-12",
        apart <= 1e-12,
    )
    good &= bar("optimiser steps", steps, ">= 300", steps >= 300)
    worst = gradients_apart(artifact, params, data)
    good &= bar("fp32 gradients, split against whole", f"{worst:.1e} relative", "<= 1e-5", worst <= 1e-5)
    return accurate(rows) and good


def accurate(rows: list[Row]) -> bool:
    """Whether faults leave the final accuracy inside the seeds' interval."""
    plain, broken = ([row["fp32"][i] for row in rows] for i in (0, 1))
    low, mean, high = min(plain), statistics.mean(broken), max(plain)
    return bar("fp32 final accuracy with faults", f"{mean:.4f}", f"inside the seeds' {low:.4f} to {high:.4f}", low <= mean <= high)


def gradients_apart(artifact: Any, params: CnnParams, data: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of a parameter's gradient, over batches and micro-batches, at the same weights."""
    recipe, run, worst = plain_net(artifact, params, torch.float32), RecordingRun(folder()), 0.0
    torch.manual_seed(0)
    model = recipe.build()
    for batch in first_batches(recipe, data, 10):
        found = []
        for size in (64, 32, 7, 1):
            Elastic(recipe, run, model, Precision("fp32", torch.device("cpu")), Memory(size, size)).gradients(batch)
            found.append([p.grad.double() for p in model.parameters() if p.grad is not None])
        worst = max(worst, *(float((a - b).norm() / b.norm()) for other in found[1:] for a, b in zip(other, found[0], strict=True)))
    return worst


# ------------------------------------------------------------------------------------------------ kills


def kills(options: argparse.Namespace) -> bool:
    """Real children, killed with signal 9 at a random moment and started again."""
    place = OUT / "kills"
    shutil.rmtree(place, ignore_errors=True)
    params = PARAMS["digits"].model_copy(update={"epochs": 6, "checkpoint_s": options.checkpoint_s})
    reference = undisturbed(place / "reference", images("digits"), params)
    print(f"undisturbed: {reference.trained_s:.1f} s of training, {len(reference.losses)} losses logged")

    def row(number: int) -> Row:
        after = random.Random(number).uniform(0, reference.trained_s)
        return kill_and_resume(place / str(number), images("digits"), params, reference, after)

    rows = kept("kills", options.kills, options.fresh, row)
    equal = sum(row["weights_equal"] and row["losses_equal"] for row in rows)
    good = bar("killed, resumed and bit-equal in weights and losses", f"{equal} of {len(rows)}", "all", equal == len(rows))
    inside = sum(row["resumed_at"] > 0 for row in rows)
    print(f"| went on from a checkpoint (the others were killed before the first) | {inside} of {len(rows)} | | |")
    lost = max(row["lost_s"] for row in rows)
    return bar("training lost", f"{lost:.1f} s at most", "<= 60 s", lost <= 60) and good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "faults", "science", "kills", "all"])
    parser.add_argument("--data", choices=sorted(PARAMS), default="fashion_mnist")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of 100 steps, for science")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--checkpoint-s", type=float, default=0.5)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    chosen = [overhead, faults, science, kills] if options.what == "all" else [globals()[options.what]]
    passed = [measure(options) for measure in chosen]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
