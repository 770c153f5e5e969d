"""A recording held against Pyro's own densities at one draw of the latents, site by site.

It finds what neither a rule nor the algebra was written for: an operation that the recording reads otherwise than
PyTorch computes it. It cannot see draws of a guide, constraints of parameters, or data that changes later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import RecordingError
from ..expressions import Expression
from ..expressions.alike import evaluated
from ..expressions.evaluation import LatentValues
from ..rules import unwrap
from ..values import broadcast_shapes
from .data import joined_mask
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


@dataclass(frozen=True)
class _Pair:
    """The two densities of a site, element by element, and the sum of the absolute values of the terms of one.

    ``shown``: the elements that are compared, or None for all; ``least``: what PyTorch rounds logarithms of
    probabilities up to.
    """

    scored: ScoredSite
    recorded: Tensor
    actual: Tensor
    size: Tensor
    shown: Tensor | None
    least: float


def check_recording(recording: Recording, trace: Any) -> None:
    """The recorded log density, scale and mask of every site are Pyro's own in a trace of the model.

    What is not finite in a density says nothing, for a draw from a vague prior may overflow.

    Raises:
        RecordingError: naming the first site where they differ.
    """
    for scored in recording.scored.values():
        if scored.name in trace.nodes:
            _check_weights(scored, trace.nodes[scored.name], recording)
    pairs = _pairs(recording, trace)
    found = _difference(pairs, _TOLERANCE[recording.dtype])
    if found is not None:
        scored, recorded, actual = found
        parents = sorted(scored.density.sites - {scored.name})  # type: ignore[union-attr]
        raise RecordingError(
            f"Expected the recorded log density of site {scored.name!r} to be that of Pyro; got {recorded:.6g} for "
            f"{actual:.6g} at a draw of the latents. What the model computes from {parents} is read otherwise than "
            "PyTorch does. Write it with other operations; if it writes into a tensor that a density has read, write "
            "into a new one; if the model draws numbers that are no sites, write AutoConjugate(model, check=False)."
        )


def _check_weights(scored: ScoredSite, node: Mapping[str, Any], recording: Recording) -> None:
    """The scale and the mask of a site are those that the model gives it when it runs again.

    Raises:
        RecordingError: naming the site.
    """
    scale = node["scale"]
    if not recording.rescaled:
        scale = scale / math.prod(p.full_size / p.size for p in scored.plates)
    mask = joined_mask([node["mask"], *unwrap(node["fn"])[2]], recording.device)
    for kind, ours, theirs in (("scale", scored.scale, scale), ("mask", scored.mask, mask)):
        if _differ(ours, theirs, 1.0 if kind == "scale" else True):
            raise RecordingError(
                f"Expected the {kind} of site {scored.name!r} to be the same each time that the model runs with the "
                "same arguments; got another one when it ran again. A model that counts its runs, or draws numbers "
                f"that are no sites, is another one each time. Pass the {kind} to it as an argument."
            )


def _differ(ours: object, theirs: object, default: float | bool) -> bool:
    """Whether two weights of a site, where None stands for the default, are not the same numbers."""
    ours, theirs = (default if weight is None else weight for weight in (ours, theirs))
    if not isinstance(ours, Tensor) and not isinstance(theirs, Tensor):  # as at each step of a long loop
        return bool(ours != theirs)
    a, b = (torch.as_tensor(weight).cpu() for weight in (ours, theirs))
    try:
        return not torch.equal(*torch.broadcast_tensors(a, b.to(a.dtype)))
    except RuntimeError:
        return True


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


def _pairs(recording: Recording, trace: Any) -> list[_Pair]:
    """The two densities of each site; of none whose data is outside of the support at this draw."""
    values, found = _values(recording, trace), []
    for scored in recording.scored.values():
        node, density = trace.nodes.get(scored.name), scored.density
        usable = density is not None and not density.opacity and density.sites <= values.keys()
        actual = _log_prob(node) if node is not None and usable else None
        if actual is not None:
            assert density is not None
            found.append((scored, node, actual.to(recording.device), _shown(density, actual.shape)))
    both = evaluated([density for *_, density in found], LatentValues(values))
    return [
        _pair(scored, node, actual, *each, recording.device)
        for (scored, node, actual, _), each in zip(found, both, strict=True)
    ]


def _log_prob(node: Mapping[str, Any]) -> Tensor | None:
    """Pyro's own density of a site; None where the data is outside of the support."""
    try:
        found: Tensor = node["fn"].log_prob(node["value"]).detach()
    except (ValueError, NotImplementedError, RuntimeError):
        return None
    return found


def _shown(density: Expression, shape: torch.Size) -> Expression:
    """The elements of a density that are compared, at the shape of both."""
    shape = broadcast_shapes(shape, density.shape)
    density = density if density.shape == shape else density.expand(shape)
    return density.take(_thinned(shape)) if shape.numel() > _LARGEST else density


def _pair(
    scored: ScoredSite, node: Mapping[str, object], actual: Tensor, recorded: Tensor, size: Tensor, device: torch.device
) -> _Pair:
    """The two densities of a site, where they are compared."""
    least = math.log(torch.finfo(actual.dtype).eps)
    assert scored.density is not None
    shape = broadcast_shapes(actual.shape, scored.density.shape)
    thin = _thinned(shape)
    actual = actual.double().expand(shape)[thin]
    masks = [m for m in (_settled(node["fn"]), scored.mask) if m is not None]
    shown = [m.to(device).expand(shape)[thin].flatten() for m in masks]
    seen = None if not shown else shown[0] & shown[-1]
    recorded, size = (t.to(device).expand(actual.shape).flatten() for t in (recorded, size + 1 + actual.abs()))
    return _Pair(scored, recorded, actual.flatten(), size, seen, least)


def _difference(pairs: Sequence[_Pair], tolerance: float) -> tuple[ScoredSite, float, float] | None:
    """The first site whose densities differ, and both at its first element where they do; None where none does.

    The elements of all sites are compared at once, for a loop may have many.
    """
    if not pairs:
        return None
    recorded, actual, size = (torch.cat([getattr(p, name) for p in pairs]) for name in ("recorded", "actual", "size"))
    counts = torch.tensor([len(p.actual) for p in pairs], device=actual.device)
    least = torch.tensor([p.least for p in pairs], dtype=actual.dtype, device=actual.device).repeat_interleave(counts)
    seen = recorded.isfinite() & actual.isfinite() & size.isfinite() & ((actual - least).abs() > 1e-3)
    wrong = seen & ((recorded - actual).abs() > tolerance * size)
    if any(p.shown is not None for p in pairs):
        wrong &= torch.cat([torch.ones_like(p.actual, dtype=torch.bool) if p.shown is None else p.shown for p in pairs])
    if not bool(wrong.any()):
        return None
    first = int(wrong.int().argmax())
    number = int((counts.cumsum(0) <= first).sum())
    return pairs[number].scored, float(recorded[first]), float(actual[first])


def _settled(fn: object) -> Tensor | None:
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
