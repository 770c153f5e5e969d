"""Many draws of a Pyro program at once: their log densities, one number a draw.

A program that keeps its independence in plates runs on all draws together, in one more plate to the left of its own.
Not every program bears that: ``mu[z]`` picks along the new dimension, maybe without an error. So the first draws are
scored one by one as well, and where the two differ all draws go one by one.

Discrete sites that the model marks for enumeration and the guide leaves out are summed out exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from ..errors import ModelError
from ..guide import AutoConjugate

_PLATE = "_pyro_latent_draws"
_CHECKED = 3
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-3}


class Site(NamedTuple):
    """A latent site in a run of its own: the shape of its value, and how many of its dimensions are the event's."""

    shape: torch.Size
    event_dim: int


class Draws(NamedTuple):
    """Draws of a guide: values by latent site, ``[S] + shape``, with log p(x, z) and log q(z) in float64, ``[S]``."""

    values: dict[str, Tensor]
    log_joint: Tensor
    log_proposal: Tensor


class Particles:
    """A model and its guide at given arguments, ready to draw and to score many particles.

    A latent site that the guide leaves out is summed out where the model marks it for enumeration, and else drawn from
    its own prior given the others; the density of such a draw is in neither log p nor log q.

    Args:
        model: a Pyro model.
        guide: a Pyro guide; None: the prior.
        args, kwargs: the arguments of both.
        vectorized: True: all draws in one run; False: one run a draw; None: one run, if the first draws then have the
            densities that they have alone.

    Raises:
        ModelError: if the model observes nothing or subsamples a plate, or if the guide has a site that the model has
            not; with ``vectorized=True``, if the first draws have other densities alone.

    Attributes:
        latents: the sites that are drawn or given, by name.
        marked: the names of the model's latent sites that are marked for enumeration.
        nesting: the number of batch dimensions, those of plates and others.
        points: by site that the guide draws from a ``Delta`` and the model does not, its value in one run: a point
            estimate, unless further draws differ, as an autoguide's do.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        vectorized: bool | None = None,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self._guide = _proposal(model, guide)
        self._vectorized = vectorized
        self._checked = vectorized is False
        self._look()

    @torch.no_grad()
    def draw(self, num_samples: int) -> Draws:
        """``num_samples`` draws of the guide, scored."""
        self._choose()
        if self._vectorized:
            return self._draw(num_samples)
        singles = [self._draw(None) for _ in range(num_samples)]
        values = {name: torch.stack([s.values[name] for s in singles]) for name in self.latents}
        joint = torch.stack([s.log_joint for s in singles])
        return Draws(values, joint, torch.stack([s.log_proposal for s in singles]))

    def log_joint(self, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z) at given values of the latent sites, float64 ``[S]``; differentiable in values and parameters.

        Args:
            values: by latent site, ``[S] + shape``.

        Raises:
            ModelError: if a site is missing, unknown, or of another shape.
        """
        self._check_values(values)
        self._choose(lambda: {name: value[:_CHECKED] for name, value in values.items()})
        return self._score(values) if self._vectorized else self._score_each(values)

    # Runs of the program.

    def _draw(self, count: int | None) -> Draws:
        """One run of guide and model: with ``count`` draws in a plate, or a single one without."""
        guide_trace = self._trace(self._guide, count)
        model_trace = self._trace(poutine.replay(self.model, trace=guide_trace), count, enumerate_sites=True)
        drawn: dict[str, Any] = {name: model_trace.nodes[name]["value"] for name in self.latents}
        values = {name: _by_draw(drawn[name], site, count) for name, site in self.latents.items()}
        from_prior = [name for name in self.latents if name not in guide_trace.nodes]
        for name in from_prior:
            model_trace.remove_node(name)
        return Draws(values, self._log_prob(model_trace, count), self._log_prob(guide_trace, count))

    def _trace(self, program: Callable[..., Any], count: int | None, enumerate_sites: bool = False) -> poutine.Trace:
        if enumerate_sites and self._enumerated:
            program = poutine.enum(program, first_available_dim=-1 - self.nesting - (count is not None))
        plate = nullcontext() if count is None else pyro.plate(_PLATE, count, dim=-1 - self.nesting)
        with poutine.block(), plate:
            trace = poutine.trace(program).get_trace(*self.args, **self.kwargs)
        trace = prune_subsample_sites(trace)
        trace.compute_log_prob()
        return trace

    def _score(self, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z) by one run in which every value has the new plate as its leftmost dimension."""
        count = len(next(iter(values.values())))
        placed = {}
        for name, site in self.latents.items():
            between = self.nesting - (len(site.shape) - site.event_dim)
            placed[name] = values[name].reshape(count, *[1] * between, *site.shape)
        return self._log_joint(placed, count)

    def _score_each(self, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z) by one run a draw."""
        count = len(next(iter(values.values())))
        return torch.stack([self._log_joint({n: v[i] for n, v in values.items()}, None) for i in range(count)])

    def _log_joint(self, values: Mapping[str, Tensor], count: int | None) -> Tensor:
        given = poutine.Trace()
        for name, value in values.items():
            given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
        trace = self._trace(poutine.replay(self.model, trace=given), count, enumerate_sites=True)
        return self._log_prob(trace, count)

    def _log_prob(self, trace: poutine.Trace, count: int | None) -> Tensor:
        """The log density of a trace by draw, float64 ``[S]`` or ``[]``; sites that it enumerates are summed out."""
        sites = [site for _, site in samples_of(trace)]
        if any("_enumerate_dim" in site["infer"] for site in sites):
            trace.pack_tensors()
            symbol = trace.plate_to_symbol.get(_PLATE)
            terms = [_over_plates(term, symbol) for term in _factors(trace)]
        else:
            terms = [_over_batch(site["log_prob"], count, self.nesting) for site in sites]
        shape = () if count is None else (count,)
        return torch.stack([term.expand(shape) for term in terms]).sum(0) if terms else torch.zeros(shape).double()

    # What the program is like.

    @torch.no_grad()
    def _look(self) -> None:
        """Run the program once, alone: its sites, and how many batch dimensions they have."""
        with poutine.block():
            guide_trace = poutine.trace(self._guide).get_trace(*self.args, **self.kwargs)
            model_trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        _check_traces(model_trace, guide_trace)
        latent = {name: site for name, site in samples_of(model_trace) if not site["is_observed"]}
        left_out = latent.keys() - guide_trace.nodes.keys()
        self.marked = {name for name, site in latent.items() if site["infer"].get("enumerate")}
        self._enumerated = self.marked & left_out
        self.nesting = max(_num_batch_dims(s) for trace in (guide_trace, model_trace) for _, s in samples_of(trace))
        self.latents = {name: _site(s) for name, s in latent.items() if name not in self._enumerated}
        if not self.latents:  # nothing to draw: every run gives the same
            self._vectorized, self._checked = False, True
        self._guide_sites = {name: _site(s) for name, s in samples_of(guide_trace)}
        deltas = {n: s["value"] for n, s in samples_of(guide_trace) if is_delta(s["fn"])}
        self.points = {n: v for n, v in deltas.items() if n in self.latents and not is_delta(latent[n]["fn"])}
        first = next(iter(self.latents), None)
        self._dtype = torch.float64 if first is None else latent[first]["value"].dtype

    @torch.no_grad()
    def _choose(self, first: Callable[[], Mapping[str, Tensor]] | None = None) -> None:
        """Decide once whether draws go together, by a few of them: given ones, or drawn ones."""
        if self._checked:
            return
        try:
            agree = self._drawn_agree() if first is None else self._values_agree(first())
        except _MISFITS:
            agree = False  # where the program fails alone as well, the run one by one says so
        if self._vectorized and not agree:
            raise ModelError(
                "Expected a model that bears one more plate to the left, for vectorized=True; got other densities "
                "there, or an error. Index plated sites with pyro.ops.indexing.Vindex, or leave vectorized=None."
            )
        self._vectorized, self._checked = agree, True

    def _drawn_agree(self) -> bool:
        trace = self._trace(self._guide, _CHECKED)
        together = self._log_prob(trace, _CHECKED)
        alone = self._guide_alone(trace)
        same = alone is None or _same(together, alone, self._dtype)
        return same and self._values_agree(self._draw(_CHECKED).values)

    def _values_agree(self, values: Mapping[str, Tensor]) -> bool:
        return _same(self._score(values), self._score_each(values), self._dtype)

    def _guide_alone(self, trace: poutine.Trace) -> Tensor | None:
        """log q of draws made together, one by one; None if it cannot score what it did not draw."""
        scores = []
        for i in range(_CHECKED):
            given = poutine.Trace()
            for name, site in samples_of(trace):
                if name in self._guide_sites and not is_delta(site["fn"]):
                    value = _by_draw(site["value"], self._guide_sites[name], _CHECKED)[i]
                    given.add_node(name, name=name, type="sample", is_observed=False, value=value, infer=site["infer"])
            try:
                single = self._trace(poutine.replay(self._guide, trace=given), None)
            except _MISFITS:
                return None
            scores.append(self._log_prob(single, None))
        return torch.stack(scores)

    def _check_values(self, values: Mapping[str, Tensor]) -> None:
        if values.keys() != self.latents.keys():
            raise ModelError(
                f"Expected values of the latent sites {sorted(self.latents)}; got {sorted(values)}. Give every latent "
                "site that is not summed out its values, and no other."
            )
        counts = {v.shape[:1] for v in values.values()}
        if len(counts) != 1 or any(v.shape[1:] != self.latents[n].shape or v.dim() == 0 for n, v in values.items()):
            expected = {name: ["S", *site.shape] for name, site in self.latents.items()}
            found = {name: list(value.shape) for name, value in values.items()}
            raise ModelError(
                f"Expected values of shapes {expected}, with one S; got {found}. Put the draws along the first "
                "dimension."
            )


_MISFITS = (RuntimeError, ValueError, IndexError, KeyError, AssertionError, NotImplementedError)


def _proposal(model: Callable[..., Any], guide: Callable[..., Any] | None) -> Callable[..., Any]:
    """The guide; the prior by the model's own latent sites; an AutoConjugate without the sites to be summed out."""
    if guide is None:
        return poutine.block(model, hide_fn=lambda msg: msg["type"] != "sample" or msg["is_observed"])
    if isinstance(guide, AutoConjugate):
        # It leaves marked sites to an enumeration around it, and samples nothing by enumeration itself.
        return poutine.enum(guide, first_available_dim=-100)
    return guide


def _site(site: Mapping[str, Any]) -> Site:
    return Site(site["value"].shape, site["fn"].event_dim)


def samples_of(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """The sample sites of a trace but for those that subsample."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def check_density(points: Mapping[str, Tensor], name: str) -> None:
    """A proposal needs a density: the draws of a point estimate are all the same, and say nothing about its weight.

    Args:
        points: by site that a guide draws from a ``Delta``, its draws, ``[S] + shape``; of one draw nothing is said.
        name: how errors call the guide.

    Raises:
        ModelError: naming the sites whose draws are all the same.
    """
    fixed = [n for n in sorted(points) if len(points[n]) > 1 and bool((points[n] == points[n][:1]).all())]
    if fixed:
        raise ModelError(
            f"Expected a guide with a density; got a point at {fixed} ({name}): its draws are all the same there, so "
            "they have no weights p / q. Use AutoNormal in place of AutoDelta, leave out point=, or give what "
            "guide.laplace_approximation(*args) returns."
        )


def _check_traces(model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
    if not any(site["is_observed"] for _, site in samples_of(model_trace)):
        raise ModelError("Expected a model with an observed site; got none. Pass the data, and obs= at a pyro.sample.")
    for name, site in model_trace.nodes.items():
        subsample: Any = site
        if site_is_subsample(site) and len(subsample["value"]) < subsample["fn"].size:
            raise ModelError(
                f"Expected a plate over all of the data; got plate {name!r} with {len(subsample['value'])} of "
                f"{subsample['fn'].size}. Leave out subsample_size: p(x) takes every point."
            )
    strangers = [
        name
        for name, site in samples_of(guide_trace)
        if name not in model_trace.nodes and not site["infer"].get("is_auxiliary")
    ]
    if strangers:
        raise ModelError(
            f"Expected a guide whose sites the model has; got {strangers}, which it has not. Rename them, or mark a "
            "site of the guide's own with infer={'is_auxiliary': True}."
        )


def _num_batch_dims(site: Mapping[str, Any]) -> int:
    """Of a site's density: what its plates say, or its distribution, whichever is more."""
    plates = [-frame.dim for frame in site["cond_indep_stack"] if frame.vectorized]
    return max([len(site["fn"].batch_shape), *plates])


def is_delta(distribution: Any) -> bool:
    """Whether a distribution is a point, under whatever wraps it."""
    return isinstance(innermost(distribution), dist.Delta)


def innermost(distribution: Any) -> Any:
    """A distribution without what wraps it: independence, expansion, masks, transforms."""
    while hasattr(distribution, "base_dist") and not isinstance(distribution, dist.Delta):
        distribution = distribution.base_dist
    return distribution


def _by_draw(value: Tensor, site: Site, count: int | None) -> Tensor:
    """A site's value as ``[S] + shape``, or as it is alone."""
    if count is None:
        return value
    return value.expand(count, *value.shape[1:]).reshape(count, *site.shape)


def _over_batch(log_prob: Tensor, count: int | None, nesting: int) -> Tensor:
    """The sum over all dimensions but that of the draws, which is the one before the ``nesting`` last."""
    if count is not None and log_prob.dim() > nesting + 1:
        raise ValueError(
            f"Expected at most {nesting + 1} batch dimensions; got shape {list(log_prob.shape)}. Write "
            "vectorized=False."
        )
    if count is None or log_prob.dim() <= nesting:
        return log_prob.double().sum()
    return log_prob.double().reshape(len(log_prob), -1).sum(-1)


def _over_plates(term: Tensor, symbol: str | None) -> Tensor:
    """The sum of a packed tensor over all dimensions but that of the draws."""
    dims = [i for i, name in enumerate(term._pyro_dims) if name != symbol]  # type: ignore[attr-defined]
    return term.double().sum(dims) if dims else term.double()


def _factors(trace: poutine.Trace) -> Iterator[Tensor]:
    """The packed log densities of a trace, after the elimination of what is enumerated in it."""
    costs, log_factors, _, sum_dims, scale = _compute_model_factors(trace, poutine.Trace())
    for terms in costs.values():
        yield from terms
    for terms in contract_tensor_tree(log_factors, sum_dims).values():
        for term in terms:
            yield packed.scale_and_mask(term, scale=scale)


def _same(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether log densities agree to rounding, impossible values among them."""
    size = 1 + one.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    tolerance = _ROUNDING.get(dtype, 1e-3) * size
    return torch.allclose(one, other, rtol=0.0, atol=tolerance, equal_nan=True)
