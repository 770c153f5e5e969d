r"""Estimators of the ELBO's gradient, by name.

All are Pyro ELBOs, for ``SVI`` as they are, and L draws of each are ``num_particles=L``. They have one mean, the ELBO

.. math:: L(θ, φ) = E_q[\log p_θ(x, z) - \log q_φ(z)],

and differ in how a draw of z depends on φ and in which terms are summed exactly:

- :class:`PathwiseELBO`, estimator A of Kingma and Welling: z = g_φ(ε), both logarithms at the draw;
- :class:`AnalyticKLELBO`, their estimator B: the same draws, but KL(q ‖ p(z)) in closed form;
- :class:`StickingTheLandingELBO`: A without the gradient of log q at fixed z, whose mean is zero;
- :class:`ScoreFunctionELBO`: z is a constant, and log q carries the gradient. It needs no g, so it also serves
  discrete z.

Source: ``docs/sources.md``, [4] (149)-(154); Kingma and Welling 2014; Roeder, Wu and Duvenaud 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import MultiFrameTensor
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from ..errors import ArgumentError, ModelError, check_count
from ..particles import PyroProgram, TraceSite, is_delta, sample_sites

__all__ = [
    "AnalyticKLELBO",
    "OneLossELBO",
    "PathwiseELBO",
    "ScoreFunctionELBO",
    "StickingTheLandingELBO",
    "divergence",
]

Traces = tuple[poutine.Trace, poutine.Trace]


class OneLossELBO(Trace_ELBO):
    """An ELBO that is its ``differentiable_loss``, of which value and gradient are taken. Subclasses write that one."""

    def differentiable_loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> Tensor:
        """The estimate of -ELBO, a scalar in nats, whose derivative is the estimate of its gradient."""
        raise NotImplementedError

    def loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The estimate of -ELBO in nats."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs).item())

    def loss_and_grads(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> float:
        """The estimate of -ELBO in nats; its gradient is added to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.item())


def divergence(q: Distribution, p: Distribution, draw: Tensor | None, *, site: str, instead: str) -> Tensor:
    """What a site adds to -ELBO: log q - log p at a draw (A), or KL(q ‖ p) in closed form (B); of the batch shape.

    Args:
        q, p: the site's distributions in guide and model.
        draw: the value at which estimator A takes it; None for B.
        site: the name, for errors.
        instead: what errors say to use where there is no closed form.

    Raises:
        ModelError: if the closed form is not registered with ``torch.distributions``.
    """
    if draw is not None:
        return q.log_prob(draw) - p.log_prob(draw)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        raise ModelError(
            f"Expected a closed-form KL divergence at every site; got none from {_family(q)} to {_family(p)} at site "
            f"{site!r}. Register one with torch.distributions.register_kl, or use {instead}."
        ) from None


def _family(fn: Distribution) -> str:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return type(fn).__name__


class PathwiseELBO(Trace_ELBO):
    """Estimator A: mean over draws of log p(x, z) - log q(z), z = g_φ(ε).

    It is Pyro's ``Trace_ELBO`` where every site of the guide is reparameterised. ``Trace_ELBO`` takes the score
    function at any other; here that is an error, so that a name is one estimator. Its value (not its gradient) does not
    vary at all where q is the exact posterior: log p(x, z) - log q(z) is then log p(x) at every z.

    Raises:
        ModelError: from each step, if a site of the guide has no reparameterised draw.

    Source: [4] (150)-(152).
    """

    def _get_trace(self, model: PyroProgram, guide: PyroProgram, args: object, kwargs: object) -> Traces:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        _require_reparameterized(guide_trace, type(self).__name__)
        return model_trace, guide_trace


class StickingTheLandingELBO(PathwiseELBO):
    """Estimator A without the score: the gradient of log q reaches φ through the draw z = g_φ(ε) alone.

    What it leaves out, ∇_φ log q_φ(z) at fixed z, has mean zero. Where q is the exact posterior, and the sites of the
    guide do not depend on each other, this gradient with respect to φ does not vary at all.

    Raises:
        ModelError: as :class:`PathwiseELBO` does.

    Source: Roeder, Wu and Duvenaud 2017, §3.
    """

    def _differentiable_loss_particle(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> tuple[Any, Any]:
        loss, surrogate = super()._differentiable_loss_particle(model_trace, guide_trace)
        for site in _latent_sites(guide_trace):
            if not is_delta(site["fn"]):
                log_q = site["fn"].log_prob(site["value"].detach(), *site["args"], **site["kwargs"])
                surrogate = surrogate - scale_and_mask(log_q, site["scale"], site["mask"]).sum()
        return loss, surrogate


class AnalyticKLELBO(TraceMeanField_ELBO):
    """Estimator B: the mean over draws of log p(x | z), z = g_φ(ε), minus KL(q(z) ‖ p(z)) in closed form.

    It is Pyro's ``TraceMeanField_ELBO`` where every divergence is registered with ``torch.distributions``. Pyro's
    samples the others (A at those sites); here that is an error, so that a name is one estimator. The closed form
    of a site with parents is at the drawn parents, so it holds if the guide's sites depend on each other as the model's
    do, or not at all.

    Raises:
        ModelError: from each step, if a site has no closed-form divergence, no reparameterised draw, other scales in
            model and guide, or is auxiliary (as the sites of an autoguide are).

    Source: [4] (148), (153).
    """

    def _get_trace(self, model: PyroProgram, guide: PyroProgram, args: object, kwargs: object) -> Traces:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        _require_reparameterized(guide_trace, type(self).__name__)
        _require_no_auxiliary(model_trace, guide_trace)
        return model_trace, guide_trace

    def _differentiable_loss_particle(
        self, model_trace: poutine.Trace, guide_trace: poutine.Trace
    ) -> tuple[float, Tensor]:
        elbo = torch.zeros(())
        for name, site in sample_sites(model_trace).items():
            elbo = elbo + (site["log_prob_sum"] if site["is_observed"] else -_kl(guide_trace.nodes[name], site))
        for site in sample_sites(guide_trace).values():
            if site["is_observed"]:  # a factor
                elbo = elbo - site["log_prob_sum"]
        return -elbo.item(), -elbo


class ScoreFunctionELBO(OneLossELBO):
    r"""The score-function estimator (REINFORCE): every draw is a constant, and the gradient is that of log q.

    .. math:: ∇_φ L = E_q[(\log p(x, z) - \log q_φ(z)) ∇_φ \log q_φ(z)],

    also at sites that could be reparameterised. Each site is multiplied with the terms of its own plates only, as in
    Pyro's ``Trace_ELBO``. A ``Delta`` has no density, and stays pathwise. The graphs of all particles are held at
    once.

    Args:
        num_particles: L, the draws of an estimate.
        leave_one_out: subtract from the weight of each draw the mean weight of the others, which keeps the mean and
            most often lowers the variance; it needs two particles or more. (``TraceGraph_ELBO`` has baselines for one.)
        **options: of ``pyro.infer.ELBO``.

    Raises:
        ValueError: if ``leave_one_out`` is asked of fewer than two particles.

    Source: [4] (149); Williams 1992; Kool, van Hoof and Welling 2019 for the baseline.
    """

    def __init__(self, num_particles: int = 1, *, leave_one_out: bool = False, **options: Any) -> None:
        if check_count("num_particles", num_particles) < 2 and leave_one_out:
            raise ArgumentError(
                f"Expected num_particles >= 2 with leave_one_out=True; got {num_particles}. "
                "Write ScoreFunctionELBO(num_particles=10, leave_one_out=True)."
            )
        super().__init__(num_particles=num_particles, **options)
        self.leave_one_out = leave_one_out

    def _get_trace(self, model: PyroProgram, guide: PyroProgram, args: object, kwargs: object) -> Traces:
        return super()._get_trace(model, _DetachedDraws()(guide), args, kwargs)

    def differentiable_loss(self, model: PyroProgram, guide: PyroProgram, *args: Any, **kwargs: Any) -> Tensor:
        """The estimate of -ELBO, a scalar in nats, whose derivative is the estimate of its gradient."""
        traces = list(self._get_traces(model, guide, args, kwargs))
        weights = [_weights(model_trace, guide_trace) for model_trace, guide_trace in traces]
        if self.leave_one_out:
            weights = self._without_baseline(weights)
        loss = torch.zeros(())
        for pair, weight in zip(traces, weights, strict=True):
            value, surrogate = _score_function_terms(pair, weight)
            loss = loss - (value + surrogate - surrogate.detach()) / self.num_particles
        warn_if_nan(loss.detach(), "loss")
        return loss

    def _without_baseline(self, weights: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Each weight minus the mean of the other particles', which is L / (L - 1) times its distance to their mean."""
        factor = self.num_particles / (self.num_particles - 1)
        if self.vectorize_particles:
            dim = -self.max_plate_nesting
            return [{n: factor * (w - w.mean(dim, keepdim=True)) for n, w in weights[0].items()}]
        means = {n: torch.stack([w[n] for w in weights]).mean(0) for n in weights[0]}
        return [{n: factor * (w[n] - means[n]) for n in w} for w in weights]


class _DetachedDraws(Messenger):
    """Draws latent sites as constants; a ``Delta`` keeps its value."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or site_is_subsample(msg) or is_delta(msg["fn"]):
            return
        with torch.no_grad():
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"]).detach()
        msg["done"] = True


def _latent_sites(trace: poutine.Trace) -> list[TraceSite]:
    return [site for site in sample_sites(trace).values() if not site["is_observed"]]


def _require_reparameterized(guide_trace: poutine.Trace, estimator: str) -> None:
    for site in _latent_sites(guide_trace):
        if not site["fn"].has_rsample or not is_identically_zero(site["score_parts"].score_function):
            raise ModelError(
                f"Expected a reparameterised draw at every site of the guide for {estimator}; got "
                f"{type(site['fn']).__name__} at site {site['name']!r}. Use ScoreFunctionELBO, or relax the site."
            )


def _require_no_auxiliary(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    for site in _latent_sites(guide_trace):
        if site["name"] not in model_trace:
            raise ModelError(
                f"Expected only the model's sites in the guide for a closed-form divergence; got {site['name']!r}, "
                "which is auxiliary. Draw each site of the model from its own distribution, or use PathwiseELBO."
            )


def _kl(guide_site: TraceSite, model_site: TraceSite) -> Tensor:
    """KL(q ‖ p) of a site by its closed form, with the site's scale and mask, summed."""
    name = model_site["name"]
    for what in ("scale", "mask"):
        if not _equal(guide_site[what], model_site[what]):
            raise ModelError(
                f"Expected one {what} of site {name!r} in model and guide; got {model_site[what]} and "
                f"{guide_site[what]}. Put plates, poutine.scale and poutine.mask around it in both."
            )
    draw = guide_site["value"] if is_delta(guide_site["fn"]) else None
    found = divergence(guide_site["fn"], model_site["fn"], draw, site=name, instead="PathwiseELBO")
    return scale_and_mask(found, guide_site["scale"], guide_site["mask"]).sum()


def _equal(q: object, p: object) -> bool:
    """Whether two scales or masks, numbers or tensors or none, are the same everywhere."""
    if q is p:
        return True
    return q is not None and p is not None and bool((torch.as_tensor(q) == torch.as_tensor(p)).all())


def _weights(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> dict[str, Tensor]:
    """The weight of each guide site, log p - log q summed over all but its own plates: constants, shaped like those.

    Pyro's own sum leaves out auxiliary sites of the guide; they count.
    """
    terms = MultiFrameTensor()
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for site in sample_sites(trace).values():
            terms.add((site["cond_indep_stack"], sign * site["log_prob"].detach()))
    sites = [site for site in _latent_sites(guide_trace) if not is_delta(site["fn"])]
    return {site["name"]: torch.as_tensor(terms.sum_to(site["cond_indep_stack"])) for site in sites}


def _score_function_terms(traces: Traces, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The ELBO's value, and a scalar whose derivative is the estimate of its gradient.

    That of log q itself, at constant z, has mean zero, and is left out.
    """
    model_trace, guide_trace = traces
    log_joint: Any = sum((site["log_prob_sum"] for site in sample_sites(model_trace).values()), torch.zeros(()))
    value, surrogate = log_joint, log_joint
    for name, site in sample_sites(guide_trace).items():
        value = value - site["log_prob_sum"]
        if name in weights:
            surrogate = surrogate + (weights[name] * site["unscaled_log_prob"]).sum()
        else:
            surrogate = surrogate - site["log_prob_sum"]
    return value.detach(), surrogate
