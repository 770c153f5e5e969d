"""Draws that a model does not allow: outside of the support of a site, or not finite."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pyro
from pyro import poutine
from torch.distributions.constraints import Constraint

from ..errors import ModelError
from ..particles import ProgramCall, Values, sample_sites

#: How many draws are looked at, one by one.
LOOKED_AT = 200


def check_support(call: ProgramCall, values: Values, name: str) -> None:
    """Every draw has to be inside the support that the model has for its site.

    Args:
        call: the model with its arguments.
        values: draws by site, each ``[S] + shape``.
        name: how errors call the guide.

    Raises:
        ModelError: naming the site, and the share of draws outside.
    """
    _check_finite(values, name)
    num = min(LOOKED_AT, len(next(iter(values.values()))))
    outside: Counter[str] = Counter()
    supports: dict[str, Constraint] = {}
    for i in range(num):
        found = _supports_left(call, {n: t[i] for n, t in values.items()})
        outside.update(found.keys())
        supports |= found
    if not outside:
        return
    site, count = outside.most_common(1)[0]
    share = f"{count / num:.0%} of its draws"
    raise ModelError(
        f"Expected draws of {site!r} inside the model's support, {supports[site]}; got {share} outside ({name}). Draw "
        "it from a family with that support (Gamma or LogNormal above 0, Beta between 0 and 1, Dirichlet for shares), "
        "or from a Normal by TransformedDistribution(normal, [biject_to(support)]), as AutoNormal does by itself."
    )


def _check_finite(values: Values, name: str) -> None:
    for site, drawn in values.items():
        lost = (~drawn.isfinite()).flatten(1).any(1) if drawn.ndim > 1 else ~drawn.isfinite()
        if bool(lost.any()):
            raise ModelError(
                f"Expected finite draws of {site!r}; got {float(lost.double().mean()):.0%} with infinite values or NaN "
                f"({name}). The fit diverged: fit it again with a smaller learning rate."
            )


def _supports_left(call: ProgramCall, values: Values) -> dict[str, Constraint]:
    """The supports of the sites whose value in one draw is outside, by name.

    What the model raises after a site that is outside does not matter.
    """
    with suppress(Exception), pyro.validation_enabled(False), poutine.trace() as seen:
        poutine.condition(call.program, data=values)(*call.args, **call.kwargs)
    supports = {n: s["fn"].support for n, s in sample_sites(seen.trace).items() if n in values}
    return {n: support for n, support in supports.items() if not bool(support.check(values[n]).all())}
