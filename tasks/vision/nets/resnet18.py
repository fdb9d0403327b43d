"""ResNet-18 (He et al. 2016, table 1) with the names of the published weights, which it can load."""

from torch import Tensor, nn
from torch.nn import functional

from tasks.vision.nets.layers import Scaled, conv

LARGE = 64  # px from which the stem is the paper's 7x7 convolution with pooling; below it 3x3


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inside, outside, 3, stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = conv(outside, outside), nn.BatchNorm2d(outside)
        same = inside == outside and stride == 1
        self.downsample = (
            nn.Identity()
            if same
            else nn.Sequential(conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x), inplace=True)


class ResNet18(Scaled):
    """uint8 (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__(shape[0])
        self.large = min(shape[1:]) >= LARGE
        self.conv1 = conv(shape[0], width, 7, 2) if self.large else conv(shape[0], width)
        self.bn1, self.maxpool = nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1) if self.large else nn.Identity()
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.fc = nn.Linear(8 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Stem, four stages, averaged over the picture, classified."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(self.scaled(images))), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inside, outside, stride), BasicBlock(outside, outside, 1))
