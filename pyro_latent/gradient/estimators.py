"""How much estimators of the ELBO's gradient vary: mean and variance of each, at the present parameters.

The estimators themselves are Pyro ELBOs of :mod:`.elbos`, and are exported from here too.

Source: ``docs/sources.md``, [4] (149)-(154).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.ops.welford import WelfordCovariance
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, MissingNameError, ModelError, check_count, checked_call
from ..particles import no_params_of_failures
from ..signatures import Model
from ..tables import text_table
from .elbos import AnalyticKLELBO, PathwiseELBO, ScoreFunctionELBO, StickingTheLandingELBO

__all__ = [
    "AnalyticKLELBO",
    "EstimatorReport",
    "EstimatorStatistics",
    "PathwiseELBO",
    "ScoreFunctionELBO",
    "StickingTheLandingELBO",
    "estimator_variance",
]


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
        raise MissingNameError(f"Expected one of {[s.name for s in self.estimators]}; got {name!r}. {advice}")

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


@checked_call
@no_params_of_failures()
def estimator_variance(
    model: Model,
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
    chosen = _default() if estimators is None else estimators
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


def _default() -> dict[str, Trace_ELBO]:
    return {
        "pathwise (A)": PathwiseELBO(),
        "closed-form KL (B)": AnalyticKLELBO(),
        "score function": ScoreFunctionELBO(),
    }


def _check_estimators(estimators: object) -> None:
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
    """Means and variances by Welford's recursion, in float64: no cancellation where the mean is large."""
    of_loss = WelfordCovariance()
    of_gradient: dict[str, WelfordCovariance] = {}
    for _ in range(num_samples):
        value, gradients = _estimate(loss)
        of_loss.update(value.double())
        for param, gradient in gradients.items():
            of_gradient.setdefault(param, WelfordCovariance()).update(gradient.double())
    return EstimatorStatistics(
        name,
        num_samples,
        float(of_loss._mean),
        float(of_loss.get_covariance(regularize=False)),
        {param: torch.as_tensor(found._mean) for param, found in of_gradient.items()},
        {param: found.get_covariance(regularize=False) for param, found in of_gradient.items()},
    )
