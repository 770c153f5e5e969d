"""The grid of a batch of densities that change while it stays, with the functions kept at its nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributions.grids import ANY, SMOOTH, Integrals, PanelTable, cut_within, on_grid
from ..distributions.kept_grids import KeptGrid, keeping_pays, kept_grid, on_kept_grid
from .exponent import Exponent
from .scalar_function import Function


class SettledGrid:
    """A grid that two optima in a row have had, on which the next ones are taken from functions at hand.

    Before the functions are kept, fewer nodes are tried once: densities may have become easier since the grid was cut.
    """

    def __init__(self) -> None:
        self._stays = False
        self._cut: Tensor | None = None  # the left ends of the grid that has the fewest nodes that it can have
        self._kept: tuple[list[tuple[str, Function]], KeptGrid] | None = None

    def see(self, found: Tensor, start: Tensor | None) -> None:
        """Take note of the left ends of an optimum, and of the one that it started from."""
        self._stays = start is not None and found.data_ptr() == start.data_ptr()

    @torch.no_grad()
    def optimum(self, exponent: Exponent, start: PanelTable | None, rows: int) -> tuple[PanelTable, Integrals] | None:
        """The optimum with its integrals on the nodes of the last one, whose table is given; None where these have not
        stayed, do not resolve the optimum, or are too few to be worth it. Otherwise functions are evaluated at ``rows``
        places at a time.
        """
        if start is None or not self._stays or start[0].shape[-1] != 1 or not exponent.can_be_kept:
            return None
        left, right, count = start[0][..., 0], start[1][..., 0], start[2].shape[-1]
        if not keeping_pays(exponent.num_kept, count, left.numel(), left.device):
            return None
        demands, functions = SMOOTH if exponent.is_smooth else ANY, list(exponent.functions.items())
        known = self._kept
        if known is None or known[0] != functions or not known[1].is_of(left, right, count, demands):
            if count > demands.counts[0] and not (self._cut is not None and self._cut.data_ptr() == left.data_ptr()):
                ends = cut_within(left, right, start[2], demands.depth)
                found = on_grid(exponent, *ends, demands.counts[0], rows, left.new_empty(0), demands)
                self._cut = left if found is None else found[0][0]
                if found is not None:
                    return found
            at_nodes = kept_grid(exponent.functions_at, left, right, count, demands, rows, exponent.num_kept)
            known = self._kept = functions, at_nodes
        return on_kept_grid(known[1], exponent.kept_slopes(known[1]), len(functions))


__all__ = ["SettledGrid"]
