r"""Predictive distributions that are normal: of data linear in normal latents, as Kalman's forecasts are.

Sites that are not given are normal, with a mean that is linear in latents x which are normal under q and in each other,
and with a known scale. So one that is predicted is

.. math:: y = c + J (x - E x) + K ε, \quad x \sim q, \quad ε \sim N(0, I),

of mean c and covariance :math:`J\, \mathrm{Cov}(x)\, J^T + K K^T`. That it is linear is read off the recording: its log
density is a polynomial of degree two in all of them. J and K are derivatives of the program itself; that y has no part
which torch was told to hold fixed is checked at other x and ε.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..distributions import JointNormal
from ..errors import PyroLatentError
from ..objective import BlockKey, Posteriors, posteriors
from ..particles import innermost, quiet_redraws
from ..recording import Recording, ScoredSite, record
from .new_data import NewData

#: The most numbers that the derivatives of one site may hold.
_MOST = 2**23


def recorded_whole(new: NewData) -> Recording | None:
    """The model with what is not given as latents; None where it cannot be recorded so."""
    args, kwargs = new.arguments
    guide = new.guide
    with contextlib.suppress(PyroLatentError):
        return record(guide.augmented.model, *args, origins=guide.posterior_state.origins, point=guide.point, **kwargs)
    return None


def linear_laws(new: NewData, recording: Recording, held: Mapping[str, Tensor]) -> dict[str, dist.Normal]:
    """The normal distributions of the elements of predicted sites, by site, where they are linear.

    Args:
        new: the new data.
        recording: the model with what is not given as latents.
        held: draws of the latents, whose first stands for those that are not normal.
    """
    if new.summed or (new.local and new.own - new.local - new.points):  # locals are drawn given what is drawn before
        return {}
    factors = _NormalFactors(new)
    linear = _linear_sites(recording, factors.means.keys(), new)
    if not linear:
        return {}
    fixed = {n: v[0] for n, v in held.items()}
    leaves = {name: mean.detach().clone().requires_grad_() for name, mean in factors.means.items()}
    moved = {name: (mean + torch.randn_like(mean)).detach() for name, mean in leaves.items()}
    here, there = _Noisy(fixed | leaves, linear, 0.0), _Noisy(fixed | moved, linear, 1.0)
    with contextlib.suppress(PyroLatentError, RuntimeError), torch.enable_grad(), quiet_redraws():
        values, others = (_values(new, noisy) for noisy in (here, there))
        steps = {n: (t - leaves[n]).detach() for n, t in moved.items()} | there.noise
        found = {n: _law(values[n], others[n], leaves, here.noise, steps, factors) for n in linear if n in values}
        return {name: law for name, law in found.items() if law is not None}
    return {}  # of a program that torch does not differentiate


def _values(new: NewData, noisy: Messenger) -> dict[str, Tensor]:
    """The values of the sites of the program under a handler."""
    nodes: Mapping[str, Any] = new.target.call.with_program(noisy(new.target.call.program)).trace().nodes
    return {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}


@dataclass(init=False)
class _NormalFactors:
    """The latents that are normal under q: their means by site, and the variance of what is linear in them."""

    means: dict[str, Tensor]

    def __init__(self, new: NewData) -> None:
        self._found: Posteriors = posteriors(new.prepared.program, new.prepared.state, with_discrete=False)
        self._joint: dict[str, BlockKey] = {}
        self.means = {}
        for key, block in new.prepared.program.blocks.items():
            is_joint = isinstance(self._found.joints.get(key), JointNormal)
            for site in block.sites if is_joint or len(block.sites) == 1 else ():
                law = self._found[site.name]
                if isinstance(innermost(law), dist.Normal | dist.MultivariateNormal) and not block.is_point:
                    self.means[site.name] = law.mean
                    self._joint |= {site.name: key} if is_joint else {}

    def variance(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """The variances of M numbers with slopes ``[M, n]`` by site, ``[M]``."""
        total = sum((self._own(n, s) for n, s in slopes.items() if n not in self._joint), torch.zeros(()))
        for name, slope in slopes.items():
            for other, beside in slopes.items():
                if name in self._joint and self._joint[name] == self._joint.get(other):
                    joint = self._found.joints[self._joint[name]]
                    covariance = joint.covariance(name, other).reshape(slope.shape[1], beside.shape[1]).double()
                    total = total + (slope @ covariance * beside).sum(1)
        return total

    def _own(self, name: str, slope: Tensor) -> Tensor:
        law = innermost(self._found[name])
        if isinstance(law, dist.Normal):
            return slope.square() @ law.variance.double().expand(self.means[name].shape).reshape(-1)
        covariance = law.covariance_matrix.double()
        by_event = slope.reshape(len(slope), -1, covariance.shape[-1])
        covariance = covariance.reshape(-1, *covariance.shape[-2:])
        return torch.einsum("mbi,bij,mbj->m", by_event, covariance.expand(by_event.shape[1], -1, -1), by_event)


class _Noisy(Messenger):
    """Gives latents their values, and a site that is not given the mean of its density plus its scale times a noise of
    some size, in which it can be differentiated.
    """

    def __init__(self, held: Mapping[str, Tensor], sites: Collection[str], size: float) -> None:
        super().__init__()
        self._held, self._sites, self._size, self.noise = held, sites, size, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"] or not (name in self._held or name in self._sites):
            return
        msg["done"] = True
        msg["value"] = self._held[name] if name in self._held else self._drawn(name, innermost(fn), fn.shape())

    def _drawn(self, name: str, base: Any, shape: torch.Size) -> Tensor:
        noise = self._size * torch.randn(shape, dtype=base.loc.dtype, device=base.loc.device)
        noise = self.noise[name] = noise.requires_grad_()
        if isinstance(base, dist.Normal):
            return base.loc + base.scale * noise
        return base.loc + (base.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


def _linear_sites(recording: Recording, normal: Collection[str], new: NewData) -> list[str]:
    """The sites that are not given, and normal and linear in latents that are normal, in each other and in points."""
    found: set[str] = set()
    for name, scored in recording.scored.items():
        if name not in new.own and not scored.observed and _is_linear(scored, {*normal, *found, name}):
            found.add(name)
    return [name for name in recording.scored if name in found]


def _is_linear(scored: ScoredSite, normal: Collection[str]) -> bool:
    """Whether a density is that of a normal, and of degree two in normal latents and in nothing else but points."""
    density = scored.density
    if density is None or density.opacity or density.pieces or scored.is_bound or scored.error is not None:
        return False
    if scored.distribution not in ("Normal", "MultivariateNormal"):
        return False
    for term in density.terms:
        factors = [f for f in term.factors if not f.variable.is_point]
        plain = all(f.function == "x" and f.variable.site in normal and f.power in (1, 2) for f in factors)
        if term.choices or not plain or sum(f.power for f in factors) > 2:
            return False
    return True


def _law(
    value: Tensor,
    other: Tensor,
    leaves: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    steps: Mapping[str, Tensor],
    factors: _NormalFactors,
) -> dist.Normal | None:
    """The normal distribution of each element; None where the derivatives would be too many numbers, or do not lead to
    the ``other`` value, which is some ``steps`` away.
    """
    inputs = {**leaves, **noise}
    if value.numel() * sum(t.numel() for t in inputs.values()) > _MOST:
        return None
    slopes = dict(_slopes(value.reshape(-1), inputs))
    if not _lead_to(other, value, slopes, steps):
        return None
    variance = factors.variance({n: s for n, s in slopes.items() if n in leaves})
    variance = variance + sum(s.square().sum(1) for n, s in slopes.items() if n in noise)
    return dist.Normal(value.detach().double(), variance.sqrt().reshape(value.shape))


def _lead_to(other: Tensor, value: Tensor, slopes: Mapping[str, Tensor], steps: Mapping[str, Tensor]) -> bool:
    """Whether slopes lead from one value to another, up to rounding."""
    parts = torch.stack([value.reshape(-1).double(), *(s @ steps[n].reshape(-1).double() for n, s in slopes.items())])
    error, size = (parts.sum(0) - other.reshape(-1)).abs(), parts.abs().sum(0) + other.reshape(-1).abs()
    return bool((error <= torch.finfo(value.dtype).eps ** 0.5 * size).all())


def _slopes(flat: Tensor, inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The derivatives of M numbers in each input that they depend on, ``[M, n]``, float64."""
    eye = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    found = torch.autograd.grad(
        flat, list(inputs.values()), eye, is_grads_batched=True, allow_unused=True, retain_graph=True
    )
    for name, slope in zip(inputs, found, strict=True):
        if slope is not None:
            yield name, slope.reshape(len(flat), -1).double()


__all__ = ["linear_laws", "recorded_whole"]
