"""What terms read of the elements of a joint normal block."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from ..expressions.axes import Gather, Label, Labeled, read, spread
from ..expressions.terms import Factor
from ..families.joint_normal import Gaussian
from .blocks import Block


def family_of_elements(factor: Factor, owners: Mapping[str, tuple[Block, int]]) -> Gaussian | None:
    """The joint normal family that a factor reads elements of; None if there is none."""
    block, component = owners[factor.variable.root.site]
    family = block.joint_normal
    return family if family and component < len(family.parts) else None


def elements_of(factor: Factor, owners: Mapping[str, tuple[Block, int]]) -> Hashable | None:
    """What factors have in common that read elements of one joint normal block alike; None of others."""
    family = family_of_elements(factor, owners)
    return None if family is None else (id(family), factor.variable.shape)


def elements_read(
    family: Gaussian, rows: Sequence[Sequence[Factor]], owners: Mapping[str, tuple[Block, int]], label: Label
) -> tuple[str, Gather]:
    """The statistic of one element, or of two, that the factors of each row read, and where it is.

    Args:
        family: the family of the block.
        rows: the factors of terms that read elements alike, of which only the sites differ.
        owners: for each latent site its block and its place there.
        label: what the rows are along, the first dimension of the index.
    """
    found = [place for own in zip(*rows, strict=True) for place in _places(family, own, owners, label)]
    if len(found) == 1:
        return "x", Gather(*found[0])
    (first, own_labels), (second, its) = found
    labels = tuple(dict.fromkeys((*own_labels, *its)))
    where = {x: i for i, x in enumerate(labels)}
    first, second = torch.broadcast_tensors(spread(first, own_labels, where), spread(second, its, where))
    return "xx", Gather(family.places(first, second), labels)


def _places(
    family: Gaussian, factors: Sequence[Factor], owners: Mapping[str, tuple[Block, int]], label: Label
) -> list[Labeled]:
    """The elements that factors at one place of each row read, once for each of the power."""
    parts = [family.parts[owners[f.variable.site][1]] for f in factors]
    shape = parts[0].shape
    grid = torch.arange(shape.numel(), device=family.device).reshape(shape)
    axes = tuple([None if n == 1 else axis for axis, n in zip(factors[0].axes, shape, strict=True)])
    index, labels = read(grid, axes)
    offsets = torch.tensor([part.offset for part in parts], device=family.device)
    return [(index + offsets.reshape(-1, *[1] * index.ndim), (label, *labels))] * int(factors[0].power)


__all__ = ["elements_of", "elements_read", "family_of_elements"]
