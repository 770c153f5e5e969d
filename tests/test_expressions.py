"""Expressions: what is recorded is what was computed, and a latent never turns into a number.

Every expression is built by ordinary torch code on random tensors whose placeholders are decoys, and evaluated at values
that the code never saw.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_latent.errors import LatentValueError
from pyro_latent.expressions import Expression, RandomTensor
from pyro_latent.expressions.tensor import OPERATIONS
from pyro_latent.expressions.terms import Factor, contract, read

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda x: x,
    "log": torch.log,
    "log1m": lambda x: torch.log1p(-x),
    "log_det": torch.logdet,
    "inverse": torch.linalg.inv,
}


def evaluate(expression: Expression, values: Mapping[str, Tensor]) -> Tensor:
    """The value of a polynomial or of pieces at given values of the latents, read off its terms."""
    assert expression.opacity is None, f"opaque: {expression.opacity}"
    total = expression.like.new_zeros(expression.shape)
    for term in expression.polynomial().terms:
        operands = [(expression.like.new_tensor(term.coefficient), ())]
        operands += [(c.tensor, c.labels) for c in term.constants]
        operands += [_read(factor, values) for factor in term.factors]
        labels = tuple(sorted({label for _, own in operands for label in own if label < 0}))
        tensor = contract(operands, labels)
        shape = [1] * expression.ndim
        for label, size in zip(labels, tensor.shape, strict=True):
            shape[label] = size
        total = total + tensor.reshape(shape)
    return total


def _read(factor: Factor, values: Mapping[str, Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    value = FUNCTIONS[factor.function](values[factor.variable.site]) ** factor.power
    return read(value, factor.axes)


def real(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


def definite(*shape: int) -> Tensor:
    root = torch.randn(*shape[:-1], shape[-1] + 2, dtype=torch.float64)
    return root @ root.mT


def make_values() -> dict[str, Tensor]:
    """By name, the latents of the cases."""
    return {
        "scalar": real(),
        "vector": real(4),
        "matrix": real(3, 4),
        "cube": real(2, 3, 4),
        "column": real(3, 1),
        "square": real(4, 4),
        "tau": positive(),
        "rates": positive(3, 4),
        "precision": definite(4, 4),
        "precisions": definite(2, 3, 3),
        "share": torch.rand(3, dtype=torch.float64) * 0.8 + 0.1,
    }


def latents(decoys: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: RandomTensor(decoy, Expression.latent(name, decoy)) for name, decoy in decoys.items()}


class Names(dict[str, Any]):
    """Attribute access, so that a case reads ``x.matrix``."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


torch.manual_seed(1)
W, V, U, B = real(4, 5), real(4), real(3, 4), real(2, 3, 1)
ROWS, COLUMNS = torch.tensor([2, 0, 1, 1, -1]), torch.tensor([3, 3, 0, -2, 1])
GRID = torch.tensor([[0, 2], [1, 1]])
MASK, MASK2 = torch.tensor([True, False, True]), U > 0
CHOICE = torch.tensor([[0], [3], [1]])

CASES: dict[str, Callable[[Any], Any]] = {
    # Arithmetic, with numbers and tensors on either side, and broadcasting.
    "add": lambda x: x.matrix + x.vector + 1 + V,
    "add on the left": lambda x: 2.0 + (V + x.column),
    "torch.add": lambda x: torch.add(x.matrix, x.scalar),
    "sub": lambda x: x.matrix - x.vector - 1.0 - V,
    "sub on the left": lambda x: 2 - (V - x.matrix),
    "torch.sub": lambda x: torch.sub(x.matrix, x.vector),
    "torch.subtract": lambda x: torch.subtract(x.matrix, x.vector),
    "rsub": lambda x: torch.rsub(x.matrix, x.vector),
    "mul": lambda x: x.matrix * x.vector * 3 * U,
    "mul on the left": lambda x: 3 * (U * x.matrix),
    "torch.multiply": lambda x: torch.multiply(x.matrix, x.scalar),
    "torch.mul": lambda x: torch.mul(x.matrix, 2.0),
    "square of a sum": lambda x: (x.matrix - x.vector + 0.5) ** 2,
    "cube of a sum": lambda x: (x.scalar + x.tau - 1) ** 3,
    "fourth power of a sum": lambda x: (x.column + x.vector) ** 4,
    "product of sums": lambda x: (x.column + x.vector) * (x.matrix - 2),
    "product with itself": lambda x: x.matrix * x.matrix * x.matrix,
    "div": lambda x: x.matrix / 2 / V / x.rates,
    "div on the left": lambda x: V / x.rates + 1 / x.tau + 3 / (2 * x.rates),
    "torch.div": lambda x: torch.div(x.matrix, x.rates),
    "torch.divide": lambda x: torch.divide(x.matrix, x.tau),
    "torch.true_divide": lambda x: torch.true_divide(x.matrix, x.tau),
    "neg": lambda x: -x.matrix + torch.neg(x.vector),
    "torch.negative": lambda x: torch.negative(x.vector),
    "pow": lambda x: x.rates**2 + x.rates**-1 + x.rates**0.5 + (2 * x.tau) ** -1.5,
    "torch.pow": lambda x: torch.pow(x.rates, 2) + x.rates.pow(-2),
    "pow of a tensor exponent": lambda x: x.rates ** torch.tensor(-2.0, dtype=torch.float64),
    "power zero": lambda x: x.rates**0 * x.vector,
    "square": lambda x: torch.square(x.matrix + 1) + x.vector.square(),
    "sqrt and rsqrt": lambda x: x.tau.sqrt() * x.rates.rsqrt() + torch.rsqrt(0.1 * x.rates),
    "precision from a scale and back": lambda x: ((0.1 * x.tau * x.rates).rsqrt()) ** -2,
    "reciprocal": lambda x: torch.reciprocal(x.rates) * x.vector,
    "log": lambda x: (2 * x.tau * x.rates / V.exp()).log() + torch.log(x.rates**3),
    "log of a complement": lambda x: (1 - x.share).log() + torch.log(1.0 - x.share[0]),
    "log of a constant times a power": lambda x: (3.0 / x.tau**2).log(),
    # Sums.
    "sum": lambda x: x.matrix.sum() + torch.sum(x.cube),
    "sum of a number": lambda x: x.scalar.sum() + x.scalar.mean(),
    "sum over a dimension": lambda x: x.cube.sum(1) + x.matrix.sum(0),
    "sum over dimensions, kept": lambda x: x.cube.sum((0, -1), keepdim=True) * x.cube,
    "sum by axis": lambda x: x.cube.sum(axis=-1),
    "sum along a dimension that does not vary": lambda x: x.column.expand(3, 4).sum(-1),
    "sum of a sum of squares": lambda x: ((x.matrix * x.vector).sum(-1) + 1) ** 2,
    "mean": lambda x: x.matrix.mean() + torch.mean(x.cube, -1).mean(0, keepdim=True).sum(),
    "mean over dimensions": lambda x: x.cube.mean((0, 2)),
    # Matrix products.
    "matmul of vectors": lambda x: x.vector @ V + V @ x.vector,
    "matmul matrix vector": lambda x: U @ x.vector + x.matrix @ V,
    "matmul vector matrix": lambda x: x.vector @ W,
    "matmul of matrices": lambda x: x.matrix @ W,
    "matmul on the left": lambda x: U @ x.square,
    "matmul of latents": lambda x: x.matrix @ x.vector,
    "matmul of a latent with itself": lambda x: x.matrix @ x.matrix.mT,
    "matmul three times": lambda x: U @ x.square @ x.vector,
    "matmul in batches": lambda x: x.cube @ W,
    "matmul of a batch and a vector": lambda x: x.cube @ x.vector,
    "matmul of batches that broadcast": lambda x: B.mT @ x.cube,
    "torch.matmul": lambda x: torch.matmul(x.matrix, V),
    "mm": lambda x: torch.mm(x.matrix, W) + x.matrix.mm(W),
    "mv": lambda x: torch.mv(x.matrix, V),
    "bmm": lambda x: torch.bmm(x.cube, x.cube.mT),
    "dot": lambda x: torch.dot(x.vector, V) + x.vector.dot(x.vector),
    "linear": lambda x: torch.nn.functional.linear(U, x.square, x.vector),
    "linear without bias": lambda x: torch.nn.functional.linear(x.matrix, W.mT),
    "einsum of a quadratic form": lambda x: torch.einsum("i,ij,j->", x.vector, x.square, x.vector),
    "einsum in batches": lambda x: torch.einsum("bij,jk->bik", x.cube, W),
    "einsum with implicit output": lambda x: torch.einsum("ij,j", x.matrix, x.vector),
    "einsum of a diagonal": lambda x: torch.einsum("ii->i", x.square),
    "einsum of a trace": lambda x: torch.einsum("ii", x.square),
    "einsum that permutes": lambda x: torch.einsum("abc->cab", x.cube),
    "einsum of an outer product": lambda x: torch.einsum("i,j->ij", x.vector, x.vector),
    "einsum of a list": lambda x: torch.einsum("ij,j->i", [x.matrix, V]),
    # Shapes.
    "reshape merging": lambda x: x.cube.reshape(6, 4) * x.vector,
    "reshape merging all": lambda x: x.cube.reshape(-1),
    "reshape splitting": lambda x: x.vector.reshape(2, 2) + x.vector.view(2, 1, 2),
    "reshape across": lambda x: x.matrix.reshape(4, 3) @ x.matrix,
    "reshape across a broadcast": lambda x: x.column.expand(3, 4).reshape(2, 6),
    "reshape with sizes of one": lambda x: x.column.reshape(1, 3) + x.column.reshape(3),
    "reshape of a product": lambda x: (x.column * x.vector).reshape(12),
    "reshape by keyword": lambda x: x.matrix.reshape(shape=(2, 6)),
    "view_as": lambda x: x.matrix.view_as(torch.zeros(2, 6)) + x.matrix.reshape_as(torch.zeros(2, 6)),
    "flatten": lambda x: x.cube.flatten(1) @ torch.ones(12, dtype=torch.float64),
    "flatten in the middle": lambda x: x.cube.flatten(0, 1),
    "flatten of negative dimensions": lambda x: x.cube.flatten(-3, -2) + x.cube.flatten(-2).sum(),
    "flatten of a number": lambda x: x.scalar.flatten(),
    "unsqueeze": lambda x: x.vector.unsqueeze(-1) * x.vector.unsqueeze(0),
    "squeeze": lambda x: x.column.squeeze() + x.column.squeeze(-1) + torch.squeeze(x.column, 1),
    "squeeze of what has another size": lambda x: x.column.squeeze(0),
    "permute": lambda x: x.cube.permute(2, 0, 1) + torch.permute(x.cube, (2, 0, 1)) + x.cube.permute((-1, 0, -2)),
    "permute by keyword": lambda x: x.cube.permute(dims=(1, 2, 0)),
    "transpose": lambda x: x.cube.transpose(0, -1) + x.cube.swapaxes(-1, 0) + torch.swapdims(x.cube, 0, 2),
    "mT": lambda x: x.cube.mT + x.cube.adjoint(),
    "T": lambda x: x.matrix.T + x.matrix.t() + torch.t(x.matrix),
    "expand": lambda x: x.column.expand(2, 3, 4) + x.vector.expand(3, -1) + x.scalar.expand([2, 3, 4]),
    "expand_as": lambda x: x.vector.expand_as(U) * U,
    "broadcast_to": lambda x: torch.broadcast_to(x.vector, (3, 4)),
    "broadcast_tensors": lambda x: torch.stack(torch.broadcast_tensors(x.vector, x.column, V)),
    # Indexing.
    "integer": lambda x: x.matrix[1] + x.cube[-1, 0],
    "slice": lambda x: x.matrix[1:, ::2] + x.cube[0, :2, 1:3],
    "slice with negative ends": lambda x: x.cube[:, -2:, :-1],
    "none and ellipsis": lambda x: x.cube[..., None, 0] + x.cube[None, ..., 1:2, 3].sum(),
    "empty index": lambda x: x.matrix[()] + x.matrix[...],
    "index tensor": lambda x: x.matrix[ROWS] + x.vector,
    "index tensor in a later dimension": lambda x: x.cube[:, :, COLUMNS],
    "index tensor of two dimensions": lambda x: x.matrix[GRID],
    "index tensors, adjacent": lambda x: x.matrix[ROWS, COLUMNS] + x.cube[0, ROWS, COLUMNS],
    "index tensors, adjacent after a slice": lambda x: x.cube[:, ROWS, COLUMNS],
    "index tensors, separated": lambda x: x.cube[torch.tensor([0, 1, 1]), :, torch.tensor([3, 0, 2])],
    "index tensors that broadcast": lambda x: x.matrix[GRID[:, :1], torch.tensor([3, 0, 1])],
    "integer separated from an index tensor": lambda x: x.cube[1, :, COLUMNS],
    "index tensors around a none": lambda x: x.matrix[ROWS, None, COLUMNS],
    "index list": lambda x: x.matrix[[2, 0]],
    "index of size one": lambda x: x.matrix[torch.tensor([2])] + x.matrix[torch.tensor(1)],
    "index of a broadcast": lambda x: x.column.expand(3, 4)[ROWS, COLUMNS],
    "index of an index": lambda x: x.matrix[ROWS][torch.tensor([4, 0, 0])],
    "index of a product": lambda x: (x.column * x.vector)[ROWS] ** 2,
    "index of a contraction": lambda x: (x.matrix @ W)[ROWS, COLUMNS],
    "enumerated index": lambda x: x.matrix[torch.arange(3).reshape(3, 1, 1), torch.tensor([1, 2])],
    "empty slice": lambda x: x.matrix[3:],
    "mask": lambda x: x.matrix[MASK],
    "mask of two dimensions": lambda x: x.matrix[MASK2],
    "mask in a later dimension": lambda x: x.cube[:, MASK],
    "select and narrow": lambda x: x.cube.select(1, 2) + x.cube.narrow(1, 0, 1).squeeze(1) + x.cube.select(-2, 0),
    "index_select": lambda x: torch.index_select(x.matrix, 1, COLUMNS % 4) + x.matrix.index_select(-1, COLUMNS % 4),
    "gather": lambda x: x.matrix.gather(-1, CHOICE) + torch.gather(x.matrix, 1, CHOICE),
    "take_along_dim": lambda x: torch.take_along_dim(x.matrix, CHOICE, -1),
    "unbind": lambda x: torch.stack(x.matrix.unbind(1)[::-1]) + torch.stack(list(x.matrix.T)),
    "iteration": lambda x: sum(row * (i + 1) for i, row in enumerate(x.matrix)),
    "unpacking": lambda x: (lambda a, b, c: a * b - c)(*x.matrix),
    "split": lambda x: x.vector.split(3)[0].sum() * torch.split(x.cube, [1, 3], dim=-1)[1],
    "chunk": lambda x: x.matrix.chunk(2, -1)[1] - torch.chunk(x.matrix, 2, dim=1)[0],
    # Assembly.
    "stack": lambda x: torch.stack([x.vector, V, x.matrix[0]]),
    "stack in the last dimension": lambda x: torch.stack((x.vector, x.vector * 2, 1 - x.vector), -1),
    "stack of numbers": lambda x: torch.stack([x.scalar, x.tau, x.scalar * x.tau]),
    "cat": lambda x: torch.cat([x.matrix, U, x.vector.unsqueeze(0)]),
    "cat in the last dimension": lambda x: torch.cat([x.matrix, x.column, U], dim=-1),
    "cat of three sizes": lambda x: torch.concat([x.vector[:1], x.vector, torch.ones(2, dtype=torch.float64)])[2:6],
    "concatenate": lambda x: torch.concatenate([x.matrix, x.matrix], 1),
    "cat, then powers": lambda x: torch.cat([x.tau.reshape(1), x.rates[0] * 2]) ** -0.5,
    "cat, then views": lambda x: torch.cat([x.matrix, U], 1).reshape(4, 6).T[ROWS],
    "cat, then a product": lambda x: torch.cat([x.vector, x.tau.reshape(1)]) @ torch.ones(5, dtype=torch.float64),
    "where": lambda x: torch.where(MASK2, x.matrix, x.vector),
    "where with a number": lambda x: torch.where(MASK2, x.matrix, 0.0) + torch.where(MASK2, 1.0, x.matrix),
    "where with a tensor": lambda x: torch.where(MASK2, U, x.matrix) * 2,
    "method where": lambda x: x.matrix.where(MASK2, x.vector),
    "where inside where": lambda x: torch.where(MASK2, torch.where(U > 1, x.matrix, x.vector), x.column),
    "where, then powers": lambda x: torch.where(MASK2, x.rates, 3 * x.tau).rsqrt() ** -2,
    "where, then a logarithm": lambda x: torch.where(MASK2, x.rates, 3 * x.tau).log(),
    "where, then a square of a difference": lambda x: (V - torch.where(MASK2, x.matrix, x.vector)) ** 2,
    "where, then views": lambda x: torch.where(MASK2, x.matrix, x.vector).T.unsqueeze(1)[COLUMNS % 4].reshape(-1),
    "where of smaller branches, then views": lambda x: torch.where(MASK2, x.scalar, x.vector).permute(1, 0)[1],
    "product of two wheres": lambda x: torch.where(MASK2, x.matrix, 1.0) * torch.where(U > 0.5, x.column, x.vector),
    "where over enumerated values": lambda x: torch.where(torch.arange(2).reshape(2, 1, 1) > 0, x.matrix, x.vector),
    # Matrices.
    "diag_embed": lambda x: torch.diag_embed(x.matrix) @ W,
    "diag_embed of a sum": lambda x: (x.vector + V).diag_embed() + x.square,
    "diag": lambda x: torch.diag(x.vector),
    "logdet": lambda x: torch.logdet(x.precision) + x.precisions.logdet().sum(),
    "logdet of a scaled matrix": lambda x: torch.logdet(2.0 * x.tau * x.precision),
    "logdet of scaled matrices": lambda x: torch.logdet(x.share[:2, None, None] * x.precisions),
    "logdet of a diagonal": lambda x: torch.logdet(torch.diag_embed(x.rates)),
    "logdet of a constant, scaled": lambda x: torch.logdet(x.tau * definite_constant()),
    "inverse": lambda x: x.precision.inverse() @ x.vector + torch.linalg.inv(x.precision) @ V,
    "inverse of a scaled matrix": lambda x: torch.inverse(3 * x.tau * x.precisions),
    "inverse of a diagonal": lambda x: torch.diag_embed(x.rates).inverse(),
    "inverse twice": lambda x: torch.inverse(torch.inverse(x.precision)),
    "inverse of a constant, scaled": lambda x: (x.tau * definite_constant()).inverse(),
    "logdet of an inverse": lambda x: torch.logdet(torch.inverse(2 * x.precision)),
    "inverse of a chosen matrix": lambda x: torch.inverse(x.precisions[torch.tensor([1, 0, 1])]),
    "logdet of chosen matrices": lambda x: torch.logdet(x.precisions[GRID % 2]),
    # What keeps the value.
    "clone and friends": lambda x: x.vector.clone().contiguous().detach().data.cpu().double().to(torch.float64).type_as(V),
    "float": lambda x: x.vector.float(),
    "requires_grad": lambda x: x.vector.detach() * 1.0,
}


def definite_constant() -> Tensor:
    return torch.eye(4, dtype=torch.float64) * 2 + 0.3


@pytest.fixture
def truth() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return make_values()


@pytest.fixture
def symbols() -> Names:
    torch.manual_seed(8)
    return Names(latents(make_values()))


@pytest.mark.parametrize("name", CASES)
def test_an_expression_is_what_the_code_computes(name: str, truth: dict[str, Tensor], symbols: Names) -> None:
    expected = CASES[name](Names(truth))
    found = CASES[name](symbols)
    assert isinstance(found, RandomTensor)
    assert found.shape == found.expression.shape == expected.shape
    torch.testing.assert_close(
        evaluate(found.expression, truth), expected.double(), rtol=1e-10 if name != "float" else 1e-6, atol=1e-10
    )


class Calls(TorchFunctionMode):
    """The names of the torch functions that are called on random tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        self.names.add(getattr(func.__self__, "__name__", name) if name == "__get__" else name)
        return func(*args, **(kwargs or {}))
