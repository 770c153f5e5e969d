"""Linear algebra of symmetric matrices that never raises: what is not positive definite gives nan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..values import broadcast_shapes


def symmetrize(matrix: Tensor) -> Tensor:
    """The symmetric part of ``matrix``."""
    return (matrix + matrix.mT) / 2


def is_positive_definite(matrix: Tensor) -> Tensor:
    """A boolean tensor of batch shape; False where an entry is not finite."""
    _, info = torch.linalg.cholesky_ex(symmetrize(matrix))
    return (info == 0) & matrix.isfinite().flatten(-2).all(-1)


def is_well_conditioned(matrix: Tensor) -> Tensor:
    """Whether a positive definite matrix says something in every direction, beyond the rounding of its entries.

    A squared pivot of its Cholesky factor over its diagonal entry is the share of a coordinate's precision that the
    coordinates before it leave; the log determinant is off by about eps over the smallest.
    """
    factor, _ = torch.linalg.cholesky_ex(symmetrize(matrix))
    share = factor.diagonal(dim1=-2, dim2=-1) ** 2 / matrix.diagonal(dim1=-2, dim2=-1)
    return (share > torch.finfo(matrix.dtype).eps ** 0.75).all(-1)


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix⁻¹ vector, of a symmetric matrix; far nearer to it than a product with the inverse is."""
    factor = cholesky(matrix)
    half = torch.linalg.solve_triangular(factor, vector.unsqueeze(-1), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(-1)


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of the symmetric part."""
    factor, info = torch.linalg.cholesky_ex(symmetrize(matrix))
    return torch.where((info == 0)[..., None, None], factor, torch.nan)


def log_determinant(matrix: Tensor) -> Tensor:
    """log|matrix|, of batch shape."""
    return 2 * cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def inverse(matrix: Tensor) -> Tensor:
    """The symmetric inverse."""
    factor = cholesky(matrix)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    root = torch.linalg.solve_triangular(factor, identity, upper=False)
    return symmetrize(root.mT @ root)


def outer(x: Tensor, y: Tensor) -> Tensor:
    """x yᵀ over the last dimension of each."""
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product of matrices and vectors, batched by broadcasting."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def expand_batch(fields: Mapping[str, Tensor], event_dims: Mapping[str, int]) -> dict[str, Tensor]:
    """Expand the fields to their common batch shape; ``event_dims`` counts the dimensions at the right of each."""
    split = {name: value.dim() - event_dims[name] for name, value in fields.items()}
    batch = broadcast_shapes(*(value.shape[: split[name]] for name, value in fields.items()))
    return {name: value.expand(batch + value.shape[split[name] :]) for name, value in fields.items()}
