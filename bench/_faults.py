"""Out of memory in every phase and epoch, by injector and by the limit of a card that counts."""

import argparse
import random
from contextlib import suppress
from typing import Any

import torch

from bench._baselines import Injector, faulty, images, resnet, tensors
from bench._rows import Row, bar, folder, kept
from overnight.errors import DoesNotFit, Stopped
from overnight.gpu.memory_counter import Counter
from overnight.run import RecordingRun
from overnight.training.loop import train
from tasks.vision.cnn import CnnParams

PHASES = ("forward", "backward", "optimizer", "evaluation")
PARAMS = CnnParams(epochs=4, batch=64, channels=8, blocks=1, lr=0.05)
Data = dict[str, torch.Tensor]


def faults(options: argparse.Namespace) -> bool:
    """Trainings until enough faults were raised; each kind of fault has its turn."""
    artifact = images("digits")
    data, kinds, rows = tensors(artifact, 512), (injected, resumed, capped), list[Row]()
    while sum(sum(row["raised"].values()) for row in rows) < options.faults and len(rows) < options.faults:
        rows = kept(
            "training-faults",
            range(len(rows) + 1),
            options.fresh and not rows,
            lambda n: kinds[n % 3](artifact, data, n),
        )
    raised, survived = (sum(sum(row[what].values()) for row in rows) for what in ("raised", "survived"))
    names = {name for row in rows for name in row["raised"]}
    by = {name: sum(row["raised"].get(name, 0) for row in rows) for name in sorted(names)}
    good = bar(
        f"faults survived ({by}, {len(rows)} trainings)",
        f"{survived} of {raised}",
        f"all of {options.faults}",
        survived == raised,
    )
    return good and raised >= options.faults


def result(by: str, raised: dict[str, int], run: RecordingRun, lost: str = "", over: bool = False) -> Row:
    """A training's row. lost: the phase in which it ended; over: it exceeded the cap, so nothing counts."""
    survived = {name: 0 if over else times - (name == lost) for name, times in raised.items()}
    return {
        "by": by,
        "raised": raised,
        "survived": survived,
        "micro_batch": run.micro_batch,
        "epochs": len(run.curve("val/accuracy")),
    }


def injected(artifact: Any, data: Data, number: int) -> Row:
    """Three faults in each phase, anywhere in the training."""
    draws, inject = random.Random(number), Injector()
    inject.at = {
        phase: set(draws.sample(range(1, 5 if phase == "evaluation" else 40), 3)) for phase in PHASES
    }
    run, lost = RecordingRun(folder(), seed=number), ""
    try:
        train(faulty(resnet(artifact, PARAMS), inject), run, data)
    except DoesNotFit:
        lost = inject.last
    return result("injector", inject.raised, run, lost)


def resumed(artifact: Any, data: Data, number: int) -> Row:
    """Stopped anywhere; the next attempt meets faults in each phase of its first step and evaluation."""
    draws, place = random.Random(number), folder()
    params = PARAMS.model_copy(update={"checkpoint_s": 0.0})
    before, after, inject, lost = (
        RecordingRun(place, seed=number),
        RecordingRun(place, seed=number),
        Injector(),
        "",
    )
    before.checkpoints = after.checkpoints = place / "checkpoints"
    steps = draws.randrange(1, 30)
    before.should_stop = lambda: len(before.curve("train/loss")) >= steps
    with suppress(Stopped):
        train(resnet(artifact, params), before, data)
    inject.at = {"forward": {1}, "backward": {2}, "optimizer": {1}, "evaluation": {1}}
    try:
        train(faulty(resnet(artifact, params), inject), after, data)
    except DoesNotFit:
        lost = inject.last
    return result(
        "resumed",
        {f"{name} after a resume": times for name, times in inject.raised.items()},
        after,
        f"{lost} after a resume",
    )


def capped(artifact: Any, data: Data, number: int) -> Row:
    """No injector: the card counts, and has 45 to 90 % of what the training would like."""
    recipe = resnet(artifact, PARAMS)
    with Counter() as free:
        train(recipe, RecordingRun(folder(), seed=number), data)
    run, cap, lost = (
        RecordingRun(folder(), seed=number),
        int(free.peak() * random.Random(number).uniform(0.45, 0.9)),
        "",
    )
    with Counter(cap) as card:
        try:
            train(recipe, run, data)
        except DoesNotFit:
            lost = "cap"
    return result("cap", {"cap": card.refused()}, run, lost, over=card.peak() > cap)
