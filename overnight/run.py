"""Run: the only way for a step to log. A step sees nothing else of MLflow, Prefect or the card."""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overnight import artifact, events
from overnight.artifact import Artifact, DataSpec, Writer
from overnight.data.content import CleaningCounts
from overnight.errors import Stopped
from overnight.events import Json
from overnight.predictor import Interface

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure


@dataclass(eq=False)
class Run(ABC):
    """One step's run: what it may log and save, and the few facts it may ask for.

    device: "cpu" or "cuda"; budget_mib: what its allocator may hold, None without a lease
    """

    folder: Path
    seed: int = 0
    device: str = "cpu"
    budget_mib: int | None = None

    def __post_init__(self) -> None:
        self.should_stop: Callable[[], bool] = lambda: False
        self.should_yield: Callable[[], str] = lambda: ""  # why to give the card back for a while
        self.restarts = False  # whether a fresh process is started when this one ends with RestartProcess
        self.checkpoints: Path | None = None  # where trainings may keep theirs
        self.trainings = 0
        self.micro_batch: int | None = None  # what the last training used at the end
        self.out_of_memory = 0  # times it was met and survived
        self.resident_mib = 0.0  # of its data, that lay on the card because there was room
        self.logged_before = dict[str, int]()  # up to which step each metric was logged by an earlier attempt
        self.logged = dict[str, int]()  # and by this one
        self.reports = 0  # of the monitor, in earlier attempts

    @abstractmethod
    def _emit(self, event: Json) -> None:
        """Never raises because a server is away."""

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """One number of a curve; `step` orders it."""
        self.metrics({name: value}, step)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Those that an earlier attempt has logged already are left out."""
        before = self.logged_before
        fresh = {k: float(v) for k, v in values.items() if k not in before or step > before[k]}
        if fresh:
            self.logged |= {name: max(int(step), self.logged.get(name, int(step))) for name in fresh}
            self._emit({"event": "metrics", "values": fresh, "step": int(step)})

    def checkpoint_folder(self) -> Path | None:
        """A place for the checkpoints of the next training, the same in every attempt; None: nowhere."""
        self.trainings += 1
        return self.checkpoints and self.checkpoints / str(self.trainings - 1)

    def named(self, name: str) -> str:
        """The name of a metric of the newest training: train-2/loss in the second of a step."""
        kind, _, rest = name.partition("/")
        return f"{kind}-{self.trainings}/{rest}" if self.trainings > 1 else name

    def sync(self) -> None:  # noqa: B027 - most runs keep nothing on a disk
        """What was logged is on the disk when this returns."""

    def continues(self, folders: Sequence[str]) -> None:
        """Folders of earlier attempts, whose events belong to this run as well."""
        self._emit({"event": "continues", "folders": list(folders)})

    def param(self, name: str, value: object) -> None:
        """A fact that was decided while running (the engine chosen, the number of parameters)."""
        self._emit({"event": "param", "name": name, "value": str(value)})

    def note(self, text: str) -> None:
        """One sentence for the log and the run's description: what happened."""
        self._emit({"event": "note", "text": text})

    def provisional(self, why: str) -> None:
        """Note that the result is not what was asked for (no network): the next run does it again."""
        self.note(why)
        self._emit({"event": "provisional", "text": why})

    def log(self, text: str) -> None:
        """A line for the log alone."""
        self._emit({"event": "log", "text": text})

    def cleaned(self, counts: CleaningCounts) -> None:
        """Odd data that a rule took care of: logged line by line and as metrics."""
        for reason, times in sorted(counts.items()):
            where = f" (first: {counts.first[reason]})" if reason in counts.first else ""
            self.log(f"data: {reason}: {times}{where}")
            self.metric(f"data/{reason.replace(' ', '_')}", times)

    def progress(self, done: float, total: float, text: str = "", at_most: bool = False) -> None:
        """How far the step is; also the place where a requested stop takes effect (raises Stopped).

        at_most: it may end before `total`.
        """
        amounts = {"done": float(done), "total": float(total), "at_most": at_most}
        self._emit({"event": "progress", **amounts, "text": text})
        if self.should_stop():
            raise Stopped(f"stopped at {done:g} of {total:g} {text}".rstrip())

    def data(self, name: str, digest: str, source: str = "", spec: DataSpec | None = None) -> None:
        shapes = (spec or DataSpec()).model_dump(mode="json")
        self._emit({"event": "data", "name": name, "digest": digest, "source": source, "spec": shapes})

    def picture(self, name: str, figure: "Figure") -> None:
        """Published as <name>.png."""
        path = self.folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, bbox_inches="tight")
        self.publish(path, name.rpartition("/")[0])

    def publish(self, path: Path, folder: str = "") -> None:
        self._emit({"event": "publish", "path": str(path), "folder": folder})

    def save(
        self,
        kind: str,
        spec: DataSpec | None = None,
        arrays: "Mapping[str, np.ndarray] | None" = None,
        meta: Json | None = None,
        files: Mapping[str, Writer] | None = None,
    ) -> Artifact:
        """Hand on one artifact, whole or not at all; raises DiskFull."""
        return artifact.save(self.folder / "out" / kind, kind, spec, arrays, meta, files)

    def save_model(
        self,
        predictor: str,
        weights: "Mapping[str, torch.Tensor] | Mapping[str, np.ndarray]",
        config: Json,
        spec: DataSpec | None = None,
        interface: Interface | None = None,
    ) -> Artifact:
        """Hand on a model.

        predictor: "module:function" with function(folder) -> Predictor; it reads `config` and `interface`
        from meta.json and the weights from weights.safetensors. Arrays are written without loading torch.
        """
        meta = {"predictor": predictor, "config": config}
        if interface is not None:
            meta["interface"] = interface.model_dump(mode="json")
        saved = self.save(
            "model", spec, None, meta, {"weights.safetensors": partial(_write_weights, weights)}
        )
        self._emit({"event": "model", "path": str(saved.path), "digest": saved.digest})
        return saved


class EventLogRun(Run):
    def __post_init__(self) -> None:
        super().__post_init__()
        self._writer = events.Writer(self.folder / events.CHILD)

    def _emit(self, event: Json) -> None:
        self._writer.write({"at": round(time.time(), 3), **_finite(event)})

    def sync(self) -> None:
        # What was logged before a checkpoint must survive a power cut as it does.
        with suppress(OSError):  # the checkpoint itself will say it
            self._writer.sync()


class RecordingRun(Run):
    """Keeps everything that was logged, for tests that call a step's body without any server."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[Json] = []

    def _emit(self, event: Json) -> None:
        self.events.append(json.loads(json.dumps(_finite(event))))

    def curve(self, name: str) -> list[float]:
        return [float(e["values"][name]) for e in self.of("metrics") if name in e["values"]]

    def last(self, name: str) -> float:
        """Raises KeyError when it was never logged."""
        values = self.curve(name)
        if not values:
            raise KeyError(name)
        return values[-1]

    def of(self, kind: str) -> list[Json]:
        return [e for e in self.events if e["event"] == kind]


def _finite(event: Json) -> Json:
    """JSON has no NaN: it travels as text and comes back by float()."""
    if event["event"] != "metrics":
        return event
    values = {k: v if math.isfinite(float(v)) else str(v) for k, v in event["values"].items()}
    return {**event, "values": values}


def _write_weights(weights: "Mapping[str, Any]", path: Path) -> None:
    import numpy as np

    if all(isinstance(one, np.ndarray) for one in weights.values()):
        from safetensors.numpy import save_file as save_arrays

        save_arrays({name: np.ascontiguousarray(one) for name, one in weights.items()}, path)
        return
    from safetensors.torch import save_file

    save_file({name: one.detach().cpu().contiguous().clone() for name, one in weights.items()}, path)
