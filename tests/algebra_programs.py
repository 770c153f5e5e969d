"""Random programs of torch operations on latents, points and constants, as code that runs on symbols and on values.

A program is a few leaves and a few lines. A line that torch refuses, or whose result is infinite or large, is drawn
again, so every line of a program is an operation that torch computes.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_latent.expressions import Expression, RandomTensor

#: Results with more elements, or larger ones, are drawn again.
MOST_ELEMENTS, LARGEST = 300, 1e4
#: What is known of a latent by its support, as ``Expression.latent`` takes it.
FACTS: dict[str, dict[str, bool]] = {
    "real": {},
    "positive": {"nonnegative": True},
    "unit": {"nonnegative": True},
    "simplex": {"simplex": True},
    "definite": {"is_matrix": True},
    "cholesky": {"lower_cholesky": True},
}
#: Supports that are drawn more often stand more often.
SUPPORTS = ("real", "real", "positive", "positive", "unit", "simplex", "definite", "definite", "cholesky")
CONSTANTS = ("float32", "float64", "float64", "int", "bool", "nan", "identity")


@dataclass
class Leaf:
    """A latent, a point or a constant: its values in float64 (integers and masks as they are), and its dtype."""

    name: str
    kind: str
    dtype: torch.dtype
    value: Tensor
    decoy: Tensor | None = None
    is_point: bool = False

    def symbol(self) -> Any:
        """What the model's code sees: a random tensor around a decoy, or the constant itself."""
        if self.decoy is None:
            return self.value.to(self.dtype)
        decoy = self.decoy.to(self.dtype)
        expression = Expression.latent(self.name, decoy, is_point=self.is_point, **FACTS[self.kind])
        return RandomTensor(
            decoy, expression, (lambda values, _: values[self.name].to(self.dtype)) if self.is_point else None
        )

    def __str__(self) -> str:
        what = "point" if self.is_point else "constant" if self.decoy is None else "latent"
        return f"{self.name} = torch.tensor({self.value.tolist()}, dtype={self.dtype})  # {what}, {self.kind}"


@dataclass
class Program:
    """Leaves, and lines of code that name their results ``v0``, ``v1``, …; ``values`` are torch's own."""

    leaves: list[Leaf]
    lines: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.leaves), *(f"{name} = {code}" for name, code in self.lines)])

    @property
    def latent_values(self) -> dict[str, Tensor]:
        return {leaf.name: leaf.value for leaf in self.leaves if leaf.decoy is not None}

    @property
    def is_double(self) -> bool:
        return all(leaf.dtype != torch.float32 for leaf in self.leaves)

    def symbols(self) -> dict[str, Any]:
        return {leaf.name: leaf.symbol() for leaf in self.leaves}


def run(code: str, names: Mapping[str, Any]) -> Any:
    """The value of one line."""
    return eval(code, {"torch": torch, "np": np, "F": torch.nn.functional}, dict(names))


class Writer:
    """Draws a program from a seed."""

    def __init__(self, seed: int, lines: int = 4) -> None:
        self.choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.size, self.batch = self.choose.choice((1, 2, 3, 3)), self.choose.choice((1, 2, 3))
        self.program = Program([])
        points = self.choose.random() < 0.25
        for i in range(self.choose.randint(2, 4)):
            self._latent(f"z{i}", self.choose.choice(SUPPORTS), points and self.choose.random() < 0.7)
        for i in range(self.choose.randint(1, 3)):
            self._constant(f"c{i}", self.choose.choice(CONSTANTS))
        self.masks = [leaf.name for leaf in self.program.leaves if leaf.value.dtype == torch.bool]
        self.random = [leaf.name for leaf in self.program.leaves if leaf.decoy is not None]
        self.values = {leaf.name: leaf.value for leaf in self.program.leaves}
        self.own = {leaf.name: leaf.value.to(leaf.dtype) for leaf in self.program.leaves}
        for _ in range(lines):
            self._line()

    # Leaves.

    def _shape(self) -> tuple[int, ...]:
        full = (self.batch, self.size, self.size)
        kept = full[len(full) - self.choose.choice((0, 1, 1, 2, 2, 3)) :]
        return tuple(1 if self.choose.random() < 0.2 else n for n in kept)

    def _draw(self, kind: str, shape: tuple[int, ...]) -> Tensor:
        normal = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if kind == "positive":
            return normal.abs() + 0.3
        if kind == "unit":
            return normal.sigmoid()
        if kind == "simplex":
            return normal.softmax(-1)
        if kind == "definite":
            return normal @ normal.mT + torch.eye(shape[-1], dtype=torch.float64)
        if kind == "cholesky":
            return normal.tril(-1) + torch.diag_embed(normal.diagonal(dim1=-2, dim2=-1).abs() + 0.3)
        return normal

    def _latent(self, name: str, kind: str, is_point: bool) -> None:
        shape = self._shape()
        if kind == "simplex":
            shape = (*shape[:-1], self.choose.choice((1, self.size, self.size)))
        if kind in ("definite", "cholesky"):
            shape = (*self._shape()[:1], self.size, self.size) if self.choose.random() < 0.5 else (self.size, self.size)
        dtype = torch.float32 if self.choose.random() < 0.2 else torch.float64
        value, decoy = (self._draw(kind, shape).to(dtype).double() for _ in range(2))
        self.program.leaves.append(Leaf(name, kind, dtype, value, decoy, is_point))

    def _constant(self, name: str, kind: str) -> None:
        shape = self._shape()
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        dtype = torch.float64
        if kind == "float32":
            value, dtype = value.float().double(), torch.float32
        elif kind == "int":
            value, dtype = (value * 2).round().long(), torch.int64
        elif kind == "bool":
            value, dtype = value > 0, torch.bool
        elif kind == "nan":
            value = value.where(torch.rand(shape, generator=self.generator) < 0.6, torch.nan)
        elif kind == "identity":
            value = torch.eye(self.size, dtype=torch.float64)
        self.program.leaves.append(Leaf(name, kind, dtype, value))

    # Lines.

    def _line(self) -> None:
        for _ in range(30):
            code = self.choose.choice(OPERATIONS)(self)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value, own = run(code, self.values), run(code, self.own)
            except Exception:  # torch refuses: the shapes, the dtypes or the values do not fit
                continue
            if self._is_usable(value):
                name = f"v{len(self.program.lines)}"
                self.program.lines.append((name, code))
                self.program.values[name] = self.values[name] = value
                self.own[name] = own
                self.random.append(name)
                return

    def _is_usable(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or value.numel() > MOST_ELEMENTS or value.ndim > 5:
            return False
        return value.is_floating_point() and not bool((value.abs() > LARGEST).any())

    # Parts of lines.

    def latent(self) -> str:
        """A name whose value is random; late ones are likelier."""
        return self.choose.choice(self.random[-3:] if self.choose.random() < 0.6 else self.random)

    def operand(self) -> str:
        roll = self.choose.random()
        if roll < 0.2:
            return self.number()
        return self.constant() if roll < 0.5 else self.latent()

    def constant(self) -> str:
        return self.choose.choice([leaf.name for leaf in self.program.leaves if leaf.decoy is None])

    def number(self) -> str:
        return self.choose.choice(("2", "0.5", "-1.0", "1", "3.0", "-0.7", "True", "0", "np.float64(0.5)"))

    def mask(self) -> str:
        if self.masks and self.choose.random() < 0.5:
            return self.choose.choice(self.masks)
        return f"({self.constant()} > 0)"

    def value(self, name: str) -> Tensor:
        return self.values[name]

    def dim(self, name: str, extra: int = 0) -> int:
        n = self.value(name).ndim + extra
        return self.choose.randrange(-n, n) if n else 0

    def places(self, n: int, shape: tuple[int, ...], lowest: int = 0) -> str:
        flat = [self.choose.randrange(lowest, n) if n else 0 for _ in range(math.prod(shape))]
        return f"torch.tensor({np.array(flat, dtype=int).reshape(shape).tolist()}, dtype=torch.long)"

    def index(self, name: str) -> str:
        """An index into a value: integers, slices, None, Ellipsis, lists, arrays, masks and tensors."""
        items: list[str] = []
        for n in self.value(name).shape:
            if self.choose.random() < 0.15:
                items.append(self.choose.choice(("None", "True", "torch.tensor(True)")))
            if self.choose.random() < 0.1:
                items.append("...")
                break
            items.append(self._item(n))
            if self.choose.random() < 0.3:
                break
        items = items or ["..."]
        return items[0] if len(items) == 1 and self.choose.random() < 0.7 else f"({', '.join(items)},)"

    def _item(self, n: int) -> str:
        i = self.choose.randrange(-n, n) if n else 0
        k = self.choose.randint(1, 3)
        ints = [self.choose.randrange(-n, n) for _ in range(k)] if n else []
        bits = [self.choose.random() < 0.6 for _ in range(n)]
        two = self.places(n, (2, k), -n)
        return self.choose.choice(
            (
                *(
                    str(i),
                    f"np.int64({i})",
                    f"torch.tensor({i})",
                    f"{ints}",
                    f"np.array({ints})",
                    f"torch.tensor({ints})",
                ),
                ":",
                ":",
                "1:",
                ":1",
                ":-1",
                "::2",
                f"{i}:",
                "np.int64(0):2",
                f"range({min(n, 2)})",
                f"torch.tensor({bits})",
                f"np.array({bits})",
                f"{bits}",
                two,
            )
        )


# The kinds of lines: functions of the writer that return code.


def _binary(w: Writer) -> str:
    operator = w.choose.choice(("+", "-", "*", "*", "/"))
    pair = [w.latent(), w.operand()]
    w.choose.shuffle(pair)
    return f"{pair[0]} {operator} {pair[1]}"


def _function_of_two(w: Writer) -> str:
    function = w.choose.choice(("torch.add", "torch.sub", "torch.mul", "torch.div", "torch.rsub", "torch.pow"))
    return f"{function}({w.latent()}, {w.operand()})"


def _power(w: Writer) -> str:
    x = w.latent()
    exponent = w.choose.choice(("2", "3", "-1", "0.5", "-2", "0", "1", "-0.5", "1.5", "4", "torch.tensor(2.0)", "2.0"))
    return w.choose.choice(
        (
            f"{x} ** {exponent}",
            f"{x}.pow({exponent})",
            f"{x}.square()",
            f"{x}.sqrt()",
            f"{x}.rsqrt()",
            f"{x}.reciprocal()",
            f"1 / {x}",
            f"({x} + {x}) ** {exponent}",
            f"({x} ** 2) ** 0.5",
        )
    )


def _logarithm(w: Writer) -> str:
    x = w.latent()
    return w.choose.choice(
        (f"{x}.log()", f"(1 - {x}).log()", f"torch.log({x})", f"(2 * {x} ** 2).log()", f"1 / {x}.log()")
    )


def _sign(w: Writer) -> str:
    return w.choose.choice(("-", "+")) + w.latent()


def _reduction(w: Writer) -> str:
    x = w.latent()
    name = w.choose.choice(("sum", "sum", "mean"))
    inside = w.choose.choice(
        ("", f"{w.dim(x)}", f"{w.dim(x)}, keepdim=True", f"({w.dim(x)}, {w.dim(x)})", f"dim={w.dim(x)}", "dim=()")
    )
    return f"{x}.{name}({inside})"


def _view(w: Writer) -> str:
    x, y = w.latent(), w.latent()
    shape, n = list(w.value(x).shape), w.value(x).numel()
    order = list(range(len(shape)))
    w.choose.shuffle(order)
    a, b = w.dim(x), w.dim(x)
    divisor = w.choose.choice([d for d in range(1, n + 1) if n % d == 0] or [1])
    larger = [w.choose.choice((2, 3)) if k == 1 and w.choose.random() < 0.5 else k for k in shape]
    lead = w.choose.choice(([], [2], [1]))
    return w.choose.choice(
        (
            f"{x}.unsqueeze({w.dim(x, 1)})",
            f"{x}.squeeze()",
            f"{x}.squeeze({a})",
            f"{x}.transpose({a}, {b})",
            f"{x}.permute({order})",
            f"{x}.reshape(-1)",
            f"{x}.reshape({divisor}, {n // divisor})",
            f"{x}.mT",
            *(
                f"{x}.flatten({min(a, b)}, {max(a, b)})",
                f"{x}.expand({lead + larger})",
                f"{x}.T",
                f"{x}.expand_as({y})",
            ),
            f"{x}.reshape_as({y})",
            f"{x}.view_as({w.constant()})",
            f"{x}.type_as({y})",
            f"{x}.to({y})",
            *(
                f"{w.constant()}.expand_as({x}) * {x}",
                f"{w.constant()}.type_as({x}) + {y}",
                f"{w.constant()}.to({x}) * {y}",
            ),
            f"torch.broadcast_tensors({x}, {w.operand()})[0]",
            f"torch.broadcast_to({x}, {tuple(lead + larger)})",
            *(
                f"{x}.clone().contiguous()",
                f"torch.zeros_like({x}) + {y}",
                f"{x}.unbind({a})[-1]",
                f"{x}.narrow({a}, 0, 1)",
            ),
            f"{x}.split(2, {a})[0]",
            f"{x}.chunk(2, {a})[-1]",
            f"{x}.select({a}, 0)",
        )
    )


def _indexing(w: Writer) -> str:
    x = w.latent()
    return f"{x}[{w.index(x)}]"


def _gathering(w: Writer) -> str:
    x = w.latent()
    d = w.dim(x)
    shape = list(w.value(x).shape) or [1]
    n = shape[d] if w.value(x).ndim else 1
    index = [
        w.choose.randint(1, 3) if i == d % len(shape) else w.choose.randint(1, k or 1) for i, k in enumerate(shape)
    ]
    return w.choose.choice(
        (
            f"{x}.gather({d}, {w.places(n, tuple(index))})",
            f"torch.take_along_dim({x}, {w.places(n, tuple(index))}, {d})",
            f"{x}.index_select({d}, {w.places(n, (w.choose.randint(1, 3),))})",
        )
    )


def _choice(w: Writer) -> str:
    x, y, c = w.latent(), w.operand(), w.constant()
    return w.choose.choice(
        (
            *(
                f"torch.where({w.mask()}, {x}, {y})",
                f"torch.where({w.mask()}, {y}, {x})",
                f"{x}.where({w.mask()}, {y})",
            ),
            f"torch.where({c}.isnan(), {x}, {c})",
            f"torch.where({c}.isnan(), {x}, {c} * {w.latent()})",
            f"torch.where({w.mask()}, {w.mask()}, {x})",
            f"torch.where({w.mask()}, 1, {x}) + 0.5",
        )
    )


def _assembly(w: Writer) -> str:
    x = w.latent()
    others = [w.choose.choice((w.latent(), w.constant(), x, x, f"1 - {x}", f"{x}[:0]", f"{x}[..., :1]")) for _ in "ab"]
    parts = [x, *others[: w.choose.randint(1, 2)]]
    w.choose.shuffle(parts)
    name = w.choose.choice(("stack", "cat", "cat"))
    return f"torch.{name}([{', '.join(parts)}], {w.dim(x, int(name == 'stack'))})"


def _product(w: Writer) -> str:
    x, y = w.latent(), w.choose.choice((w.latent(), w.constant()))
    pair = [x, y]
    w.choose.shuffle(pair)
    return w.choose.choice(
        (f"{pair[0]} @ {pair[1]}", f"torch.matmul({pair[0]}, {pair[1]})", f"F.linear({pair[0]}, {pair[1]})")
    )


def _einsum(w: Writer) -> str:
    names = [w.latent(), w.choose.choice((w.latent(), w.constant()))][: w.choose.randint(1, 2)]
    letters = "ijk"
    groups = ["".join(w.choose.choice(letters) for _ in w.value(name).shape) for name in names]
    used = sorted(set("".join(groups)))
    w.choose.shuffle(used)
    out = "".join(used[: w.choose.randint(0, len(used))])
    arrow = f"->{out}" if w.choose.random() < 0.8 else ""
    return f"torch.einsum('{','.join(groups)}{arrow}', {', '.join(names)})"


def _matrix(w: Writer) -> str:
    x = w.latent()
    matrices = [n for n in w.random if w.value(n).ndim >= 2 and w.value(n).shape[-1] == w.value(n).shape[-2]]
    m = w.choose.choice(matrices or [x])
    scalar = w.choose.choice([n for n in w.random if w.value(n).numel() == 1] or [w.number()])
    dim = w.value(m).shape[-1] if w.value(m).ndim else 1
    return w.choose.choice(
        (
            *(
                f"{x}.diag_embed()",
                f"torch.diag_embed({x})",
                f"torch.diag({x})",
                f"{m}.inverse()",
                f"torch.linalg.inv({m})",
            ),
            *(
                f"torch.logdet({m})",
                f"{m}.logdet()",
                f"{scalar} * {m}",
                f"-2 * {m}",
                f"{m}[..., :1, :1]",
                f"{m}[..., :2, :2]",
            ),
            *(
                f"torch.logdet(0.5 * {m}[..., :2, :2])",
                f"torch.inverse({m}[..., :2, :2])",
                f"torch.logdet(torch.diag_embed({x}))",
            ),
            f"{x}.sum() * torch.eye({dim})",
            f"{x} * torch.eye({dim})",
            f"torch.inverse({scalar} * {m}.mT)",
            *(
                f"torch.inverse(torch.diag_embed(torch.where({w.mask()}, {x}, 1.0)))",
                f"torch.logdet({x} * torch.eye({dim}))",
            ),
            *(
                f"torch.logdet(torch.where({w.mask()}, {m}, {m} * 2))",
                f"torch.logdet(torch.stack([{m}, {w.choose.choice(matrices or [x])}]))",
            ),
            *(
                f"torch.inverse(torch.where({w.mask()}[..., None, None], {m}, 3.0 * {m}))",
                f"torch.logdet({m}[..., [1, 0], :])",
            ),
        )
    )


def _unknown(w: Writer) -> str:
    """An operation without a rule: points are computed again, and latents become opaque."""
    return f"{w.latent()}.{w.choose.choice(('exp()', 'abs()', 'tanh()', 'cumsum(-1)', 'sigmoid()', 'clamp(min=0.1)'))}"


def _numpy(w: Writer) -> str:
    x = w.latent()
    array = f"np.full({tuple(w.value(x).shape[-1:])}, 0.5)"
    return w.choose.choice((f"{x} * {array}", f"{x} + {array}", f"{x} - {array}", f"{x} / {array}"))


OPERATIONS: tuple[Callable[[Writer], str], ...] = (
    *(_binary,) * 5,
    *(_power,) * 2,
    *(_logarithm, _sign, _function_of_two),
    *(_reduction,) * 2,
    *(_view,) * 4,
    *(_indexing,) * 3,
    *(_gathering, _choice, _choice, _assembly, _assembly),
    *(_product, _product, _einsum),
    *(_matrix,) * 4,
    *(_unknown, _numpy),
)


def write(seed: int) -> Program:
    """The program of a seed."""
    return Writer(seed).program
