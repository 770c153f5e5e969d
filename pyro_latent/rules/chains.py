"""Linear chains as one site: their density where at most one scalar is random in them, with the states integrated out.

A chain is given by matrices and by distributions of noises. For its density it is one of a class whose arguments are
those of the noises too, so that a function of one latent, of points or of discrete latents is found as for any other
distribution. Where more is random its states have to be sites; see :mod:`pyro_latent.reparam.linear_chain`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.hmm import HiddenMarkovModel
from torch import Tensor

from ..expressions import RandomTensor
from .arguments import raw_arguments
from .base import FORMS
from .random_distribution import family_class, random_distribution
from .wrappers import made

#: Arguments of which a constructor takes one.
_ONE_OF = (("probs", "logits"), ("precision_matrix", "covariance_matrix", "scale_tril"))
#: The dimensions of a step and of an event at the end of an argument that is a tensor, and those of an initial one.
_MATRIX, _STEPS, _BEFORE = 3, 1, 0
_NORMAL = (dist.Normal, dist.MultivariateNormal)


def parts_of(distribution: object) -> tuple[Any, dict[str, tuple[Any, int]], int]:
    """The class of a distribution without ``.to_event``, its arguments by name with the number of dimensions at the end
    of each that are of an event, and how many batch dimensions are.
    """
    base, events = distribution, 0
    while isinstance(base, torch.distributions.Independent):
        events += base.reinterpreted_batch_ndims
        base = base.base_dist
    limits = family_class(base).arg_constraints  # type: ignore[attr-defined]
    given = raw_arguments(base)
    for names in _ONE_OF:  # a plain distribution may have computed others
        given = {n: v for n, v in given.items() if n not in [m for m in given if m in names][1:]}
    own = {n: (v, events + getattr(limits.get(n), "event_dim", 0)) for n, v in given.items()}
    return family_class(base), own, events


class _Noise(NamedTuple):
    """A noise but for its values: its class, how many batch dimensions are events, and by argument its dimensions."""

    name: str
    family: Any
    events: int
    arguments: tuple[tuple[str, int], ...]

    def moments(self, given: dict[str, Any], size: int) -> tuple[Tensor, Tensor]:
        """The mean and the covariance, of so many dimensions, over a batch."""
        noise = made(self.family, {n: given[f"{self.name}.{n}"] for n, _ in self.arguments})
        if self.family is not dist.Normal:
            return noise.mean, noise.covariance_matrix
        wide = noise.expand((*noise.batch_shape[:-1], size))
        return wide.mean, wide.variance.diag_embed()


class _Chain(HiddenMarkovModel):
    """A chain by its matrices and the arguments of its noises, such as ``transition_dist.scale``.

    Its density is that of a Kalman filter in covariances, which are good where a noise is tiny, as the precisions of
    Pyro's are not.
    """

    noises: ClassVar[tuple[_Noise, ...]]

    def __init__(self, duration: int | None = None, validate_args: bool | None = None, **given: Any) -> None:
        self._transition, self._observation = given["transition_matrix"], given["observation_matrix"]
        n, d = self._observation.shape[-2:]
        self._moments = {x.name: x.moments(given, d if x.name == "observation_dist" else n) for x in self.noises}
        super().__init__(duration, torch.Size(), torch.Size([1, 1]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log densities of data ``batch + [T, D]``, by the recursions of Durbin and Koopman (2012), §4.3."""
        loc, covariance = self._moments["initial_dist"]
        density: Any = 0.0
        for t in range(value.shape[-2]):
            a, c = at_step(t, self._transition, 2), at_step(t, self._observation, 2)
            (shift, q), (offset, r) = (_of_step(self._moments[n], t) for n in ("transition_dist", "observation_dist"))
            loc, covariance = through(loc, a) + shift, a.mT @ covariance @ a + q
            error, cross = value[..., t, :] - through(loc, c) - offset, covariance @ c
            factor = torch.linalg.cholesky_ex(c.mT @ cross + r).L
            root = torch.linalg.solve_triangular(factor, error.unsqueeze(-1), upper=False).squeeze(-1)
            log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            density = density - 0.5 * (root.square() + math.log(2 * math.pi)).sum(-1) - log_det
            gain = torch.cholesky_solve(cross.mT, factor)  # transposed, [D, n]
            loc, kept = loc + through(error, gain), torch.eye(a.shape[-1]).to(a) - c @ gain
            covariance = kept.mT @ covariance @ kept + gain.mT @ r @ gain
        return density


def through(vector: Tensor, matrix: Tensor) -> Tensor:
    """A vector times a matrix from the right, ``batch + [n]`` and ``batch + [n, m]``."""
    return (vector.unsqueeze(-2) @ matrix).squeeze(-2)


def at_step(t: int, value: Tensor, own: int) -> Tensor:
    """The argument at a step, of one that may run along the steps in the dimension before its ``own`` last ones."""
    if value.ndim <= own:
        return value
    place = value.ndim - own - 1
    return value.select(place, t if value.shape[place] > 1 else 0)


def _of_step(moments: tuple[Tensor, Tensor], t: int) -> tuple[Tensor, Tensor]:
    """A mean and a covariance at a step."""
    return at_step(t, moments[0], 1), at_step(t, moments[1], 2)


@functools.cache
def _class_of(chain: Any, noises: tuple[_Noise, ...]) -> Any:
    """The class of chains with these noises, under the name of Pyro's."""
    sizes = {f"{noise.name}.{n}": k for noise in noises for n, k in noise.arguments}
    own = {name: constraints.independent(constraints.real, k) for name, k in sizes.items()}
    matrix = constraints.independent(constraints.real, _MATRIX)
    limits: dict[str, Any] = own | {"transition_matrix": matrix, "observation_matrix": matrix}
    return type(chain.__name__, (_Chain,), {"noises": noises, "arg_constraints": limits, "__module__": __name__})


def in_parts(chain: Any) -> Any:
    """A chain for its density: plain where nothing in it is random, else with the arguments of its noises as its own;
    as it is where some noise is not normal.
    """
    given = raw_arguments(chain)
    if "initial_dist" not in given:
        return chain  # a plain GaussianHMM keeps none of them, and has its density
    noises: list[_Noise] = []
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if not hasattr(value, "log_prob"):
            flat[name] = _wide(value, _MATRIX) if name.endswith("_matrix") else value
            continue
        family, arguments, events = parts_of(value)
        if family not in _NORMAL:
            return chain
        steps = _BEFORE if name == "initial_dist" else _STEPS
        own = tuple((n, k + steps) for n, (_, k) in arguments.items())
        noises.append(_Noise(name, family, events, own))
        flat |= {f"{name}.{n}": _wide(arguments[n][0], k) for n, k in own}
    moved = getattr(chain, "transforms", [])
    if any(isinstance(value, RandomTensor) for value in flat.values()):
        kind, placeholder = _class_of(family_class(chain), tuple(noises)), getattr(chain, "placeholder", chain)
        return chain if moved else random_distribution(kind, flat, placeholder, chain.batch_shape)
    plain = dist.GaussianHMM(**given, validate_args=False).expand(chain.batch_shape)
    return dist.TransformedDistribution(plain, moved) if moved else plain


def _wide(value: Any, dims: int) -> Any:
    """A tensor with so many dimensions at least."""
    is_narrow = isinstance(value, Tensor) and value.ndim < dims
    return value.reshape((1,) * (dims - value.ndim) + tuple(value.shape)) if is_narrow else value


FORMS |= dict.fromkeys((dist.GaussianHMM, dist.LinearHMM), in_parts)
