"""Chains of Pyro's examples: music by hidden Markov models, captures and recaptures, and seals; on small data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from torch import Tensor

from .entry import AUXILIARY, BY_EM, QUADRATURE, Gallery

gallery = Gallery("Pyro")
EACH: Any = {"enumerate": "parallel"}
masked: Any = poutine.mask


def music() -> tuple[Tensor, Tensor]:
    """Notes [3 sequences, 5 times, 4 tones] of 0 and 1, and the lengths [3]."""
    return torch.bernoulli(torch.full((3, 5, 4), 0.4)), torch.tensor([5, 3, 4])


def hidden(size: int) -> Any:
    return pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(size) + 0.1).to_event(1))


def tones(*shape: int) -> Any:
    return pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([*shape, 4]).to_event(len(shape) + 1))


@gallery.model("hmm: model 1", music)
def hmm_1(sequences: Tensor, lengths: Tensor) -> None:
    probs_x, probs_y = hidden(3), tones(3)
    plate = pyro.plate("tones", 4, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        x: Any = 0
        for t in pyro.markov(range(5)):
            with masked(mask=(t < lengths)[:, None]):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=EACH)
                with plate:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=sequences[:, t])


@gallery.model("hmm: model 2, tones that last", music)
def hmm_2(sequences: Tensor, lengths: Tensor) -> None:
    probs_x, probs_y = hidden(3), tones(3, 2)
    plate = pyro.plate("tones", 4, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        x: Any = 0
        y: Any = 0
        for t in pyro.markov(range(5)):
            with masked(mask=(t < lengths)[:, None]):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=EACH)
                with plate as tone:
                    y = pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x, y, tone]), obs=sequences[:, t]).long()


@gallery.model("hmm: model 3, two chains", music)
def hmm_3(sequences: Tensor, lengths: Tensor) -> None:
    probs_w = pyro.sample("probs_w", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    probs_x, probs_y = hidden(2), tones(2, 2)
    plate = pyro.plate("tones", 4, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        w: Any = 0
        x: Any = 0
        for t in pyro.markov(range(5)):
            with masked(mask=(t < lengths)[:, None]):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=EACH)
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=EACH)
                with plate as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[w, x, tone]), obs=sequences[:, t])


@gallery.model("hmm: model 4, a chain that steers another", music)
def hmm_4(sequences: Tensor, lengths: Tensor) -> None:
    probs_w = pyro.sample("probs_w", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
    rows = dist.Dirichlet(0.9 * torch.eye(2) + 0.1).expand_by([2]).to_event(2)
    probs_x, probs_y = pyro.sample("probs_x", rows), tones(2, 2)
    plate = pyro.plate("tones", 4, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        w = x = torch.tensor(0)
        for t in pyro.markov(range(5)):
            with masked(mask=(t < lengths)[:, None]):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=EACH)
                x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(probs_x)[w, x]), infer=EACH)
                with plate as tone:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[w, x, tone]), obs=sequences[:, t])


class Tones(torch.nn.Module):
    """A network from a state and the notes before to the logits of the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.of_state, self.of_notes = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        state = torch.nn.functional.one_hot(x.squeeze(-1), 3).to(y.dtype)
        return self.of_state(state) + self.of_notes(y)


def hmm_5_of() -> Callable[[Tensor, Tensor], None]:
    network: list[Tones] = []

    def hmm_5(sequences: Tensor, lengths: Tensor) -> None:
        if not network:
            network.append(Tones())
        pyro.module("tones_generator", network[0])
        probs_x = hidden(3)
        with pyro.plate("sequences", len(sequences), dim=-2):
            x: Any = 0
            y: Any = torch.zeros(4)
            for t in pyro.markov(range(5)):
                with masked(mask=(t < lengths)[:, None]):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=EACH)
                    with pyro.plate(f"tones_{t}", 4, dim=-1):
                        logits = network[0](x, y)
                        y = pyro.sample(f"y_{t}", dist.Bernoulli(logits=logits), obs=sequences[:, t])

    return hmm_5


gallery.add("hmm: model 5, a network", hmm_5_of(), music, BY_EM)


@gallery.model("hmm: model 6, of second order", music, BY_EM)
def hmm_6(sequences: Tensor, lengths: Tensor) -> None:
    start = torch.rand(3, 3, 3)
    probs_x = pyro.param("probs_x", start / start.sum(-1, True), constraint=constraints.simplex)
    probs_y = pyro.param("probs_y", torch.rand(3, 4), constraint=constraints.unit_interval)
    plate = pyro.plate("tones", 4, dim=-1)
    with pyro.plate("sequences", len(sequences), dim=-2):
        now, before = torch.tensor(0), torch.tensor(0)
        for t in pyro.markov(range(5), history=2):
            with masked(mask=(t < lengths)[:, None]):
                probs = Vindex(probs_x)[before, now]
                before, now = now, pyro.sample(f"x_{t}", dist.Categorical(probs), infer=EACH)
                with plate:
                    pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[now.squeeze(-1)]), obs=sequences[:, t])


@gallery.model("enumeration: a chain", lambda: (torch.randint(0, 4, (10,)),))
def categorical_chain(data: Tensor) -> None:
    with pyro.plate("hidden_state", 3):
        transition = pyro.sample("transition", dist.Dirichlet(0.5 * torch.ones(3)))
        emission = pyro.sample("emission", dist.Dirichlet(0.5 * torch.ones(4)))
    x: Any = 0
    for t in pyro.markov(range(len(data))):
        x = pyro.sample(f"x_{t}", dist.Categorical(transition[x]), infer=EACH)
        pyro.sample(f"y_{t}", dist.Categorical(emission[x]), obs=data[t])


@gallery.model("jit: a chain", lambda: (torch.randn(12) + 3 * (torch.arange(12) > 5),), QUADRATURE)
def normal_chain(sequence: Tensor) -> None:
    with pyro.plate("states", 3):
        trans = pyro.sample("trans", dist.Dirichlet(0.5 * torch.ones(3)))
        emit_loc = pyro.sample("emit_loc", dist.Normal(0.0, 10.0))
    emit_scale = pyro.sample("emit_scale", dist.LogNormal(0.0, 3.0))
    with poutine.scale(scale=3.0):
        x: Any = 0
        for t in pyro.markov(range(len(sequence))):
            x = pyro.sample(f"x_{t}", dist.Categorical(trans[x]), infer=EACH)
            pyro.sample(f"y_{t}", dist.Normal(emit_loc[x], emit_scale), obs=sequence[t])


@gallery.model("contrib_funsor_intro_ii", lambda: (torch.ones(8),), BY_EM)
def chain_with_parameters(data: Tensor) -> None:
    p = pyro.param("probs", torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.1, 0.6, 0.3]]), constraints.simplex)
    locs_mean = pyro.param("locs_mean", torch.ones(3))
    locs = pyro.sample("locs", dist.Normal(locs_mean, 1.0).to_event(1))
    x: Any = 0
    for t in pyro.markov(range(len(data))):
        x = pyro.sample(f"x{t}", dist.Categorical(p[x]), infer=EACH)
        pyro.sample(f"y{t}", dist.Normal(Vindex(locs)[..., x], 1.0), obs=data[t])


@gallery.model("lake disasters: a switch", lambda: (torch.poisson(torch.where(torch.arange(30) < 12, 3.0, 1.0)),))
def switch(disasters: Tensor) -> None:
    """The year in which accidents of coal mines became fewer."""
    years = torch.arange(len(disasters))
    year = pyro.sample("switch", dist.Categorical(torch.ones(len(years)) / len(years)), infer=EACH)
    early = pyro.sample("early", dist.Exponential(1.0))
    late = pyro.sample("late", dist.Exponential(1.0))
    with pyro.plate("years", len(years)):
        pyro.sample("count", dist.Poisson(torch.where(years < year, early, late)), obs=disasters)


@gallery.model("tracking_1d: which is whose", lambda: (torch.tensor([[0.1, 2.1], [1.0, 1.9], [2.1, 0.9]]),))
def tracking(observed: Tensor) -> None:
    """Two objects that move on lines, each seen once a frame, in an unknown order."""
    with pyro.plate("objects", 2):
        start = pyro.sample("start", dist.Normal(torch.tensor([0.0, 2.0]), 1.0))
        speed = pyro.sample("speed", dist.Normal(0.0, 1.0))
    for t in range(len(observed)):
        assign = pyro.sample(f"assign_{t}", dist.Bernoulli(0.5)).long()
        with pyro.plate(f"objects_{t}", 2):
            place = start + speed * t
            order = torch.stack([assign, 1 - assign])
            pyro.sample(f"seen_{t}", dist.Normal(place[order], 0.2), obs=observed[t])


# ---------------------------------------------------------------------------------------------------- capture-recapture


def dippers() -> tuple[Tensor, Tensor]:
    """Captures [12 birds, 5 years] and the sex [12]."""
    return torch.bernoulli(torch.full((12, 5), 0.5)), (torch.arange(12) % 2).to(torch.get_default_dtype())


def history(captures: Tensor, rho: Tensor, survival: Callable[[int], Any]) -> None:
    """Birds that live on, and are seen where they live, from their first capture on."""
    birds = pyro.plate("animals", len(captures), dim=-1)
    z: Any = torch.ones(len(captures))
    first = torch.zeros(len(captures), dtype=torch.bool)
    for t in pyro.markov(range(captures.shape[1])):
        phi = survival(t)
        with birds, masked(mask=first):
            alive = first.to(captures.dtype) * phi * z + (1 - first.to(captures.dtype))
            z = pyro.sample(f"z_{t}", dist.Bernoulli(alive), infer=EACH)
            pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=captures[:, t])
        first = first | captures[:, t].bool()


@gallery.model("cjs: model 1", dippers)
def cjs_1(captures: Tensor, sex: Tensor) -> None:
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    history(captures, rho, lambda t: phi)


@gallery.model("cjs: model 2, by year", dippers)
def cjs_2(captures: Tensor, sex: Tensor) -> None:
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    history(captures, rho, lambda t: pyro.sample(f"phi_{t}", dist.Uniform(0.0, 1.0)) if t else 1.0)


@gallery.model("cjs: model 3, random years", dippers, QUADRATURE)
def cjs_3(captures: Tensor, sex: Tensor) -> None:
    mean = pyro.sample("phi_mean", dist.Uniform(0.0, 1.0))
    scale = pyro.sample("phi_sigma", dist.Uniform(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    logit = torch.log(mean) - torch.log1p(-mean)

    def survival(t: int) -> Any:
        return torch.sigmoid(pyro.sample(f"phi_logit_{t}", dist.Normal(logit, scale))) if t else torch.tensor(0.5)

    history(captures, rho, survival)


@gallery.model("cjs: model 4, by sex", dippers)
def cjs_4(captures: Tensor, sex: Tensor) -> None:
    male = pyro.sample("phi_male", dist.Uniform(0.0, 1.0))
    female = pyro.sample("phi_female", dist.Uniform(0.0, 1.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    phi = sex * male + (1.0 - sex) * female
    history(captures, rho, lambda t: phi)


@gallery.model("cjs: model 5, by sex and year", dippers, AUXILIARY)
def cjs_5(captures: Tensor, sex: Tensor) -> None:
    beta = pyro.sample("phi_beta", dist.Normal(0.0, 10.0))
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))

    def survival(t: int) -> Any:
        gamma = pyro.sample(f"phi_gamma_{t}", dist.Normal(0.0, 10.0)) if t else 0.0
        return torch.sigmoid(sex * beta + gamma)

    history(captures, rho, survival)


@gallery.model("mixed_hmm: seals", lambda: (torch.rand(2, 4, 6) + 0.5,), BY_EM)
def seals(steps: Tensor) -> None:
    """Step lengths [2 groups, 4 seals, 6 times]; the groups and the seals have discrete random effects."""
    group_probs = pyro.param("probs_e_g", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
    seal_probs = pyro.param("probs_e_i", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    start = torch.tensor([[[0.7, 0.3], [0.2, 0.8]], [[0.6, 0.4], [0.5, 0.5]]])
    transition = pyro.param("gamma", torch.stack([start, start.flip(0)]), constraint=constraints.simplex)
    concentration = pyro.param("step_param_concentration", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
    rate = pyro.param("step_param_rate", torch.tensor([1.0, 1.5]), constraint=constraints.positive)
    with pyro.plate("groups", 2, dim=-2):
        e_g = pyro.sample("e_g", dist.Categorical(group_probs), infer=EACH)
        with pyro.plate("seals", 4, dim=-1):
            e_i = pyro.sample("e_i", dist.Categorical(seal_probs), infer=EACH)
            y: Any = torch.tensor(0)
            for t in pyro.markov(range(6)):
                y = pyro.sample(f"y_{t}", dist.Categorical(Vindex(transition)[e_g, e_i, y]), infer=EACH)
                pyro.sample(f"step_{t}", dist.Gamma(concentration[y], rate[y]), obs=steps[..., t])
