"""What the nets share."""

import torch
from torch import Tensor, nn


class Scaled(nn.Module):
    """uint8 pixels to numbers of mean 0 and deviation 1 a channel, as the training images have them."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((channels, 1, 1), 0.25))

    def scaled(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float, the channels of a pixel side by side."""
        n, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels).to(self.std.dtype)
        times = (
            (1 / (255 * self.std)).flatten().repeat(width)
        )  # for a row of pixels: on a CPU several times faster than for one
        plus = (-self.mean / self.std).flatten().repeat(width)
        return torch.addcmul(plus, rows, times).view(n, height, width, channels).permute(0, 3, 1, 2)

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Take mean and deviation from uint8 (N, C, H, W)."""
        counts = torch.stack(
            [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
        ).double()
        levels, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
        mean = (counts * levels).sum(1) / total
        std = ((counts * levels**2).sum(1) / total - mean**2).clamp(min=0).sqrt()
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.clamp(min=1 / 255).view(-1, 1, 1))


def conv(
    inside: int, outside: int, kernel: int = 3, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """Convolution without bias, its weights laid out as the pixels are.

    Not by Module.to, which fake tensors cannot follow.
    """
    made = nn.Conv2d(inside, outside, kernel, stride, kernel // 2 if padding is None else padding, bias=False)
    made.weight = nn.Parameter(made.weight.detach().contiguous(memory_format=torch.channels_last))
    return made


def conv_norm(inside: int, outside: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(conv(inside, outside, kernel, stride), nn.BatchNorm2d(outside))
