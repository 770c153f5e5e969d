"""Vectors for Numba: values of 64 bytes that stay in registers, and the arithmetic of the document step on them.

Numba's compiler makes vector instructions of simple loops, but keeps no array in registers from one loop to the next.
Here a vector is a type of its own. Functions that Numba compiles :func:`load` one from an array, add, multiply and
divide it by others, and :func:`store` it:

    v = load(numbers, 0)                 # the first 8 of float64, or 16 of float32
    store(numbers, 0, v + v * v)         # a product and a sum may become one multiply-add, which rounds once

All is in LLVM's generic vectors, so it runs on every CPU: one with narrower registers takes several for a vector.
Arrays are one-dimensional and contiguous; indices count elements, and nobody checks that a vector ends inside.

Numba's files of compiled functions do not notice a change in this module: touch those that use it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

__all__ = ["VECTOR_BYTES", "lanes", "load", "row_sums", "splat", "store", "store_transposed", "zeros"]

intrinsic: Any = extending.intrinsic  # its type does not say that callers leave out the first argument

#: Of every vector, whatever its numbers.
VECTOR_BYTES = 64
_INDEX = ir.IntType(32)


class Vector(types.Type):
    """So many floating numbers of one type."""

    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype, self.size = dtype, size
        super().__init__(f"Vector({dtype}, {size})")

    @property
    def llvm(self) -> Any:
        """LLVM's type."""
        return ir.VectorType(ir.DoubleType() if self.dtype == types.float64 else ir.FloatType(), self.size)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    """In memory a vector is as LLVM has it."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


def _register(operation: Callable[[Any, Any], Any], instruction: str) -> None:
    """Let two vectors be combined by an operator; products and sums may be contracted to multiply-adds."""

    @infer_global(operation)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, _kws: Any) -> Any:
            if isinstance(args[0], Vector) and args[1] == args[0]:
                return signature(args[0], *args)

    @lower_builtin(operation, Vector, Vector)
    def _lower(_context: Any, builder: Any, _found: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=("contract",))


for _operation, _instruction in ((operator.add, "fadd"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _register(_operation, _instruction)


def _vector_of(array: Any) -> Vector:
    """The vector of an array's numbers.

    Raises:
        TypingError: when compiled, if the array is not one-dimensional, contiguous and of floating numbers.
    """
    if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"):
        raise TypingError(f"Expected a contiguous array of one dimension; got {array}. Reshape or copy it.")
    if not isinstance(array.dtype, types.Float):
        raise TypingError(f"Expected an array of floating numbers; got {array}. Convert it.")
    return Vector(array.dtype, 8 * VECTOR_BYTES // array.dtype.bitwidth)


# -------------------------------------------------------------------------------------------- pieces of generated code


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """To an element of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _read(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """The vector that begins at an element of an array."""
    pointer, vector = _pointer(context, builder, kind, array, index), _vector_of(kind)
    return builder.load(builder.bitcast(pointer, vector.llvm.as_pointer()), align=kind.dtype.bitwidth // 8)


def _write(context: Any, builder: Any, kind: Any, array: Any, index: Any, value: Any) -> None:
    """A vector, to an array from an element on."""
    pointer = _pointer(context, builder, kind, array, index)
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=kind.dtype.bitwidth // 8)


def _shuffled(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    """The numbers at these places of two vectors, one behind the other."""
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INDEX, len(places)), list(places)))


def _exchanged(builder: Any, upper: Any, lower: Any, half: int) -> tuple[Any, Any]:
    """Two rows of matrices of 2 × 2 blocks, each ``half`` wide: the rows with the blocks off the diagonal exchanged."""
    size = upper.type.count
    left = [i for i in range(size) if i % (2 * half) < half]
    first = [
        i for start in left[::half] for i in (*range(start, start + half), *range(size + start, size + start + half))
    ]
    return _shuffled(builder, upper, lower, first), _shuffled(builder, upper, lower, [i + half for i in first])


# ------------------------------------------------------------------------------- functions for code that Numba compiles


@intrinsic
def lanes(_typing: Any, array: Any) -> Any:
    """How many of an array's numbers a vector holds; known when the code is compiled."""
    return types.intp(array), lambda context, *_: context.get_constant(types.intp, _vector_of(array).size)


@intrinsic
def zeros(_typing: Any, array: Any) -> Any:
    """A vector of zeros, of an array's dtype."""
    vector = _vector_of(array)
    return vector(array), lambda *_: ir.Constant(vector.llvm, [0.0] * vector.size)


@intrinsic
def load(_typing: Any, array: Any, index: Any) -> Any:
    """The vector that begins at an element."""
    return _vector_of(array)(array, types.intp), lambda c, builder, _s, args: _read(c, builder, array, *args)


@intrinsic
def splat(_typing: Any, array: Any, index: Any) -> Any:
    """A vector of one element throughout."""
    vector = _vector_of(array)

    def generate(context: Any, builder: Any, _found: Any, args: Any) -> Any:
        number, nothing = builder.load(_pointer(context, builder, array, *args)), ir.Constant(vector.llvm, ir.Undefined)
        return _shuffled(builder, builder.insert_element(nothing, number, _INDEX(0)), nothing, [0] * vector.size)

    return vector(array, types.intp), generate


@intrinsic
def store(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to an array of its dtype, beginning at an element."""
    if _vector_of(array) != value:
        raise TypingError(f"Expected numbers of one type; got {array.dtype} and {value.dtype}. Convert one of them.")

    def generate(context: Any, builder: Any, _found: Any, args: Any) -> Any:
        _write(context, builder, array, *args)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), generate


@intrinsic
def row_sums(_typing: Any, array: Any, index: Any) -> Any:
    """The sums of as many vectors as a vector has numbers, one behind the other from an element on: as one vector."""
    vector = _vector_of(array)

    def generate(context: Any, builder: Any, _found: Any, args: Any) -> Any:
        starts = [builder.add(args[1], args[1].type(i * vector.size)) for i in range(vector.size)]
        rows = [_read(context, builder, array, args[0], start) for start in starts]
        while len(rows) > 1:  # as a square is turned around, but added up on the way
            half = len(rows) // 2
            rows = [builder.fadd(*_exchanged(builder, rows[i], rows[i + half], half)) for i in range(half)]
        return rows[0]

    return vector(array, types.intp), generate


@intrinsic
def store_transposed(
    _typing: Any, source: Any, starts: Any, first: Any, column: Any, target: Any, place: Any, stride: Any
) -> Any:
    """Turn a square of rows around, by exchanges of ever smaller blocks.

    Row i of the square is the vector ``source[starts[first + i] + column :]``; column j is written to
    ``target[place + j * stride :]``, of the same dtype.
    """
    size = _vector_of(source).size

    def generate(context: Any, builder: Any, found: Any, args: Any) -> Any:
        kinds, number = found.args, args[2].type
        places = [builder.add(args[2], number(i)) for i in range(size)]
        begins = [builder.load(_pointer(context, builder, kinds[1], args[1], place)) for place in places]
        rows = [_read(context, builder, kinds[0], args[0], builder.add(begin, args[3])) for begin in begins]
        half = size
        while half > 1:
            half //= 2
            for i in (i for i in range(size) if not i & half):
                rows[i], rows[i + half] = _exchanged(builder, rows[i], rows[i + half], half)
        for j, row in enumerate(rows):
            at = builder.add(args[5], builder.mul(args[6], number(j)))
            _write(context, builder, kinds[4], args[4], at, row)
        return context.get_dummy_value()

    return types.none(source, starts, *(types.intp,) * 2, target, *(types.intp,) * 2), generate
