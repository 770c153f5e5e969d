"""Random programs of scalars by quadrature, auxiliary sites and joint normal blocks keep the laws of the others."""

from __future__ import annotations

import functools
import re

import pytest
from random_models import assert_right, chunks, outcome
from wide_models import wide_program

DEFAULT = 30
SLOW = 960
MOST_REFUSED = 0.25


@pytest.mark.parametrize("seeds", chunks(0, DEFAULT), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_elbo_and_posterior_agree_with_pyro(seeds: range) -> None:
    """No sweep lowers the ELBO, no change of a factor raises it, and it is that of Pyro's traces, or, with auxiliary
    sites, below it.
    """
    assert_right(wide_program, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", chunks(DEFAULT, SLOW), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_elbo_and_posterior_agree_with_pyro_on_many(seeds: range) -> None:
    """The same laws."""
    assert_right(wide_program, seeds)


def test_few_programs_are_refused() -> None:
    refused = [outcome(wide_program, seed).refusal for seed in range(DEFAULT) if outcome(wide_program, seed).refusal]
    assert len(refused) <= MOST_REFUSED * DEFAULT, [str(e)[:100] for e in refused]


FEATURES = {
    "a half-normal scale": r"HalfNormal\(1.5",
    "a half-Cauchy scale": r"HalfCauchy\(1.0",
    "a log-normal scale": r"LogNormal\(",
    "a scale in a plate": r"with k\d.*:\n +v\d = .*(LogNormal|HalfNormal|Uniform|Weibull)",
    "a scale by a discrete index": r"Normal\([^\n]*v\d\[z\d",
    "a log rate": r"Poisson\(\(.*\)\.exp\(\)\)",
    "a sigmoid": r"torch.sigmoid\(",
    "degrees of freedom": r"StudentT\(2.0 \+ ",
    "a shape": r"dist.Gamma\(v\d",
    "a logistic regression": r"dist.\w+\((2.5, |4, )?logits=\(torch.*v\d",
    "a probit": r"cdf\(",
    "an ordered probit": r"ndtr\(torch.tensor\(\[-0.5",
    "a softmax": r"Categorical\(logits=torch.stack.*v\d",
    "a mixture": r"MixtureSameFamily",
    "zero-inflated counts": r"ZeroInflatedNegativeBinomial",
    "a sum of rates": r"Poisson\(.* \+ .*v\d",
    "a product of probabilities": r"Bernoulli\(\(torch.*\) \* .*v\d",
    "compound counts": r"GammaPoisson|BetaBinomial",
    "robust noise": r"dist.Laplace|StudentT\(\d\.\d\d, \(",
    "a robust prior": r"v\d = .*(StudentT|Laplace)\(",
    "a random walk": r"dist.Normal\(\S+ \* step",
    "a random walk from a latent": r"step = v\d",
    "joint normal sites": r"blocks='auto'(?s:.)*v\d = .*dist.Normal\(.*v\d",
}


@pytest.mark.parametrize("feature", FEATURES)
def test_generator_reaches(feature: str) -> None:
    """Among a thousand programs there are some of each kind: a change of the generator loses none."""
    assert sum(bool(re.search(FEATURES[feature], source)) for source in thousand_sources()) >= 3


@functools.cache
def thousand_sources() -> list[str]:
    """The first thousand programs as text."""
    return [str(wide_program(seed)) for seed in range(1000)]
