r"""Counts of a sum of rates, each of its summands with counts of its own: these at their optimum.

Given Poisson counts x of rate Σ_k r_k, the counts z_k of the summands are multinomial; at the optimum E z_k = x π_k
with π_k ∝ exp(E log r_k), and the bound is

.. math:: E\, x \log \sum_k r_k \ge x \log \sum_k \exp(E \log r_k).

So the counts need no memory: where r_k is a product, as in θ β, the sum is a matrix product. Its gradient in E log r_k
is E z_k (Cemgil 2009; Gopalan, Hofman and Blei 2015).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions.axes import START, Gather, Labeled, Labels, contract, is_summed, read, spread, unique_labels
from ..expressions.constants import Constant
from ..expressions.terms import LogOfSum, Term
from ..recording import Recording, ScoredSite
from .blocks import Block, Means
from .expectation import BlockMoment, expect
from .summands import Summand, sum_of, summand_of, weights_of

#: A sum that is less than this, in float64, has lost some of its summands: it is taken by their logarithms.
_LEAST = 1e-200
#: log 0 of a constant rate: times a count of 0 it is 0.
_LOG_ZERO = -1e30


@dataclass(frozen=True, eq=False)
class LogSum(Summand):
    """Constants times the logarithm of a sum of products, summed to one number for each start.

    ``labels`` are those that constants and products run along, ``moments`` the E log of every factor.

    Attributes:
        products: for each product its constant, and the places of its moments with their powers.
        outer: the labels that the logarithm runs along.
        repeats: how often the sum is counted, for plates that nothing varies along.
    """

    products: tuple[tuple[Labeled, tuple[tuple[int, float], ...]], ...]
    outer: Labels
    repeats: float

    @property
    def key(self) -> Hashable:
        return id(self)

    def value(self, means: Means, dtype: torch.dtype | None = None) -> Tensor:
        found = self._total([m.read(means).double() for m in self.moments])
        return found if dtype is None else found.to(dtype)

    def slope(self, place: int, means: Means) -> Tensor:
        moment = self.moments[place]
        dtype = means[moment.block.key][moment.statistic].dtype
        return moment.unread(self._counts(place, means).to(dtype), moment.labels, means)

    def linear(self, means: Means) -> list[Summand]:
        """The sum with the counts held at their optimum."""
        found = [Summand(self._counts(i, means), m.labels, (m,)) for i, m in enumerate(self.moments)]
        rest = self.value(means) - sum_of(s.value(means) for s in found)
        return [*found, Summand(rest, (START,), ())]

    def _counts(self, place: int, means: Means) -> Tensor:
        """The expected counts that multiply a moment, as it is read."""
        with torch.enable_grad():
            logs = [m.read(means).detach().double() for m in self.moments]
            logs[place] = leaf = logs[place].clone().requires_grad_()
            (found,) = torch.autograd.grad(self._total(logs).sum(), leaf)
        return found

    def each(self, means: Means) -> Labeled:
        """The constants times the logarithm along the outer labels, before it is summed over plates."""
        found = self._each([m.read(means).double() for m in self.moments])
        inner = [i + 1 for i, x in enumerate(self.outer) if is_summed(x)]
        tensor = found.sum(inner) if inner else found
        return tensor, (START, *(x for x in self.outer if not is_summed(x)))

    def _total(self, logs: Sequence[Tensor]) -> Tensor:
        found = self._each(logs)
        found = found.reshape(len(found), -1).sum(-1)
        return self.repeats * torch.where(found < _LOG_ZERO / 2, -math.inf, found)

    def _each(self, logs: Sequence[Tensor]) -> Tensor:
        found = self._log(logs)
        where = {label: i for i, label in enumerate((START, *self.outer))}
        weight = spread(self.constant.double(), self.labels, where)
        return weight * found

    def _log(self, logs: Sequence[Tensor]) -> Tensor:
        """The logarithm of the sum, with a dimension for the starts and for each outer label, of size 1 where nothing
        varies.
        """
        parts = []
        where = {label: i for i, label in enumerate((START, *self.outer))}
        for (constant, labels), factors in self.products:
            operands = [(constant, labels)] + [(p * logs[i], self.moments[i].labels) for i, p in factors]
            present = {x for _, own in operands for x in own}
            out = tuple(x for x in where if x in present)
            parts.append(spread(_log_contracted(operands, out), out, where))
        return parts[0] if len(parts) == 1 else torch.stack(torch.broadcast_tensors(*parts)).logsumexp(0)


def _log_contracted(operands: list[Labeled], out: Labels) -> Tensor:
    """log of the sum of products, by the logarithms of the factors, over all labels but ``out``."""
    where = {label: i for i, label in enumerate(out)}
    scaled, total_top = [], torch.zeros((), dtype=torch.float64, device=operands[0][0].device)
    for tensor, labels in operands:
        inner = [i for i, x in enumerate(labels) if x not in out]
        top = tensor.detach().amax(inner, keepdim=True) if inner else tensor.detach()
        scaled.append(((tensor - top).exp(), labels))
        kept = tuple(x for x in labels if x in out)
        total_top = total_top + spread(top.squeeze(inner), kept, where)
    total = contract(scaled, out)
    if float(total.detach().min()) >= _LEAST:
        return total.log() + total_top
    lost = total < _LEAST
    found = torch.where(lost, 1.0, total).log() + total_top
    places = lost.nonzero(as_tuple=True)
    line = min(0, *(x for _, labels in operands for x in labels)) - 1  # a label that none of them has
    axes = {x: Gather(place, (line,)) for x, place in zip(out, places, strict=True)}
    parts = [read(tensor, tuple(axes.get(x, x) for x in labels)) for tensor, labels in operands]
    every = (line, *unique_labels(x for _, labels in parts for x in labels if x != line))
    order = {label: i for i, label in enumerate(every)}
    whole = sum_of(spread(tensor, labels, order) for tensor, labels in parts)
    return found.index_put(places, whole.expand(len(places[0]), *whole.shape[1:]).flatten(1).logsumexp(-1))


def sum_over_plates(
    scored: ScoredSite, term: Term, owners: Mapping[str, tuple[Block, int]], recording: Recording
) -> Summand:
    """The expectation of a term of a density, summed over the plates."""
    if not any(isinstance(f, LogOfSum) for f in term.factors):
        return summand_of(scored, expect(term, owners, scored.name), recording)
    return log_sum_of(scored, term, owners, weights_of(scored, scored.scale, recording.like))


def log_sum_of(
    scored: ScoredSite, term: Term, owners: Mapping[str, tuple[Block, int]], weights: Sequence[Constant] = ()
) -> LogSum:
    """The bound of a multiple of the logarithm of a sum.

    Raises:
        NotConjugateError: if it is multiplied by latents, or one of the rates is a parameter.
    """
    factor, *others = term.factors
    if others or term.choices or not isinstance(factor, LogOfSum):
        expect(term, owners, scored.name)  # raises
    assert isinstance(factor, LogOfSum)
    moments: list[BlockMoment] = []
    products = []
    device = next(iter(owners.values()))[0].device
    for product in factor.read():
        places = []
        for own in product.factors:
            (moment,) = expect(Term(1.0, (), (own.as_log,)), owners, scored.name).moments
            if moment.block.is_point:
                raise NotConjugateError(
                    f"Expected rates with a prior in the sum of rates of site {scored.name!r}; got the point "
                    f"{moment.block.label!r}. Write a Gamma prior for it, or leave the other summands out."
                )
            places.append((len(moments), own.power))
            moments.append(moment)
        products.append((_log_constant(product, device), tuple(places)))
    constants = [(c.tensor.double(), c.labels) for c in (*term.constants, *weights)]
    labels = unique_labels(x for _, own in constants for x in own)
    like = products[0][0][0]
    weight = contract([(like.new_tensor(term.coefficient), ()), *constants], labels)
    inner = {x for m in moments for x in m.labels} | {x for (_, own), _ in products for x in own}
    free = set(factor.labels) | set(labels)
    outer = tuple(sorted(free & (inner | set(labels))))
    repeats = math.prod(n for i, n in enumerate(scored.shape) if i - len(scored.shape) not in outer)
    return LogSum(weight, labels, tuple(moments), tuple(products), outer, float(repeats))


def _log_constant(product: Term, device: torch.device) -> Labeled:
    """The logarithm of what multiplies the latents of a product."""
    labels = unique_labels(x for c in product.constants for x in c.labels)
    operands = [(c.tensor.double(), c.labels) for c in product.constants]
    number = torch.tensor(product.coefficient, dtype=torch.float64, device=device)
    return contract([(number, ()), *operands], labels).log().clamp(min=_LOG_ZERO), labels


__all__ = ["LogSum", "log_sum_of", "sum_over_plates"]
