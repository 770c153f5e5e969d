"""Predictive distributions in closed form: read off exact log predictive densities at a few values of the data.

The density of a value is a ratio of normalizers (:mod:`pyro_latent.objective.predictive`). Of data that is normal given
the globals it is Student's t with 2a degrees of freedom, where the precision is a Gamma(a, b) of the same block, or
normal where the precision is known; location and scale follow from three values, and two others must agree. Of counts
with a Gamma rate it is a Gamma-Poisson, and of data with finitely many values the probability of each. Where each
datum has a label, these are read for each of its values, and the law is their mixture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ..errors import PyroLatentError
from ..objective import Program, blocks_read, compile_program, exact_log_predictive, padded
from ..particles import innermost, is_latent
from ..recording import Recording, record
from .linear_laws import linear_laws, recorded_whole
from .new_data import NewData

#: Where densities are read, in standard deviations from the mean: the first three for the parameters, all to check.
_PLACES = (-1.0, 0.0, 1.0, 2.5, -1.7)
#: Of counts, as they are.
_COUNTS = (0.0, 1.0, 2.0, 5.0, 9.0)
_AGREEMENT = 1e-6
#: Read at draws whose spread is known.
_NORMAL = (dist.Normal, dist.MultivariateNormal)
#: The parameters of what a law is made of, in the order of its constructor, with the dimensions of their events.
_PARAMETERS: dict[Any, dict[str, int]] = {
    dist.Normal: {"loc": 0, "scale": 0},
    dist.StudentT: {"df": 0, "loc": 0, "scale": 0},
    dist.GammaPoisson: {"concentration": 0, "rate": 0},
    dist.MultivariateNormal: {"loc": 1, "covariance_matrix": 2},
    dist.MultivariateStudentT: {"df": 0, "loc": 1, "scale_tril": 2},
}
#: The longest vector whose density is read: its places are some D² / 2.
_LONGEST = 8


def closed_forms(
    new: NewData,
    held: Mapping[str, Tensor],
    samples: Mapping[str, Tensor],
    spread: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Any]:
    """The predictive distributions that have a closed form, by site whose data is not given.

    Args:
        new: the new data.
        held: draws of the latents.
        samples: draws of the sites.
        spread: gives draws of them whose standard deviation is known, which a normal site asks for.
    """
    absent = [n for n in samples if is_latent(new.target.sites[n])]
    if new.augmented.is_used or not absent or len(new.summed) > 1 or (new.summed and new.has_data):
        return {}
    whole = None if new.summed else recorded_whole(new)
    found: dict[str, Any] = {} if whole is None else linear_laws(new, whole, held)
    if new.local or new.is_certain:
        return found
    for name in absent:
        if name in found or (whole is not None and _reads_others(whole, name, new.own)):
            continue
        with contextlib.suppress(PyroLatentError):  # the draws stand, whatever keeps a density from a closed form
            fn, log_density = innermost(new.target.sites[name]["fn"]), _Densities(new, name)
            if log_density(samples[name][0]) is None:
                continue
            law = _law_of(fn, spread()[name] if isinstance(fn, _NORMAL) else samples[name], log_density)
            found |= {} if law is None else {name: law}
    return found


def _reads_others(whole: Recording, name: str, own: Collection[str]) -> bool:
    """Whether a site depends on others that are not given, such as the states of later steps."""
    scored = whole.scored.get(name)
    return scored is not None and not scored.parents - {name} <= set(own)


class _Densities:
    """The exact log predictive density of each element of a site, as a function of its data.

    Args:
        new: the new data, with one discrete latent at most, a label of each element of the site.
        name: the site.
    """

    def __init__(self, new: NewData, name: str) -> None:
        self._guide, self._state, self._own, self._name = new.guide, new.prepared.state, tuple(new.own), name
        self._args, self._kwargs = new.arguments
        self._names = [name, *new.summed]
        self._event = len(new.target.sites[name]["fn"].event_shape)

    def program(self, value: Tensor) -> Program | None:
        """The model with this data; None where its blocks are others."""
        guide, posterior = self._guide, self._guide.posterior_state
        model = poutine.condition(guide.augmented.model, data={self._name: value})
        found = record(
            model, *self._args, origins=posterior.origins, point=guide.point, known=self._own, **self._kwargs
        )
        program = compile_program(found, guide.joint, (), 1, posterior.pairs)
        return program if program.blocks.keys() == self._state.keys() else None

    def by_label(self, value: Tensor) -> Tensor | None:
        """The density of each element of some data and of each value of its label, ``[K] + shape``, of one without
        labels; None where it has no closed form.
        """
        program = self.program(value)
        if program is None:
            return None
        found = exact_log_predictive(program, padded(program.blocks, self._state), self._names, True, by_value=True)
        batch = value.shape[: value.ndim - self._event]
        return found if found is not None and found.shape[1:] == batch else None

    def __call__(self, value: Tensor) -> Tensor | None:
        """The density of each element of some data; None where it has no closed form."""
        found = self.by_label(value)
        return None if found is None else found.logsumexp(0)

    def parameters(self, value: Tensor, name: str) -> list[Tensor]:
        """A parameter of the blocks that the site reads, of those that have it: "concentration" of a Gamma, "df" of a
        Wishart.
        """
        program = self.program(value)
        keys = [] if program is None else blocks_read(program, [program.recording.scored[self._name]])
        params = [program.blocks[k].params(self._state[k]) for k in keys] if program is not None else []
        return [p[name] for p in params if name in p]


def _law_of(fn: object, draws: Tensor, log_density: _Densities) -> Any:
    """The law of a site by the class of its distribution given the globals."""
    if isinstance(fn, dist.Normal):
        return _normal(draws, log_density)
    if isinstance(fn, dist.MultivariateNormal):
        return _vector(draws, log_density) if draws.shape[-1] <= _LONGEST else None
    if isinstance(fn, dist.Poisson):
        return _counts(draws, log_density)
    if isinstance(fn, dist.Bernoulli):
        found = log_density(torch.ones_like(draws[0]))
        return None if found is None else dist.Bernoulli(found.exp())
    if isinstance(fn, dist.Categorical):
        values = [log_density(torch.full_like(draws[0], k)) for k in range(fn.probs.shape[-1])]
        each = [v for v in values if v is not None]
        return None if len(each) < len(values) else dist.Categorical(torch.stack(each, -1).exp())
    return None


def _read(
    values: Sequence[Tensor], log_density: _Densities, name: str = "concentration"
) -> tuple[list[Tensor], list[Tensor]] | None:
    """The densities of some values, ``[K] + shape``, and the parameter of the Gamma variable, or Wishart, that they are
    relative to, if any, one for each of K; None without a closed form, or where elements have several.
    """
    rows = [row for row in map(log_density.by_label, values) if row is not None]
    parameters = log_density.parameters(values[0], name)
    if len(rows) < len(values) or len(parameters) > 1:
        return None
    found = []
    for own in parameters:
        each = own.reshape(-1) if own.numel() == len(rows[0]) else own.unique()
        if len(each) not in (1, len(rows[0])):
            return None
        found.append(each.double().reshape(-1, *(1 for _ in rows[0].shape[1:])))
    return rows, found


def _mixed(components: Any, values: Sequence[Tensor], rows: Sequence[Tensor]) -> Any:
    """The mixture of laws ``[K] + shape``, or the law itself where there is one, if it has the densities of all values.

    Its weights are what the density of one value has more than that of a component.
    """
    kind = type(components)
    params = {name: getattr(components, name) for name in _PARAMETERS[kind]}
    if len(rows[0]) == 1:
        law = kind(*(p[0] for p in params.values()))
    else:
        weights = (rows[1] - components.log_prob(values[1].double())).movedim(0, -1).exp()
        if not bool(weights.isfinite().all()):
            return None
        moved = (p.movedim(0, -1 - event) for p, event in zip(params.values(), _PARAMETERS[kind].values(), strict=True))
        law = dist.MixtureSameFamily(dist.Categorical(weights), kind(*moved))
    read, exact = law.log_prob(torch.stack(list(values)).double()), torch.stack(list(rows)).logsumexp(1)
    return law if torch.allclose(read, exact, rtol=_AGREEMENT, atol=_AGREEMENT) else None


def _normal(draws: Tensor, log_density: _Densities) -> Any:
    """A normal, or Student's t, or a mixture of them."""
    center, unit = draws.double().mean(0), draws.double().std(0)
    values = [(center + place * unit).to(draws) for place in _PLACES]
    found = _read(values, log_density)
    if found is None:
        return None
    rows, concentrations = found
    components = _of_three(rows, center, unit, [2 * c for c in concentrations])
    return None if components is None else _mixed(components, values, rows)


def _vector(draws: Tensor, log_density: _Densities) -> Any:
    """A normal of vectors, or Student's t, or a mixture of them."""
    center, unit, size = draws.double().mean(0), draws.double().std(0), draws.shape[-1]
    axes = torch.eye(size, dtype=torch.float64, device=draws.device)
    pairs = [axes[i] + axes[j] for i in range(size) for j in range(i)]
    places = [0 * axes[0], *axes, *-axes, *pairs, axes.sum(0) * 1.5, axes[0] * -2.5 + 0.3]
    values = [(center + place * unit).to(draws) for place in places]
    found = _read(values, log_density, "df")
    if found is None:
        return None
    components = _of_quadratic(found[0], center, unit, [df + 1 for df in found[1]])
    return None if components is None else _mixed(components, values, found[0])


def _of_quadratic(rows: Sequence[Tensor], center: Tensor, unit: Tensor, powers: Sequence[Tensor]) -> Any:
    """The law of vectors whose log density, but for a constant, is given at a center, one unit of each axis from it
    to either side, and of each two axes: a quadratic, or of Student's t its power −2 / (df + D) is one.
    """
    size, scale = center.shape[-1], -2 / powers[0] if powers else -1.0
    read = [(row - rows[0]) * scale for row in rows[: 1 + 2 * size + size * (size - 1) // 2]]
    values = torch.stack([r.exp() - 1 if powers else r for r in read], -1)
    up, down, both = values[..., 1 : 1 + size], values[..., 1 + size : 1 + 2 * size], values[..., 1 + 2 * size :]
    curvature = torch.diag_embed(up + down)
    pairs = [(i, j) for i in range(size) for j in range(i)]
    for at, (i, j) in enumerate(pairs):
        curvature[..., i, j] = curvature[..., j, i] = both[..., at] - up[..., i] - up[..., j]
    slope = (up - down) / 2
    factor, info = torch.linalg.cholesky_ex(curvature)
    if bool(info.any()):
        return None
    step = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
    covariance = torch.cholesky_inverse(factor) * unit.unsqueeze(-1) * unit.unsqueeze(-2)
    loc = center - unit * step
    if not powers:
        return dist.MultivariateNormal(loc, covariance)
    df = (powers[0] - size).expand(loc.shape[:-1])
    least = 1 - (slope * step).sum(-1) / 2
    if not bool((least > 0).all() and (df > 0).all()):
        return None
    return dist.MultivariateStudentT(df, loc, torch.linalg.cholesky((2 * least / df)[..., None, None] * covariance))


def _counts(draws: Tensor, log_density: _Densities) -> Any:
    """A Gamma-Poisson, or a mixture of them: p(1) / p(0) = a / (1 + b)."""
    values = [torch.full_like(draws[0], count) for count in _COUNTS]
    found = _read(values, log_density)
    if found is None or not found[1]:
        return None
    rows, (concentration,) = found
    rate = concentration / (rows[1] - rows[0]).exp() - 1
    if not bool((rate > 0).all()):
        return None
    return _mixed(dist.GammaPoisson(concentration.expand(rate.shape), rate), values, rows)


def _of_three(rows: Sequence[Tensor], center: Tensor, unit: Tensor, df: Sequence[Tensor]) -> Any:
    """The law whose log density, but for a constant, is given at −1, 0 and 1 units from a center: a quadratic, or of
    Student's t its power −2 / (df + 1) is one. None where no law has it.
    """
    low, middle, high = ((row - rows[1]) * (-2 / (df[0] + 1)) if df else row - rows[1] for row in rows[:3])
    if df:
        low, middle, high = low.exp(), middle.exp(), high.exp()
    square, slope = (high + low) / 2 - middle, (high - low) / 2
    loc = center - unit * slope / (2 * square)
    least = middle - slope.square() / (4 * square)
    scale = unit * ((least / square / df[0]) if df else -0.5 / square).sqrt()
    if not bool((scale > 0).all()):
        return None
    return dist.StudentT(df[0].expand(loc.shape), loc, scale) if df else dist.Normal(loc, scale)


__all__ = ["closed_forms"]
