"""Augmentation of whole batches of bytes.

What is random is drawn on the host, as small tensors in the batch with a row for each image. The pixels move
inside the loss, where the micro-batch lies: so a batch cut into parts is augmented as the whole one, and a
card does it at the speed of its memory.
"""

import torch
from torch import Tensor

from overnight.training.batches import Batch, origin, seeded
from tasks.vision.params import CnnParams


def example(params: CnnParams, shape: tuple[int, ...], n: int) -> Batch:
    """Draws that do nothing, in the form of those that do."""
    drawn = draw(params, shape, n, torch.Generator().manual_seed(0))
    drawn |= {"mirror": torch.zeros(n, dtype=torch.bool)} if params.flip else {}
    return {name: torch.zeros_like(tensor) for name, tensor in drawn.items()}


def draw(params: CnnParams, shape: tuple[int, ...], n: int, generator: torch.Generator) -> Batch:
    """For n images (C, H, W) shift (n, 2) in px down and right, mirror (n), hole (n, 2) top and left.

    Those that `params` ask for.
    """
    found: Batch = {}
    if params.crop:
        most = [min(params.crop, side - 1) for side in shape[1:]]
        found["shift"] = torch.cat([torch.randint(-m, m + 1, (n, 1), generator=generator) for m in most], 1)
    if params.flip is True:
        found["mirror"] = torch.rand(n, generator=generator) < 0.5
    if params.cutout:
        half = params.cutout // 2
        corners = [
            torch.randint(-half, max(side - half, 1 - half), (n, 1), generator=generator)
            for side in shape[1:]
        ]
        outside = torch.rand(n, 1, generator=generator) < 0.5
        found["hole"] = torch.where(outside, -params.cutout, torch.cat(corners, 1))
    return found


def alternating(n: int, generator: torch.Generator) -> Tensor:
    """Which of n training images are mirrored in the epoch of this generator.

    A random half, the others in the next one.

    Of two epochs in a row each image is then seen both ways (Jordan 2024, arXiv:2404.00498, section 3.6).
    """
    seed, epoch = origin(generator)
    return (torch.rand(n, generator=seeded(seed, -1)) < 0.5) ^ bool(epoch % 2)


def apply(batch: Batch, params: CnnParams) -> Tensor:
    """The images, uint8 (N, C, H, W), moved, mirrored and holed as the batch's draws say."""
    images = batch["images"]
    if "shift" in batch or "mirror" in batch:
        images = _moved(images, batch.get("shift"), batch.get("mirror"), params.crop)
    if "hole" in batch:
        images = images.masked_fill(_square(batch["hole"], params.cutout, images.shape), 0)
    return images


def _moved(images: Tensor, shift: Tensor | None, mirror: Tensor | None, most: int) -> Tensor:
    """Each image mirrored or not, then a window of its padded self.

    Gathers for the whole batch, no loop over samples.
    """
    n, channels, height, width = images.shape
    each = torch.arange(n, device=images.device)
    if mirror is not None:
        images = torch.cat([images, images.flip(3)]).index_select(0, each + n * mirror)
    if shift is None:
        return images
    down, right = (min(most, side - 1) for side in (height, width))
    padded = _reflected(
        _reflected(images.permute(0, 2, 3, 1).contiguous(), down, 1), right, 2
    )  # a row of pixels is whole there
    high, wide = padded.shape[1:3]
    top = torch.arange(height, device=images.device) + shift[:, :1] + down
    start = (
        (each[:, None] * high + top) * wide + shift[:, 1:] + right
    ) * channels  # (N, H): where each row begins
    rows = padded.as_strided((padded.numel() - width * channels + 1, width * channels), (1, 1))
    return rows[start].view(n, height, width, channels).permute(0, 3, 1, 2)


def _reflected(images: Tensor, by: int, side: int) -> Tensor:
    """Padded along one side with its own pixels, mirrored about the border.

    Torch has no such padding for bytes.
    """
    if not by:
        return images
    length = images.shape[side]
    before, after = images.narrow(side, 1, by).flip(side), images.narrow(side, length - 1 - by, by).flip(side)
    return torch.cat([before, images, after], side)


def _square(corner: Tensor, size: int, shape: torch.Size) -> Tensor:
    """(N, 1, H, W), true in the squares of this size; they may stick out."""
    inside = []
    for axis, side in enumerate(shape[2:]):
        offset = torch.arange(side, device=corner.device) - corner[:, axis, None]
        inside.append((offset >= 0) & (offset < size))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def views(images: Tensor, flip: bool) -> list[tuple[float, Tensor]]:
    """Copies of uint8 (N, C, H, W) whose answers are averaged, with their weights.

    As it is, moved by one pixel each way, mirrored.
    """
    moved, share = [], 0.5 if flip else 1.0
    for weight, by in ((0.5, 0), (0.25, -1), (0.25, 1)):
        shift = torch.full((len(images), 2), by, device=images.device)
        small = min(images.shape[2:]) < 2
        moved.append((share * weight, images if not by or small else _moved(images, shift, None, 1)))
    return moved + [(weight, image.flip(3)) for weight, image in moved] if flip else moved
