"""Simulation-based calibration of an approximate posterior.

Draw parameters from the prior and data from the model given them, fit the data, and ask which share p of the fitted
posterior's draws lies below the true parameter. With exact posteriors p is uniform. Too many p near 0 and 1: the
posterior is too narrow; a lopsided histogram: it is biased. It takes many fits, and a fit by coordinate ascent takes
milliseconds.

Source: Talts, Betancourt, Simpson, Vehtari and Gelman 2018 (simulation-based calibration); Yao, Vehtari, Simpson and
Gelman 2018, §3.2 (the variational form, and its test of symmetry).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ..ascent import CAVI
from ..errors import ArgumentTypeError, ModelError, check_count
from ..guide import AutoConjugate
from ..particles import ProgramCall, Target, Values, is_latent, sample_sites, seeded
from ..signatures import Model
from ..tables import text_table
from ..values import kind_of
from .draws import guide_values

Fitter = Callable[..., Callable[..., Any]]

#: How unlikely the p-values of a site may be, were they uniform, before it counts as not calibrated.
LEVEL = 0.01


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        p_values: by site, the share of draws below the truth in each simulation, ``[M] + shape``, in (0, 1).
        num_draws: the draws that each share is of.
    """

    p_values: dict[str, Tensor]
    num_draws: int

    def uniformity(self, site: str) -> Tensor:
        """The probability of p-values as far from uniform as each element's (Kolmogorov-Smirnov): the site's shape."""
        from scipy.stats import kstest

        return self._by_element(site, lambda p: kstest(p, "uniform").pvalue)

    def symmetry(self, site: str) -> Tensor:
        """How well p and 1 − p agree in each element (two-sample Kolmogorov-Smirnov): low where q is biased."""
        from scipy.stats import ks_2samp

        return self._by_element(site, lambda p: ks_2samp(p, 1 - p).pvalue)

    def dispersion(self, site: str) -> Tensor:
        """The value of 3 E (2p − 1)² in each element: 1 if calibrated, above if q is too narrow, below if too wide."""
        return 3 * (2 * self.p_values[site] - 1).square().mean(0)

    def verdict(self, site: str) -> str:
        """The worst element's verdict: "calibrated", "overconfident", "underconfident" or "biased"."""
        uniform = self.uniformity(site).flatten()
        if float(uniform.min()) * len(uniform) >= LEVEL:  # Bonferroni: as many tests as elements
            return "calibrated"
        worst = int(uniform.argmin())
        excess = float(self.dispersion(site).flatten()[worst]) - 1
        error = math.sqrt(0.8 / len(self.p_values[site]))  # of the dispersion, if p is uniform
        if abs(excess) < 2 * error or float(self.symmetry(site).flatten()[worst]) < LEVEL / len(uniform):
            return "biased"
        return "overconfident" if excess > 0 else "underconfident"

    def _by_element(self, site: str, test: Callable[[Any], float]) -> Tensor:
        p = self.p_values[site]
        columns = p.reshape(len(p), -1).T.numpy()
        return torch.tensor([float(test(column)) for column in columns], dtype=torch.float64).reshape(p.shape[1:])

    def __str__(self) -> str:
        rows = [["site", "uniform (p)", "symmetric (p)", "dispersion", "verdict"]]
        for site in self.p_values:
            tests = [float(t.min()) for t in (self.uniformity(site), self.symmetry(site))]
            spread = self.dispersion(site)
            shown = (
                f"{float(spread.min()):.2f} to {float(spread.max()):.2f}"
                if spread.numel() > 1
                else f"{float(spread):.2f}"
            )
            rows.append([site, *(f"{t:.3g}" for t in tests), shown, self.verdict(site)])
        num = len(next(iter(self.p_values.values())))
        return (
            f"{text_table(rows)}\n{num} simulations, {self.num_draws} draws each; of a site the least of its elements."
        )


def fit_conjugate(model: Model, *args: Any, **kwargs: Any) -> AutoConjugate:
    """A mean-field fit by coordinate ascent: what :func:`calibrate` does by default."""
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*args, **kwargs)
    return guide


def calibrate(
    model: Model,
    *args: Any,
    fit: Fitter = fit_conjugate,
    num_simulations: int = 200,
    num_samples: int = 100,
    sites: Sequence[str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> Calibration:
    """Simulate from the model, fit, and see where the truth lies in the fitted posterior.

    Args:
        model: a Pyro model with proper priors; it is run with the arguments, but with simulated values at its observed
            sites. Where priors depend on the data, they are those of the data given.
        args, kwargs: the model's arguments.
        fit: called with a model (this one, on simulated data) and the arguments; returns its fitted guide. By default
            mean-field coordinate ascent.
        num_simulations: how many data sets; 200 find a posterior that is a third too narrow.
        num_samples: draws of each fitted guide.
        sites: the latent sites to look at; all continuous ones by default. Components of a mixture have no fixed order:
            name sites that do not depend on it.
        seed: of everything that is drawn.

    Raises:
        ModelError: if the model observes nothing, or a site is unknown or discrete.

    Example::

        def exact(model, x):
            guide = AutoConjugate(model, blocks=[("mean", "precision")])
            CAVI(model, guide).run(x)
            return guide

        print(calibrate(model, x, fit=exact))
    """
    num_simulations = check_count("num_simulations", num_simulations, 2)
    num_samples = check_count("num_samples", num_samples, 1)
    with seeded(seed):
        target = Target.of(model, args, kwargs)
        chosen = _sites(target, sites)
        found = [_simulate(target, fit, num_samples, chosen) for _ in range(num_simulations)]
    return Calibration({n: torch.stack([f[n] for f in found]) for n in chosen}, num_samples)


def _sites(target: Target, sites: Sequence[str] | None) -> list[str]:
    continuous = [n for n, s in target.latents.items() if s["value"].is_floating_point()]
    if sites is not None and not isinstance(sites, list | tuple):
        raise ArgumentTypeError(f"Expected sites to be a list of names of {continuous}; got {kind_of(sites)}.")
    unknown = [n for n in sites or () if n not in continuous]
    if unknown:
        raise ModelError(f"Expected continuous latent sites, of {continuous}; got {unknown}. Write sites={continuous}.")
    return list(sites) if sites is not None else continuous


def _simulate(target: Target, fit: Fitter, num: int, sites: Sequence[str]) -> Values:
    """One simulation: by site, the share of posterior draws below the truth."""
    call = target.call
    truth, data = simulated(call)
    model = with_data(call.program, data)
    with torch.enable_grad():
        guide = fit(model, *call.args, **call.kwargs)
    here = replace(target, call=call.with_program(model))
    drawn, _ = guide_values(here, guide, num, marginal=True)
    return {n: _share_below(drawn[n], truth[n]) for n in sites}


def _share_below(drawn: Tensor, truth: Tensor) -> Tensor:
    """The rank of the truth among the draws, spread evenly over its interval, so that a uniform rank is uniform."""
    rank = (drawn < truth).sum(0).double()
    return ((rank + torch.rand(rank.shape, dtype=rank.dtype, device=rank.device)) / (len(drawn) + 1)).cpu()


def simulated(call: ProgramCall) -> tuple[Values, Values]:
    """Latents from the prior, and data given them, by site.

    Raises:
        ModelError: if nothing is observed.
    """
    trace = call.with_program(poutine.uncondition(call.program)).trace()
    sites = sample_sites(trace)
    data = {n: s["value"] for n, s in sites.items() if s["infer"].get("was_observed") and s["value"].numel()}
    if not data:
        raise ModelError(
            "Expected a model that observes data, to simulate it; got one without. Pass obs= at the sites of its data."
        )
    latents = {n: s["value"] for n, s in sites.items() if is_latent(s) and not s["infer"].get("was_observed")}
    return latents, data


def with_data(model: Model, data: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The model with other data at its observed sites, whatever its arguments."""
    found: Callable[..., Any] = poutine.condition(model, data=dict(data))
    return found
