"""Residual networks for small images (He, Zhang, Ren, Sun, CVPR 2016)."""

import torch
from torch import nn

Shape = tuple[int, int, int]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (all but the first halve the side), global average pooling, linear layer."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], channels: int, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks, inputs = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for block in range(depth):
                blocks.append(BasicBlock(inputs, width, stride=2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.blocks(self.relu(self.bn(self.conv(x))))
        return self.linear(self.flatten(self.pool(out)))


def resnet18(shape: Shape, classes: int, width: float) -> ResNet:
    """ResNet-18 with the 3x3 stem customary on CIFAR: 11,173,962 parameters for 3 channels and 10 classes."""
    return ResNet(scaled((64, 128, 256, 512), width), (2, 2, 2, 2), shape[0], classes)


def resnet20(shape: Shape, classes: int, width: float) -> ResNet:
    """ResNet-20 from the paper's CIFAR section, with convolutional shortcuts: 272,474 parameters."""
    return ResNet(scaled((16, 32, 64), width), (3, 3, 3), shape[0], classes)


def resnet14(shape: Shape, classes: int, width: float) -> ResNet:
    """ResNet-14, with two blocks per stage: 175,258 parameters."""
    return ResNet(scaled((16, 32, 64), width), (2, 2, 2), shape[0], classes)


def resnet8(shape: Shape, classes: int, width: float) -> ResNet:
    """ResNet-8, with one block per stage as in MLPerf Tiny: 78,042 parameters."""
    return ResNet(scaled((16, 32, 64), width), (1, 1, 1), shape[0], classes)


def scaled(channels: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Multiply numbers of channels by a width; each is at least 1."""
    return tuple(max(1, round(width * count)) for count in channels)
