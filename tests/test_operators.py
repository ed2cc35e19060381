"""The table of operators, and all that reads it: placement by ONNX Runtime's own graph, costs by torch's counter."""

import copy
import dataclasses
from collections import Counter

import onnx
import pytest
import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

from data import Split, load
from measurement import cost
from models import ARCHITECTURES, ModelError, build, check_network, operators
from models.operators import Channels, Operator, operator_of, register, trace
from models.quantized import QuantizedConv2d, Quantizer, folded, insert_quantizers, left_in_floats
from quantization import Quantize, calibrate, qat
from quantization.weights import bits_by_layer
from recipe import StepError
from storage import Checkpoint, export_onnx, load_archive, open_onnx, run_onnx, save_archive
from training import Context

PASSES, MIXES, ADDS, CONCATENATES, SPLITS, SCALES, FLATTENS, REARRANGES, READS_SIZE, UNKNOWN = Channels


def images(count=64):
    """Noise around a colour of each image's own: networks that take the mean over pixels tell them apart."""
    generator = torch.Generator().manual_seed(count)
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    return 0.6 * noise + 0.8 * torch.randn(count, 3, 1, 1, generator=generator)


SPLIT = Split((images() * 40 + 128).clamp(0, 255).to(torch.uint8), torch.arange(64) % 10)
NOISE = dataclasses.replace(
    load("digits"), name="noise", train=SPLIT, validation=SPLIT, test=SPLIT, mean=(0.5,) * 3, std=(0.16,) * 3
)


class Around(nn.Module):
    """Two convolutions with an operator between them, then what makes logits."""

    def __init__(self, between, **modules):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last, self.head = nn.LazyConv2d(8, 1), nn.Linear(8, 10)
        for name, module in modules.items():
            setattr(self, name, module)
        self.between = between

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        x = functional.relu(self.last(self.between(self, x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def network(between, **modules):
    torch.manual_seed(0)
    model = Around(between, **modules)
    model(images())
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    model(images())
    model.spec = {"architecture": "around", "shape": [3, 8, 8], "classes": 10}
    return model.eval()


# What an operator is


def shuffled(_, x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


CALLS = {
    "F.relu": (lambda m, x: functional.relu(x, inplace=True), PASSES),
    "torch.relu": (lambda m, x: torch.relu(x), PASSES),
    "x.relu_": (lambda m, x: x.relu_(), PASSES),
    "F.max_pool2d": (lambda m, x: functional.max_pool2d(x, 2), PASSES),
    "mean over pixels": (lambda m, x: x.mean((2, 3), keepdim=True), PASSES),
    "mean over the last": (lambda m, x: x.mean(-1), UNKNOWN),
    "some of the last": (lambda m, x: x[..., :4], UNKNOWN),
    "all of it": (lambda m, x: x[()], UNKNOWN),
    "mean over all": (lambda m, x: x.mean(), UNKNOWN),
    "mean over channels": (lambda m, x: x.mean(1, keepdim=True), UNKNOWN),
    "a constant": (lambda m, x: 1 - 0.5 * x, PASSES),
    "a buffer": (lambda m, x: x * m.scale, PASSES),
    "a buffer's function": (lambda m, x: x / m.scale.exp(), PASSES),
    "x + x": (lambda m, x: x + x, ADDS),
    "x += y": (lambda m, x: x.add_(functional.silu(x)), ADDS),
    "gate": (lambda m, x: x * x.sigmoid(), SCALES),
    "cat": (lambda m, x: torch.cat([x, x], 1), CONCATENATES),
    "cat of images": (lambda m, x: torch.cat([x, x]), UNKNOWN),
    "chunk": (lambda m, x: x.chunk(2, dim=1), SPLITS),
    "chunk of rows": (lambda m, x: x.chunk(2, dim=2), UNKNOWN),
    "part of a chunk": (lambda m, x: x.chunk(2, dim=1)[1], SPLITS),
    "some channels": (lambda m, x: x[:, 2:], SPLITS),
    "some pixels": (lambda m, x: x[:, :, ::2, ::2], PASSES),
    "flatten": (lambda m, x: torch.flatten(x, 1), FLATTENS),
    "flatten of pixels": (lambda m, x: x.flatten(2), REARRANGES),
    "view by size": (lambda m, x: x.view(x.size(0), -1), FLATTENS),
    "reshape by shape": (lambda m, x: x.reshape(x.shape[0], -1), FLATTENS),
    "view as pixels": (lambda m, x: x.mean((2, 3)).view(x.size(0), -1, 1, 1), PASSES),
    "squeeze": (lambda m, x: x.squeeze(-1).squeeze(-1), FLATTENS),
    "permute": (lambda m, x: x.permute(0, 2, 3, 1), REARRANGES),
    "channel shuffle": (shuffled, REARRANGES),
    "size": (lambda m, x: x.size(0) * x.shape[2] // 2, READS_SIZE),
    "softmax": (lambda m, x: x.softmax(1), UNKNOWN),
    "sorted": (lambda m, x: x.sort(1), UNKNOWN),
}


class Called(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.register_buffer("scale", torch.rand(8, 1, 1))

    def forward(self, x):
        return self.call(self, x)


@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_does_to_channels(name):
    call, expected = CALLS[name]
    traced = trace(Called(call))
    result = next(node for node in reversed(traced.graph.nodes) if node.op == "output").all_input_nodes[0]
    assert operator_of(result, dict(traced.named_modules())).channels is expected


class Plain(nn.Conv2d):
    """Another name for a convolution."""


class Doubled(nn.Conv2d):
    """Another convolution."""

    def forward(self, x):
        return functional.conv2d(x, 2 * self.weight, self.bias, padding=1)


def test_subclasses_count_unless_they_compute_otherwise():
    traced = trace(nn.Sequential(Plain(3, 8, 3), nn.ReLU6(), Doubled(8, 8, 3)))
    modules, calls = dict(traced.named_modules()), [n for n in traced.graph.nodes if n.op.startswith("call")]
    rows = [operator_of(node, modules).name for node in calls]
    assert rows == ["convolution", "ReLU6", "arithmetic with sizes and constants", "unknown"]


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.5 * x)


def test_a_users_own_operator_is_one_row(monkeypatch):
    monkeypatch.setattr(operators, "OPERATORS", list(operators.OPERATORS))
    register(Operator("swish", PASSES, modules=(Swish,)))
    model = network(lambda m, x: m.swish(x), swish=Swish())
    assert left_in_floats(insert_quantizers(model)) == ["swish"]


class Asks(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_forward_that_cannot_be_traced_is_named_by_its_line():
    with pytest.raises(ModelError, match=r"cannot be traced at test_operators.py, line \d+, in forward: return x if"):
        trace(Asks())


# Quantizers, by what ONNX Runtime makes of them: for each kind what it runs on integers between the two convolutions,
# and what is left in floats


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv(x)))
        return functional.relu(self.norm(self.conv(x)))


def padded(mode):
    return network(lambda m, x: torch.relu_(m.more(x)), more=nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode))


def attention(m, x):
    n, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    return x + m.more(tokens, tokens, tokens)[0].transpose(1, 2).reshape(n, c, h, w)


def iadd(m, x):
    y = m.more(x)
    y += x
    return y


def one(module):
    return lambda: network(lambda m, x: m.more(x), more=module())


KINDS = {
    "nothing": (lambda: network(lambda m, x: x), {}, []),
    "x.relu_": (lambda: network(lambda m, x: m.more(x).relu_(), more=nn.Conv2d(8, 8, 1)), {"QLinearConv": 1}, []),
    "ReLU6 in place": (
        one(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))),
        {"QLinearConv": 1},
        [],
    ),
    "sigmoid": (one(nn.Sigmoid), {"QLinearSigmoid": 1}, []),
    "leaky ReLU": (one(lambda: nn.LeakyReLU(0.1, inplace=True)), {"QLinearLeakyRelu": 1}, []),
    "max-pooling": (one(lambda: nn.MaxPool2d(2)), {"NhwcMaxPool": 1}, []),
    "average pooling": (one(lambda: nn.AvgPool2d(2)), {"QLinearAveragePool": 1}, []),
    "dropout": (one(lambda: nn.Sequential(nn.Dropout2d(0.2, inplace=True), nn.Identity())), {}, []),
    "addition": (lambda: network(iadd, more=nn.Conv2d(8, 8, 1)), {"QLinearConv": 1, "QLinearAdd": 1}, []),
    "gate": (
        lambda: network(lambda m, x: x * m.more(x.mean((2, 3), keepdim=True)).sigmoid(), more=nn.Conv2d(8, 8, 1)),
        {"QLinearConv": 1, "QLinearSigmoid": 1, "QLinearMul": 1},
        [],
    ),
    "cat": (
        lambda: network(lambda m, x: torch.cat([x, m.more(x)], 1), more=nn.Conv2d(8, 4, 1)),
        {"QLinearConv": 1, "QLinearConcat": 1},
        [],
    ),
    "chunk": (lambda: network(lambda m, x: m.more(x.chunk(2, 1)[1]), more=nn.Conv2d(4, 8, 1)), {"QLinearConv": 1}, []),
    "slice": (lambda: network(lambda m, x: m.more(x[:, 3:]), more=nn.Conv2d(5, 8, 1)), {"QLinearConv": 1}, []),
    "channel shuffle": (lambda: network(shuffled), {}, []),
    "reflect": (lambda: padded("reflect"), {"QLinearConv": 1}, []),
    "circular": (lambda: padded("circular"), {"QLinearConv": 1}, []),
    "replicate": (lambda: padded("replicate"), {"QLinearConv": 1}, []),
    "subclass": (one(lambda: Plain(8, 8, 3)), {"QLinearConv": 1}, []),
    "called twice": (one(Twice), {"QLinearConv": 2}, []),
    "no affine": (
        one(lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False))),
        {"QLinearConv": 1},
        [],
    ),
    "PReLU": (one(lambda: nn.PReLU(8)), {}, ["more"]),
    "SiLU": (one(lambda: nn.SiLU(inplace=True)), {}, ["more"]),
    "GELU": (lambda: network(lambda m, x: functional.gelu(x)), {}, ["gelu"]),
    "Hardswish": (one(lambda: nn.Hardswish(inplace=True)), {}, ["more"]),
    "pre-activation": (one(lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), {}, ["more.0", "more.1"]),
    "group norm": (one(lambda: nn.GroupNorm(2, 8)), {}, ["more"]),
    "layer norm": (one(lambda: nn.LayerNorm([8, 8, 8])), {}, ["more"]),
    "instance norm": (one(lambda: nn.InstanceNorm2d(8, affine=True)), {}, ["more"]),
    "transposed": (
        one(lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8))),
        {},
        ["more.0", "more.1"],
    ),
    "Conv1d": (
        lambda: network(lambda m, x: m.more(x.flatten(2)).view(x.shape), more=nn.Conv1d(8, 8, 3, padding=1)),
        {},
        ["more"],
    ),
    "attention": (lambda: network(attention, more=nn.MultiheadAttention(8, 2, batch_first=True)), {}, ["more"]),
    "weight norm": (one(lambda: weight_norm(nn.Conv2d(8, 8, 1))), {}, ["more"]),
    "another convolution": (one(lambda: Doubled(8, 8, 3)), {}, ["conv2d"]),
    "layer scale": (lambda: network(lambda m, x: x * m.more, more=nn.Parameter(torch.rand(8, 1, 1))), {}, ["mul"]),
}

COMMON = {"nothing", "max-pooling", "addition", "gate", "cat", "channel shuffle", "attention"}
EACH = [kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", EACH)
def test_placement_by_the_runtimes_own_graph(kind, tmp_path):
    make, integers, floats = KINDS[kind]
    model = make()
    integer = insert_quantizers(model)
    calibrate(integer, NOISE, images=64, percentile=100, seed=0)
    assert set(floats) <= set(left_in_floats(integer)) and (floats or not left_in_floats(integer))
    x = images(1000)
    export_onnx(integer, tmp_path / "model.onnx", images=x)
    ran = runtime_operators(tmp_path)
    assert {name: ran[name] - WITHOUT[name] for name in integers} == integers
    assert ran["Conv"] == 0 or floats
    with torch.no_grad():
        own, expected = integer(x), model(x)
    deployed = torch.from_numpy(run_onnx(open_onnx(tmp_path / "model.onnx"), x.numpy()))
    same = (deployed.argmax(1) == own.argmax(1)).float().mean()
    assert same >= (
        0.99 if floats else 0.999
    )  # between quantizers the runtime may round a weight that is left in floats
    assert (own - expected).norm() < 0.2 * (expected - expected.mean(0)).norm()


WITHOUT = Counter({"QLinearConv": 2})  # what runs on integers around the operator


def runtime_operators(folder):
    open_onnx(folder / "model.onnx", optimized=folder / "rewritten.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "rewritten.onnx").graph.node)


@pytest.mark.parametrize("kind", EACH)
def test_float_files_and_training_with_rounding(kind, tmp_path):
    """The FP32 file is the network; after a step of training, what is deployed is what was trained."""
    model, x = KINDS[kind][0](), images(32)
    export_onnx(model, tmp_path / "float.onnx", images=x)  # refuses a file whose logits differ
    calibrated = insert_quantizers(model)
    calibrate(calibrated, NOISE, images=64, percentile=100, seed=0)
    trained = qat.prepare(model, bits_by_layer(model, 8, 8))
    qat.start(trained, calibrated)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    functional.cross_entropy(trained.train()(x), torch.arange(32) % 10).backward()
    optimizer.step()
    with torch.no_grad():
        expected = trained.eval()(x)
    integer = qat.finish(trained, model)
    with torch.no_grad():
        assert (integer(x) - expected).norm() < 0.2 * (expected - expected.mean(0)).norm()


@pytest.mark.parametrize("write", ["F.relu", "torch.relu", "x.relu_", "nn.ReLU"])
def test_however_relu_is_written_it_is_taken_in(write):
    call = {"nn.ReLU": lambda m, x: m.relu(x)} | {name: call for name, (call, _) in CALLS.items()}
    model = network(lambda m, x: call[write](m, m.more(x)), more=nn.Conv2d(8, 8, 1), relu=nn.ReLU(inplace=True))
    quantizers = [name for name, module in insert_quantizers(model).named_modules() if isinstance(module, Quantizer)]
    assert len(quantizers) == 5 and not any("more" in name for name in quantizers)


def test_a_batch_norm_is_folded_once_where_it_always_follows_its_layer():
    model, x = network(lambda m, x: m.more(x), more=Twice()), images(16)
    graph = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    with torch.no_grad():
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)
    shared = network(lambda m, x: m.norm(m.more(x)), more=nn.Conv2d(8, 8, 1))  # one norm behind two layers
    with torch.no_grad():
        torch.testing.assert_close(folded(shared)(x), shared(x), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded(shared).modules()) == 1


def test_folding_leaves_the_network_alone():
    model = network(lambda m, x: x)
    before = copy.deepcopy(model.state_dict())
    insert_quantizers(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_what_reads_a_tensor_changed_in_place_reads_the_change(context):
    """torch's own in-place ReLU changes the tensor that the shortcut adds, and so must the integer network."""
    model = network(lambda m, x: m.more(functional.relu_(y := x - 1)) + y, more=nn.Conv2d(8, 8, 1))
    integer = Quantize(images=64).apply(model, context)
    x = images(64)
    with torch.no_grad():
        assert (integer(x) - model(x)).norm() < 0.1 * model(x).norm()


@pytest.fixture
def context(tmp_path):
    return Context(NOISE, 0, torch.device("cpu"), Checkpoint(tmp_path / "state"), make=None, cache=tmp_path)


def test_another_network_than_the_float_one_is_refused(context, monkeypatch):
    """As if the form of an operator were forgotten: here padding that is not of zeros."""
    monkeypatch.setattr("models.quantized.ready_for_quantizers", lambda traced: traced)
    monkeypatch.setattr("quantization.static.TOLERANCE", 0.05)
    with pytest.raises(StepError, match="other logits than the float one"):
        Quantize(images=64).apply(padded("reflect"), context)


@pytest.mark.slow
def test_more_quantizers_than_a_byte_counts(tmp_path):
    torch.manual_seed(0)
    model = network(lambda m, x: m.more(x), more=nn.Sequential(*[nn.Conv2d(8, 8, 1) for _ in range(270)]))
    for layer in model.more:
        nn.init.orthogonal_(layer.weight.data[:, :, 0, 0])
    integer = insert_quantizers(model)
    calibrate(integer, NOISE, images=32, percentile=100, seed=0)
    export_onnx(integer, tmp_path / "model.onnx", images=images(8))


def test_the_bias_of_a_channel_that_is_nearly_dead_fits_32_bits(tmp_path):
    """onnxruntime#22020, #25278: the step of such a weight is so small that the bias would be beyond them."""
    model = network(lambda m, x: m.more(x), more=nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        model.more.weight[3] *= 1e-12
        model.more.bias[3] = 5
    integer = insert_quantizers(model)
    calibrate(integer, NOISE, images=64, percentile=100, seed=0)
    x = images(64)
    export_onnx(integer, tmp_path / "model.onnx", images=x)
    with torch.no_grad():
        assert (integer(x) - model(x)).norm() < 0.05 * model(x).norm()
    trained = qat.prepare(model, bits_by_layer(model, 8, 8)).eval()
    qat.start(trained, integer)
    with torch.no_grad():
        assert (qat.finish(trained, model)(x) - integer(x)).norm() < 0.05 * integer(x).norm()


def test_first_and_last_are_by_use():
    model = network(lambda m, x: m.more(x), more=nn.Conv2d(8, 8, 1))
    model._modules = dict(reversed(model._modules.items()))
    assert next(iter(model._modules)) == "more"
    assert bits_by_layer(model, 4, 8) == {"first": 8, "more": 4, "last": 4, "head": 8}


def test_tied_weights_are_refused():
    model = network(lambda m, x: m.other(m.more(x)), more=nn.Conv2d(8, 8, 1), other=nn.Conv2d(8, 8, 1))
    model.other.weight = model.more.weight
    with pytest.raises(ModelError, match="more and other share one weight"):
        insert_quantizers(model)


def test_what_nothing_calls_hinders_nothing(context):
    model = network(lambda m, x: x, unused=nn.Conv2d(3, 3, 1))
    model.register_buffer("nothing", torch.ones(3))
    step = Quantize("qat", epochs=1, batch_size=32, images=32)
    assert isinstance(step.apply(model, context).first, QuantizedConv2d)


# Archives and checks


class Computes(nn.Module):
    """A constructor that computes with tensors, as those of stochastic depth do."""

    def __init__(self, classes):
        super().__init__()
        widths = [int(width) for width in torch.linspace(4, 8, 2)]
        self.layers = nn.Sequential(nn.Conv2d(3, widths[0], 1), nn.Conv2d(widths[0], widths[1], 1))
        self.head = nn.Linear(widths[1], classes)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_constructor_that_computes_with_tensors(quantized, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "computes", lambda shape, classes, width: Computes(classes))
    model = build("computes", shape=(3, 8, 8), classes=10).eval()
    model = insert_quantizers(model) if quantized else model
    save_archive(model, tmp_path / "model.nna")  # refuses what would not come back bit for bit
    with torch.no_grad():
        assert torch.equal(load_archive(tmp_path / "model.nna")(images()), model(images()))


class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1)), x


@pytest.mark.parametrize(
    ("model", "message"),
    [(Two(192, 10), "returns a tuple in evaluation mode: return the logits alone"),
     (nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), r"\[2, 1\] for 2 images of 10 classes: return one logit"),
     (nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), r"\[2, 7\] for 2 images of 10"),
     (nn.Linear(5, 10), r"Linear does not take images \(3, 8, 8\)"),
     (nn.Sequential(Asks(), nn.Flatten(), nn.Linear(192, 10)), "cannot be traced")],
)  # fmt: skip
def test_a_network_that_no_study_can_take_is_refused_in_a_sentence(model, message):
    with pytest.raises(ModelError, match=message):
        check_network(model.train(), (3, 8, 8), 10)
    assert model.training
    check_network(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), 10)


# Costs, by torch's own counter


COUNTED = {
    "convolution": lambda: nn.Conv2d(8, 8, 3, padding=1, stride=2),
    "grouped": lambda: nn.Conv2d(8, 16, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 3, stride=2),
    "twice": Twice,
    "subclass": lambda: Plain(8, 4, 1),
}


def counted(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", COUNTED)
def test_multiply_accumulates_against_torchs_counter(kind):
    model = one(COUNTED[kind])()
    assert cost(model)["macs"] == counted(model, images(1)) > 0


def test_multiply_accumulates_of_layers_that_read_more_than_images():
    flat = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 5, groups=3), nn.Flatten(), nn.Linear(6 * 60, 10))
    rows = nn.Sequential(nn.Linear(8, 16), nn.Flatten(), nn.Linear(3 * 8 * 16, 10))  # of the last dimension
    for model in (flat, rows):
        model.spec = {"shape": [3, 8, 8]}
        assert cost(model)["macs"] == counted(model, images(1))
    lone = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 10, 64))
    lone.spec = {"shape": [3, 8, 8]}
    assert cost(lone)["macs"] == cost(lone)["nonzero_macs"] == 3 * 10 * 64


def test_multiply_accumulates_of_attention():
    model = network(attention, more=nn.MultiheadAttention(8, 2, batch_first=True))
    model.train()  # in evaluation torch has a kernel that its counter does not know
    without = cost(network(lambda m, x: x))["macs"]
    tokens = 64
    assert cost(model.eval())["macs"] - without == tokens * 4 * 8 * 8 + 2 * tokens * tokens * 8


def test_zeros_are_not_counted():
    model = one(lambda: nn.Conv2d(8, 8, 1))()
    before = cost(model)
    model.more.weight.data[:, :4] = 0
    after = cost(model)
    assert before["macs"] == after["macs"] and before["nonzero_macs"] - after["nonzero_macs"] == 64 * 32


def test_graphs_are_not_looked_through_twice():
    """A long chain of additions, each of the sum before it: reading the table takes time in its length alone."""

    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(200):
                x = x + x.relu()
            return x

    traced = trace(Chain())
    modules = dict(traced.named_modules())
    assert Counter(operator_of(node, modules).channels for node in traced.graph.nodes)[ADDS] == 200
    assert isinstance(traced, fx.GraphModule)
