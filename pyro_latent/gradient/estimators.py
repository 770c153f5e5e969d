r"""Estimators of the ELBO's gradient, by name, and how much they vary.

All are Pyro ELBOs, for ``SVI`` as they are, and L draws of each are ``num_particles=L``. They have one mean, the ELBO

.. math:: L(θ, φ) = E_q[\log p_θ(x, z) - \log q_φ(z)],

and differ in how a draw of z depends on φ and in which terms are summed exactly:

- :class:`PathwiseELBO`, the notes' estimator A: z = g_φ(ε), both logarithms at the draw;
- :class:`AnalyticKLELBO`, their estimator B: the same draws, but KL(q ‖ p(z)) in closed form;
- :class:`StickingTheLandingELBO`: A without the gradient of log q at fixed z, whose mean is zero;
- :class:`ScoreFunctionELBO`: z is a constant, and log q carries the gradient. It needs no g, so it also serves
  discrete z.

Source: ``docs/sources.md``, [4] (149)-(154); Kingma and Welling 2014; Roeder, Wu and Duvenaud 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
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
from torch.distributions import kl_divergence

from ..errors import ArgumentError, ArgumentTypeError, ModelError, check_count
from ..particles import is_delta
from ..tables import text_table

__all__ = [
    "AnalyticKLELBO",
    "EstimatorReport",
    "EstimatorStatistics",
    "PathwiseELBO",
    "ScoreFunctionELBO",
    "StickingTheLandingELBO",
    "estimator_variance",
]

Site = dict[str, Any]


class PathwiseELBO(Trace_ELBO):
    """Estimator A: mean over draws of log p(x, z) - log q(z), z = g_φ(ε).

    It is Pyro's ``Trace_ELBO`` where every site of the guide is reparameterised. ``Trace_ELBO`` takes the score
    function at any other; here that is an error, so that a name is one estimator. Its value (not its gradient) does not
    vary at all where q is the exact posterior: log p(x, z) - log q(z) is then log p(x) at every z.

    Raises:
        ModelError: from each step, if a site of the guide has no reparameterised draw.

    Source: [4] (150)-(152).
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
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

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
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

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        _require_reparameterized(guide_trace, type(self).__name__)
        _require_no_auxiliary(model_trace, guide_trace)
        return model_trace, guide_trace

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[float, Tensor]:
        elbo = torch.zeros(())
        for name, site in _sample_sites(model_trace):
            elbo = elbo + (site["log_prob_sum"] if site["is_observed"] else -_kl(guide_trace.nodes[name], site))
        for _, site in _sample_sites(guide_trace):
            if site["is_observed"]:  # a factor
                elbo = elbo - site["log_prob_sum"]
        return -elbo.item(), -elbo


class ScoreFunctionELBO(Trace_ELBO):
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
        if leave_one_out and num_particles < 2:
            raise ArgumentError(
                f"Expected num_particles >= 2 with leave_one_out=True; got {num_particles}. "
                "Write ScoreFunctionELBO(num_particles=10, leave_one_out=True)."
            )
        super().__init__(num_particles=num_particles, **options)
        self.leave_one_out = leave_one_out

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return super()._get_trace(model, _DetachedDraws()(guide), args, kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
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

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The estimate of -ELBO in nats; its gradient is added to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.item())

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


def _sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


def _latent_sites(trace: Any) -> Iterator[Site]:
    return (site for _, site in _sample_sites(trace) if not site["is_observed"])


def _require_reparameterized(guide_trace: Any, estimator: str) -> None:
    for site in _latent_sites(guide_trace):
        if not site["fn"].has_rsample or not is_identically_zero(site["score_parts"].score_function):
            raise ModelError(
                f"Expected a reparameterised draw at every site of the guide for {estimator}; got "
                f"{type(site['fn']).__name__} at site {site['name']!r}. Use ScoreFunctionELBO, or relax the site."
            )


def _require_no_auxiliary(model_trace: Any, guide_trace: Any) -> None:
    for site in _latent_sites(guide_trace):
        if site["name"] not in model_trace:
            raise ModelError(
                f"Expected only the model's sites in the guide for a closed-form divergence; got {site['name']!r}, "
                "which is auxiliary. Draw each site of the model from its own distribution, or use PathwiseELBO."
            )


def _kl(guide_site: Site, model_site: Site) -> Tensor:
    """KL(q ‖ p) of a site by its closed form, with the site's scale and mask, summed."""
    name, q, p = model_site["name"], guide_site["fn"], model_site["fn"]
    for what in ("scale", "mask"):
        if not _equal(guide_site[what], model_site[what]):
            raise ModelError(
                f"Expected one {what} of site {name!r} in model and guide; got {model_site[what]} and "
                f"{guide_site[what]}. Put plates, poutine.scale and poutine.mask around it in both."
            )
    if is_delta(guide_site["fn"]):
        divergence = guide_site["unscaled_log_prob"] - model_site["unscaled_log_prob"]
    else:
        divergence = _closed_form(name, q, p)
    return scale_and_mask(divergence, guide_site["scale"], guide_site["mask"]).sum()


def _equal(q: Any, p: Any) -> bool:
    """Whether two scales or masks, numbers or tensors or none, are the same everywhere."""
    if q is p:
        return True
    return q is not None and p is not None and bool((torch.as_tensor(q) == torch.as_tensor(p)).all())


def _closed_form(name: str, q: Any, p: Any) -> Tensor:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        raise ModelError(
            f"Expected a closed-form KL divergence at every site; got none from {_family(q)} to {_family(p)} at site "
            f"{name!r}. Register one with torch.distributions.register_kl, or use PathwiseELBO."
        ) from None


def _family(fn: Any) -> str:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__


def _weights(model_trace: Any, guide_trace: Any) -> dict[str, Tensor]:
    """By guide site, log p - log q summed over all but the site's own plates: constants, shaped like those plates.

    Pyro's own sum leaves out auxiliary sites of the guide; they count.
    """
    terms = MultiFrameTensor()
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for _, site in _sample_sites(trace):
            terms.add((site["cond_indep_stack"], sign * site["log_prob"].detach()))
    sites = [site for site in _latent_sites(guide_trace) if not is_delta(site["fn"])]
    return {site["name"]: torch.as_tensor(terms.sum_to(site["cond_indep_stack"])) for site in sites}


def _score_function_terms(traces: tuple[Any, Any], weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The ELBO's value, and a scalar whose derivative is the estimate of its gradient.

    That of log q itself, at constant z, has mean zero, and is left out.
    """
    model_trace, guide_trace = traces
    log_joint: Any = sum((site["log_prob_sum"] for _, site in _sample_sites(model_trace)), torch.zeros(()))
    value, surrogate = log_joint, log_joint
    for name, site in _sample_sites(guide_trace):
        value = value - site["log_prob_sum"]
        if name in weights:
            surrogate = surrogate + (weights[name] * site["unscaled_log_prob"]).sum()
        else:
            surrogate = surrogate - site["log_prob_sum"]
    return value.detach(), surrogate


# ----------------------------------------------------------------------------------------------------------- variance


@dataclass(frozen=True)
class EstimatorStatistics:
    """Sample statistics of one estimator's draws, all float64.

    Attributes:
        name: the estimator's.
        num_samples: S, the number of estimates.
        loss_mean, loss_variance: of the estimate of -ELBO, in nats and nats squared.
        gradient_mean, gradient_variance: of the gradient of the loss, by parameter and element, in the unconstrained
            coordinates, which are what an optimizer steps in.
    """

    name: str
    num_samples: int
    loss_mean: float
    loss_variance: float
    gradient_mean: dict[str, Tensor]
    gradient_variance: dict[str, Tensor]

    @property
    def total_variance(self) -> float:
        """The trace of the gradient's covariance, over all parameters."""
        return sum(float(variance.sum()) for variance in self.gradient_variance.values())


@dataclass(frozen=True)
class EstimatorReport:
    """What :func:`estimator_variance` measured; it prints as a table, and is indexed by the estimators' names.

    Attributes:
        estimators: the statistics of each.
        left_out: of the default estimators, those that do not fit the guide, and why.
    """

    estimators: tuple[EstimatorStatistics, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> EstimatorStatistics:
        for statistics in self.estimators:
            if statistics.name == name:
                return statistics
        advice = f"It is left out: {self.left_out[name]}" if name in self.left_out else "Name one of these."
        raise KeyError(f"Expected one of {[s.name for s in self.estimators]}; got {name!r}. {advice}")

    def __str__(self) -> str:
        """Variances: a row for the loss, for each parameter (summed over its elements), and for all parameters."""
        first = self.estimators[0]
        rows = [["variance of", *(s.name for s in self.estimators)]]
        rows.append(["loss", *(f"{s.loss_variance:.4g}" for s in self.estimators)])
        for name in first.gradient_variance:
            sums = (float(s.gradient_variance[name].sum()) for s in self.estimators)
            rows.append([f"gradient, {name}", *(f"{total:.4g}" for total in sums)])
        rows.append(["gradient, all", *(f"{s.total_variance:.4g}" for s in self.estimators)])
        left_out = [f"{name} is left out: {why}" for name, why in self.left_out.items()]
        return "\n".join([text_table(rows), f"({first.num_samples:,} estimates each)", *left_out])


def estimator_variance(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    estimators: Mapping[str, Any] | None = None,
    num_samples: int = 1000,
    **kwargs: Any,
) -> EstimatorReport:
    """Mean and variance of estimators of the ELBO and of its gradient, at the present parameters.

    Parameters and their ``.grad`` stay as they are. Draws come from torch's random state; each costs what a step of
    ``SVI`` costs. With ``pyro.plate(..., subsample_size=M)`` the choice of the minibatch is part of what varies.

    Args:
        model: any Pyro model; the other arguments are its own.
        guide: its guide, with parameters in either.
        estimators: by name, Pyro ELBOs with a ``differentiable_loss``; default those of A, B and the score function
            that fit the guide.
        num_samples: S, the number of estimates, at least 2.

    Raises:
        ValueError: if ``num_samples`` is no integer of at least 2, or there is no estimator.
        TypeError: if an estimator is no ELBO that can be differentiated.
        ModelError: if there is no parameter to differentiate by, or an estimator that was named does not fit the guide.

    Source: [4] (149), (152), (153), whose variances §3.1 and §3.2 compare in words.
    """
    chosen = _default_estimators() if estimators is None else estimators
    num_samples = check_count("num_samples", num_samples, 2)
    _check_estimators(chosen)
    found: list[EstimatorStatistics] = []
    misfits: dict[str, ModelError] = {}
    for name, elbo in chosen.items():
        loss = partial(elbo.differentiable_loss, model, guide, *args, **kwargs)
        try:
            found.append(_statistics(name, loss, num_samples))
        except ModelError as error:
            if estimators is not None:
                raise
            misfits[name] = error
    if not found:
        raise next(iter(misfits.values()))
    return EstimatorReport(tuple(found), {name: str(error) for name, error in misfits.items()})


def _default_estimators() -> dict[str, Any]:
    return {
        "pathwise (A)": PathwiseELBO(),
        "closed-form KL (B)": AnalyticKLELBO(),
        "score function": ScoreFunctionELBO(),
    }


def _check_estimators(estimators: Any) -> None:
    if not isinstance(estimators, Mapping):
        raise ArgumentTypeError(
            f"Expected estimators by name, in a dict; got {type(estimators).__name__}. Write {{'A': PathwiseELBO()}}."
        )
    if not estimators:
        raise ArgumentError("Expected at least one estimator; got none. Write {'A': PathwiseELBO()}, or leave it out.")
    for name, elbo in estimators.items():
        if isinstance(elbo, type):
            raise ArgumentTypeError(f"Expected a Pyro ELBO as {name!r}; got a class. Write {elbo.__name__}().")
        if not hasattr(elbo, "differentiable_loss"):
            raise ArgumentTypeError(
                f"Expected a Pyro ELBO with a differentiable_loss; got {elbo!r} as {name!r}. Write PathwiseELBO(), "
                "AnalyticKLELBO(), StickingTheLandingELBO() or ScoreFunctionELBO()."
            )


def _estimate(loss: Callable[[], Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """One estimate of the loss, and by parameter its gradient: zero where the loss does not depend on it."""
    with poutine.trace(param_only=True) as capture:
        value = loss()
    nodes: Mapping[str, Any] = capture.trace.nodes
    params = {name: site["value"].unconstrained() for name, site in nodes.items()}
    params = {name: param for name, param in params.items() if param.requires_grad}
    if not params or not getattr(value, "requires_grad", False):
        raise ModelError(
            "Expected a loss that depends on a parameter; got none. Give the guide or the model a pyro.param."
        )
    gradients = torch.autograd.grad(value, list(params.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(params, gradients, strict=True))


def _statistics(name: str, loss: Callable[[], Any], num_samples: int) -> EstimatorStatistics:
    moments: dict[str | None, _RunningMoments] = {}
    for _ in range(num_samples):
        value_of_loss, gradients = _estimate(loss)
        for key, value in [(None, value_of_loss), *gradients.items()]:
            moments.setdefault(key, _RunningMoments()).add(value)
    loss_moments = moments.pop(None)
    return EstimatorStatistics(
        name,
        num_samples,
        float(loss_moments.mean),
        float(loss_moments.variance),
        {str(n): m.mean for n, m in moments.items()},
        {str(n): m.variance for n, m in moments.items()},
    )


class _RunningMoments:
    """Welford's mean and variance of tensors, in float64: no cancellation where the mean is large."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, value: Tensor) -> None:
        value = value.double()
        self.count += 1
        if self.count == 1:
            self.mean, self._squares = value.clone(), torch.zeros_like(value)
            return
        distance = value - self.mean
        self.mean = self.mean + distance / self.count
        self._squares = self._squares + distance * (value - self.mean)

    @property
    def variance(self) -> Tensor:
        """With divisor S - 1."""
        return self._squares / (self.count - 1)
