"""The statistics of a factor as uncorrelated ones, and what its sites' values have to do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError
from ..families import Mean, Natural
from ..families.joint_normal_gamma import GaussianGamma
from ..families.quadrature import Quadrature
from ..objective import Block, marginals

#: Directions of less variance than this share of the largest, of statistics of unit variance, have none.
_NO_VARIANCE = 1e-13
#: Patterns of moments that read a statistic as it is.
_AS_IT_IS = ("->", "i->i", "ij->ij")


class Whitened(NamedTuple):
    """A block's statistics, as uncorrelated ones: ``[elements, d, d]`` for the ``d`` statistics of each element of its
    batch, which are independent.

    ``spread`` is T, ``inverse`` its pseudo-inverse, and ``first`` the place of the first of them among those of all
    blocks.
    """

    block: Block
    names: tuple[str, ...]
    spread: Tensor
    inverse: Tensor
    first: int

    @property
    def places(self) -> slice:
        return slice(self.first, self.first + self.spread[..., 0].numel())

    def rows(self, statistic: str, like: Natural) -> slice:
        """The places of a statistic among those of an element."""
        sizes = [like[n][0].numel() // len(self.spread) for n in self.names]
        first = sum(sizes[: self.names.index(statistic)])
        return slice(first, first + sizes[self.names.index(statistic)])

    def packed(self, fields: Mean | Natural) -> Tensor:
        """The coordinates of each element in one row: ``[B, elements, d]``."""
        like = self.spread
        return torch.cat([fields[n].reshape(len(fields[n]), len(like), -1) for n in self.names], -1)


def slopes_in(total: Tensor, leaves: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """The gradient in each leaf; zeros where there is none."""
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def whitened(block: Block, natural: Natural, mean: Mean, first: int) -> Whitened:
    """The statistics of a block as uncorrelated ones."""
    names = tuple(mean) if block.is_scalar else tuple(block.family.statistics)
    if isinstance(block.family, Quadrature):
        values, element, masses = _at_nodes(block.family, natural)
        variance = _covariance_at_nodes(values, element, values, element, masses).unsqueeze(0)
    else:
        variance = _variance(block, natural, names)
    size = variance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    size = torch.where(size > 0, size, 1.0)
    values, directions = torch.linalg.eigh(variance / size.unsqueeze(-1) / size.unsqueeze(-2))
    kept = values > _NO_VARIANCE * values.amax(-1, keepdim=True).clamp(min=1e-300)
    root = torch.where(kept, values, 1.0).sqrt()
    spread = torch.where(kept.unsqueeze(-2), size.unsqueeze(-1) * directions * root.unsqueeze(-2), 0.0)
    inverse = torch.where(kept.unsqueeze(-1), (directions / size.unsqueeze(-1) / root.unsqueeze(-2)).mT, 0.0)
    return Whitened(block, names, spread, inverse, first)


def _elements(block: Block) -> int:
    """The number of elements of a block that are independent in q."""
    return 1 if block.joint_normal or block.is_scalar else block.batch_shape.numel()


def _slopes_of(block: Block, natural: Natural, function: Callable[[Natural], Tensor], size: int) -> Tensor:
    """The gradient of ``size`` functions of each element in its natural parameters: ``[elements, size, d]``.

    ``function`` takes natural parameters ``[B, ...]`` and gives ``[B, elements, size]``.
    """
    names = tuple(block.family.statistics)
    with torch.enable_grad():
        leaves = Natural(**{n: natural[n].detach().expand(size, *natural[n].shape[1:]).clone() for n in names})
        flat = [leaves[n].requires_grad_() for n in names]
        chosen = function(leaves).diagonal(dim1=0, dim2=2)  # [elements, size]
        slopes = slopes_in(chosen.sum(), flat)
    fields = zip(names, slopes, strict=True)
    found = [(g + g.mT) / 2 if name in block.family.symmetric else g for name, g in fields]
    return torch.cat([g.reshape(size, _elements(block), -1) for g in found], -1).movedim(0, 1)


def _variance(block: Block, natural: Natural, names: tuple[str, ...]) -> Tensor:
    """The covariance of the statistics of each element, ∂μ / ∂η: ``[elements, d, d]``."""
    elements = _elements(block)

    def means(leaves: Natural) -> Tensor:
        mean = block.family.mean(leaves)
        return torch.cat([mean[n].reshape(len(mean[n]), elements, -1) for n in names], -1)

    size = means(natural).shape[-1]
    found = _slopes_of(block, natural, means, size)
    return (found + found.mT) / 2


class WhitenedReading(NamedTuple):
    """What is read of a site of a block: its values, or their logarithms.

    ``loadings [elements, values, d]`` are its covariances under q with the uncorrelated statistics, and ``statistic``
    is the one that it is, if any: then these say all.
    """

    whitened: Whitened
    component: int
    is_log: bool
    natural: Natural
    loadings: Tensor
    statistic: str | None

    @classmethod
    def of(cls, whitened: Whitened, component: int, is_log: bool, natural: Natural) -> WhitenedReading:
        """The values of a component, or their logarithms.

        Raises:
            ModelError: where their covariances under q have no formula.
        """
        statistic = _statistic(whitened.block, component, is_log)
        try:
            loadings = _loadings(whitened, component, is_log, statistic, natural)
        except NotImplementedError:
            raise _no_formula(whitened.block, component) from None
        return cls(whitened, component, is_log, natural, loadings, statistic)

    @property
    def shape(self) -> torch.Size:
        return self.whitened.block.sites[self.component].shape

    def unexplained(self, other: WhitenedReading) -> Tensor | None:
        """Their covariance under q beyond that of their projections on the statistics ``[n, m]``; None for zero.

        Raises:
            ModelError: where it has no formula.
        """
        if self.whitened is not other.whitened or self.statistic or other.statistic:
            return None
        explained = torch.einsum("evd,ewd->evw", self.loadings, other.loadings)
        return self._under_q(other) - torch.block_diag(*explained)

    def _under_q(self, other: WhitenedReading) -> Tensor:
        """The covariance under q of what is no statistic ``[n, m]``."""
        block = self.whitened.block
        if isinstance(block.family, Quadrature):
            own, others = (_values_at_nodes(block.family, self.natural, r.is_log) for r in (self, other))
            return _covariance_at_nodes(*own, *others, _at_nodes(block.family, self.natural)[2])
        params = block.family.to_params(self.natural.map(lambda t: t[0]))
        names = [block.sites[r.component].name for r in (self, other)]
        if isinstance(block.family, GaussianGamma):
            sizes = (self.shape.numel(), other.shape.numel())
            return block.family.distribution(params).covariance(*names).reshape(sizes)
        if self.component != other.component:
            raise _no_formula(block, self.component)
        marginal = block.family.marginals(params)[self.component]
        found = block.family.covariance(params) if marginal.event_shape else marginal.variance[..., None, None]
        if found is None:
            raise _no_formula(block, self.component)
        return torch.block_diag(*found.reshape(-1, *found.shape[-2:]))


def _no_formula(block: Block, component: int) -> ModelError:
    return ModelError(
        f"Expected a site whose covariances under q have a formula; got {block.sites[component].name!r} of the "
        f"{block.family.name} block {block.label!r}. Give it a factor of its own, or read another site."
    )


def _statistic(block: Block, component: int, is_log: bool) -> str | None:
    """The statistic that a component's value, or its logarithm, is; None where it is none."""
    if block.joint_normal and component < len(block.normal_sites):
        return None if isinstance(block.family, GaussianGamma) else "x"
    if block.joint_normal:
        return "log_precision" if is_log else "precision"
    moment = block.family.moments.get(((component, "log" if is_log else "x"),))
    return moment.statistic if moment is not None and moment.pattern in _AS_IT_IS else None


def _loadings(w: Whitened, component: int, is_log: bool, statistic: str | None, natural: Natural) -> Tensor:
    """The covariances under q of values with the uncorrelated statistics ``[elements, values, d]``.

    Raises:
        NotImplementedError: where there is no formula.
    """
    block = w.block
    if isinstance(block.family, Quadrature):
        values, element, masses = _at_nodes(block.family, natural)
        own = _values_at_nodes(block.family, natural, is_log)
        return (_covariance_at_nodes(*own, values, element, masses) @ w.inverse[0].mT).unsqueeze(0)
    if block.joint_normal and statistic == "x":
        return w.spread[:, block.joint_normal.parts[component].elements]
    if statistic is not None:
        return w.spread[:, w.rows(statistic, natural)]
    if is_log:
        raise NotImplementedError

    def means(leaves: Natural) -> Tensor:
        mean: Tensor = marginals(block, block.family.to_params(leaves))[block.sites[component].name].mean
        return mean.reshape(len(mean), _elements(block), -1)

    size = means(natural).shape[-1]
    return _slopes_of(block, natural, means, size) @ w.inverse.mT


# Factors by quadrature.


def _at_nodes(family: Quadrature, natural: Natural) -> tuple[Tensor, Tensor, Tensor]:
    """The functions of a scalar's factor at the nodes ``[K, d]``, the element that each is of ``[d]``, and the
    probability of each node by element ``[K, elements]``.
    """
    table = family.distribution(family.to_params(natural.map(lambda t: t[0])))
    values, masses = (t.movedim(-1, 0) for t in (table.transform(table.places), table.log_masses.exp()))
    masses = masses.reshape(len(masses), -1)
    everything = torch.arange(masses.shape[1], device=masses.device)
    found, elements = [], []
    for function in family.functions.values():
        found.append(function.evaluate(values).expand(len(values), *function.shape).reshape(len(values), -1))
        elements.append(everything if function.element is None else function.element.reshape(-1))
    return torch.cat(found, -1), torch.cat(elements), masses


def _values_at_nodes(family: Quadrature, natural: Natural, is_log: bool) -> tuple[Tensor, Tensor]:
    """The scalars themselves, or their logarithms, as :func:`_at_nodes` has functions."""
    table = family.distribution(family.to_params(natural.map(lambda t: t[0])))
    values = table.transform(table.places).movedim(-1, 0)
    values = values.reshape(len(values), -1)
    return values.log() if is_log else values, torch.arange(values.shape[1], device=values.device)


def _covariance_at_nodes(values: Tensor, element: Tensor, others: Tensor, places: Tensor, masses: Tensor) -> Tensor:
    """The covariances of functions of scalars ``[K, n]`` and ``[K, m]``: those of other elements are independent."""

    def centered(own: Tensor, where: Tensor) -> Tensor:
        weights = masses[:, where]
        own = torch.where((weights > 1e-35) & own.isfinite(), own, 0.0)  # what is infinite where there is nothing
        return (own - (weights * own).sum(0)) * weights.sqrt()

    found = centered(values, element).mT @ centered(others, places)
    return torch.where(element.unsqueeze(-1) == places, found, 0.0)


__all__ = ["Whitened", "WhitenedReading", "slopes_in", "whitened"]
