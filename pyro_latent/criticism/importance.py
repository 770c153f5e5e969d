r"""What variational inference is measured against: Monte Carlo estimates of the evidence.

The evidence log p(x) is the logarithm of a mean of weights, p(x, z_s) / q(z_s) for draws z_s of a proposal q,

.. math:: p(x) = E_q \frac{p(x, z)}{q(z)} \approx \frac1S \sum_s w_s .

With the prior as proposal the weights are p(x | z_s): naive Monte Carlo, whose error grows exponentially with the
dimension of z, since most draws miss the region that the data favour. With a fitted guide this is importance sampling.

Source: ``docs/sources.md`` [2], "MLE for models with latent variables"; Owen 2013, ch. 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ModelError, check_count, checked_call
from ..particles import LEAST_DRAWS, Draws, Particles, Target, Weights, seeded
from ..signatures import Model
from .draws import draw


def naive_monte_carlo(
    model: Model,
    *args: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    vectorized: bool | None = None,
    keep_samples: bool = False,
    **kwargs: Any,
) -> Weights:
    """The evidence by the mean of p(x | z_s) over draws z_s of the prior: the estimate that does not work.

    The squared error of its logarithm is (E w² / (E w)² - 1) / S, and that ratio is a product over independent
    dimensions: S has to grow exponentially with the dimension of z.

    Discrete sites that the model marks for enumeration are summed out, not drawn.

    Args:
        model: a Pyro model.
        args, kwargs: its arguments.
        num_samples: S.
        batch_size: how many draws are made and scored at a time; all by default, in parts that fit into memory.
        vectorized: True: a batch is one run of the model, in one more plate to the left; False: one run
            for each draw, for models that do not bear that; None: the fast way that gives draws the densities that they
            have alone.
        keep_samples: whether the result has the draws.

    Raises:
        ModelError: if the model observes nothing or subsamples its data, or if a weight is NaN, or all are zero.
        ValueError: if ``num_samples`` or ``batch_size`` is no integer of at least 1.

    Source: [2], "the problem of high dimension".
    """
    return importance_sampling(
        model,
        None,
        *args,
        num_samples=num_samples,
        batch_size=batch_size,
        vectorized=vectorized,
        keep_samples=keep_samples,
        **kwargs,
    )


@checked_call
def importance_sampling(
    model: Model,
    guide: Callable[..., Any] | None,
    *args: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    vectorized: bool | None = None,
    keep_samples: bool = False,
    **kwargs: Any,
) -> Weights:
    """The evidence by the mean of p(x, z_s) / q(z_s) over draws z_s of a guide.

    Discrete sites that the model marks for enumeration and the guide leaves out are summed out; a fitted
    ``AutoConjugate`` leaves them out by itself. Other latents that the guide lacks come from their own prior.

    Args:
        model: a Pyro model.
        guide: any Pyro guide or autoguide of it, fitted, with a density at every site, so no point estimate;
            None: the prior, which is :func:`naive_monte_carlo`.
        args, kwargs: the arguments of both.
        num_samples, batch_size, vectorized, keep_samples: as in :func:`naive_monte_carlo`.

    Raises:
        ModelError: as in :func:`naive_monte_carlo`, and if the guide has a site that the model lacks, or draws one at
            a point (``AutoDelta``, ``AutoConjugate(point=…)``).
        ValueError: if ``num_samples`` or ``batch_size`` is no integer of at least 1.

    Source: Owen 2013, §9.1-9.3; [2], the derivation of the ELBO from the same mean.
    """
    num_samples = check_count("num_samples", num_samples)
    size = num_samples if batch_size is None else check_count("batch_size", batch_size)
    particles = Particles(model, guide, args, kwargs, vectorized)
    parts = [_weighted(particles.draw(n), keep_samples) for n in _batches(num_samples, size)]
    found = Weights(
        torch.cat([p.log_weights for p in parts]),
        {name: torch.cat([p.samples[name] for p in parts]) for name in parts[0].samples},
        parts[0].summed,
        max(p.rounding for p in parts),
    )
    if bool((found.log_weights == -math.inf).all()):
        raise ModelError(
            f"Expected a draw under which the data are possible; got a density of zero for all of {num_samples}. Take "
            "more draws, a guide in place of the prior, or look for data outside their support."
        )
    return found


def _weighted(draws: Draws, keep_samples: bool) -> Weights:
    found = Weights.of(draws, keep_samples)
    lost = found.log_weights.isnan()
    if bool(lost.any()):
        raise ModelError(
            f"Expected finite log densities; got NaN for {int(lost.sum())} of {len(lost)} draws (or an infinite "
            "density in model and guide both). Look for a scale of zero, or for NaN in the data."
        )
    return found


def _batches(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


@checked_call
def score(
    model: Model,
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    seed: int = 0,
    **kwargs: Any,
) -> Weights:
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
        return Weights.of(draw(target, guide, num_samples))
