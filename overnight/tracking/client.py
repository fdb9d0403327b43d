"""MLflow as this project uses it: one run for the experiment, one below it for each step."""

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from overnight.events import Json
from overnight.processes import user_name

DIGEST = "overnight.digest"  # tag of a logged model
NOTE_TAG = "mlflow.note.content"
# What the names of tags that people do not read begin with; MLflow's pages leave out "mlflow.".
MACHINE = ("overnight.", "prefect.", "input.")
MAX_NOTE = 6000  # characters; MLflow takes 8000
NOTE_START = 1500  # of which the first ones stay
GAP = "(...)"
VERDICT = r"its process \(pid \d+\) is gone|the machine went down or was started again"
TRAINING = "workflowType=machine_learning"  # MLflow's pages open for language model traces otherwise
SCORE = "score"  # metric of an experiment's own run, which its list of runs shows
# What MLflow keeps for its button "Share": the columns of the list; without it no metric is among them.
VIEW = "scores"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = {"selectedColumns": [f"metrics.`{SCORE}`"]}
MAX_NAME = 200  # of a metric or param; MLflow takes 250
MAX_TEXT = 6000  # of a param or tag in MLflow
QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model's requirements are set explicitly
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the uploader retries for longer
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
MOST_STEP = 1 << 63
MANY = 1000  # metrics in one request; MLflow takes no more
REFUSED = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "INVALID_STATE",
    "RESOURCE_DOES_NOT_EXIST",
    "PERMISSION_DENIED",
)
UNFIT = (400, 413, 422)  # answers to an upload that would be the same again
V = TypeVar("V")


def allowed(values: Mapping[str, V]) -> dict[str, V]:
    """The values under names that MLflow takes; for one bad name, like `I;16`, it refuses the whole batch."""
    found: dict[str, V] = {}
    for name, value in values.items():
        plain = _plain(name)
        while plain in found:
            plain += "_"
        found[plain] = value
    return found


@cache
def _plain(name: str) -> str:
    parts = re.sub(r"[^/\w.\- :]", "_", name)[:MAX_NAME].split("/")
    return "/".join(part if part.strip(".") else part.replace(".", "_") or "_" for part in parts)


@dataclass
class RunState:
    params: dict[str, str]
    note: str
    steps: dict[str, int]


class Tracker:
    """An MLflow experiment on a tracking server; client and run ids, never the fluent global."""

    def __init__(self, uri: str, experiment: str, about: str = "") -> None:
        self.uri = uri.rstrip("/")
        self.experiment = experiment
        self.about = about  # description of an experiment that is new

    @cached_property
    def client(self) -> Any:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=self.uri)

    @cached_property
    def _found(self) -> Any:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            tags = {"mlflow.experimentKind": "custom_model_development", VIEW_TAG: json.dumps(COLUMNS)}
            tags |= {NOTE_TAG: self.about} if self.about else {}
            return self.client.get_experiment(self.client.create_experiment(self.experiment, tags=tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        if VIEW_TAG not in found.tags:  # of an earlier version
            self.client.set_experiment_tag(found.experiment_id, VIEW_TAG, json.dumps(COLUMNS))
        return found

    @property
    def experiment_id(self) -> str:
        return str(self._found.experiment_id)

    @property
    def created(self) -> int:
        """When the experiment was made, in ms: another number is another database."""
        return int(self._found.creation_time or 0)

    def lost(self, run_id: str, created: int) -> bool:
        """Whether the run is gone with its database, in which its experiment was made at `created`."""
        if self._run(run_id) is not None:
            return False
        self.__dict__.pop("_found", None)
        return created not in (0, self.created)

    def open(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        nested = {"mlflow.parentRunId": parent} if parent else {}
        user = user_name()
        source = {"mlflow.user": user, "mlflow.source.name": "overnight", "mlflow.source.type": "LOCAL"}
        made = self.client.create_run(
            self.experiment_id, tags={**source, **hidden(tags), **nested}, run_name=name
        )
        return str(made.info.run_id)

    def reopen(self, run_id: str, tags: Mapping[str, str], parent: str | None = None) -> bool:
        """Go on with the run of an earlier attempt; False when it is gone, or of another experiment."""
        if not self.active(run_id):
            return False
        self.tags(run_id, {**tags, **({"mlflow.parentRunId": parent} if parent else {})})
        self.client.update_run(run_id, status="RUNNING")
        return True

    def refuses(self, error: Exception) -> bool:
        """Whether MLflow itself refuses this for good; another server on its port may answer 404, too."""
        from mlflow.exceptions import MlflowException, RestException
        from requests import HTTPError

        if isinstance(error, HTTPError):  # as its uploads say it
            return error.response is not None and error.response.status_code in UNFIT
        own = RestException if self.uri.startswith("http") else MlflowException
        return isinstance(error, own) and getattr(error, "error_code", "") in REFUSED

    def _run(self, run_id: str) -> Any:
        """None where MLflow has no such run."""
        try:
            return self.client.get_run(run_id)
        except mlflow_error() as error:
            if not self.refuses(error):
                raise
            return None

    def active(self, run_id: str) -> bool:
        run = self._run(run_id)
        here = run is not None and run.info.experiment_id == self.experiment_id
        return bool(here and run.info.lifecycle_stage == "active")

    def find(self, tag: str, value: str) -> str | None:
        (tag,) = hidden({tag: value})
        wanted = f"tags.`{tag}` = {json.dumps(value)}"
        found = self.client.search_runs([self.experiment_id], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None

    def run_state(self, run_id: str) -> RunState:
        data: Any = self.client.get_run(run_id).data
        return RunState(
            dict(data.params),
            data.tags.get(NOTE_TAG, ""),
            {m.key: int(m.step) for m in data._metric_objs},
        )

    def link(self, run_id: str) -> str:
        if not self.uri.startswith("http"):
            return self.uri
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs/{run_id}?{TRAINING}"

    def list_link(self) -> str:
        """Where a browser finds the runs of the experiment with their scores; empty without a server."""
        if not self.uri.startswith("http"):
            return ""
        return f"{self.uri}/#/experiments/{self.experiment_id}/runs?{TRAINING}&viewStateShareKey={VIEW}"

    def params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        every = [Param(key, str(value)[:MAX_TEXT]) for key, value in allowed(values).items()]
        for start in range(0, len(every), 100):
            self.client.log_batch(run_id, params=every[start : start + 100])

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(key, value[:MAX_TEXT]) for key, value in hidden(values).items()]
        self.client.log_batch(run_id, tags=tags)

    def metrics(self, run_id: str, events: Iterable[Json]) -> None:
        """MLflow keeps a point that is sent twice once.

        Raises OverflowError for a step that no database takes: the server would answer as if it were in
        trouble.
        """
        from mlflow.entities import Metric

        events = list(events)
        if odd := [e["step"] for e in events if not -MOST_STEP <= e["step"] < MOST_STEP]:
            raise OverflowError(f"step {odd[0]} has more than 64 bits")
        every = [
            Metric(k, float(v), round(e["at"] * 1000), e["step"])
            for e in events
            for k, v in allowed(e["values"]).items()
        ]
        for start in range(0, len(every), MANY):
            self.client.log_batch(run_id, metrics=every[start : start + MANY], synchronous=True)

    def inputs(self, run_id: str, event: Json, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": event["source"] or event["name"]})
        profile = json.dumps({k: v for k, v in event["spec"].items() if v})[:MAX_TEXT]
        entity = Dataset(event["name"], event["digest"][:36], "local", source, profile=profile)
        self.client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def publish(self, run_id: str, path: Path, folder: str) -> None:
        send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        if path.exists():
            send(run_id, str(path), folder or None)

    def close(self, run_id: str, status: str, at: float | None = None) -> None:
        self.client.set_terminated(run_id, status, None if at is None else int(at * 1000))


def hidden(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags, with names for MACHINE's that MLflow's pages do not show."""
    return {f"mlflow.{name}" if name.startswith(MACHINE) else name: value for name, value in tags.items()}


def append_note(before: str, text: str) -> str:
    """One more paragraph, never repeated; cut in the middle when too long."""
    paragraphs = [part for part in before.split("\n\n") if part]
    text = text.strip()
    if not text or text in paragraphs:
        return before
    whole = "\n\n".join([*paragraphs, text])
    if len(whole) <= MAX_NOTE:
        return whole
    tail = whole[-(MAX_NOTE - NOTE_START - len(GAP) - 4) :]
    return f"{whole[:NOTE_START].rsplit(' ', 1)[0]}\n\n{GAP}\n\n{tail}"


def without_verdicts(note: str) -> str:
    """A description without the words about a process that was thought dead, or of an attempt that was."""
    parts = [part for part in note.split("\n\n") if not re.match(VERDICT, part)]
    return "\n\n".join(parts)


def mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    found: type[Exception] = MlflowException
    return found
