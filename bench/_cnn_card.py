"""bench/cnn.py on a CUDA card: seconds of the speedrun, cold and warm, and the stock ResNet-18 against the
plain script.
"""

import gc
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from bench._cnn_arms import Data, Pictures
from flows.vision import Vision
from overnight.artifact import Artifact
from overnight.run import RecordingRun
from overnight.training.evaluate import predict_all
from overnight.training.loop import train
from tasks.vision.cnn import cnn_recipe
from tasks.vision.training import prepared

Row = dict[str, Any]


def timed(config: Vision, artifact: Artifact, data: Data, seed: int) -> Row:
    """One training on the card, from arrays to weights on the host: no pictures, no tables."""
    recipe = cnn_recipe(config.cnn, artifact.spec)
    with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
        torch.cuda.synchronize()
        run, began = RecordingRun(Path(folder), seed=seed, device="cuda"), time.perf_counter()
        fitted = train(
            replace(recipe, build=lambda: prepared(recipe.build(), data["train_images"])), run, data
        )
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
        speed = run.curve("train/samples_per_s")[-1]
    with torch.inference_mode():
        right = (
            predict_all(fitted.model, data["test_images"], torch.device("cuda")).argmax(1)
            == data["test_labels"]
        )
    del fitted
    gc.collect()
    return {
        "seed": seed,
        "wall_s": round(wall, 3),
        "accuracy": float(right.double().mean()),
        "images_per_s": speed,
    }


def plain_speed(data: Data, batch: int, workers: int = 4) -> float:
    """Images/s of the script that one finds everywhere: torchvision's ResNet-18 with a 3x3 stem, fp32, NCHW,
    PIL loader; the second epoch.
    """
    from torchvision.models import resnet18

    model = resnet18(num_classes=int(data["train_labels"].max()) + 1)
    model.conv1, model.maxpool = (
        nn.Conv2d(data["train_images"].shape[1], 64, 3, 1, 1, bias=False),
        nn.Identity(),
    )
    model = model.cuda().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    source = Pictures(data["train_images"], data["train_labels"], 4)
    loader = DataLoader(
        source,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=True,
        persistent_workers=True,
    )
    for _ in range(2):
        began, seen = time.perf_counter(), 0
        for x, y in loader:
            seen += _stepped(model, optimizer, x.cuda(non_blocking=True), y.cuda(non_blocking=True))
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - began)


def _stepped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> int:
    optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    return len(x)
