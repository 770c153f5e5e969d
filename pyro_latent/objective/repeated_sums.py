"""Terms of log densities summed over the plates, those that are alike at once, as at the steps of a loop."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..expressions.alike import coefficients_of, groups_of, likeness_of, side_by_side
from ..expressions.axes import Gather, Label, contract, fresh_label
from ..expressions.constants import Constant
from ..expressions.terms import Term
from ..recording import Recording, ScoredSite
from .blocks import Block
from .elements import elements_of
from .expectation import BlockMoment, expect_together
from .locality import is_in_subsample
from .log_sums import sum_over_plates
from .summands import Summand, canonical, labels_of, repeats_of, weights_of

Owners = Mapping[str, tuple[Block, int]]


@dataclass(frozen=True, eq=False)
class Repeated:
    """Sums that are alike, one for each of ``sites``: ``each`` has them along ``label``, ``total`` is their sum."""

    sites: tuple[str, ...]
    each: Summand
    label: Label
    total: Summand

    def row(self, place: int) -> Summand:
        """One of them."""
        if len(self.sites) == 1:
            return self.total
        constant, labels = self.each.constant, self.each.labels
        if self.label in labels:
            constant = constant.select(labels.index(self.label), place)
        moments = tuple([_row(m, self.label, place) for m in self.each.moments])
        return canonical(Summand(constant, tuple([x for x in labels if x != self.label]), moments))


def _row(moment: BlockMoment, label: Label, place: int) -> BlockMoment:
    axis = moment.axes[0] if moment.axes else None
    if not isinstance(axis, Gather) or label not in axis.labels:
        return moment
    return replace(moment, axes=(Gather(axis.index[place], axis.labels[1:]),))


class SiteSums(Mapping[str, list[Summand]]):
    """By site the sums that its log density gives.

    Args:
        sites: the sites, in the order of the model.
        groups: the sums, those that are alike together.
    """

    def __init__(self, sites: Iterable[str], groups: Sequence[Repeated]) -> None:
        self.groups = list(groups)
        self._places: dict[str, list[tuple[int, int]]] = {name: [] for name in sites}
        for number, group in enumerate(self.groups):
            for place, site in enumerate(group.sites):
                self._places[site].append((number, place))

    def __getitem__(self, name: str) -> list[Summand]:
        return [self.groups[number].row(place) for number, place in self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def of(self, sites: Collection[str]) -> list[Summand]:
        """What the log densities of some sites add up to; where all that are alike are among them, as one sum."""
        found = []
        for group in self.groups:
            own = [place for place, site in enumerate(group.sites) if site in sites]
            found += [group.total] if len(own) == len(group.sites) else [group.row(place) for place in own]
        return found


def sums_over_plates(
    terms: Mapping[str, Sequence[Term]], scored: Mapping[str, ScoredSite], owners: Owners, recording: Recording
) -> SiteSums:
    """The expectations of the terms of log densities, summed over the plates.

    Raises:
        NotConjugateError: if a term has none.
    """
    weights = {name: weights_of(scored[name], scored[name].scale, recording.like) for name in terms}
    pairs = [(name, term) for name, own in terms.items() for term in own]
    kinds = [_likeness(scored[name], term, weights[name], owners) for name, term in pairs]
    found = []
    for places in groups_of(kinds, lambda i: _numbers(pairs[i][1])):
        own = [pairs[i] for i in places]
        if len(own) == 1:
            ((name, term),) = own
            total = sum_over_plates(scored[name], term, owners, recording)
            found.append(Repeated((name,), total, fresh_label(), total))
        else:
            found.append(_together(own, scored, weights, owners, recording))
    return SiteSums(terms, found)


def _likeness(scored: ScoredSite, term: Term, weights: Sequence[Constant], owners: Owners) -> Hashable | None:
    """What terms have in common that have the same expectation but for numbers and for the elements of joint normal
    blocks that they read; None where nothing is like one.
    """
    whole = replace(term, constants=(*term.constants, *weights)) if weights else term
    kind = likeness_of(whole, lambda factor: elements_of(factor, owners) or id(factor.variable))
    return None if kind is None or term.choices else (kind, scored.shape, is_in_subsample(scored.plates))


def _numbers(term: Term) -> int:
    """How many numbers a term puts side by side with those of others."""
    return math.prod(term.sizes.values())


def _together(
    own: Sequence[tuple[str, Term]],
    scored: Mapping[str, ScoredSite],
    weights: Mapping[str, Sequence[Constant]],
    owners: Owners,
    recording: Recording,
) -> Repeated:
    """The sums of terms that are alike."""
    names, terms = [name for name, _ in own], [term for _, term in own]
    label, first = fresh_label(), scored[names[0]]
    moments = expect_together(terms, owners, names[0], label).moments
    columns = zip(*[(*term.constants, *weights[name]) for name, term in own], strict=True)
    constants = [side_by_side(column, label) for column in columns]
    read, varying = labels_of(moments), {x for c in constants for x in c.labels}
    coefficient = coefficients_of(terms, recording.device) * repeats_of(first, varying, read)
    operands = [
        (coefficient, (label,) if coefficient.ndim else ()),
        *((c.tensor.double(), c.labels) for c in constants),
    ]
    known = {x for _, labels in operands for x in labels}
    out = tuple([x for x in dict.fromkeys((label, *read)) if x in known])
    each = Summand(contract(operands, out), out, moments)
    return Repeated(tuple(names), each, label, _total(each, label, len(own)))


def _total(each: Summand, label: Label, count: int) -> Summand:
    """The sum along a label."""
    if label in labels_of(each.moments):
        return canonical(each)
    if label not in each.labels:
        return canonical(each.with_constant(each.constant * count))
    constant = each.constant.sum(each.labels.index(label))
    return canonical(Summand(constant, tuple([x for x in each.labels if x != label]), each.moments))


__all__ = ["Repeated", "SiteSums", "sums_over_plates"]
