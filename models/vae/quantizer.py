"""A codebook, and the gradients that go through the choice of a code.

Source: van den Oord, Vinyals and Kavukcuoglu 2017; Fifty et al. 2024 for the rotation.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from pyro_latent.errors import DataError, check_choice

CodeGradient: TypeAlias = Literal["rotation", "straight_through"]


def straight_through(encoded: Tensor, code: Tensor) -> Tensor:
    """The code, with its gradient given to ``encoded`` as it is; ``[..., D]`` both.

    Source: van den Oord, Vinyals and Kavukcuoglu 2017, §3.2.
    """
    return encoded + (code - encoded).detach()


def rotate_gradient(encoded: Tensor, code: Tensor) -> Tensor:
    """The code, as a rotation and a scaling of ``encoded`` that are taken to be constants; ``[..., D]`` both.

    With e the output of the encoder, q the code, and R the rotation that takes e's direction to q's in their plane, the
    value is q = (|q| / |e|) R e, and the gradient by e is (|q| / |e|) Rᵀ times that by q:

        R = I - 2 r rᵀ + 2 q̂ êᵀ,  r the direction of ê + q̂.

    Gradients thus keep their angle to the vector, so points of one cell are pushed differently. Where a vector is zero,
    or the two are opposite, there is no such rotation, and the gradient goes straight through.

    Source: Fifty et al. 2024, §4.1-4.2.
    """
    direction, length = _unit(encoded.detach())
    target, target_length = _unit(code.detach())
    middle, middle_length = _unit(direction + target)
    reflected = encoded - 2 * (encoded * middle).sum(-1, keepdim=True) * middle
    rotated = reflected + 2 * (encoded * direction).sum(-1, keepdim=True) * target
    tiny = torch.finfo(encoded.dtype).eps
    exists = (length > tiny) & (target_length > tiny) & (middle_length > tiny**0.5)
    turned = torch.where(exists, target_length / length.clamp_min(tiny) * rotated, encoded)
    return turned + (code - turned).detach()


def _unit(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and lengths; a zero vector has direction 0."""
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / torch.where(length > 0, length, 1.0), length


class Quantized(NamedTuple):
    """Vectors replaced by their codes.

    Attributes:
        values: the codes' vectors, with the gradient for the encoder, ``[..., D]``.
        codes: their indices, ``[...]``.
        codebook_loss: squared distance of codes from vectors, which moves the codes, ``[...]``.
        commitment_loss: the same number, which moves the vectors.
    """

    values: Tensor
    codes: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


class VectorQuantizer(nn.Module):
    """A codebook of K vectors in D dimensions; each vector is replaced by the nearest.

    Args:
        num_codes: K.
        code_dim: D.
        gradient: ``"rotation"`` or ``"straight_through"``.

    Raises:
        ValueError: if ``gradient`` is neither.
    """

    def __init__(self, num_codes: int, code_dim: int, gradient: CodeGradient = "rotation") -> None:
        super().__init__()
        check_choice("gradient", gradient, get_args(CodeGradient))
        self.gradient = gradient
        self.codebook = nn.Parameter(torch.randn(num_codes, code_dim) / code_dim**0.5)

    def nearest(self, encoded: Tensor) -> Tensor:
        """Indices of the nearest codes, ``[...]``, of vectors ``[..., D]``."""
        if encoded.shape[-1] != self.codebook.shape[-1]:
            raise DataError(
                f"Expected vectors of {self.codebook.shape[-1]} elements; got {encoded.shape[-1]}. "
                "Give the encoder the codebook's code_dim."
            )
        with torch.no_grad():
            flat = encoded.reshape(-1, encoded.shape[-1])
            # By differences: |a|² + |b|² - 2 a·b is faster, and takes a far code for the nearest where it cancels.
            distances = torch.cdist(flat, self.codebook, compute_mode="donot_use_mm_for_euclid_dist")
            return distances.argmin(-1).reshape(encoded.shape[:-1])

    def forward(self, encoded: Tensor) -> Quantized:
        """The nearest codes of vectors ``[..., D]``."""
        codes = self.nearest(encoded)
        vectors = self.codebook[codes]
        carry = rotate_gradient if self.gradient == "rotation" else straight_through
        return Quantized(
            values=carry(encoded, vectors.detach()),
            codes=codes,
            codebook_loss=(vectors - encoded.detach()).square().sum(-1),
            commitment_loss=(vectors.detach() - encoded).square().sum(-1),
        )
