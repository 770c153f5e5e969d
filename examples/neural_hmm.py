"""A hidden Markov model with a neural emission: in each hidden state, another curve of a covariate.

    state_1 ~ Categorical(initial),   state_t | state_{t-1} ~ Categorical(transition[state_{t-1}])
    y_t ~ Normal(network([state_t as one hot, x_t]), scale²)

The made-up series follow a sine in one state and fall in the other. EM sums the paths of states out exactly; its
M-step moves the weights of the network. SVI climbs the same likelihood by ``TraceEnum_ELBO``, from the same start.

python examples/neural_hmm.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_latent import EM

NUM_STATES = 2


def make_series(num_series: int = 20, length: int = 10, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Covariates, observations and states, each ``[S, T]``; a state stays with probability 0.9."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(num_series, length, generator=generator, dtype=torch.float64) - 2
    changes = torch.rand(num_series, length, generator=generator) < 0.1
    state = (changes.cumsum(1) + torch.arange(num_series)[:, None]) % NUM_STATES
    noise = 0.2 * torch.randn(num_series, length, generator=generator, dtype=torch.float64)
    return x, torch.where(state == 0, torch.sin(2 * x), 1 - x) + noise, state


def make_network(num_hidden: int = 12, seed: int = 0) -> nn.Module:
    """A network of the state as one hot and the covariate, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(NUM_STATES + 1, num_hidden), nn.Tanh(), nn.Linear(num_hidden, 1)).double()


def means_of(network: nn.Module, x: Tensor) -> Tensor:
    """What the network says of every state at each covariate, ``[K, S, T]``."""
    hot = torch.eye(NUM_STATES, dtype=x.dtype)[:, None, None, :].expand(-1, *x.shape, -1)
    inputs = torch.cat([hot, x.expand(NUM_STATES, *x.shape).unsqueeze(-1)], -1)
    found: Tensor = network(inputs)[..., 0]
    return found


def make_model(network: nn.Module) -> Callable[[Tensor, Tensor], None]:
    """The model around a network."""

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("network", network)
        even = x.new_full((NUM_STATES,), 1 / NUM_STATES)
        sticky = 0.6 * torch.eye(NUM_STATES, dtype=x.dtype) + 0.4 * even
        initial = pyro.param("initial", even, constraint=constraints.simplex)
        transition = pyro.param("transition", sticky, constraint=constraints.simplex)
        scale = pyro.param("scale", x.new_tensor(1.0), constraint=constraints.positive)
        means, row = means_of(network, x), torch.arange(len(x))
        state: Any = None
        with pyro.plate("series", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                probs = initial if t == 0 else transition[state]
                state = pyro.sample(f"state_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                pyro.sample(f"y_{t}", dist.Normal(means[state, row, t], scale), obs=y[:, t])

    return model


def fit(network: nn.Module, x: Tensor, y: Tensor, max_steps: int = 40) -> tuple[EM, Tensor]:
    """The driver, and log p(y | x) after each step of EM; the network then holds the weights."""
    em = EM(make_model(network), m_step="gradient")
    return em, em.run(x, y, max_steps=max_steps).elbo


def fit_by_svi(network: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 0.01) -> Tensor:
    """The same by Adam on the exact likelihood."""
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(make_model(network), lambda *data: None, pyro.optim.Adam({"lr": rate}), elbo)
    return -torch.tensor([svi.step(x, y) for _ in range(steps)], dtype=torch.float64)


def states_found(em: EM, length: int) -> Tensor:
    """The likelier state at each place given the whole series, ``[S, T]``."""
    posterior = em.guide.posterior()
    return torch.stack([posterior[f"state_{t}"].probs.argmax(-1) for t in range(length)], 1)


def main() -> None:
    """Fit both ways, and print the likelihoods and how many states are found."""
    x, y, truth = make_series()
    pyro.clear_param_store()
    begin = time.perf_counter()
    em, rise = fit(make_network(), x, y)
    print(f"EM   log likelihood {rise[-1]:.3f} after {len(rise)} steps ({time.perf_counter() - begin:.1f} s)")
    right = (states_found(em, x.shape[1]) == truth).double().mean().item()
    print(f"     {max(right, 1 - right):.1%} of the states; noise {pyro.param('scale').item():.3f}, made with 0.2")
    pyro.clear_param_store()
    begin = time.perf_counter()
    rise = fit_by_svi(make_network(), x, y, steps=1000)
    print(f"SVI  log likelihood {rise[-1]:.3f} after {len(rise)} steps ({time.perf_counter() - begin:.1f} s)")


if __name__ == "__main__":
    main()
