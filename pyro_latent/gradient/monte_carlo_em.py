r"""Monte Carlo EM: the E-step's expectation by draws of the posterior; the slow baseline beside exact EM and the VAE.

.. math:: Q(θ) \approx \frac1S \sum_s \log p(x, z_s | θ), \qquad z_s \sim p(z | x, θ_\text{old}).

Discrete latents are drawn exactly, by Pyro's ``infer_discrete``; continuous ones by NUTS, whose chain goes on from one
E-step to the next. The M-step raises Q by L-BFGS. With S draws the parameters end in a cloud around the maximum, of a
width that falls as S^(-1/2); the likelihood no longer rises at each step.

Source: ``docs/sources.md`` [4] §3, where it is the alternative that the VAE is compared with; Wei and Tanner 1990.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import NUTS, infer_discrete
from torch import Tensor
from tqdm.auto import tqdm

from ..checkpoint import Run, restore_random_state
from ..errors import ModelError, PyroLatentError, check_count, in_our_words
from ..particles import LogJoint, ProgramRunner, Target, no_params_of_failures
from ..recording import check_identity, identity_of_call
from ..signatures import Args, Kwargs, Model
from .trainer import descend_quasi_newton

__all__ = ["MonteCarloEM", "MonteCarloEMResult"]


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
        """The mean of each parameter over the last steps, which is nearer to the maximum than any one of them.

        Raises:
            ValueError: if ``last`` is no integer of at least 1.
        """
        last = check_count("last", last)
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
        ValueError: if ``num_samples``, ``gradient_steps`` or ``max_tree_depth`` is no integer of at least 1, or
            ``burn_in`` or ``warmup`` none of at least 0.
        ModelError: at the first step, if the model has no parameter, no latent, or latents of both kinds.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_samples: int = 20,
        burn_in: int = 5,
        warmup: int = 50,
        gradient_steps: int = 20,
        max_tree_depth: int = 5,
    ) -> None:
        self.model = model
        self.num_samples = check_count("num_samples", num_samples)
        self.burn_in = check_count("burn_in", burn_in, 0)
        self.warmup = check_count("warmup", warmup, 0)
        self.gradient_steps = check_count("gradient_steps", gradient_steps)
        self.max_tree_depth = check_count("max_tree_depth", max_tree_depth)
        self._sampler: Callable[[], dict[str, Tensor]] | None = None
        self._chain: _Chain | None = None
        self._log_joint: LogJoint | None = None

    @torch.inference_mode(False)
    @torch.enable_grad()
    def step(self, *args: Any, **kwargs: Any) -> float:
        """One E-step and one M-step; returns minus the estimate of Q, in nats, as ``SVI.step`` returns its loss."""
        words = ("a model that scores this data", lambda: "Give data of the shapes of the sites.")
        with no_params_of_failures():
            with in_our_words(*words):
                if self._log_joint is None or self._sampler is None:
                    self._log_joint = self._make_log_joint(args, kwargs)
                    self._sampler = self._make_sampler(self._log_joint.target)
                values = self._sampler()
            return self._m_step(self._log_joint, values)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(
        self,
        *args: Any,
        max_steps: int = 50,
        progress: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: int = 5,
        **kwargs: Any,
    ) -> MonteCarloEMResult:
        """``max_steps`` steps from the parameters' values in the store; the arguments are the model's.

        Args:
            args, kwargs: the model's arguments.
            max_steps: the number of steps.
            progress: whether to show a progress bar.
            checkpoint: a file that the run is written to, and goes on from where it exists: a run that was killed ends
                where it would have ended.
            checkpoint_every: the number of steps between writes.

        Raises:
            ValueError: if ``max_steps`` or ``checkpoint_every`` is no integer of at least 1.
            CheckpointError: if the file is of other data or settings.
        """
        check_count("max_steps", max_steps)
        data, settings = {"data": (args, kwargs)}, self._settings()
        file = Run(checkpoint, "MonteCarloEM", every=checkpoint_every, data=data, settings=settings)
        self._log_joint = self._sampler = self._chain = None
        q_function: list[float] = []
        history: list[dict[str, Tensor]] = []
        identity = {} if checkpoint is None else self._identity(args, kwargs)
        if (found := file.read()) is not None:
            check_identity(identity, found["identity"])
            self._resume(found, args, kwargs)
            q_function, history = found["q_function"], found["history"]
        steps = range(len(history), max_steps)
        for _ in tqdm(steps, initial=len(history), total=max_steps, disable=not progress, desc="Monte Carlo EM"):
            q_function.append(-self.step(*args, **kwargs))
            history.append({name: pyro.param(name).detach().clone() for name in self._names(args, kwargs)})
            last = len(history) == max_steps
            file.keep(len(history), lambda: self._state(q_function, history) | {"identity": identity}, last)
        params = {name: torch.stack([values[name] for values in history]) for name in history[0]}
        return MonteCarloEMResult(torch.tensor(q_function, dtype=torch.float64), params)

    # Checkpoints.

    def _identity(self, args: Args, kwargs: Kwargs) -> dict[str, Any]:
        """What the model is known by; nothing where it cannot be recorded, which the E-step does not need."""
        try:
            return identity_of_call(self.model, args, kwargs)
        except PyroLatentError:
            return {}

    def _settings(self) -> dict[str, int]:
        names = ("num_samples", "burn_in", "warmup", "gradient_steps", "max_tree_depth")
        return {name: getattr(self, name) for name in names}

    def _state(self, q_function: list[float], history: list[dict[str, Tensor]]) -> dict[str, Any]:
        """All that a resumed run needs."""
        store = pyro.get_param_store()
        return {
            "q_function": q_function,
            "history": history,
            "params": {name: store._params[name].detach() for name in history[-1]},
            "chain": None if self._chain is None else self._chain.state(),
        }

    def _resume(self, state: dict[str, Any], args: Args, kwargs: Kwargs) -> None:
        """Put the parameters into the store, and rebuild what draws."""
        self._log_joint = self._make_log_joint(args, kwargs)  # it puts the parameters into the store
        with torch.no_grad():
            for name, value in state["params"].items():
                pyro.get_param_store()._params[name].copy_(value)
        self._sampler = self._make_sampler(self._log_joint.target, state["chain"])
        if self._chain is None:
            self._sampler()  # the first draws check themselves by further ones, and the killed run had made them
        restore_random_state(state["random"])

    # The E-step.

    def _make_log_joint(self, args: Args, kwargs: Kwargs) -> LogJoint:
        target = Target.of(self.model, args, kwargs, inferred=False)
        target.check_observed()
        return LogJoint(target, once=True)

    def _make_sampler(self, target: Target, chain: dict[str, Any] | None = None) -> Callable[[], dict[str, Tensor]]:
        """What draws ``num_samples`` values of the latents at the parameters as they are; a chain goes on from its
        state.
        """
        discrete, latent = sorted(target.marked), sorted(target.latents)
        if not latent or discrete not in ([], latent):
            raise ModelError(
                f"Expected latents of one kind, discrete or not; got {latent}, of which {discrete} are marked for "
                "enumeration. Use EM, or sum the discrete ones out by hand."
            )
        if discrete:
            return self._exact_draws(target)
        self._chain = _Chain(self, target.call.args, target.call.kwargs, chain)
        return self._chain.draws

    def _exact_draws(self, target: Target) -> Callable[[], dict[str, Tensor]]:
        posterior = infer_discrete(self.model, first_available_dim=-2 - target.nesting)
        runner = ProgramRunner(target.call.with_program(posterior), target.nesting, once=True)

        @torch.no_grad()
        def draws() -> dict[str, Tensor]:
            found = runner({}, self.num_samples)
            return {name: found.values[name] for name in target.latents}

        return draws

    # The M-step.

    def _m_step(self, log_joint: LogJoint, values: dict[str, Tensor]) -> float:
        """Raise the estimate of Q over unconstrained parameters; returns minus its value at the end."""
        names = self._names(log_joint.target.call.args, log_joint.target.call.kwargs)
        leaves = [pyro.get_param_store()._params[name] for name in names]
        descend_quasi_newton(leaves, lambda: -log_joint(values).mean(), max_iter=self.gradient_steps)
        with torch.no_grad():
            loss = -log_joint(values).mean().item()
        if not math.isfinite(loss):
            raise ModelError(
                f"Expected a finite Q; got {-loss}: a parameter has left its domain, as a mixture's variance does that "
                "shrinks on one point. Start elsewhere, or take more draws."
            )
        return loss

    def _names(self, args: Args, kwargs: Mapping[str, object]) -> list[str]:
        trace = poutine.trace(poutine.block(self.model, hide_types=["sample"]), param_only=True)
        names = list(trace.get_trace(*args, **kwargs).nodes)
        names = [name for name in names if name in pyro.get_param_store()]
        if not names:
            raise ModelError("Expected a model with pyro.param sites; got none. Use MCMC for a model without.")
        return names


class _Chain:
    """A chain of NUTS that goes on from one E-step to the next, and from a saved state."""

    def __init__(
        self, driver: MonteCarloEM, args: Args, kwargs: Mapping[str, object], state: dict[str, Any] | None
    ) -> None:
        self._steps = (driver.burn_in, driver.num_samples)
        if state is None:
            self._kernel = NUTS(driver.model, max_tree_depth=driver.max_tree_depth)
            self._kernel.setup(driver.warmup, *args, **kwargs)
            self._kernel.initial_params = _run_chain(self._kernel, self._kernel.initial_params, driver.warmup)[-1]
            return
        fixed: dict[str, Any] = {"adapt_step_size": False, "adapt_mass_matrix": False}
        depth = driver.max_tree_depth
        self._kernel = NUTS(driver.model, step_size=state["step_size"], max_tree_depth=depth, **fixed)
        self._kernel.setup(0, *args, **kwargs)
        self._kernel.mass_matrix_adapter.inverse_mass_matrix = dict(state["inverse_mass_matrix"])
        self._kernel.initial_params = dict(state["place"])

    def state(self) -> dict[str, Any]:
        """The place of the chain and what it has adapted to, in plain types and tensors."""
        return {
            "place": dict(self._kernel.initial_params),
            "step_size": float(self._kernel.step_size),
            "inverse_mass_matrix": [(names, m) for names, m in self._kernel.inverse_mass_matrix.items()],
        }

    def draws(self) -> dict[str, Tensor]:
        """``num_samples`` values of the latents at the parameters as they are."""
        burn_in, count = self._steps
        self._kernel.clear_cache()  # it holds the potential at the parameters of the last E-step
        chain = _run_chain(self._kernel, self._kernel.initial_params, burn_in + count)
        self._kernel.initial_params = chain[-1]
        free = {n: torch.stack([z[n] for z in chain[burn_in:]]) for n in chain[-1]}
        return {name: self._kernel.transforms[name].inv(value) for name, value in free.items()}


def _run_chain(kernel: Any, start: dict[str, Tensor], steps: int) -> list[dict[str, Tensor]]:
    """Successive unconstrained states of a chain."""
    states = [start]
    for _ in range(steps):
        states.append({name: value.detach() for name, value in kernel.sample(states[-1]).items()})
    return states[1:] or states
