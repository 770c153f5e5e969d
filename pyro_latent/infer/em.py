r"""Expectation maximisation, and its family.

The E-step sets q to the posterior of the latents at θ (exact for discrete and conjugate latents, else its mean-field optimum: variational
EM); the M-step raises Q(θ) = E_q log p(x, z | θ). Both are coordinate ascent on F(q, θ) = Q(θ) + H(q)
(``docs/sources.md``, [4] equations (11), (45)–(61); Neal and Hinton 1998).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from ..errors import ModelError
from ..guide import AutoConjugate
from ..objective import Held, Init, Program
from .cavi import CAVI, Sweep

_M_STEP_PASSES = 100
_SETTLED = 1e-13


class EM(CAVI):
    """EM for a model with ``pyro.param`` sites, with the face of :class:`~pyro_latent.CAVI`.

    Args:
        model: a Pyro model with at least one ``pyro.param``.
        guide: its guide; by default ``AutoConjugate(model, init=init, restarts=restarts)``.
        m_step: "closed_form": the joint maximum of Q, one parameter after another until none moves; "conditional": one pass over the
            parameters (ECM, (60)–(61)).
        init, restarts: as in :class:`~pyro_latent.AutoConjugate`. Without them the parameters start at their own values.

    The parameters are written to Pyro's store once, at the end of :meth:`run`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoConjugate | None = None,
        *,
        m_step: Literal["closed_form", "conditional"] = "closed_form",
        init: Init = None,
        restarts: int = 1,
    ) -> None:
        if m_step not in ("closed_form", "conditional"):
            raise ValueError(f"Expected m_step to be 'closed_form' or 'conditional'; got {m_step!r}.")
        super().__init__(model, guide or AutoConjugate(model, init=init, restarts=restarts))
        self.m_step = m_step
        self._held: tuple[Program, Held | None] | None = None

    def _run(self, sweep: Sweep) -> None:
        order = self._order(sweep.program)
        points = [key for key in order if key is not None and sweep.program.blocks[key].is_param]
        if not points:
            raise ModelError("Expected a model with pyro.param sites; got none. Use CAVI for a model with latent sites only.")
        for key in order:
            if key not in points:
                sweep.visit(key)
        self._held = (sweep.program, sweep.held)
        for _ in range(_M_STEP_PASSES if self.m_step == "closed_form" and len(points) > 1 else 1):
            before = {key: sweep.state[key].x for key in points}
            for key in points:
                sweep.visit(key)
            if all(_still(before[key], sweep.state[key].x) for key in points):
                break

    def e_step(self, *args: Any, **kwargs: Any) -> None:
        """Set q to the posterior of the discrete sites at the current parameters."""
        program = self.guide.program(*args, **kwargs)
        self._held = (program, program.eliminate(program.means(self.guide.state)))

    def q_function(self, *args: Any, **kwargs: Any) -> float:
        """Q(θ) = E_q log p(x, z | θ), in nats, under the q of the last E-step."""
        program, held = self._last(args, kwargs)
        means = program.means(self.guide.state)
        return float(program.energy(means, held)[self.guide.best])

    def free_energy(self, *args: Any, **kwargs: Any) -> float:
        """F(q, θ) = Q(θ) + H(q), in nats: a lower bound on log p(x | θ), and equal to it right after an E-step."""
        program, held = self._last(args, kwargs)
        state = self.guide.state
        entropy = program.entropy(state, held)
        return float((program.energy(program.means(state), held) + entropy)[self.guide.best])

    def log_likelihood(self, *args: Any, **kwargs: Any) -> float:
        """log p(x | θ), in nats, of a model whose latents are all discrete or points.

        Raises:
            ModelError: if a continuous latent has a posterior, for then only a bound is known.
        """
        program = self.guide.program(*args, **kwargs)
        spread = [b.label for b in program.blocks.values() if not b.is_point]
        if spread:
            raise ModelError(f"Expected discrete latents only; got {spread}, for which evaluate_loss gives the bound.")
        return self.guide.elbo(*args, **kwargs)

    def _last(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, Held | None]:
        program = self.guide.program(*args, **kwargs)
        if self._held is None or self._held[0] is not program:
            self.e_step(*args, **kwargs)
        assert self._held is not None
        return self._held


def _still(before: torch.Tensor, after: torch.Tensor) -> bool:
    return float(((after - before).abs() / (1 + before.abs())).max()) <= _SETTLED
