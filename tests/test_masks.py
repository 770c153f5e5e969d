"""A mask on a latent leaves its prior out of the joint density, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_latent import CAVI, AutoConjugate, NaturalDomainError, NotConjugateError

_MASK: Any = torch.tensor([True, False])


def _normal(x):
    with pyro.plate("d", 2):
        with poutine.mask(mask=_MASK):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _mixture(x):
    with pyro.plate("k", 2), poutine.mask(mask=_MASK):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def _normal_gamma(x):
    with pyro.plate("d", 2):
        precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        with poutine.mask(mask=_MASK):
            mean = pyro.sample("mean", dist.Normal(0.0, (0.1 * precision).rsqrt()))
        with pyro.plate("n", 4, dim=-2):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)


def test_likelihood_alone_is_the_posterior_where_the_prior_is_masked():
    """The evidence of the first element is N(3; 0, 2), that of the second ∫ N(3; z, 1) dz = 1."""
    guide = AutoConjugate(_normal)
    result = CAVI(_normal, guide).run(torch.full((2,), 3.0, dtype=torch.float64))
    posterior = guide.posterior()["z"]
    torch.testing.assert_close(posterior.loc, torch.tensor([1.5, 3.0], dtype=torch.float64))
    torch.testing.assert_close(posterior.scale, torch.tensor([math.sqrt(0.5), 1.0], dtype=torch.float64))
    evidence = dist.Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(3.0))
    assert float(result.elbo[-1]) == pytest.approx(float(evidence), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (_normal, None),
        (_mixture, None),
        pytest.param(_normal_gamma, None, marks=pytest.mark.slow),
        (_normal_gamma, [("mean", "precision")]),
    ],
)
def test_elbo_under_a_masked_prior_is_that_of_the_guides_draws(model, blocks):
    """Pyro scores the model and the guide under their own masks; both must count the same elements."""
    x = torch.tensor([[3.0, 2.5], [-1.0, -2.0], [-1.5, 0.2], [0.3, 1.0]], dtype=torch.float64)
    x = x if model is _normal_gamma else x.flatten()[: 2 if model is _normal else None]
    guide = AutoConjugate(model, blocks=blocks)
    elbo = float(CAVI(model, guide).run(x).elbo[-1])
    torch.manual_seed(0)
    draws = torch.tensor([-Trace_ELBO().loss(model, guide, x) for _ in range(400)], dtype=torch.float64)
    assert abs(float(draws.mean()) - elbo) < 5 * float(draws.std()) / math.sqrt(len(draws)) + 1e-5


def test_elements_that_no_density_reads_weigh_nothing():
    def model(x):
        with pyro.plate("d", 2), poutine.mask(mask=_MASK):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def first(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.ones(2, 3, dtype=torch.float64)
    found = CAVI(model, AutoConjugate(model)).run(x).elbo[-1]
    torch.testing.assert_close(found, CAVI(first, AutoConjugate(first)).run(x[0]).elbo[-1])


def test_improper_likelihood_under_a_masked_prior_is_an_error():
    """One column of the design is zero, so the likelihood does not say where that weight is."""

    def model(x, y):
        mask: Any = torch.tensor(False)
        with poutine.mask(mask=mask):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    x = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    with pytest.raises(NaturalDomainError, match="'w'"):
        CAVI(model, AutoConjugate(model)).run(x, x.sum(1))


@pytest.mark.parametrize("order", [[1, 0, 1], [1, 0]], ids=["all alike", "fewer"])
def test_masked_scalars_that_no_index_reads_weigh_nothing(order):
    """Element 2 is masked, and no datum is of it: the degrees of freedom of each are of an element by its index."""
    data = torch.tensor([2.0, -3.0, 1.0], dtype=torch.float64)[: len(order)]

    def model(x):
        with pyro.plate("k", 3):
            mask = torch.tensor([True, True, False])
            shape = pyro.sample("shape", dist.LogNormal(torch.zeros(3, dtype=torch.float64), 0.5).mask(mask))
        with pyro.plate("n", len(order)):
            pyro.sample("x", dist.StudentT(2.0 + shape[torch.tensor(order)], 0.0, 1.0), obs=x)

    found = CAVI(model, AutoConjugate(model)).run(data, max_steps=100).elbo[-1].item()
    exact = 0.0
    for element in (0, 1):
        own = [float(x) for x, place in zip(data, order, strict=True) if place == element]

        def joint(log_shape, own=own):
            likelihood = scipy.stats.t.logpdf(own, 2.0 + math.exp(log_shape)).sum()
            return math.exp(scipy.stats.norm.logpdf(log_shape, 0, 0.5) + likelihood)

        exact += math.log(scipy.integrate.quad(joint, -5, 5, epsabs=1e-13)[0])
    assert found == pytest.approx(exact, abs=1e-8)


# Masks on latents of a joint normal block.

_SERIES = torch.tensor([[0.4, -1.2, 0.3, 1.1], [1.5, 0.2, -0.7, 0.0], [-0.3, 0.8, 0.0, 0.0]]).double()
_LENGTHS = torch.tensor([4, 3, 2])


def _ragged(x, lengths):
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
    with pyro.plate("series", len(x)):
        z = pyro.sample("z_0", dist.Normal(mean, 1.0))
        for t in range(x.shape[1]):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 0.5)) if t else z
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])


def _ragged_vectors(x, lengths):
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    turn = x.new_tensor([[0.8, 0.2], [-0.1, 0.7]])
    with pyro.plate("series", len(x)):
        z = pyro.sample("z_0", dist.MultivariateNormal(mean, torch.eye(2).to(x)))
        for t in range(x.shape[1]):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Normal(z @ turn, 0.5).to_event(1)) if t else z
                pyro.sample(f"x_{t}", dist.Normal(z[..., 0], 1.0), obs=x[:, t])


def _one_by_one(x, lengths, turn, start):
    """log p of the series at their own lengths, by the covariance of all states."""
    first = torch.zeros_like(start)
    first[0] = 1.0
    rows, noises = [], []
    for i, length in enumerate(lengths.tolist()):
        own = [torch.linalg.matrix_power(turn, t) @ first for t in range(length)]
        rows += [(i, t, power) for t, power in enumerate(own)]
        noises += [x[i, t] for t in range(length)]

    def between(a, b):
        (i, s, u), (j, t, v) = a, b
        shared = u @ torch.diag(4.0 * start) @ v
        if i == j:
            steps = [
                (torch.linalg.matrix_power(turn, s - r) @ first, torch.linalg.matrix_power(turn, t - r) @ first)
                for r in range(1, min(s, t) + 1)
            ]
            shared = shared + u @ v + sum(0.25 * (p @ q) for p, q in steps)
        return shared + float(i == j and s == t)

    covariance = torch.stack([torch.stack([between(a, b) for b in rows]) for a in rows])
    data = torch.stack(noises)
    return dist.MultivariateNormal(torch.zeros_like(data), covariance).log_prob(data)


@pytest.mark.parametrize(
    ("model", "turn"),
    [(_ragged, [[0.8]]), (_ragged_vectors, [[0.8, 0.2], [-0.1, 0.7]])],
    ids=["scalars", "vectors"],
)
@pytest.mark.parametrize("blocks", ["auto", [("mean", "z_*")]])
def test_masked_series_have_the_evidence_of_their_own_lengths(model, turn, blocks):
    """The factor is exact, so each draw of Trace_ELBO, by Pyro's own masks, is the evidence, too."""
    guide = AutoConjugate(model, blocks=blocks, restarts=2)
    found = float(CAVI(model, guide).run(_SERIES, _LENGTHS).elbo.flatten()[-1])
    matrix = torch.tensor(turn, dtype=torch.float64)
    assert found == pytest.approx(
        float(_one_by_one(_SERIES, _LENGTHS, matrix, torch.ones(len(matrix)).double())), abs=1e-9
    )
    assert -Trace_ELBO().loss(model, guide, _SERIES, _LENGTHS) == pytest.approx(found, abs=1e-9)


def test_a_joint_block_whose_first_state_has_no_prior_is_the_integral_over_it():
    """∫ N(x₀; z₀, 1) N(z₁; z₀, 1) N(x₁; z₁, 1) dz = N(x₁ − x₀; 0, 3)."""

    def model(x):
        hidden: Any = torch.tensor(False)
        with poutine.mask(mask=hidden):
            z = pyro.sample("z_0", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x_0", dist.Normal(z, 1.0), obs=x[0])
        pyro.sample("x_1", dist.Normal(pyro.sample("z_1", dist.Normal(z, 1.0)), 1.0), obs=x[1])

    x = torch.tensor([1.5, -0.4], dtype=torch.float64)
    guide = AutoConjugate(model, blocks="auto")
    found = float(CAVI(model, guide).run(x).elbo[-1])
    assert found == pytest.approx(scipy.stats.norm(0, 3**0.5).logpdf(1.9), abs=1e-9)
    assert -Trace_ELBO().loss(model, guide, x) == pytest.approx(found, abs=1e-9)


def test_a_masked_site_with_its_precision_is_an_error_that_says_what_to_write():
    def model(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 1.0))
        with pyro.plate("d", 2):
            hidden: Any = _MASK
            with poutine.mask(mask=hidden):
                z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), tau.rsqrt()))
            pyro.sample("x", dist.Normal(z, tau.rsqrt()), obs=x)

    x = torch.ones(2).double()
    with pytest.raises(
        NotConjugateError, match=r"without masks; got \['z'\] in the block .*own, or mask what is observed"
    ):
        CAVI(model, AutoConjugate(model, blocks=[("z", "tau")])).run(x)
    assert "z" in AutoConjugate(model, blocks="auto").explain(x)


@pytest.mark.usefixtures("float64")
def test_a_masked_factor_in_a_plate_counts_where_it_is_seen():
    """The evidence is that of the data whose density the factor is."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("d", 2), poutine.mask(mask=_MASK):
            pyro.factor("x", dist.Normal(mean, 1.0).log_prob(x))

    found = CAVI(model, AutoConjugate(model)).run(torch.tensor([0.7, 50.0])).elbo[-1].item()
    assert found == pytest.approx(scipy.stats.norm(0, math.sqrt(2)).logpdf(0.7), rel=1e-12)
