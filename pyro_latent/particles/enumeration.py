"""Discrete sites summed out of a trace, exactly, by Pyro's tensor variable elimination."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from opt_einsum import shared_intermediates
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack, scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from ..errors import ModelError
from .sites import sample_sites

#: The plate that holds many draws, to the left of a program's own plates.
DRAWS = "_pyro_latent_draws"


def summed(trace: Trace) -> Tensor:
    """The log density of an enumerated trace: ``[]``, or ``[S]`` inside a plate of draws.

    Scales of enumerated sites apply after the sum, as in ``TraceEnum_ELBO``.

    Raises:
        ModelError: if these scales differ.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    plates = trace.plate_to_symbol
    sums = set(trace.symbol_to_dim) - set(plates.values())
    target = frozenset({plates[DRAWS]} if DRAWS in plates else ())
    plain: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    coupled: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    scales: list[Any] = []
    for site in sample_sites(trace).values():
        packed = site["packed"]
        ordinal = frozenset(plates[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        if sums.isdisjoint(packed["unscaled_log_prob"]._pyro_dims):
            plain.setdefault(ordinal, []).append(packed["log_prob"])
            continue
        scales.append(site["scale"])
        coupled.setdefault(ordinal, []).append(_masked(packed))
    if not coupled:  # components of one number each: nothing is left to sum
        return contract_to_tensor(plain, sums, target)
    scale = _packed_scale(_common(scales), trace)
    kept = target | frozenset(scale._pyro_dims)
    with shared_intermediates() as cache:
        found = contract_to_tensor(coupled, sums, kept, cache=cache)
        total = torch.einsum(f"{found._pyro_dims},{scale._pyro_dims}->{''.join(target)}", found, scale.to(found))
        return total + contract_to_tensor(plain, sums, target, cache=cache) if plain else total


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
