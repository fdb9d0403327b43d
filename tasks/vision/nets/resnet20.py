"""The residual net for small images (He et al. 2016, section 4.2), of any width and depth."""

import math

from torch import Tensor, nn
from torch.nn import functional

from tasks.vision.nets.layers import Scaled, conv_norm


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(inside, outside, stride), nn.ReLU(), conv_norm(outside, outside))
        self.around = (
            nn.Identity()
            if inside == outside and stride == 1
            else conv_norm(inside, outside, stride, kernel=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H / stride, W / stride)."""
        return functional.relu(self.body(x) + self.around(x))


class Net(Scaled):
    """uint8 (N, C, H, W) -> logits (N, classes).

    Images above 64 px are first halved, by strided convolutions, to at most 64.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, blocks: int, stem: int) -> None:
        super().__init__(shape[0])
        strides = stem_strides(max(shape[1:]), stem)
        layers: list[nn.Module] = []
        for inside, stride in zip([shape[0], *[width] * len(strides)], strides, strict=False):
            layers += [conv_norm(inside, width, stride), nn.ReLU()]
        for stage in range(3):
            into, out = width * 2 ** max(0, stage - 1), width * 2**stage
            layers += [
                Block(out if block else into, out, 2 if stage and not block else 1) for block in range(blocks)
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised, convolved, averaged over the picture, classified."""
        logits: Tensor = self.head(self.body(self.scaled(images)).mean((2, 3)))
        return logits


def stem_strides(side: int, stem: int) -> list[int]:
    """Strides of the first convolutions.

    The stages see at most 64 px, and at least 8 where the image has them.
    """
    halvings = max(stem - 1, math.ceil(math.log2(side / 64)))
    return [2] * min(halvings, int(math.log2(max(side, 8) / 8))) or [1]
