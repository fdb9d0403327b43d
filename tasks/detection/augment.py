"""Augmentation of whole batches as tensor operations.

What is random is drawn on the host with the generator of the run, as numbers in the batch: one row for each
image. The pixels change on the card, inside the loss, image by image; so a batch cut into micro-batches is
augmented exactly as the whole one.
"""

import math

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
VISIBLE = 0.3  # a box of which less remains in sight is no longer asked for


def draw(
    count: int,
    flips: tuple[float, float],
    scale: float,
    translate: float,
    colour: float,
    generator: torch.Generator,
) -> Batch:
    """Random numbers for `count` images: warp (B, 4) scale x, y and shift x, y.

    tint (B, 3) brightness, contrast, saturation.

    A negative scale is a flip; flips: chance of left-right and of up-down. scale 0.4: by 1/1.4 to 1.4.
    Shifts: shares of the image.
    """
    signs = torch.where(torch.rand(count, 2, generator=generator) < torch.tensor(flips), -1.0, 1.0)
    spread = torch.rand(count, 1, generator=generator) * 2 - 1
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * translate
    tint = 1 + (torch.rand(count, 3, generator=generator) * 2 - 1) * colour
    return {"warp": torch.cat([signs * torch.exp(spread * math.log1p(scale)), shift], 1), "tint": tint}


def mosaic(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Each image, with chance `share`, becomes four quarters.

    Its own and those of three others of the batch (Bochkovskiy et al. 2020).

    The quarters meet at one random point for the whole batch and keep their scale. Boxes (B, M, 4) become (B,
    2 M, 4).
    """
    images, boxes, labels = batch["images"], batch["boxes"], batch["labels"]
    size, (height, width) = len(images), images.shape[2:]
    middle_x, middle_y = (
        round(side * (0.3 + 0.4 * float(torch.rand((), generator=generator)))) for side in (width, height)
    )
    out, corners = images.clone(), list[tuple[Tensor, Tensor]]()
    mixed = torch.rand(size, generator=generator) < share
    for left, top, right, bottom in (
        (0, 0, middle_x, middle_y),
        (middle_x, 0, width, middle_y),
        (0, middle_y, middle_x, height),
        (middle_x, middle_y, width, height),
    ):
        other = (
            torch.where(mixed, torch.randperm(size, generator=generator), torch.arange(size))
            if corners
            else torch.arange(size)
        )
        out[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
        window = torch.tensor([left, top, right, bottom])
        whole = torch.tensor([0, 0, width, height])
        windows = torch.where(mixed[:, None], window, whole)[:, None]
        gone = (~mixed)[:, None] if corners else torch.zeros(size, 1, dtype=torch.bool)
        corners.append(crop(boxes[other], torch.where(gone, -1, labels[other]), windows))
    found, kinds = (torch.cat(parts, 1) for parts in zip(*corners, strict=True))
    order = (kinds < 0).to(torch.int8).argsort(dim=1, stable=True)[:, : 2 * boxes.shape[1]]
    return {
        "images": out,
        "boxes": found.gather(1, order[..., None].expand(-1, -1, 4)),
        "labels": kinds.gather(1, order),
    }


def crop(boxes: Tensor, labels: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes cut to their windows (broadcast against (B, M, 4)).

    Those hardly in sight any more are taken out (label -1).
    """
    cut = torch.cat(
        [torch.maximum(boxes[..., :2], windows[..., :2]), torch.minimum(boxes[..., 2:], windows[..., 2:])], -1
    )
    sides, before = (cut[..., 2:] - cut[..., :2]).clamp(min=0), boxes[..., 2:] - boxes[..., :2]
    seen = (labels >= 0) & (sides > 2).all(-1) & (sides.prod(-1) > VISIBLE * before.prod(-1))
    return torch.where(seen[..., None], cut, 0), torch.where(seen, labels, -1)


def apply(batch: Batch) -> Batch:
    """The batch with its own `warp` and `tint` carried out, where it has them; images become float.

    In full precision: places rounded to bf16 are off by up to 1.4 pixels.
    """
    if "warp" not in batch:
        return batch
    with torch.autocast(batch["images"].device.type, enabled=False):
        images = _tinted(batch["images"].float(), batch["tint"])
        scale, shift = batch["warp"][:, :2], batch["warp"][:, 2:]
        return {
            "images": _warped(images, scale, shift),
            **_moved(batch["boxes"], batch["labels"], scale, shift, images.shape[2:]),
        }


def _tinted(images: Tensor, tint: Tensor) -> Tensor:
    """Brightness, then contrast about the image's mean, then saturation about its grey."""
    bright, contrast, colour = (tint[:, i, None, None, None] for i in range(3))
    images = images * bright
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * colour).clamp(0, 255)


def _warped(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scaled about the middle, then shifted; what comes into view is the letterbox's grey."""
    matrix = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
    matrix[:, 0, 0], matrix[:, 1, 1] = 1 / scale[:, 0], 1 / scale[:, 1]
    matrix[:, :, 2] = -2 * shift / scale
    grid = nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images - 114, grid, align_corners=False) + 114


def _moved(boxes: Tensor, labels: Tensor, scale: Tensor, shift: Tensor, shape: torch.Size) -> Batch:
    height, width = shape
    canvas = torch.tensor([width, height], device=boxes.device, dtype=boxes.dtype)
    middle = canvas / 2
    corners = boxes.reshape(*boxes.shape[:2], 2, 2)
    corners = (corners - middle) * scale[:, None, None] + middle + (shift * canvas)[:, None, None]
    corners = torch.cat([corners.amin(2), corners.amax(2)], -1)
    window = torch.cat([torch.zeros_like(canvas), canvas])
    found, kinds = crop(corners, labels, window)
    return {"boxes": found, "labels": kinds}
