"""What a guide predicts: draws of data, their moments and intervals, and log predictive densities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import ModelError
from ..particles import Values, seeded
from ..tables import text_table
from .arguments import levels_of
from .closed_forms import closed_forms
from .new_data import Mixed, NewData

#: Below so many draws, or effective ones, an estimate is low, and its error too small.
_FEW = 10


class Prediction(Mapping[str, Tensor]):
    """What a guide predicts for new data: a mapping from site to draws, ``[S] + shape``.

    Its sites are those of data, given or not, what the model computes by ``pyro.deterministic``, and latents that the
    fit did not have, as those of later steps.

    Attributes:
        latents: by latent site of the model the draw that goes with each, ``[S] + shape``.
        distributions: by site the predictive distribution of each element, in closed form, where there is one.
    """

    def __init__(self, samples: Values, latents: Values, distributions: Mapping[str, Any]) -> None:
        self._samples, self.latents, self.distributions = samples, latents, dict(distributions)

    def __getitem__(self, site: str) -> Tensor:
        return self._samples[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def mean(self) -> dict[str, Tensor]:
        """The predictive mean by site, of its shape: exact where there is a closed form, else that of the draws."""
        return {n: self._moments(n)[0] for n in self}

    @property
    def sd(self) -> dict[str, Tensor]:
        """The predictive standard deviation by site: exact where there is a closed form, else that of the draws.

        Raises:
            ModelError: if there is one draw, and a site without a closed form: its spread is not known.
        """
        unknown = [n for n, draws in self.items() if len(draws) < 2 and n not in self.distributions]
        if unknown:
            raise ModelError(
                f"Expected two draws or more for the standard deviation of {unknown}, without a closed form; got 1. "
                "Write num_samples=1000 in guide.predict, or take the sd of the distributions that there are."
            )
        return {n: self._moments(n)[1] for n in self}

    def _moments(self, name: str) -> tuple[Tensor, Tensor]:
        law, draws = self.distributions.get(name), self[name]
        if law is None:
            return _real(draws).mean(0), _real(draws).std(0, correction=min(1, len(draws) - 1))
        if isinstance(law, dist.Categorical):
            values = torch.arange(law.probs.shape[-1]).to(law.probs)
            mean = (law.probs * values).sum(-1)
            return mean, (law.probs * (values - mean.unsqueeze(-1)).square()).sum(-1).sqrt()
        return law.mean, law.variance.sqrt()

    def quantiles(self, quantiles: Sequence[float]) -> dict[str, Tensor]:
        """The elementwise quantiles of the draws by site; the first dimension runs along ``quantiles``, in (0, 1)."""
        levels = levels_of(quantiles)
        return {n: torch.stack([_quantile(_real(v), q) for q in levels]) for n, v in self.items()}

    def __str__(self) -> str:
        rows = [["site", "shape", "draws", "closed form"]]
        rows += [[n, str(list(v.shape[1:])), str(len(v)), _name(self.distributions.get(n))] for n, v in self.items()]
        return text_table(rows)

    __repr__ = __str__


class LogPredictive(NamedTuple):
    """The log density of new data given the data of the fit, in nats.

    ``value``: float64, a scalar or one number for each element of a plate. ``error``: its standard error, of the same
    shape; 0 where it is exact. ``is_exact``: whether it is, under q.
    """

    value: Tensor
    error: Tensor
    is_exact: bool

    def __str__(self) -> str:
        if self.value.ndim:
            kind = "exact" if self.is_exact else f"standard errors up to {float(self.error.max()):.2g}"
            return f"log predictive densities of {list(self.value.shape)} elements, {kind}"
        return f"{float(self.value):.6f} nats" + (", exact" if self.is_exact else f" ± {float(self.error):.2g}")


def predict(make: Callable[[], NewData], num: int, seed: int) -> Prediction:
    """Draws of what a model predicts at the arguments of new data, which are looked at when they are asked for."""
    with seeded(seed):
        new = make()
        held = new.held(new.draws(num))
        samples = new.predicted(held, num)

        def spread() -> Values:
            """Draws that have a spread, at which a closed form is looked for."""
            return samples if num >= _FEW else new.predicted(new.held(new.draws(_FEW)), _FEW)

        return Prediction(samples, held, closed_forms(new, held, samples, spread))


def log_predictive(make: Callable[[], NewData], pointwise: bool, num: int, seed: int) -> LogPredictive:
    """The log density of new data, of each element of its plates alone or of all of it together."""
    with seeded(seed):
        new = make()
        exact = new.exact(pointwise)
        if exact is not None:
            return LogPredictive(exact, torch.zeros_like(exact), True)
        plates = new.common_plates() if pointwise else {}
        kept = [name for name, size in plates.items() if size > 1]
        draws = new.draws(1 if new.is_certain else num)
        held = new.held(draws)
        count = len(next(iter(held.values()))) if held else 1
        weights = new.log_density(held, count, kept) - new.log_proposal(draws, kept)
    found = Mixed.of(weights)
    if not new.is_certain and bool((found.effective < min(_FEW, num / 2)).any()):
        warnings.warn(
            f"Expected many of the {num} draws to carry a log predictive density; got an effective number of "
            f"{float(found.effective.min()):.1f}: the value is low, and its standard error too small. Write "
            "pointwise=True for the density of each element alone, or a larger num_samples.",
            stacklevel=4,
        )
    shape = tuple(plates.values())
    return LogPredictive(found.value.reshape(shape), found.error.reshape(shape), new.is_certain)


def _real(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.double()


def _quantile(draws: Tensor, level: float) -> Tensor:
    """The quantile of draws ``[S] + shape``, of any number of elements."""
    ordered = draws.sort(0).values
    place = level * (len(ordered) - 1)
    low = ordered[math.floor(place)]
    return low + (ordered[math.ceil(place)] - low) * (place - math.floor(place))


def _name(distribution: Any) -> str:
    return "" if distribution is None else type(distribution).__name__


__all__ = ["LogPredictive", "Prediction", "log_predictive", "predict"]
