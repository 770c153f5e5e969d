"""Draws that a model does not allow: outside of the support of a site, or not finite."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger

from ..errors import ModelError
from ..particles import ProgramCall, Values

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
    supports: dict[str, Any] = {}
    for i in range(num):
        seen = _Outside({n: t[i] for n, t in values.items()})
        seen.look(call)
        outside.update(seen.supports.keys())
        supports |= seen.supports
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


class _Outside(Messenger):
    """The supports of the sites whose value in one draw is outside, by name."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values
        self.supports: dict[str, Any] = {}

    def look(self, call: ProgramCall) -> None:
        """Run the model with these values; what it raises after a site that is outside does not matter."""
        try:
            with pyro.validation_enabled(False), self:
                poutine.condition(call.program, data=self.values)(*call.args, **call.kwargs)
        except Exception:
            return

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            support = msg["fn"].support
            if not bool(support.check(self.values[msg["name"]]).all()):
                self.supports[msg["name"]] = support
