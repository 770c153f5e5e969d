"""Expressions: what is recorded is what was computed, and a latent never turns into a number.

Every expression is built by ordinary torch code on random tensors whose placeholders are decoys, and evaluated at
values that the code never saw.
"""

from __future__ import annotations

import copy
import itertools
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
from pyro_latent.expressions.linear import COMPOSED, LINEAR, PLACING
from pyro_latent.expressions.operations import OPERATIONS


def evaluate(expression: Expression, values: Mapping[str, Tensor]) -> Tensor:
    """The value at given values of the latents, of an expression that is not opaque."""
    assert expression.opacity is None, f"opaque: {expression.opacity}"
    return expression.evaluate(values)


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


def write_elements(x: Any) -> Any:
    y = x.matrix * 1.0
    y[0] = x.vector
    y[1:, ::2] = 3.0
    y[torch.tensor([2, 1]), torch.tensor([1, 3])] = x.tau
    y[:, 3][0] = 0
    return y


def write_through_views(x: Any) -> Any:
    y = x.square + 0.0
    y.view(-1)[::5] += 2.0
    row = y[1]
    y.T[0] = x.vector
    row *= 2
    return y + row.unsqueeze(0)


def write_after_reading(x: Any) -> Any:
    y = x.vector * 1.0
    before, view = y * 2, y[1:]
    y += before
    y.mul_(x.tau).sub_(1.0)
    return torch.cat([view, before, y.detach()])


def write_with_operations(x: Any) -> Any:
    y = x.matrix.clone()
    y.masked_fill_(MASK2, 2.0).index_add_(0, torch.tensor([0, 2]), x.matrix[:2]).addcmul_(x.vector, x.column)
    z = torch.stack([x.vector, x.vector])
    z[0].zero_()
    z[1].copy_(V)
    z[1, :2].fill_(x.tau)
    return y.sum() * z


#: The latents whose supports say that they are not negative, and that they are positive definite.
NONNEGATIVE, MATRICES = {"tau", "rates", "share"}, {"precision", "precisions"}


def latents(decoys: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: RandomTensor(
            decoy, Expression.latent(name, decoy, nonnegative=name in NONNEGATIVE, is_matrix=name in MATRICES)
        )
        for name, decoy in decoys.items()
    }


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
COUNTS = torch.tensor([0, 1, 2, 5])
KNOWN = torch.where(MASK2, U, torch.nan)

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
    "einsum with an ellipsis": lambda x: (
        torch.einsum("...ij,jk->...k", x.cube, W) + torch.einsum("...j,j", x.vector, V)
    ),
    "einsum of two ellipses": lambda x: torch.einsum("...j, i...j -> ...i", x.matrix, x.cube),
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
    "integer separated from an index tensor of the same size": lambda x: x.cube[1, :, torch.tensor([3, 0, 1])],
    "integer between slices": lambda x: x.cube[:, 1, :] + x.cube[0, :, 2].sum(),
    "index tensor, slice, integer": lambda x: x.cube[torch.tensor([1, 0, 1]), :, 2],
    "number of a product with a tensor": lambda x: (x.vector * V)[0] + (x.matrix @ V)[1],
    "sizes from another tensor": lambda x: x.vector.expand(U.shape) + x.cube[0].reshape(torch.Size((3, 4))) * U.size(0),
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
    "take": lambda x: torch.take(x.matrix, torch.tensor([[7, 0], [-1, 3]])),
    "movedim": lambda x: (
        x.cube.movedim(0, -1) + torch.moveaxis(x.cube, (0, 1), (2, 0)).transpose(0, 1).transpose(0, 1).reshape(3, 4, 2)
    ),
    "embedding": lambda x: torch.nn.functional.embedding(COLUMNS % 3, x.matrix),
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
    "masks, then powers": lambda x: (MASK2.double() * x.rates + 3 * x.tau * (1 - MASK2.double())).rsqrt() ** -2,
    "masks, then a logarithm": lambda x: (MASK2.double() * x.rates + 3 * x.tau * (~MASK2).double()).log(),
    "a mask that is nowhere, then a logarithm": lambda x: (0.0 * x.rates + 3 * x.tau).log(),
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
    "logdet of a matrix times a number": lambda x: (
        torch.logdet(0.3 * x.precision) + torch.logdet(x.precisions * 2).sum()
    ),
    "logdet of matrices times numbers": lambda x: torch.logdet(V[:2].exp()[:, None, None] * x.precisions),
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
    "logdet of a diagonal of one": lambda x: torch.logdet(torch.diag_embed(x.tau.reshape(1))),
    "diag_embed of one": lambda x: torch.diag_embed(x.column) * x.tau,
    "logdet of a diagonal of choices": lambda x: torch.logdet(torch.diag_embed(torch.where(MASK2, x.rates, 2.0))),
    "logdet of a diagonal of a stack": lambda x: torch.logdet(torch.diag(torch.stack([x.tau, 2 * x.tau]))),
    "logdet of chosen scaled matrices": lambda x: torch.logdet(
        torch.where(MASK[:2, None, None], x.precisions, 3 * x.precisions)
    ),
    "inverse of chosen scaled matrices": lambda x: torch.inverse(
        torch.where(MASK[:2, None, None], x.precisions, 3 * x.precisions)
    ),
    "logdet of rates times an identity": lambda x: torch.logdet(x.rates[0] * torch.eye(4, dtype=torch.float64)),
    "inverse of a transpose": lambda x: torch.inverse(x.square.T) + torch.inverse(2 * x.precision.mT),
    # Dtypes, and what stands on the left.
    "integers on the left": lambda x: COUNTS + x.matrix + 0.5,
    "integers on the left of a product": lambda x: COUNTS * x.matrix * 0.5,
    "integers on the left, then a root": lambda x: ((COUNTS + 1) * x.rates).rsqrt(),
    "an integer or a latent": lambda x: torch.where(MASK2, 1, x.matrix) + 0.5,
    "masks or a latent": lambda x: torch.where(MASK2, U > 0.5, x.matrix) - 0.5,
    "masks on the left": lambda x: MASK2 * x.matrix + MASK2,
    "masks that add up": lambda x: MASK2 + x.matrix + MASK2 + (x.matrix * 0 + MASK2),
    "chosen masks that add up": lambda x: torch.where(MASK2, U > 0.5, x.matrix)[0] + (V > 0),
    "as another that is a latent": lambda x: (
        V.expand_as(x.matrix) * x.matrix + torch.zeros(12, dtype=torch.float64).view_as(x.matrix)
    ),
    "of the type of a latent": lambda x: COUNTS.type_as(x.matrix) + x.matrix * COUNTS.to(x.matrix),
    # Signs, and powers that cancel.
    "square of a doubled latent": lambda x: (x.matrix + x.matrix) ** 2,
    "root of a fourth power": lambda x: (x.matrix**4).sqrt(),
    "cube root of a cube": lambda x: (x.rates**3) ** (1 / 3),
    "mean of a power of zero": lambda x: (x.matrix**0).mean() * x.tau + (x.matrix**0).sum(),
    "reciprocal of a logarithm": lambda x: 1 / x.share.log(),
    "logarithm of a gated complement": lambda x: (1 - MASK * x.share).log(),
    # Missing values, and empty parts.
    "missing values or a latent": lambda x: torch.where(KNOWN.isnan(), x.matrix, KNOWN),
    "missing values times a latent, or a latent": lambda x: torch.where(KNOWN.isnan(), x.matrix, KNOWN * x.tau).sum(),
    "cat with an empty part": lambda x: torch.cat([x.vector, x.vector[4:], torch.zeros(0, dtype=torch.float64)]),
    "index by NumPy, range and True": lambda x: (
        x.matrix[np.int64(1)] + x.matrix[np.array([0, 2])] + x.matrix[range(2)] + x.vector[True]
    ),
    "index by a list of masks": lambda x: x.matrix[[True, False, True]],
    "gather with a smaller index": lambda x: x.matrix.gather(-1, CHOICE[:2]) + x.matrix.gather(0, CHOICE.T[:, :2] % 3),
    "arrays on the right": lambda x: x.vector * np.arange(4.0) + x.vector / np.ones(1),
    # Elements that are moved.
    "roll": lambda x: x.matrix.roll(1, 0) + torch.roll(x.matrix, (1, 2), (0, 1)) + x.matrix.roll(5),
    "flips": lambda x: x.matrix.flip(0) + torch.fliplr(x.matrix) + torch.flipud(x.matrix),
    "rot90": lambda x: torch.rot90(x.cube, 1, (1, 2)),
    "repeats": lambda x: x.vector.repeat(2, 3) + x.vector.tile(3) + torch.repeat_interleave(x.vector, 3),
    "repeat_interleave by counts": lambda x: x.matrix.repeat_interleave(torch.tensor([0, 2, 1]), 0),
    "diagonals": lambda x: (
        x.square.diagonal() + torch.linalg.diagonal(x.square) + torch.diag(x.square) + x.square.trace()
    ),
    "diagonal of batches": lambda x: x.cube.diagonal(1, 0, 2),
    "windows": lambda x: x.vector.unfold(0, 2, 1) + x.matrix.ravel()[:2] + x.vector.unflatten(0, (2, 2))[0],
    "patches": lambda x: torch.nn.functional.unfold(x.matrix[None, None], 2, padding=1),
    "masked_select": lambda x: x.matrix.masked_select(MASK2) + torch.masked_select(x.matrix, MASK2),
    "masked_scatter": lambda x: (
        torch.zeros(4).double().masked_scatter(V > 0, x.vector) + x.vector.masked_scatter(V > 0, V)
    ),
    "masked_fill": lambda x: x.matrix.masked_fill(MASK2, 2.0) + torch.masked_fill(x.vector, V > 0, x.scalar),
    "pad": lambda x: torch.nn.functional.pad(x.matrix, (1, 2), value=3.0) + torch.nn.functional.pad(x.vector, (2, 1)),
    "pad by reflection": lambda x: torch.nn.functional.pad(x.cube, (2, 1), mode="reflect"),
    "scatter": lambda x: (
        torch.zeros(6).double().scatter(0, ROWS[:4] + 1, x.vector) + x.matrix[0].scatter(0, ROWS[:1], 5.0).sum()
    ),
    "index_copy": lambda x: torch.ones(6).double().index_copy(0, torch.tensor([5, 0, 2, 3]), x.vector),
    "index_fill": lambda x: x.matrix.index_fill(1, torch.tensor([2, 0]), -1.0),
    "index_put": lambda x: torch.ones(3, 4).double().index_put((ROWS[:2], COLUMNS[:2]), x.vector[:2]),
    "scattered parts": lambda x: (
        torch.ones(3, 4).double().select_scatter(x.vector, 0, 1)
        + x.matrix.slice_scatter(x.vector[None], 0, 2, 3)
        + torch.ones(3, 4).double().diagonal_scatter(x.vector[:3])
    ),
    "triangles": lambda x: x.square.triu(1) + torch.tril(x.square, -1) @ x.square.tril(),
    "diagflat": lambda x: (
        torch.diagflat(x.vector[:3], 1) + torch.block_diag(x.vector, x.matrix[0, :2] * 2, x.square[:2, :2]).sum()
    ),
    "stacks": lambda x: (
        torch.hstack([x.vector, V, x.vector]).sum() * torch.vstack([x.vector, V]) + torch.row_stack([V, x.vector])
    ),
    "stacked columns": lambda x: torch.column_stack([x.vector, V]) + torch.dstack([x.vector, V])[0],
    "atleast": lambda x: torch.atleast_1d(x.scalar) + torch.atleast_2d(x.vector) + torch.atleast_3d(x.vector)[..., 0],
    "grids": lambda x: torch.meshgrid(x.vector, V, indexing="ij")[0] + torch.cartesian_prod(x.vector, V)[:, 1].sum(),
    "combinations": lambda x: torch.combinations(x.vector, 2).sum(0),
    "shuffles": lambda x: (
        torch.nn.functional.channel_shuffle(x.matrix.reshape(1, 12, 1, 1), 3).flatten()
        + torch.nn.functional.pixel_shuffle(x.matrix.reshape(12, 1, 1), 2).flatten()
        + torch.nn.functional.pixel_unshuffle(x.matrix.reshape(3, 2, 2), 2).flatten()
    ),
    "real": lambda x: torch.real(x.vector) + x.vector.resolve_conj() + x.vector.resolve_neg(),
    "flip of choices": lambda x: torch.where(MASK2, x.matrix, x.vector).flip(0, 1).roll(1, -1).triu() ** 2,
    # Elements that are added up with constant weights.
    "scatter_add": lambda x: (
        V.scatter_add(0, ROWS[:4] % 4, x.vector) + x.vector.scatter_add(0, ROWS % 4, torch.ones(5).double())
    ),
    "index_add": lambda x: U.index_add(0, ROWS[1:3], x.matrix[:2]) + x.matrix.index_add(0, ROWS[:1], x.matrix[:1]),
    "index_put that adds": lambda x: V.index_put((ROWS[:4] % 2,), x.vector, accumulate=True),
    "sum_to_size": lambda x: x.cube.sum_to_size(1, 3, 1),
    "fold": lambda x: torch.nn.functional.fold(x.matrix[None, :2].mT, (2, 3), 2),
    "pools": lambda x: (
        torch.nn.functional.avg_pool1d(x.cube, 2)
        + torch.nn.functional.adaptive_avg_pool1d(x.cube, 2)
        + torch.nn.functional.avg_pool2d(x.cube, (3, 2))
        + torch.nn.functional.adaptive_avg_pool2d(x.cube, (3, 2))
        + torch.nn.functional.avg_pool3d(x.cube[None], (1, 3, 2))[0]
    ),
    "interpolate": lambda x: torch.nn.functional.interpolate(x.cube, scale_factor=2.0, mode="linear"),
    "conv1d": lambda x: (
        torch.nn.functional.conv1d(x.matrix[None], U[:2, :3].reshape(2, 3, 1), x.vector[:2])
        + torch.nn.functional.conv1d(U[None], x.cube[:, :, :1], V[:2])
    ),
    "convolutions": lambda x: (
        torch.nn.functional.conv2d(x.cube[None, None, 0], U[None, None, :2, :2]).sum()
        + torch.nn.functional.conv3d(x.cube[None, None], B[None, None])
        + torch.nn.functional.conv_transpose1d(x.matrix[None], U[:, :1, None]).sum()
        + torch.nn.functional.conv_transpose2d(x.matrix[None, None], U[None, None])[0, 0, 0, 0]
        + torch.nn.functional.conv_transpose3d(x.cube[None, None], B[None, None])[0, 0, 0, 0, 0]
    ),
    "bilinear": lambda x: torch.nn.functional.bilinear(x.vector, V, W.T[:, :, None] * V),
    "cross": lambda x: torch.linalg.cross(x.share, V[:3]) + torch.cross(V[:3], x.share, dim=0),
    "trapezoids": lambda x: (
        torch.trapezoid(x.matrix, dx=0.5) + torch.trapz(x.matrix, V) + torch.cumulative_trapezoid(x.vector)[0]
    ),
    # Operations that are made of others.
    "add and sub with alpha": lambda x: (
        torch.add(x.matrix, V, alpha=2)
        + torch.sub(V, x.vector, alpha=0.5)
        + torch.rsub(V, x.vector, alpha=3)
        + x.vector.subtract(V, alpha=2)
    ),
    "addcmul and addcdiv": lambda x: (
        torch.addcmul(x.vector, x.scalar, V, value=0.5) + V.addcdiv(x.vector, x.rates, value=2.0)
    ),
    "lerp": lambda x: torch.lerp(x.matrix, V, 0.3) + torch.lerp(V, x.vector, V.exp()) + V.lerp(x.vector, x.tau),
    "float_power": lambda x: torch.float_power(x.rates, -2),
    "added products": lambda x: (
        torch.addmm(x.vector, U, x.square, beta=0.5, alpha=2.0)
        + torch.addmv(x.column.squeeze(-1), x.matrix, V).unsqueeze(-1)
        + torch.addr(U, x.column.squeeze(-1), x.vector)
    ),
    "added products in batches": lambda x: (
        torch.baddbmm(x.scalar.expand(1, 1, 1), x.cube, x.cube.mT, alpha=2.0)
        + torch.addbmm(U[:, :3], x.cube, x.cube.mT)
    ),
    "linalg.matmul": lambda x: torch.linalg.matmul(U, x.square) + torch.linalg.multi_dot([U, x.square, x.square]),
    "chain_matmul": lambda x: torch.chain_matmul(U, x.square),
    "outer": lambda x: torch.outer(x.vector, V) + torch.ger(V, x.vector) + x.vector.outer(x.vector),
    "inner": lambda x: torch.inner(x.cube, U) + torch.inner(x.vector, V) + torch.inner(x.scalar, V[0]),
    "vdot": lambda x: torch.vdot(x.vector, V) + torch.linalg.vecdot(x.matrix, V),
    "tensordot": lambda x: torch.tensordot(x.cube, W, 1) + torch.tensordot(x.cube, U, ([2, 1], [1, 0]))[:, None, None],
    "kron": lambda x: torch.kron(x.matrix, V) + torch.kron(x.vector, x.column.T @ U).sum(),
    "linalg.solve": lambda x: torch.linalg.solve(definite_constant(), x.vector) + torch.linalg.solve(x.precision, V),
    "cumsum": lambda x: x.cube.cumsum(1) + torch.cumsum(x.cube, dim=-1) + x.vector.cumsum(0),
    "cumprod": lambda x: (
        x.matrix.cumprod(0) + x.vector.prod() + x.cube.prod(0) + torch.prod(x.matrix, -1, keepdim=True)
    ),
    "cumprod, then a root": lambda x: x.rates.cumprod(1).rsqrt(),
    "diff": lambda x: (
        x.cube.diff() + torch.diff(x.vector, n=2, prepend=V[:1]) + x.cube.diff(dim=0, append=U[None])[:2, :, 1:]
    ),
    "logarithms": lambda x: torch.log1p(-x.share) + torch.logit(x.share) + torch.log2(x.rates[:, 0]) + x.tau.log10(),
    "exponentials of logarithms": lambda x: torch.exp(-0.5 * x.rates.log() + x.tau.log() - V),
    "layers at rest": lambda x: (
        torch.nn.functional.dropout(x.vector, 0.5, training=False) + torch.dropout(x.vector, 0.0, True)
    ),
    # Writes into what the model has computed.
    "write elements": write_elements,
    "write through views": write_through_views,
    "write after reading": write_after_reading,
    "write with operations": write_with_operations,
    # What keeps the value.
    "clone and friends": lambda x: (
        x.vector.clone().contiguous().detach().data.cpu().double().to(torch.float64).type_as(V)
    ),
    "float": lambda x: x.vector.float(),
    "positive, of one type": lambda x: +x.matrix + torch.positive(x.matrix).type(torch.float64),
    "mH and H": lambda x: x.matrix.mH + x.matrix.H,
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


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of torch itself, with arrays on the right
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


def test_every_operation_with_a_rule_has_a_case(symbols: Names) -> None:
    """Operators reach the rules as their functions: ``a + b`` as ``add``."""
    calls = Calls()
    with calls:
        for case in CASES.values():
            case(symbols)
    elsewhere = {"cholesky", "linalg_cholesky", "cuda", "requires_grad_"}  # read by gram; a GPU; in place
    elsewhere |= {"logsumexp", "softmax", "log_softmax"}  # of one scalar: among its likelihoods
    operators = {name for name in OPERATIONS if name.startswith("__")}
    assert {*OPERATIONS, *PLACING, *LINEAR, *COMPOSED} - calls.names <= elsewhere | operators


@pytest.mark.parametrize("seed", range(60))
def test_random_chains_of_operations_keep_the_value(seed: int, truth: dict[str, Tensor], symbols: Names) -> None:
    """Views, products and contractions composed at random."""

    def chain(x: Any) -> Any:
        choose = torch.Generator().manual_seed(seed)

        def pick(n: int) -> int:
            return int(torch.randint(n, (1,), generator=choose))

        state = [x.matrix, x.cube, x.column * x.vector, x.matrix @ W, torch.where(MASK2, x.matrix, x.rates)][pick(5)]
        for _ in range(5):
            state = _random_step(state, pick, x)
        return state

    found, expected = chain(symbols), chain(Names(truth))
    assert found.shape == expected.shape
    torch.testing.assert_close(evaluate(found.expression, truth), expected, rtol=1e-9, atol=1e-9)


def _random_step(state: Any, pick: Callable[[int], int], x: Any) -> Any:
    n = state.ndim
    dim = pick(max(n, 1))
    step = pick(10)
    if n == 0 or n > 4 or state.numel() > 600:
        return state.sum() * x.tau
    if step == 0:
        return state.transpose(dim, pick(n))
    if step == 1:
        return state.reshape([-1, *state.shape[2:]] if n > 1 else (1, -1))
    if step == 2:
        index = torch.arange(3) * (pick(2) + 1) % state.shape[dim]
        return state[(slice(None),) * dim + (index,)]
    if step == 3:
        return state.unsqueeze(dim) * torch.linspace(1, 2, 3, dtype=torch.float64).reshape(3, *[1] * (n - dim))
    if step == 4:
        return state.sum(dim)
    if step == 5:
        return state @ torch.linspace(-1, 1, state.shape[-1] * 2, dtype=torch.float64).reshape(state.shape[-1], 2)
    if step == 6:
        return torch.cat([state, 2 - state], dim)
    if step == 7:
        return state.unsqueeze(-1)[..., 0] * x.scalar + 1
    if step == 8:
        return torch.where(torch.arange(state.shape[-1]) % 2 == 0, state, x.tau)
    return torch.stack([state, state * x.tau], dim)[(slice(None),) * dim + (torch.tensor(1),)]


# A latent's value is never a number.

NUMBER_USES: dict[str, Callable[[Any], Any]] = {
    "if": lambda x: 1 if x.tau > 1 else 0,
    "bool": lambda x: bool(x.tau),
    "not": lambda x: not x.tau,
    "assert": lambda x: bool((x.rates > 0).all()),
    "while": lambda x: next(i for i in range(3) if x.tau < i),
    "item": lambda x: x.tau.item(),
    "item of an element": lambda x: x.vector[0].item(),
    "float": lambda x: float(x.tau),
    "int": lambda x: int(x.tau),
    "complex": lambda x: complex(x.tau),
    "math.exp": lambda x: math.exp(x.tau),
    "tolist": lambda x: x.vector.tolist(),
    "numpy": lambda x: x.vector.numpy(),
    "numpy by force": lambda x: x.vector.numpy(force=True),
    "detach, then numpy": lambda x: x.vector.detach().cpu().numpy(),
    "np.asarray": lambda x: np.asarray(x.vector),
    "np.exp": lambda x: np.exp(x.vector),
    "index of a list": lambda x: ["a", "b"][x.tau.long()],
    "range": lambda x: range(x.tau.int()),
    "comparison, then item": lambda x: (x.vector > 0).sum().item(),
    "argmax, then int": lambda x: int(x.vector.argmax()),
    "max of two": lambda x: max(x.tau, x.scalar),
    "sorted": lambda x: sorted(x.vector),
    "in": lambda x: 1.0 in x.vector,
    "equal": lambda x: torch.equal(x.vector, V),
    "allclose": lambda x: torch.allclose(x.vector, V),
    "is_nonzero": lambda x: torch.is_nonzero(x.tau),
    "torch.tensor": lambda x: torch.tensor(x.vector),
    "torch.tensor of a list": lambda x: torch.tensor([x.tau, x.scalar]),
    "torch.as_tensor of a list": lambda x: torch.as_tensor([x.tau, 1.0]),
    "torch.full": lambda x: torch.full((3,), x.tau),
    "as a scalar argument": lambda x: torch.add(U, V, alpha=x.tau),
    "as a clamp": lambda x: torch.nn.functional.softplus(U, beta=x.tau),
    "numpy array of it": lambda x: np.array([x.tau, x.scalar], dtype=float),
    "pickle": lambda x: pickle.dumps(x.vector),
    "storage": lambda x: x.vector.untyped_storage(),
    "data_ptr": lambda x: x.vector.data_ptr(),
    "dlpack": lambda x: x.vector.__dlpack__(),
    "new_tensor": lambda x: V.new_tensor(x.vector),
    "new_tensor of a list": lambda x: V.new_tensor([x.tau]),
    "new_full": lambda x: V.new_full((2,), x.tau),
    "fill_value": lambda x: torch.full_like(V, x.tau),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("use", NUMBER_USES)
def test_using_a_latent_as_a_number_is_an_error(use: str, symbols: Names) -> None:
    with pytest.raises(
        LatentValueError, match=r"Expected tensor operations on .*; got .*, which needs its value as a number"
    ):
        NUMBER_USES[use](symbols)


def _assign(target: Any, index: Any, value: Any) -> None:
    target[index] = value


def _augmented(kind: str, a: Any, b: Any) -> Any:
    if kind == "add":
        a += b
    elif kind == "sub":
        a -= b
    elif kind == "mul":
        a *= b
    elif kind == "div":
        a /= b
    else:
        a **= b
    return a


IN_PLACE_USES: dict[str, Callable[[Any], Any]] = {
    "setitem of a latent": lambda x: _assign(x.vector, 0, 1.0),
    "setitem with a latent": lambda x: _assign(torch.zeros(4, dtype=torch.float64), slice(None), x.vector),
    "setitem of an element with a latent": lambda x: _assign(torch.zeros(4), 0, x.tau),
    "setitem by a mask": lambda x: _assign(torch.zeros(3, 4, dtype=torch.float64), MASK2, x.tau),
    "setitem at a latent's place": lambda x: _assign(torch.zeros(4), x.vector > 0, 1.0),
    "copy_": lambda x: torch.zeros(4, dtype=torch.float64).copy_(x.vector),
    "copy_ into a latent": lambda x: x.vector.copy_(V),
    "+=": lambda x: _augmented("add", x.vector, 1.0),
    "-=": lambda x: _augmented("sub", x.vector, V),
    "*=": lambda x: _augmented("mul", x.vector, 2.0),
    "/=": lambda x: _augmented("div", x.vector, 2.0),
    "**=": lambda x: _augmented("pow", x.vector, 2.0),
    "+= into a plain tensor": lambda x: _augmented("add", torch.zeros(4, dtype=torch.float64), x.vector),
    "*= into a plain tensor": lambda x: _augmented("mul", torch.ones(4, dtype=torch.float64), x.vector),
    "add_": lambda x: x.vector.add_(1.0),
    "add_ into a plain tensor": lambda x: torch.zeros(4, dtype=torch.float64).add_(x.vector),
    "out=": lambda x: torch.add(x.vector, V, out=torch.zeros(4, dtype=torch.float64)),
    "clamp_": lambda x: x.rates.clamp_(min=0.1),
    "fill_": lambda x: torch.zeros(2, dtype=torch.float64).fill_(x.tau),
    "index_add_": lambda x: torch.zeros(5, dtype=torch.float64).index_add_(0, torch.tensor([0, 1, 2, 3]), x.vector),
    "index_put_": lambda x: torch.zeros(5, dtype=torch.float64).index_put_((torch.tensor([0, 1, 2, 3]),), x.vector),
    "scatter_": lambda x: torch.zeros(4, dtype=torch.float64).scatter_(0, torch.arange(4), x.vector),
    "masked_fill_": lambda x: x.matrix.masked_fill_(MASK2, 0.0),
    "zero_": lambda x: x.vector.zero_(),
    "apply_": lambda x: x.vector.apply_(lambda v: v + 1),
    "fill_diagonal_": lambda x: x.square.fill_diagonal_(1.0),
    "torch.relu_": lambda x: torch.relu_(x.vector),
    "into a view of a latent": lambda x: x.vector.view(2, 2)[0].zero_(),
    "into what may be a copy": lambda x: (x.vector * 1.0).reshape(2, 2).zero_(),
    "by a latent index": lambda x: (x.vector * 1.0).__setitem__(x.vector > 0, 0.0),
    "draws": lambda x: (x.vector * 1.0).normal_(),
    "foreach": lambda x: torch._foreach_add_([torch.zeros(4, dtype=torch.float64)], [x.vector]),
}


@pytest.mark.parametrize("use", IN_PLACE_USES)
def test_writing_in_place_is_an_error(use: str, symbols: Names) -> None:
    before = {name: (s.expression, s._placeholder.clone()) for name, s in symbols.items()}
    with pytest.raises(LatentValueError, match=r"in-place|needs its value as a number"):
        IN_PLACE_USES[use](symbols)
    for name, (expression, placeholder) in before.items():
        assert symbols[name].expression is expression
        assert torch.equal(symbols[name]._placeholder, placeholder)


OPAQUE_USES: dict[str, Callable[[Any], Any]] = {
    "comparison": lambda x: x.vector > 0,
    "comparison of latents": lambda x: x.vector <= x.scalar,
    "equality": lambda x: x.vector == 0,
    "argmax": lambda x: x.vector.argmax(),
    "argsort": lambda x: x.vector.argsort(),
    "max": lambda x: x.vector.max(),
    "max over a dimension": lambda x: x.matrix.max(-1).values,
    "topk": lambda x: x.vector.topk(2)[0],
    "sort": lambda x: x.vector.sort()[0],
    "long": lambda x: x.vector.long(),
    "int": lambda x: x.vector.int(),
    "to an integer": lambda x: x.vector.to(torch.int64),
    "type": lambda x: x.vector.type(torch.int32),
    "bool": lambda x: x.vector.bool(),
    "floor": lambda x: x.vector.floor(),
    "round": lambda x: torch.round(x.vector),
    "sign": lambda x: torch.sign(x.vector),
    "floor division": lambda x: x.vector // 1,
    "division with rounding": lambda x: torch.div(x.vector, 2, rounding_mode="floor"),
    "remainder": lambda x: x.vector % 2,
    "exp": lambda x: x.vector.exp(),
    "sigmoid": lambda x: torch.sigmoid(x.vector),
    "softmax": lambda x: x.vector.softmax(-1),
    "abs": lambda x: abs(x.vector),
    "clamp": lambda x: x.rates.clamp(min=0.1),
    "where on a latent condition": lambda x: torch.where(x.vector > 0, V, 0.0),
    "plain tensor at a latent's place": lambda x: V[x.vector.long().clamp(0, 3)],
    "plain tensor by a latent mask": lambda x: V[x.vector > -1e9],
    "a number to a latent power": lambda x: 2.0**x.tau,
    "a latent to a latent power": lambda x: x.rates**x.tau,
    "log of a sum": lambda x: (x.tau + x.rates).log(),
    "power of a sum": lambda x: (x.tau + x.rates) ** -1,
    "reciprocal of a product of sums": lambda x: 1 / (x.matrix + 2.0),
    "root of a square": lambda x: (4 * x.vector**2).sqrt(),
    "log of a square": lambda x: (x.vector**2).log(),
    "log of a product of unknown signs": lambda x: (x.vector * x.scalar).log(),
    "root of a negative multiple": lambda x: (-2.0 * x.vector).sqrt(),
    "root of multiples of both signs": lambda x: (V * x.rates[0]).sqrt(),
    "logdet of a corner": lambda x: torch.logdet(x.precision[:2, :2]),
    "logdet of chosen rows": lambda x: torch.logdet(x.precision[[1, 0, 3, 2]]),
    "inverse of a corner": lambda x: torch.inverse(x.precision[:2, :2]),
    "logdet of a corner of one": lambda x: torch.logdet(x.precision[:1, :1] * x.scalar),
    "logdet of a latent times a matrix": lambda x: torch.logdet(x.scalar * x.precision),
    "logdet of matrices chosen by entry": lambda x: torch.logdet(
        torch.where(torch.eye(4) > 0, x.precision, 2 * x.precision)
    ),
    "logdet of a sum": lambda x: torch.logdet(x.precision + definite_constant()),
    "inverse of a sum": lambda x: torch.inverse(x.precision + definite_constant()),
    "scatter that multiplies": lambda x: torch.ones(2).double().scatter(0, ROWS[1:] % 2, x.vector, reduce="multiply"),
    "dropout": lambda x: torch.nn.functional.dropout(x.vector, 0.5),
    "two convolved latents": lambda x: torch.nn.functional.conv1d(x.cube, x.cube),
    "norm": lambda x: x.vector.norm(),
    "det": lambda x: torch.det(x.precision),
    "random draw": lambda x: torch.bernoulli(x.share),
    "normal draw": lambda x: torch.normal(x.vector, 1.0),
    "deepcopy": lambda x: copy.deepcopy(x.vector),
    "opaque, then arithmetic": lambda x: (x.vector.exp() * 2 + V)[1:].reshape(3, 1).expand(3, 2).sum(),
    "opaque, then assembled": lambda x: torch.stack([x.vector, x.vector.exp()]),
    "opaque, then chosen away": lambda x: torch.where(MASK, x.share, x.share.exp()),
    "opaque times zero": lambda x: x.vector.exp() * 0.0,
    "opaque to the power zero": lambda x: x.vector.exp() ** 0,
}


@pytest.mark.parametrize("use", OPAQUE_USES)
def test_what_has_no_rule_is_opaque_and_names_its_latents(use: str, symbols: Names) -> None:
    found = OPAQUE_USES[use](symbols)
    assert isinstance(found, RandomTensor)
    assert found.expression.opacity is not None
    assert found.expression.opacity.operation
    assert found.expression.sites
    assert found.expression.sites <= set(symbols)


def test_a_size_is_opaque_or_an_error_that_names_the_latent(symbols: Names) -> None:
    """Older releases of torch read a size as a number before they ask the tensor."""
    try:
        found = torch.zeros(symbols.tau.int())
    except LatentValueError as error:
        assert "'tau'" in str(error)
    else:
        assert isinstance(found, RandomTensor)
        assert found.expression.opacity is not None and found.expression.sites == {"tau"}


def test_an_error_names_the_latent_and_the_operation(symbols: Names) -> None:
    with pytest.raises(LatentValueError, match=r"on latent 'tau'; got item, which needs its value as a number"):
        symbols.tau.item()
    with pytest.raises(LatentValueError, match=r"latent 'tau'; got __bool__.*use torch\.where"):
        bool(symbols.tau > 1)
    with pytest.raises(LatentValueError, match=r"got the in-place __setitem__ with latent 'vector'.*torch\.stack"):
        torch.zeros(4)[:] = symbols.vector
    with pytest.raises(LatentValueError, match=r"got the in-place add_.*with latent 'scalar', 'vector'.*x = x \+ y"):
        symbols.vector.add_(symbols.scalar)


def test_questions_about_the_shape_get_plain_answers(symbols: Names) -> None:
    x = symbols.cube
    assert x.shape == x.size() == (2, 3, 4)
    assert (x.dim(), x.ndim, x.numel(), len(x), x.size(1), x.stride()) == (3, 3, 24, 2, 3, (12, 4, 1))
    assert (x.dtype, x.device.type, x.is_floating_point(), x.is_cuda) == (torch.float64, "cpu", True, False)
    assert not x.requires_grad
    assert not isinstance(x.shape[0], Tensor)


@pytest.mark.parametrize(
    "make",
    [
        torch.zeros_like,
        torch.ones_like,
        lambda x: x.new_zeros(3),
        lambda x: x.new_ones((2, 2)),
        lambda x: x.new_full((2,), 3.0),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x * 0,
    ],
)
def test_what_depends_on_the_shape_alone_is_constant(make: Callable[[Any], Any], symbols: Names) -> None:
    found = make(symbols.cube)
    plain = make(torch.zeros(2, 3, 4, dtype=torch.float64))
    if isinstance(found, RandomTensor):
        found = evaluate(found.expression, make_values())
    torch.testing.assert_close(found, plain)


def test_a_latent_that_fills_a_tensor_is_no_constant(symbols: Names) -> None:
    filled = symbols.cube.new_full((3,), symbols.cube[0, 0, 0])
    assert isinstance(filled, RandomTensor)


def test_the_placeholder_never_shows(symbols: Names) -> None:
    for symbol in symbols.values():
        for text in (repr(symbol), str(symbol), f"{symbol}"):
            digits = {f"{abs(v):.4f}"[:6] for v in symbol._placeholder.reshape(-1).tolist()}
            assert not any(d in text for d in digits)


def test_numpy_scalars_and_arrays_mix_like_numbers(truth: dict[str, Tensor], symbols: Names) -> None:
    found = np.float64(2.0) * symbols.vector
    assert isinstance(found, RandomTensor)
    torch.testing.assert_close(evaluate(found.expression, truth), 2 * truth["vector"])


def test_an_array_to_the_left_of_a_latent_is_an_error(symbols: Names) -> None:
    """torch refuses it of plain tensors too."""
    with pytest.raises(LatentValueError, match=r"latent 'vector'; got a NumPy array to its left.*torch\.as_tensor"):
        np.arange(4.0) * symbols.vector


@pytest.mark.parametrize("other", [torch.int64, torch.bool, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_dtypes_promote_as_those_of_torch(own: torch.dtype, other: torch.dtype) -> None:
    decoy, constant = torch.ones(3, dtype=own), torch.ones(3).to(other)
    symbol = RandomTensor(decoy, Expression.latent("x", decoy))
    operations: list[Any] = [torch.add, torch.mul, torch.div, lambda a, b: torch.where(MASK, a, b)]
    for operation in operations:
        for pair, plain in (((symbol, constant), (decoy, constant)), ((constant, symbol), (constant, decoy))):
            found, expected = operation(*pair) * 0.5, operation(*plain) * 0.5
            assert found.expression.like.dtype == found.dtype == expected.dtype
            torch.testing.assert_close(found.expression.evaluate({"x": decoy}), expected.double())


@pytest.mark.parametrize(
    ("normalized", "make"),
    [
        (True, lambda theta, p: theta[torch.tensor([1, 0])]),
        (True, lambda theta, p: torch.stack([1 - p, p], -1)),
        (True, lambda theta, p: torch.where(MASK[:2, None], theta[0], theta[1])),
        (False, lambda theta, p: theta[:, :1]),
        (False, lambda theta, p: theta.unsqueeze(-1)),
        (False, lambda theta, p: theta[:, None, :1].expand(2, 3, 3)),
        (False, lambda theta, p: torch.where(MASK, theta[0], theta[1])),
        (False, lambda theta, p: torch.stack([p, p], -1)),
        (False, lambda theta, p: theta * 2),
    ],
)
def test_probabilities_are_normalized_only_where_they_provably_sum_to_one(
    normalized: bool, make: Callable[..., Any]
) -> None:
    shares, share = torch.full((2, 3), 1 / 3, dtype=torch.float64), torch.full((2,), 0.4, dtype=torch.float64)
    theta = RandomTensor(shares, Expression.latent("theta", shares, simplex=True))
    p = RandomTensor(share, Expression.latent("p", share, nonnegative=True))
    assert make(theta, p).expression.is_normalized == normalized


def test_evaluating_an_opaque_expression_is_an_error(truth: dict[str, Tensor], symbols: Names) -> None:
    with pytest.raises(ValueError, match=r"Expected an expression with a value; got the opaque result of exp on"):
        symbols.vector.exp().expression.evaluate(truth)


def test_evaluating_needs_a_value_for_every_latent(symbols: Names) -> None:
    with pytest.raises(KeyError, match=r"Expected a value for the latent 'tau'; got values of \['vector'\]"):
        (symbols.vector * symbols.tau).expression.evaluate({"vector": torch.zeros(4)})


DISCRETE_CASES: dict[str, Callable[..., Any]] = {
    "read": lambda z, x: x.vector[z],
    "read and multiplied": lambda z, x: (x.vector[z] * z).sum(),
    "elements": lambda z, x: x.vector[z[0]] * x.share[z[1]],
    "chosen": lambda z, x: torch.where(z == 1, x.vector[0], x.vector[z] * 2) + z * 0.5,
    "log of a gated complement": lambda z, x: (1 - (z > 0) * x.share[0]).log(),
    "log of a product": lambda z, x: (x.share[z] * (z + 1)).log(),
    "square of a sum": lambda z, x: (x.vector[z] + z) ** 2,
    "root": lambda z, x: x.share[z] ** -0.5,
    "logdet": lambda z, x: torch.logdet(x.precisions[z % 2]),
    "inverse": lambda z, x: torch.inverse(2 * x.precisions[z % 2]),
    "logdet of a diagonal": lambda z, x: torch.logdet(torch.diag_embed(x.share[z])),
    "logdet of a chosen diagonal": lambda z, x: torch.logdet(
        torch.diag_embed(torch.where(z[:, None] > 0, x.share[:2], x.share[1:]))
    ),
    "logdet of chosen matrices": lambda z, x: torch.logdet(
        torch.where((z > 0)[:, None, None], x.precisions[0], 3 * x.precisions[1])
    ),
}


@pytest.mark.parametrize("name", DISCRETE_CASES)
def test_an_expression_of_discrete_latents_is_what_the_code_computes_at_each_of_their_values(
    name: str, truth: dict[str, Tensor], symbols: Names
) -> None:
    z = RandomTensor(torch.zeros(3, dtype=torch.long), Expression.discrete("z", torch.arange(3), torch.Size((3,))))
    found = DISCRETE_CASES[name](z, symbols)
    for values in itertools.product(range(3), repeat=3):
        numbers = torch.tensor(values)
        expected = DISCRETE_CASES[name](numbers, Names(truth))
        torch.testing.assert_close(found.expression.evaluate(truth | {"z": numbers}), expected)
