"""A hidden Markov model as one site: its states become sites, and the data of each step a site of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ..errors import DataError
from ..rules import RandomDistribution, at_step, raw_arguments
from .base import ConjugateReparam, Site
from .mixture import component_of, taken


class DiscreteHMMReparam(ConjugateReparam):
    """x ~ DiscreteHMM(π, A, p) is x_t ~ p_{z_t} with z_t ~ A_{z_{t−1}}, and z ~ π a step before the first datum.

    The data of step t is the observed site ``name_t``. Where nothing in it is latent, the site stays as it is.
    """

    densities = (dist.DiscreteHMM,)
    suffixes = ("state_before", "state_0", "state_1, …")
    condition = ", with data"
    form = "the data of each step given its state, with a Categorical site for each state"
    source = "Rabiner (1989)"

    def applies(self, site: Site) -> bool:
        return not site.is_latent and isinstance(site.fn, RandomDistribution)

    def names(self, site: Site) -> list[str]:
        return [f"{site.name}_state_{t}" for t in ("before", *range(duration(site)))]

    def augment(self, site: Site) -> Any:
        given, value = raw_arguments(site.fn), site.value
        assert value is not None
        state = self._state(site, "before", given["initial_logits"])
        for t in range(duration(site)):
            rows = at_step(t, given["transition_logits"], 2)
            state = self._state(site, str(t), taken(rows, state, 1, site.name))
            step = component_of(given["observation_dist"], state, site.name, partial(at_step, t))
            data = value.select(value.ndim - len(site.fn.event_shape), t)
            pyro.sample(f"{site.name}_{t}", site.wrapped(step.expand(site.fn.batch_shape)), obs=data)
        return dist.Delta(value, event_dim=len(site.fn.event_shape)).mask(False)

    def _state(self, site: Site, step: str, logits: Tensor) -> Tensor:
        return site.auxiliary(f"state_{step}", dist.Categorical(logits=logits).expand(site.fn.batch_shape))


def duration(site: Site) -> int:
    """The number of steps of the data of a chain.

    Raises:
        DataError: if the chain has another one.
    """
    assert site.value is not None
    event = site.fn.event_shape
    steps = site.value.shape[site.value.ndim - len(event)]
    if event[0] not in (1, steps):  # one step stands for any number
        raise DataError(
            f"Expected data at site {site.name!r} of {event[0]} steps, as its chain has; got {steps}. Write "
            f"duration={steps}, and matrices and noises of as many steps."
        )
    return steps
