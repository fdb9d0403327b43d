"""Saved models: a predictor reads back the config in meta.json and the weights beside it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from overnight.config import Values

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

V = TypeVar("V", bound=Values)


def load_model(folder: Path) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """The `config` and the tensors that Run.save_model wrote into *folder*."""
    from safetensors.torch import load_file

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta["config"], load_file(folder / "weights.safetensors")


def load_arrays(folder: Path) -> "tuple[dict[str, Any], dict[str, np.ndarray]]":
    """The same as arrays, without torch."""
    from safetensors.numpy import load_file

    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta["config"], load_file(folder / "weights.safetensors")


def current_keys(model: type[Values], values: dict[str, Any]) -> dict[str, Any]:
    """Values that an earlier version saved, by the keys of today.

    Keys that *model* no longer has are left out.
    """
    return {model.RENAMED.get(key, key): v for key, v in values.items() if key not in model.MEANINGLESS}


def saved_params(model: type[V], values: dict[str, Any]) -> V:
    """The typed values of a saved model, whichever version saved them."""
    return model.model_validate(current_keys(model, values))
