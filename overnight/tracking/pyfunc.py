"""How MLflow loads a saved model: from this code and safetensors, no pickle."""

import json
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]


class Saved(PythonModel):
    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["model"])
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.predictor = pkgutil.resolve_name(meta["predictor"])(folder)

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: np.ndarray,
        params: Any = None,  # noqa: ARG002
    ) -> np.ndarray:
        return np.asarray(self.predictor(np.asarray(model_input)))


set_model(Saved())
