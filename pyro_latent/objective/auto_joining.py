"""Which sites ``blocks="auto"`` joins: normal sites that meet, with the precision that they are all relative to."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyro.distributions as dist
from torch import Tensor

from ..expressions.axes import Axis, same_axes
from ..expressions.terms import Term
from ..families import family_of
from ..families.gamma import Gamma
from ..families.multivariate_normal import MultivariateNormal
from ..families.normal import Normal
from ..recording import LatentSite, Recording
from .locality import is_in_subsample

#: The power that a function of a site other than itself counts as: no joint factor has it.
_OTHER = 9.0


class Joining(NamedTuple):
    """The groups of sites that share a factor, and by precision that meets normal sites and is in none, why."""

    groups: tuple[tuple[str, ...], ...]
    apart: dict[str, str]


@dataclass
class TermReading:
    """What a term of the density of ``site`` reads: the powers of normal sites and of precisions, and their axes."""

    site: str
    normal: dict[str, float] = field(default_factory=dict)
    precisions: dict[str, float] = field(default_factory=dict)
    axes: dict[str, list[tuple[Axis, ...]]] = field(default_factory=dict)

    def degree(self, names: set[str]) -> float:
        return sum(power for name, power in self.normal.items() if name in names)

    def is_elementwise(self, name: str, other: str, depth: int | None = None) -> bool:
        """Whether two sites are read at one element, of their first ``depth`` dimensions where it is given."""
        first, *rest = [axes[:depth] for axes in (*self.axes[name], *self.axes[other])]
        return all(same_axes(first, axes) for axes in rest)


def is_normal(site: LatentSite) -> bool:
    return site.point is None and isinstance(site.family or family_of(site.distribution), Normal | MultivariateNormal)


def _is_gamma(site: LatentSite) -> bool:
    return site.point is None and isinstance(site.family or family_of(site.distribution), Gamma)


def is_common_precision(site: LatentSite) -> bool:
    """Whether a site may be the precision of a joint normal block: a Gamma of a single number, in no plate."""
    return _is_gamma(site) and not site.shape


def weigh_alike(sites: Sequence[LatentSite]) -> bool:
    """Whether sites have one scale, and all belong to a part of the data, or none does: of a piece of data in memoised
    inference the scale does not tell.
    """
    scales = [site.scale for site in sites]
    has_one = all(not isinstance(s, Tensor) or s.numel() == 1 for s in scales) and len({float(s) for s in scales}) == 1
    return has_one and len({is_in_subsample(site.plates) for site in sites}) == 1


def joined_by_themselves(recording: Recording) -> Joining:
    """The largest sets of normal sites that meet in some term, and of which every term is at most quadratic, and single
    ones whose elements do; each with the Gamma site that every term with them is proportional to, if there is one.
    """
    free = {n: site for n, site in recording.latents.items() if site.update is None}
    normal = {n for n, site in free.items() if is_normal(site)}
    precisions = [n for n, site in free.items() if _is_gamma(site)]
    readings = list(readings_of(recording, normal, set(precisions)))
    groups = _connected(recording, normal, readings)
    alone = _read_alone(recording, set(precisions))
    apart: dict[str, str] = {}
    found: list[tuple[set[str], str | None]] = []
    for precision in precisions:
        met = [g for g in groups if any(precision in r.precisions and r.degree(g) for r in readings)]
        reasons = [_in_the_way(recording, g, precision, readings, alone) for g in met]
        joined = [g for g, reason in zip(met, reasons, strict=True) if reason is None]
        whole = set[str]().union(*joined)
        reasons.append(_in_the_way(recording, whole, precision, readings, alone) if joined else "")
        if reasons[-1] is None:
            groups = [g for g in groups if g not in joined]
            found.append((whole, precision))
        elif met:
            apart[precision] = next(reason for reason in reasons if reason)
    found += [(g, None) for g in groups if len(g) > 1 or _couple(min(g), readings)]
    in_order = [(*(n for n in recording.latents if n in g), *([p] if p else [])) for g, p in found]
    return Joining(tuple(in_order), apart)


def _couple(name: str, readings: Sequence[TermReading]) -> bool:
    """Whether two elements of a normal site meet in a term, as in the square of a sum over its plate."""
    return any(name in r.axes and r.degree({name}) == 2 and not r.is_elementwise(name, name) for r in readings)


def readings_of(recording: Recording, normal: set[str], precisions: set[str]) -> Iterator[TermReading]:
    """What each term that reads some of these normal sites reads of them and of the precisions."""
    for name, scored in recording.scored.items():
        for term in scored.known_terms:
            reading = _read(name, term, normal, precisions)
            if reading.normal:
                yield reading


def _read(site: str, term: Term, normal: set[str], precisions: set[str]) -> TermReading:
    found = TermReading(site)
    for factor in term.factors:
        name = factor.variable.root.site
        powers = found.normal if name in normal else found.precisions
        if name in normal or name in precisions:
            plain = factor.variable.scalar is None and factor.function == "x" and factor.power in (1, 2)
            powers[name] = powers.get(name, 0) + (factor.power if plain else _OTHER)
            found.axes.setdefault(name, []).append(factor.axes)
    return found


def _connected(recording: Recording, normal: set[str], readings: Sequence[TermReading]) -> list[set[str]]:
    """The largest sets of normal sites that meet in some term, and of which every term is at most quadratic."""
    group = {name: {name} for name in recording.latents if name in normal}
    reads: dict[str, set[int]] = {name: set() for name in group}  # by the first of a set, the readings of any of it
    first_of = {name: name for name in group}
    steep = {n for reading in readings for n, power in reading.normal.items() if power > 2}
    for i, reading in enumerate(readings):
        for name in reading.normal:
            reads[name].add(i)
    for reading in readings:
        for a, b in itertools.combinations(reading.normal, 2):
            small, large = sorted((first_of[a], first_of[b]), key=lambda first: len(group[first]))
            if small == large or {a, b} & steep or not weigh_alike([recording.latents[n] for n in (small, large)]):
                continue
            merged = {small, large}
            met = [readings[i] for i in reads[small] if i in reads[large]]  # of others no degree grows
            if all(sum(p for n, p in r.normal.items() if first_of[n] in merged) <= 2 for r in met):
                first_of |= dict.fromkeys(group[small], large)
                group[large] |= group.pop(small)
                reads[large] |= reads.pop(small)
    return list({first_of[name]: group[first_of[name]] for name in first_of}.values())


def _read_alone(recording: Recording, precisions: set[str]) -> dict[str, str]:
    """By precision that a density has another function of than itself and its logarithm, that density's site."""
    found: dict[str, str] = {}
    for name, scored in recording.scored.items():
        for term in scored.known_terms:
            own = [f for f in term.factors if f.variable.root.site in precisions]
            counts = Counter(f.variable.root.site for f in own)
            for f in own:
                plain = f.variable.scalar is None and f.function in ("x", "log") and f.power == 1
                if not plain or counts[f.variable.root.site] > 1:
                    found.setdefault(f.variable.root.site, name)
    return found


def _in_the_way(
    recording: Recording, group: set[str], precision: str, readings: Sequence[TermReading], alone: Mapping[str, str]
) -> str | None:
    """Why a precision does not join a group; None where it does."""
    if precision in alone:
        return f"the density of {alone[precision]} has another function of {precision} than itself and its logarithm"
    own, sites = recording.latents[precision], [recording.latents[n] for n in recording.latents if n in group]
    names = ", ".join(site.name for site in sites)
    masked = [site.name for site in (*sites, own) if site.mask is not None]
    if masked:
        return f"{', '.join(masked)} have masks"
    if not weigh_alike([*sites, own]):
        return f"{names} have another scale"
    one_for_each = len(sites) == 1 and issubclass(own.distribution, dist.Gamma) and own.shape == sites[0].shape
    if not is_common_precision(own) and not (one_for_each and own.batch_shape == sites[0].batch_shape):
        return f"it is no single number, and has not an element for each of {names}"
    for reading in (r for r in readings if r.degree(group)):
        if reading.precisions.get(precision) != 1 or reading.degree(group) > 2:
            return f"the density of {reading.site} reads {names} in a term that is not proportional to {precision}"
        if own.shape and not reading.is_elementwise(sites[0].name, precision):
            return f"the density of {reading.site} reads different elements of {names} and {precision}"
    return None


__all__ = [
    "Joining",
    "TermReading",
    "is_common_precision",
    "is_normal",
    "joined_by_themselves",
    "readings_of",
    "weigh_alike",
]
