"""The parent's MLflow client: one run for the experiment, one below it for each step. The only user of MLflow besides pyfunc.py."""

import json
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from overnight.errors import Stopped
from overnight.patience import patiently
from overnight.services import owed

Json = dict[str, Any]
TRAINING = "workflowType=machine_learning"  # MLflow's pages open for language model traces otherwise
MAX_NAME = 200  # of a metric or param; MLflow takes 250
MAX_TEXT = 6000  # of a param or tag in MLflow
QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model's requirements are ours to say, whatever lies in the working folder
}
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")


V = TypeVar("V")


def allowed(values: Mapping[str, V]) -> dict[str, V]:
    """The values under names that MLflow takes: it refuses `I;16` or `Mr. O'Hara`, and with one name the whole batch."""
    found: dict[str, V] = {}
    for name, value in values.items():
        parts = re.sub(r"[^/\w.\- :]", "_", name)[:MAX_NAME].split("/")
        plain = "/".join(part if part.strip(".") else part.replace(".", "_") or "_" for part in parts)
        while plain in found:
            plain += "_"
        found[plain] = value
    return found


class Tracker:
    """An MLflow experiment on a tracking server; client and run ids, never the fluent global."""

    def __init__(self, uri: str, experiment: str) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self.uri = uri.rstrip("/")
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment_id = self._experiment(experiment)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return str(self.client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"}))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def open(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """Start a run, below `parent` when given; its id."""
        nested = {"mlflow.parentRunId": parent} if parent else {}
        source = {"mlflow.user": _user(), "mlflow.source.name": "overnight", "mlflow.source.type": "LOCAL"}
        return str(self.client.create_run(self.experiment_id, tags={**source, **tags, **nested}, run_name=name).info.run_id)

    def reopen(self, run_id: str, tags: Mapping[str, str], parent: str | None = None) -> bool:
        """Go on with the run of an earlier attempt; False when it is gone, or of another experiment."""
        try:
            found = self.client.get_run(run_id)
        except _mlflow_error() as error:
            if getattr(error, "error_code", "") not in REFUSED:
                raise
            return False
        if found.info.lifecycle_stage != "active" or found.info.experiment_id != self.experiment_id:
            return False
        self.tags(run_id, {**tags, **({"mlflow.parentRunId": parent} if parent else {})})
        self.client.update_run(run_id, status="RUNNING")
        return True

    def notes(self, run_id: str) -> list[str]:
        """What earlier attempts noted."""
        text = self.client.get_run(run_id).data.tags.get("mlflow.note.content", "")
        return [text] if text else []

    def link(self, run_id: str) -> str:
        """Where a browser finds the run; the tracking address when that is no server."""
        if not self.uri.startswith("http"):
            return self.uri
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{run_id}?{TRAINING}"

    def params(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log params, a hundred at a time (MLflow's limit)."""
        from mlflow.entities import Param

        every = [Param(key, str(value)[:MAX_TEXT]) for key, value in allowed(values).items()]
        for start in range(0, len(every), 100):
            self.client.log_batch(run_id, params=every[start : start + 100])

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self.client.set_tag(run_id, key, value[:MAX_TEXT])

    def text(self, run_id: str, text: str, name: str) -> None:
        """Publish a text as an artifact."""
        self.client.log_text(run_id, text, name)

    def close(self, run_id: str, status: str) -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)


class Shipper:
    """Carries one step's events to its MLflow run, in order and each once; keeps what a server that is away does not take."""

    def __init__(self, tracker: Tracker, run_id: str, label: str, params: Mapping[str, Any] | None = None) -> None:
        self.tracker, self.run_id, self.label = tracker, run_id, label
        self.refused: list[str] = []
        self.latest: dict[str, float] = {}
        self.notes: list[str] = []
        self._waiting: list[Json] = []
        self._params = {name: str(value) for name, value in (params or {}).items()}
        self._lock, self._sending = threading.Lock(), threading.Lock()

    def take(self, event: Json) -> None:
        """Queue an event; never waits for a server."""
        if event["event"] == "metrics":
            self.latest.update({k: float(v) for k, v in event["values"].items() if not k.startswith(("system/", "card/"))})
        if event["event"] == "note":
            self.notes.append(event["text"])
        with self._lock:
            self._waiting.append(event)

    def ship(self) -> None:
        """Send what waits; on an error (MlflowException, OSError) it stays queued."""
        with self._sending:
            with self._lock:
                batch = self._waiting[:1000]
            if not batch:
                return
            self._once(lambda: self._metrics([e for e in batch if e["event"] == "metrics"]), "metrics")
            for event in batch:
                self._once(partial(self._one, event), event["event"])
                event["event"] = "shipped"
            with self._lock:
                del self._waiting[: len(batch)]

    def _once(self, send: Callable[[], None], kind: str) -> None:
        """Send; what the server refuses for good is noted, so that it does not hold up the rest."""
        try:
            send()
        except _mlflow_error() as error:
            if getattr(error, "error_code", "") not in REFUSED:
                raise
            self.refused.append(f"{kind}: {error}")

    def drain(self, patience_s: float = 60) -> int:
        """Send all that waits, trying again for a while; how many events could not be sent."""
        until = time.monotonic() + patience_s
        while self._waiting:
            try:
                self.ship()
            except (OSError, _mlflow_error()):
                if time.monotonic() > until:
                    break
                time.sleep(1)
        return len(self._waiting)

    def finish(self, status: str, stop: Callable[[], bool]) -> int:
        """Send all that waits and end the run; how many events could not be sent. An end that cannot be told now is told by the supervisor."""

        def tell() -> None:
            self.drain(5 if stop() else 60)
            self.tracker.close(self.run_id, status)

        try:
            patiently(tell, stop)
        except (Stopped, OSError, _mlflow_error()):
            owed.owe(self.run_id, status)
        return len(self._waiting)

    def _metrics(self, events: list[Json]) -> None:
        from mlflow.entities import Metric

        every = [Metric(k, float(v), int(e["at"] * 1000), e["step"]) for e in events for k, v in allowed(e["values"]).items()]
        for start in range(0, len(every), 1000):
            self.tracker.client.log_batch(self.run_id, metrics=every[start : start + 1000])
        for event in events:
            event["event"] = "shipped"  # so that a failure further on does not send them again

    def _one(self, event: Json) -> None:
        client, kind = self.tracker.client, event["event"]
        if kind == "param":
            self._param(event["name"], event["value"])
        elif kind == "note":
            client.set_tag(self.run_id, "mlflow.note.content", "\n\n".join(self.notes))
        elif kind == "data":
            self._data(event)
        elif kind == "publish":
            path = Path(event["path"])
            send = client.log_artifacts if path.is_dir() else client.log_artifact
            send(self.run_id, str(path), event["folder"] or None)
        elif kind == "model":
            publish_model(self.tracker, self.run_id, self.label, Path(event["path"]))

    def _param(self, name: str, value: str) -> None:
        """A param is written once; one that was asked for and decided otherwise (precision: auto) keeps both."""
        if self._params.setdefault(name, value) != value:
            name = f"{name}.used"
        self.tracker.params(self.run_id, {name: value})

    def _data(self, event: Json) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": event["source"] or event["name"]})
        profile = json.dumps({k: v for k, v in event["spec"].items() if v})[:MAX_TEXT]
        entity = Dataset(event["name"], event["digest"][:36], "local", source, profile=profile)
        self.tracker.client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", self.label)])])


def publish_model(tracker: Tracker, run_id: str, name: str, folder: Path) -> None:
    """Log a saved model as an MLflow model that `mlflow.pyfunc.load_model` can use, from code and safetensors."""
    import shutil

    from mlflow.entities import LoggedModelOutput

    packed = folder.parent / "mlflow_model"
    shutil.rmtree(packed, ignore_errors=True)
    _pack(folder, packed)
    client = tracker.client
    model = client.create_logged_model(tracker.experiment_id, name=re.sub(r"[^\w -]", "-", name), source_run_id=run_id)
    client.log_model_artifacts(model.model_id, str(packed))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    shutil.rmtree(packed)


def _pack(folder: Path, packed: Path) -> None:
    """Write MLflow's form of a model: code, weights, requirements, signature."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    code = Path(__file__).resolve().parent.parent
    signature = None
    if (folder / "arrays.safetensors").is_file():
        from safetensors.numpy import load_file

        example = load_file(folder / "arrays.safetensors")["example"]
        signature = ModelSignature(inputs=Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an input example, which would run the model in this process
        mlflow.pyfunc.save_model(
            str(packed),
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(code / "overnight"), str(code / "tasks")],
            pip_requirements=_requirements(),
            signature=signature,
        )


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")]


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    found: type[Exception] = MlflowException
    return found


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"
