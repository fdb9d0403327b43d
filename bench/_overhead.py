"""What the engine and its logging cost beside a plain loop by hand, and what MLflow's logging would."""

import argparse
import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench._baselines import by_hand, images, resnet, tensors
from bench._interleave import Wait, Work, every, played, ratio
from bench._rows import Row, bar, folder, kept
from overnight.run import EventLogRun, RecordingRun, Run
from overnight.training.loop import train
from overnight.training.recipe import Recipe
from tasks.vision.cnn import CnnParams

PARAMS = {  # as in configs/, one epoch of as many steps as are asked for
    "digits": CnnParams(epochs=1, batch=64, channels=24, blocks=2, lr=0.1),
    "fashion_mnist": CnnParams(epochs=1, batch=128, channels=32, blocks=1, stem=2, flip=True, crop=2, lr=0.2),
}
ARMS = ("plain", "control", "ours", "logged", "mlflow")
TURNS = Path(__file__).with_name("_interleave.py")
TURN = 2  # steps of an arm, then it is the next one's turn


def overhead(options: argparse.Namespace) -> bool:
    """Rounds of all arms side by side; the plain loop beside itself shows what the machine adds."""
    arms = Arms(options.data, options.steps)
    equal, losses = arms.losses()
    same = sum(a == b for a, b in zip(equal, losses, strict=True))
    make = lambda _n: {name: vars(took) for name, took in played(arms.works()).items()}
    rows = kept(
        f"training-overhead-{options.data}",
        range(options.pairs),
        options.fresh,
        make,
        [TURNS],
        steps=options.steps,
    )
    each = statistics.median(sum(row["plain"]["cpu_s"]) for row in rows) / arms.steps * 1e3
    print(
        f"\n{options.data}: {arms.steps} steps of {arms.params.batch}, {each:.1f} CPU-ms each, "
        f"{len(rows)} rounds, turns of {TURN} steps"
    )
    good = bar("losses equal, bit for bit", f"{same} of {len(losses)}", "all", equal == losses)
    return timed(rows) and good


class Arms:
    """The same model, batches and seed, trained in several ways."""

    def __init__(self, data: str, steps: int) -> None:
        self.params = PARAMS[data]
        artifact = images(data)
        self.data = tensors(artifact, self.params.batch * steps)
        self.recipe = resnet(artifact, self.params, judged=False)
        self.steps = self.recipe.steps_per_epoch(self.data)

    def losses(self) -> tuple[list[float], list[float]]:
        """Of the engine and of the plain loop, each step's; also warms both up."""
        run, losses = RecordingRun(folder()), list[float]()
        train(self.recipe, run, self.data)
        by_hand(self.recipe, self.params, self.data, 0, losses.append)
        return run.curve("train/loss"), losses

    def works(self) -> dict[str, Work]:
        """Every arm, from its start."""
        works = {
            "plain": self._by_hand,
            "control": self._by_hand,
            "ours": self._ours,
            "logged": self._logged,
            "mlflow": self._mlflow,
        }
        return {name: works[name] for name in ARMS}

    def _by_hand(self, wait: Wait, log: Callable[[float], None] | None = None) -> None:
        losses: list[float] = []
        step, take, left = every(TURN, wait, first=False), log or losses.append, iter(range(self.steps - 1))

        def logged(loss: float) -> None:
            take(loss)
            if (
                next(left, None) is not None
            ):  # after the last one comes the end, which is a part of the last turn
                step()

        by_hand(self.recipe, self.params, self.data, 0, logged)

    def _ours(self, wait: Wait) -> None:
        train(turning(self.recipe, wait), EventLogRun(folder()), self.data)

    def _logged(self, wait: Wait) -> None:
        """With two metrics more at every step."""
        run = EventLogRun(folder())
        train(turning(logging(self.recipe, run), wait), run, self.data)

    def _mlflow(self, wait: Wait) -> None:
        """The plain loop, and MLflow's own call for the same two metrics, to its database in a file."""
        with server() as log:
            wait()  # what its start costs is not looked at
            self._by_hand(wait, log)


def turning(recipe: Recipe[Any], wait: Wait) -> Recipe[Any]:
    """The recipe, whose turns end where a step begins."""
    step = every(TURN, wait, first=True)

    def loss(model: Any, batch: Any) -> Any:
        step()
        return recipe.loss(model, batch)

    return replace(recipe, loss=loss)


def logging(recipe: Recipe[Any], run: Run) -> Recipe[Any]:
    """The recipe, with two metrics of its author's at every step."""
    steps = iter(range(1 << 30))

    def loss(model: Any, batch: Any) -> Any:
        found = recipe.loss(model, batch)
        run.metrics({"mine/one": 1.0, "mine/two": 2.0}, next(steps))
        return found

    return replace(recipe, loss=loss)


@cache
def _database() -> str:
    """One for all rounds: making its tables takes seconds."""
    return f"sqlite:///{folder() / 'mlflow.db'}"


class server(AbstractContextManager[Callable[[float], None]]):  # noqa: N801 - read as a function
    """A run of MLflow in a database of its own; gives what logs two metrics."""

    def __enter__(self) -> Callable[[float], None]:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow

        mlflow.set_tracking_uri(_database())
        self.mlflow, self.steps = mlflow, iter(range(1 << 30))
        mlflow.start_run()
        self.log(0.0)  # the tables are made at the first use
        return self.log

    def log(self, loss: float) -> None:
        """As in any tutorial."""
        step = next(self.steps)
        self.mlflow.log_metric("loss", loss, step=step)
        self.mlflow.log_metric("two", 2.0, step=step)

    def __exit__(self, *_: object) -> None:
        self.mlflow.end_run()


def timed(rows: list[Row]) -> bool:
    """The ratios; bars are on CPU-seconds, wall is shown."""
    bars = {"control": None, "ours": 1.01, "logged": 1.015, "mlflow": None}
    says = {
        "control": "plain against plain (A/A)",
        "ours": "ours against plain",
        "logged": "ours, 2 metrics a step logged, against plain",
        "mlflow": "plain with MLflow's log_metric, 2 a step, against plain",
    }
    good = True
    for clock in ("cpu_s", "wall_s"):
        for arm, wanted in bars.items():
            turns = len(rows[0]["plain"][clock])
            found = ratio(
                *(np.array([row[which][clock][-turns:] for row in rows]) for which in (arm, "plain"))
            )
            figure = f"{found[0]:.4f} [{found[1]:.4f}, {found[2]:.4f}]"
            if wanted is None or clock == "wall_s":
                print(f"| {says[arm]}, {clock} | {figure} | {f'<= {wanted}' if wanted else ''} | shown |")
            else:
                good &= bar(f"{says[arm]}, {clock}", figure, f"<= {wanted}", found[0] <= wanted)
    return good
