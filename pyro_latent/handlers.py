r"""Pyro handlers: they translate between a model and the engine, and compute nothing themselves.

- :func:`record` runs a model once and returns its log densities as expressions in its latents.
- :func:`expected_log_factors` gives the expected log density of every site under a posterior.
- :func:`closed_form` attaches hand-written updates to the sites of an unchanged model.

A worked example::

    def model(x):
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(0.0, precision.rsqrt()), obs=x)

    recording = handlers.record(model, x)
    recording.scored["obs"].density          # an Expression of "precision"

    handlers.expected_log_factors(model, {"precision": dist.Gamma(3.0, 2.0)}, x)["obs"]     # E log p(x_n | precision)

    def update(q, x):
        return dist.Gamma(2.0 + len(x) / 2, 1.0 + (x**2).sum() / 2)

    model = handlers.closed_form(model, {"precision": update})    # CAVI now uses it; check_updates verifies it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from .errors import ArgumentTypeError, ModelError, checked_call
from .objective import compile_program, expected_log_densities
from .recording import record
from .rules import unwrap
from .signatures import Model
from .values import kind_of

Update = Callable[..., Any]


class ClosedFormMessenger(Messenger):
    """Sets ``infer={"update": (block, function)}`` at the sites of hand-written updates."""

    def __init__(self, updates: Mapping[Any, Update]) -> None:
        super().__init__()
        self.by_site: dict[str, tuple[tuple[str, ...], Update]] = {}
        _check_sites(updates)
        for key, update in updates.items():
            names = (key,) if isinstance(key, str) else key
            if not callable(update):
                raise ArgumentTypeError(f"Expected a function update(q, *args, **kwargs) for {key!r}; got {update!r}")
            for name in names:
                self.by_site[name] = (names, update)
        self.seen: set[str] = set()
        self.observed: set[str] = set()

    def __enter__(self) -> Any:
        self.seen, self.observed = set(), set()
        return super().__enter__()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.by_site and msg["is_observed"]:
            self.observed.add(msg["name"])
        elif msg["name"] in self.by_site:
            self.seen.add(msg["name"])
            msg["infer"]["update"] = self.by_site[msg["name"]]

    def __exit__(self, *args: Any) -> Any:
        missing = sorted(set(self.by_site) - self.seen)
        if missing and args[0] is None:
            super().__exit__(*args)
            advice = (
                f"{sorted(self.observed)} are observed, or replaced by a reparametrization: leave their updates out. "
                "For poutine.condition, write poutine.condition(closed_form(model, updates), data)."
                if self.observed
                else "Write names of its latent sites."
            )
            raise ModelError(
                f"Expected updates for latent sites of the model; got updates for {missing}, which it lacks. {advice}"
            )
        return super().__exit__(*args)


def _check_sites(updates: object) -> None:
    """Updates are by names of sites, or tuples of them.

    Raises:
        ArgumentTypeError: if they are not.
    """
    given = list(updates) if isinstance(updates, Mapping) else None
    blocks = [()] if given is None else [key if isinstance(key, tuple) else (key,) for key in given]
    if not all(block and all(isinstance(name, str) for name in block) for block in blocks):
        got = kind_of(updates) if given is None else f"updates for {given}"
        raise ArgumentTypeError(
            f"Expected updates by site, or by tuple of sites; got {got}. "
            "Write closed_form(model, {'site': function})."
        )


@checked_call
def closed_form(model: Model, updates: Mapping[Any, Update]) -> Callable[..., Any]:
    """Attach hand-written coordinate updates to the sites of a model, which stays as it is.

    Args:
        model: a Pyro model.
        updates: by site, or by tuple of sites for a joint block, a function ``update(q, *args, **kwargs)`` of the
            current posteriors (``q[site]`` or ``q[block]``: Pyro distributions, a Delta where the site is observed;
            ``q.scales[site]``: its scale) and the model's own arguments. It returns the block's new posterior.

    Returns:
        A model with the same behaviour in Pyro, for which ``CAVI`` uses the updates in place of the derived ones.

    Raises:
        TypeError: if an update is not callable, or the updates are not by site.
        ModelError: when run, if the model has no latent site of a name in ``updates``.

    Example::

        fast = handlers.closed_form(gmm.model, gmm.updates)
        CAVI(fast, AutoConjugate(fast, blocks=[("mean", "precision")])).run(data, 6)
    """
    return ClosedFormMessenger(updates)(model)


@checked_call
def expected_log_factors(model: Model, posterior: Mapping[Any, object], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The expected log density of every site under a posterior, of the site's batch shape.

    Args:
        model: a Pyro model; the other arguments are its own.
        posterior: by continuous latent site, or by tuple of sites for a joint block, a distribution of its family.

    Returns:
        By site a tensor of its batch shape; a factor that depends on discrete latents has their enumeration dimensions
        in front.

    Raises:
        ModelError: if a latent site has no posterior.
        NotConjugateError: if an expectation has no closed form.
    """
    recording = record(model, *args, **kwargs)
    program = compile_program(recording, tuple(k for k in posterior if isinstance(k, tuple)))
    missing = sorted(str(key) for key in program.blocks if key not in posterior)
    if missing:
        raise ModelError(f"Expected a posterior for every continuous latent site; got none for {missing}.")
    like = recording.like
    state = {}
    for key, block in program.blocks.items():
        params = block.family.distribution_params(unwrap(posterior[key])[0])
        state[key] = block.natural({n: p.to(like) for n, p in params.items()}).map(lambda t: t.unsqueeze(0))
    return {name: value.squeeze(0) for name, value in expected_log_densities(program, program.means(state)).items()}


__all__ = ["ClosedFormMessenger", "closed_form", "expected_log_factors", "record"]
