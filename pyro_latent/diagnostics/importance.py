"""How good an approximate posterior is, by the weights w = p(x, z) / q(z) of its draws.

E log w is the ELBO, log E w the evidence, and the tail of w says whether an average of it can be trusted: Pareto k̂. One
set of draws gives all three. Where q is the exact posterior, w does not vary: all of them are then exact.

Source: Vehtari, Simpson, Gelman, Yao and Gabry 2024 (Pareto smoothed importance sampling); Yao, Vehtari, Simpson and
Gelman 2018 (k̂ for variational inference); Burda, Grosse and Salakhutdinov 2016 (the importance-weighted bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from ..errors import DataError, check_count
from ..particles import Draws, Target, seeded
from .draws import draw

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
    """The shape of the generalised Pareto distribution that the largest weights follow.

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
    def threshold(self) -> float:
        """Above it the averages of so many draws are not reliable: min(1 − 1 / log10 S, 0.7), Vehtari et al. 2024."""
        return min(1 - 1 / math.log10(self.num_draws), 0.7)

    @property
    def label(self) -> str:
        """ "exact", or the number."""
        return "exact" if self.k == -math.inf else f"{self.k:.2f}"

    @property
    def verdict(self) -> str:
        """What it says of the approximation, in words."""
        if self.k == -math.inf:
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
    weights = torch.as_tensor(log_weights).detach().double().cpu()  # Pyro's Pareto fit makes its tensors on the CPU
    num = len(weights) if weights.ndim == 1 else 0
    if num < LEAST_DRAWS:
        raise DataError(
            f"Expected log weights of shape [S] with S >= {LEAST_DRAWS}; got shape {list(weights.shape)}. Draw more."
        )
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


@dataclass(frozen=True)
class Score:
    """What the weights of a guide's draws say, in nats.

    Attributes:
        elbo, elbo_error: the mean of log w and its standard error.
        evidence, evidence_error: log of the mean of w, and its standard error by the delta method; not to be trusted
            where k̂ is above its threshold.
        ess: the effective sample size, (Σ w)² / Σ w².
        k: Pareto k̂.
        summed: the discrete sites that are summed out.
    """

    elbo: float
    elbo_error: float
    evidence: float
    evidence_error: float
    ess: float
    k: ParetoK
    summed: tuple[str, ...] = ()


def score_draws(draws: Draws) -> Score:
    """The score of draws that have been made."""
    log_weights = draws.log_weights
    num = len(log_weights)
    largest = log_weights.max()
    weights = (log_weights - largest).exp()
    mean = weights.mean()
    return Score(
        elbo=float(log_weights.mean()),
        elbo_error=float(log_weights.std()) / math.sqrt(num),
        evidence=float(largest + mean.log()),
        evidence_error=float(weights.std() / mean) / math.sqrt(num),
        ess=float(weights.sum().square() / weights.square().sum()),
        k=pareto_k(log_weights, rounding_of(draws)),
        summed=draws.summed,
    )


def rounding_of(draws: Draws) -> float:
    """The differences between log weights that rounding explains, in nats."""
    floating = [v.dtype for v in draws.values.values() if v.is_floating_point()]
    relative = max((ROUNDING.get(d, 1e-2) for d in floating), default=ROUNDING[torch.float64])
    return relative * max(1.0, float(draws.log_p.abs().max()))


def score(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    **kwargs: Any,
) -> Score:
    """ELBO, importance-weighted evidence, and Pareto k̂ of a guide, from one set of draws.

    Discrete sites that the model marks with ``infer={"enumerate": "parallel"}`` are summed out.

    Args:
        model: a Pyro model.
        guide: any Pyro guide with a density, fitted; the positional arguments after it are the model's.
        num_samples: the number of draws, at least 50.
        seed: of the draws. The global random state stays as it is.
        kwargs: the model's keyword arguments.

    Raises:
        ModelError: if the guide's sites are not the model's, or it has no density.
        ValueError: if there are too few draws.

    Example::

        print(score(model, guide, x).k)  # "0.31 (good)"
    """
    num_samples = check_count("num_samples", num_samples, LEAST_DRAWS)
    with seeded(seed):
        target = Target.of(model, args, kwargs)
    with seeded(seed):
        return score_draws(draw(target, guide, num_samples))
