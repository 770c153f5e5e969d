"""Posteriors of one model by several methods, on one page: bounds, evidence, k̂, time, moments, pictures.

Every guide is scored by one estimator with the same random numbers; discrete sites that the model marks for enumeration
are summed out for all; mixture components are brought into one order; means are compared in units of the reference's
standard deviation.
"""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC, SVI
from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

from .diagnostics import Components, Difference, Moments, Score, align, difference, draw, moments
from .diagnostics.arguments import check_same_data
from .diagnostics.draws import check_same_model
from .diagnostics.importance import LEAST_DRAWS, score_draws
from .diagnostics.moments import find_components
from .diagnostics.pages import figure_html, page, table_html
from .diagnostics.parameters import Parameters
from .errors import ModelError, PyroLatentError, check_count
from .guide import AutoConjugate
from .infer import CAVI
from .particles import Draws, Target, seeded
from .tables import text_table

#: How many elements of a site are listed one by one; of a larger one, the table has the extremes.
LISTED = 12

NOTES = (
    "ELBO: mean log weight, with its standard error; all guides by one estimator and the same random numbers.",
    "exact ELBO: of AutoConjugate, with the discrete sites as factors of their own; the scored ELBO sums them out.",
    "evidence: log of the mean weight; k̂ says whether to believe it. −: not defined for MCMC, or not measured.",
)


@dataclass(frozen=True)
class Entry:
    """One method of a comparison.

    Attributes:
        kind: what it is, in words.
        draws: from it, with mixture components in the common order.
        moments: by site.
        score: ELBO, evidence and k̂; None for MCMC.
        exact_elbo: of an :class:`~pyro_latent.AutoConjugate`, in nats.
        seconds: inside its fit, if it was fitted here.
        steps: sweeps, gradient steps, or MCMC transitions (warm-up included) of all chains, where known.
        converged: whether its own criterion was met, if it has one.
        r_hat: of MCMC, the largest split R̂ over sites and elements.
    """

    kind: str
    draws: Draws = field(repr=False)
    moments: dict[str, Moments] = field(repr=False)
    score: Score | None
    exact_elbo: float | None = None
    seconds: float | None = None
    steps: int | None = None
    converged: bool | None = None
    r_hat: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``print`` shows its tables, a notebook its page.

    Attributes:
        entries: by method, in the order given.
        reference: the method that the others are measured against.
        differences: by method and site, from the reference.
        components: where the mixture components are, if the model has any.
        title: the model's name.
    """

    entries: dict[str, Entry]
    reference: str
    differences: dict[str, dict[str, Difference]] = field(repr=False)
    components: Components | None
    title: str

    def __getitem__(self, method: str) -> Entry:
        return self.entries[method]

    def worst_difference(self, method: str) -> float:
        """The largest |difference of means| from the reference, over sites and elements, in its standard deviations."""
        return max(
            (float(d.mean.abs().max()) for d in self.differences[method].values() if d.mean.numel()), default=0.0
        )

    def score_rows(self) -> list[list[str]]:
        """The table of scores: a heading, then a row for each method."""
        head = ["method", "ELBO", "exact ELBO", "evidence", "k̂", "max |Δ|/sd", "seconds", "steps"]
        return [head, *(self._score_row(name, entry) for name, entry in self.entries.items())]

    def _score_row(self, name: str, entry: Entry) -> list[str]:
        s = entry.score
        scored = (
            [f"{s.elbo:.3f} ± {s.elbo_error:.3f}", f"{s.evidence:.3f} ± {s.evidence_error:.3f}"] if s else ["−", "−"]
        )
        exact = "−" if entry.exact_elbo is None else f"{entry.exact_elbo:.3f}"
        worst = "reference" if name == self.reference else f"{self.worst_difference(name):.2f}"
        seconds = "−" if entry.seconds is None else f"{entry.seconds:.3g}"
        steps = "−" if entry.steps is None else f"{entry.steps:,}"
        if entry.converged is False:
            steps += " (not converged)"
        return [name, scored[0], exact, scored[1], _k_of(entry), worst, seconds, steps]

    def site_rows(self, site: str) -> list[list[str]]:
        """Mean ± sd of a site by method: a row for each element, or, of a large one, one of extremes."""
        mean = self.entries[self.reference].moments[site].mean
        head = [site, *self.entries]
        if mean.numel() > LISTED:
            return [head, self._extremes(site)]
        return [head, *(self._element(site, index) for index in np.ndindex(*mean.shape))]

    def _element(self, site: str, index: tuple[int, ...]) -> list[str]:
        cells = []
        for name, entry in self.entries.items():
            m = entry.moments[site]
            shown = f"{float(m.mean[index]):.4g} ± {float(m.sd[index]):.2g}"
            if name != self.reference:
                d = self.differences[name][site]
                shown += f" ({float(d.mean[index]):+.2f} sd, ×{float(d.sd[index]):.2f})"
            cells.append(shown)
        return [f"{site}[{', '.join(map(str, index))}]" if index else site, *cells]

    def _extremes(self, site: str) -> list[str]:
        cells = []
        for name in self.entries:
            d = self.differences[name][site]
            low, high = float(d.sd.min()), float(d.sd.max())
            cells.append(
                "reference"
                if name == self.reference
                else f"at most {float(d.mean.abs().max()):.2f} sd, sd ×{low:.2f} to ×{high:.2f}"
            )
        return [f"{site} {list(self.entries[self.reference].moments[site].mean.shape)}", *cells]

    @property
    def sites(self) -> list[str]:
        """The latent sites that have numbers."""
        return list(self.entries[self.reference].moments)

    def __str__(self) -> str:
        sites = [text_table(self.site_rows(site)) for site in self.sites]
        kinds = [f"{name}: {entry.kind}" for name, entry in self.entries.items()]
        return "\n\n".join([text_table(self.score_rows()), "\n".join([*kinds, *self.notes()]), *sites])

    def notes(self) -> list[str]:
        """What the columns mean, and what was done."""
        found = [*NOTES, f"(+0.10 sd, ×0.90): from {self.reference}, the mean in its sd, and the ratio of the sds."]
        summed = self.entries[self.reference].draws.summed
        if summed:
            found.append(f"Summed out exactly: {', '.join(summed)}.")
        if self.components is not None:
            found.append(
                f"Components of plate {self.components.plate!r} are in one order, in {', '.join(self.components.axes)}."
            )
        return found

    def html(self, pictures: bool = True) -> str:
        """One page that needs nothing else: its pictures are inside."""
        from . import plotting

        parts = [table_html(self.score_rows()), *(f"<p>{html.escape(n)}</p>" for n in self.notes())]
        if pictures:
            parts.append(figure_html(plotting.plot_bounds(self), "ELBO and evidence by method"))
            parts.append(figure_html(plotting.plot_densities(self), "Posterior densities by method"))
        parts += [f"<h2>{html.escape(site)}</h2>{table_html(self.site_rows(site))}" for site in self.sites]
        return page(f"Posteriors of {self.title}", parts)

    def save_html(self, path: str | Path) -> Path:
        """Write the page; returns where."""
        target = Path(path)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return self.html()


def _k_of(entry: Entry) -> str:
    if entry.score is not None:
        return str(entry.score.k)
    return "−" if entry.r_hat is None else f"R̂ {entry.r_hat:.3f}"


def compare(
    model: Callable[..., Any],
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
        num_samples: draws of each method; of MCMC, at most so many.
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
        raise ValueError(
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
    parameters = Parameters(start, [getattr(method, "guide", method) for method in methods.values()])
    job = _Job(target, num_samples, max_steps, max_seconds, same_data, seed, parameters)
    with torch.random.fork_rng(), parameters.kept():
        entries = _aligned({name: job.named(name, method) for name, method in methods.items()}, plate)
    chosen = reference or next((n for n, m in methods.items() if isinstance(m, MCMC)), next(iter(methods)))
    against = entries[chosen].moments
    differences = {name: difference(entry.moments, against) for name, entry in entries.items()}
    return Comparison(entries, chosen, differences, plate, getattr(model, "__name__", type(model).__name__))


def _aligned(entries: dict[str, Entry], components: Components | None) -> dict[str, Entry]:
    if components is None:
        return entries
    draws = align({name: entry.draws for name, entry in entries.items()}, components)
    return {name: replace(e, draws=draws[name], moments=moments(draws[name])) for name, e in entries.items()}


def _is_driver(method: Any) -> bool:
    return isinstance(method, SVI | CAVI) or (isinstance(method, AutoConjugate) and not is_fitted(method))


def is_fitted(guide: AutoConjugate) -> bool:
    """Whether a guide has a posterior yet."""
    try:
        return bool(guide.state)
    except ModelError:
        return False


def check_methods(methods: Any, example: str) -> None:
    """Methods are given by name, and there is one.

    Raises:
        TypeError: if they are no mapping; with the example to write.
        ValueError: if it is empty.
    """
    if not isinstance(methods, Mapping):
        raise TypeError(f"Expected methods by name, in a dict; got {type(methods).__name__}. Write {example}.")
    if not methods:
        raise ValueError(f"Expected at least one method; got none. Write {example}.")


def _check_method(name: str, method: Any) -> None:
    """A method is one that :func:`compare` knows.

    Raises:
        TypeError: naming it.
    """
    if not isinstance(method, CAVI | SVI | MCMC) and not callable(method):
        raise TypeError(
            f"Expected a guide, AutoConjugate, CAVI, SVI or MCMC for {name!r}; got {type(method).__name__}. Write "
            f"{{{name!r}: AutoConjugate(model)}}, for instance."
        )


def _check_own_guides(methods: Mapping[str, Any]) -> None:
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

    guide: Any
    model: Any
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
    parameters: Parameters

    def named(self, name: str, method: Any) -> Entry:
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

    def entry(self, name: str, method: Any) -> Entry:
        """Fit a method if need be, and score it."""
        torch.manual_seed(self.seed)
        with self.parameters.of(getattr(method, "guide", method), keep=_is_driver(method)):
            done = self._fitted(name, method)
            if self.same_data:
                check_same_data(self.target.call, done.guide, repr(name))
            with seeded(self.seed):
                draws = draw(self.target, done.guide, self.num_samples, repr(name))
                check_same_model(self.target, done.model, {n: v[0] for n, v in draws.values.items()}, repr(name))
            exact = None
            if isinstance(done.guide, AutoConjugate):
                exact = done.guide.elbo(*self.target.call.args, **self.target.call.kwargs)
        return Entry(
            kind=done.kind,
            draws=draws,
            moments=moments(draws),
            score=None if draws.log_q is None else score_draws(draws),
            exact_elbo=exact,
            seconds=done.seconds,
            steps=done.steps,
            converged=done.converged,
            r_hat=_r_hat(draws) if draws.log_q is None else None,
        )

    def _fitted(self, name: str, method: Any) -> _Fitted:
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
        return _Fitted(method, None, f"guide {getattr(method, '__name__', type(method).__name__)}")

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
        seconds = watch.seconds()
        name = getattr(svi.guide, "__name__", type(svi.guide).__name__)
        return _Fitted(svi.guide, svi.model, f"SVI, {name}", seconds, steps)

    def _run_mcmc(self, mcmc: MCMC) -> _Fitted:
        call, seconds = self.target.call, None
        if mcmc._samples is None:
            watch = Stopwatch()
            mcmc.run(*call.args, **call.kwargs)
            seconds = watch.seconds()
        steps = mcmc.num_chains * (mcmc.num_samples + mcmc.warmup_steps)
        kernel = mcmc.kernel
        return _Fitted(mcmc, getattr(kernel, "model", None), f"MCMC, {type(kernel).__name__}", seconds, steps)


class Stopwatch:
    """Seconds since it was made, with the work that waits on any CUDA device done."""

    def __init__(self) -> None:
        self._start = self._now()

    def seconds(self) -> float:
        return self._now() - self._start

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


def _r_hat(draws: Draws) -> float | None:
    """The largest split R̂, where chains are long enough to be split."""
    found = [_split_r_hat(v.double(), draws.chains) for v in draws.values.values() if v.is_floating_point()]
    return max(found) if found and len(draws.log_p) // draws.chains >= 4 else None


def _split_r_hat(values: Tensor, chains: int) -> float:
    return float(split_gelman_rubin(values.unflatten(0, (chains, -1)), 0, 1).max())
