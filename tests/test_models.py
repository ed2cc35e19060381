"""The networks: sizes from the papers' architectures, shapes, names."""

import pytest
import torch

from models import ModelError, build, rebuild


def parameters_by_hand(widths, depths, channels, classes):
    """Convolution, batch norm (two a channel) and linear sizes, added up layer by layer."""
    total, inputs = 9 * channels * widths[0] + 2 * widths[0], widths[0]
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for block in range(depth):
            total += 9 * inputs * width + 2 * width + 9 * width * width + 2 * width
            if block == 0 and stage > 0:
                total += inputs * width + 2 * width
            inputs = width
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "parameters", "widths", "depths"),
    [
        ("resnet18", 11_173_962, (64, 128, 256, 512), (2, 2, 2, 2)),
        ("resnet20", 272_474, (16, 32, 64), (3, 3, 3)),
    ],
)
def test_parameters(name, parameters, widths, depths):
    assert parameters_by_hand(widths, depths, 3, 10) == parameters
    for channels, classes in [(3, 10), (1, 7)]:
        model = build(name, shape=(channels, 32, 32), classes=classes)
        expected = parameters_by_hand(widths, depths, channels, classes)
        assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 10), ((3, 32, 32), 4)])
def test_output_shape(name, shape, classes):
    logits = build(name, shape=shape, classes=classes)(torch.randn(2, *shape))
    assert logits.shape == (2, classes) and logits.isfinite().all()


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet20", 20)])
def test_depth_is_the_one_in_the_name(name, depth):
    weights = [m for n, m in build(name, shape=(3, 32, 32), classes=10).named_parameters() if m.ndim > 1]
    assert sum(w.shape[-1] != 1 for w in weights) == depth  # all but the shortcuts' 1x1 convolutions


def test_a_block_is_the_papers():
    block = build("resnet20", shape=(1, 8, 8), classes=10).eval().blocks[3]  # the first that halves the side
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        inner = torch.nn.functional.relu(block.bn1(torch.nn.functional.conv2d(x, block.conv1.weight, None, 2, 1)))
        inner = block.bn2(torch.nn.functional.conv2d(inner, block.conv2.weight, None, 1, 1))
        convolution, norm = block.shortcut
        around = norm(torch.einsum("oi,nihw->nohw", convolution.weight[:, :, 0, 0], x[:, :, ::2, ::2]))
        torch.testing.assert_close(block(x), torch.clamp(inner + around, min=0))


def test_weights_follow_from_the_global_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("resnet20", shape=(1, 8, 8), classes=10).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_rebuild_from_the_spec():
    model = build("resnet20", shape=(1, 8, 8), classes=7)
    twin = rebuild(model.spec)
    assert twin.spec == model.spec
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(twin.eval()(x), model.eval()(x))


def test_unknown_name():
    with pytest.raises(ModelError, match=r"unknown model 'resnet50'.*resnet18, resnet20"):
        build("resnet50", shape=(3, 32, 32), classes=10)
