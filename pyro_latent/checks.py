"""Hand-written updates compared with the derived ones, and with a numeric maximum of the ELBO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from .ascent.sweep import Sweep
from .errors import ArgumentError, ArgumentTypeError, ModelError, as_real
from .families import Natural
from .guide import AutoConjugate
from .objective import Block, responsibilities
from .recording import DiscreteSite
from .signatures import Model
from .tables import text_table

_NEWTON_LIKE_STEPS = 200
#: By dtype, what rounding alone may put between two right updates, and between two bounds of one size.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 3e-4}


@dataclass(frozen=True)
class UpdateCheck:
    """One hand-written update.

    Attributes:
        sites: the sites that it updates.
        difference: the largest difference of a natural parameter from the derived update's, relative to its size (for a
            discrete site, of a probability).
        gain: how much a numeric maximum over the block's parameters is above the update's ELBO, in nats.
        ok: whether both are within the tolerance.
    """

    sites: tuple[str, ...]
    difference: float
    gain: float
    ok: bool


@dataclass(frozen=True)
class UpdateReport:
    """What :func:`check_updates` found; it prints as a table."""

    checks: tuple[UpdateCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every update is right."""
        return all(check.ok for check in self.checks)

    def __str__(self) -> str:
        rows = [["update of", "difference", "gain (nats)", ""]]
        for check in self.checks:
            verdict = "ok" if check.ok else "WRONG"
            rows.append([", ".join(check.sites), f"{check.difference:.1e}", f"{check.gain:.1e}", verdict])
        return text_table(rows)


def check_updates(
    model: Model, guide: AutoConjugate, *args: Any, tol: float | None = None, **kwargs: Any
) -> UpdateReport:
    """Compare each hand-written update with the derived one and with a numeric maximum of the ELBO.

    Both are taken at the guide's current posterior, which stays as it is.

    Args:
        model: a model with updates, from :func:`pyro_latent.handlers.closed_form`.
        guide: its guide, fitted or not; the other arguments are the model's.
        tol: the largest relative difference, and the largest gain relative to the ELBO's size; by default what the
            rounding of the data's dtype leaves, 1e-8 in float64 and 3e-4 in float32.

    Raises:
        ModelError: if the model has no hand-written update.
    """
    if not isinstance(guide, AutoConjugate):
        raise ArgumentTypeError(f"Expected an AutoConjugate guide; got {type(guide).__name__}.")
    if not callable(model) or guide.model != model:
        raise ArgumentError("Expected the guide of this model; got the guide of another. Write AutoConjugate(model).")
    program = guide.posterior_state.commit(guide.prepare(args, kwargs))
    tol = _TOLERANCE[program.recording.dtype] if tol is None else as_real(tol)
    if not tol >= 0:
        raise ArgumentError(f"Expected tol to be a number of at least 0; got {tol!r}.")
    state = {key: n.map(lambda t: t[:1]) for key, n in guide.state.items()}
    start = {name: probs[:1] for name, probs in guide.posterior_state.starts.items()}
    sweep = Sweep(program, state, (args, kwargs), None, start)
    checks = [_check_block(sweep, block, tol) for block in program.blocks.values() if block.update is not None]
    exact = Sweep(program, state, (args, kwargs)) if start else sweep
    checks += [_check_discrete(exact, site, tol) for site in program.discrete if site.update is not None]
    if not checks:
        raise ModelError(
            "Expected a model with hand-written updates; got none. Write handlers.closed_form(model, updates)."
        )
    return UpdateReport(tuple(checks))


def _check_block(sweep: Sweep, block: Block, tol: float) -> UpdateCheck:
    written = sweep.optimum_of(block)
    derived = sweep.program.optimum(block.key, sweep.means, sweep.summands)
    if block.mask is not None:  # what no density reads may be anywhere
        written, derived = block.where_read(written), block.where_read(derived)
    difference = max(
        float(((written[n] - derived[n]).abs() / (1 + derived[n].abs())).max()) for n in block.family.statistics
    )
    gain, size = _numeric_gain(sweep, block, written)
    names = tuple(site.name for site in block.sites)
    return UpdateCheck(names, difference, gain, difference <= tol and gain <= tol * max(1.0, size))


def _numeric_gain(sweep: Sweep, block: Block, written: Natural) -> tuple[float, float]:
    """How much L-BFGS over the block's unconstrained params raises the ELBO above the written update."""

    def bound(natural: Natural) -> Tensor:
        means = {**sweep.means, block.key: block.family.mean(natural)}
        terms = [s for s in (*sweep.program.by_block[block.key], *sweep.summands) if block.key in s.blocks]
        energy = torch.stack([s.value(means).sum() for s in terms]).sum()
        return energy + block.weight(block.family.entropy(natural)).sum()

    with torch.enable_grad():
        params = {n: p.detach() for n, p in block.family.to_params(written).items()}
        maps = {n: transform_to(c) for n, c in block.family.constraints(params).items()}
        free = {n: maps[n].inv(p).detach().requires_grad_() for n, p in params.items()}

        def natural() -> Natural:
            return block.family.from_params({n: maps[n](f) for n, f in free.items()})

        optimizer = torch.optim.LBFGS(
            list(free.values()), max_iter=_NEWTON_LIKE_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )
        before = float(bound(natural()).detach())

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -bound(natural())
            loss.backward()
            return loss

        optimizer.step(closure)
        after = float(bound(natural()).detach())
    return max(0.0, after - before), abs(before)


def _check_discrete(sweep: Sweep, site: DiscreteSite, tol: float) -> UpdateCheck:
    """The gain of a discrete site is KL(written ‖ exact), which is what the ELBO loses."""
    written = sweep.responsibilities(site)
    exact = responsibilities(sweep.program, sweep.means, [site])[site.name]
    seen = sweep.program.elimination.seen(site)
    if seen is not None:  # what no density reads may be anywhere
        written, exact = (torch.where(seen.unsqueeze(-1), probs, torch.zeros_like(probs)) for probs in (written, exact))
    kl = torch.xlogy(written, written) - torch.xlogy(written, exact)
    kl = kl * torch.as_tensor(site.scale, dtype=kl.dtype, device=kl.device).unsqueeze(-1)
    difference, gain = float((written - exact).abs().max()), float(kl.sum().clamp(min=0))
    return UpdateCheck((site.name,), difference, gain, difference <= tol and gain <= tol * max(1.0, written.numel()))


__all__ = ["UpdateCheck", "UpdateReport", "check_updates"]
