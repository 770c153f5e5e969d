"""A linear chain of Gaussian or other noises as one site: its states become sites, which share one factor."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from ..errors import NotConjugateError
from ..rules import RandomDistribution, at_step, family_class, in_form, parts_of, raw_arguments, through
from .base import ConjugateReparam, Site
from .hidden_markov import duration

#: Noises that lie where their ``loc`` says; of data that are exponentials, their logarithm does.
_MOVED = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal, dist.StudentT, dist.Laplace)
_OF_DATA = (*_MOVED, dist.LogNormal)


class LinearHMMReparam(ConjugateReparam):
    """x ~ LinearHMM(p, A, q, C, r) is z_t ~ q moved by z_{t−1} A and x_t ~ r moved by z_t C, with z ~ p a step before
    the first datum.

    The data of step t is the observed site ``name_t``. The states are one factor of q, unless blocks name them.
    """

    densities = (dist.LinearHMM,)
    suffixes = ("state_before", "state_0", "state_1, …")
    condition = " of latent arguments or of Student-t or Laplace noises, with data"
    form = "the data of each step given its state, and the states as one joint normal factor"
    source = "Durbin and Koopman (2012), §3.1"

    def applies(self, site: Site) -> bool:
        return not site.is_latent and not _is_known(site.fn)

    def names(self, site: Site) -> list[str]:
        return [f"{site.name}_state_{t}" for t in ("before", *range(duration(site)))]

    def augment(self, site: Site) -> Any:
        chain, value = raw_arguments(site.fn), site.value
        assert value is not None
        place = value.ndim - len(site.fn.event_shape)
        state = self._state(site, "before", chain["initial_dist"])
        for t in range(duration(site)):
            moved = through(state, at_step(t, chain["transition_matrix"], 2))
            state = self._state(site, str(t), _moved(chain["transition_dist"], t, moved, _MOVED, site.name))
            seen = through(state, at_step(t, chain["observation_matrix"], 2))
            data = _moved(chain["observation_dist"], t, seen, _OF_DATA, site.name)
            if transforms := getattr(site.fn, "transforms", []):
                data = dist.TransformedDistribution(data, transforms)
            data = site.wrapped(data.expand(site.fn.batch_shape))
            pyro.sample(f"{site.name}_{t}", data, obs=value.select(place, t))
        return dist.Delta(value, event_dim=len(site.fn.event_shape)).mask(False)

    def _state(self, site: Site, step: str, fn: Any) -> Tensor:
        return site.auxiliary(f"state_{step}", fn.expand(site.fn.batch_shape), block="state")


class GaussianHMMReparam(LinearHMMReparam):
    """x ~ GaussianHMM(p, A, q, C, r) is as :class:`LinearHMMReparam` has it; of plain arguments it stays as it is."""

    densities = (dist.GaussianHMM,)
    condition = " of latent arguments, with data"


def _is_known(chain: object) -> bool:
    """Whether a chain has a density without its states: its noises are normal, and nothing in it is random."""
    found = in_form(chain, family_class(chain))
    return not isinstance(found, RandomDistribution | dist.LinearHMM)


def _moved(noise: object, t: int, shift: Tensor, known: tuple[type, ...], name: str) -> Any:
    """The noise of a step, ``batch + [steps] + event``, about another location.

    Raises:
        NotConjugateError: if its class is not one of those that are known to have an argument for it.
    """
    family, arguments, events = parts_of(noise)
    if not issubclass(family, known):
        raise NotConjugateError(
            f"Expected noises of the chain {name!r} among {', '.join(f.__name__ for f in known)}; got "
            f"{family.__name__}. Write its states as sites in a loop."
        )
    given = {n: at_step(t, v, own) if isinstance(v, Tensor) else v for n, (v, own) in arguments.items()}
    found = family(**given | {"loc": given["loc"] + shift})
    return found.to_event(events) if events else found
