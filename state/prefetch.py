"""Ask for memory before it is needed: rows of a large table lie anywhere, and each is a wait."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

AHEAD = 6  # rows: some 80 ns of latency over what one row takes, and the CPU has room for few more
LINE_BYTES = 64


def _line(array: NDArray[Any], row: int, at: int) -> None:
    """Ask for the line of memory `at` bytes behind the beginning of a row; compiled only."""


@intrinsic
def _ask(typing_context, array, row, at):  # type: ignore[no-untyped-def]  # noqa: ARG001
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = builder.extract_value(found.strides, 0)
        offset = builder.add(builder.mul(arguments[1], stride), arguments[2])
        base = builder.ptrtoint(found.data, ir.IntType(64))
        byte = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        address = builder.inttoptr(builder.add(base, offset), byte)
        builder.call(prefetch, [address, word(1), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), code


@overload(_line)
def _compiled_line(array, row, at):  # type: ignore[no-untyped-def]  # noqa: ARG001
    def ask(array, row, at):  # type: ignore[no-untyped-def]
        _ask(array, row, at)  # type: ignore[call-arg]  # numba passes the typing context

    return ask


@njit(cache=True)
def prefetch(array, row, size):  # type: ignore[no-untyped-def]
    """Ask for the first `size` bytes of a row of an array; reads and changes nothing."""
    for at in range(0, size, LINE_BYTES):
        _line(array, row, at)
