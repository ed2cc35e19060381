"""Edits of an ONNX graph: remove what is not computation, and add normalization."""

from collections import defaultdict
from collections.abc import Set
from itertools import count

import numpy as np
import onnx

from models.quantized import OPSET


def strip(graph: onnx.GraphProto, tensors: Set[str]) -> None:
    """Remove the `tensors` and the exporter's annotations: shapes, source locations, default attributes."""
    _set_initializers(graph, [tensor for tensor in graph.initializer if tensor.name not in tensors])
    del graph.value_info[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output):
        del part.metadata_props[:]
    for node in graph.node:
        node.name = ""
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain).attributes
        for attribute in [a for a in node.attribute if _same(a, schema[a.name].default_value)]:
            node.attribute.remove(attribute)


def _same(attribute: onnx.AttributeProto, default: onnx.AttributeProto) -> bool:
    value = onnx.helper.get_attribute_value
    return attribute.type == default.type and value(attribute) == value(default)


def name_zero_points(graph: onnx.GraphProto, tensors: Set[str]) -> None:
    """Give each quantizer of the network the zero point that belongs to its scale."""
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1].endswith(".scale"):
            zero_point = f"{node.input[1].removesuffix('.scale')}.zero_point"
            if zero_point in tensors:
                node.input[2] = zero_point


def settle_zero_points(graph: onnx.GraphProto) -> None:
    """Remove the zero points of int8 weights, which are all zero, if ONNX Runtime does not need them.

    An integer convolution needs none. Any other weight needs its own: if ONNX Runtime rewrites int8 weights as uint8
    (see `runtime_options`), it gives a weight without one a scalar, which only such a convolution accepts, and it
    refuses one that two weights share, since it has already rewritten it. Activations share equal zero points.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    shared: dict[bytes, str] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point = tensors[node.input[2]]
        if node.input[0] not in tensors:
            node.input[2] = shared.setdefault(zero_point.raw_data, zero_point.name)
        elif _in_integer_convolution(node, makers, users, tensors):
            del node.input[2]
        else:
            copied = graph.initializer.add()
            copied.CopyFrom(zero_point)
            copied.name = node.input[2] = f"{node.output[0]}_zero_point"
    used = {name for node in graph.node for name in node.input}
    _set_initializers(graph, [tensor for tensor in graph.initializer if tensor.name in used])


def _in_integer_convolution(weight: onnx.NodeProto, makers: dict, users: dict, tensors: dict) -> bool:
    """Return whether a weight's DequantizeLinear feeds only one convolution, which ONNX Runtime runs on integers.

    It does so between quantizers. There may be a ReLU before the second one if that one also clips at zero.
    """
    convolution, *others = users[weight.output[0]]
    if others or convolution.op_type != "Conv":
        return False
    source, after = makers.get(convolution.input[0]), users[convolution.output[0]]
    has_relu = [node.op_type for node in after] == ["Relu"]
    if has_relu:
        after = users[after[0].output[0]]
    if source is None or source.op_type != "DequantizeLinear" or [n.op_type for n in after] != ["QuantizeLinear"]:
        return False
    return not has_relu or not any(tensors[after[0].input[2]].raw_data)


def normalize_inside(graph: onnx.GraphProto, mean: np.ndarray, std: np.ndarray) -> None:
    """Make the graph take uint8 images, subtract `mean` and divide by `std`, both float32 `[C, 1, 1]`."""
    for node in graph.node:
        node.input[:] = ["images.normalized" if name == "images" else name for name in node.input]
    graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    make, rest = onnx.helper.make_node, list(graph.node)
    del graph.node[:]
    graph.node.append(make("Cast", ["images"], ["images.float"], to=onnx.TensorProto.FLOAT))
    graph.node.append(make("Sub", ["images.float", "images.mean"], ["images.centred"]))
    graph.node.append(make("Div", ["images.centred", "images.std"], ["images.normalized"]))
    graph.node.extend(rest)
    graph.initializer.append(onnx.numpy_helper.from_array(mean, "images.mean"))
    graph.initializer.append(onnx.numpy_helper.from_array(std, "images.std"))


def shorten_names(graph: onnx.GraphProto, kept: Set[str]) -> None:
    """Replace names by numbers, except input, output and `kept`: names take a tenth of a small network's file."""
    names = {name: name for name in (*kept, *(value.name for value in (*graph.input, *graph.output)), "")}
    numbers = (number for number in (np.base_repr(n, 36).lower() for n in count()) if number not in names)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name) or names.setdefault(name, next(numbers)) for name in values]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]


def _set_initializers(graph: onnx.GraphProto, tensors: list[onnx.TensorProto]) -> None:
    del graph.initializer[:]
    graph.initializer.extend(tensors)
