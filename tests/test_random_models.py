"""Random conditionally conjugate programs: what is reported is so, nothing raises it, and what is refused is named."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_models import (
    Outcome,
    RandomProgram,
    Table,
    assert_right,
    bernoullis_of_integers,
    check,
    chunks,
    default_dtype,
    multinomials_without_writes,
    outcome,
    program,
    tabulate,
)

from pyro_latent import CAVI, AutoConjugate, CAVIResult, PyroLatentError

DEFAULT = 100
SLOW = 5_100
MOST_REFUSED = 0.25


@pytest.mark.parametrize("seeds", chunks(0, DEFAULT), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_elbo_and_posterior_agree_with_pyro(seeds: range) -> None:
    """The ELBO is that of Pyro's traces, q(z) is exact, no sweep lowers it, and no change of a factor raises it."""
    assert_right(program, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", chunks(DEFAULT, SLOW), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_elbo_and_posterior_agree_with_pyro_on_many(seeds: range) -> None:
    """The same laws."""
    assert_right(program, seeds)


def test_few_programs_are_refused_and_each_by_name() -> None:
    """The library answers most of them; where it does not, the message names a site, a plate or an argument."""
    refused = {seed: outcome(program, seed).refusal for seed in range(DEFAULT) if outcome(program, seed).refusal}
    unnamed = {seed: str(error) for seed, error in refused.items() if not names_what_is_wrong(program(seed), error)}
    assert not unnamed
    assert len(refused) <= MOST_REFUSED * DEFAULT, [str(e)[:100] for e in refused.values()]


def names_what_is_wrong(random_program: RandomProgram, error: PyroLatentError | None) -> bool:
    """Whether a message quotes a name that the program uses."""
    quoted = re.findall(r"'([^']+)'", str(error))
    return any(re.sub("_(un)?observed$", "", name) in random_program.source for name in quoted)


FEATURES = {
    "nested plates": r"with a, b:",
    "a gap between plates": r"dim=-3",
    "a plate of one": r'pyro.plate\("\w", 1,',
    "subsampling": r"subsample=torch",
    "a masked prior": r"[vz]\d = .*\.mask\(|mask\(mask=.*\n +[vz]\d = ",
    "a masked likelihood": r"x\d = .*\.mask\(|mask\(mask=.*\n +x\d = ",
    "a scale": r"poutine.scale",
    "missing data": r"x\d.*obs_mask",
    "known labels": r"z\d.*obs_mask",
    "a discrete index": r"v\d\[z\d",
    "an index into two plates": r"v\d\[z\d\S*, ",
    "a chained index": r"\]\[\.\.\., \d",
    "an element of a discrete plate": r"z\d\[\d",
    "a gather from a discrete plate": r"z\d\[torch",
    "a sum over a discrete plate": r"z\d\.sum\(",
    "pairs of elements": r"None\]|unsqueeze\(-1\), z",
    "vectorized indexing": r"Vindex\(v\d\)",
    "a comparison": r"torch.where\(z\d\S* [=>]",
    "one-hot values": r"OneHotCategorical|one_hot",
    "products of discrete latents": r"\(z\d\S* \* z\d",
    "products of latents": r"v\d\S* \* v\d",
    "matrix products": r" @ v\d",
    "a discrete parent of a discrete site": r"z\d = .*(Bernoulli|Categorical)\(.*z\d",
    "a chain": r"pyro.markov",
    "a chain of the second order": r"history=2",
    "a tree along a chain": r"leaf = pyro",
    "a sequential plate": r"for i in pyro.plate",
    "zero probabilities": r"\b0/\d",
    "a known variable in a mask of a chain": r"> t\)",
    "float32 data": r"dtype=torch.float32",
    "integer data": r"dtype=torch.long",
    "Poisson": r"dist.Poisson",
    "Multinomial": r"dist.Multinomial",
    "Wishart": r"dist.Wishart",
    "a Gamma rate that is latent": r"v\d = .*dist.Gamma\(\S+ .*v\d",
}


@pytest.mark.parametrize("feature", FEATURES)
def test_generator_reaches(feature: str) -> None:
    """Among a thousand programs there are some of each kind: a change of the generator loses none."""
    assert sum(bool(re.search(FEATURES[feature], source)) for source in thousand_sources()) >= 3


@functools.cache
def thousand_sources() -> list[str]:
    """The first thousand programs as text."""
    return [program(seed).source for seed in range(1000)]


def test_programs_are_those_of_their_seeds() -> None:
    """A seed is a program, and no draw outside changes it."""
    first = [str(program(seed)) for seed in range(20)]
    torch.manual_seed(99)
    assert [str(program(seed)) for seed in range(20)] == first
    assert len(set(first)) == 20


def test_default_dtype_is_restored() -> None:
    """Also when a program fails."""
    before = torch.get_default_dtype()
    with pytest.raises(ZeroDivisionError), default_dtype(torch.float64):
        raise ZeroDivisionError
    assert torch.get_default_dtype() == before


def test_multinomial_of_the_judge_is_that_of_torch() -> None:
    """The log density that vmap takes, also where a probability is zero."""
    multinomial = torch.distributions.Multinomial(4, torch.tensor([0.2, 0.0, 0.8]), validate_args=False)
    value = torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.0, 2.0]])
    expected = multinomial.log_prob(value)
    with multinomials_without_writes():
        torch.testing.assert_close(multinomial.log_prob(value), expected)


def test_bernoulli_of_the_judge_is_that_of_torch() -> None:
    """The log density that older torch has of floats alone, of integers too."""
    bernoulli, value = torch.distributions.Bernoulli(torch.tensor([0.2, 0.7])), torch.tensor([1, 0])
    with bernoullis_of_integers():
        torch.testing.assert_close(bernoulli.log_prob(value), bernoulli.log_prob(value.float()))
    torch.testing.assert_close(bernoulli.log_prob(value.float()).exp(), torch.tensor([0.2, 0.3]))


# The judge is judged: each of these breaks one thing, and is caught.

MIXED = RandomProgram(
    """
data = (torch.tensor([-1.0, 0.5, 2.0]),)

def model(x):
    with pyro.plate("k", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("n", 3):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.9, 0.1])))
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)
"""
)
DISCRETE = RandomProgram(
    """
data = (torch.tensor(0.3),)

def model(x):
    a = pyro.sample("a", dist.Bernoulli(0.3))
    b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
    pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)
"""
)


@pytest.mark.parametrize("fitted", [MIXED, DISCRETE], ids=["mixed", "discrete"])
def test_judge_accepts_what_is_right(fitted: RandomProgram) -> None:
    """A Gaussian mixture, and two Bernoullis, are fitted exactly."""
    assert check(fitted) == Outcome()


@pytest.mark.parametrize(("fitted", "nats"), [(MIXED, 0.5), (MIXED, -0.5), (DISCRETE, 1e-4), (DISCRETE, -1e-4)])
def test_judge_sees_a_wrong_elbo(fitted: RandomProgram, nats: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ELBO that is off by a constant: half a nat beside continuous latents, any digit where all is enumerated."""
    right = AutoConjugate.elbo
    monkeypatch.setattr(AutoConjugate, "elbo", lambda self, *args: right(self, *args) + nats)
    assert any("the reported ELBO" in fault for fault in check(fitted).faults)


def test_judge_sees_a_factor_off_its_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last step that overshoots: the ELBO of that q is reported rightly, and a change of the factor raises it."""
    right = CAVI.run

    def overshoot(self: CAVI, *args: torch.Tensor, **options: Any) -> CAVIResult:
        result = right(self, *args, **options)
        state = self.guide.state
        self.guide.posterior_state.store({key: natural.map(lambda t: 1.2 * t) for key, natural in state.items()})
        return result

    monkeypatch.setattr(CAVI, "run", overshoot)
    assert any("raises the ELBO" in fault for fault in check(MIXED).faults)


def test_judge_sees_impossible_and_improbable_draws() -> None:
    """q(z) of another model: its distance from the exact joint, and draws that have no probability."""
    with default_dtype(torch.float64), torch.no_grad():
        model, data = DISCRETE.load()
        guide = AutoConjugate(model)
        CAVI(model, guide).run(*data, max_steps=1)
        table = tabulate(model, guide, data, 50)
    assert isinstance(table, Table)
    assert table.faults(guide.elbo()) == []
    never = table.log_p.clone()
    never[:, table.drawn[0]] = -torch.inf
    wrong = replace(table, log_p=never, marginals={"a": (torch.tensor([0.1, 0.9]), torch.tensor([0.2, 0.8]))})
    assert any("impossible" in fault for fault in wrong.faults(guide.elbo()))
    assert any("nats from the exact joint" in fault for fault in wrong.faults(guide.elbo()))
    assert any("posterior()['a']" in fault for fault in wrong.faults(guide.elbo()))
