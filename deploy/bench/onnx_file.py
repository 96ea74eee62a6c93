"""Write small ONNX models without the `onnx` package, which lives in the training's environment.

ONNX files are Protocol Buffers (onnx.proto3 of the ONNX project); the few messages that a graph of
plain operators needs are written here field by field. onnxruntime reads and checks the result.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 17
IR_VERSION = 8  # the one that opset 17 came with
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 7  # AttributeProto.AttributeType


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, NDArray[Any]],
    properties: Mapping[str, str],
) -> bytes:
    """Return an ONNX model of opset 17.

    Args:
        nodes: as `node` makes them, in order of computation.
        inputs: float32 tensors by name, with their shapes; a name stands for a free dimension.
        outputs: the same.
        constants: float32 or int64 arrays by name.
        properties: the model's metadata.
    """
    graph = b"".join(_bytes(1, one) for one in nodes)
    graph += _bytes(2, b"intensity")
    graph += b"".join(_bytes(5, _tensor(name, array)) for name, array in constants.items())
    graph += b"".join(_bytes(11, _value(name, shape)) for name, shape in inputs.items())
    graph += b"".join(_bytes(12, _value(name, shape)) for name, shape in outputs.items())
    body = _number(1, IR_VERSION) + _bytes(2, b"eddy") + _bytes(7, graph)
    body += _bytes(8, _bytes(1, b"") + _number(2, OPSET))
    for key, value in properties.items():
        body += _bytes(14, _bytes(1, key.encode()) + _bytes(2, value.encode()))
    return body


def node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: float | list[int]
) -> bytes:
    """Return one operator; attributes are integers, floats or lists of integers."""
    body = b"".join(_bytes(1, name.encode()) for name in inputs)
    body += b"".join(_bytes(2, name.encode()) for name in outputs)
    body += _bytes(4, operator.encode())
    for name, value in attributes.items():
        told = _bytes(1, name.encode())
        if isinstance(value, int):
            told += _number(3, value) + _number(20, _ATTRIBUTE_INT)
        elif isinstance(value, float):
            told += _key(2, 5) + struct.pack("<f", value) + _number(20, _ATTRIBUTE_FLOAT)
        else:
            told += b"".join(_number(8, one) for one in value) + _number(20, _ATTRIBUTE_INTS)
        body += _bytes(5, told)
    return body


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    kind = _INT64 if array.dtype == np.int64 else _FLOAT
    raw = array.astype("<i8" if kind == _INT64 else "<f4")
    body = b"".join(_number(1, size) for size in array.shape)
    return body + _number(2, kind) + _bytes(8, name.encode()) + _bytes(9, raw.tobytes())


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    dimensions = b"".join(
        _bytes(1, _bytes(2, size.encode()) if isinstance(size, str) else _number(1, size))
        for size in shape
    )
    tensor = _number(1, _FLOAT) + _bytes(2, dimensions)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value & 0xFFFFFFFFFFFFFFFF)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Write seven bits a byte, the lowest first.

    >>> _varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
