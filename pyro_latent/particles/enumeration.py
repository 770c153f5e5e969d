"""Discrete sites summed out of a trace, exactly, by Pyro's tensor variable elimination."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from opt_einsum import get_symbol, shared_intermediates
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from ..errors import ModelError
from .sites import sample_sites

#: The plate that holds many draws, to the left of a program's own plates, and the symbol of its dimension.
DRAWS, DRAW = "_pyro_latent_draws", get_symbol(0)


class Factors(NamedTuple):
    """The log densities of an enumerated trace, as Pyro packs them: every dimension has a symbol.

    Attributes:
        tensors: the log density of each site, and last the scale of those that sites are summed out of.
        dims: the symbols of each tensor's dimensions.
        plates: the symbols of the plates that each site lies in.
        sums: the symbols of the sites to sum out.
    """

    tensors: tuple[Any, ...]
    dims: tuple[str, ...]
    plates: tuple[frozenset[str], ...]
    sums: set[str]

    @classmethod
    def of(cls, trace: Trace) -> Factors:
        """What a trace holds; scales of enumerated sites apply after the sum, as in ``TraceEnum_ELBO``.

        Raises:
            ModelError: if these scales differ.
        """
        trace.compute_log_prob()
        trace.pack_tensors({DRAWS: DRAW})
        symbols = trace.plate_to_symbol
        sums = set(trace.symbol_to_dim) - set(symbols.values())
        tensors: list[Any] = []
        plates, scales = [], []
        for site in sample_sites(trace).values():
            packed = site["packed"]
            alone = sums.isdisjoint(packed["unscaled_log_prob"]._pyro_dims)
            tensors.append(packed["log_prob"] if alone else _masked(packed))
            plates.append(frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized))
            scales += [] if alone else [site["scale"]]
        tensors.append(_packed_scale(_common(scales or [1.0]), trace))
        return cls(tuple(tensors), tuple(t._pyro_dims for t in tensors), tuple(plates), sums)

    def of_draws(self, tensors: tuple[Tensor, ...]) -> Factors:
        """The same factors of many draws, along the first dimension of each of ``tensors``."""
        return Factors(tensors, tuple(DRAW + d for d in self.dims), tuple(p | {DRAW} for p in self.plates), self.sums)

    def total(self) -> Tensor:
        """The log density with sites summed out: ``[]``, or ``[S]`` of S draws."""
        for tensor, dims in zip(self.tensors, self.dims, strict=True):
            tensor._pyro_dims = dims
        *densities, scale = self.tensors
        plain: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        coupled: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for tensor, plates in zip(densities, self.plates, strict=True):
            tree = plain if self.sums.isdisjoint(tensor._pyro_dims) else coupled
            tree.setdefault(plates, []).append(tensor)
        target = frozenset(DRAW).intersection(itertools.chain(*self.plates))
        if not coupled:  # components of one number each: nothing is left to sum
            return contract_to_tensor(plain, self.sums, target)
        kept = target | frozenset(scale._pyro_dims)
        with shared_intermediates() as cache:
            found = contract_to_tensor(coupled, self.sums, kept, cache=cache)
            total = torch.einsum(f"{found._pyro_dims},{scale._pyro_dims}->{''.join(target)}", found, scale.to(found))
            return total + contract_to_tensor(plain, self.sums, target, cache=cache) if plain else total


def _packed_scale(scale: Any, trace: Trace) -> Any:
    """A scale as Pyro packs tensors: its dimensions are plates, of which it has one number each (counts of words)."""
    return pack(torch.as_tensor(scale), {dim: symbol for symbol, dim in trace.symbol_to_dim.items()})


def _masked(packed: Any) -> Tensor:
    """The unscaled log density, 0 behind the mask, with the dimensions that Pyro notes on packed tensors."""
    masked: Tensor = scale_and_mask(packed["unscaled_log_prob"], mask=packed["mask"])
    return masked


def _common(scales: list[Any]) -> Any:
    first = scales[0]
    for other in scales[1:]:
        if not (other is first or bool(torch.as_tensor(other == first).all())):
            raise ModelError(
                "Expected one scale for all enumerated sites and what depends on them; got several. Scale the whole "
                "model, or sample these sites in the guide."
            )
    return first
