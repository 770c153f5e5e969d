"""Whether observed data fits its site: shapes, plates, masks, and values inside the support."""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import DataError, NotConjugateError
from ..expressions import RandomTensor
from ..rules import NAN_MASKED, family_class, is_checked, raw_arguments, unwrap, unwrap_masks, without_latents
from ..values import all_finite, broadcast_shapes
from .sites import Plate
from .supports import base_constraint, feasible, is_bound_by_latent


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


def undeclared_plates(fn: Any, value: Any, plates: tuple[Plate, ...]) -> tuple[Plate, ...]:
    """A plate for each batch dimension of a site that is in none: of its distribution's, and of its value's where no
    plate is declared. Where both have dimensions that the other lacks there is none, for nobody means that.
    """
    own = fn.batch_shape
    if not own and isinstance(value, Tensor) and value.ndim == len(fn.event_shape):
        return ()
    given = value.shape[: value.ndim - len(fn.event_shape)] if isinstance(value, Tensor) else own
    try:
        shape = broadcast_shapes(own, given)
    except RuntimeError:
        return ()
    if shape != own and (shape != given or plates):
        return ()
    declared = {plate.dim for plate in plates}
    sizes = {i - len(shape): n for i, n in enumerate(shape) if n != 1 and i - len(shape) not in declared}
    return tuple(Plate(f"dimension {dim} of size {n}", dim, n, n, declared=False) for dim, n in sizes.items())


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
        NotConjugateError: if it is a latent that may lie outside the support.
    """
    if isinstance(value, RandomTensor):
        _check_latent_value(name, fn, value)
    if not isinstance(value, Tensor) or isinstance(value, RandomTensor):
        return value
    _check_real(name, value)
    if 0 in fn.event_shape:
        return value  # of a factor, which has no data
    value = _without_hidden(fn, value.detach(), mask)
    if issubclass(family_class(unwrap(fn)[0]), NAN_MASKED):
        return value  # its density says that NaN counts for nothing
    _check_finite(name, value)
    if is_bound_by_latent(unwrap(fn)[0]):
        return value  # its density says which values of the latent allow it
    return _in_support(name, fn, value)


def _check_real(name: str, value: Tensor) -> None:
    """Data are real numbers, of a precision that is computed with.

    Raises:
        DataError: if they are complex or of half precision.
    """
    if value.is_complex():
        raise DataError(
            f"Expected real data at site {name!r}; got {value.dtype}. Give its real and imaginary parts as two "
            "elements of an event: torch.view_as_real(x)."
        )
    if value.dtype in (torch.float16, torch.bfloat16):
        raise DataError(
            f"Expected data of float32 or float64 at site {name!r}; got {value.dtype}. Convert it: x.float()."
        )


def _without_hidden(fn: Any, value: Tensor, mask: Tensor | None) -> Tensor:
    """Data with the elements that a mask hides replaced by one that it does not, where they are of no use."""
    event = fn.event_shape
    for cells in unwrap_masks(fn)[3]:
        shape = broadcast_shapes(cells.shape, value.shape)
        seen = value.expand(shape)[cells.expand(shape)]
        value = torch.where(cells, value, seen[0] if len(seen) else torch.ones((), dtype=value.dtype))
    if mask is None:
        return value
    shape = broadcast_shapes(mask.shape, value.shape[: value.ndim - len(event)])
    shown = mask.expand(shape).reshape(shape + (1,) * len(event)).expand(shape + event)
    full = value.expand(shape + event)
    kept = full[mask.expand(shape)]
    filler = kept[0] if len(kept) else feasible(fn.support, event, full)
    inside = without_latents(fn).support.check(full)
    usable = inside.reshape(inside.shape + (1,) * len(event)) & full.isfinite()
    usable = usable.flatten(shown.ndim - len(event)).all(-1).reshape(shape + (1,) * len(event)) if event else usable
    return torch.where(shown | usable, full, filler.to(full.dtype))


def _check_finite(name: str, value: Tensor) -> None:
    """Data are finite.

    Raises:
        DataError: if they are not.
    """
    if value.is_floating_point() and not all_finite(value):
        wrong = int((~value.isfinite()).sum())
        raise DataError(
            f"Expected finite data at site {name!r}; got {wrong} of {value.numel()} elements NaN or infinite. "
            "Remove them, or hide them with obs_mask= or poutine.mask."
        )


def _in_support(name: str, fn: object, value: Tensor) -> Tensor:
    """Data in the support of their distribution.

    Raises:
        DataError: if they are outside.
    """
    support = without_latents(fn).support
    inside = support.check(value)
    if bool(inside.all()):
        return value
    if issubclass(family_class(unwrap(fn)[0]), dist.Multinomial) and _are_counts(value):
        return _of_any_total(name, unwrap(fn)[0], value)
    bad = int((~inside).sum())
    raise DataError(f"Expected data at site {name!r} in {support}; got {bad} of {inside.numel()} values outside it.")


def _are_counts(value: Tensor) -> bool:
    return bool(((value >= 0) & (value == value.round())).all())


def _of_any_total(name: str, base: object, value: Tensor) -> Tensor:
    """Counts that add up to more than the trials of a Multinomial, whose density does not ask for their number.

    Raises:
        DataError: if the distribution checks its values.
    """
    if is_checked(base):
        most, trials = int(value.sum(-1).max()), int(torch.as_tensor(raw_arguments(base)["total_count"]).max())
        raise DataError(
            f"Expected counts at site {name!r} that add up to at most total_count={trials}; got {most} in a row. Write "
            f"total_count={most}, or validate_args=False where rows add up to different numbers."
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
                f"{tuple(shown)}, whose dimension {dim} of size {n} is in none. Declare it with pyro.plate, or make it "
                "part of the event with .to_event()."
            )
        if n != sizes[dim]:
            raise DataError(
                f"Expected size {sizes[dim]} along the plate at dimension {dim} of the {kind} site {name!r}; got "
                f"shape {tuple(shown)}."
            )


def seen_data(value: Tensor, mask: Tensor | None, event_dim: int) -> Tensor:
    """Floating data with NaN in place of what a mask over its batch dimensions hides, or what is not finite."""
    value = value if all_finite(value) else torch.where(value.isfinite(), value, torch.nan)
    return value if mask is None else torch.where(mask.reshape(mask.shape + (1,) * event_dim), value, torch.nan)


def _check_latent_value(name: str, fn: Any, value: RandomTensor) -> None:
    """A continuous latent that a site is observed at has no value outside the support: a rule scores all alike."""
    symbol, support = value.expression, base_constraint(without_latents(fn).support)
    least = getattr(support, "lower_bound", None)
    if symbol.is_table or symbol.opacity or support is constraints.real:
        return
    factors = [f for t in symbol.terms for f in t.factors]
    products = all(t.coefficient > 0 and all(bool((c.tensor > 0).all()) for c in t.constants) for t in symbol.terms)
    positive = products and all(f.function == "x" and f.variable.nonnegative for f in factors)
    above = isinstance(least, int | float) and least <= 0 and not hasattr(fn.support, "upper_bound")
    if not (above and positive) and not all(f.variable.simplex or f.variable.is_matrix for f in factors):
        raise NotConjugateError(
            f"Expected site {name!r} to be observed at values inside its support; got the latents "
            f"{sorted(symbol.sites)}, which may lie outside of it. Write pyro.sample({name!r}, ...) without obs=, or a "
            "latent with this support."
        )
