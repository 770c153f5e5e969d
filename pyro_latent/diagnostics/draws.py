"""Draws of a model's latents from any guide or MCMC, with their log densities under the model and under the guide.

Discrete sites that the model marks for parallel enumeration are summed out of the model's density, exactly, by Pyro's
tensor variable elimination, and left out of the guide: so a guide that samples them, one that leaves them to
enumeration, and NUTS, which cannot sample them, are all scored for the same latents.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoLaplaceApproximation
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack, scale_and_mask
from torch import Tensor

from ..errors import ModelError
from ..infer.particles import check_density, is_delta
from .runs import (
    Call,
    Program,
    Runner,
    Values,
    beside_plates,
    check_no_subsample,
    close,
    is_latent,
    is_mixture,
    max_plate_nesting,
    quiet_redraws,
    run,
    sample_sites,
    within_draws,
)
from .support import check_support


@dataclass(frozen=True)
class Draws:
    """Draws of a model's latents.

    Attributes:
        values: by latent site of the model, ``[S] + shape``.
        log_p: the log joint density of latents and data, ``[S]``, float64, in nats; discrete sites of ``summed`` are
            summed out.
        log_q: the guide's log density, ``[S]``, float64; None for MCMC, which has none.
        summed: the discrete sites that are summed out.
        chains: of how many chains the draws come, one after another.
        exact: whether the draws are the posterior itself and not an approximation, in the limit (MCMC).
    """

    values: Values
    log_p: Tensor
    log_q: Tensor | None
    summed: tuple[str, ...] = ()
    chains: int = 1

    @property
    def log_weights(self) -> Tensor:
        """log p − log q of each draw, ``[S]``, float64.

        Raises:
            ModelError: for MCMC.
        """
        if self.log_q is None:
            raise ModelError("Expected draws from a guide; got those of MCMC, which has no density. Use a guide.")
        return self.log_p - self.log_q


@dataclass(frozen=True)
class Target:
    """A model with its arguments, run once: what its latents are.

    Attributes:
        call: the model and its arguments.
        latents: by name, the sites that are neither observed nor deterministic.
        marked: the discrete ones among them that the model marks for enumeration.
        nesting: the batch dimensions that its plates take up.
        mixtures: by name, its sites with a ``MixtureSameFamily``.
    """

    call: Call
    latents: Mapping[str, Any]
    marked: tuple[str, ...]
    nesting: int
    mixtures: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(model: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Target:
        """Run the model.

        Raises:
            ModelError: if a plate subsamples, or nothing is latent.
        """
        call = Call(model, args, kwargs)
        with quiet_redraws():
            trace = call.trace()
        check_no_subsample(trace)
        sites = sample_sites(trace)
        latents = {n: s for n, s in sites.items() if is_latent(s)}
        if not latents:
            raise ModelError(
                "Expected a model with latent sites; got none that is not observed. Leave out obs= at the sites to "
                "infer."
            )
        marked = tuple(n for n, s in latents.items() if s["infer"].get("enumerate") and s["fn"].has_enumerate_support)
        mixtures = {n: s for n, s in sites.items() if is_mixture(s)}
        return Target(call, latents, marked, max_plate_nesting(trace), mixtures)

    @property
    def scored(self) -> dict[str, Any]:
        """The latents that a guide has to sample."""
        return {n: s for n, s in self.latents.items() if n not in self.marked}

    def check_drawn(self) -> None:
        """There has to be something to draw.

        Raises:
            ModelError: if all latents are summed out.
        """
        if not self.scored:
            raise ModelError(
                f"Expected a latent site that is not summed out, to draw; got only {list(self.marked)}, marked for "
                "enumeration. Leave out infer={'enumerate': 'parallel'} to have them drawn; or take the evidence, "
                "which is exact here, from TraceEnum_ELBO."
            )

    def shape(self, name: str) -> torch.Size:
        """The shape of a latent's value in one run."""
        shape: torch.Size = self.latents[name]["value"].shape
        return shape

    def batch_dim(self, name: str) -> int:
        """How many of them are of its batch."""
        return len(self.latents[name]["fn"].batch_shape)


def draw(target: Target, guide: Any, num: int, name: str = "the guide") -> Draws:
    """Draws from a guide or a finished MCMC, scored; discrete sites that the model marks are summed out.

    Args:
        target: the model.
        guide: a Pyro guide or autoguide, or an ``MCMC`` that has run.
        num: the number of draws; of MCMC, as many as there are at most, evenly spaced.
        name: how errors call the guide.

    Raises:
        ModelError: if the guide's sites are not the model's, it has no density, or it draws values that the model does
            not allow.
    """
    if isinstance(guide, MCMC):
        values, chains = mcmc_values(target, guide, num, name)
        return Draws(values, log_joint(target, values), None, target.marked, chains)
    values, log_q = guide_values(target, guide, num, name, marginal=True)
    try:
        log_p = log_joint(target, values)
    except Exception:
        check_support(target.call, values, name)  # which may be why
        raise
    if not bool((log_p - log_q).isfinite().all()):
        check_support(target.call, values, name)
    return Draws(values, log_p, log_q, target.marked)


# ------------------------------------------------------------------------------------------------------------- guides


def guide_values(
    target: Target, guide: Program, num: int, name: str = "the guide", *, marginal: bool = False
) -> tuple[Values, Tensor]:
    """Draws of the model's latents by a guide, each ``[num] + shape``, and its log density of each, ``[num]``.

    Args:
        marginal: whether to leave out the sites that the model marks for enumeration. The guide must not make other
            sites depend on them: its density would then be that given those values.
    """
    if marginal:
        target.check_drawn()
    wanted = target.scored if marginal else dict(target.latents)
    _check_arguments_fit(guide, target.call, name)
    guide = with_curvature(guide, target.call, name)
    program = _enumerating(guide, target) if marginal and target.marked else guide
    call = Call(program, target.call.args, target.call.kwargs)
    trace = call.trace()
    check_sites(target, wanted, sample_sites(trace), name)
    nesting = max(target.nesting, max_plate_nesting(trace))
    deltas = frozenset(n for n, s in sample_sites(trace).items() if is_delta(s["fn"]))
    found = Runner(call, nesting, fixed=deltas)({}, num)
    check_density({n: found.values[n] for n in deltas & wanted.keys()}, name)
    return {n: found.values[n] for n in wanted}, found.log_prob


def _check_arguments_fit(guide: Program, call: Call, name: str) -> None:
    try:
        inspect.signature(guide).bind(*call.args, **call.kwargs)
    except TypeError as error:
        raise ModelError(
            f"Expected a guide that takes the model's arguments; got one that does not ({name}): {error}. Make the "
            "guide for this model."
        ) from None
    except ValueError:  # no signature to read
        return


def with_curvature(guide: Program, call: Call, name: str) -> Program:
    """What ``AutoLaplaceApproximation`` stands for: it finds a point, around which the Hessian makes a Gaussian.

    Raises:
        ModelError: if the point is no maximum.
    """
    if not isinstance(guide, AutoLaplaceApproximation):
        return guide
    try:
        with torch.enable_grad():
            gaussian: Program = guide.laplace_approximation(*call.args, **call.kwargs)
    except torch.linalg.LinAlgError:
        raise ModelError(
            f"Expected a Laplace approximation at a maximum; got a point whose Hessian is not negative definite ({name}"
            "). Take more steps, or begin elsewhere by init_loc_fn."
        ) from None
    return gaussian


def _enumerating(guide: Program, target: Target) -> Program:
    """The guide as it runs inside ``TraceEnum_ELBO``, without the sites that the model marks."""
    hidden = poutine.block(guide, hide=list(target.marked))
    return poutine.enum(hidden, first_available_dim=-2 - target.nesting)


def check_sites(target: Target, wanted: Mapping[str, Any], found: Mapping[str, Any], name: str) -> None:
    """The guide has to sample every latent of the model, in its shape, and nothing else but auxiliary sites.

    Raises:
        ModelError: naming what differs.
    """
    missing = [n for n in wanted if n not in found]
    if missing:
        raise ModelError(
            f"Expected a guide that samples every latent site; got one that leaves out {missing} ({name}). A guide for "
            "TraceEnum_ELBO leaves them to enumeration: sample them in the guide, or use AutoConjugate; or it was "
            "made for another model."
        )
    extra = [
        n for n, s in found.items() if n not in target.latents and is_latent(s) and not s["infer"].get("is_auxiliary")
    ]
    if extra:
        raise ModelError(
            f"Expected the latent sites of the model, {sorted(wanted)}; got {extra} besides ({name}). Make the guide "
            "for this model, or mark sites of its own with infer={'is_auxiliary': True}."
        )
    for n in wanted:
        shape = found[n]["value"].shape
        if shape != target.shape(n):
            raise ModelError(
                f"Expected {n!r} of shape {list(target.shape(n))}, as the model has it for these arguments; got "
                f"{list(shape)} ({name}). Fit the guide to this model with this data."
            )


# --------------------------------------------------------------------------------------------------------------- MCMC


def mcmc_values(target: Target, mcmc: MCMC, num: int, name: str = "the MCMC") -> tuple[Values, int]:
    """Draws of a finished MCMC, ``[S] + shape``, chain after chain, and the number of chains.

    At most ``num``, evenly spaced within each chain.

    Raises:
        ModelError: if it has not run, or its sites are not the model's.
    """
    samples = mcmc._samples
    if samples is None:
        raise ModelError(f"Expected an MCMC that has run; got a new one ({name}). Call mcmc.run(data).")
    target.check_drawn()
    wanted = target.scored
    missing, extra = sorted(wanted.keys() - samples.keys()), sorted(samples.keys() - wanted.keys())
    if missing or extra:
        raise ModelError(
            f"Expected the latent sites of the model, {sorted(wanted)}; got draws with {missing or 'none'} missing and "
            f"{extra or 'none'} besides ({name}). Run MCMC on this model."
        )
    for n in wanted:
        if samples[n].shape[2:] != target.shape(n):
            raise ModelError(
                f"Expected {n!r} of shape {list(target.shape(n))}, as the model has it for these arguments; got "
                f"{list(samples[n].shape[2:])} ({name}). Run MCMC on this model with this data."
            )
    chains, length = next(iter(samples.values())).shape[:2]
    kept = torch.linspace(0, length - 1, min(length, max(1, num // chains))).round().long()
    device = {n: s["value"].device for n, s in wanted.items()}  # chains in parallel leave their draws on the CPU
    return {n: samples[n][:, kept].flatten(0, 1).to(device[n]) for n in wanted}, chains


def with_discrete(target: Target, values: Values) -> Values:
    """The draws with the discrete sites that the model marks drawn from their exact posterior given each.

    Source: Pyro's ``infer_discrete`` (forward filtering, backward sampling).
    """
    if not target.marked:
        return values
    first = -1 - target.nesting
    found: list[Values] = []
    for i in range(len(next(iter(values.values())))):
        held = poutine.condition(target.call.program, data={n: t[i] for n, t in values.items()})
        drawn = target.call.with_program(pyro.infer.infer_discrete(held, first_available_dim=first)).trace()
        found.append({n: drawn.nodes[n]["value"] for n in target.marked})
    return values | {n: torch.stack([f[n] for f in found]) for n in target.marked}


# -------------------------------------------------------------------------------------------------------- log density


def log_joint(target: Target, values: Values) -> Tensor:
    """log p(latents, data) of each draw, ``[S]``, float64, with marked sites summed out where ``values`` lacks them."""
    num = len(next(iter(values.values())))
    if all(n in values for n in target.latents):
        return Runner(target.call, target.nesting, ways=("vmap", "plate", "loop"))(values, num).log_prob
    return _Eliminated(target)(values, num)


class _Eliminated:
    """The log joint density with the marked sites summed out, in batches, checked against single runs."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.by_plate = True

    def __call__(self, values: Values, num: int) -> Tensor:
        trace = self._trace({n: t[0] for n, t in values.items()}, None)
        numel = sum(s["log_prob"].numel() for s in sample_sites(trace).values())
        size = max(1, 2**19 // max(numel, 1))  # less than for plain runs: components multiply what is in between
        parts = [{n: t[i : i + size] for n, t in values.items()} for i in range(0, num, size)]
        return torch.cat([self._batch(part) for part in parts])

    def _batch(self, values: Values) -> Tensor:
        num = len(next(iter(values.values())))
        if self.by_plate and num > 1:
            found = self._attempt(values, num)
            if found is not None and all(close(found[i], self._single(values, i)) for i in (0, num - 1)):
                return found
            self.by_plate = False
        return torch.stack([self._single(values, i) for i in range(num)])

    def _attempt(self, values: Values, num: int) -> Tensor | None:
        """A batch, or None where the model does not allow it: it may then raise anything."""
        target = self.target
        placed = {n: beside_plates(t, target.batch_dim(n), target.nesting) for n, t in values.items()}
        try:
            return summed(self._trace(placed, num)).double().reshape(num)
        except Exception:
            return None

    def _single(self, values: Values, i: int) -> Tensor:
        return summed(self._trace({n: t[i] for n, t in values.items()}, None)).double()

    def _trace(self, values: Values, num: int | None) -> Any:
        target = self.target
        program: Callable[..., Any] = poutine.condition(target.call.program, data=values)
        if num is not None:
            program = within_draws(program, num, target.nesting)
        program = poutine.enum(program, first_available_dim=-1 - target.nesting - (num is not None))
        trace = target.call.with_program(program).trace()
        trace.compute_log_prob()
        trace.pack_tensors()
        return trace


def summed(trace: Any) -> Tensor:
    """The log density of an enumerated trace: ``[]``, or ``[S]`` inside a plate of draws.

    Scales of enumerated sites apply after the sum, as in ``TraceEnum_ELBO``.

    Raises:
        ModelError: if these scales differ.
    """
    plates = trace.plate_to_symbol
    sums = set(trace.symbol_to_dim) - set(plates.values())
    target = frozenset({plates["_draws"]} if "_draws" in plates else ())
    plain: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    coupled: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    scales: list[Any] = []
    for site in sample_sites(trace).values():
        packed = site["packed"]
        ordinal = frozenset(plates[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        if sums.isdisjoint(packed["unscaled_log_prob"]._pyro_dims):
            plain.setdefault(ordinal, []).append(packed["log_prob"])
            continue
        scales.append(site["scale"])
        coupled.setdefault(ordinal, []).append(_masked(packed))
    if not coupled:  # components of one number each: nothing is left to sum
        return contract_to_tensor(plain, sums, target)
    scale = _packed_scale(_common(scales), trace)
    kept = target | frozenset(scale._pyro_dims)
    with shared_intermediates() as cache:
        found = contract_to_tensor(coupled, sums, kept, cache=cache)
        total = torch.einsum(f"{found._pyro_dims},{scale._pyro_dims}->{''.join(target)}", found, scale.to(found))
        return total + contract_to_tensor(plain, sums, target, cache=cache) if plain else total


def _packed_scale(scale: Any, trace: Any) -> Any:
    """A scale as Pyro packs tensors: its dimensions are plates, of which it has one number each (counts of words)."""
    return pack(torch.as_tensor(scale), {dim: symbol for symbol, dim in trace.symbol_to_dim.items()})


def _masked(packed: Any) -> Tensor:
    """The unscaled log density, 0 behind the mask, with the dimensions that Pyro notes on packed tensors."""
    masked: Tensor = scale_and_mask(packed["unscaled_log_prob"], mask=packed["mask"])
    return masked


def _common(scales: list[Any]) -> Any:
    first = scales[0]
    for other in scales[1:]:
        if not (other is first or bool(torch.as_tensor(other == first).all())):
            raise ModelError(
                "Expected one scale for all enumerated sites and what depends on them; got several. Scale the whole "
                "model, or sample these sites in the guide."
            )
    return first


# ----------------------------------------------------------------------------------------------------- what it is of


def check_same_model(target: Target, model: Any, values: Values, name: str) -> None:
    """The model that a method was made with has to have this one's densities, at the same values.

    One that hides sites of this model (``poutine.block``) is not looked at.

    Args:
        model: the method's own model, or None.
        values: one draw of the latents, by site.

    Raises:
        ModelError: naming the site whose density differs most.
    """
    if model is None or model is target.call.program:
        return
    here = run(target.call, values)
    try:
        there = run(target.call.with_program(model), {n: here.values[n] for n in target.latents})
    except Exception as error:
        raise ModelError(
            f"Expected a method of this model; got {name}, whose own model fails on this data: {error} Fit it to this "
            "model."
        ) from error
    if here.log_probs.keys() != there.log_probs.keys():
        extra = sorted(there.log_probs.keys() - here.log_probs.keys())
        if extra:
            raise ModelError(
                f"Expected a method of this model, with sites {sorted(here.log_probs)}; got {name}, whose model has "
                f"{extra} besides. Fit it to this model."
            )
        return
    gaps = {n: abs(float(p.double().sum() - there.log_probs[n].double().sum())) for n, p in here.log_probs.items()}
    worst = max(gaps, key=gaps.__getitem__)
    if not all(_equal_densities(p, there.log_probs[n]) for n, p in here.log_probs.items()):
        raise ModelError(
            f"Expected a method of this model; got {name}, whose model gives {worst!r} a log density that differs by "
            f"{gaps[worst]:.3g} nats at the same values. Fit it to this model."
        )


def _equal_densities(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and close(first, second.to(first))


__all__ = [
    "Draws",
    "Target",
    "draw",
    "guide_values",
    "log_joint",
    "mcmc_values",
    "run",
    "with_discrete",
]
