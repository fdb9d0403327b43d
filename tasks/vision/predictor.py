"""A trained classifier of images of any size and form, seen as training saw them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from overnight import predictor as contract
from overnight.artifact import Artifact, DataSpec
from overnight.data.images import as_image, to_mode
from overnight.predictor import ItemLosses
from overnight.training.evaluate import EVAL_BATCH
from tasks.shared import figures
from tasks.shared.predictors import load_model, saved_params
from tasks.vision.params import CnnParams
from tasks.vision.training import build, probabilities_of

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

SHEET, THUMBNAIL = 64, 128  # images on a contact sheet, pixels of each


def predictor(folder: Path) -> "ImageClassifier":
    """The classifier in that folder."""
    return ImageClassifier(folder)


class ImageClassifier:
    """Images to classes and their probabilities."""

    def __init__(self, folder: Path) -> None:
        config, weights = load_model(folder)
        self.interface = contract.interface(folder)
        self.spec = DataSpec.model_validate(config["spec"])
        self.net = build(self.spec, saved_params(CnnParams, config["params"]))
        self.net.load_state_dict(weights)
        self.net.eval()

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The class of each image of the column `image`, in any form that as_image takes.

        Resized to the size of the training images as those were: bilinear, without keeping the aspect ratio.
        Raises BadInput for what is no image, and for values of another scale.
        """
        contract.check_columns(frame, ["image"])
        return contract.class_table(self.spec.classes, self._probabilities(list(frame["image"])))

    def item_losses(self, *artifacts: Artifact) -> ItemLosses:
        """0 or 1 for each test image of an "images" artifact; equal images share a cluster."""
        (images,) = artifacts
        arrays = images.expect("images").arrays("test_images", "test_labels")
        pixels, classes = arrays["test_images"], images.spec.classes
        truth = [classes[label] for label in arrays["test_labels"]]
        names = images.meta().get("names_test") or range(len(pixels))
        items = [f"{number} {name}" for number, name in enumerate(names)]
        found = self._probabilities(list(pixels))
        return contract.class_losses(
            self.spec.classes, truth, found, items, [one.tobytes() for one in pixels]
        )

    def draw(self, frame: "pd.DataFrame", found: "pd.DataFrame", folder: Path) -> list[Path]:
        """A contact sheet of the first images, each with its class and how probable that is."""
        shown = list(frame["image"])[:SHEET]
        thumbs = np.stack([_thumbnail(as_image(one, f"image {i}")) for i, one in enumerate(shown)])
        names = figures.names(found["class"][:SHEET])
        titles = [f"{name} {sure:.0%}" for name, sure in zip(names, found["probability"], strict=False)]
        more = f"the first {SHEET} of " if len(found) > SHEET else ""
        figure = figures.grid(thumbs, titles, title=f"{more}{len(found)} images: class and probability")
        path = folder / "sheet.png"
        figure.savefig(path, dpi=120, bbox_inches="tight")
        return [path]

    def _probabilities(self, given: Sequence[object]) -> np.ndarray:
        """(n, classes)."""
        found = [np.zeros((0, len(self.spec.classes)), np.float32)]
        for start in range(0, len(given), EVAL_BATCH):
            part = given[start : start + EVAL_BATCH]
            pixels = np.stack([self._pixels(one, f"image {start + i}") for i, one in enumerate(part)])
            found.append(probabilities_of(self.net, torch.from_numpy(pixels)))
        return np.concatenate(found)

    def _pixels(self, given: object, name: str) -> np.ndarray:
        """uint8 (C, H, W) of the model's size."""
        from PIL.Image import Resampling

        channels, height, width = self.spec.shape
        if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.shape == self.spec.shape:
            return given
        image = to_mode(as_image(given, name), "L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Resampling.BILINEAR)
        pixels = np.asarray(image)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _thumbnail(image: "Image") -> np.ndarray:
    """uint8 (3, THUMBNAIL, THUMBNAIL), with white margins."""
    from PIL import ImageOps

    small = ImageOps.pad(to_mode(image), (THUMBNAIL, THUMBNAIL), color="white")
    return np.asarray(small).transpose(2, 0, 1)
