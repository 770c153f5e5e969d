"""Distributions whose arguments are random tensors.

While a model is recorded, Pyro's constructor hook replaces each distribution with a random argument by a
:class:`RandomDistribution`: it keeps the arguments as they were written, before any broadcasting or factorisation,
and answers questions about shapes from a distribution over placeholder values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.forecast.util import UNIVARIATE_DISTS
from pyro.distributions import constraints, transforms
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ..distributions.gamma_ratios import LOG_DENSITIES
from ..errors import LatentValueError, MissingRuleError
from ..expressions import Expression, RandomTensor, derived_from_points, over_batch, question
from ..values import broadcast_shapes
from .arguments import distribution_arguments
from .base import around_latents, as_expression, in_form, rule_of
from .wrappers import has_latents, made, unchecked, unwrap, unwrap_masks


class RandomDistribution(TorchDistribution):
    """A distribution of a class ``family`` whose ``arguments`` (by name) hold random tensors.

    Each family has a subclass of its own, by :func:`random_class`: ``isinstance`` takes it for one of the family, and
    ``type(d)(**arguments)`` makes another, as Pyro's own code does.
    """

    arg_constraints: dict[str, Any] = {}
    family: Any
    #: Told by this, and not by ``isinstance``, which asks the class that it passes for, too, at each step of a loop.
    has_latents: bool = True
    #: Whether the model leaves it to its constructor to check values, and does not forbid it by ``validate_args``.
    is_checked: bool = True

    def __init__(self, arguments: dict[str, Any], placeholder: Any, batch_shape: Sequence[int]) -> None:
        self.arguments = arguments
        self.placeholder = placeholder
        super().__init__(torch.Size(batch_shape), placeholder.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.placeholder.has_rsample)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return bool(self.placeholder.has_enumerate_support)

    @constraints.dependent_property
    def support(self) -> Any:
        return self.placeholder.support

    def __getattr__(self, name: str) -> Any:
        arguments = self.__dict__.get("arguments", {})
        if name in arguments:
            return self._as_attribute(name)
        if self.family in _TRANSFORMED and name in ("base_dist", "transforms"):
            base, transforms = _TRANSFORMED[self.family]
            return transforms if name == "transforms" else base(**arguments).expand(self.batch_shape)
        raise _NoAttributeError(
            f"Expected an argument of {self.family.__name__} as it was given ({sorted(arguments)}); got {name!r}, "
            "which depends on the values of its latent arguments."
        )

    def _as_attribute(self, name: str) -> Any:
        """An argument over the whole batch shape, as PyTorch's distributions have it."""
        value = self.arguments[name]
        is_known = isinstance(value, Tensor | int | float) and self.family is not dist.Uniform  # whose constraints ask
        if not is_known or name not in self.arg_constraints:
            return value
        if not isinstance(value, Tensor):
            like = next(a for a in self.arguments.values() if isinstance(a, RandomTensor)).expression.like
            value = torch.tensor(value, dtype=like.dtype, device=like.device)
        return value.expand(self.batch_shape + value.shape[value.ndim - _event_dim(self, name) :])

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> RandomDistribution:
        found = random_distribution(self.family, self.arguments, self.placeholder, batch_shape)
        found.is_checked = self.is_checked
        return found

    @property
    def mean(self) -> Any:
        return self._computed("mean")

    @property
    def variance(self) -> Any:
        return self._computed("variance")

    @property
    def stddev(self) -> Any:
        return self._computed("stddev")

    def _computed(self, name: str) -> Any:
        """What the family computes of its arguments, recorded."""
        try:
            return getattr(self.family, name).fget(self)
        except (AttributeError, NotImplementedError):
            raise _NoAttributeError(
                f"Expected a distribution of known arguments for its {name}; got a {self.family.__name__} of latent "
                f"ones. Write its {name} as a formula of them."
            ) from None

    def enumerate_support(self, expand: bool = True) -> Tensor:
        placeholder = self.placeholder.expand(self.batch_shape) if expand else self.placeholder
        support: Tensor = placeholder.enumerate_support(expand)
        missing = len(self.batch_shape) + 1 + len(self.event_shape) - support.ndim
        return support.reshape(support.shape[0], *[1] * missing, *support.shape[1:])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        if issubclass(self.family, dist.Unit):  # pyro.factor draws its value, which is empty
            empty: Tensor = self.placeholder.sample(sample_shape)
            return empty
        sites = sorted({s for a in self.arguments.values() if isinstance(a, RandomTensor) for s in a.expression.sites})
        raise LatentValueError(
            f"Expected pyro.sample for a distribution that depends on the latents {sites}; "
            "got a direct draw from it, which needs their values. Write pyro.sample(name, distribution)."
        )

    rsample = sample

    def log_prob(self, value: object) -> Any:
        """The log density as a random tensor, so that ``pyro.factor`` can use it."""
        form = in_form(self, self.family)
        _check_plain(form)
        like = next(a for a in form.arguments.values() if isinstance(a, RandomTensor)).expression.like
        density = expected_log_density(form, value, like)
        number = torch.zeros(density.shape, dtype=like.dtype, device=like.device)
        return RandomTensor(number, density)


class _NoAttributeError(LatentValueError, AttributeError):
    """An attribute that is known only with the values of latent arguments; ``hasattr`` is False."""


@functools.cache
def random_class(family: type) -> type[RandomDistribution]:
    """The class of the distributions of a family that have random arguments."""
    fields = {
        "family": family,
        "arg_constraints": getattr(family, "arg_constraints", {}),
        "__class__": property(lambda self: family),
        "__module__": __name__,
    }
    make: Any = type(RandomDistribution)  # its metaclass
    found: type[RandomDistribution] = make(f"Random{family.__name__}", (RandomDistribution,), fields)
    return found


def random_distribution(
    family: type, arguments: dict[str, Any], placeholder: object, batch_shape: Sequence[int]
) -> RandomDistribution:
    """A distribution whose arguments (by name) hold random tensors."""
    made = random_class(family)
    if family in UNIVARIATE_DISTS:  # by type, where reshape_batch looks
        UNIVARIATE_DISTS[made] = UNIVARIATE_DISTS[family]
    found: RandomDistribution = object.__new__(made)
    found.__init__(arguments, placeholder, batch_shape)  # type: ignore[misc]  # a call is one of the family
    return found


#: Classes of transformed distributions: that of the base, which has the same arguments, and the transforms.
_TRANSFORMED: dict[type, tuple[Any, list[Any]]] = {dist.LogNormal: (dist.Normal, [transforms.ExpTransform()])}
#: Arguments that say which values there are.
BOUNDS = frozenset(("total_count", "low", "high"))
#: Data of at most so many numbers are squared in float64.
FEW = 2**16


def without_latents(distribution: object) -> Any:
    """A distribution with its latent arguments at their placeholders, without masks; anything else as it is."""
    base, reinterpreted, _ = unwrap(distribution)
    plain = base.placeholder if has_latents(base) else base
    if plain is not base and plain.batch_shape != base.batch_shape:
        plain = plain.expand(base.batch_shape)
    return plain.to_event(reinterpreted) if reinterpreted else plain


def _check_plain(base: Any) -> None:
    """A density is of a distribution whose arguments are no distributions.

    Raises:
        NotConjugateError: if they are.
    """
    for argument in base.arguments.values() if has_latents(base) else ():
        if hasattr(argument, "log_prob"):
            raise around_latents(family_class(base), family_class(unwrap(argument)[0]))


def family_class(distribution: Any) -> type:
    """The class of a base distribution, random arguments or not."""
    found: type = distribution.family if has_latents(distribution) else type(distribution)
    return found


def is_checked(distribution: Any) -> bool:
    """Whether the values of a base distribution are to be checked."""
    known = isinstance(distribution, RandomDistribution)
    return distribution.is_checked if known else distribution._validate_args is not False


def expected_log_density(distribution: object, value: object, like: Tensor) -> Expression:
    """The log density of ``value`` as an expression, of the distribution's batch shape; masks are left out.

    Raises:
        MissingRuleError: if its class has no rule.
    """
    base, reinterpreted, _, inner = unwrap_masks(distribution)
    density = _density(base, value, like)
    density = density.expand(broadcast_shapes(base.batch_shape, density.shape))
    for mask in inner:
        density = density * Expression.constant(mask.to(device=like.device, dtype=like.dtype))
    if reinterpreted:
        density = density.sum(tuple(range(-reinterpreted, 0)))
    return density


def _by_rule(base: Any, value: Any, like: Tensor) -> Expression:
    small = not isinstance(value, Tensor) or value.numel() <= FEW
    rule = rule_of(family_class(base))
    is_random = isinstance(value, RandomTensor) and has_latents(base)
    asked = question(rule, base.arguments, value, small, like.dtype) if is_random else None
    known = None if asked is None else asked.answer()
    if known is not None:
        return known
    symbol = as_expression(value, like.double() if small else like)  # squares of data lose digits, and cancel
    assert symbol is not None
    density = rule(distribution_arguments(base, like), symbol).polynomial()
    if asked is not None:
        asked.kept(density)
    return density


def _density(base: Any, value: Any, like: Tensor) -> Expression:
    """The density by the rule; without one, or an expectation, or of a network, whose squares would cancel, as a
    function of discrete latents or points, if nothing else is random.
    """
    if has_latents(base) and base.family is dist.MaskedMixture:
        return _masked_mixture(base, value, like)
    base = in_form(base, family_class(base))
    _check_plain(base)
    try:
        density = _by_pyro(base, value, like) or _by_rule(base, value, like)
    except (MissingRuleError, LatentValueError) as problem:
        scored = _without_rule if isinstance(problem, MissingRuleError) else _of_one_scalar
        found = scored(base, value, like)
        if found is None:
            raise
        return found
    again = density.sums_derived
    return ((density.opacity or again) and _without_rule(base, value, like, again)) or density


def _masked_mixture(base: Any, value: Any, like: Tensor) -> Expression:
    """The density of one of two distributions, where the mask, which discrete latents may make, chooses it."""
    mask = base.arguments["mask"]
    parts = [expected_log_density(base.arguments[f"component{i}"], value, like) for i in (1, 0)]
    return Expression.where(mask.expression if isinstance(mask, RandomTensor) else mask, *parts).polynomial()


def _by_pyro(base: Any, value: Any, like: Tensor) -> Expression | None:
    """The density by Pyro's own code, recorded: of transformed distributions, flat priors, and a point where it is."""
    family = family_class(base)
    is_transformed = type(base) is dist.TransformedDistribution
    is_random = isinstance(value, RandomTensor) or has_latents(base)
    if is_transformed or (family in _TRANSFORMED and is_random):  # data has been checked
        base = dist.TransformedDistribution(base.base_dist, base.transforms, validate_args=False)
    if not isinstance(value, RandomTensor) and value.is_floating_point() and value.numel() <= FEW:
        value = value.to(like.double())
    if type(base) is dist.TransformedDistribution or family is dist.ImproperUniform:
        density = base.log_prob(value)
    elif family is dist.Delta and _is_point_of(base, value):
        density = base.log_density
    else:
        return None
    found = as_expression(density, like.double())
    return None if found is None else found.polynomial()


def _is_point_of(base: Any, value: Tensor) -> bool:
    """Whether a value is that which a Delta is at."""
    if isinstance(base, RandomDistribution) or isinstance(value, RandomTensor):
        return isinstance(base, RandomDistribution) and value is base.arguments["v"]
    return torch.equal(value.expand(base.v.shape).to(base.v), base.v)


def _without_rule(base: object, value: object, like: Tensor, name: str = "") -> Expression | None:
    """The log density as PyTorch computes it, where points, discrete latents and at most one scalar are random."""
    found = _of_numbers(base, value, like) or _of_tables(base, value, like) or _of_points(base, value, like, name)
    return found or _of_one_scalar(base, value, like)


def _of_one_scalar(base: Any, value: Any, like: Tensor) -> Expression | None:
    """The log density as a function of one scalar latent, where nothing else but discrete latents is random in it."""
    if family_class(base) is dist.Delta:
        return None
    given, symbols, events = _parts(base, value, like.double())
    pairs = [(s, e) for s, e in zip(symbols, events, strict=True) if s is not None]
    batch = broadcast_shapes(base.batch_shape, *(s.shape[: s.ndim - e] for s, e in pairs))
    if not isinstance(base, RandomDistribution):  # it varies by its own arguments, too
        base = unchecked(base)
        pairs.append((Expression.constant(like.new_zeros(base.batch_shape)), 0))
    name, scored = f"log_prob of {family_class(base).__name__}", _log_prob_of(base, given, symbols)
    return Expression.of_scalar_batch(name, scored, [s for s, _ in pairs], [e for _, e in pairs], batch)


def _parts(base: Any, value: Any, like: Tensor) -> tuple[tuple[Any, ...], list[Expression | None], list[int]]:
    """Its latent arguments and its value, the expressions of those that are tensors, and their event dimensions."""
    arguments = base.arguments if isinstance(base, RandomDistribution) else {}
    given = (*arguments.values(), value)
    symbols = [as_expression(v, like) if isinstance(v, Tensor) else None for v in given]
    return given, symbols, [*(_event_dim(base, name) for name in arguments), len(base.event_shape)]


def _log_prob_of(base: Any, given: Sequence[Any], symbols: Sequence[Any]) -> Callable[..., Tensor]:
    """PyTorch's log density, with tensors in the place of the symbols; what comes beyond them is left alone. Where
    it rounds at large parameters it is ours.
    """

    def log_prob(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        *numbers, observed = [v if s is None else next(rest) for s, v in zip(symbols, given, strict=True)]
        if isinstance(base, RandomDistribution):
            found = made(base.family, dict(zip(base.arguments, numbers, strict=True)))
            ours = LOG_DENSITIES.get(type(found))
            return found.log_prob(observed) if ours is None else ours(found, observed)
        return base.log_prob(observed)

    return log_prob


def _of_numbers(base: Any, value: Any, like: Tensor) -> Expression | None:
    """The log density of data, where nothing is random in it: a number for each element."""
    if isinstance(base, RandomDistribution) or isinstance(value, RandomTensor):
        return None
    try:
        return as_expression(base.log_prob(value), like)
    except (NotImplementedError, RuntimeError):  # without a density, or of latents that it holds elsewhere
        return None


def _of_tables(base: Any, value: Any, like: Tensor) -> Expression | None:
    """The log density at every value of the discrete latents, where nothing else is random in it."""
    given, symbols, events = _parts(base, value, like)
    if not any(s is not None and s.choices for s in symbols) or any(s and not s.is_table for s in symbols):
        return None
    pairs = [(s, e) for s, e in zip(symbols, events, strict=True) if s]
    batch = broadcast_shapes(base.batch_shape, *(s.shape[: s.ndim - e] for s, e in pairs))
    scored = _log_prob_of(base, given, symbols)
    return over_batch(scored, [s for s, _ in pairs], [e for _, e in pairs], batch)


def _event_dim(base: RandomDistribution, name: str) -> int:
    try:
        return int(base.arg_constraints[name].event_dim)
    except (AttributeError, KeyError, NotImplementedError, TypeError):
        return 0


def _of_points(base: object, value: object, like: Tensor, name: str) -> Expression | None:
    """The log density as a function of point estimates, by a name, where nothing else is random in it."""
    if not isinstance(base, RandomDistribution):
        return None

    def log_prob(*pieces: Any) -> Tensor:
        *arguments, observed = pieces
        named = dict(zip(base.arguments, arguments, strict=True))
        return made(base.family, named).log_prob(observed)

    name = name or f"log_prob of {base.family.__name__}"
    return derived_from_points(name, log_prob, (*base.arguments.values(), value), like)


__all__ = [
    "BOUNDS",
    "RandomDistribution",
    "expected_log_density",
    "family_class",
    "is_checked",
    "made",
    "random_distribution",
    "without_latents",
]
