"""The networks: sizes from the papers' architectures, shapes, names."""

import pytest
import torch

from models import ARCHITECTURES, ModelError, build, combine, rebuild


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
        ("resnet14", 175_258, (16, 32, 64), (2, 2, 2)),
        ("resnet8", 78_042, (16, 32, 64), (1, 1, 1)),
    ],
)
def test_parameters(name, parameters, widths, depths):
    assert parameters_by_hand(widths, depths, 3, 10) == parameters
    for channels, classes in [(3, 10), (1, 7)]:
        model = build(name, shape=(channels, 32, 32), classes=classes)
        expected = parameters_by_hand(widths, depths, channels, classes)
        assert sum(p.numel() for p in model.parameters()) == expected


def size(name, **fields):
    return sum(p.numel() for p in build(name, shape=(3, 32, 32), classes=10, **fields).parameters())


@pytest.mark.parametrize(
    ("name", "published", "tolerance"),
    [
        ("student_baseline", 654_858, 0), ("student_1", 399_626, 0), ("student_2", 376_330, 0),
        ("student_3", 279_000, 0.01), ("student_4", 253_000, 0.01), ("student_5", 187_000, 0.01),
        ("student_6", 191_000, 0.01), ("student_3conv", 357_514, 0),
    ],
)  # fmt: skip
def test_students_have_the_published_sizes(name, published, tolerance):
    assert size(name) == pytest.approx(published, rel=tolerance, abs=0)


def test_the_other_small_networks_are_small():
    pairs = [
        (32, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
    ]
    # depthwise and pointwise, and two a channel for each norm
    separable = sum(9 * i + 2 * i + i * o + 2 * o for i, o in pairs)
    assert size("ds_cnn") == 27 * 32 + 64 + separable + 2570
    block = {(c, h): 2 * c * h + 9 * h + 2 * (2 * h + c) for c, h in ((16, 64), (32, 128), (64, 128))}
    down = sum(4 * i * o + 2 * o for i, o in ((16, 32), (32, 64)))
    blocks = block[16, 64] + 3 * block[32, 128] + 3 * block[64, 128]
    assert size("tiny_mixer") == 27 * 16 + 32 + blocks + down + 650 < 100_000


def test_width():
    assert size("resnet20", width=0.5) == parameters_by_hand((8, 16, 32), (3, 3, 3), 3, 10)
    model = build("resnet8", shape=(1, 8, 8), classes=10, width=0.25)
    rebuild(model.spec).load_state_dict(model.state_dict())
    assert "width" not in build("resnet8", shape=(1, 8, 8), classes=10).spec  # so that old checksums stay
    for width in (0, -1, float("nan"), float("inf"), "0.5"):
        with pytest.raises(ModelError, match="above 0 and finite"):
            build("resnet8", shape=(1, 8, 8), classes=10, width=width)


def test_an_ensemble_is_the_mean_of_probabilities():
    torch.manual_seed(0)
    members = [build(name, shape=(1, 8, 8), classes=10).eval() for name in ("resnet8", "student_6")]
    model = combine(members).eval()
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        mean = sum(member(x).softmax(1) for member in members) / 2
        torch.testing.assert_close(model(x).softmax(1), mean)
        twin = rebuild(model.spec)
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.eval()(x), model(x))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
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
    with pytest.raises(ModelError, match="unknown model 'resnet50': did you mean resnet20 or resnet8 or resnet18"):
        build("resnet50", shape=(3, 32, 32), classes=10)
