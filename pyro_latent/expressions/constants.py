"""The constants of terms: tensors whose dimensions run along labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..values import all_finite
from .axes import Axis, Label, Labeled, Labels, is_free, read, spread, unique_labels


@dataclass(frozen=True, eq=False)
class Constant:
    """A floating tensor with one dimension for each label."""

    tensor: Tensor
    labels: Labels

    @cached_property
    def is_finite(self) -> bool:
        return all_finite(self.tensor)

    def unrepeated(self) -> Labeled:
        """The tensor with one of the numbers that ``expand`` repeats along a free label, and the labels."""
        tensor = self.tensor
        for i, label in enumerate(self.labels):
            if is_free(label) and tensor.stride(i) == 0 and tensor.shape[i] > 1:
                tensor = tensor.narrow(i, 0, 1)
        return tensor, self.labels

    def is_diagonal(self, row: int, column: int) -> bool:
        """Whether the constant is zero wherever the two labels differ."""
        if not {row, column} <= set(self.labels):
            return False
        matrix = self.tensor.movedim((self.labels.index(row), self.labels.index(column)), (-2, -1))
        return torch.equal(matrix, matrix.diagonal(dim1=-2, dim2=-1).diag_embed())

    def without(self, label: Label) -> Constant:
        """The constant without a label, if it does not vary along it."""
        if label not in self.labels:
            return self
        place = self.labels.index(label)
        one = self.tensor.select(place, 0)
        if not torch.equal(self.tensor, one.unsqueeze(place).expand_as(self.tensor)):
            return self
        return Constant(one, tuple(x for x in self.labels if x != label))

    def substitute(self, mapping: Mapping[Label, Axis]) -> Constant:
        if not any(label in mapping for label in self.labels):
            return self
        return Constant(*read(self.tensor, tuple(mapping.get(label, label) for label in self.labels)))

    def chosen(self, mask: Constant) -> Constant:
        """The constant where the mask holds, and 0 elsewhere, infinite or not."""
        labels = unique_labels((*self.labels, *mask.labels))
        where = {label: place for place, label in enumerate(labels)}
        own, chosen = spread(self.tensor, self.labels, where), spread(mask.tensor, mask.labels, where)
        return Constant(torch.where(chosen != 0, own, torch.zeros_like(own)), labels)
