"""Models that err on a share of the test items, for the gate to judge."""

import json
from pathlib import Path

import numpy as np

from overnight.artifact import Artifact, save
from overnight.predictor import ItemLosses


class Coin:
    """Errs on the share `errors` of the test items, which are its own choice."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "meta.json").read_text())["config"]

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        count = artifacts[0].meta()["items"]
        drawn = np.random.default_rng(self.config["seed"]).random(count)
        names = np.array([f"{artifacts[0].meta()['name']} {i}" for i in range(count)])
        groups = np.array(["even", "odd"])[np.arange(count) % 2]
        return ItemLosses((drawn < self.config["errors"]).astype(float), names, np.arange(count), groups)


def coin(folder: Path, errors: float, seed: int) -> Artifact:
    """A model that load() loads as a Coin."""
    config = {"errors": errors, "seed": seed}
    meta = {"predictor": f"{__name__}:Coin", "interface": {}, "config": config}
    return save(folder, "model", meta=meta, files={"weights.safetensors": lambda path: path.touch()})


def items(folder: Path, count: int, name: str = "item") -> Artifact:
    """What it is judged on."""
    return save(folder, "images", meta={"items": count, "name": name})
