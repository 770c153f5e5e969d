r"""Monte Carlo EM: the E-step's expectation by draws of the posterior; the slow baseline beside exact EM and the VAE.

.. math:: Q(θ) \approx \frac1S \sum_s \log p(x, z_s | θ), \qquad z_s \sim p(z | x, θ_\text{old}).

Discrete latents are drawn exactly, by Pyro's ``infer_discrete``; continuous ones by NUTS, whose chain goes on from one
E-step to the next. The M-step raises Q by L-BFGS. With S draws the parameters end in a cloud around the maximum, of a
width that falls as S^(-1/2); the likelihood no longer rises at each step.

Source: ``docs/sources.md`` [4] §3, where it is the alternative that the VAE is compared with; Wei and Tanner 1990.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS, infer_discrete
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ModelError
from .particles import Particles


@dataclass(frozen=True, eq=False)
class MonteCarloEMResult:
    """The trajectory of a run.

    Attributes:
        q_function: the estimate of Q after each M-step, in nats, float64 ``[steps]``.
        params: by parameter its value after each step, ``[steps] + shape``.
    """

    q_function: Tensor
    params: dict[str, Tensor]

    def average(self, last: int) -> dict[str, Tensor]:
        """The mean of each parameter over the last steps, which is nearer to the maximum than any one of them."""
        return {name: value[-last:].mean(0) for name, value in self.params.items()}


class MonteCarloEM:
    """EM with a sampled E-step, for a model with ``pyro.param`` sites, which it moves in Pyro's store.

    Args:
        model: a Pyro model; its latents are all continuous, or all discrete and marked for parallel enumeration.
        num_samples: draws of each E-step.
        burn_in: steps of the chain before the first draw of an E-step, for continuous latents.
        warmup: steps of the first E-step that adapt NUTS.
        gradient_steps: L-BFGS iterations of an M-step.
        max_tree_depth: of NUTS; a draw costs at most 2 to this power gradients.

    Raises:
        ModelError: at the first step, if the model has no parameter, no latent, or latents of both kinds.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_samples: int = 20,
        burn_in: int = 5,
        warmup: int = 50,
        gradient_steps: int = 20,
        max_tree_depth: int = 5,
    ) -> None:
        for name, value in {"num_samples": num_samples, "gradient_steps": gradient_steps}.items():
            if value < 1:
                raise ValueError(f"Expected {name} of at least 1; got {value}.")
        self.model = model
        self.num_samples = num_samples
        self.burn_in = burn_in
        self.warmup = warmup
        self.gradient_steps = gradient_steps
        self.max_tree_depth = max_tree_depth
        self._sampler: Callable[[], dict[str, Tensor]] | None = None
        self._particles: Particles | None = None

    def step(self, *args: Any, **kwargs: Any) -> float:
        """One E-step and one M-step; returns minus the estimate of Q, in nats, as ``SVI.step`` returns its loss."""
        if self._particles is None or self._sampler is None:
            self._particles = Particles(self.model, None, args, kwargs)
            self._sampler = self._make_sampler(args, kwargs)
        return self._m_step(self._particles, self._sampler())

    def run(self, *args: Any, max_steps: int = 50, progress: bool = False, **kwargs: Any) -> MonteCarloEMResult:
        """``max_steps`` steps from the parameters' values in the store; the arguments are the model's."""
        self._particles = self._sampler = None
        q_function, history = [], []
        for _ in tqdm(range(max_steps), disable=not progress, desc="Monte Carlo EM"):
            q_function.append(-self.step(*args, **kwargs))
            history.append({name: pyro.param(name).detach().clone() for name in self._names(args, kwargs)})
        params = {name: torch.stack([values[name] for values in history]) for name in history[0]}
        return MonteCarloEMResult(torch.tensor(q_function, dtype=torch.float64), params)

    # The E-step.

    def _make_sampler(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
        """What draws ``num_samples`` values of the latents at the parameters as they are."""
        assert self._particles is not None
        discrete, latent = sorted(self._particles.marked), sorted(self._particles.latents)
        if not latent or discrete not in ([], latent):
            raise ModelError(
                f"Expected latents of one kind, discrete or not; got {latent}, of which {discrete} are marked for "
                "enumeration. Use EM, or sum the discrete ones out by hand."
            )
        return self._exact_draws(args, kwargs) if discrete else self._nuts_draws(args, kwargs)

    def _exact_draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
        assert self._particles is not None
        posterior = infer_discrete(self.model, first_available_dim=-2 - self._particles.nesting)
        guide = poutine.block(posterior, hide_fn=lambda msg: msg["type"] != "sample" or msg["is_observed"])
        drawn = Particles(self.model, guide, args, kwargs)
        return lambda: drawn.draw(self.num_samples).values

    def _nuts_draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], dict[str, Tensor]]:
        kernel = NUTS(self.model, max_tree_depth=self.max_tree_depth)
        kernel.setup(self.warmup, *args, **kwargs)
        kernel.initial_params = _run_chain(kernel, kernel.initial_params, self.warmup)[-1]

        def draws() -> dict[str, Tensor]:
            kernel.clear_cache()  # it holds the potential at the parameters of the last E-step
            chain = _run_chain(kernel, kernel.initial_params, self.burn_in + self.num_samples)
            kernel.initial_params = chain[-1]
            free = {n: torch.stack([z[n] for z in chain[self.burn_in :]]) for n in chain[-1]}
            return {name: kernel.transforms[name].inv(value) for name, value in free.items()}

        return draws

    # The M-step.

    def _m_step(self, particles: Particles, values: dict[str, Tensor]) -> float:
        """Raise the estimate of Q over unconstrained parameters; returns minus its value at the end."""
        names = self._names(particles.args, particles.kwargs)
        leaves = [pyro.get_param_store()._params[name] for name in names]
        optimizer = torch.optim.LBFGS(leaves, max_iter=self.gradient_steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -particles.log_joint(values).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        with torch.no_grad():
            loss = -particles.log_joint(values).mean().item()
        optimizer.zero_grad()
        if not torch.isfinite(torch.tensor(loss)):
            raise ModelError(
                f"Expected a finite Q; got {-loss}: a parameter has left its domain, as a mixture's variance does that "
                "shrinks on one point. Start elsewhere, or take more draws."
            )
        return loss

    def _names(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        trace = poutine.trace(poutine.block(self.model, hide_types=["sample"]), param_only=True)
        names = list(trace.get_trace(*args, **kwargs).nodes)
        names = [name for name in names if name in pyro.get_param_store()]
        if not names:
            raise ModelError("Expected a model with pyro.param sites; got none. Use MCMC for a model without.")
        return names


def _run_chain(kernel: Any, start: dict[str, Tensor], steps: int) -> list[dict[str, Tensor]]:
    """Successive unconstrained states of a chain."""
    states = [start]
    for _ in range(steps):
        states.append({name: value.detach() for name, value in kernel.sample(states[-1]).items()})
    return states[1:] or states
