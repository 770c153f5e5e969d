"""What several processes say to each other about the globals, by one all-reduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError
from ..objective import DataSummary, Program
from ..recording import ScoredSite, difference_of, identity_outside_parts, is_in_part
from .ranks import Ranks


class _Entry(NamedTuple):
    """A constant of a summary: its key, and its shape ``[starts, ...]``."""

    key: Any
    shape: torch.Size


class Exchange:
    """What the processes say to each other about the globals: summaries, added up by one all-reduce.

    Args:
        ranks: the processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._entries: list[_Entry] | None = None
        self._alike: Mapping[str, Any] = {}
        self._sites: dict[str, ScoredSite] = {}  # outside of the parts of the data, and what they are known by
        self._identity: dict[str, Any] = {}

    def total(
        self, program: Program, found: DataSummary, more: Sequence[float] = (), alike: Mapping[str, Any] | None = None
    ) -> tuple[DataSummary, list[float]]:
        """The sums, over all processes, of their summaries and of more numbers.

        Args:
            program: that of the data here.
            found: what the data here say.
            more: numbers that are added up besides.
            alike: what must be the same in all processes, by the name that an error gives it.

        What a process without data says counts for nothing.

        Raises:
            ModelError: in all processes, if that, or a density or data that is in no part of the data, is not the same,
                or the summaries differ in shape.
        """
        if self.ranks.any(not self._is_known(found, alike or {}, program)):
            self._check_alike(alike or {})
            self._check_outside(program)
            self._entries, self._alike = self._agreed_entries(found), alike or {}
        assert self._entries is not None
        if self.ranks.stands_in:
            found, more = found.times(0.0), [0.0] * len(more)
        own = found.constants
        parts = [own[e.key] if e.key in own else found.number.new_zeros(e.shape) for e in self._entries]
        parts += [found.number, found.magnitude, found.number.new_tensor(list(more))]
        flat = torch.cat([p.reshape(-1) for p in parts])
        sums: tuple[Tensor, ...] = self.ranks.total(flat).split([p.numel() for p in parts])
        pairs = zip(self._entries, sums, strict=False)
        constants = {e.key: c.reshape(e.shape) for e, c in pairs}
        return DataSummary(constants, sums[-3], sums[-2]), sums[-1].tolist() if more else []

    def _is_known(self, found: DataSummary, alike: Mapping[str, object], program: Program) -> bool:
        """Whether all processes know what this one would tell, as far as it can say."""
        if self._entries is None or alike != self._alike or not self._is_as_before(program):
            return False
        shapes = {e.key: e.shape for e in self._entries}
        return all(shapes.get(key) == constant.shape for key, constant in found.constants.items())

    def _is_as_before(self, program: Program) -> bool:
        """Whether priors, and data outside of the parts of the data, are those that the processes have compared."""
        sites = program.recording.scored
        if all(sites.get(name) is site for name, site in self._sites.items()):  # as in a program that was not recorded
            return True
        if identity_outside_parts(program.recording) != self._identity:
            return False
        self._sites = _outside(program)
        return True

    def _check_outside(self, program: Program) -> None:
        """Raise in all processes where priors, or data outside of the parts of the data, are not the same in all."""
        if self.ranks.size == 1:
            return
        identity = identity_outside_parts(program.recording)
        by_rank = self.ranks.gathered(identity)
        for rank, own in enumerate(by_rank):
            different = difference_of(by_rank[0], own)
            if different is not None:
                raise ModelError(
                    "Expected the same priors, and data outside of the subsampled plate, in all processes at each "
                    f"step; got {different} in process {rank} than in process 0. Change them in all before one step."
                )
        self._sites, self._identity = _outside(program), identity

    def _check_alike(self, alike: Mapping[str, object]) -> None:
        """Raise in all processes where something is not the same in all of them."""
        by_rank = self.ranks.gathered(dict(alike))
        for rank, own in enumerate(by_rank):
            for name, first in by_rank[0].items():
                if own.get(name) != first:
                    raise ModelError(
                        f"Expected the same {name} in all processes; got {first} in process 0 and {own.get(name)} in "
                        f"process {rank}."
                    )

    def _agreed_entries(self, found: DataSummary) -> list[_Entry]:
        """The constants that the summary of some shard has, in an order that all processes share.

        Raises:
            ModelError: in all processes, if they differ in shape.
        """
        by_rank = self.ranks.gathered([_Entry(key, constant.shape) for key, constant in found.constants.items()])
        entries: dict[Any, tuple[int, _Entry]] = {}
        for rank, own in enumerate(by_rank):
            for entry in own:
                first, known = entries.setdefault(entry.key, (rank, entry))
                if known.shape != entry.shape:
                    raise ModelError(
                        f"Expected summaries of the globals of one shape; got {list(known.shape)} in process {first} "
                        f"and {list(entry.shape)} in process {rank}. Give all processes the same globals."
                    )
        return [entry for _, entry in entries.values()]

    def forget(self) -> None:
        """Forget what the processes have told each other: another model, or other starts, come."""
        self._entries = None


def _outside(program: Program) -> dict[str, ScoredSite]:
    return {name: site for name, site in program.recording.scored.items() if not is_in_part(site)}


__all__ = ["Exchange"]
