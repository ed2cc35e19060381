"""Networks for small images as people write them from their papers, each in a few lines: what a study has to take.

Each builder takes an image's shape (a side of 8 or more, a multiple of 8), the number of classes and a width, as those
of `models.ARCHITECTURES`. None was written for this repository's tracing, on purpose: functions and methods stand
beside modules, sizes are read from tensors, classifiers are convolutions, definitions are out of order.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from models.resnet import Shape, scaled

DESIGNS: dict[str, Callable[[Shape, int, float], nn.Module]] = {}


def design(kind: type[nn.Module]) -> type[nn.Module]:
    """Enter a network under its class's name in lower case."""
    DESIGNS[kind.__name__.lower()] = kind
    return kind


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


@design
class PreActResNet(nn.Module):
    """He et al., "Identity mappings in deep residual networks", ECCV 2016; as in kuangliu/pytorch-cifar."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = scaled((16, 32), width)
        self.conv1 = nn.Conv2d(shape[0], a, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(a, a, 1), PreActBlock(a, a, 1))
        self.layer2 = nn.Sequential(PreActBlock(a, b, 2), PreActBlock(b, b, 1))
        self.bn = nn.BatchNorm2d(b)
        self.linear = nn.Linear(b, classes)

    def forward(self, x):
        out = self.layer2(self.layer1(self.conv1(x)))
        out = F.adaptive_avg_pool2d(F.relu(self.bn(out)), 1)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return torch.cat([out, x], 1)


@design
class DenseNet(nn.Module):
    """Huang et al., CVPR 2017: each layer reads what all before it made, behind a batch norm of its own."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        (growth,) = scaled((8,), width)
        self.conv1 = nn.Conv2d(shape[0], 2 * growth, 3, padding=1, bias=False)
        self.dense1 = nn.Sequential(*[DenseLayer((2 + i) * growth, growth) for i in range(3)])
        self.bn1, self.trans = nn.BatchNorm2d(5 * growth), nn.Conv2d(5 * growth, 2 * growth, 1, bias=False)
        self.dense2 = nn.Sequential(*[DenseLayer((2 + i) * growth, growth) for i in range(2)])
        self.bn, self.linear = nn.BatchNorm2d(4 * growth), nn.Linear(4 * growth, classes)

    def forward(self, x):
        out = self.dense1(self.conv1(x))
        out = F.avg_pool2d(self.trans(F.relu(self.bn1(out))), 2)
        out = F.relu(self.bn(self.dense2(out)))
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.linear(torch.flatten(out, 1))


class SELayer(nn.Module):
    def __init__(self, channels, reduction):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.se = nn.ReLU(inplace=True), SELayer(outputs, 4)
        self.downsample = lambda x: x
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        residual = self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.se(self.bn2(self.conv2(out)))
        out += residual
        return self.relu(out)


@design
class SEResNet(nn.Module):
    """Hu et al., "Squeeze-and-excitation networks", CVPR 2018; the gate as in moskomule/senet.pytorch."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = scaled((16, 32), width)
        self.conv1, self.bn1, self.relu = nn.Conv2d(shape[0], a, 3, 1, 1), nn.BatchNorm2d(a), nn.ReLU(inplace=True)
        self.layer1, self.layer2 = nn.Sequential(SEBlock(a, a, 1)), nn.Sequential(SEBlock(a, b, 2), SEBlock(b, b, 1))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(b, classes)

    def forward(self, x):
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)


class ResNeXtBlock(nn.Module):
    def __init__(self, inputs, hidden, outputs, stride, cardinality=4):
        super().__init__()
        self.conv_reduce, self.bn_reduce = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.conv_conv = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.conv_expand, self.bn_expand = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(outputs))

    def forward(self, x):
        bottleneck = F.relu(self.bn_reduce(self.conv_reduce(x)), inplace=True)
        bottleneck = F.relu(self.bn(self.conv_conv(bottleneck)), inplace=True)
        bottleneck = self.bn_expand(self.conv_expand(bottleneck))
        return F.relu(self.shortcut(x) + bottleneck, inplace=True)


@design
class ResNeXt(nn.Module):
    """Xie et al., CVPR 2017: grouped convolutions; names as in prlz77/ResNeXt.pytorch."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = (4 * n for n in scaled((4, 8), width))
        self.conv, self.bn = nn.Conv2d(shape[0], a, 3, 1, 1, bias=False), nn.BatchNorm2d(a)
        self.stage_1 = nn.Sequential(ResNeXtBlock(a, a, 2 * a, 1), ResNeXtBlock(2 * a, a, 2 * a, 1))
        self.stage_2 = ResNeXtBlock(2 * a, b, 2 * b, 2)
        self.classifier = nn.Linear(2 * b, classes)

    def forward(self, x):
        x = self.stage_2(self.stage_1(F.relu(self.bn(self.conv(x)), inplace=True)))
        x = x.mean([2, 3])
        return self.classifier(x)


def channel_shuffle(x, groups):
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, -1, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x):
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


@design
class ShuffleNet(nn.Module):
    """Ma et al., "ShuffleNet V2", ECCV 2018: half of the channels pass a unit by, then all are shuffled."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = (2 * n for n in scaled((12, 24), width))
        self.conv1 = nn.Sequential(nn.Conv2d(shape[0], a, 3, 1, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU(True))
        self.stage, self.maxpool = nn.Sequential(ShuffleUnit(a), ShuffleUnit(a)), nn.MaxPool2d(3, 2, 1)
        self.conv5 = nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
        self.fc = nn.Linear(b, classes)

    def forward(self, x):
        x = self.conv5(self.stage(self.maxpool(self.conv1(x))))
        return self.fc(x.mean([2, 3]))


class InvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        hidden = inputs * factor
        self.use_res_connect = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True), nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


@design
class MobileNetV2(nn.Module):
    """Sandler et al., CVPR 2018."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b, c = scaled((16, 24, 64), width)
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(shape[0], a, 3, 1, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU6(inplace=True)),
            InvertedResidual(a, b, 2, 3), InvertedResidual(b, b, 1, 3),
            nn.Conv2d(b, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU6(inplace=True),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(c, classes))

    def forward(self, x):
        x = self.features(x)
        x = nn.functional.adaptive_avg_pool2d(x, 1).reshape(x.shape[0], -1)
        return self.classifier(x)


class FunctionalBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


@design
class FunctionalResNet(nn.Module):
    """He et al., CVPR 2016; the classifier is defined before the body, the view reads the batch's size."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = scaled((16, 32), width)
        self.side = shape[1] // 2
        self.linear = nn.Linear(b, classes)
        self.conv1, self.bn1 = nn.Conv2d(shape[0], a, 3, 1, 1, bias=False), nn.BatchNorm2d(a)
        self.layer1, self.layer2 = FunctionalBlock(a, a, 1), FunctionalBlock(a, b, 2)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer2(self.layer1(out))
        out = F.avg_pool2d(out, self.side)
        out = out.view(out.size(0), -1)
        return self.linear(out)


@design
class LeNet(nn.Module):
    """LeCun et al., 1998, and the usual distillation student: a view right behind a convolution."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b, c, d = scaled((6, 16, 120, 84), width)
        self.conv1, self.conv2 = nn.Conv2d(shape[0], a, 5, padding=2), nn.Conv2d(a, b, 5, padding=2)
        self.fc1 = nn.Linear(b * (shape[1] // 4) * (shape[2] // 4), c)
        self.fc2, self.fc3 = nn.Linear(c, d), nn.Linear(d, classes)

    def forward(self, x):
        out = F.max_pool2d(F.relu(self.conv1(x)), 2)
        out = F.max_pool2d(F.relu(self.conv2(out)), 2)
        out = out.view(out.size(0), -1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(out)))))


class Fire(nn.Module):
    def __init__(self, inputs, squeezed, expanded):
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(inputs, squeezed, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeezed, expanded, 1), nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


@design
class SqueezeNet(nn.Module):
    """Iandola et al., 2016: fire modules, and a 1x1 convolution as the classifier (Lin et al., NiN, 2014)."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b, c = scaled((32, 8, 16), width)
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], a, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(a, b, c), Fire(2 * c, b, 2 * c),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5), nn.Conv2d(4 * c, classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x):
        x = self.classifier(self.features(x))
        return torch.flatten(x, 1)


def conv_bn(inputs, outputs, kernel):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


@design
class Inception(nn.Module):
    """Szegedy et al., CVPR 2015: four branches of different kernels, put together."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b, c = scaled((24, 16, 8), width)
        self.pre_layers = conv_bn(shape[0], a, 3)
        self.b1 = conv_bn(a, b, 1)
        self.b2 = nn.Sequential(conv_bn(a, c, 1), conv_bn(c, b, 3))
        self.b3 = nn.Sequential(conv_bn(a, c, 1), conv_bn(c, c, 3), conv_bn(c, c, 3))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_bn(a, c, 1))
        self.avgpool, self.linear = nn.AvgPool2d(shape[1]), nn.Linear(2 * b + 2 * c, classes)

    def forward(self, x):
        x = self.pre_layers(x)
        out = torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)
        out = self.avgpool(out)
        return self.linear(out.view(out.size(0), -1))


def swish(x):
    return x * x.sigmoid()


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, factor):
        super().__init__()
        hidden, self.has_skip = inputs * factor, inputs == outputs
        self.conv1, self.bn1 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False)
        self.bn2, self.se1 = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, inputs // 4, 1)
        self.se2, self.conv3 = nn.Conv2d(inputs // 4, hidden, 1), nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        out = swish(self.bn1(self.conv1(x)))
        out = swish(self.bn2(self.conv2(out)))
        gate = F.adaptive_avg_pool2d(out, (1, 1))
        gate = self.se2(swish(self.se1(gate))).sigmoid()
        out = self.bn3(self.conv3(out * gate))
        return out + x if self.has_skip else out


@design
class EfficientNet(nn.Module):
    """Tan and Le, ICML 2019: swish written out, a gate by 1x1 convolutions, the shortcut chosen in `__init__`."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b, c = (4 * n for n in scaled((4, 8, 16), width))
        self.conv1, self.bn1 = nn.Conv2d(shape[0], a, 3, 2, 1, bias=False), nn.BatchNorm2d(a)
        self.blocks = nn.Sequential(MBConv(a, b, 2), MBConv(b, b, 2))
        self.head, self.linear = nn.Sequential(nn.Conv2d(b, c, 1), nn.BatchNorm2d(c), nn.SiLU()), nn.Linear(c, classes)

    def forward(self, x):
        out = self.head(self.blocks(swish(self.bn1(self.conv1(x)))))
        out = F.adaptive_avg_pool2d(out, 1)
        return self.linear(F.dropout(out.flatten(1), 0.2, self.training))


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = (self.gamma * x).permute(0, 3, 1, 2)
        return shortcut + x


@design
class ConvNeXt(nn.Module):
    """Liu et al., CVPR 2022: layer norm over channels that are last for a while, and a scale of each channel."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        (dim,) = scaled((24,), width)
        self.stem, self.blocks = nn.Conv2d(shape[0], dim, 2, 2), nn.Sequential(ConvNeXtBlock(dim), ConvNeXtBlock(dim))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


@design
class UShaped(nn.Module):
    """Ronneberger et al., "U-Net", 2015, with a classifier: what was made on the way down is put beside the way up."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = scaled((12, 24), width)
        self.down1, self.down2, self.pool = conv_bn(shape[0], a, 3), conv_bn(a, b, 3), nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv, self.outc = conv_bn(a + b, a, 3), nn.Conv2d(a, classes, kernel_size=1)

    def forward(self, x):
        x1 = self.down1(x)
        x2 = self.down2(self.pool(x1))
        x = torch.cat([self.up(x2), x1], dim=1)
        x = F.interpolate(self.conv(x), scale_factor=0.5)
        return self.outc(x).mean(dim=(2, 3))


class GroupNormBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.gn1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(4, channels)
        self.conv2, self.gn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(4, channels)

    def forward(self, x):
        return F.relu(self.gn2(self.conv2(F.relu(self.gn1(self.conv1(x))))) + x)


@design
class GroupNormResNet(nn.Module):
    """Wu and He, "Group normalization", ECCV 2018; an instance norm at the end."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = (4 * n for n in scaled((4, 8), width))
        self.conv, self.gn, self.block1 = nn.Conv2d(shape[0], a, 3, 1, 1), nn.GroupNorm(4, a), GroupNormBlock(a)
        self.down, self.norm = nn.Conv2d(a, b, 2, 2), nn.InstanceNorm2d(b, affine=True)
        self.block2, self.fc = GroupNormBlock(b), nn.Linear(b, classes)

    def forward(self, x):
        x = self.block1(F.relu(self.gn(self.conv(x))))
        x = self.block2(F.relu(self.norm(self.down(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


@design
class Leaky(nn.Module):
    """A plain network with LeakyReLU, PReLU, ELU and Dropout2d, a layer called twice, and pixels scaled by buffers."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = scaled((16, 32), width)
        self.register_buffer("mean", torch.full((1, shape[0], 1, 1), 0.5))
        self.conv1, self.bn1, self.act1 = nn.Conv2d(shape[0], a, 3, padding=1), nn.BatchNorm2d(a), nn.LeakyReLU(0.1)
        self.conv2, self.act2, self.drop = nn.Conv2d(a, a, 3, padding=1), nn.PReLU(a), nn.Dropout2d(0.1)
        self.conv3, self.act3 = nn.Conv2d(a, b, 3, 2, 1), nn.ELU()
        self.fc = nn.Linear(b, classes)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1((x - self.mean) / 0.25)))
        x = self.act2(self.conv2(self.act2(self.conv2(x))))
        x = self.act3(self.conv3(self.drop(x)))
        return self.fc(F.leaky_relu(x, 0.1).mean(3).mean(2))


@design
class Untraceable(nn.Module):
    """Layers called by `.forward`, as in prlz77/ResNeXt.pytorch, and a choice by the input: no tracer sees through."""

    def __init__(self, shape: Shape, classes: int, width: float):
        super().__init__()
        a, b = scaled((16, 32), width)
        self.conv1, self.bn1 = nn.Conv2d(shape[0], a, 3, padding=1, bias=False), nn.BatchNorm2d(a)
        self.conv2, self.fc = nn.Conv2d(a, b, 3, padding=1), nn.Linear(b, classes)

    def forward(self, x):
        x = F.relu(self.bn1.forward(self.conv1.forward(x)))
        if x.shape[-1] > 4:
            x = F.max_pool2d(x, 2)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))
