"""A mixture of experts on Old Faithful: a gate network chooses the line that an eruption's waiting time lies on.

    expert ~ Categorical(softmax(gate(duration))),   waiting ~ Normal(experts(duration)[expert], scale[expert]²)

EM knows the posterior of the experts exactly; its M-step moves the weights of both networks, and never lowers Q. SVI
climbs the same exact likelihood by ``TraceEnum_ELBO``, from the same start (Jordan and Jacobs 1994).

python examples/mixture_of_experts.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_latent import EM
from pyro_latent.models import datasets


class MixtureOfExperts(PyroModule):
    """Linear experts, a gate with one hidden layer, and a scale for each expert; in float64."""

    def __init__(self, num_experts: int = 2, num_hidden: int = 8, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.gate = nn.Sequential(nn.Linear(1, num_hidden), nn.Tanh(), nn.Linear(num_hidden, num_experts)).double()
            self.experts = nn.Linear(1, num_experts).double()
        self.scale: Any = PyroParam(torch.ones(num_experts).double(), constraints.positive)

    def forward(self, duration: Tensor, waiting: Tensor | None = None) -> Tensor:
        """The model of waiting times ``[N]`` given durations ``[N, 1]``."""
        logits, lines, scale = self.gate(duration), self.experts(duration), self.scale
        with pyro.plate("eruptions", len(duration)):
            expert = pyro.sample("expert", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            mean = lines[torch.arange(len(duration)), expert]
            found: Tensor = pyro.sample("waiting", dist.Normal(mean, scale[expert]), obs=waiting)
            return found


def read_data() -> tuple[Tensor, Tensor]:
    """Durations ``[N, 1]`` and waiting times ``[N]``, with mean 0 and standard deviation 1."""
    table = datasets.old_faithful()
    table = (table - table.mean(0)) / table.std(0)
    return table[:, :1], table[:, 1]


def fit(model: MixtureOfExperts, data: tuple[Tensor, Tensor], max_steps: int = 60) -> Tensor:
    """Fit the module by EM; log p(waiting | duration) after each step. The module then holds the weights."""
    return EM(model, m_step="gradient", gradient_steps=10).run(*data, max_steps=max_steps).elbo


def fit_by_svi(model: Callable[..., Tensor], data: tuple[Tensor, Tensor], steps: int, rate: float = 0.02) -> Tensor:
    """The same by Adam on the exact likelihood."""
    svi = SVI(model, lambda *data: None, pyro.optim.Adam({"lr": rate}), TraceEnum_ELBO(max_plate_nesting=1))
    return -torch.tensor([svi.step(*data) for _ in range(steps)], dtype=torch.float64)


def main() -> None:
    """Fit both ways, and print the likelihoods, the lines and the gate."""
    data = read_data()
    for name, run in (("EM", fit), ("SVI", lambda model, data: fit_by_svi(model, data, steps=3000))):
        pyro.clear_param_store()
        model = MixtureOfExperts()
        begin = time.perf_counter()
        rise = run(model, data)
        seconds = time.perf_counter() - begin
        falls = int((rise.diff() < -1e-9).sum())
        print(
            f"{name:3}  log likelihood {rise[-1]:.4f} after {len(rise)} steps, {falls} of them down ({seconds:.1f} s)"
        )
        lines = zip(model.experts.bias.tolist(), model.experts.weight[:, 0].tolist(), model.scale.tolist(), strict=True)
        for number, (bias, weight, scale) in enumerate(lines):
            print(f"     expert {number}: {bias:+.3f} {weight:+.3f} duration, ± {scale:.3f}")
        probs = model.gate(torch.tensor([[-1.5], [0.0], [1.0]], dtype=torch.float64)).softmax(-1)[:, 0]
        print("     p(expert 0) at short, middling and long eruptions:", *(f"{p:.2f}" for p in probs.tolist()))


if __name__ == "__main__":
    main()
