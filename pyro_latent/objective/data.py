"""What a recording asks of distributions and data: supports, placeholders, and whether observed data fits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pyro.distributions import constraints
from torch import Tensor

from ..errors import DataError, NotConjugateError
from ..expressions import RandomTensor
from ..rules import RandomDistribution, family_class, unwrap, unwrap_masks
from .recording import Plate


def dtypes_of(distribution: Any) -> set[torch.dtype]:
    """The floating dtypes of a distribution's parameters."""
    found = set()
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    for value in vars(distribution).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            found.add(value.dtype)
    return found


def is_discrete(fn: Any) -> bool:
    return bool(placeholder_distribution(fn).support.is_discrete)


def placeholder_distribution(fn: Any) -> Any:
    """The distribution with its latent arguments at their placeholders."""
    base, reinterpreted, _ = unwrap(fn)
    plain = base.placeholder.expand(base.batch_shape) if isinstance(base, RandomDistribution) else base
    return plain.to_event(reinterpreted) if reinterpreted else plain


def support_of(name: str, fn: Any) -> Tensor:
    """The values of a discrete latent, one in each row: ``[K] + event``.

    Raises:
        NotConjugateError: if there are infinitely many, or they depend on a latent.
    """
    base, reinterpreted, _ = unwrap(fn)
    if reinterpreted:
        raise NotConjugateError(
            f"Expected discrete latents one by one; got site {name!r}, an event of several. Put them into a "
            "pyro.plate, without .to_event()."
        )
    if _bound_by_latent(base):
        raise NotConjugateError(
            f"Expected a known total_count of the discrete latent {name!r}; got one that depends on latents. Write it "
            "as a sum of Bernoulli sites."
        )
    try:
        support: Tensor = placeholder_distribution(fn).enumerate_support(expand=False)
    except NotImplementedError:
        raise NotConjugateError(
            f"Expected discrete latents that can be enumerated; got site {name!r}, a {family_class(base).__name__} "
            "with infinitely many values, or without a list of them."
        ) from None
    return support.reshape(support.shape[0], *fn.event_shape)


def _bound_by_latent(base: Any) -> bool:
    """Whether the support of a base distribution depends on a latent."""
    bounds = ("total_count", "low", "high")
    return isinstance(base, RandomDistribution) and any(isinstance(base.arguments.get(n), RandomTensor) for n in bounds)


def base_constraint(support: Any) -> Any:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def ends_in_simplex(support: Any) -> bool:
    return isinstance(base_constraint(support), type(constraints.simplex))


def is_nonnegative(support: Any) -> bool:
    """Whether no element of a value in the support is below zero."""
    base = base_constraint(support)
    least = getattr(base, "lower_bound", None)
    return ends_in_simplex(support) or (least is not None and bool(torch.as_tensor(least >= 0).all()))


def feasible(support: Any, shape: torch.Size, like: Tensor) -> Tensor:
    """A value inside the support."""
    base = base_constraint(support)
    value = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if isinstance(base, type(constraints.simplex)):
        return value + 1.0 / shape[-1]
    if isinstance(base, type(constraints.positive_definite)):
        return value + torch.eye(shape[-1], dtype=like.dtype, device=like.device)
    if isinstance(base, type(constraints.unit_interval)):
        return value + 0.5
    if isinstance(base, constraints.greater_than | constraints.greater_than_eq):
        return value + base.lower_bound + 1.0
    return value


def joined_mask(masks: list[Any], device: torch.device) -> Tensor | Literal[False] | None:
    """The conjunction of masks: None for all true, False for all false."""
    joined: Tensor | None = None
    for mask in masks:
        if mask is None or mask is True:
            continue
        if mask is False:
            return False
        joined = mask.to(device) if joined is None else joined & mask
    return joined


def check_shape(name: str, fn: Any, value: Tensor, plates: tuple[Plate, ...]) -> None:
    """Observed data has the event's shape and fits its plates.

    Raises:
        DataError: if it does not.
    """
    event = len(fn.event_shape)
    batch = value.shape[: value.ndim - event]
    if value.ndim < event or value.shape[value.ndim - event :] != fn.event_shape:
        raise DataError(
            f"Expected data at site {name!r} of shape {tuple(fn.batch_shape)} + {tuple(fn.event_shape)}; got "
            f"{tuple(value.shape)}."
        )
    if not isinstance(value, RandomTensor):
        check_plates(name, batch, plates, "observed", value.shape)


def checked_data(name: str, fn: Any, value: Any, mask: Tensor | None) -> Any:
    """Observed data, with the elements that a mask hides replaced by one that it does not.

    Raises:
        DataError: if what is left is not finite, outside the support, complex, of half precision, or of the wrong event
            shape.
    """
    if not isinstance(value, Tensor) or isinstance(value, RandomTensor):
        return value
    if value.is_complex():
        raise DataError(
            f"Expected real data at site {name!r}; got {value.dtype}. Give its real and imaginary parts as two "
            "elements of an event: torch.view_as_real(x)."
        )
    if value.dtype in (torch.float16, torch.bfloat16):
        raise DataError(
            f"Expected data of float32 or float64 at site {name!r}; got {value.dtype}. Convert it: x.float()."
        )
    event = fn.event_shape
    value = value.detach()
    for cells in unwrap_masks(fn)[3]:
        shape = torch.broadcast_shapes(cells.shape, value.shape)
        seen = value.expand(shape)[cells.expand(shape)]
        value = torch.where(cells, value, seen[0] if len(seen) else torch.ones((), dtype=value.dtype))
    if mask is not None:
        shape = torch.broadcast_shapes(mask.shape, value.shape[: value.ndim - len(event)])
        shown = mask.expand(shape).reshape(shape + (1,) * len(event)).expand(shape + event)
        full = value.expand(shape + event)
        kept = full[mask.expand(shape)]
        filler = kept[0] if len(kept) else feasible(fn.support, event, full)
        inside = placeholder_distribution(fn).support.check(full)
        usable = inside.reshape(inside.shape + (1,) * len(event)) & full.isfinite()
        usable = usable.flatten(shown.ndim - len(event)).all(-1).reshape(shape + (1,) * len(event)) if event else usable
        value = torch.where(shown | usable, full, filler.to(full.dtype))
    wrong = int((~value.isfinite()).sum()) if value.is_floating_point() else 0
    if wrong:
        raise DataError(
            f"Expected finite data at site {name!r}; got {wrong} of {value.numel()} elements NaN or infinite. Remove "
            f"them, or hide "
            "them with obs_mask= or poutine.mask."
        )
    if _bound_by_latent(unwrap(fn)[0]):
        return value  # its density says which values of the latent allow it
    support = placeholder_distribution(fn).support
    inside = support.check(value)
    if not bool(inside.all()):
        bad = int((~inside).sum())
        raise DataError(
            f"Expected data at site {name!r} in {support}; got {bad} of {inside.numel()} values outside it."
        )
    return value


def check_plates(
    name: str,
    shape: torch.Size,
    plates: tuple[Plate, ...],
    kind: str,
    shown: torch.Size | None = None,
) -> None:
    """Every dimension of a batch shape belongs to a plate; errors print the shape ``shown``."""
    shown = shape if shown is None else shown
    sizes = {plate.dim: plate.size for plate in plates}
    for i, n in enumerate(shape):
        dim = i - len(shape)
        if n == 1:
            continue
        if dim not in sizes:
            raise DataError(
                f"Expected every batch dimension of the {kind} site {name!r} to be in a plate; got shape "
                f"{tuple(shown)}, whose "
                f"dimension {dim} of size {n} is in none. Declare it with pyro.plate, or make it part of the event "
                f"with .to_event()."
            )
        if n != sizes[dim]:
            raise DataError(
                f"Expected size {sizes[dim]} along the plate at dimension {dim} of the {kind} site {name!r}; got "
                f"shape {tuple(shown)}."
            )


def seen_data(value: Tensor, mask: Tensor | None, event_dim: int) -> Tensor:
    """Floating data with NaN in place of what a mask over its batch dimensions hides, or what is not finite."""
    value = torch.where(value.isfinite(), value, torch.nan)
    return value if mask is None else torch.where(mask.reshape(mask.shape + (1,) * event_dim), value, torch.nan)


def mean_over(value: Tensor, axes: tuple[Any, ...]) -> Tensor:
    """The mean of finite data over every dimension that the axes do not run along; size 1 where they gather."""
    value = seen_data(value, None, 0)
    labels = [a for a in axes if _runs_along(a, value)]
    gone = [d for d in range(value.ndim) if d - value.ndim not in labels]
    mean = value.double().nanmean(gone) if gone else value.double()
    kept = [d - value.ndim for d in range(value.ndim) if d not in gone]
    mean = torch.nan_to_num(mean).to(value.dtype).permute([kept.index(a) for a in labels])
    return mean.reshape([value.shape[a] if _runs_along(a, value) else 1 for a in axes])


def _runs_along(axis: Any, value: Tensor) -> bool:
    return isinstance(axis, int) and -value.ndim <= axis < 0
