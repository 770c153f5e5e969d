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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, check_count
from ..particles import Draws, Particles

__all__ = ["ImportanceSample", "importance_sampling", "naive_monte_carlo"]


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceSample:
    """Weighted draws of a model's latents, and the evidence that they estimate.

    Attributes:
        log_weights: log p(x, z_s) - log q(z_s), float64 ``[S]``, in nats.
        samples: by latent site the draws z_s, ``[S] + shape``; empty unless they were kept.
    """

    log_weights: Tensor
    samples: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return len(self.log_weights)

    @property
    def log_evidence(self) -> float:
        """The logarithm of the mean weight, in nats; it is low by about half its squared standard error."""
        return (torch.logsumexp(self.log_weights, 0) - math.log(self.num_samples)).item()

    @property
    def elbo(self) -> float:
        """The mean log weight, in nats: the evidence lower bound of the proposal."""
        return self.log_weights.mean().item()

    @property
    def effective_sample_size(self) -> float:
        """(Σ w)² / Σ w², between 1 and S: how many equal weights would estimate a mean as well."""
        return (2 * torch.logsumexp(self.log_weights, 0) - torch.logsumexp(2 * self.log_weights, 0)).exp().item()

    @property
    def standard_error(self) -> float:
        """Of :attr:`log_evidence`, by the delta method: the standard error of the mean weight over the mean weight.

        It is itself estimated from the weights, and too small where no draw came near the largest ones: do not trust it
        with an effective sample size below ten or so.
        """
        size = self.num_samples
        return math.sqrt(max(size / self.effective_sample_size - 1, 0.0) / (size - 1)) if size > 1 else math.inf

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

    def __repr__(self) -> str:
        note = "; few draws carry the weight, so the error is too small" if self.effective_sample_size < 10 else ""
        return (
            f"log evidence {self.log_evidence:.4f} ± {self.standard_error:.4f} nats; effective sample size "
            f"{self.effective_sample_size:.1f} of {self.num_samples}{note}"
        )


def naive_monte_carlo(
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    vectorized: bool | None = None,
    keep_samples: bool = False,
    **kwargs: Any,
) -> ImportanceSample:
    """The evidence by the mean of p(x | z_s) over draws z_s of the prior: the estimate that does not work.

    The squared error of its logarithm is (E w² / (E w)² - 1) / S, and that ratio is a product over independent
    dimensions: S has to grow exponentially with the dimension of z.

    Discrete sites that the model marks for enumeration are summed out, not drawn.

    Args:
        model: a Pyro model.
        *args, **kwargs: its arguments.
        num_samples: S.
        batch_size: how many draws are made and scored at a time; all by default, in parts that fit into memory.
        vectorized: True: a batch is one run of the model, in one more plate to the left; False: a run a draw, for
            models that do not bear that; None: whatever is fast and gives draws the densities that they have alone.
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


def importance_sampling(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    vectorized: bool | None = None,
    keep_samples: bool = False,
    **kwargs: Any,
) -> ImportanceSample:
    """The evidence by the mean of p(x, z_s) / q(z_s) over draws z_s of a guide.

    Discrete sites that the model marks for enumeration and the guide leaves out are summed out; a fitted
    ``AutoConjugate`` leaves them out by itself. Other latents that the guide lacks come from their own prior.

    Args:
        model: a Pyro model.
        guide: any Pyro guide or autoguide of it, fitted, with a density at every site, which a point estimate has not;
            None: the prior, which is :func:`naive_monte_carlo`.
        *args, **kwargs: the arguments of both.
        num_samples, batch_size, vectorized, keep_samples: as in :func:`naive_monte_carlo`.

    Raises:
        ModelError: as in :func:`naive_monte_carlo`, and if the guide has a site that the model has not, or draws one at
            a point (``AutoDelta``, ``AutoConjugate(point=…)``).
        ValueError: if ``num_samples`` or ``batch_size`` is no integer of at least 1.

    Source: Owen 2013, §9.1-9.3; [2], the derivation of the ELBO from the same mean.
    """
    num_samples = check_count("num_samples", num_samples)
    size = num_samples if batch_size is None else check_count("batch_size", batch_size)
    particles = Particles(model, guide, args, kwargs, vectorized)
    parts = [_weighted(particles.draw(n), keep_samples) for n in _batches(num_samples, size)]
    samples = {name: torch.cat([p.samples[name] for p in parts]) for name in parts[0].samples}
    log_weights = torch.cat([p.log_weights for p in parts])
    if bool((log_weights == -math.inf).all()):
        raise ModelError(
            f"Expected a draw under which the data are possible; got a density of zero for all of {num_samples}. Take "
            "more draws, a guide in place of the prior, or look for data outside their support."
        )
    return ImportanceSample(log_weights, samples)


def _weighted(draws: Draws, keep_samples: bool) -> ImportanceSample:
    log_weights = draws.log_weights
    if bool(log_weights.isnan().any()):
        raise ModelError(
            f"Expected finite log densities; got NaN for {int(log_weights.isnan().sum())} of {len(log_weights)} draws "
            "(or an infinite density in model and guide both). Look for a scale of zero, or for NaN in the data."
        )
    return ImportanceSample(log_weights, draws.values if keep_samples else {})


def _batches(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
