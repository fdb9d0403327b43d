"""Models in a registry, as a training would have left them there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.tracking.client import DIGEST, Tracker
from overnight.tracking.registry import STEP, Model, Registry


@dataclass
class Models:
    """The versions of one name, and the runs that logged them."""

    registry: Registry
    name: str

    def log(self, digest: str, folder: Path | None = None) -> str:
        """A run that has logged a model of this digest; its id."""
        run_id = self.registry.tracker.open("training", {})
        log(self.registry.tracker, run_id, digest, folder)
        return run_id

    def register(self, digest: str, folder: Path | None = None) -> int:
        """The number of its version."""
        tags = {STEP: "tasks.vision.cnn:train_cnn", "overnight.licence.digits": "CC0"}
        event = {"name": self.name, "digest": digest, "flow": "vision", "tags": tags}
        return self.registry.register(self.log(digest, folder), event)

    def judge(self, digest: str, former: int, looks: int, promotes: bool = True) -> None:
        event: dict[str, Any] = {"name": self.name, "digest": digest, "former": former, "promotes": promotes}
        evidence = {"why": f"{digest} is better", "gain": 0.01}
        account = {"began": 100.0, "looks": looks}
        self.registry.judged({**event, "evidence": evidence, "account": account, "at": 100.0 + looks})

    def find(self) -> Model:
        found = self.registry.find(self.name)
        assert found is not None
        return found

    def champion(self) -> int:
        """Its number, 0 for none."""
        found = self.registry.find(self.name)
        return found.champion.number if found and found.champion else 0


def log(tracker: Tracker, run_id: str, digest: str, folder: Path | None = None) -> None:
    """What uploading a `model` event does, without the code of the project."""
    from mlflow.entities import LoggedModelOutput

    client = tracker.client
    model = client.create_logged_model(
        tracker.experiment_id, name="model", source_run_id=run_id, tags={DIGEST: digest}
    )
    if folder is not None:
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
