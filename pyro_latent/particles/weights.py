"""How good an approximate posterior is, by the importance weights w = p(x, z) / q(z) of its draws.

E log w is the ELBO, log E w the evidence, and the tail of w says whether an average of it can be trusted: Pareto k̂. One
set of draws gives all three. Where q is the exact posterior, w does not vary: all of them are then exact.

Source: Owen 2013, ch. 9 (importance sampling); Vehtari, Simpson, Gelman, Yao and Gabry 2024 (Pareto smoothed importance
sampling); Yao, Vehtari, Simpson and Gelman 2018 (k̂ for variational inference); Burda, Grosse and Salakhutdinov 2016
(the importance-weighted bound).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from ..errors import ArgumentError, DataError, as_real
from ..values import as_tensor, kind_of
from .particles import Draws

#: Below this, relative to their size, differences between log weights are rounding. By the dtype of the densities.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}

#: The least number of draws: the tail of fewer has too few weights for a Pareto fit.
LEAST_DRAWS = 50

#: Up to here, whatever the number of draws, is good by the rule of Yao et al.
GOOD = 0.5

#: Weights that vary by less than this, relative to their mean, hardly vary: 99 draws of them are worth 100.
NEAR = 0.1

NON_FINITE = "some weights are not finite"
TIED = "the largest weights are equal: too few distinct draws"
ALONE = "poor: a few draws carry all the weight"


@dataclass(frozen=True)
class ParetoK:
    """The shape of the generalized Pareto distribution that the largest weights follow.

    Attributes:
        k: the estimate; −∞ where the weights do not vary, +∞ where some are infinite or not numbers.
        num_draws: the number of weights.
        reason: why there is no estimate, if there is none.
        variation: the weights' standard deviation over their mean. k̂ is the shape of their tail, not its size: where
            they hardly vary, no tail can spoil an average.
    """

    k: float
    num_draws: int
    reason: str = ""
    variation: float = math.inf

    @property
    def is_exact(self) -> bool:
        """Whether the weights do not vary, as those of the exact posterior."""
        return self.k == -math.inf

    @property
    def threshold(self) -> float:
        """Above it averages of S draws are not reliable: min(1 − 1 / log10 S, 0.7), Vehtari et al. 2024."""
        return min(1 - 1 / math.log10(self.num_draws), 0.7)

    @property
    def label(self) -> str:
        """ "exact", or the number."""
        return "exact" if self.is_exact else f"{self.k:.2f}"

    @property
    def verdict(self) -> str:
        """What it says of the approximation, in words."""
        if self.is_exact:
            return "exact posterior"
        if self.reason:
            return self.reason
        if self.k <= min(GOOD, self.threshold):
            return "good"
        if self.variation < NEAR:
            return "nearly exact: the weights hardly vary"
        return "usable, with importance weights" if self.k <= self.threshold else "poor: do not rely on it"

    def __str__(self) -> str:
        return f"{self.label} ({self.verdict})"


def pareto_k(log_weights: Tensor | np.ndarray[Any, Any], rounding: float = 0.0) -> ParetoK:
    """k̂ of importance weights.

    Args:
        log_weights: ``[S]``, log p − log q of each draw, up to a constant; S at least 50. A tensor on any device, or an
            array.
        rounding: differences up to this are none, in nats.

    Raises:
        DataError: if there are too few.

    Source: Vehtari et al. 2024, with the tail of min(S / 5, 3 √S) weights.
    """
    given = as_tensor(log_weights, torch.float64)
    weights = torch.empty(0) if given is None else given.detach().cpu()  # Pyro's Pareto fit makes its own on the CPU
    num = len(weights) if weights.ndim == 1 else 0
    if num < LEAST_DRAWS:
        raise DataError(
            f"Expected log weights of shape [S] with S >= {LEAST_DRAWS}; got {kind_of(log_weights)}. Draw more."
        )
    if not as_real(rounding) >= 0:
        raise ArgumentError(f"Expected rounding to be a number of at least 0; got {rounding!r}.")
    if not bool(weights.isfinite().all()):
        return ParetoK(math.inf, num, NON_FINITE)
    if float(weights.max() - weights.min()) <= rounding:
        return ParetoK(-math.inf, num)
    tail = math.ceil(min(num / 5, 3 * math.sqrt(num)))
    ordered = (weights - weights.max()).sort().values
    cutoff = ordered[-tail - 1].exp()
    exceedances = ordered[-tail:].exp() - cutoff
    exceedances = exceedances[exceedances > 0]
    if len(exceedances) < 5:  # too few above zero, or too few that differ: no tail to fit
        return ParetoK(math.inf, num, ALONE if len(ordered[-tail:].unique()) >= 5 else TIED)
    try:
        k = float(fit_generalized_pareto(exceedances)[0])
    except ZeroDivisionError:  # the smallest of the tail are nothing beside the largest
        k = math.inf
    ratios = (weights - weights.max()).exp()
    return ParetoK(k, num, "" if math.isfinite(k) else ALONE, float(ratios.std() / ratios.mean()))


@dataclass(frozen=True, eq=False, repr=False)
class Weights:
    """The importance weights of draws z_s of a guide or of the prior, and what they say; in nats.

    Attributes:
        log_weights: log p(x, z_s) − log q(z_s), float64 ``[S]``.
        samples: by latent site the draws z_s, ``[S] + shape``; empty unless they were kept.
        summed: the discrete sites that are summed out.
        rounding: differences between log weights up to this are none.
    """

    log_weights: Tensor
    samples: dict[str, Tensor] = field(default_factory=dict)
    summed: tuple[str, ...] = ()
    rounding: float = 0.0

    @staticmethod
    def of(draws: Draws, keep_samples: bool = False) -> Weights:
        """The weights of scored draws.

        Raises:
            ModelError: if they are of MCMC, which has no density.
        """
        return Weights(draws.log_weights, draws.values if keep_samples else {}, draws.summed, rounding_of_draws(draws))

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.log_weights)

    @property
    def elbo(self) -> float:
        """The mean log weight: the evidence lower bound of the proposal."""
        return self.log_weights.mean().item()

    @property
    def elbo_error(self) -> float:
        """The standard error of :attr:`elbo`."""
        return self.log_weights.std().item() / math.sqrt(self.num_samples)

    @property
    def log_evidence(self) -> float:
        """The logarithm of the mean weight; it is low by about half its squared standard error."""
        return (torch.logsumexp(self.log_weights, 0) - math.log(self.num_samples)).item()

    @property
    def standard_error(self) -> float:
        """The standard error of :attr:`log_evidence`, by the delta method: the mean weight's over the mean weight.

        It is itself estimated from the weights, and too small where no draw came near the largest ones: do not trust it
        with an effective sample size below ten or so, or with k̂ above its threshold.
        """
        size = self.num_samples
        return math.sqrt(max(size / self.effective_sample_size - 1, 0.0) / (size - 1)) if size > 1 else math.inf

    @property
    def effective_sample_size(self) -> float:
        """(Σ w)² / Σ w², between 1 and S: how many equal weights would estimate a mean as well."""
        return (2 * torch.logsumexp(self.log_weights, 0) - torch.logsumexp(2 * self.log_weights, 0)).exp().item()

    @cached_property
    def k(self) -> ParetoK:
        """Pareto k̂; "exact" where the weights vary by rounding only.

        Raises:
            DataError: if there are fewer than 50 weights.
        """
        return pareto_k(self.log_weights, self.rounding)

    @property
    def weights(self) -> Tensor:
        """The weights over their sum, ``[S]``."""
        return self.log_weights.softmax(0)

    def mean(self) -> dict[str, Tensor]:
        """The weighted mean of every latent site that was kept: an estimate of its posterior mean."""
        return {
            name: torch.tensordot(self.weights.to(value), value, 1)
            for name, value in self.samples.items()
            if value.is_floating_point()
        }

    def __eq__(self, other: object) -> bool:
        """Whether the weights are the same numbers: those of the same draws."""
        return isinstance(other, Weights) and torch.equal(self.log_weights, other.log_weights)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        note = "; few draws carry the weight, so the error is too small" if self.effective_sample_size < 10 else ""
        return (
            f"log evidence {self.log_evidence:.4f} ± {self.standard_error:.4f} nats; effective sample size "
            f"{self.effective_sample_size:.1f} of {self.num_samples}{note}"
        )


def rounding_of_draws(draws: Draws) -> float:
    """The differences between log weights that rounding explains, in nats."""
    floating = [v.dtype for v in draws.values.values() if v.is_floating_point()]
    relative = max((ROUNDING.get(d, 1e-2) for d in floating), default=ROUNDING[torch.float64])
    return relative * max(1.0, float(draws.log_p.abs().max()))
