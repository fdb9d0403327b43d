"""Where the model lies that a command names."""

from pathlib import Path

from overnight.errors import BadInput

NAME = {
    "help": "a registered model (its champion, else its newest version), NAME@3 or NAME@alias; the id or "
    "link of an MLflow run; or the folder of a model"
}


def find(name: str) -> Path:
    """The folder of a model artifact; one in MLflow is downloaded to .overnight/models. Raises BadInput."""
    from overnight.tracking.models import artifact_in

    folder = Path(name)
    found = artifact_in(folder) if folder.is_dir() else None
    if found is None and folder.is_dir() and folder.name != name:
        raise BadInput(
            f"{name}: there is no model in this folder; name one that holds meta.json and weights.safetensors"
        )
    found = found or artifact_in(_fetched(name))
    if found is None:
        raise BadInput(f"{name}: this model was not saved by overnight")
    return found


def _fetched(name: str) -> Path:
    from overnight import services
    from overnight.tracking.client import Tracker
    from overnight.tracking.models import fetch_model, find_model

    with services.ensure(f"overnight, which looks for the model {name}"):
        services.enter()
        tracker = Tracker(services.settings().mlflow, "")
        return fetch_model(tracker, find_model(tracker, name))
