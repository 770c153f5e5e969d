"""Three coins: one that nobody sees chooses which of the other two is seen.

    choice_n ~ Bernoulli(pi),  toss_n ~ Bernoulli(p) if choice_n is heads, else Bernoulli(q)

The data tell only the probability of heads, π p + (1 - π) q, so the likelihood has a ridge of maxima, and where on it
EM ends depends on where it started: the textbook example of that. With p = q at the start no responsibility differs
from π, and the coins never part.

Source: [4] (1)-(8); Li 2012, §9.1. The lecture notes print (.4, .6, .6) as the second start; their numbers come from
(.4, .6, .7).
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_latent.errors import checked_call

from .arguments import Guided, check_data

__all__ = ["ENDS", "STARTS", "TOSSES", "em_step", "guide", "log_likelihood", "model", "responsibilities"]

Theta = tuple[float, float, float]

#: The tosses of the document.
TOSSES = (1, 1, 0, 1, 0, 0, 1, 0, 1, 1)
#: The document's starts (π, p, q), the second one corrected, and where EM takes each.
STARTS: tuple[Theta, ...] = ((0.5, 0.5, 0.5), (0.4, 0.6, 0.7), (0.46, 0.55, 0.67))
ENDS: tuple[Theta, ...] = ((0.5, 0.6, 0.6), (0.4064, 0.5368, 0.6432), (0.4619, 0.5346, 0.6561))


def model(tosses: Tensor, start: Theta = STARTS[1]) -> None:
    """Parameters ``pi``, ``p`` and ``q``; sites ``choice``, enumerated in parallel, and ``toss``, in plate ``data``.

    Args:
        tosses: 1 for heads and 0 for tails, shape ``[N]``, floating.
        start: where π, p and q start, each in (0, 1).

    Raises:
        DataError: if ``tosses`` is not a non-empty one-dimensional floating tensor.

    Source: [4] (1).
    """
    check_data("tosses", tosses, "[N]", "Write torch.tensor(tosses, dtype=torch.float64).")
    pi, p, q = (
        pyro.param(name, tosses.new_tensor(value), constraint=constraints.unit_interval)
        for name, value in zip(("pi", "p", "q"), start, strict=True)
    )
    with pyro.plate("data", len(tosses)):
        with Guided("Write TraceEnum_ELBO."):
            choice = pyro.sample("choice", dist.Bernoulli(pi), infer={"enumerate": "parallel"})
        pyro.sample("toss", dist.Bernoulli(torch.where(choice > 0, p, q)), obs=tosses)


def guide(tosses: Tensor, start: Theta = STARTS[1]) -> None:
    """A guide without a site, for ``SVI`` with ``TraceEnum_ELBO``, which sums the choices out: the bound is exact."""


@checked_call
def responsibilities(tosses: Tensor, theta: Theta) -> Tensor:
    """The probability that each toss is of the coin that heads choose, shape ``[N]``; [4] (4), (7)."""
    pi, p, q = theta
    heads = pi * p**tosses * (1 - p) ** (1 - tosses)
    tails = (1 - pi) * q**tosses * (1 - q) ** (1 - tosses)
    return heads / (heads + tails)


@checked_call
def em_step(tosses: Tensor, theta: Theta) -> Theta:
    """One step of EM on (π, p, q), by the textbook's own formulas; Li 2012, §9.1, and [4] (4)-(5)."""
    mu = responsibilities(tosses, theta)
    pi = mu.mean()
    p = (mu * tosses).sum() / mu.sum()
    q = ((1 - mu) * tosses).sum() / (1 - mu).sum()
    return pi.item(), p.item(), q.item()


@checked_call
def log_likelihood(tosses: Tensor, theta: Theta) -> float:
    """log p(tosses | π, p, q), in nats; [4] (2), (6)."""
    pi, p, q = theta
    heads = tosses.new_tensor(pi * p + (1 - pi) * q)
    return float((tosses * heads.log() + (1 - tosses) * torch.log1p(-heads)).sum())
