"""A saved model as an MLflow model that `mlflow.pyfunc.load_model` can use: from code and safetensors, no pickle."""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from overnight.tracking.client import Tracker

DIGEST = "overnight.digest"


def publish_model(tracker: Tracker, run_id: str, name: str, folder: Path, digest: str) -> None:
    """Log it, once, whatever is repeated: a run that has a model of this digest needs no other."""
    if _there(tracker, run_id, digest):
        return
    from mlflow.entities import LoggedModelOutput

    packed = folder.parent / "mlflow_model"
    shutil.rmtree(packed, ignore_errors=True)
    _pack(folder, packed)
    client = tracker.client
    plain = re.sub(r"[^\w -]", "-", name)
    model = client.create_logged_model(
        tracker.experiment_id, name=plain, source_run_id=run_id, tags={DIGEST: digest}
    )
    client.log_model_artifacts(model.model_id, str(packed))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    shutil.rmtree(packed)


def _there(tracker: Tracker, run_id: str, digest: str) -> bool:
    outputs: Any = tracker.client.get_run(run_id).outputs
    models = [
        tracker.client.get_logged_model(one.model_id) for one in (outputs.model_outputs if outputs else [])
    ]
    return any(model.tags.get(DIGEST) == digest for model in models)


def _pack(folder: Path, packed: Path) -> None:
    """Write MLflow's form of a model: code, weights, requirements, signature."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    code = Path(__file__).resolve().parents[2]
    signature = None
    if (folder / "arrays.safetensors").is_file():
        from safetensors.numpy import load_file

        example = load_file(folder / "arrays.safetensors")["example"]
        signature = ModelSignature(inputs=Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it asks for an input example, which would run the model in this process
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

    return [
        f"{name}=={version(name)}"
        for name in ("mlflow", "numpy", "pydantic", "pyyaml", "safetensors", "torch")
    ]
