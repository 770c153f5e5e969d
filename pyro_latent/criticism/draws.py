"""Draws of a model's latents from any guide or MCMC, with their log densities under the model and under the guide.

Discrete sites that the model marks for parallel enumeration are summed out of the model's density, exactly, by Pyro's
tensor variable elimination, and left out of the guide: so a guide that samples them, one that leaves them to
enumeration, and NUTS, which cannot sample them, are all scored for the same latents.
"""

from __future__ import annotations

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from ..errors import ModelError
from ..particles import (
    Draws,
    ProgramCall,
    Proposal,
    PyroProgram,
    Target,
    Values,
    close,
    log_joint,
    run,
    sample_sites,
    without_marked,
)
from .support import check_support


def draw(target: Target, guide: PyroProgram | MCMC, num: int, name: str = "the guide") -> Draws:
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
        values = {n: v for n, v in values.items() if n in target.scored}
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
    target: Target, guide: PyroProgram, num: int, name: str = "the guide", *, marginal: bool = False
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
    program = without_marked(guide, target) if marginal and target.marked else guide
    return Proposal(target, program, wanted, name).draw(num)


def _check_arguments_fit(guide: PyroProgram, call: ProgramCall, name: str) -> None:
    try:
        call.with_program(guide).bound()
    except TypeError as error:
        raise ModelError(
            f"Expected a guide that takes the model's arguments; got one that does not ({name}): {error}. Make the "
            "guide for this model."
        ) from None
    except ValueError:  # no signature to read
        return


def with_curvature(guide: PyroProgram, call: ProgramCall, name: str) -> PyroProgram:
    """What ``AutoLaplaceApproximation`` stands for: it finds a point, around which the Hessian makes a Gaussian.

    Raises:
        ModelError: if the point is no maximum.
    """
    if not isinstance(guide, AutoLaplaceApproximation):
        return guide
    try:
        with torch.enable_grad():
            gaussian: PyroProgram = guide.laplace_approximation(*call.args, **call.kwargs)
    except torch.linalg.LinAlgError:
        raise ModelError(
            f"Expected a Laplace approximation at a maximum; got a point whose Hessian is not negative definite ({name}"
            "). Take more steps, or begin elsewhere by init_loc_fn."
        ) from None
    return gaussian


# --------------------------------------------------------------------------------------------------------------- MCMC


def mcmc_values(target: Target, mcmc: MCMC, num: int, name: str = "the MCMC") -> tuple[Values, int]:
    """Draws of a finished MCMC, ``[S] + shape``, chain after chain, and the number of chains; those of sites that the
    model marks for enumeration among them where it has them.

    At most ``num``, evenly spaced within each chain.

    Raises:
        ModelError: if it has not run, or its sites are not the model's.
    """
    samples = mcmc._samples
    if samples is None:
        raise ModelError(f"Expected an MCMC that has run; got a new one ({name}). Call mcmc.run(data).")
    target.check_drawn()
    wanted = target.scored
    missing, extra = sorted(wanted.keys() - samples.keys()), sorted(samples.keys() - target.latents.keys())
    wanted = {n: s for n, s in target.latents.items() if n in samples}  # with those summed out, where it draws them
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
    if target.latents.keys() <= values.keys():
        return values
    first = -1 - target.nesting
    found: list[Values] = []
    for i in range(len(next(iter(values.values())))):
        held = poutine.condition(target.call.program, data={n: t[i] for n, t in values.items()})
        drawn = target.call.with_program(pyro.infer.infer_discrete(held, first_available_dim=first)).trace()
        found.append({n: sample_sites(drawn)[n]["value"] for n in target.marked})
    return values | {n: torch.stack([f[n] for f in found]) for n in target.marked}


# ----------------------------------------------------------------------------------------------------- what it is of


def check_same_densities(target: Target, model: PyroProgram | None, values: Values, name: str) -> None:
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
