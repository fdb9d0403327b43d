"""How MLflow loads a saved model: from this code and safetensors, no pickle."""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]

from overnight import predictor
from overnight.errors import BadInput


class Saved(PythonModel):
    def load_context(self, context: Any) -> None:
        self.predictor = predictor.load(Path(context.artifacts["model"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,  # or any other form: of this type MLflow makes no schema of its own
        params: Any = None,
    ) -> pd.DataFrame:
        try:
            frame = predictor.to_frame(model_input, self.predictor.interface.inputs)
            return self.predictor.predict(frame, **(params or {}))
        except BadInput as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


set_model(Saved())
