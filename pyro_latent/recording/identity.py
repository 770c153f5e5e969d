"""What a recorded model is known by, so that a file is taken up by a run of the same model on the same data alone.

By site that is: its distribution and plates, the products of latents in its log density, and for the constants in them
two sums, which are compared up to rounding; for what was observed, a digest of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ..checkpoint import fingerprint
from ..errors import CheckpointError
from ..expressions import Expression
from ..expressions.terms import LogOfSum, Term
from ..expressions.variables import Variable
from ..signatures import Args, Model
from .run import record
from .sites import Recording, ScoredSite

#: Constants are the same if their sums differ by no more than this, relative to the sum of absolute values.
_TOLERANCE = 1e-6


def identity_of(recording: Recording) -> dict[str, Any]:
    """What a recording is known by, in plain types: by site in the order of the model, its structure, its numbers and
    the digest of its data. Of sites in subsampled plates, which hold a minibatch, it is the structure alone.
    """
    return {
        name: [
            *_density_of(site, recording),
            "" if not site.observed or is_in_part(site) else _data_of(recording, name),
        ]
        for name, site in recording.scored.items()
    }


def identity_outside_parts(recording: Recording) -> dict[str, Any]:
    """What priors, and data that no shard or minibatch is a part of, are known by: all sites in no subsampled plate."""
    return {
        name: [*_density_of(site, recording), _data_of(recording, name) if site.observed else ""]
        for name, site in recording.scored.items()
        if not is_in_part(site)
    }


def identity_of_call(model: Model, args: Args, kwargs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """What a recording of this call is known by; ``options`` are those of ``record``.

    Subsamples are always the same, and no latent is measured from an origin, which the data would give.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return identity_of(record(model, *args, origins={}, **options, **kwargs))


def difference_of(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """What another model, or other data, has for ours, in words; None where they are the same."""
    if list(ours) != list(theirs):
        return f"the sites {list(theirs)} for {list(ours)}"
    for name in ours:
        own, other = _alike(ours[name], theirs[name]), _alike(theirs[name], ours[name])
        (structure, numbers, data), (their_structure, their_numbers, their_data) = own, other
        if structure != their_structure or not _same_numbers(numbers, their_numbers):
            return f"another density of site {name!r}"
        if data != their_data:
            return f"other data at site {name!r}"
    return None


def check_identity(ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    """Raise where a file is of another model, or of other data.

    Raises:
        CheckpointError: naming the first site that differs.
    """
    different = difference_of(ours, theirs)
    if different is not None:
        raise CheckpointError(
            f"Expected a checkpoint of the same model with the same data; got one with {different}. "
            "Delete the file, or name another."
        )


def _same_numbers(ours: list[Any], theirs: list[Any]) -> bool:
    pairs = zip(ours, theirs, strict=False)
    most = [(max(abs(a - b), abs(size - other)), max(size, other)) for (a, size), (b, other) in pairs]
    close = all(difference <= _TOLERANCE * (1e-300 + size) for difference, size in most)
    return len(ours) == len(theirs) and close


def _alike(own: list[Any], other: list[Any]) -> list[Any]:
    """What a site is known by, as one of a part of the data where the other one is: that may be a shard of the same."""
    *about, plates, words = own[0]
    is_part = {name: size == 0 for name, _, size, _ in other[0][-2]}
    if not any(is_part.get(name) for name, *_ in plates):
        return own
    return [[*about, [[n, d, 0 if is_part.get(n) else size, full] for n, d, size, full in plates], words], [], ""]


def is_in_part(site: ScoredSite) -> bool:
    """Whether a site is in a plate that holds a part of the data."""
    return any(p.is_subsample for p in site.plates)


def _data_of(recording: Recording, name: str) -> str:
    return fingerprint(recording.observations.get(name))


def _density_of(site: ScoredSite, recording: Recording) -> tuple[list[Any], list[Any]]:
    """The structure of a density and, for each of its terms, the sums of its constants."""
    part = is_in_part(site)
    about: list[Any] = [site.distribution, site.observed, str(site.error) if site.density is None else ""]
    about.append([[p.name, p.dim, 0 if p.is_subsample else p.size, float(p.full_size)] for p in site.plates])
    terms = [] if site.density is None else _terms_of(site.density)
    rows = sorted((_words_of(term), [] if part else _sums_of(term, site.mask, recording)) for term in terms)
    return [*about, [words for words, _ in rows]], [pair for _, sums in rows for pair in sums]


def _terms_of(density: Expression) -> list[Term]:
    inside = [t for term in density.terms for f in term.factors if isinstance(f, LogOfSum) for t in f.summands]
    pieces = (t for mask, piece in density.pieces for t in (*_terms_of(mask), *_terms_of(piece)))
    return [*density.terms, *inside, *pieces]


def _words_of(term: Term) -> str:
    """A product of latents in words."""
    factors = [f"{f.function}({f.variable.site.split()[0]})^{f.power}" for f in term.factors]
    return " ".join(sorted([*factors, *(c.site for c in term.choices), f"{len(term.summed)} sums"]))


def _sums_of(term: Term, mask: Tensor | None, recording: Recording) -> list[list[float]]:
    """Give for each constant of a term, and for what is computed from points, at some values of theirs, a sum that
    tells its elements apart, and that of their absolute values.
    """
    found = [[term.coefficient, abs(term.coefficient)]]
    derived = [_value_of(f.variable, recording) for f in term.factors if f.variable.replay or f.variable.scalar]
    for tensor in (*(c.tensor for c in term.constants), *derived, *(() if mask is None else (mask,))):
        flat = tensor.detach().double().reshape(-1).nan_to_num(1.0, 2.0, 3.0)
        weights = torch.cos(torch.arange(1.0, len(flat) + 1, dtype=torch.float64, device=flat.device))
        found.append([float((flat * weights).sum()), float(flat.abs().sum())])
    return sorted(found)


def _value_of(variable: Variable, recording: Recording) -> Tensor:
    """What the model computes from points or of a scalar, at values that do not depend on where they start."""
    points = {}
    for name in sorted(variable.parents or {variable.root.site}):
        site = recording.latents[name]
        transform = transform_to(site.constraint)
        free = torch.arange(1.0, 1 + transform.inverse_shape(site.shape).numel(), device=recording.device)
        points[name] = transform(0.1 * free.cos().to(recording.dtype).reshape(transform.inverse_shape(site.shape)))
    if variable.scalar is not None:
        return variable.scalar.evaluate(points[variable.root.site].double().unsqueeze(0))
    assert variable.replay is not None
    return variable.replay(points, {})


__all__ = ["check_identity", "difference_of", "identity_of", "identity_of_call", "identity_outside_parts", "is_in_part"]
