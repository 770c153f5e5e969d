"""A recording held against Pyro's own densities at one draw of the latents, site by site.

It finds what neither a rule nor the algebra was written for: an operation that the recording reads otherwise than
PyTorch computes it. It cannot see draws of a guide, constraints of parameters, or data that changes later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import RecordingError
from ..rules import unwrap
from ..values import broadcast_shapes
from .sites import Recording, ScoredSite

#: How far two densities may be apart, relative to the sum of the absolute values of their terms.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
#: A model whose distributions hold more numbers is not run again: Pyro lays a matrix out for each datum.
LARGEST_CHECK = 2**22
#: Constraints of probabilities of two outcomes.
_OF_TWO = (type(constraints.unit_interval), type(constraints.half_open_interval(0.0, 1.0)))
#: So many times the last digit of a probability is what it is compared from.
_DIGITS = 1e3
#: Densities of more elements are compared at every so many.
_LARGEST = 20_000


def check_recording(recording: Recording, trace: Any) -> None:
    """The recorded log density of every site is Pyro's own at the values in a trace of the model.

    What is not finite in one of them says nothing, for a draw from a vague prior may overflow.

    Raises:
        RecordingError: naming the first site whose densities differ.
    """
    values = _values(recording, trace)
    for scored in recording.scored.values():
        node = trace.nodes.get(scored.name)
        usable = scored.density is not None and not scored.density.opacity and scored.density.sites <= values.keys()
        if node is None or not usable:
            continue
        found = _difference(scored, node, values, recording)
        if found is not None:
            recorded, actual = found
            parents = sorted(scored.density.sites - {scored.name})  # type: ignore[union-attr]
            raise RecordingError(
                f"Expected the recorded log density of site {scored.name!r} to be that of Pyro; got {recorded:.6g} for "
                f"{actual:.6g} at a draw of the latents. What the model computes from {parents} is read otherwise than "
                "PyTorch does. Write it with other operations; if the model draws numbers that are no sites, write "
                "AutoConjugate(model, check=False)."
            )


def _values(recording: Recording, trace: Any) -> dict[str, Tensor]:
    """The values of the latents as the recording measures them, as far as they have its shapes, where the data is: what
    is drawn from a prior of plain numbers is not there.
    """
    found, device = {}, recording.device
    for name, site in recording.latents.items():
        value = trace.nodes[name]["value"].detach().to(device) if name in trace.nodes else None
        if value is not None and value.shape == site.shape:
            found[name] = value if site.origin is None else value - site.origin
    for name, discrete in recording.discrete.items():
        event = discrete.support.ndim - 1
        value = trace.nodes[name]["value"].to(device) if name in trace.nodes else None
        if value is not None and value.shape == discrete.batch_shape + discrete.support.shape[1:]:
            if event:
                equal = value.unsqueeze(-1 - event) == discrete.support
                found[name] = equal.flatten(equal.ndim - event).all(-1).int().argmax(-1)
            else:  # without a table of all values for each element
                order = discrete.support.argsort()
                place = torch.searchsorted(discrete.support, value.to(discrete.support), sorter=order)
                found[name] = order[place.clamp(max=len(order) - 1)]
    return found


def _difference(
    scored: ScoredSite, node: Mapping[str, Any], values: Mapping[str, Tensor], recording: Recording
) -> tuple[float, float] | None:
    """The two densities at the first element where they differ; None where they do not."""
    assert scored.density is not None
    tolerance, device = _TOLERANCE[recording.dtype], recording.device
    try:
        actual = node["fn"].log_prob(node["value"]).detach().to(device)
    except (ValueError, NotImplementedError, RuntimeError):  # data outside of the support at this draw
        return None
    least = math.log(torch.finfo(actual.dtype).eps)  # PyTorch rounds probabilities below that up to it
    actual, shape = actual.double(), broadcast_shapes(actual.shape, scored.density.shape)
    thin = _thinned(shape)
    density = scored.density.expand(shape).take(thin) if thin else scored.density.expand(shape)
    actual = actual.expand(shape)[thin]
    terms = [term.to(device) for term in density.summands(values)]
    recorded = density.evaluate(values).to(device) if density.pieces else sum(terms, torch.zeros_like(actual))
    size = 1 + actual.abs() + sum(t.abs() for t in terms)
    seen = recorded.isfinite() & actual.isfinite() & size.isfinite() & ((actual - least).abs() > 1e-3)
    settled = _settled(node["fn"])
    if settled is not None:
        seen = seen & settled.to(device).expand(shape)[thin]
    if scored.mask is not None:
        seen = seen & scored.mask.expand(shape)[thin]
    wrong = seen & ((recorded - actual).abs() > tolerance * size)
    if not bool(wrong.any()):
        return None
    return float(recorded[wrong][0]), float(actual[wrong][0])


def _settled(fn: Any) -> Tensor | None:
    """Where the probabilities of two outcomes are far enough from 0 and 1 to have digits, over the batch shape; None of
    other distributions. PyTorch's own density is of rounded ones elsewhere.
    """
    base, events, _ = unwrap(fn)
    probs = vars(base).get("probs")
    if not isinstance(getattr(base, "arg_constraints", {}).get("probs"), _OF_TWO) or probs is None:
        return None
    margin = _DIGITS * torch.finfo(probs.dtype).eps
    found: Tensor = (probs > margin) & (probs < 1 - margin)
    return found.flatten(found.ndim - events).all(-1) if events else found


def _thinned(shape: torch.Size) -> tuple[slice, ...]:
    """An index of some elements of a large shape."""
    steps = []
    left = shape.numel()
    for n in shape:
        step = min(n, -(-left // _LARGEST))
        steps.append(slice(None, None, max(1, step)))
        left = -(-left // max(1, step))
    return tuple(steps)


__all__ = ["LARGEST_CHECK", "check_recording"]
