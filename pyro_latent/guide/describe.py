"""What a summary of a guide is made of: the exact moments of its global blocks, and the words for how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..families.finite import Finite
from ..families.quantiles import fixed_draws
from ..objective import AUTO, Block, BlockKey, Program, marginals, of_start, quantiles_of_block, responsibilities
from ..recording import DiscreteSite, LatentSite
from .augmented import moved_value, transformed
from .calls import CalledGuide
from .state import Fit, PosteriorState
from .summary import SiteSummary, Summary, interval_names


class _Entry(NamedTuple):
    """The posterior of a site before it is written down: its marginal, None where it is not looked at; the ends of the
    interval; and its block's family.
    """

    shape: torch.Size
    family: str
    marginal: Any = None
    ends: Tensor | None = None

    def moved(self, transform: object) -> _Entry:
        """The entry of a function of the site."""
        family = f"function of {self.family}"
        if self.marginal is None or self.ends is None:
            return self._replace(family=family)
        ends = moved_value(self.ends, transform).sort(0).values
        return _Entry(self.shape, family, transformed(self.marginal, transform), ends)


def summary_of(name: str, guide: CalledGuide, prob: float) -> Summary:
    """The summary of a guide, by what it is called, with intervals of a probability."""
    names, posterior = interval_names(prob), guide.posterior_state
    if not posterior.layout:
        return Summary(f"{name}: not fitted.{_settings(guide)} Fit it by CAVI(model, guide).run(data).", (), names)
    entries: dict[str, _Entry] = {}
    for key, block in posterior.blocks.items():
        if not block.is_discrete:
            entries |= _of_block(key, block, posterior, prob)
    own = guide.augmented.own(entries, lambda entry, transform: entry.moved(transform))
    sites = [_written(site, entry, names) for site, entry in own.items()]
    sites += [one for one in _discrete(posterior) if one.name not in guide.augmented.names]
    return Summary(f"{name}: {fitted(posterior.fit)}", tuple(sites), names)


def _settings(guide: CalledGuide) -> str:
    """What a guide was made with, where it is not the default."""
    joint = "auto" if guide.joint == AUTO else [list(names) for names in guide.joint]
    said: dict[str, Any] = {"blocks": joint, "point": list(guide.point), "mean_field": list(guide.mean_field)}
    said |= {"restarts": guide.restarts} if guide.restarts > 1 else {}
    said |= {"init": guide.init} if isinstance(guide.init, int) else {}
    words = [f"{name}={value!r}" for name, value in said.items() if value != []]
    words += ["reparam=True"] if guide.augmented.is_used else []
    return f" It has {', '.join(words)}." if words else ""


def fitted(fit: Fit) -> str:
    """How far a guide was fitted, in words."""
    if fit.steps == 0:
        return "not fitted, at its start"
    words = [] if fit.elbo is None else [f"ELBO {'' if fit.is_exact else 'about '}{fit.elbo:.6f} nats"]
    words += ["a fit from a file"] if fit.steps is None else [f"{fit.steps} {'sweep' if fit.steps == 1 else 'sweeps'}"]
    words += [] if fit.converged is None else ["converged" if fit.converged else "not converged"]
    words += [f"the best of {fit.starts} starts"] if fit.starts > 1 else []
    return ", ".join(words)


def _best(posterior: PosteriorState, key: BlockKey) -> Any:
    """The natural parameters of a block at the best start."""
    return posterior.naturals[key].map(lambda t: t[posterior.best])


def _of_block(key: BlockKey, block: Block, posterior: PosteriorState, prob: float) -> dict[str, _Entry]:
    """The entries of the sites of a block; of one that belongs to the data at hand, without their marginals."""
    family = "param" if block.is_param else block.family.name
    if posterior.is_local(key):
        return {s.name: _Entry(s.shape, f"{family}, local") for s in block.sites}
    params = block.params(_best(posterior, key))
    found = marginals(block, params)
    levels = [(1 - prob) / 2, (1 + prob) / 2]
    ends = {} if block.is_point else quantiles_of_block(block, params, levels)
    return {s.name: _Entry(s.shape, family, found[s.name], ends.get(s.name)) for s in block.sites}


def _written(name: str, entry: _Entry, intervals: Sequence[str]) -> SiteSummary:
    if entry.marginal is None:
        return SiteSummary(name, entry.shape, entry.family)
    if entry.ends is None:
        return SiteSummary(name, entry.shape, entry.family, {"mean": _cpu(entry.marginal.mean, entry.shape)})
    mean, sd = moments_of(entry.marginal)
    columns = {"mean": mean, "sd": sd, **dict(zip(intervals, entry.ends, strict=True))}
    return SiteSummary(name, entry.shape, entry.family, {n: _cpu(t, entry.shape) for n, t in columns.items()})


def _cpu(tensor: Tensor, shape: torch.Size) -> Tensor:
    return tensor.detach().expand(shape).cpu().double()


def moments_of(distribution: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, elementwise; of a distribution that has no formula for them, those of 4,000 draws
    with a fixed seed, which leave torch's random state as it was.
    """
    try:
        return distribution.mean, distribution.variance.sqrt()
    except NotImplementedError:
        draws = fixed_draws(distribution)
        return draws.mean(0), draws.std(0)


# Discrete sites.


def _discrete(posterior: PosteriorState) -> list[SiteSummary]:
    """The discrete sites: probabilities of those that the model has once, and a line for those of the data."""
    program = posterior.program
    if program is None:
        note = "its posterior is made of the data: call guide(data)."
        return [SiteSummary(n, torch.Size(), "discrete", note=note) for n in posterior.layout["discrete"]]
    found = [_mean_field(program, b, posterior) for b in program.blocks.values() if b.is_discrete]
    whole = [s for s in program.discrete if not _is_of_data(program, s)]
    probs: dict[str, Tensor] = {}
    if whole:
        state = of_start(posterior.naturals, posterior.best)
        probs = responsibilities(program, program.means(state), whole)
    for site in program.discrete:
        family = site.distribution.__name__
        if site.name in probs:
            found.append(_probabilities(site.name, site.batch_shape, family, site.support, probs[site.name][0]))
        else:
            found.append(SiteSummary(site.name, site.batch_shape + site.support.shape[1:], f"{family}, local"))
    return found


def _is_of_data(program: Program, site: DiscreteSite | LatentSite) -> bool:
    """Whether a site has elements for observations: it shares a plate with some."""
    data = {p.name for s in program.recording.scored.values() if s.observed for p in s.plates}
    return any(plate.name in data for plate in site.plates)


def _mean_field(program: Program, block: Block, posterior: PosteriorState) -> SiteSummary:
    (site,), family = block.sites, block.family
    assert isinstance(family, Finite)
    kind = family.kind.__name__
    if _is_of_data(program, site):
        return SiteSummary(site.name, site.shape, f"{kind}, local")
    probs = block.params(_best(posterior, block.key))["probs"]
    return _probabilities(site.name, site.batch_shape, kind, family.support, probs)


def _probabilities(name: str, shape: torch.Size, family: str, support: Tensor, probs: Tensor) -> SiteSummary:
    """Probabilities ``shape + [values]`` as columns."""
    values = tuple(str(v) if not isinstance(v, float) else f"{v:g}" for v in support.tolist())
    return SiteSummary(name, shape, family, {"probability": probs.detach().movedim(-1, 0).cpu().double()}, values)


__all__ = ["fitted", "moments_of", "summary_of"]
