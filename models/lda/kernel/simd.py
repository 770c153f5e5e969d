"""Vectors for Numba: values of 64 bytes that stay in registers, and the arithmetic of the document step on them.

Numba's compiler makes vector instructions of simple loops, but keeps no array in registers from one loop to the next.
Here a vector is a type of its own. Functions that Numba compiles :func:`load` one from an array, work on it with the
four operators and the functions below, and :func:`store` it:

    v = load(numbers, 0)                # the first 8 of float64, or 16 of float32
    store(numbers, 0, 2.0 * v + v * v)  # a product and a sum may become one multiply-add, which rounds once

All is in LLVM's generic vectors, so it runs on every CPU: one with narrower registers takes several for a vector.
Arrays are one-dimensional and contiguous; indices count elements, and nobody checks that a vector ends inside.

Numba's files of compiled functions do not notice a change in this module: touch those that use it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

__all__ = [
    "VECTOR_BYTES",
    "absolute",
    "lanes",
    "load",
    "lowest",
    "minimum",
    "narrow",
    "power_of_two",
    "row_sums",
    "splat",
    "store",
    "store_transposed",
    "total",
    "widen",
    "zeros",
]

intrinsic: Any = extending.intrinsic  # its type does not say that callers leave out the first argument

#: Of every vector, whatever its numbers.
VECTOR_BYTES = 64
_INDEX = ir.IntType(32)
#: Products and sums may be contracted to multiply-adds; no other liberty is taken.
_FLAGS = ("contract",)


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


def _check_same(one: Any, other: Any) -> None:
    if one != other:
        raise TypingError(f"Expected numbers of one type; got {one} and {other}. Convert one of them.")


# -------------------------------------------------------------------------------------------- pieces of generated code


def _shuffled(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    """The numbers at these places of two vectors, one behind the other."""
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INDEX, len(places)), list(places)))


def _filled(builder: Any, number: Any, size: int) -> Any:
    """A vector of one number throughout."""
    nothing = ir.Constant(ir.VectorType(number.type, size), ir.Undefined)
    return _shuffled(builder, builder.insert_element(nothing, number, _INDEX(0)), nothing, [0] * size)


def _as_vectors(builder: Any, found: Any, args: Any) -> list[Any]:
    """The arguments of a call that returns a vector, its plain numbers as vectors."""
    size = found.return_type.size
    return [
        a if isinstance(kind, Vector) else _filled(builder, a, size) for a, kind in zip(args, found.args, strict=True)
    ]


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """To an element of an array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _read(builder: Any, pointer: Any, vector: Vector) -> Any:
    return builder.load(builder.bitcast(pointer, vector.llvm.as_pointer()), align=vector.dtype.bitwidth // 8)


def _write(builder: Any, value: Any, pointer: Any, vector: Vector) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=vector.dtype.bitwidth // 8)


def _rows(context: Any, builder: Any, kind: Any, array: Any, starts: Sequence[Any]) -> list[Any]:
    """The vectors that begin at these elements of an array."""
    return [_read(builder, _pointer(context, builder, kind, array, start), _vector_of(kind)) for start in starts]


def _exchanged(builder: Any, upper: Any, lower: Any, half: int) -> tuple[Any, Any]:
    """Two rows of matrices of 2 × 2 blocks, each ``half`` wide: the rows with the blocks off the diagonal exchanged."""
    size = upper.type.count
    left = [i for i in range(size) if i % (2 * half) < half]
    first = [
        i for start in left[::half] for i in (*range(start, start + half), *range(size + start, size + start + half))
    ]
    return _shuffled(builder, upper, lower, first), _shuffled(builder, upper, lower, [i + half for i in first])


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square matrix, by exchanges of ever smaller blocks."""
    rows, half = list(rows), len(rows)
    while half > 1:
        half //= 2
        for i in range(len(rows)):
            if not i & half:
                rows[i], rows[i + half] = _exchanged(builder, rows[i], rows[i + half], half)
    return rows


def _summed(builder: Any, rows: list[Any]) -> Any:
    """The sums of the rows of a square matrix: as the columns are found, but added up on the way."""
    while len(rows) > 1:
        half = len(rows) // 2
        rows = [builder.fadd(*_exchanged(builder, rows[i], rows[i + half], half)) for i in range(half)]
    return rows[0]


def _folded(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """All numbers of a vector combined to one, by halves."""
    size = value.type.count
    while size > 1:
        size //= 2
        value = combine(*(_shuffled(builder, value, value, range(a, a + size)) for a in (0, size)))
    return builder.extract_element(value, _INDEX(0))


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


# ----------------------------------------------------------------------------------------------------------- arithmetic


def _register(operation: Callable[[Any, Any], Any], instruction: str) -> None:
    """Let vectors be combined with each other, and with numbers, by an operator."""

    @infer_global(operation)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, _kws: Any) -> Any:
            vector = next((a for a in args if isinstance(a, Vector)), None)
            if vector is not None and all(a == vector or not isinstance(a, Vector) for a in args):
                return signature(vector, *(a if a == vector else vector.dtype for a in args))

    def lower(_context: Any, builder: Any, found: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*_as_vectors(builder, found, args), flags=_FLAGS)

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(operation, *kinds)(lower)


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(_operation, _instruction)


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
    vector = _vector_of(array)

    def generate(context: Any, builder: Any, _found: Any, args: Any) -> Any:
        return _read(builder, _pointer(context, builder, array, *args), vector)

    return vector(array, types.intp), generate


@intrinsic
def splat(_typing: Any, array: Any, index: Any) -> Any:
    """A vector of one element throughout."""
    vector = _vector_of(array)

    def generate(context: Any, builder: Any, _found: Any, args: Any) -> Any:
        return _filled(builder, builder.load(_pointer(context, builder, array, *args)), vector.size)

    return vector(array, types.intp), generate


@intrinsic
def store(_typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to an array of its dtype, beginning at an element."""
    _check_same(array.dtype, value.dtype)

    def generate(context: Any, builder: Any, _found: Any, args: Any) -> Any:
        _write(builder, args[2], _pointer(context, builder, array, args[0], args[1]), value)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), generate


@intrinsic
def row_sums(_typing: Any, array: Any, index: Any) -> Any:
    """The sums of as many vectors as a vector has numbers, one behind the other from an element on: as one vector."""
    vector = _vector_of(array)

    def generate(context: Any, builder: Any, found: Any, args: Any) -> Any:
        starts = [builder.add(args[1], args[1].type(i * vector.size)) for i in range(vector.size)]
        return _summed(builder, _rows(context, builder, found.args[0], args[0], starts))

    return vector(array, types.intp), generate


@intrinsic
def store_transposed(
    _typing: Any, source: Any, starts: Any, first: Any, column: Any, target: Any, place: Any, stride: Any
) -> Any:
    """Turn a square of rows around.

    Row i of the square is the vector ``source[starts[first + i] + column :]``; column j is written to
    ``target[place + j * stride :]``, of the same dtype.
    """
    vector = _vector_of(source)
    _check_same(vector, _vector_of(target))

    def generate(context: Any, builder: Any, found: Any, args: Any) -> Any:
        rows, kinds = range(vector.size), found.args
        places = [_pointer(context, builder, kinds[1], args[1], builder.add(args[2], args[2].type(i))) for i in rows]
        begins = [builder.add(builder.load(p), args[3]) for p in places]
        columns = _transposed(builder, _rows(context, builder, kinds[0], args[0], begins))
        for j, value in enumerate(columns):
            at = builder.add(args[5], builder.mul(args[6], args[6].type(j)))
            _write(builder, value, _pointer(context, builder, kinds[4], args[4], at), vector)
        return context.get_dummy_value()

    return types.none(source, starts, *(types.intp,) * 2, target, *(types.intp,) * 2), generate


@intrinsic
def total(_typing: Any, value: Any) -> Any:
    """The sum of a vector's numbers."""
    return value.dtype(value), lambda _c, builder, _s, args: _folded(builder, args[0], builder.fadd)


@intrinsic
def lowest(_typing: Any, value: Any) -> Any:
    """The smallest of a vector's numbers."""
    return value.dtype(value), lambda _c, builder, _s, args: _folded(
        builder, args[0], functools.partial(_smaller, builder)
    )


@intrinsic
def minimum(_typing: Any, value: Any, other: Any) -> Any:
    """The smaller numbers of two vectors, or of a vector and one number."""

    def generate(_context: Any, builder: Any, found: Any, args: Any) -> Any:
        return _smaller(builder, *_as_vectors(builder, found, args))

    return value(value, other if isinstance(other, Vector) else value.dtype), generate


@intrinsic
def absolute(_typing: Any, value: Any) -> Any:
    """Without the signs."""

    def generate(_context: Any, builder: Any, _found: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, [0.0] * value.size)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), builder.fsub(zero, args[0]), args[0])

    return value(value), generate


@intrinsic
def widen(_typing: Any, value: Any) -> Any:
    """In float64."""
    wide = Vector(types.float64, value.size)
    return wide(value), lambda _c, builder, _s, args: args[0] if wide == value else builder.fpext(args[0], wide.llvm)


@intrinsic
def narrow(_typing: Any, value: Any, array: Any) -> Any:
    """A vector of float64 in an array's dtype."""
    wanted = Vector(array.dtype, value.size)
    return wanted(
        value, array
    ), lambda _c, builder, _s, args: args[0] if wanted == value else builder.fptrunc(args[0], wanted.llvm)


@intrinsic
def power_of_two(_typing: Any, shifted: Any) -> Any:
    """2ⁿ, where ``shifted`` is n + 1.5 · 2⁵² in float64: its low bits are n, and move to where an exponent stands."""

    def generate(_context: Any, builder: Any, _found: Any, args: Any) -> Any:
        integers = ir.VectorType(ir.IntType(64), shifted.size)
        bias, place = (ir.Constant(integers, [number] * shifted.size) for number in (1023, 52))
        moved = builder.shl(builder.add(builder.bitcast(args[0], integers), bias), place)
        return builder.bitcast(moved, args[0].type)

    return shifted(shifted), generate
