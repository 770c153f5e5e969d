r"""The concentration of a Dirichlet that has drawn many vectors, from their mean logarithms.

For N vectors with mean log s the log likelihood, divided by N, is

    ℓ(a) = log Γ(Σ a) − Σ_k log Γ(a_k) + Σ_k (a_k − 1) s_k,

which is concave, so that its maximum is where the mean of log x under the Dirichlet is s: ψ(a_k) − ψ(Σ a) = s_k, which
:func:`~pyro_latent.families.newton.inverse_dirichlet_mean` solves. In LDA s is the mean of E log θ_d, or of E log β_k,
under q. All of it is in float64, once in a pass.

Source: [4] (140)-(145); Blei, Ng and Jordan 2003, appendix A.2, A.4.2; Minka 2000, "Estimating a Dirichlet
distribution".
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_latent.errors import DataError, checked_call
from pyro_latent.families.newton import inverse_dirichlet_mean

__all__ = ["dirichlet_concentration", "dirichlet_gradient", "symmetric_concentration"]

#: 1 − Σ exp(mean log) of vectors that count as equal: their concentration would be above 10⁶.
_SMALLEST_SPREAD = 1e-7


@checked_call
def dirichlet_concentration(mean_log: Tensor) -> Tensor:
    """The concentration, shape ``[K]``, under which vectors with this mean logarithm are likeliest.

    Args:
        mean_log: mean over the vectors of log x_k, shape ``[K]``; it must be the mean of some: Σ_k exp(s_k) < 1.

    Raises:
        DataError: if there is no finite maximum.

    Source: [4] (141)-(142), (144)-(145).
    """
    statistics = mean_log.detach().double()
    mass = float(statistics.exp().sum())
    if not bool(statistics.isfinite().all()) or not mass < 1 - _SMALLEST_SPREAD:
        raise DataError(
            "Expected the mean logarithm of probability vectors that differ: finite, with Σ exp(mean_log) < 1; got "
            f"{mass:.6g}. Vectors that are all equal have no finite concentration: keep the one that there is."
        )
    return inverse_dirichlet_mean(statistics).to(mean_log)


@checked_call
def symmetric_concentration(mean_log: Tensor) -> Tensor:
    """The concentration that all components share, a scalar, under which vectors of this mean logarithm are likeliest.

    Args:
        mean_log: mean over the vectors of log x_v, shape ``[V]``.

    Raises:
        DataError: if there is no finite maximum.

    Source: [4] (143)-(145), with one parameter: it sees the mean of s alone.
    """
    return dirichlet_concentration(mean_log.mean().expand(len(mean_log)))[0]


@checked_call
def dirichlet_gradient(mean_log: Tensor, concentration: Tensor) -> Tensor:
    """∇ℓ = ψ(Σ a) − ψ(a_k) + s_k, shape ``[K]``: the gradient of the mean log likelihood. [4] (141), (144)."""
    return torch.digamma(concentration.sum()) - torch.digamma(concentration) + mean_log
