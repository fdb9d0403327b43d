"""Trainings with out of memory against the same without: losses, gradients, and where they end."""

import argparse
import random
import statistics
from typing import Any

import torch

from bench._baselines import Injector, faulty, images, plain_net, tensors
from bench._faults import PHASES
from bench._rows import Row, bar, folder, kept
from overnight.run import RecordingRun
from overnight.training.accumulate import GradientAccumulation
from overnight.training.batches import Batches, seeded
from overnight.training.divergence import divisor
from overnight.training.loop import train
from overnight.training.prefetch import Prefetcher
from overnight.training.state import TrainState
from tasks.vision.cnn import CnnParams

SIZES = (64, 32, 7, 1)  # micro-batches; the first is the whole
BATCHES = 30  # whose gradients are compared, each at the weights that training has then


class Spread(Injector):
    """Three faults a phase: it fails the first time it comes after one of its optimizer steps."""

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__()
        self.done, chosen = 0, random.Random(seed).sample(range(steps), 3 * len(PHASES) if steps else 0)
        self.at = {phase: set(chosen[place :: len(PHASES)]) for place, phase in enumerate(PHASES)}

    def __call__(self, phase: str) -> None:
        due = sorted(step for step in self.at[phase] if step <= self.done)
        self.done += phase == "optimizer"
        if due:
            self.at[phase].remove(due[0])
            self.raised[phase] = self.raised.get(phase, 0) + 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected)")


def science(options: argparse.Namespace) -> bool:
    """Real images, no normalisation, no dropout."""
    artifact = images(options.data)
    params = CnnParams(
        epochs=options.epochs, batch=64, lr=0.05, crop=2, label_smoothing=0.0, checkpoint_s=1.0
    )
    data = tensors(artifact, 64 * 100)

    def trained(dtype: torch.dtype, seed: int, broken: bool) -> tuple[RecordingRun, int]:
        inject, place = Spread(seed, 100 * params.epochs if broken else 0), folder()
        run = RecordingRun(place, seed=seed)
        run.checkpoints = place / "checkpoints"
        train(faulty(plain_net(artifact, params, dtype), inject), run, data)
        return run, sum(inject.raised.values())

    def row(number: int) -> Row:
        (whole, _), (broken, raised) = (
            trained(torch.float64, number, False),
            trained(torch.float64, number, True),
        )
        pairs = list(zip(whole.curve("train/loss"), broken.curve("train/loss"), strict=True))
        single = [
            trained(torch.float32, number, faults)[0].curve("val/accuracy")[-1] for faults in (False, True)
        ]
        return {
            "steps": len(pairs),
            "faults": raised,
            "apart": max(abs(a - b) for a, b in pairs),
            "fp32": single,
        }

    rows = kept(
        f"training-science-{options.data}", range(options.seeds), options.fresh, row, epochs=options.epochs
    )
    apart, steps = max(r["apart"] for r in rows), min(r["steps"] for r in rows)
    what = f"fp64 losses, {steps} steps, {sum(r['faults'] for r in rows)} faults, {len(rows)} seeds"
    good = bar(what, f"{apart:.1e} apart", "<= 1e-12", apart <= 1e-12)
    good &= bar("optimizer steps", steps, ">= 300", steps >= 300)
    found = kept(
        f"training-gradients-{options.data}",
        range(1),
        options.fresh,
        lambda _n: gradients_apart(artifact, params, data),
    )[0]
    what = (
        f"fp32 gradients split by {SIZES[1:]} against whole, {BATCHES} batches, "
        "each at the weights of its step"
    )
    shown = f"{found['parameter']:.1e} relative (of all parameters as one: {found['batch']:.1e})"
    good &= bar(what, shown, "<= 1e-5", found["parameter"] <= 1e-5)
    return accurate(rows) and good


def accurate(rows: list[Row]) -> bool:
    """Whether faults leave the final accuracy inside the seeds' interval."""
    plain, broken = ([row["fp32"][i] for row in rows] for i in (0, 1))
    low, mean, high = min(plain), statistics.mean(broken), max(plain)
    return bar(
        "fp32 final accuracy with faults, mean",
        f"{mean:.4f}",
        f"inside the seeds' {low:.4f} to {high:.4f}",
        low <= mean <= high,
    )


def gradients_apart(artifact: Any, params: CnnParams, data: dict[str, torch.Tensor]) -> Row:
    """Largest relative distance from the unsplit batch's gradient: as one vector, and of each parameter."""
    recipe, run, worst, single = plain_net(artifact, params, torch.float32), RecordingRun(folder()), 0.0, 0.0
    state = TrainState(recipe, run, data)
    batches = recipe.batches(data, seeded(0, 0))
    assert isinstance(batches, Batches)
    for batch in (batches.at(number) for number in range(BATCHES)):
        found = []
        for size in reversed(SIZES):  # the whole comes last: its gradient makes the step
            state.plan.micro.size = size
            sums = GradientAccumulation(run, state, Prefetcher(data, state.device)).gradients(batch)
            count = 1.0 if sums.averaged else divisor(sums.count)
            found.append([p.grad.double() / count for p in state.parameters if p.grad is not None])
        whole, split = found[-1], found[:-1]
        for other in split:
            single = max(
                single, *(float((a - b).norm() / b.norm()) for a, b in zip(other, whole, strict=True))
            )
            apart = torch.cat([(a - b).flatten() for a, b in zip(other, whole, strict=True)]).norm()
            worst = max(worst, float(apart / torch.cat([b.flatten() for b in whole]).norm()))
        state.optimizer.step()  # by the whole batch's, which are averages already
    return {"batch": worst, "parameter": single}
