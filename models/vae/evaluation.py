"""How good a trained VAE is: importance-weighted bounds on log p(x), and what each latent dimension carries.

    L_k = E log (1/k) Σ_i p(x, z_i) / q(z_i | x),  z_1 … z_k ~ q(z | x)

L_1 is the ELBO, L_k rises with k, and tends to log p(x). With a posterior over weights each z_i comes with its own draw
of them, and the bound is on the predictive density E_q(w) p(x | w) of one image.

Source: [4] (147); [2], importance sampling; Burda, Grosse and Salakhutdinov 2016.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_latent.errors import ArgumentError, DataError, check_count, checked_call

from .model import Autoencoder

#: How many draws of z the moments of a posterior that has no closed forms are taken from.
DRAWS_OF_A_FLOW = 50

__all__ = ["Bound", "Diagnosis", "PosteriorCollapseWarning", "diagnose", "importance_weighted_bounds"]


class PosteriorCollapseWarning(UserWarning):
    """Latent dimensions whose posterior is the same for every image."""


@dataclass(frozen=True)
class Bound:
    """An importance-weighted bound, in nats for each image.

    Attributes:
        num_samples: k, how many draws of z are in the logarithm.
        mean: over the images.
        error: standard error of the mean: of the images as a sample of all images, and of the draws. (Draws of weights
            are shared by the images of a chunk; what they add to the error of the mean is not in it.)
        values: the bound's estimate for each image, ``[N]``; differences of two models on the same images are paired.
    """

    num_samples: int
    mean: float
    error: float
    values: Tensor = field(repr=False)

    def __str__(self) -> str:
        return f"L_{self.num_samples} = {self.mean:.3f} ± {self.error:.3f} nats"


@dataclass(frozen=True)
class Diagnosis:
    """The ELBO taken apart, in nats for each image.

    Attributes:
        elbo: ``reconstruction - kl``.
        reconstruction: E_q log p(x | z), estimated by draws.
        kl: KL(q(z | x) ‖ p(z)): exact for a Gaussian; with a flow estimated by draws.
        kl_per_dimension: its share of each latent dimension, ``[latent_dim]``. With a flow NaN: there are no shares.
        activity: variance over the images of the posterior's mean, ``[latent_dim]``; with a flow estimated.
        active: ``activity`` above the threshold, ``[latent_dim]``.
    """

    elbo: float
    reconstruction: float
    kl: float
    kl_per_dimension: Tensor
    activity: Tensor
    active: Tensor

    @property
    def collapsed(self) -> list[int]:
        """The dimensions that carry nothing."""
        return (~self.active).nonzero().flatten().tolist()

    def __str__(self) -> str:
        lines = [
            f"ELBO {self.elbo:.3f} = reconstruction {self.reconstruction:.3f} - KL {self.kl:.3f} (nats for each image)",
            f"{int(self.active.sum())} of {len(self.active)} latent dimensions are active",
            "dimension  KL (nats)  variance of the mean",
        ]
        rows = zip(self.kl_per_dimension.tolist(), self.activity.tolist(), strict=True)
        return "\n".join([*lines, *(f"{j:9d}  {kl:9.3f}  {variance:20.4f}" for j, (kl, variance) in enumerate(rows))])


@checked_call
def importance_weighted_bounds(
    vae: Autoencoder, images: Tensor, num_samples: int | Sequence[int] = (1, 50, 500), *, chunk_size: int = 10_000
) -> list[Bound]:
    """Importance-weighted bounds on log p(x), from one set of draws for all of ``num_samples``.

    The largest number of draws is made once. A smaller k that divides it is averaged over the disjoint groups of k
    draws; so the estimates rise with k on the same draws too, by Jensen's inequality.

    Args:
        vae: the model.
        images: ``[N, *input_shape]``.
        num_samples: k of each bound; one number for one bound.
        chunk_size: draws of z (of all images together) that are decoded at once; memory grows with it.

    Returns:
        One :class:`Bound` for each of ``num_samples``, in their order.

    Raises:
        DataError: if the images do not fit the model.
        ValueError: if a number is no positive integer.

    Source: Burda et al. 2016, (8).
    """
    num_samples = num_samples if isinstance(num_samples, Iterable) else (num_samples,)
    _check_draws(num_samples, chunk_size)
    vae.check_values(images)
    most = max(num_samples)
    parts: dict[int, list[Tensor]] = {k: [] for k in num_samples}
    with torch.no_grad():
        # A tenth, so that there are ten draws at a time: draws of weights take memory too, whatever the images.
        for batch in images.split(max(1, chunk_size // 10)):
            log_weights = torch.cat(list(_log_weights(vae, batch, most, chunk_size)))
            for k, values in parts.items():
                values.append(_bound(log_weights, k))
    return [_summary(k, torch.cat(parts[k])) for k in num_samples]


@checked_call
def diagnose(
    vae: Autoencoder, images: Tensor, *, threshold: float = 0.01, num_samples: int = 1, chunk_size: int = 10_000
) -> Diagnosis:
    """Reconstruction and KL divergence apart, and which latent dimensions are in use.

    A dimension is active if the mean of q(z_j | x) varies over the images by more than ``threshold``. Where some are
    not, a :class:`PosteriorCollapseWarning` names them and what helps.

    Args:
        vae: the model; with a posterior over weights, of each draw of z with its own draw of them.
        images: ``[N, *input_shape]``, N >= 2.
        threshold: on the variance; 0.01 in the source.
        num_samples: draws of z for each image, for the reconstruction. With a flow, 50 more are drawn for the
            KL divergence and for the posterior's mean, which no decoder has to see.
        chunk_size: as in :func:`importance_weighted_bounds`.

    Raises:
        DataError: if the images do not fit the model, or are fewer than two.
        ValueError: if ``num_samples`` or ``chunk_size`` is not positive.

    Source: Burda et al. 2016, §5.2 (active units).
    """
    _check_draws([num_samples], chunk_size)
    vae.check_values(images)
    if len(images) < 2:
        raise DataError("Expected two images or more, over which a posterior mean can vary; got 1. Give a data set.")
    moments, reconstructions = [], []
    with torch.no_grad():
        for batch in images.split(max(1, chunk_size // num_samples)):
            posterior = vae.posterior(batch)
            moments.append(_exact_moments(vae, posterior) if vae.flow is None else _drawn_moments(vae, posterior))
            reconstructions.append(_pixel_log_prob(vae, batch, posterior.sample((num_samples,))).mean(0))
    means, errors, divergences = (torch.cat(parts) for parts in zip(*moments, strict=True))
    activity = means.var(0) - errors.mean(0)
    each = divergences.mean(0)
    reconstruction, kl = float(torch.cat(reconstructions).mean()), float(each.sum())
    shares = each if vae.flow is None else torch.full_like(activity, math.nan)
    found = Diagnosis(reconstruction - kl, reconstruction, kl, shares, activity, activity > threshold)
    _warn_of_collapse(found)
    return found


def _exact_moments(vae: Autoencoder, posterior: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of q(z | x), that estimate's variance, which is 0, and KL(q ‖ p) of each dimension; ``[M, J]`` each."""
    gaussian = posterior.base_dist
    prior = vae.prior(posterior.batch_shape)
    return gaussian.loc, torch.zeros_like(gaussian.loc), kl_divergence(gaussian, prior.base_dist)


def _drawn_moments(vae: Autoencoder, posterior: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`_exact_moments` gives, estimated by draws; the KL divergence is of all dimensions, ``[M, 1]``."""
    z = posterior.sample((DRAWS_OF_A_FLOW,))
    divergence = (posterior.log_prob(z) - vae.prior().log_prob(z)).mean(0)
    return z.mean(0), z.var(0) / len(z), divergence.unsqueeze(-1)


def _check_draws(num_samples: Sequence[int], chunk_size: int) -> None:
    if not num_samples:
        raise ArgumentError(
            "Expected one number of draws or more in num_samples; got (). Write num_samples=(1, 50, 500)."
        )
    for number in num_samples:
        check_count("num_samples", number)
    check_count("chunk_size", chunk_size)


def _warn_of_collapse(found: Diagnosis) -> None:
    if found.collapsed:
        names = ", ".join(map(str, found.collapsed))
        warnings.warn(
            f"Latent dimensions {names} of {len(found.active)} have collapsed: their posterior mean does not vary with "
            "the image. What helps, where they are wanted: fit(..., kl_weight=anneal_linearly(steps)), or "
            "fit(..., free_bits=0.1); else write a smaller latent_dim.",
            PosteriorCollapseWarning,
            stacklevel=3,
        )


def _log_weights(vae: Autoencoder, images: Tensor, num_samples: int, chunk_size: int) -> Iterator[Tensor]:
    """log p(x, z) - log q(z | x) of draws of z, in parts ``[draws, M]``."""
    posterior, prior = vae.posterior(images), vae.prior()
    size = max(1, chunk_size // len(images))
    for start in range(0, num_samples, size):
        z = posterior.sample((min(size, num_samples - start),))
        yield _pixel_log_prob(vae, images, z) + prior.log_prob(z) - posterior.log_prob(z)


def _pixel_log_prob(vae: Autoencoder, images: Tensor, z: Tensor) -> Tensor:
    """log p(x | z) of draws ``[draws, M, latent_dim]``: ``[draws, M]``; each draw has its own draw of the weights."""
    if vae.weight_prior is not None and vae.network == "conv":
        # A convolution takes one set of weights at a time.
        each = [vae.pixels(draw, vae.draw_weights()).log_prob(images) for draw in z]
        return torch.stack(each)
    return vae.pixels(z, vae.draw_weights((len(z), 1))).log_prob(images)


def _bound(log_weights: Tensor, num_samples: int) -> Tensor:
    """L_k of each image from ``[draws, M]``, averaged over the disjoint groups of k draws."""
    groups = len(log_weights) // num_samples
    grouped = log_weights[: groups * num_samples].reshape(groups, num_samples, -1)
    return (grouped.logsumexp(1) - math.log(num_samples)).mean(0)


def _summary(num_samples: int, values: Tensor) -> Bound:
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Bound(num_samples, float(values.mean()), error, values)
