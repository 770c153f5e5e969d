r"""Gaussian guides that are not the maximum of the ELBO: Laplace's, and the one that minimises KL(p ‖ q).

- Laplace: the quadratic of log p(x, z) at a mode, N(ẑ, H⁻¹), with H minus the Hessian there. It sees one point only.
- KL(p ‖ q), inclusive: over Gaussians it is least at the mean and the covariance of p (over factorised ones, at the
  marginal means and variances), so that q covers all of the mass. The moments come from draws of the posterior, such as
  MCMC's or weighted ones, or are given.
- KL(q ‖ p), exclusive, is what ``CAVI`` and ``SVI`` minimise: q fits inside a mode.

All three act in unconstrained space, as Pyro's autoguides do, and the first two return one of those: it samples, scores
and goes where any guide does.

Source: ``docs/sources.md`` [1], "variational inference" (Laplace) and "different KL divergences"; Bishop 2006 §4.4,
§10.1.2, (10.17).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal
from pyro.infer.autoguide.initialization import init_to_median
from pyro.ops.hessian import hessian
from torch import Tensor
from torch.distributions import biject_to

from ..errors import ArgumentError, ArgumentTypeError, DataError, ModelError, check_choice, checked_call
from ..particles import Weights, check_no_subsample, sample_sites
from ..signatures import Args, Kwargs, Model
from .trainer import descend_quasi_newton

__all__ = ["GaussianGuide", "laplace", "moment_matching"]

#: By how many nats the density may still rise where the climb to a mode ends, by its quadratic.
_NEWTON_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_FEW_DRAWS = 10


class GaussianGuide(AutoMultivariateNormal):
    """A Gaussian over all latents, in unconstrained space, with given moments: an autoguide that nothing trains.

    The moments are buffers ``loc``, ``scale`` and ``scale_tril``, made at the first call. As in every autoguide the
    entries are the latent sites in the order of the model, each put into unconstrained space and flattened.

    Args:
        model: a Pyro model with continuous latents.
        loc: the mean, ``[D]``.
        covariance_matrix: positive definite, ``[D, D]``.

    Attributes:
        log_evidence: Laplace's estimate of log p(x), in nats, where the guide is Laplace's; else None.

    Raises:
        ValueError: if the shapes do not fit each other, or the matrix is not symmetric or not positive definite.
        ModelError: at the first call, if the model has not D unconstrained latent dimensions.
    """

    @checked_call
    def __init__(self, model: Model, loc: Tensor, covariance_matrix: Tensor) -> None:
        if loc.dim() != 1 or covariance_matrix.shape != (len(loc), len(loc)):
            raise ArgumentError(
                f"Expected loc of shape [D] and covariance_matrix of shape [D, D]; got {list(loc.shape)} and "
                f"{list(covariance_matrix.shape)}. Flatten the latents, in the order of the model."
            )
        asymmetry = float((covariance_matrix - covariance_matrix.mT).abs().max())
        if asymmetry > torch.finfo(covariance_matrix.dtype).eps ** 0.5 * float(covariance_matrix.abs().max()):
            raise ArgumentError(
                f"Expected covariance_matrix to be symmetric; got entries that differ by {asymmetry:.3g} from those "
                "across the diagonal. Write L @ L.mT if it is a factor L, or (C + C.mT) / 2."
            )
        factor, failed = torch.linalg.cholesky_ex(covariance_matrix)
        if bool(failed) or not bool(factor.isfinite().all()):
            raise ArgumentError(
                "Expected covariance_matrix to be positive definite; got one with the eigenvalues "
                f"{torch.linalg.eigvalsh(covariance_matrix).tolist()}. Take more draws, or a diagonal one."
            )
        super().__init__(model)
        self._moments = (loc.detach(), factor.detach())
        self.log_evidence: float | None = None

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc, factor = (t.to(self.loc) for t in self._moments)
        if self.latent_dim != len(loc):
            assert self.prototype_trace is not None
            raise ModelError(
                f"Expected moments of the model's {self.latent_dim} unconstrained latent dimensions; got {len(loc)}. "
                f"Its latent sites are {[name for name, _ in self.prototype_trace.iter_stochastic_nodes()]}."
            )
        scale = factor.square().sum(-1).sqrt()
        del self.loc, self.scale, self.scale_tril
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)
        self.register_buffer("scale_tril", factor / scale.unsqueeze(-1))

    @property
    def covariance_matrix(self) -> Tensor:
        """The covariance in unconstrained space, ``[D, D]``."""
        factor = self._moments[1]
        return factor @ factor.mT


class _ModeGuide(AutoLaplaceApproximation):
    """Pyro's guide, its location outside of the parameter store, where a second guide would find the first one's."""

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self.loc.detach().requires_grad_()
        del self.loc
        self.register_buffer("loc", loc)


@checked_call
def laplace(
    model: Model,
    *args: Any,
    init_loc_fn: Callable[..., Any] = init_to_median,
    max_steps: int = 1000,
    **kwargs: Any,
) -> GaussianGuide:
    """The Laplace approximation in one call: climb to a mode by L-BFGS, and take the curvature there.

    The mode is that of the density in unconstrained space, the Jacobian included, so it is that of ``AutoDelta`` only
    where all latents are real. Its ``log_evidence`` is log p(x, ẑ) + D/2 log 2π - ½ log det H.

    Args:
        model: a Pyro model with continuous latents.
        *args, **kwargs: its arguments.
        init_loc_fn: where to start, as in Pyro's autoguides; by default at medians of the prior.
        max_steps: L-BFGS iterations.

    Raises:
        ModelError: if a plate subsamples its data, if no mode is found, or where the climb ends the curvature is not
            that of one.

    Source: [1]; Bishop 2006 (4.131)-(4.137).
    """
    guide = _ModeGuide(model, init_loc_fn=init_loc_fn)
    with poutine.block():
        guide(*args, **kwargs)
    check_no_subsample(_traces(guide, args, kwargs)[1])
    tiny = torch.finfo(guide.loc.dtype).eps
    tolerances = {"tolerance_grad": tiny, "tolerance_change": tiny}
    descend_quasi_newton(
        [guide.loc], lambda: _negative_log_density(guide, args, kwargs), max_iter=max_steps, **tolerances
    )
    loss = _negative_log_density(guide, args, kwargs)
    curvature = hessian(loss, guide.loc).detach()
    eigenvalues = torch.linalg.eigvalsh(curvature)
    _check_mode(torch.autograd.grad(_negative_log_density(guide, args, kwargs), guide.loc)[0], curvature, eigenvalues)
    inverse = torch.linalg.inv(curvature)
    result = GaussianGuide(model, guide.loc.detach(), (inverse + inverse.mT) / 2)
    with poutine.block():
        result(*args, **kwargs)
    log_volume = len(eigenvalues) / 2 * math.log(2 * math.pi) - eigenvalues.log().sum().item() / 2
    result.log_evidence = log_volume - loss.item()
    return result


def _check_mode(gradient: Tensor, curvature: Tensor, eigenvalues: Tensor) -> None:
    if not bool((eigenvalues > 0).all()):
        raise ModelError(
            f"Expected a mode, where minus the Hessian has positive eigenvalues; got {eigenvalues.tolist()}: a saddle, "
            "or a flat direction. Start elsewhere by init_loc_fn, or give the flat latents a prior."
        )
    rise = (gradient @ torch.linalg.solve(curvature, gradient)).item() / 2
    if not rise <= _NEWTON_TOLERANCE.get(gradient.dtype, 1e-2):
        raise ModelError(
            f"Expected to reach a mode; got a point from which one more Newton step would rise by {rise:.3g} nats. "
            "Raise max_steps, or start elsewhere by init_loc_fn."
        )


def _negative_log_density(guide: _ModeGuide, args: Args, kwargs: Kwargs) -> Tensor:
    """-log p(x, z) at the guide's location, with the Jacobian of unconstrained space."""
    guide_trace, model_trace = _traces(guide, args, kwargs)
    return torch.as_tensor(guide_trace.log_prob_sum() - model_trace.log_prob_sum())


def _traces(guide: _ModeGuide, args: Args, kwargs: Kwargs) -> tuple[poutine.Trace, poutine.Trace]:
    """The traces of the guide, and of the model at its values."""
    with poutine.block(hide_types=["sample"]):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        return guide_trace, poutine.trace(poutine.replay(guide.model, trace=guide_trace)).get_trace(*args, **kwargs)


@checked_call
def moment_matching(
    model: Model,
    samples: MCMC | Weights | Mapping[str, Tensor | np.ndarray[Any, Any]],
    *args: Any,
    covariance: Literal["full", "diagonal"] = "full",
    **kwargs: Any,
) -> GaussianGuide:
    """The Gaussian that minimises KL(p ‖ q), by the mean and covariance of draws of the posterior.

    Where the posterior is Gaussian and known, ``GaussianGuide(model, loc, covariance_matrix)`` takes its moments.

    Args:
        model: a Pyro model with continuous latents.
        samples: draws of the posterior: an ``MCMC`` that has run; the result of ``importance_sampling`` or
            ``naive_monte_carlo`` with ``keep_samples=True``, weighted; or by site, ``[S] + shape``, tensors or arrays.
        *args, **kwargs: the model's arguments.
        covariance: ``"full"``, or ``"diagonal"`` for the best factorised q: the product of the marginals' Gaussians.

    Raises:
        DataError: if sites or shapes are not the model's, a draw is not finite, or there are too few for a covariance.
        TypeError: if ``samples`` is none of these.
        ValueError: if ``covariance`` is neither.

    Source: [1], "if we minimised KL(p ‖ q)"; Bishop 2006 (10.16)-(10.17), §10.7.
    """
    check_choice("covariance", covariance, ("full", "diagonal"))
    values, weights = _weighted_draws(samples)
    draws = _unconstrained(model, values, args, kwargs)
    weights = torch.full_like(draws[:, 0], 1 / len(draws)) if weights is None else weights.to(draws)
    _check_size(weights, draws.shape[1] if covariance == "full" else 1)
    loc = weights @ draws
    centered = draws - loc
    matrix = (weights.unsqueeze(-1) * centered).mT @ centered
    guide = GaussianGuide(model, loc, matrix if covariance == "full" else torch.diag(matrix.diagonal()))
    with poutine.block():
        guide(*args, **kwargs)
    return guide


def _weighted_draws(samples: object) -> tuple[Mapping[str, Tensor], Tensor | None]:
    if isinstance(samples, MCMC):
        return samples.get_samples(), None
    if isinstance(samples, Mapping):
        return {name: torch.as_tensor(value) for name, value in samples.items()}, None
    if not isinstance(samples, Weights):
        raise ArgumentTypeError(
            f"Expected an MCMC, Weights or draws by site; got {type(samples).__name__}. Write "
            '{"mean": draws}, with the draws along the first dimension.'
        )
    if not samples.samples:
        raise DataError(
            "Expected an importance sample with its draws; got one without. Write keep_samples=True where it is made, "
            "in naive_monte_carlo or importance_sampling."
        )
    return samples.samples, samples.weights


def _unconstrained(model: Model, values: Mapping[str, Tensor], args: Args, kwargs: Kwargs) -> Tensor:
    """Draws in unconstrained space, flattened in the order of the model, ``[S, D]``."""
    with poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    sites = {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}
    shapes = {n: list(s["value"].shape) for n, s in sites.items()}
    found = {n: list(v.shape[1:]) for n, v in values.items()}
    counts = {len(v) if v.dim() else 0 for v in values.values()}
    if found != shapes or len(counts) != 1 or 0 in counts:
        raise DataError(
            f"Expected draws of the latent sites, with shapes {shapes} after one number of draws; got {found}, with "
            f"{sorted(counts)} draws. Give all latents, the draws along the first dimension."
        )
    flat = [biject_to(s["fn"].support).inv(values[n]).reshape(len(values[n]), -1) for n, s in sites.items()]
    draws = torch.cat(flat, -1).detach()
    if not bool(draws.isfinite().all()):
        raise DataError(
            "Expected finite draws inside the support; got NaN, infinity or a value on its edge. Drop those draws."
        )
    return draws


def _check_size(weights: Tensor, dim: int) -> None:
    effective = (1 / weights.square().sum()).item()
    if effective <= dim:
        raise DataError(
            f"Expected an effective sample size above {dim} for the covariance; got {effective:.1f}. Take more draws, "
            "a better proposal, or covariance='diagonal'."
        )
    if effective < _FEW_DRAWS * dim:
        warnings.warn(
            f"The moments of {dim} dimensions rest on an effective sample size of {effective:.1f}; take more draws, or "
            "a better proposal.",
            stacklevel=3,
        )
