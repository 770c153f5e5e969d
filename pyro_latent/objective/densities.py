"""Densities of a recording, made ready for expectations: masks, discrete sites in mean field, and what each reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions import Expression
from ..expressions.axes import Axis, Gather, Label, Labeled, Labels, fresh_label, is_free, is_summed, spread
from ..expressions.constants import Constant
from ..expressions.terms import Choice, Factor, Term
from ..expressions.variables import Variable
from ..recording import DiscreteSite, Recording, ScoredSite
from .layouts import Layout, Reading, both_elements, element_numbers, same_element

#: log 0 in a density of a mean-field discrete site, whose probability of such a value is exactly zero with it.
_LOG_ZERO = -1e30


def usable_terms(scored: ScoredSite) -> tuple[Term, ...]:
    """The terms of a density.

    Raises:
        NotConjugateError: if an operation in it has no rule.
    """
    if scored.error is not None:
        raise scored.error
    assert scored.density is not None
    opacity = scored.density.opacity
    if opacity is None:
        return scored.density.terms
    parents = ", ".join(repr(s) for s in sorted(opacity.sites))
    hint = (
        opacity.hint or "sums, products, indexing and matrix products of latents, and powers of a precision or a rate"
    )
    raise NotConjugateError(
        f"Site {scored.name!r} ({scored.distribution}) is not conditionally conjugate in {parents}: "
        f"{opacity.operation} of {parents} has no expected log density in closed form. What would work: {hint}; "
        f"or fit {parents} by gradient, with an autoguide in SVI."
    )


def summed_terms(scored: ScoredSite) -> list[Term]:
    """The terms of a density whose sum over plates is asked for: a simplex that is summed over whole is 1.

    Raises:
        NotConjugateError: if an operation in it has no rule.
    """
    weights = (scored.mask, scored.scale)
    weighted = {i - w.ndim for w in weights if isinstance(w, Tensor) for i, n in enumerate(w.shape) if n != 1}
    return [_without_simplexes(term, weighted) for term in usable_terms(scored)]


def _without_simplexes(term: Term, weighted: set[Label]) -> Term:
    """A term with the mean over a plate, or the sum, of simplexes in their place."""
    for factor in term.factors if not term.choices else ():
        own, plain = factor.variable, factor.power == 1 and factor.function == "x"
        label = factor.axes[-1] if plain and own.simplex else None
        if label is None:
            continue
        rest = replace(term, factors=tuple(f for f in term.factors if f is not factor))
        alone = isinstance(label, int) and label not in rest.labels | weighted and factor.axes.count(label) == 1
        if alone and not any(isinstance(a, Gather) and label in a.labels for a in factor.axes):
            assert isinstance(label, int)
            return _without_simplexes(rest.scaled(1.0 if is_summed(label) else 1.0 / own.shape[-1]), weighted)
    return term


@dataclass(frozen=True, eq=False)
class DensityPart:
    """Terms of a density that read the same discrete elements.

    ``choices`` are the labels of what they read, in the order of the layout's readings; ``places`` maps the labels that
    the readings run along to those of the factor, −depth … −1.
    """

    site: str
    terms: tuple[Term, ...]
    layout: Layout
    choices: Labels
    places: Mapping[Label, Label]


def density_parts(
    scored: ScoredSite, terms: Sequence[Term], sites: Mapping[str, DiscreteSite], nesting: int
) -> tuple[list[Term], list[DensityPart]]:
    """The terms that depend on no discrete site, and the others: together where every one reads its own elements,
    else by what they read.
    """
    depth = max(nesting, len(scored.shape))
    together = {c.label: c for t in terms for c in t.choices}
    own = {i - len(scored.shape): i - len(scored.shape) for i in range(len(scored.shape))}
    if all(_reading(c, own, sites).is_aligned for c in together.values()):
        if not together:
            return list(terms), []
        return [], [_part(scored, terms, tuple(together.values()), sites, depth)]
    groups: dict[frozenset[Label], list[Term]] = {}
    for term in terms:
        groups.setdefault(frozenset(c.label for c in term.choices), []).append(term)
    plain = groups.pop(frozenset(), [])
    return plain, [_part(scored, group, group[0].choices, sites, depth) for group in groups.values()]


def _part(
    scored: ScoredSite, terms: Sequence[Term], choices: Sequence[Choice], sites: Mapping[str, DiscreteSite], depth: int
) -> DensityPart:
    used = {x for c in choices for x in c.labels}
    bound = sorted(x for x in used if is_summed(x))
    places = {x: x for x in used if is_free(x)} | {x: -depth - 1 - i for i, x in enumerate(bound)}
    shape = (1,) * (depth - len(scored.shape)) + tuple(scored.shape)
    sizes = {label: n for t in terms for label, n in t.sizes.items()}
    own = [n if i - depth in used else 1 for i, n in enumerate(shape)]
    layout = Layout(tuple(_reading(c, places, sites) for c in choices), (*(sizes[x] for x in reversed(bound)), *own))
    return DensityPart(scored.name, tuple(terms), layout, tuple(c.label for c in choices), places)


def _reading(choice: Choice, places: Mapping[Label, Label], sites: Mapping[str, DiscreteSite]) -> Reading:
    moved = choice.substitute({x: places[x] for x in choice.labels if places.get(x, x) != x})
    return Reading(sites[choice.site], moved.axes)


# Masks.


def without_masks(recording: Recording) -> tuple[dict[str, ScoredSite], dict[str, Tensor]]:
    """The densities with the masks in them that weights cannot stand for: of discrete sites, and of what is −∞.

    Beside them, by masked discrete site, where other densities vary with it.
    """
    found = dict(recording.scored)
    live: dict[str, Tensor] = {}
    readers = _readers(recording)
    for site in reversed(recording.discrete.values()):
        scored = found[site.name]
        if site.mask is not None and scored.density is not None and not scored.density.opacity:
            live[site.name] = _live_elements(site, readers.get(site.name, ()), live)
            unseen = ~(site.mask | live[site.name])
            constant = -math.log(site.cardinality) * unseen.to(recording.dtype)
            density = _masked(scored.density, site.mask) + Expression.constant(constant)
            found[site.name] = replace(scored, density=density, mask=None)
    for name, scored in found.items():
        if scored.mask is not None and scored.density is not None and not _is_finite(scored.density):
            found[name] = replace(scored, density=_masked(scored.density, scored.mask), mask=None)
    return found, live


def _masked(density: Expression, mask: Tensor) -> Expression:
    """The density where the mask holds, and 0 elsewhere, also where it is −∞ there."""
    return Expression.constant(mask.to(density.like.dtype)).weigh(density).expand(density.shape)


def _is_finite(density: Expression) -> bool:
    """Whether every constant in a density is finite."""
    return all(bool(c.tensor.isfinite().all()) for t in density.terms for c in t.constants)


def _readers(recording: Recording) -> dict[str, list[tuple[ScoredSite, Term, Choice]]]:
    """By discrete site, the terms of other sites' densities that read it, and the choice by which they do."""
    found: dict[str, list[tuple[ScoredSite, Term, Choice]]] = {}
    for scored in recording.scored.values():
        for term in scored.known_terms:
            for choice in term.choices:
                if choice.site != scored.name:
                    found.setdefault(choice.site, []).append((scored, term, choice))
    return found


def _live_elements(
    site: DiscreteSite, readers: Sequence[tuple[ScoredSite, Term, Choice]], live: Mapping[str, Tensor]
) -> Tensor:
    """The elements of a discrete site that a density other than its own varies with, as a mask over its batch shape.

    ``live`` has the same of later discrete sites that are masked: their own densities count where it holds.
    """
    found = torch.zeros(site.batch_shape, dtype=torch.bool, device=site.support.device)
    for scored, term, choice in readers:
        shown = scored.mask
        if shown is not None and scored.name in live:
            shown = shown | live[scored.name]
        found = found | _reached(term, choice, site, shown, scored.shape)
    return found


def _reached(term: Term, choice: Choice, site: DiscreteSite, shown: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The elements of a site that a term varies with, where it is shown."""
    varies: list[Labeled] = []
    for tensor, labels in _indexed(term):
        if choice.label in labels:
            at = labels.index(choice.label)
            differs = (tensor != tensor.narrow(at, 0, 1)).any(at)
            varies.append((differs, tuple(x for x in labels if x != choice.label)))
    if any(choice.label in f.axes for f in term.factors):
        varies.append((torch.ones((), dtype=torch.bool, device=site.support.device), ()))
    labels = choice.labels
    sizes = term.sizes | {i - len(shape): n for i, n in enumerate(shape)}
    total = torch.zeros([sizes[x] for x in labels], dtype=torch.bool, device=site.support.device)
    for differs, own in varies:
        total = total | _onto(differs, own, labels)
    if shown is not None:
        total = total & _onto(shown, tuple(i - shown.ndim for i in range(shown.ndim)), labels)
    where = {label: i for i, label in enumerate(labels)}
    element = spread(*element_numbers(site, choice.axes), where).expand(total.shape)
    reached = torch.zeros(site.batch_shape.numel(), dtype=torch.bool, device=site.support.device)
    reached[element[total]] = True
    return reached.reshape(site.batch_shape)


def _indexed(term: Term) -> list[Labeled]:
    found = [(c.tensor, c.labels) for c in term.constants]
    return found + [(a.index, a.labels) for f in term.factors for a in f.axes if isinstance(a, Gather)]


def _onto(mask: Tensor, own: Labels, labels: Labels) -> Tensor:
    """A mask over other labels: true where it holds anywhere along those that are gone."""
    gone = [i for i, x in enumerate(own) if x not in labels]
    kept = tuple(x for x in own if x in labels)
    return spread(mask.float().amax(gone).bool() if gone else mask, kept, {label: i for i, label in enumerate(labels)})


# Mean field over the elements of discrete sites.


def with_indicators(
    terms: Sequence[Term], sites: Mapping[str, DiscreteSite], mean_field: Collection[str]
) -> list[Term]:
    """Terms in which a choice of a mean-field site is a sum over its values, times the indicator of each.

    Where two choices read the same element they have the same value; elsewhere their indicators are independent.
    """
    found = [t for term in terms for t in _separated(term, sites, mean_field, frozenset())]
    return [_with_indicators(t, sites, mean_field) for t in found]


def _separated(
    term: Term, sites: Mapping[str, DiscreteSite], mean_field: Collection[str], apart: frozenset[tuple[int, int]]
) -> list[Term]:
    """The term where no two of its choices read one element, and where they do; ``apart`` has the labels of pairs that
    are known not to.
    """
    own = [c for c in term.choices if c.site in mean_field]
    for b, a in itertools.combinations(own, 2):
        if a.site != b.site or (a.label, b.label) in apart:
            continue
        same, labels = same_element(sites[a.site], a.axes, b.axes)
        known = apart | {(a.label, b.label)}
        if not bool(same.any()):
            continue
        mask = Constant(same.to(torch.get_default_dtype()), labels)
        one = replace(term, constants=(*term.constants, mask)).substitute({a.label: b.label})
        found = _separated(one, sites, mean_field, known)
        if not bool(same.all()):
            mask = replace(mask, tensor=1 - mask.tensor)
            two = replace(term, constants=(*term.constants, mask))
            found += _separated(two, sites, mean_field, known)
        return found
    return [term]


def conflicts(term: Term, site: DiscreteSite) -> Tensor:
    """Which elements of a site meet in a term: a symmetric matrix over its elements."""
    count = site.batch_shape.numel()
    meet = torch.zeros(count, count, dtype=torch.bool, device=site.support.device)
    own = [c for c in term.choices if c.site == site.name]
    for a, b in itertools.combinations(own, 2):
        first, second = torch.broadcast_tensors(*both_elements(site, a.axes, b.axes)[:2])
        meet[first.reshape(-1), second.reshape(-1)] = True
    return (meet | meet.T) & ~torch.eye(count, dtype=torch.bool, device=meet.device)


def _with_indicators(term: Term, sites: Mapping[str, DiscreteSite], mean_field: Collection[str]) -> Term:
    for choice in term.choices:
        if choice.site not in mean_field:
            continue
        label = fresh_label()
        variable = Variable(choice.site, torch.Size((*sites[choice.site].batch_shape, choice.size)))
        axes: tuple[Axis, ...] = (*choice.axes, label)
        term = term.substitute({choice.label: label})
        term = replace(
            term,
            constants=tuple(_finite(c) for c in term.constants),
            factors=(*term.factors, Factor(variable, axes)),
            choices=tuple(c for c in term.choices if c is not choice),
        )
    return term


def _finite(constant: Constant) -> Constant:
    tensor = constant.tensor
    return replace(constant, tensor=tensor.clamp(min=_LOG_ZERO)) if tensor.is_floating_point() else constant


__all__ = [
    "DensityPart",
    "conflicts",
    "density_parts",
    "summed_terms",
    "usable_terms",
    "with_indicators",
    "without_masks",
]
