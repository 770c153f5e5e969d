"""Discrete sites summed out of a trace, exactly, by Pyro's tensor variable elimination."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
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
        kept: the symbols of plates that stay apart, from the left to the right.
    """

    tensors: tuple[Any, ...]
    dims: tuple[str, ...]
    plates: tuple[frozenset[str], ...]
    sums: set[str]
    kept: str = ""

    @classmethod
    def of(cls, trace: Trace, without: Collection[str] = (), kept: Collection[str] = ()) -> Factors:
        """What a trace holds; scales of enumerated sites apply after the sum, as in ``TraceEnum_ELBO``.

        Args:
            trace: of a run.
            without: sites that do not count.
            kept: plates that stay apart: every site that counts lies in them.

        Raises:
            ModelError: if these scales differ.
        """
        trace.compute_log_prob()
        trace.pack_tensors({DRAWS: DRAW})
        symbols = trace.plate_to_symbol
        sums = set(trace.symbol_to_dim) - set(symbols.values())
        tensors: list[Any] = []
        plates, scales = [], []
        for site in (s for n, s in sample_sites(trace).items() if n not in without):
            packed = site["packed"]
            alone = sums.isdisjoint(packed["unscaled_log_prob"]._pyro_dims)
            tensors.append(packed["log_prob"] if alone else _masked(packed))
            plates.append(frozenset(symbols[f.name] for f in site["cond_indep_stack"] if f.vectorized))
            scales += [] if alone else [site["scale"]]
        tensors.append(_packed_scale(_common(scales or [1.0]), trace))
        apart = sorted((trace.symbol_to_dim[symbols[n]], symbols[n]) for n in kept)
        order = "".join(symbol for _, symbol in apart)
        return cls(tuple(tensors), tuple(t._pyro_dims for t in tensors), tuple(plates), sums, order)

    def of_draws(self, tensors: tuple[Tensor, ...]) -> Factors:
        """The same factors of many draws, along the first dimension of each of ``tensors``."""
        dims, plates = tuple(DRAW + d for d in self.dims), tuple(p | {DRAW} for p in self.plates)
        return Factors(tensors, dims, plates, self.sums, self.kept)

    def total(self) -> Tensor:
        """The log density with sites summed out, over the plates that are kept: ``[*kept]``, or ``[S, *kept]`` of S
        draws.
        """
        for tensor, dims in zip(self.tensors, self.dims, strict=True):
            tensor._pyro_dims = dims
        *densities, scale = self.tensors
        plain: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        coupled: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for tensor, plates in zip(densities, self.plates, strict=True):
            tree = plain if self.sums.isdisjoint(tensor._pyro_dims) else coupled
            tree.setdefault(plates, []).append(tensor)
        drawn = DRAW if any(DRAW in plates for plates in self.plates) else ""
        target = drawn + self.kept
        if not coupled:  # components of one number each: nothing is left to sum
            return _ordered(contract_to_tensor(plain, self.sums, frozenset(target)), target)
        apart = frozenset(target) | frozenset(scale._pyro_dims)
        with shared_intermediates() as cache:
            found = contract_to_tensor(coupled, self.sums, apart, cache=cache)
            total = torch.einsum(f"{found._pyro_dims},{scale._pyro_dims}->{target}", found, scale.to(found))
            if not plain:
                return total
            return total + _ordered(contract_to_tensor(plain, self.sums, frozenset(target), cache=cache), target)


def _ordered(tensor: Tensor, target: str) -> Tensor:
    """A packed tensor with its dimensions in an order."""
    dims: str = tensor._pyro_dims  # type: ignore[attr-defined]
    return tensor.permute([dims.index(symbol) for symbol in target])


def _packed_scale(scale: object, trace: Trace) -> Any:
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
