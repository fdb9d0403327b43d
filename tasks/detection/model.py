"""A compact anchor-free detector in plain torch.

CSP stages of residual blocks and a pooling pyramid (CSPNet; PP-YOLOE, YOLOX), a path-aggregation neck
(PANet), and a decoupled head whose convolutions serve all strides while each stride keeps its own
normalisation (RTMDet). Each side of a box is a distribution over distances (Generalized Focal Loss).
Suffixes: B images, A places on all grids, C classes, K bins.
"""

import math

import torch
from torch import Tensor, nn

STRIDES = (8, 16, 32)
BINS = 16  # distances 0..15 in strides: the largest box is 30 * 32 pixels wide
PRIOR = 0.01  # share of places believed to hold an object before training (RetinaNet)


class Conv(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Residual(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(width, width), Conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Cross-stage partial block: half of the channels goes through residual blocks, half goes around."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        half = outputs // 2
        self.around, self.into = Conv(inputs, half, 1), Conv(inputs, half, 1)
        self.blocks = nn.Sequential(*(Residual(half) for _ in range(blocks)))
        self.join = Conv(2 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.around(x), self.blocks(self.into(x))], 1)
        return self.join(both)  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """Spatial pyramid pooling: one map seen through windows of 5, 9 and 13 cells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.join = Conv(width, width // 2, 1), Conv(2 * width, width, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        views = [self.into(x)]
        for _ in range(3):
            views.append(self.pool(views[-1]))
        return self.join(torch.cat(views, 1))  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """Image (B, 3, H, W) -> maps at strides 8, 16 and 32."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        stem, first, second, third, fourth = widths
        self.stem = nn.Sequential(Conv(3, stem, 3, 2), Conv(stem, first, 3, 2), Stage(first, first, 1))
        self.eighth = nn.Sequential(Conv(first, second, 3, 2), Stage(second, second, 2))
        self.sixteenth = nn.Sequential(Conv(second, third, 3, 2), Stage(third, third, 2))
        self.last = nn.Sequential(Conv(third, fourth, 3, 2), Pyramid(fourth), Stage(fourth, fourth, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth = self.eighth(self.stem(x))
        sixteenth = self.sixteenth(eighth)
        return eighth, sixteenth, self.last(sixteenth)


class Neck(nn.Module):
    """Coarse maps tell fine ones what is there, then fine ones tell coarse ones where."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        low, mid, high = widths
        self.lateral_mid, self.lateral_low = Conv(high, mid, 1), Conv(mid, low, 1)
        self.down_mid, self.down_low = Stage(2 * mid, mid, 1), Stage(2 * low, low, 1)
        self.stride_low, self.stride_mid = Conv(low, low, 3, 2), Conv(mid, mid, 3, 2)
        self.up_mid, self.up_high = Stage(2 * low, mid, 1), Stage(2 * mid, high, 1)
        self.grow = nn.Upsample(scale_factor=2)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        low, mid, high = maps
        top = self.lateral_mid(high)
        middle = self.lateral_low(self.down_mid(torch.cat([self.grow(top), mid], 1)))
        low = self.down_low(torch.cat([self.grow(middle), low], 1))
        mid = self.up_mid(torch.cat([self.stride_low(low), middle], 1))
        return low, mid, self.up_high(torch.cat([self.stride_mid(mid), top], 1))


class Tower(nn.Module):
    """Two 3x3 convolutions shared by all strides, each stride with norms of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * len(STRIDES)))

    def forward(self, x: Tensor, level: int) -> Tensor:
        for conv, norm in zip(self.convs, self.norms[2 * level : 2 * level + 2], strict=True):
            x = nn.functional.silu(norm(conv(x)), inplace=True)
        return x


class Head(nn.Module):
    """Class scores and box sides in towers of their own."""

    def __init__(self, widths: tuple[int, int, int], width: int, classes: int) -> None:
        super().__init__()
        self.into = nn.ModuleList(Conv(inputs, width, 1) for inputs in widths)
        self.what, self.where = Tower(width), Tower(width)
        self.score, self.sides = nn.Conv2d(width, classes, 1), nn.Conv2d(width, 4 * BINS, 1)
        _start(self.score, self.sides)

    def forward(self, maps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        scores, sides = [], []
        for level, (into, x) in enumerate(zip(self.into, maps, strict=True)):
            x = into(x)  # noqa: PLW2901
            scores.append(self.score(self.what(x, level)).flatten(2).transpose(1, 2))
            sides.append(self.sides(self.where(x, level)).flatten(2).transpose(1, 2))
        return torch.cat(scores, 1), torch.cat(sides, 1).reshape(len(sides[0]), -1, 4, BINS)


def _start(score: nn.Conv2d, sides: nn.Conv2d) -> None:
    """Start from few objects, and boxes about three strides wide.

    Nearer to most than the 15 of an even distribution.
    """
    assert score.bias is not None
    assert sides.bias is not None
    for conv in (score, sides):
        nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(score.bias, -math.log((1 - PRIOR) / PRIOR))
    with torch.no_grad():
        sides.bias.copy_((-0.5 * torch.arange(BINS)).repeat(4))


class Yolo(nn.Module):
    """Class logits (B, A, C) and logits of the box sides (B, A, 4, K).

    Of uint8 images (B, 3, H, W) with sides divisible by 32.
    """

    def __init__(self, classes: int, width: float = 1.0) -> None:
        super().__init__()
        stem, first, second, third, fourth = (
            max(8, 8 * round(n * width / 8)) for n in (16, 32, 64, 128, 256)
        )
        maps = (second, third, fourth)
        self.backbone = Backbone((stem, first, *maps))
        self.neck, self.head = Neck(maps), Head(maps, second, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        parameter = self.head.score.weight
        x = images.to(parameter.dtype).sub(114.0).div(64.0)  # the letterbox's grey becomes 0
        logits, sides = self.head(self.neck(self.backbone(x)))
        return logits, sides


def places(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres (A, 2) in pixels and strides (A, 1) of all grid cells, in the order of the model's output."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = torch.meshgrid(
            torch.arange(height // stride, device=device),
            torch.arange(width // stride, device=device),
            indexing="ij",
        )
        points = (torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5) * stride
        centres.append(points)
        strides.append(torch.full_like(points[:, :1], stride))
    return torch.cat(centres), torch.cat(strides)


def decode(sides: Tensor, centres: Tensor, strides: Tensor) -> Tensor:
    """Boxes (B, A, 4) in pixels from logits of the sides: the expected distance of each."""
    bins = torch.arange(BINS, device=sides.device, dtype=sides.dtype)
    distances = (sides.softmax(-1) * bins).sum(-1) * strides
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)
