"""Models as their users have them: in MLflow's format, loaded by MLflow."""

from pathlib import Path
from typing import Any

from overnight import Artifact
from overnight.tracking.models import pack


def by_mlflow(model: Artifact, folder: Path) -> Any:
    """The model as `mlflow.pyfunc.load_model` gives it."""
    import mlflow.pyfunc

    pack(model.path, folder)
    return mlflow.pyfunc.load_model(str(folder))
