"""Posteriors of one model by several methods, on one page: bounds, evidence, k̂, time, moments, pictures.

Every guide is scored by one estimator with the same random numbers; discrete sites that the model marks for enumeration
are summed out for all; mixture components are brought into one order; means are compared in units of the reference's
standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, SVI
from pyro.infer.autoguide import AutoCallable, AutoGuide

from ..ascent import CAVI
from ..errors import ArgumentError, ArgumentTypeError, ModelError, PyroLatentError, check_count
from ..guide import AutoConjugate
from ..particles import LEAST_DRAWS, PyroProgram, Target, Weights, name_of, seeded
from ..signatures import Model
from .arguments import check_same_data
from .comparison import Comparison, Entry
from .draws import check_same_densities, draw
from .methods import Method, Stopwatch, check_methods
from .moments import Components, align, difference, find_components, moments, r_hat
from .parameters import ParameterStates


def compare(
    model: Model,
    methods: Mapping[str, Any],
    *args: Any,
    reference: str | None = None,
    num_samples: int = 2000,
    max_steps: int = 1000,
    max_seconds: float = math.inf,
    components: str | None = None,
    same_data: bool = True,
    seed: int = 0,
    **kwargs: Any,
) -> Comparison:
    """Put posteriors of one model beside each other.

    Args:
        model: a Pyro model.
        methods: by name, any of: a fitted guide or autoguide; an :class:`~pyro_latent.AutoConjugate`, fitted or new; a
            :class:`~pyro_latent.CAVI` or an ``SVI``, which are run within the budget; an ``MCMC``, which is run if it
            has not been. An ``SVI`` of an ``AutoLaplaceApproximation`` is scored by the Gaussian around its maximum.
            The positional arguments after it are the model's.
        reference: the method to measure from; by default the first MCMC, else the first method.
        num_samples: the number of draws of each method; of MCMC, the largest number.
        max_steps, max_seconds: the budget of each method that is fitted here, but MCMC, which has its own length.
        components: the plate of the mixture's components, where the model has several, or it is not found by itself.
        same_data: whether to check that fitted methods saw this data. False for guides that saw minibatches.
        seed: of the draws, and of the fits, so that the call repeats itself.
        kwargs: the model's keyword arguments.

    Raises:
        ModelError: naming the method, and the site, the argument or the plate that does not fit; also where a fit
            fails.
        TypeError: if a method is none of these, or ``methods`` no dict.

    Each method begins with the parameters in Pyro's store, and in the model's modules, as they are at the call, and is
    scored with its own. Afterwards they are as before, but for what the fits made or changed: of each parameter, what
    the first fit that did so left. Autoguides keep their own parameters in themselves.

    Example::

        svi = SVI(model, AutoNormal(model), Adam({"lr": 0.01}), Trace_ELBO())
        result = compare(model, {"cavi": AutoConjugate(model), "svi": svi, "nuts": MCMC(NUTS(model), 1000)}, x)
        print(result)
        result.save_html("posteriors.html")
    """
    num_samples = check_count("num_samples", num_samples, LEAST_DRAWS)
    max_steps = check_count("max_steps", max_steps, 1)
    check_methods(methods, "{'cavi': AutoConjugate(model)}")
    if reference is not None and reference not in methods:
        raise ArgumentError(
            f"Expected reference to be one of {list(methods)}; got {reference!r}. Name one of these, or leave it out."
        )
    for name, method in methods.items():
        _check_method(name, method)
    _check_own_guides(methods)
    store = pyro.get_param_store()
    with store.scope(store.get_state()) as start, seeded(seed):
        target = Target.of(model, args, kwargs)
        target.check_drawn()
        plate = find_components(target, components)
    parameters = ParameterStates(start, [getattr(method, "guide", method) for method in methods.values()])
    job = _Job(target, num_samples, max_steps, max_seconds, same_data, seed, parameters)
    with torch.random.fork_rng(), parameters.kept():
        entries = _aligned({name: job.named(name, method) for name, method in methods.items()}, plate)
    chosen = reference or next((n for n, m in methods.items() if isinstance(m, MCMC)), next(iter(methods)))
    against = entries[chosen].moments
    differences = {name: difference(entry.moments, against) for name, entry in entries.items()}
    return Comparison(entries, chosen, differences, plate, name_of(model))


def _aligned(entries: dict[str, Entry], components: Components | None) -> dict[str, Entry]:
    if components is None:
        return entries
    draws = align({name: entry.draws for name, entry in entries.items()}, components)
    return {name: replace(e, draws=draws[name], moments=moments(draws[name])) for name, e in entries.items()}


def _is_driver(method: Method) -> bool:
    return isinstance(method, SVI | CAVI) or (isinstance(method, AutoConjugate) and not is_fitted(method))


def is_fitted(guide: AutoConjugate) -> bool:
    """Whether a guide has a posterior yet."""
    try:
        return bool(guide.state)
    except ModelError:
        return False


def _check_method(name: str, method: object) -> None:
    """A method is one that :func:`compare` knows.

    Raises:
        TypeError: naming it.
    """
    if not isinstance(method, CAVI | SVI | MCMC) and not callable(method):
        raise ArgumentTypeError(
            f"Expected a guide, AutoConjugate, CAVI, SVI or MCMC for {name!r}; got {type(method).__name__}. Write "
            f"{{{name!r}: AutoConjugate(model)}}, for instance."
        )


def _check_own_guides(methods: Mapping[str, Method]) -> None:
    """Two SVIs of one guide would leave parameters that are of one of them only.

    Raises:
        ModelError: naming both.
    """
    seen: dict[int, str] = {}
    for name, method in methods.items():
        if isinstance(method, SVI):
            other = seen.setdefault(id(method.guide), name)
            if other != name:
                raise ModelError(
                    f"Expected a guide for each method; got the same one in {other!r} and {name!r}, which would share "
                    "its parameters. Make another, or use race."
                )


def _check_called(name: str, guide: AutoGuide) -> None:
    """An autoguide that has seen no data has no posterior yet.

    Raises:
        ModelError: with how to have it fitted.
    """
    if guide.prototype_trace is None and not isinstance(guide, AutoCallable):
        raise ModelError(
            f"Expected a fitted guide for {name!r}; got a new {type(guide).__name__}. Give it in an SVI, to be fitted: "
            "SVI(model, guide, Adam({'lr': 0.01}), Trace_ELBO())."
        )


@dataclass(frozen=True)
class _Fitted:
    """A guide or chain that is done, and how it came about."""

    guide: PyroProgram | MCMC
    model: PyroProgram | None
    kind: str
    seconds: float | None = None
    steps: int | None = None
    converged: bool | None = None


@dataclass(frozen=True)
class _Job:
    """What is the same for every method."""

    target: Target
    num_samples: int
    max_steps: int
    max_seconds: float
    same_data: bool
    seed: int
    parameters: ParameterStates

    def named(self, name: str, method: Method) -> Entry:
        """One entry; what goes wrong there is an error with the method's name."""
        try:
            return self.entry(name, method)
        except PyroLatentError as error:
            if repr(name) in str(error):
                raise
            raise type(error)(f"{error} That was method {name!r}.") from error
        except Exception as error:
            raise ModelError(
                f"Expected a method that runs on this model and its data; got {type(error).__name__} from {name!r}: "
                f"{error} Run it by itself to see where."
            ) from error

    def entry(self, name: str, method: Method) -> Entry:
        """Fit a method if need be, and score it."""
        torch.manual_seed(self.seed)
        with self.parameters.of(getattr(method, "guide", method), keep=_is_driver(method)):
            done = self._fitted(name, method)
            if self.same_data:
                check_same_data(self.target.call, done.guide, repr(name))
            with seeded(self.seed):
                draws = draw(self.target, done.guide, self.num_samples, repr(name))
                check_same_densities(self.target, done.model, {n: v[0] for n, v in draws.values.items()}, repr(name))
            exact = None
            if isinstance(done.guide, AutoConjugate) and not done.guide.augmented.names:
                exact = done.guide.elbo(*self.target.call.args, **self.target.call.kwargs)
        return Entry(
            kind=done.kind,
            draws=draws,
            moments=moments(draws),
            score=None if draws.log_q is None else Weights.of(draws),
            exact_elbo=exact,
            seconds=done.seconds,
            steps=done.steps,
            converged=done.converged,
            r_hat=r_hat(draws.values, draws.chains) if draws.log_q is None else None,
        )

    def _fitted(self, name: str, method: Method) -> _Fitted:
        if isinstance(method, AutoConjugate):
            if is_fitted(method):
                return _Fitted(method, method.model, "coordinate ascent, AutoConjugate")
            method = CAVI(method.model, method)
        if isinstance(method, CAVI):
            return self._run_cavi(method)
        if isinstance(method, SVI):
            return self._run_svi(method)
        if isinstance(method, MCMC):
            return self._run_mcmc(method)
        if isinstance(method, AutoGuide):
            _check_called(name, method)
            return _Fitted(method, method.model, type(method).__name__)
        return _Fitted(method, None, f"guide {name_of(method)}")

    def _run_cavi(self, cavi: CAVI) -> _Fitted:
        watch, call = Stopwatch(), self.target.call
        result = cavi.run(
            *call.args,
            max_steps=self.max_steps,
            callback=lambda *_: watch.seconds() > self.max_seconds,  # True ends the run after this sweep
            **call.kwargs,
        )
        kind = "coordinate ascent, AutoConjugate"
        return _Fitted(cavi.guide, cavi.model, kind, watch.seconds(), result.num_steps, result.converged)

    def _run_svi(self, svi: SVI) -> _Fitted:
        call = self.target.call
        watch, steps = Stopwatch(), 0
        while steps < self.max_steps and (steps == 0 or watch.seconds() < self.max_seconds):
            svi.step(*call.args, **call.kwargs)
            steps += 1
        return _Fitted(svi.guide, svi.model, f"SVI, {name_of(svi.guide)}", watch.seconds(), steps)

    def _run_mcmc(self, mcmc: MCMC) -> _Fitted:
        call, seconds = self.target.call, None
        if mcmc._samples is None:
            watch = Stopwatch()
            mcmc.run(*call.args, **call.kwargs)
            seconds = watch.seconds()
        steps = mcmc.num_chains * (mcmc.num_samples + mcmc.warmup_steps)
        kernel = mcmc.kernel
        return _Fitted(mcmc, getattr(kernel, "model", None), f"MCMC, {type(kernel).__name__}", seconds, steps)
