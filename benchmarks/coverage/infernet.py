"""Examples of Infer.NET, on small data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .bayespy import grid, infernet
from .entry import AUXILIARY, BOTH, QUADRATURE


@infernet.model("two coins", tuple)
def two_coins() -> None:
    first = pyro.sample("firstCoin", dist.Bernoulli(0.5))
    second = pyro.sample("secondCoin", dist.Bernoulli(0.5))
    pyro.sample("bothHeads", dist.Bernoulli(first * second), obs=torch.tensor(0.0))


@infernet.model("truncated Gaussian", tuple, QUADRATURE)
def truncated() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("above", dist.Bernoulli((x > 0.5).to(torch.get_default_dtype())), obs=torch.tensor(1.0))


@infernet.model("Bayesian PCA", grid)
def infernet_components(y: Tensor) -> None:
    rows, columns = pyro.plate("rows", 6, dim=-2), pyro.plate("columns", 15, dim=-1)
    alpha = pyro.sample("alpha", dist.Gamma(2.0 * torch.ones(3), 2.0).to_event(1))
    tau = pyro.sample("pi", dist.Gamma(2.0, 2.0))
    with columns:
        w = pyro.sample("W", dist.Normal(torch.zeros(3), alpha.rsqrt()).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with rows:
        z = pyro.sample("Z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with rows, columns:
        pyro.sample("X", dist.Normal((z * w).sum(-1) + mu, tau.rsqrt()), obs=y)


@infernet.model(
    "Bayes point machine",
    lambda: (torch.randn(20, 3), (torch.arange(20) % 2).double()),
    AUXILIARY,
)
def point_machine(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(torch.special.ndtr(x @ w / 0.1**0.5)), obs=y)


@infernet.model("clinical trial", lambda: (torch.bernoulli(torch.full((2, 8), 0.5)),))
def clinical_trial(answers: Tensor) -> None:
    """Whether a treatment works: one chance for both arms, or one for each."""
    effective = pyro.sample("isEffective", dist.Bernoulli(0.5))
    both, control, treated = (pyro.sample(n, dist.Beta(1.0, 1.0)) for n in ("all", "control", "treated"))
    with pyro.plate("patients", answers.shape[1]):
        pyro.sample("controlGroup", dist.Bernoulli(torch.where(effective > 0, control, both)), obs=answers[0])
        pyro.sample("treatedGroup", dist.Bernoulli(torch.where(effective > 0, treated, both)), obs=answers[1])


def comparisons() -> tuple[Tensor, Tensor]:
    """Winners [20] and losers [20] among five players."""
    winner = torch.randint(0, 5, (20,))
    return winner, (winner + torch.randint(1, 5, (20,))) % 5


@infernet.model("chess, TrueSkill", comparisons, BOTH)
def skills(winner: Tensor, loser: Tensor) -> None:
    """The performances are summed out: the winner's is above the loser's with the probability of a probit."""
    with pyro.plate("players", 5):
        skill = pyro.sample("skill", dist.Normal(25.0, 8.3))
    with pyro.plate("games", len(winner)):
        better = torch.special.ndtr((skill[winner] - skill[loser]) / 5.0)
        pyro.sample("won", dist.Bernoulli(better), obs=torch.ones(len(winner)))


@infernet.model("difficulty and ability", lambda: (torch.randint(0, 3, (10, 6)),), AUXILIARY)
def ability(answers: Tensor) -> None:
    """Answers right where the ability is above the difficulty, times a discrimination."""
    people, questions = pyro.plate("people", 10, dim=-2), pyro.plate("questions", 6, dim=-1)
    with people:
        able = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with questions:
        hard = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        sharp = pyro.sample("discrimination", dist.Gamma(5.0, 5.0))
    with people, questions:
        right = torch.special.ndtr((able - hard) * sharp.sqrt())
        pyro.sample("right", dist.Bernoulli(right), obs=(answers == 0).to(able.dtype))


def crowd() -> tuple[Tensor, Tensor, Tensor]:
    """The worker [60], the task [60] and the label [60]."""
    return torch.arange(60) % 4, torch.arange(60) // 4, torch.randint(0, 2, (60,))


@infernet.model("community-based crowdsourcing: one confusion each", crowd)
def crowdsourcing(worker: Tensor, task: Tensor, label: Tensor) -> None:
    share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("workers", 4, dim=-2), pyro.plate("classes", 2, dim=-1):
        confusion = pyro.sample("confusion", dist.Dirichlet(1.0 + torch.eye(2)))
    with pyro.plate("tasks", 15):
        truth = pyro.sample("truth", dist.Categorical(share))
    with pyro.plate("labels", len(label)):
        pyro.sample("label", dist.Categorical(confusion[worker, truth[task]]), obs=label)


@infernet.model("click model", lambda: (torch.randint(0, 2, (20,)),))
def click_model(click: Tensor) -> None:
    """A click where a document looks relevant and is examined."""
    relevance = pyro.sample("relevance", dist.Beta(1.0, 1.0))
    with pyro.plate("queries", len(click)):
        examined = pyro.sample("examined", dist.Bernoulli(0.8))
        pyro.sample("click", dist.Bernoulli(examined * relevance), obs=click.to(torch.get_default_dtype()))


@infernet.model("gamma: shape and rate", lambda: (torch.rand(20) + 0.5,), QUADRATURE)
def gamma_shape(y: Tensor) -> None:
    shape = pyro.sample("shape", dist.Gamma(1.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Gamma(shape, rate), obs=y)


@infernet.model("Poisson of a sum of rates", lambda: (torch.poisson(4 * torch.ones(12)),), AUXILIARY)
def sum_of_rates(y: Tensor) -> None:
    background = pyro.sample("background", dist.Gamma(1.0, 1.0))
    signal = pyro.sample("signal", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(background + signal), obs=y)


@infernet.model("student skills: noisy and", lambda: (torch.bernoulli(torch.full((10, 3), 0.6)),))
def student_skills(right: Tensor) -> None:
    """A question that needs two skills is answered right by who has both, mostly."""
    with pyro.plate("students", len(right)):
        csharp = pyro.sample("csharp", dist.Bernoulli(0.5))
        sql = pyro.sample("sql", dist.Bernoulli(0.5))
        both = csharp * sql
        for i, has in enumerate((csharp, sql, both)):
            pyro.sample(f"right_{i}", dist.Bernoulli(0.2 + 0.7 * has), obs=right[:, i])
