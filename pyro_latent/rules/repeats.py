"""The densities of observed sites that differ in names and data alone, as those of the steps of a loop do.

The first is derived where it stands. The others wait for the end of the run, when their data are put side by side along
a dimension of their own, and the rule is asked once for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions import Expression, Question, RandomTensor, question, renamed, taken_apart
from ..expressions.recorded import mapped
from .base import FORMS, RULES
from .random_distribution import FEW, RandomDistribution, expected_log_density, random_distribution
from .wrappers import unwrap, unwrap_masks

#: Data of more numbers wait for no others.
_MOST = 1000


class _Site(NamedTuple):
    """A site whose density gets its terms at the end of the run.

    ``distribution`` is that of the first like it, as it was then, for the model may write into tensors.
    """

    name: str
    density: Expression
    distribution: Any
    value: Tensor
    question: Question


class Repeats:
    """The densities of the observed sites of a run.

    Args:
        like: an empty tensor of the dtype and device of the densities.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._waiting: dict[Hashable, list[_Site]] = {}

    def density(self, name: str, distribution: Any, value: Any) -> Expression:
        """The log density of a site, as :func:`expected_log_density` gives it, or one that waits for its terms."""
        asked = _question(distribution, value)
        if asked is None:
            return expected_log_density(distribution, value, self._like)
        alike, value = self._waiting.get(asked.key), value.clone()  # the model may write the next datum into it
        if alike is None:
            found = expected_log_density(distribution, value, self._like)
            if asked.is_renamable(found):
                self._waiting[asked.key] = [_Site(name, found, _as_it_is(distribution), value, asked)]
            return found
        found = alike[0].density.of_terms(())
        alike.append(_Site(name, found, alike[0].distribution, value, asked))
        return found

    def finish(self) -> dict[str, NotConjugateError]:
        """Give the densities that wait their terms.

        Returns:
            By name of the sites that have none, what is in the way.
        """
        problems: dict[str, NotConjugateError] = {}
        for first, *others in self._waiting.values():
            size = max(1, FEW // max(1, first.value.numel()))
            for start in range(0, len(others), size):
                sites = others[start : start + size]
                found: Sequence[Expression | NotConjugateError]
                found = self._together(first, sites) or [self._alone(first, site) for site in sites]
                for site, density in zip(sites, found, strict=True):
                    if isinstance(density, Expression):
                        site.density.become(density)
                    else:
                        problems[site.name] = density
        self._waiting.clear()
        return problems

    def _together(self, first: _Site, sites: Sequence[_Site]) -> list[Expression] | None:
        """The densities of sites like the first, derived at once; None where they are not so alike."""
        lead = (1,) * (first.density.ndim + len(first.distribution.event_shape) - first.value.ndim)
        values = torch.stack([site.value for site in sites])
        values = values.reshape(len(sites), *lead, *first.value.shape)
        try:
            whole = expected_log_density(first.distribution, values, self._like)
        except (NotConjugateError, NotImplementedError, IndexError):
            return None
        same = whole.shape == (len(sites), *first.density.shape) and first.question.is_renamable(whole)
        return taken_apart(whole, first.question.leaves, [s.question.leaves for s in sites]) if same else None

    def _alone(self, first: _Site, site: _Site) -> Expression | NotConjugateError:
        """The density of a site like the first, or what is in the way."""
        try:
            found = expected_log_density(site.distribution, site.value, self._like)
        except (NotConjugateError, NotImplementedError) as problem:
            kind = type(problem) if isinstance(problem, NotConjugateError) else NotConjugateError
            return kind(f"Site {site.name!r}: {problem}")
        if first.question.is_renamable(found):
            return renamed(found, first.question.leaves, site.question.leaves)
        return NotConjugateError(
            f"Expected a density of the form that site {first.name!r} has; got another for the data of {site.name!r}. "
            "Write the two with different distributions."
        )


def _as_it_is(distribution: object) -> Any:
    """A distribution that no later write into its arguments changes, without masks."""
    base, reinterpreted, _ = unwrap(distribution)
    arguments = mapped(base.arguments, lambda t: t.as_it_is() if isinstance(t, RandomTensor) else t.clone(), Tensor)
    found = random_distribution(base.family, arguments, base.placeholder, base.batch_shape)
    return found.to_event(reinterpreted) if reinterpreted else found


def _question(distribution: object, value: object) -> Question | None:
    """What the density of an observed site asks for, but for the data; None where it waits for no others."""
    if isinstance(value, RandomTensor) or not isinstance(value, Tensor) or value.numel() > _MOST:
        return None
    base, reinterpreted, _, inner = unwrap_masks(distribution)
    plain = isinstance(base, RandomDistribution) and base.family in RULES and base.family not in FORMS and not inner
    if not plain or any(n > 1 and step == 0 for n, step in zip(value.shape, value.stride(), strict=True)):
        return None
    shapes = base.batch_shape, reinterpreted, value.shape
    return question(RULES[base.family], base.arguments, *shapes, value.dtype, value.device)


__all__ = ["Repeats"]
