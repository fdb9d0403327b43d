"""A small wide net that learns in few epochs (Jordan 2024, arXiv:2404.00498).

A frozen whitening of patches, then three plain cells.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.vision.nets.layers import Scaled, conv

DIRECTIONS = 32  # the most principal directions of a patch that are kept
SIDE = 64  # px that the cells see at most
FLOOR = 5e-4  # added to the variance of a direction: those that carry next to nothing are not blown up
PATCHES = 1_000_000  # looked at, at most, to find the directions


class Cell(nn.Module):
    """Convolution, pooling, norm, SiLU, convolution, norm, SiLU."""

    def __init__(self, inside: int, outside: int, pool: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = _identity_first(conv(inside, outside)), _norm(outside)
        self.conv2, self.norm2 = _identity_first(conv(outside, outside)), _norm(outside)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H // 2, W // 2), or H, W without pooling."""
        x = functional.silu(self.norm1(self.pool(self.conv1(x))))
        return functional.silu(self.norm2(self.conv2(x)))


class Speedrun(Scaled):
    """uint8 (N, C, H, W) -> logits (N, classes).

    `whiten` has to have seen training images before it is of use.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__(shape[0])
        self.stride = 2 ** max(0, math.ceil(math.log2(max(shape[1:]) / SIDE)))
        size = min(patch(shape[0]) * self.stride, *shape[1:])
        kept = min(DIRECTIONS, shape[0] * size**2)
        self.whitening = conv(shape[0], 2 * kept, size, self.stride, padding=0)
        self.whitening.weight.requires_grad_(False)
        self.bias = nn.Parameter(torch.zeros(2 * kept, 1, 1), requires_grad=False)
        side, cells, into = (min(shape[1:]) - size) // self.stride + 1, list[Cell](), 2 * kept
        for out in (width, 4 * width, 4 * width):
            cells.append(Cell(into, out, pool=side >= 4))
            side, into = side // 2 if side >= 4 else side, out
        self.cells = nn.Sequential(*cells)
        self.head = nn.Linear(4 * width, classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Whitened, three cells, the maximum over the picture, classified.

        Logits are scaled down, so that training begins gently.
        """
        x = functional.silu(self.whitening(self.scaled(images)) + self.bias)
        logits: Tensor = self.head(self.cells(x).amax((2, 3))) / 9
        return logits

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer to whiten patches of the images, uint8 (N, C, H, W).

        Its outputs have mean 0 and covariance 1, followed by their negatives.
        """
        weight = self.whitening.weight
        size, kept = weight.shape[-1], len(weight) // 2
        most = max(1, PATCHES // math.prod((side - size) // self.stride + 1 for side in images.shape[2:]))
        seen = images[torch.linspace(0, len(images) - 1, min(most, len(images))).long()]
        mean, covariance = _moments(self.scaled(seen), size, self.stride)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values[-kept:].flip(0).clamp(min=0), vectors[:, -kept:].flip(1)
        directions = vectors.T / (values + FLOOR).sqrt()[:, None]
        offset = -directions @ mean
        weight.copy_(torch.cat([directions, -directions]).view_as(weight))
        self.bias.copy_(torch.cat([offset, -offset]).view_as(self.bias))


def patch(channels: int) -> int:
    """Side of the patches: the smallest that covers at least nine values."""
    return max(1, math.ceil(math.sqrt(9 / channels)))


def _moments(images: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Mean (F) and covariance (F, F) of all patches, in double precision, a slice of the images at a time."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(images), 256):
        rows = (
            functional.unfold(images[start : start + 256].contiguous(), size, stride=stride)
            .transpose(1, 2)
            .flatten(0, 1)
            .double()
        )
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.T @ rows
    mean = total / count
    return mean.float(), (squares / count - mean[:, None] * mean).float()


def _identity_first(layer: nn.Conv2d) -> nn.Conv2d:
    """The first filters hand their input on, the others are random."""
    with torch.no_grad():
        out, into = layer.weight.shape[:2]
        layer.weight[:into].zero_()
        layer.weight[: min(out, into), : min(out, into), 1, 1].fill_diagonal_(1.0)
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm without a gain, whose statistics follow quickly."""
    made = nn.BatchNorm2d(channels, momentum=0.4)
    made.weight.requires_grad_(False)
    return made
