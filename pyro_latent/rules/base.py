r"""Expected log densities, one rule for each distribution.

A rule writes log p(x | arguments) in the algebra of :class:`~pyro_latent.expressions.Expression`: x and the arguments
may be data, latents, or whatever the model computed from them, and the engine takes the expectation. There are no
tables of
pairs: that a Gamma is conjugate to the precision of a normal follows from the rule of the normal alone.

To implement a rule: a function of the arguments (an :class:`Arguments`, with the constructor's names) and the value,
which returns the log density with one element for each element of the batch shape; then ``register_rule(distribution,
rule)``. A value may have batch dimensions that the arguments have not: the data of the steps of a loop come together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.hmm import HiddenMarkovModel
from torch import Tensor

from ..errors import ArgumentTypeError, MissingRuleError, NotConjugateError
from ..expressions import Expression, RandomTensor
from .rewrites import REWRITES
from .wrappers import signature_of


class Arguments(Mapping[str, Expression]):
    """A distribution's arguments as expressions, by the names of its constructor; absent ones are None as
    attributes.
    """

    def __init__(self, arguments: Mapping[str, Expression]) -> None:
        self._arguments = dict(arguments)

    def __getitem__(self, name: str) -> Expression:
        return self._arguments[name]

    def __getattr__(self, name: str) -> Expression | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._arguments.get(name)

    def __iter__(self) -> Any:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)


Rule = Callable[[Any, Expression], Expression]

RULES: dict[type, Rule] = {}
#: By class, what gives a distribution of it in the form that its density is known in, if there is one.
FORMS: dict[type, Callable[[Any], Any]] = {}


def register_rule(distribution: type, rule: Rule | None = None) -> Any:
    """Give the expected log density of a Pyro distribution class.

    Args:
        distribution: a class of ``pyro.distributions``, or one of your own. Its subclasses use the rule too, but for
            those with a rule of their own.
        rule: ``rule(arguments, value) -> Expression``, of the base batch shape. Left out, a decorator is returned.

    Raises:
        TypeError: if ``distribution`` is not a class with a ``log_prob``, or ``rule`` is not a function of two
            arguments.
    """
    if rule is None:
        return lambda function: register_rule(distribution, function)
    if not (isinstance(distribution, type) and hasattr(distribution, "log_prob")):
        raise ArgumentTypeError(
            f"Expected a distribution class such as pyro.distributions.Normal; got {distribution!r}"
        )
    if not callable(rule) or len(inspect.signature(rule).parameters) != 2:
        raise ArgumentTypeError(f"Expected a rule of two arguments, rule(arguments, value); got {rule!r}")
    RULES[distribution] = rule
    return rule


def in_form(distribution: object, family: type) -> Any:
    """A base distribution of a class in the form that its density is known in."""
    return FORMS[family](distribution) if family in FORMS else distribution


def rule_of(distribution: type) -> Rule:
    """The rule of a class, or of the nearest base class that has one and whose arguments it takes.

    Raises:
        MissingRuleError: if there is none, with the line to write and the rules that exist.
    """
    for base in distribution.__mro__:
        if base in RULES and _parameters(base) <= _parameters(distribution):
            return RULES[base]
    if issubclass(distribution, HiddenMarkovModel):
        raise chain_of_latents(distribution)
    others = {d.__name__ for d in RULES if not d.__module__.startswith("pyro_latent.")}  # ours are those of rewrites
    known = ", ".join(sorted(others))
    same = REWRITES.get(distribution.__name__)
    instead = "" if same is None else f"Write {same}, which is the same model. "
    raise MissingRuleError(
        f"Expected a distribution with a rule; got {distribution.__name__}, which has none. {instead}"
        f"Write register_rule({distribution.__name__}, lambda arguments, value: ...), the log density in the arguments "
        f"and the value, or use one of those that exist: {known}."
    )


def around_latents(outer: type, inner: type) -> NotConjugateError:
    """The error for a distribution of one class around one of another with latent arguments."""
    if issubclass(outer, HiddenMarkovModel):
        return chain_of_latents(outer)
    return NotConjugateError(
        f"Expected a distribution of plain arguments; got {outer.__name__} around a distribution with latent arguments "
        f"({inner.__name__}). Write a mixture with a discrete latent site, as pyro.sample('z', Categorical(weights)), "
        "and index the parameters by it; AutoConjugate(model, reparam=True) does so for those that it knows."
    )


def chain_of_latents(chain: type) -> MissingRuleError:
    """The error for a hidden Markov model with latent arguments as one site."""
    discrete = issubclass(chain, dist.DiscreteHMM)
    step, data = ("Categorical(rows[z])", "Normal(mean[z], 1.0)") if discrete else ("Normal(a * z, q)", "Normal(z, r)")
    joined = "" if discrete else ", and join the states by AutoConjugate(model, blocks='auto')"
    return MissingRuleError(
        f"Expected a distribution with a rule; got {chain.__name__} of latent arguments. Write its states as sites in "
        f"a loop, z = pyro.sample(f'z_{{t}}', {step}) and pyro.sample(f'x_{{t}}', {data}, obs=x[t]){joined}."
    )


def _parameters(distribution: type) -> set[str]:
    return set(signature_of(distribution).parameters) - {"validate_args"}


def as_expression(value: object, like: Tensor) -> Expression | None:
    """Numbers, tensors and functions of discrete latents in the dtype of ``like``, other latents as they are; anything
    else as None.
    """
    if isinstance(value, RandomTensor):
        symbol = value.expression
        return symbol.as_dtype_of(like) if symbol.is_table and symbol.like.dtype != like.dtype else symbol
    if isinstance(value, bool | int | float):
        value = torch.tensor(float(value), dtype=like.dtype, device=like.device)
    if not isinstance(value, Tensor):
        return None
    if not value.is_floating_point():
        value = value.to(like.dtype)
    return Expression.constant(_without_expansion(value).to(device=like.device, dtype=like.dtype).detach())


def _without_expansion(value: Tensor) -> Tensor:
    """Batch dimensions that were only expanded, as size 1; the last two may be an event's, and stay."""
    for dim in range(value.ndim - 2):
        if value.stride(dim) == 0:
            value = value.narrow(dim, 0, 1)
    return value
