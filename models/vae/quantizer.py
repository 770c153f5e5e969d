"""A codebook, and the gradients that go through the choice of a code.

Source: van den Oord, Vinyals and Kavukcuoglu 2017; Fifty et al. 2024 for the rotation; Zeghidour et al. 2021 and Lee et
al. 2022 for residual quantization.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from pyro_latent.errors import DataError, check_choice, check_count

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
        codes: their indices, ``[...]``; of a :class:`ResidualQuantizer` ``[..., Q]``, and so are the losses.
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

    def vectors(self, codes: Tensor) -> Tensor:
        """Rows of the codebook, ``[..., D]``, of codes ``[...]``."""
        return self.codebook[codes]

    @torch.no_grad()
    def restart_unused(self, encoded: Tensor) -> int:
        """Move codes that none of the vectors ``[N, D]`` is nearest to onto some of them, and count them."""
        counts = torch.bincount(self.nearest(encoded), minlength=len(self.codebook))
        unused = (counts == 0).nonzero()[:, 0]
        rows = torch.randint(len(encoded), (len(unused),), device=encoded.device)
        self.codebook[unused] = encoded[rows]
        return len(unused)

    def forward(self, encoded: Tensor) -> Quantized:
        """The nearest codes of vectors ``[..., D]``."""
        codes = self.nearest(encoded)
        vectors = self.vectors(codes)
        carry = rotate_gradient if self.gradient == "rotation" else straight_through
        return Quantized(
            values=carry(encoded, vectors.detach()),
            codes=codes,
            codebook_loss=(vectors - encoded.detach()).square().sum(-1),
            commitment_loss=(vectors.detach() - encoded).square().sum(-1),
        )


class ResidualQuantizer(nn.Module):
    """Q codebooks, each of which codes what those before it have left; the value is the sum of the Q codes.

    The gradient goes through the sum, once: it is the sum that the decoder sees, and its angle to the encoder's output
    that the rotation keeps. By depth, a rotation of each residual would be badly determined where little is left.

    Args:
        num_quantizers: Q.
        num_codes: K, of each codebook.
        code_dim: D.
        gradient: ``"rotation"`` or ``"straight_through"``.

    Raises:
        ValueError: if ``num_quantizers`` is not positive or ``gradient`` is neither.

    Source: Zeghidour et al. 2021, §III.C; Lee et al. 2022, §3.1, whose loss is this one.
    """

    def __init__(self, num_quantizers: int, num_codes: int, code_dim: int, gradient: CodeGradient = "rotation") -> None:
        super().__init__()
        check_count("num_quantizers", num_quantizers)
        self.gradient = gradient
        self.depths = nn.ModuleList(VectorQuantizer(num_codes, code_dim, gradient) for _ in range(num_quantizers))

    def _stages(self) -> list[VectorQuantizer]:
        return cast(list[VectorQuantizer], list(self.depths))

    def nearest(self, encoded: Tensor) -> Tensor:
        """The codes of vectors ``[..., D]``, each depth's nearest to what is left, ``[..., Q]``."""
        with torch.no_grad():
            return self(encoded).codes

    def vectors(self, codes: Tensor) -> Tensor:
        """Sums of codes, ``[..., D]``, of codes ``[..., Q]``."""
        if codes.shape[-1] != len(self.depths):
            raise DataError(
                f"Expected codes [..., {len(self.depths)}], one for each depth; got {list(codes.shape)}. Use codes()."
            )
        return torch.stack([q.vectors(c) for q, c in zip(self._stages(), codes.unbind(-1), strict=True)]).sum(0)

    @torch.no_grad()
    def restart_unused(self, encoded: Tensor) -> int:
        """:meth:`VectorQuantizer.restart_unused` at each depth, of what those before it leave of vectors ``[N, D]``."""
        moved = 0
        for quantizer in self._stages():
            moved += quantizer.restart_unused(encoded)
            encoded = encoded - quantizer.vectors(quantizer.nearest(encoded))
        return moved

    def forward(self, encoded: Tensor) -> Quantized:
        """The codes of vectors ``[..., D]``; codes and losses are ``[..., Q]``."""
        left, found = encoded, []
        for quantizer in self._stages():
            found.append(quantizer(left))
            left = left - quantizer.vectors(found[-1].codes).detach()
        codes, of_codebook, of_commitment = (torch.stack(part, -1) for part in list(zip(*found, strict=True))[1:])
        carry = rotate_gradient if self.gradient == "rotation" else straight_through
        return Quantized(carry(encoded, self.vectors(codes).detach()), codes, of_codebook, of_commitment)
