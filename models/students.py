"""Small networks: the published study's students, and better ones, all of operators that become integer ones."""

import torch
from torch import nn

from models.resnet import Shape, scaled

# Of each convolution its channels, its kernel's side, and whether a 2x2 max-pool follows; then the hidden layers.
# The published parameter counts of students 3 to 6 are met within 1 %; how their channels were laid out is not known.
PLAIN: dict[str, tuple[tuple[tuple[int, int, bool], ...], tuple[int, ...]]] = {
    "student_baseline": (((32, 3, True), (64, 3, True), (128, 3, True), (256, 3, True)), (256,)),
    "student_1": (((32, 3, True), (64, 3, True), (128, 3, True), (256, 3, True)), ()),
    "student_2": (((32, 3, True), (64, 1, True), (128, 3, True), (256, 1, True)), (256,)),
    "student_3": (((32, 3, 0), (32, 3, 1), (64, 3, 0), (64, 3, 1), (128, 3, 1), (116, 3, 1)), ()),
    "student_4": (((32, 3, True), (64, 3, True), (96, 3, True), (128, 3, True)), (128,)),
    "student_5": (((32, 3, 1), (48, 3, 1), (64, 3, 0), (96, 3, 1), (96, 3, 1)), ()),
    "student_6": (((32, 3, True), (64, 3, True), (96, 3, True), (128, 3, True)), ()),
    "student_3conv": (((32, 3, True), (64, 3, True), (128, 3, True)), (128,)),
}


class PlainStudent(nn.Module):
    """Convolutions with batch norm, ReLU and pooling, then linear layers: a student of the published study.

    Without its dropout, which short trainings under a teacher do not need. A pool is left out where the image is down
    to a pixel.
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
    """Depthwise-separable convolutions (Howard et al., MobileNets, 2017): about 136,000 parameters."""
    stem, *outputs = scaled((32, 64, 128, 128, 256, 256), width)
    layers = _normalized(nn.Conv2d(shape[0], stem, 3, padding=1, bias=False))
    inputs = stem
    for channels, stride in zip(outputs, (1, 2, 1, 2, 1), strict=True):
        layers += _normalized(nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False))
        layers += _normalized(nn.Conv2d(inputs, channels, 1, bias=False))
        inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class MixerBlock(nn.Module):
    """Looks around with a depthwise 7x7, then mixes channels through twice as many; added to what came in."""

    def __init__(self, channels: int):
        super().__init__()
        around = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.around = nn.Sequential(around, nn.BatchNorm2d(channels))
        self.expand = nn.Sequential(*_normalized(nn.Conv2d(channels, 2 * channels, 1, bias=False)))
        self.project = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(self.expand(self.around(x)))


def tiny_mixer(shape: Shape, classes: int, width: float) -> nn.Sequential:
    """Large depthwise kernels and pointwise mixing in 92,838 parameters, after the design of cifar10-tiniest.

    Batch norm and ReLU stand where that has layer norm and an exponential gate, so that all of it becomes integers.
    """
    # The convolution between the stages has 4 groups: both widths are multiples of 4.
    early, late = (4 * max(1, round(width * channels / 4)) for channels in (36, 64))
    between = nn.Conv2d(early, late, 4, stride=2, padding=1, groups=4, bias=False)
    return nn.Sequential(
        *_normalized(nn.Conv2d(shape[0], early, 3, padding=1, bias=False)),
        *(MixerBlock(early) for _ in range(3)),
        *_normalized(between),
        *(MixerBlock(late) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(late, classes),
    )


def _normalized(convolution: nn.Conv2d) -> list[nn.Module]:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]
