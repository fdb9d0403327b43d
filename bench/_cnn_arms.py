"""What bench/cnn.py compares: ours by a shipped config, and the plain scripts that one writes without
overnight.
"""

import gc
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from flows.vision import Vision
from overnight.artifact import Artifact
from overnight.data.dataset import load_entry
from overnight.run import RecordingRun
from overnight.training.batches import seeded
from tasks.vision.augment import apply
from tasks.vision.cnn import CnnParams, train_cnn
from tasks.vision.load import load_images
from tasks.vision.nets.layers import Scaled
from tasks.vision.nets.resnet20 import Net
from tasks.vision.training import batches

Data = dict[str, Tensor]
Row = dict[str, Any]
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Clock:
    """CPU-seconds of this process and wall seconds since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> Row:
        return {
            "cpu_s": round(time.process_time() - self.cpu, 3),
            "wall_s": round(time.perf_counter() - self.wall, 3),
        }


def experiment(name: str, precision: str = "") -> Vision:
    """A shipped config; precision: in place of its own."""
    found = Vision.load(CONFIGS / f"{name}.yaml")
    return (
        found.model_copy(update={"cnn": found.cnn.model_copy(update={"precision": precision})})
        if precision
        else found
    )


def images(config: Vision) -> tuple[Artifact, Row]:
    """Its images, decoded by the pipeline's own step once a machine, and what that cost."""
    name = config.data.name
    folder = Path(tempfile.gettempdir()) / f"overnight-bench-cnn-{name}"
    kept, cost = folder / "images.json", folder / "cost.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        clock = Clock()
        made = load_images.body(RecordingRun(folder), config.images, load_entry(name))
        cost.write_text(repr(clock.read()))
        kept.write_text(made.model_dump_json())
    import ast

    return Artifact.model_validate_json(kept.read_text()), ast.literal_eval(cost.read_text())


def tensors(artifact: Artifact) -> Data:
    return {name: torch.from_numpy(array) for name, array in artifact.arrays().items()}


def ours(config: Vision, seed: int, device: str = "cpu") -> Row:
    """The pipeline's own step: trained on train, the epoch picked by val, test looked at once."""
    artifact, _ = images(config)
    with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
        run, clock = RecordingRun(Path(folder), seed=seed, device=device), Clock()
        train_cnn.body(run, config.cnn, artifact)
        found = clock.read()
        scores = {
            name: run.last(f"test/{name}")
            for name in ("accuracy", "accuracy_tta")
            if run.curve(f"test/{name}")
        }
        curve = run.curve("val/accuracy")
    gc.collect()
    return {"seed": seed, **scores, "val": max(curve), "curve": curve, **found}


# ------------------------------------------------------------------------------------------------ the plain
# script


class Pictures(Dataset[Any]):
    """Decoded images with their labels, each one transformed by torchvision as a PIL image when it is asked
    for.
    """

    def __init__(
        self, images_NCHW: Tensor, labels: Tensor, crop: int, encoded: list[bytes] | None = None
    ) -> None:
        from torchvision import transforms

        self.pixels, self.labels, self.encoded = (
            images_NCHW.permute(0, 2, 3, 1).contiguous().numpy(),
            labels.tolist(),
            encoded,
        )
        channels = self.pixels.shape[3]
        mean, std = ((self.pixels[:5000] / 255).mean((0, 1, 2)), (self.pixels[:5000] / 255).std((0, 1, 2)))
        steps = (
            [transforms.RandomCrop(self.pixels.shape[1:3], padding=crop), transforms.RandomHorizontalFlip()]
            if crop
            else []
        )
        self.change = transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(mean.tolist(), std.tolist())]
        )
        self.grey = channels == 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        if self.encoded:
            image = Image.open(io.BytesIO(self.encoded[index])).convert("RGB")
        else:
            image = Image.fromarray(self.pixels[index, :, :, 0] if self.grey else self.pixels[index])
        return self.change(image), self.labels[index]


class Plain(Net):
    """ResNet-20 on numbers that a loader has scaled."""

    def scaled(self, images: Tensor) -> Tensor:
        return images


def plain(
    data: Data, seed: int, rate: float, minutes: float, precision: str, judged: str = "test", batch: int = 128
) -> Row:
    """ResNet-20 by the usual recipe: SGD, momentum 0.9, rate / 10 after 1/2 and 3/4, PIL loader with crop and
    flip; CPU-minutes in all.
    """
    torch.manual_seed(seed)
    clock, classes = Clock(), int(data["train_labels"].max()) + 1
    loader = DataLoader(
        Pictures(data["train_images"], data["train_labels"], 4), batch, shuffle=True, drop_last=True
    )
    model = Plain(tuple(data["train_images"].shape[1:]), classes, 16, 3, 1)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4)
    total, done, losses = 0, 0, list[float]()
    for x, y in _endless(loader):
        if done == 30:
            total = int(30 + (minutes * 60 * 0.97 - clock.read()["cpu_s"]) / (clock.read()["cpu_s"] / 30))
        for group in optimizer.param_groups:
            group["lr"] = rate * (
                0.1 ** sum(done >= share * total for share in (0.5, 0.75)) if total else 1.0
            )
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        done += 1
        if total and done >= total:
            break
    score = judge(model, data, judged, precision)
    return {
        "seed": seed,
        "rate": rate,
        "accuracy": score,
        "steps": done,
        "epochs": round(done / len(loader), 2),
        **clock.read(),
    }


def _endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


@torch.inference_mode()
def judge(model: nn.Module, data: Data, split: str, precision: str) -> float:
    """Share of right answers in eval mode."""
    held, right = Pictures(data[f"{split}_images"], data[f"{split}_labels"], 0), 0
    held.change = Pictures(data["train_images"], data["train_labels"], 0).change  # scaled as in training
    model.eval()
    for x, y in DataLoader(held, 500):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            right += int((model(x).argmax(1) == y).sum())
    return right / len(held)


# ------------------------------------------------------------------------------------------------ input
# pipelines


def by_pil(data: Data, count: int, encoded: list[bytes] | None = None) -> Callable[[], Row]:
    """One pass of a PIL DataLoader in this process: crop by 4 px, flip, to numbers, scaled."""
    source = Pictures(data["train_images"][:count], data["train_labels"][:count], 4, encoded)

    def run() -> Row:
        clock = Clock()
        seen = sum(len(x) for x, _ in DataLoader(source, 512, shuffle=True, num_workers=0))
        return {"images": seen, **clock.read()}

    return run


def by_batch(data: Data, count: int) -> Callable[[], Row]:
    """One pass of ours: crop by 4 px, flip, to numbers, scaled, on the CPU."""
    params, scale = CnnParams(batch=512, crop=4, flip=True), Scaled(data["train_images"].shape[1])
    scale.measure(data["train_images"][:5000])
    part = {name: data[name][:count] for name in ("train_images", "train_labels")}

    def run() -> Row:
        clock = Clock()
        seen = sum(len(scale.scaled(apply(batch, params))) for batch in batches(params, part, seeded(0, 0)))
        return {"images": seen, **clock.read()}

    return run


def jpegs(data: Data, count: int) -> list[bytes]:
    """The first images as JPEG files in memory."""
    from PIL import Image

    found = []
    for pixels in data["train_images"][:count].permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=75)
        found.append(file.getvalue())
    return found
