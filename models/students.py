"""Small networks: the students of the published study (Shettiwar and Shankar), and better ones.

All of their operators have an integer form.
"""

import torch
from torch import nn

from models.resnet import Shape, scaled

# For each convolution: channels, kernel size, and whether a 2x2 max-pool follows; then the widths of hidden layers.
# The parameter counts of students 3 to 6 match the published ones within 1 %; their exact channels are not known.
PLAIN: dict[str, tuple[tuple[tuple[int, int, bool], ...], tuple[int, ...]]] = {
    "student_baseline": (((32, 3, True), (64, 3, True), (128, 3, True), (256, 3, True)), (256,)),
    "student_1": (((32, 3, True), (64, 3, True), (128, 3, True), (256, 3, True)), ()),
    "student_2": (((32, 3, True), (64, 1, True), (128, 3, True), (256, 1, True)), (256,)),
    "student_3": (((32, 3, False), (32, 3, True), (64, 3, False), (64, 3, True), (128, 3, True), (116, 3, True)), ()),
    "student_4": (((32, 3, True), (64, 3, True), (96, 3, True), (128, 3, True)), (128,)),
    "student_5": (((32, 3, True), (48, 3, True), (64, 3, False), (96, 3, True), (96, 3, True)), ()),
    "student_6": (((32, 3, True), (64, 3, True), (96, 3, True), (128, 3, True)), ()),
    "student_3conv": (((32, 3, True), (64, 3, True), (128, 3, True)), (128,)),
}


class PlainStudent(nn.Module):
    """Convolutions with batch norm, ReLU and pooling, then linear layers: a student of the published study.

    Without its dropout, which short trainings with a teacher do not need. Once the feature map is one pixel, there is
    no more pooling.
    """

    def __init__(self, name: str, shape: Shape, classes: int, width: float):
        super().__init__()
        convolutions, hidden = PLAIN[name]
        inputs, side = shape[0], min(shape[1:])
        layers: list[nn.Module] = []
        for channels, kernel, pool in convolutions:
            (channels,) = scaled((channels,), width)
            layers += [nn.Conv2d(inputs, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels), nn.ReLU()]
            if pool and side > 1:
                layers.append(nn.MaxPool2d(2))
                shape, side = (channels, shape[1] // 2, shape[2] // 2), side // 2
            inputs = channels
        layers.append(nn.Flatten())
        inputs *= shape[1] * shape[2]
        for outputs in scaled(hidden, width):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def ds_cnn(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """Depthwise-separable convolutions (Howard et al., MobileNets, 2017): about 136,000 parameters.

    Max-pools halve the side in place of MobileNet's strided depthwise convolutions, whose gradient takes ten times as
    long on CPUs.
    """
    stem, *outputs = scaled((32, 64, 128, 128, 256, 256), width)
    layers = _normalized(nn.Conv2d(shape[0], stem, 3, padding=1, bias=False))
    inputs = stem
    for channels, pool in zip(outputs, (False, True, False, True, False), strict=True):
        layers += [nn.MaxPool2d(2)] if pool else []
        layers += _normalized(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False))
        layers += _normalized(nn.Conv2d(inputs, channels, 1, bias=False))
        inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class MixerBlock(nn.Module):
    """An inverted residual (Sandler et al., "MobileNetV2", 2018).

    A 1x1 convolution to `factor` times as many channels, a depthwise 3x3, and a 1x1 back; added to the input.
    """

    def __init__(self, channels: int, factor: int):
        super().__init__()
        hidden = factor * channels
        around = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.expand = nn.Sequential(*_normalized(nn.Conv2d(channels, hidden, 1, bias=False)))
        self.around = nn.Sequential(*_normalized(around))
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(self.around(self.expand(x)))


def tiny_mixer(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """Depthwise and pointwise convolutions with 98,746 parameters, in the spirit of cifar10-tiniest.

    It has batch norm and ReLU in place of layer norm and an exponential gate, so that all of it can run on integers,
    and 3x3 in place of 7x7 kernels, whose gradient takes forty times as long on CPUs.
    """
    inputs, *outputs = scaled((16, 32, 64), width)
    layers = _normalized(nn.Conv2d(shape[0], inputs, 3, padding=1, bias=False))
    layers.append(MixerBlock(inputs, 4))
    for channels, factor in zip(outputs, (4, 2), strict=True):
        layers += _normalized(nn.Conv2d(inputs, channels, 2, stride=2, bias=False))
        layers += [MixerBlock(channels, factor) for _ in range(3)]
        inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def _normalized(convolution: nn.Conv2d) -> list[nn.Module]:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
