"""The bodies of the steps that train, on made-up data: `BODIES[name](run)` plays one, as a child calls it."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from overnight.artifact import Artifact, DataSpec, save
from overnight.run import Run
from tasks.detection.yolo import YoloParams, train_yolo
from tasks.graphs.nodes import GnnParams, train_gnn
from tasks.vision.cnn import CnnParams, train_cnn

SPLITS = ("train", "val", "test")


def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="first-gpu-"))


def images(shape: tuple[int, ...] = (3, 16, 16), size: int = 64) -> Artifact:
    """Images whose class is their brightness."""
    random, arrays = np.random.default_rng(0), dict[str, np.ndarray]()
    for split in SPLITS:
        labels = np.arange(size) % 2
        noise = random.integers(0, 20, (size, *shape))
        arrays[f"{split}_images"] = (noise + 115 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    spec = DataSpec(shape=shape, classes=("dark", "bright"), counts=dict.fromkeys(SPLITS, size))
    return save(folder() / "images", "images", spec, arrays)


def boxes(size: int = 64, count: int = 16) -> Artifact:
    """Bright squares on noise, one an image."""
    random, arrays = np.random.default_rng(0), dict[str, np.ndarray]()
    for split in SPLITS:
        pixels = random.integers(0, 60, (count, 3, size, size), dtype=np.uint8)
        pixels[:, :, 8:48, 8:40] = 200
        corners, labels = np.zeros((count, 3, 4), np.float32), np.full((count, 3), -1, np.int64)
        corners[:, 0], labels[:, 0] = [8, 8, 40, 48], 0
        arrays |= {f"{split}_images": pixels, f"{split}_boxes": corners, f"{split}_labels": labels}
    spec = DataSpec(shape=(3, size, size), classes=("a", "b"), boxes=3, counts=dict.fromkeys(SPLITS, count))
    return save(folder() / "boxes", "boxes", spec, arrays)


def graph(nodes: int = 300) -> Artifact:
    """Any edges, and features that tell nothing."""
    random = np.random.default_rng(0)
    edges = random.integers(0, nodes, (2, 4 * nodes))
    edges = edges[:, edges[0] < edges[1]].astype(np.int64)
    split = np.arange(nodes) % 3
    arrays = {f"{name}_mask": split == number for number, name in enumerate(SPLITS)}
    arrays |= {"edges": edges, "features": random.normal(size=(nodes, 16)).astype(np.float32)}
    arrays["labels"] = (np.arange(nodes) % 4).astype(np.int64)
    spec = DataSpec(shape=(16,), classes=tuple("abcd"), nodes=nodes, edges=edges.shape[1])
    return save(folder() / "graph", "graph", spec, arrays, {"nodes": []})


def cnn(run: Run, **values: Any) -> Artifact:
    given = {"epochs": 2, "batch": 32, "channels": 8, "blocks": 1, **values}
    return train_cnn.body(run, CnnParams(**given), images())


def speedrun(run: Run, **values: Any) -> Artifact:
    given = {"arch": "speedrun", "optimizer": "muon", "epochs": 2, "batch": 32, "channels": 8, "crop": 1}
    return train_cnn.body(run, CnnParams(**{**given, "flip": "alternating", "tta": True, **values}), images())


def yolo(run: Run, **values: Any) -> Artifact:
    given = {"epochs": 2, "batch": 8, "width_multiplier": 0.25, **values}
    return train_yolo.body(run, YoloParams(**given), boxes())


def gnn(run: Run, conv: str) -> Artifact:
    return train_gnn.body(run, GnnParams(epochs=5, conv=conv, hidden=16), graph())


BODIES: dict[str, Callable[[Run], Artifact]] = {
    "cnn augmented": partial(cnn, crop=1, flip=True, cutout=4, ema=0.9),
    "cnn adamw fp16": partial(cnn, optimizer="adamw", precision="fp16"),
    "speedrun with tta": speedrun,
    "yolo": yolo,
    "gcn": partial(gnn, conv="gcn"),
    "sage": partial(gnn, conv="sage"),
    "gat": partial(gnn, conv="gat"),
}
