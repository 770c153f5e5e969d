"""EM as an engine: parameters of priors, MAP, Q and F, the laws of ascent, bad input, and the parameter store."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import constraints

from pyro_latent import CAVI, EM, AutoConjugate, LatentValueError, ModelError, NaturalDomainError, NotConjugateError
from pyro_latent.families import newton
from pyro_latent.models import gmm
from pyro_latent.objective import Program, modes


def param(name: str, start: float | list[float], constraint: Any = constraints.real) -> Any:
    """A float64 parameter."""
    return pyro.param(name, torch.tensor(start, dtype=torch.float64), constraint=constraint)


def mixture(x: Tensor, num_components: int) -> None:
    """Normals on a line: parameters weights, loc and scale."""
    count = num_components
    weights = param("weights", [1 / count] * count, constraint=constraints.simplex)
    loc = param("loc", torch.linspace(-2, 2, count).tolist())
    scale = param("scale", [1.0] * count, constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def sample_of_two() -> Tensor:
    x = torch.randn(80, dtype=torch.float64)
    return torch.cat([x[:50] * 0.7 - 2, x[50:] * 1.2 + 2])


def gradient_per_point(log_likelihood: Callable[[], Tensor], count: int) -> float:
    """The largest derivative of a function of the stored parameters in unconstrained space, per observation."""
    stored: dict[str, Any] = dict(pyro.get_param_store().items())
    leaves = [value.unconstrained() for value in stored.values()]
    return max(g.abs().max().item() for g in torch.autograd.grad(log_likelihood(), leaves)) / count


# -------------------------------------------------------------------------------------------------------- Q and F


def test_after_an_e_step_f_is_the_log_likelihood_and_before_it_below() -> None:
    x = sample_of_two()
    em = EM(mixture)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for _ in range(5):
        level = -em.step(x, 2)
        assert em.free_energy(x, 2) < em.log_likelihood(x, 2)
        em.e_step(x, 2)
        em.guide.write_params()
        exact = -elbo.loss(mixture, lambda *args: None, x, 2)
        assert em.free_energy(x, 2) == pytest.approx(exact, rel=1e-12)
        assert em.log_likelihood(x, 2) == pytest.approx(exact, rel=1e-12)
        assert level == pytest.approx(exact, rel=1e-12)


def test_f_is_q_plus_the_entropy_of_the_responsibilities() -> None:
    x = sample_of_two()
    start = torch.rand(80, 2, dtype=torch.float64)
    start = start / start.sum(-1, keepdim=True)
    em = EM(mixture, init={"z": start})
    em.step(x, 2)
    entropy = -torch.special.xlogy(start, start).sum().item()
    assert em.free_energy(x, 2) - em.q_function(x, 2) == pytest.approx(entropy, rel=1e-12)
    theta = em.guide.params()
    joint = theta["weights"].log() + dist.Normal(theta["loc"], theta["scale"]).log_prob(x[:, None])
    assert em.q_function(x, 2) == pytest.approx((start * joint).sum().item(), rel=1e-12)


@pytest.mark.parametrize(("restarts", "annealing"), [(1, ()), (3, ()), (1, (0.5,) * 3), (1, (0.5,) * 9)])
@pytest.mark.filterwarnings("ignore:Expected more steps than those of annealing")
def test_f_after_a_run_is_at_the_responsibilities_that_its_last_m_step_went_by(
    restarts: int, annealing: tuple[float, ...]
) -> None:
    """Σ r (log p − log r), with r ∝ p^β at the θ before that step and p at the θ after it."""
    x, thetas = sample_of_two(), []

    def log_joint(theta: dict[str, Tensor]) -> Tensor:
        return theta["weights"].log() + dist.Normal(theta["loc"], theta["scale"]).log_prob(x[:, None])

    em = EM(mixture, restarts=restarts, init=2 if restarts > 1 else None, annealing=annealing)
    em.run(x, 2, max_steps=8, tol=0, callback=lambda *_: thetas.append(em.guide.params()))
    before, after = thetas[-2:]
    log_r = ((0.5 if len(annealing) > 8 else 1.0) * log_joint(before)).log_softmax(-1)
    expected = (log_r.exp() * (log_joint(after) - log_r)).sum().item()
    assert em.free_energy(x, 2) == pytest.approx(expected, rel=1e-12)
    assert expected < em.log_likelihood(x, 2) - 1e-6


def test_one_posterior_of_the_components_is_kept_between_steps() -> None:
    """It is as large as the data times the components; that of the last E-step is told by its parameters."""
    x = torch.randn(1013, dtype=torch.float64)
    em = EM(mixture)
    for _ in range(3):
        em.step(x, 3)
    gc.collect()
    found = {t.data_ptr() for t in gc.get_objects() if type(t) is Tensor and t.numel() == 3 * 1013}
    assert len(found) == 1


@pytest.mark.parametrize("m_step", ["closed_form", "conditional", "gradient"])
def test_every_m_step_raises_q_and_the_likelihood(m_step: Any) -> None:
    x = sample_of_two()
    em = EM(mixture, m_step=m_step)
    em.step(x, 2)
    for _ in range(8):
        em.e_step(x, 2)
        q, level = em.q_function(x, 2), em.log_likelihood(x, 2)
        em.step(x, 2)
        assert em.q_function(x, 2) >= q - 1e-10
        assert em.log_likelihood(x, 2) >= level - 1e-10


def test_an_optimizer_that_overshoots_never_lowers_q() -> None:
    x = sample_of_two()
    em = EM(mixture, m_step="gradient", optimizer=lambda leaves: torch.optim.SGD(leaves, lr=10.0), gradient_steps=3)
    levels = [-em.step(x, 2) for _ in range(10)]
    assert bool((torch.tensor(levels).diff() >= -1e-10).all())


def test_restarts_report_what_each_found_and_keep_the_best() -> None:
    x = sample_of_two()
    em = EM(mixture, restarts=4, init=1)
    result = em.run(x, 2, max_steps=200, tol=1e-12)
    assert result.restarts.shape == (4,)
    assert result.elbo[-1].item() == result.restarts.max().item()
    assert em.log_likelihood(x, 2) == pytest.approx(result.restarts.max().item(), rel=1e-12)
    assert em.free_energy(x, 2) == pytest.approx(em.log_likelihood(x, 2), abs=1e-4)


def test_the_log_likelihood_of_a_continuous_latent_is_refused() -> None:
    em = EM(gamma_poisson)
    counts = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    em.step(counts)
    with pytest.raises(
        ModelError, match=r"Expected discrete latents only; got \['rate'\].*evaluate_loss gives the bound"
    ):
        em.log_likelihood(counts)


# ------------------------------------------------------------------------------------- Maximum likelihood, no latents


def _fitted(model: Callable[..., None], *args: Any) -> dict[str, Tensor]:
    em = EM(model)
    em.run(*args, tol=1e-14)
    return em.guide.params()


def test_one_step_is_the_maximum_likelihood_estimate_of_every_family() -> None:
    counts = torch.poisson(torch.full((50,), 3.0, dtype=torch.float64))
    times = torch.distributions.Exponential(2.0).sample((50,)).double()
    votes = torch.distributions.Multinomial(7, torch.tensor([0.2, 0.3, 0.5])).sample((30,)).double()
    points = torch.randn(60, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 2

    def model() -> None:
        rate = param("rate", 1.0, constraint=constraints.positive)
        hazard = param("hazard", 1.0, constraint=constraints.positive)
        probs = param("probs", [0.3, 0.3, 0.4], constraint=constraints.simplex)
        mean = param("mean", [0.0, 0.0, 0.0])
        tril = pyro.param("tril", torch.eye(3, dtype=torch.float64), constraint=constraints.lower_cholesky)
        with pyro.plate("counts", 50):
            pyro.sample("count", dist.Poisson(rate), obs=counts)
            pyro.sample("time", dist.Exponential(hazard), obs=times)
        with pyro.plate("voters", 30):
            pyro.sample("vote", dist.Multinomial(7, probs, validate_args=False), obs=votes)
        with pyro.plate("points", 60):
            pyro.sample("point", dist.MultivariateNormal(mean, scale_tril=tril), obs=points)

    found = _fitted(model)
    centred = points - points.mean(0)
    expected = {
        "rate": counts.mean(),
        "hazard": 1 / times.mean(),
        "probs": votes.sum(0) / votes.sum(),
        "mean": points.mean(0),
        "tril": torch.linalg.cholesky(centred.T @ centred / 60),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["covariance_matrix", "precision_matrix", "scale_tril"])
def test_every_parametrisation_of_a_covariance_has_one_maximum(form: str) -> None:
    points = torch.randn(40, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.4], [0.0, 2.0]], dtype=torch.float64)
    constraint: Any = constraints.lower_cholesky if form == "scale_tril" else constraints.positive_definite

    def model() -> None:
        matrix = pyro.param("matrix", torch.eye(2, dtype=torch.float64), constraint=constraint)
        with pyro.plate("points", 40):
            zero = torch.zeros(2, dtype=torch.float64)
            arguments: dict[str, Any] = {form: matrix}
            pyro.sample("point", dist.MultivariateNormal(zero, **arguments), obs=points)

    scatter = points.T @ points / 40
    expected = {"covariance_matrix": scatter, "precision_matrix": scatter.inverse()}
    expected["scale_tril"] = torch.linalg.cholesky(scatter)
    torch.testing.assert_close(_fitted(model)["matrix"], expected[form], rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------- Hyperparameters


def dirichlet(shares: Tensor) -> None:
    start = torch.ones(shares.shape[-1], dtype=shares.dtype)
    concentration = pyro.param("concentration", start, constraint=constraints.positive)
    with pyro.plate("documents", len(shares)):
        pyro.sample("shares", dist.Dirichlet(concentration), obs=shares)


TRUE_CONCENTRATION = torch.tensor([0.5, 20.0, 7.0, 1.0, 60.0], dtype=torch.float64)


def fixed_point_steps(mean_log: Tensor, target: Tensor) -> int:
    """The iterations of Minka's fixed point, ψ(α_k) ← ψ(Σ α) + mean log θ_k, to a relative error of 1e-8."""
    alpha = torch.ones_like(mean_log)
    for iteration in range(1, 100_000):
        wanted = torch.digamma(alpha.sum()) + mean_log
        alpha = torch.where(wanted > -2.22, wanted.exp() + 0.5, -1 / (wanted - torch.digamma(torch.ones(()).double())))
        for _ in range(6):
            alpha = alpha - (torch.digamma(alpha) - wanted) / torch.polygamma(1, alpha)
        if bool(((alpha - target).abs() <= 1e-8 * target).all()):
            return iteration
    return 100_000


def test_dirichlet_newton_recovers_concentrations_in_a_tenth_of_the_fixed_points_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = dist.Dirichlet(TRUE_CONCENTRATION).sample((20_000,))
    steps: list[Tensor] = []  # on the sum of the concentrations; those inside, on ψ⁻¹, the fixed point takes too
    iterate = newton._iterate

    def counted(step: newton.NewtonStep, x: Tensor, iterations: int) -> Tensor:
        def one(x: Tensor) -> Tensor:
            if x.shape[-1] == 1:
                steps.append(x)
            return step(x)

        return iterate(one, x, iterations)

    monkeypatch.setattr(newton, "_iterate", counted)
    em = EM(dirichlet)
    em.step(shares)
    found = em.guide.params()["concentration"]
    torch.testing.assert_close(found, TRUE_CONCENTRATION, rtol=0.03, atol=0)
    mean_log = shares.log().mean(0)
    gradient = torch.digamma(found.sum()) - torch.digamma(found) + mean_log
    assert gradient.abs().max().item() <= 1e-10
    assert len(steps) >= 2
    assert (len(steps) + 2) * 10 <= fixed_point_steps(mean_log, found)


def test_dirichlet_newton_stays_positive_from_a_bad_start() -> None:
    shares = dist.Dirichlet(torch.tensor([0.02, 0.05, 0.03], dtype=torch.float64)).sample((500,)).clamp(min=1e-300)
    shares = shares / shares.sum(-1, keepdim=True)
    for start in (1e-3, 400.0):
        pyro.clear_param_store()
        em = EM(dirichlet, init={"concentration": torch.full((3,), start)})
        em.run(shares, tol=1e-14)
        found = em.guide.params()["concentration"]
        assert bool((found > 0).all())
        gradient = torch.digamma(found.sum()) - torch.digamma(found) + shares.log().mean(0)
        assert (gradient * found).abs().max().item() <= 1e-9


def test_equal_vectors_have_no_concentration() -> None:
    shares = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).expand(7, 3)
    with pytest.raises(NaturalDomainError, match="got none for element"):
        EM(dirichlet).step(shares)


def gamma_poisson(counts: Tensor) -> None:
    shape = param("shape", 1.0, constraint=constraints.positive)
    rate_of_rates = param("rate_of_rates", 1.0, constraint=constraints.positive)
    with pyro.plate("data", len(counts)):
        rate = pyro.sample("rate", dist.Gamma(shape, rate_of_rates))
        pyro.sample("count", dist.Poisson(rate), obs=counts)


def test_empirical_bayes_of_a_gamma_is_the_maximum_of_the_negative_binomial() -> None:
    counts = torch.poisson(torch.distributions.Gamma(3.0, 0.05).sample((400,))).double()
    em = EM(gamma_poisson)
    result = em.run(counts, max_steps=5000, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-9 * result.elbo.abs().max()).all())
    found = [em.guide.params()[name].item() for name in ("shape", "rate_of_rates")]

    def loss(free: np.ndarray) -> float:
        shape, rate = np.exp(free)
        return float(-scipy.stats.nbinom.logpmf(counts.numpy(), shape, rate / (1 + rate)).sum())

    best = scipy.optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10})
    assert result.elbo[-1].item() == pytest.approx(-best.fun, rel=1e-9)
    assert found == pytest.approx(np.exp(best.x).tolist(), rel=1e-4)

    def log_likelihood() -> Tensor:
        return dist.GammaPoisson(pyro.param("shape"), pyro.param("rate_of_rates")).log_prob(counts).sum()

    assert gradient_per_point(log_likelihood, len(counts)) <= 1e-6


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64) * 3
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


def schools(effects: Tensor, errors: Tensor) -> None:
    mean = param("mean", 0.0)
    precision = param("precision", 0.01, constraint=constraints.positive)
    with pyro.plate("schools", len(effects)):
        effect = pyro.sample("effect", dist.Normal(mean, precision.rsqrt()))
        pyro.sample("estimate", dist.Normal(effect, errors), obs=effects)


@pytest.mark.parametrize("driver", ["EM", "CAVI"])
def test_empirical_bayes_of_a_normal_is_the_maximum_of_the_marginal_likelihood(driver: str) -> None:
    fit = EM(schools) if driver == "EM" else CAVI(schools, AutoConjugate(schools))
    result = fit.run(EFFECTS, ERRORS, max_steps=5000, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-10).all())

    def loss(free: np.ndarray) -> float:
        spread = np.sqrt(np.exp(-free[1]) + ERRORS.numpy() ** 2)
        return float(-scipy.stats.norm.logpdf(EFFECTS.numpy(), free[0], spread).sum())

    options = {"xatol": 1e-9, "fatol": 1e-12}
    best = scipy.optimize.minimize(loss, np.array([10.0, -5.0]), method="Nelder-Mead", options=options)
    assert result.elbo[-1].item() == pytest.approx(-best.fun, rel=1e-10)
    found = fit.guide.params()
    assert found["mean"].item() == pytest.approx(best.x[0], rel=1e-5)
    assert found["precision"].item() == pytest.approx(np.exp(best.x[1]), rel=1e-4)

    def log_likelihood() -> Tensor:
        spread = (1 / pyro.param("precision") + ERRORS**2).sqrt()
        return dist.Normal(pyro.param("mean"), spread).log_prob(EFFECTS).sum()

    assert gradient_per_point(log_likelihood, len(EFFECTS)) <= 1e-6


def regression(features: Tensor, y: Tensor) -> None:
    width = param("width", 1.0, constraint=constraints.positive)
    noise = param("noise", 1.0, constraint=constraints.positive)
    size = features.shape[1]
    coefficients = pyro.sample(
        "coefficients", dist.Normal(torch.zeros(size, dtype=y.dtype), width.expand([size])).to_event(1)
    )
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(features @ coefficients, noise), obs=y)


def test_evidence_maximisation_is_em_with_an_exact_posterior() -> None:
    features = torch.randn(40, 3, dtype=torch.float64)
    y = features @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.5 * torch.randn(40, dtype=torch.float64)
    em = EM(regression)
    result = em.run(features, y, max_steps=3000, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-10).all())

    def log_likelihood() -> Tensor:
        covariance = pyro.param("width") ** 2 * features @ features.T + pyro.param("noise") ** 2 * torch.eye(40)
        return dist.MultivariateNormal(torch.zeros(40, dtype=y.dtype), covariance).log_prob(y)

    assert result.elbo[-1].item() == pytest.approx(log_likelihood().item(), rel=1e-9)
    assert gradient_per_point(log_likelihood, 40) <= 1e-6
    em.e_step(features, y)
    assert em.free_energy(features, y) == pytest.approx(log_likelihood().item(), rel=1e-10)


def two_lines(x: Tensor, y: Tensor) -> None:
    """A mixture of two regressions, its weights and intercepts parameters of their own."""
    weights = pyro.param("weights", torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.5]], dtype=x.dtype))
    intercept = pyro.param("intercept", torch.zeros(2, dtype=x.dtype))
    scale = pyro.param("scale", torch.full((2,), 5.0, dtype=x.dtype), constraint=constraints.positive)
    share = pyro.param("share", torch.full((2,), 0.5, dtype=x.dtype), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        line = pyro.sample("line", dist.Categorical(share))
        pyro.sample("y", dist.Normal((weights[line] * x).sum(-1) + intercept[line], scale[line]), obs=y)


def test_weights_and_an_intercept_have_their_joint_maximum_in_one_step() -> None:
    """That of least squares, where covariates far from zero make steps in turn slow: each by the responsibilities."""
    x = 5 + torch.randn(200, 3, dtype=torch.float64)
    slope = torch.where(torch.rand(200, 1, dtype=torch.float64) < 0.4, 1.0, -1.0)
    y = (slope * x).sum(-1) + 3 * slope.squeeze(-1) + 0.3 * torch.randn(200, dtype=torch.float64)
    em = EM(two_lines)
    em.run(x, y, max_steps=3)
    shares = em.guide.posterior(x, y)["line"].probs
    em.step(x, y)
    found = em.guide.params()
    design = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=-1)
    for line in range(2):
        root = shares[:, line].sqrt()
        best = torch.linalg.lstsq(root[:, None] * design, root * y).solution
        torch.testing.assert_close(found["weights"][line], best[:3], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found["intercept"][line], best[3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coupling", ["rows", "columns", "all"])
def test_a_quadratic_has_its_maximum_whichever_elements_are_coupled(coupling: str) -> None:
    """The solution of the whole system of equations, by no more products with the Hessian than the coupling needs."""
    root = torch.randn(2, 12, 12, dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(12, dtype=torch.float64)
    row, column = torch.arange(12) // 4, torch.arange(12) % 4
    if coupling != "all":
        places = row if coupling == "rows" else column
        matrix = matrix * (places[:, None] == places)
    linear = torch.randn(2, 12, dtype=torch.float64)
    taken: list[int] = []

    def product(vectors: Tensor) -> Tensor:
        taken.append(len(vectors))
        return -torch.einsum("aij,naj->nai", matrix, vectors.reshape(-1, 2, 12)).reshape(vectors.shape)

    at_zero = linear.reshape(2, 3, 4)
    found = modes._quadratic(torch.randn(2, 3, 4, dtype=torch.float64), at_zero, product)
    expected = torch.linalg.solve(matrix, linear).reshape(2, 3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert sum(taken) == (6 if coupling == "rows" else 18)
    torch.testing.assert_close(modes._quadratic(found, at_zero, product), expected, rtol=1e-9, atol=1e-9)


def test_a_parameter_in_a_product_of_more_than_two_of_its_elements_is_refused() -> None:
    """Its terms are no quadratic."""

    def model(y: Tensor) -> None:
        b = param("b", [0.5, 1.5])
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(b[0] * b[1], 1.0), obs=y)

    with pytest.raises(NotConjugateError, match=r"closed form; got a density with these functions of it.*gradient"):
        EM(model).step(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))


def test_parameters_without_one_maximum_are_visited_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than data: the joint solve is tried once in a step, and the fit is perfect all the same."""
    design = torch.randn(4, 6, dtype=torch.float64)

    def model(y: Tensor) -> None:
        weights = [param(f"w{i}", 0.0) for i in range(6)]
        with pyro.plate("data", len(y)):
            loc = sum(w * column for w, column in zip(weights, design.unbind(1), strict=True))
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    tried = []
    solve = Program.joint_optimum

    def counted(*args: Any) -> Any:
        tried.append(1)
        return solve(*args)

    monkeypatch.setattr(Program, "joint_optimum", counted)
    y = torch.randn(4, dtype=torch.float64)
    em = EM(model)
    em.step(y)
    assert len(tried) == 1
    em.run(y, max_steps=200, tol=1e-13)
    fitted = design @ torch.stack([em.guide.params()[f"w{i}"] for i in range(6)])
    torch.testing.assert_close(fitted, y, rtol=0, atol=1e-3)


def test_points_that_multiply_each_other_are_visited_in_turn() -> None:
    """They are quadratic each, not together; the maximum is on a curve where the product is the mean."""

    def model(y: Tensor) -> None:
        left, right = param("left", 1.0), param("right", 2.0)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(left * right, 1.0), obs=y)

    y = 3 + torch.randn(50, dtype=torch.float64)
    em = EM(model)
    em.run(y)
    found = em.guide.params()
    assert (found["left"] * found["right"]).item() == pytest.approx(y.mean().item(), rel=1e-9)


def factors(x: Tensor, rank: int) -> None:
    """Probabilistic PCA: the loadings, the offset and the noise are parameters."""
    loadings = pyro.param(
        "loadings", torch.linspace(0.5, 1, rank * x.shape[1], dtype=x.dtype).reshape(x.shape[1], rank)
    )
    offset = pyro.param("offset", x.mean(0))
    noise = param("noise", 1.0, constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        zero, one = torch.zeros(rank, dtype=x.dtype), torch.ones(rank, dtype=x.dtype)
        z = pyro.sample("z", dist.Normal(zero, one).to_event(1))
        pyro.sample("x", dist.Normal(z @ loadings.T + offset, noise).to_event(1), obs=x)


def test_em_for_probabilistic_pca_reaches_the_closed_form_of_tipping_and_bishop() -> None:
    x = torch.randn(60, 1, dtype=torch.float64) * torch.tensor([2.0, -1.5, 1.0], dtype=torch.float64)
    x = x + 0.8 * torch.randn(60, 3, dtype=torch.float64) + 5
    em = EM(factors)
    result = em.run(x, 1, max_steps=500, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-9 * result.elbo.abs().max()).all())
    values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)) / 60)
    assert em.guide.params()["noise"].item() ** 2 == pytest.approx(values[:2].mean().item(), rel=1e-5)
    torch.testing.assert_close(em.guide.params()["offset"], x.mean(0), rtol=1e-6, atol=1e-6)

    def log_likelihood() -> Tensor:
        covariance = pyro.param("loadings") @ pyro.param("loadings").T + pyro.param("noise") ** 2 * torch.eye(3)
        return dist.MultivariateNormal(pyro.param("offset"), covariance).log_prob(x).sum()

    assert result.elbo[-1].item() == pytest.approx(log_likelihood().item(), rel=1e-9)
    assert gradient_per_point(log_likelihood, 60) <= 1e-6


def crossed(x: Tensor) -> None:
    """Rows and columns: mean field cannot hold their posterior; the noise and the spreads are parameters."""
    spread = param("spread", 1.0, constraint=constraints.positive)
    noise = param("noise", 1.0, constraint=constraints.positive)
    rows, columns = pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1)
    zero = torch.zeros((), dtype=x.dtype)
    with rows:
        row = pyro.sample("row", dist.Normal(zero, spread))
    with columns:
        column = pyro.sample("column", dist.Normal(zero, spread))
    with rows, columns:
        pyro.sample("x", dist.Normal(row + column, noise), obs=x)


def test_variational_em_never_lowers_its_bound_which_stays_below_the_likelihood() -> None:
    x = torch.randn(6, 1, dtype=torch.float64) + torch.randn(1, 5, dtype=torch.float64)
    x = 2 * x + 0.5 * torch.randn(6, 5, dtype=torch.float64)
    em = EM(crossed)
    result = em.run(x, max_steps=200, tol=1e-14)
    assert bool((result.elbo.diff() >= -1e-10).all())
    theta = em.guide.params()
    same_row, same_column = torch.eye(6).repeat_interleave(5, 0).repeat_interleave(5, 1), torch.eye(5).repeat(6, 6)
    covariance = theta["spread"] ** 2 * (same_row + same_column) + theta["noise"] ** 2 * torch.eye(30)
    exact = dist.MultivariateNormal(torch.zeros(30, dtype=x.dtype), covariance).log_prob(x.reshape(-1)).item()
    assert result.elbo[-1].item() < exact - 1e-3


# ------------------------------------------------------------------------------------------------------------- MAP


def ratings(choices: Tensor, concentration: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(concentration))
    with pyro.plate("data", len(choices)):
        pyro.sample("choice", dist.Categorical(weights), obs=choices)


def test_a_point_estimate_of_weights_is_the_mode_of_the_dirichlet() -> None:
    choices = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    concentration = torch.tensor([3.0, 2.0, 4.0], dtype=torch.float64)
    guide = AutoConjugate(ratings, point=["weights"])
    result = CAVI(ratings, guide).run(choices, concentration)
    mode = torch.tensor([4.0, 2.0, 7.0], dtype=torch.float64) / 13
    torch.testing.assert_close(guide.median()["weights"], mode, rtol=1e-12, atol=0)
    joint = dist.Dirichlet(concentration).log_prob(mode) + mode.log()[choices].sum()
    assert result.elbo[-1].item() == pytest.approx(joint.item(), rel=1e-12)


def test_a_mode_on_the_edge_is_refused() -> None:
    concentration = torch.tensor([0.5, 0.5, 4.0], dtype=torch.float64)
    guide = AutoConjugate(ratings, point=["weights"])
    with pytest.raises(
        NaturalDomainError, match=r"maximum over 'weights' inside its constraint Simplex.*concentration above 1"
    ):
        CAVI(ratings, guide).run(torch.tensor([0, 2, 2]), concentration)


PRIOR = {"weight": 2.0, "loc_scale": 3.0, "shape": 2.0, "rate": 1.5}


def bayesian_mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), PRIOR["weight"], dtype=x.dtype)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), PRIOR["loc_scale"]))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(PRIOR["shape"]), PRIOR["rate"]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], precision[z].rsqrt()), obs=x)


def log_posterior(x: Tensor, weights: Tensor, loc: Tensor, precision: Tensor) -> Tensor:
    """log p(x, θ) with the components summed out, and θ = (weights, loc, precision)."""
    likelihood = (weights.log() + dist.Normal(loc, precision.rsqrt()).log_prob(x[:, None])).logsumexp(-1).sum()
    prior = dist.Dirichlet(torch.full((2,), PRIOR["weight"], dtype=x.dtype)).log_prob(weights)
    prior = prior + dist.Normal(x.new_zeros(()), PRIOR["loc_scale"]).log_prob(loc).sum()
    return likelihood + prior + dist.Gamma(x.new_tensor(PRIOR["shape"]), PRIOR["rate"]).log_prob(precision).sum()


def test_map_em_takes_the_steps_of_the_formulas_and_never_lowers_the_posterior() -> None:
    x = sample_of_two()
    start = (x > 0).double() * 0.8 + 0.1
    r = torch.stack([1 - start, start], 1)
    weights, loc, precision = x.new_tensor([0.5, 0.5]), x.new_zeros(2), x.new_ones(2)
    guide = AutoConjugate(bayesian_mixture, point=["weights", "loc", "precision"], init={"z": r})
    driver = CAVI(bayesian_mixture, guide, order=["weights", "loc", "precision"])
    precision = torch.ones(2, dtype=x.dtype)  # where a point without a start begins
    level = -torch.inf
    for _ in range(30):
        elbo = -driver.step(x)
        counts = r.sum(0)
        weights = (counts + PRIOR["weight"] - 1) / (80 + 2 * (PRIOR["weight"] - 1))
        loc = precision * (r * x[:, None]).sum(0) / (precision * counts + PRIOR["loc_scale"] ** -2)
        scatter = (r * (x[:, None] - loc) ** 2).sum(0)
        precision = (PRIOR["shape"] - 1 + counts / 2) / (PRIOR["rate"] + scatter / 2)
        found = guide.median()
        torch.testing.assert_close(found["weights"], weights, rtol=1e-9, atol=0)
        torch.testing.assert_close(found["loc"], loc, rtol=1e-9, atol=0)
        torch.testing.assert_close(found["precision"], precision, rtol=1e-9, atol=0)
        assert elbo == pytest.approx(log_posterior(x, weights, loc, precision).item(), rel=1e-11)
        assert elbo >= level - 1e-10
        level = elbo
        r = (weights.log() + dist.Normal(loc, precision.rsqrt()).log_prob(x[:, None])).softmax(-1)


def half_bayesian(x: Tensor) -> None:
    """A prior on the weights, a point by its own mark; parameters for the components."""
    prior = dist.Dirichlet(torch.full((2,), 5.0, dtype=x.dtype))
    mark: Any = {"estimate": "point"}
    weights = pyro.sample("weights", prior, infer=mark)
    loc = param("loc", [-1.0, 1.0])
    scale = param("scale", [1.0, 1.0], constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def test_em_with_a_prior_on_the_weights_stands_still_where_its_formulas_do() -> None:
    x = sample_of_two()
    em = EM(half_bayesian)
    result = em.run(x, max_steps=2000, tol=1e-15)
    assert bool((result.elbo.diff() >= -1e-10).all())
    weights, theta = em.guide.median()["weights"], em.guide.params()
    joint = weights.log() + dist.Normal(theta["loc"], theta["scale"]).log_prob(x[:, None])
    r = joint.softmax(-1)
    torch.testing.assert_close(weights, (r.sum(0) + 4) / (80 + 8), rtol=1e-7, atol=0)
    torch.testing.assert_close(theta["loc"], (r * x[:, None]).sum(0) / r.sum(0), rtol=1e-6, atol=0)
    exact = joint.logsumexp(-1).sum() + dist.Dirichlet(torch.full((2,), 5.0, dtype=x.dtype)).log_prob(weights)
    assert em.log_likelihood(x) == pytest.approx(exact.item(), rel=1e-11)


# ------------------------------------------------------------------------------------------------------- Bad input


def unused(x: Tensor) -> None:
    param("spare", 1.0)
    mixture(x, 2)


def bent(x: Tensor) -> None:
    angle = param("angle", 0.3)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(angle.sin(), 1.0), obs=x)


def squared(x: Tensor) -> None:
    root = param("root", 0.3)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(root * root, 1.0), obs=x)


def branching(x: Tensor) -> None:
    width = param("width", 1.0, constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, width if width > 0.5 else 1.0), obs=x)


def coin(x: Tensor, start: float = 0.5) -> None:
    heads = param("heads", start, constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(heads), obs=x)


def never(x: Tensor) -> None:
    rate = param("rate", 1.0, constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def wide(x: Tensor) -> None:
    scale = param("scale", -1.0, constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def without(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


ONES = torch.ones(4, dtype=torch.float64)
EMPTY = {"z": torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)}
X = torch.tensor([0.1, 0.4, 0.7, 2.0], dtype=torch.float64)

BAD: dict[str, tuple[Callable[..., None], tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "unused": (unused, (X,), {}, ModelError, r"every pyro.param to reach a density; got \['spare'\].*Remove"),
    "unused gradient": (unused, (X,), {"m_step": "gradient"}, ModelError, r"reach a density; got \['spare'\]"),
    "nonlinear": (
        bent,
        (X,),
        {},
        NotConjugateError,
        r"maximum over 'angle' in closed form; got.*sin.*m_step='gradient'",
    ),
    "no joint form": (squared, (X,), {}, NotConjugateError, r"'root'.*these functions of it: x\^2, x\^4.*'gradient'"),
    "branch": (branching, (X,), {}, LatentValueError, r"Expected tensor operations on latent 'width'; got .*__bool__"),
    "no heads left": (coin, (ONES,), {}, NaturalDomainError, r"maximum over 'heads' inside.*on its edge.*prior"),
    "edge start": (coin, (X > 1, 1.0), {}, ModelError, r"'heads' to start inside its constraint.*got 1.0, on the edge"),
    "zero rate": (never, (0 * ONES,), {}, NaturalDomainError, r"maximum over 'rate' inside.*on its edge.*prior"),
    "bad start": (wide, (X,), {}, ModelError, r"'scale' to start at a value of shape \(\) in .*; got -1.0"),
    "one point": (mixture, (ONES, 1), {}, NaturalDomainError, r"'scale'.*element \[0\] at zero: it collapses"),
    "empty": (
        mixture,
        (X, 2),
        {"init": EMPTY},
        NaturalDomainError,
        r"data for every element of '(loc|scale)'; got none for element \[1\]",
    ),
    "no params": (without, (X,), {}, ModelError, "Expected a model with pyro.param sites; got none. Use CAVI"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_changes_nothing(case: str) -> None:
    model, args, options, error, words = BAD[case]
    args = tuple(a.double() if isinstance(a, Tensor) else a for a in args)
    pyro.param("other", torch.ones(2))
    state = torch.get_rng_state()
    em = EM(model, **options)
    with pytest.raises(error, match=words):
        em.run(*args)
    assert list(pyro.get_param_store().keys()) == ["other"]
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_in_the_middle_of_a_run_leaves_the_guide_at_the_last_whole_step() -> None:
    x = torch.cat([torch.randn(40, dtype=torch.float64), torch.tensor([4.0, 4.0], dtype=torch.float64)])
    start = torch.where(x > 3, 0.9, 0.1)
    em = EM(mixture, init={"z": torch.stack([1 - start, start], 1)})
    seen = []
    with pytest.raises(NaturalDomainError, match="The guide is as before the step"):
        em.run(x, 2, max_steps=2000, tol=0.0, callback=lambda step, elbo: seen.append((elbo, em.guide.params())))
    assert em.log_likelihood(x, 2) == pytest.approx(seen[-1][0], rel=1e-12)
    for name, value in em.guide.params().items():
        assert torch.equal(value, seen[-1][1][name])


@pytest.mark.parametrize("options", [{"m_step": "newton"}, {"gradient_steps": 0}])
def test_em_says_what_options_it_expects(options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"Expected (m_step to be|gradient_steps to be an integer of at least 1).*got (0|'newton')"
    ):
        EM(mixture, **options)


def test_an_unseen_category_keeps_a_probability_of_zero() -> None:
    def model(x: Tensor) -> None:
        probs = param("probs", [0.2, 0.3, 0.5], constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(probs), obs=x)

    result = EM(model).run(torch.tensor([0, 0, 1]))
    assert result.elbo[-1].item() == pytest.approx(2 * np.log(2 / 3) + np.log(1 / 3), rel=1e-12)


# ------------------------------------------------------------------------------------------------- Parameter store


def test_parameters_are_written_once_at_the_end_and_keep_their_identity_and_optimizers() -> None:
    x = sample_of_two()
    pyro.param("stranger", torch.ones(3))
    loc = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    entry: Any = pyro.param("loc", loc)
    kept = entry.unconstrained()
    optimizer = pyro.optim.Adam({"lr": 0.01})
    kept.grad = torch.ones_like(kept)
    optimizer([kept])
    held = dict(optimizer.optim_objs)
    before = kept.detach().clone()
    names: list[list[str]] = []
    em = EM(mixture)
    em.run(x, 2, max_steps=5, tol=0.0, callback=lambda *_: names.append(sorted(pyro.get_param_store().keys())))
    assert names == [["loc", "stranger"]] * 5
    found: Any = pyro.param("loc")
    assert found.unconstrained() is kept
    assert not torch.equal(kept.detach(), before)
    assert dict(optimizer.optim_objs) == held
    assert sorted(pyro.get_param_store().keys()) == ["loc", "scale", "stranger", "weights"]
    for name, value in em.guide.params().items():
        torch.testing.assert_close(pyro.param(name).detach(), value, rtol=1e-12, atol=1e-14)


def test_svi_goes_on_from_where_em_ended() -> None:
    x = sample_of_two()
    em = EM(mixture)
    result = em.run(x, 2, max_steps=500, tol=1e-14)
    svi = SVI(mixture, lambda *args: None, pyro.optim.Adam({"lr": 1e-6}), TraceEnum_ELBO(max_plate_nesting=1))
    assert -svi.step(x, 2) == pytest.approx(result.elbo[-1].item(), rel=1e-10)
    pyro.clear_param_store()
    em = EM(mixture)
    em.step(x, 2)
    assert not pyro.get_param_store().keys()


def test_parameters_start_at_their_stored_values() -> None:
    x = sample_of_two()
    EM(mixture).run(x, 2, max_steps=500, tol=1e-15)
    again = EM(mixture)
    result = again.run(x, 2, max_steps=1, tol=0.0)
    assert result.elbo[0].item() == pytest.approx(
        EM(mixture).run(x, 2, max_steps=2, tol=0.0).elbo[-1].item(), rel=1e-12
    )


def test_the_guide_of_em_does_not_sample_parameters() -> None:
    x = sample_of_two()
    em = EM(mixture)
    em.run(x, 2)
    assert set(em.guide(x, 2)) == {"z"}
    assert set(em.guide.posterior()) == {"z"}
    restored = AutoConjugate(mixture)
    restored.load_state_dict(em.guide.state_dict())
    assert restored.elbo(x, 2) == pytest.approx(em.log_likelihood(x, 2), rel=1e-12)


def test_the_fitted_guide_and_the_stored_parameters_agree_in_trace_elbo() -> None:
    x = sample_of_two()
    em = EM(mixture)
    result = em.run(x, 2, max_steps=500, tol=1e-14)
    for _ in range(3):
        assert -Trace_ELBO().loss(mixture, em.guide, x, 2) == pytest.approx(result.elbo[-1].item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------------ The page


def test_the_covariance_of_one_component_is_that_of_the_data(old_faithful: Tensor) -> None:
    em = EM(gmm.ml_model)
    em.run(old_faithful, 1)
    centred = old_faithful - old_faithful.mean(0)
    torch.testing.assert_close(em.guide.params()["covariance"][0], centred.T @ centred / 272, rtol=1e-12, atol=0)


def test_ecm_takes_one_parameter_after_the_other_with_continuous_latents_updated_before() -> None:
    """Three steps by hand, x_n ~ N(shift + slope z_n, 1), z_n ~ N(0, 1): the joint maximum is elsewhere."""
    x = torch.tensor([0.5, 3.0, 1.0, 4.5, -2.0, 2.5], dtype=torch.float64)

    def line(x: Tensor) -> None:
        shift = pyro.param("shift", x.new_tensor(0.3))
        slope = pyro.param("slope", x.new_tensor(0.7))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(shift + slope * z, 1.0), obs=x)

    found = {}
    for m_step in ("conditional", "closed_form"):
        pyro.clear_param_store()
        em = EM(line, m_step=m_step)
        em.run(x, max_steps=3, tol=0)
        found[m_step] = torch.stack([em.guide.params()["shift"], em.guide.params()["slope"]])
    by_hand = {}
    for m_step in found:
        shift, slope = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
        for _ in range(3):
            variance = 1 / (1 + slope**2)
            mean = variance * slope * (x - shift)
            square = (mean**2 + variance).sum()
            if m_step == "conditional":
                shift = (x - slope * mean).mean()
                slope = (mean * (x - shift)).sum() / square
            else:
                moments = torch.stack(
                    [torch.stack([x.new_tensor(len(x)), mean.sum()]), torch.stack([mean.sum(), square])]
                )
                shift, slope = torch.linalg.solve(moments, torch.stack([x.sum(), (mean * x).sum()]))
        by_hand[m_step] = torch.stack([shift, slope])
    for m_step, value in found.items():
        torch.testing.assert_close(value, by_hand[m_step], rtol=1e-6, atol=1e-8)
    assert (found["conditional"] - found["closed_form"]).abs().max() > 1e-3


def test_one_step_is_the_joint_maximum_of_parameters_that_are_not_quadratic_together() -> None:
    """Two samples of one location and scales of their own: each is where the others leave it. ECM visits each once."""
    samples = torch.tensor([[0.5, 3.0, 1.0, 4.5], [2.0, 2.4, 2.1, 2.9]], dtype=torch.float64)

    def model(samples: Tensor) -> None:
        loc = pyro.param("loc", samples.new_tensor(0.0))
        scale = pyro.param("scale", samples.new_tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("sample", 2, dim=-2), pyro.plate("point", 4, dim=-1):
            pyro.sample("x", dist.Normal(loc, scale.unsqueeze(-1)), obs=samples)

    off = {}
    for m_step in ("closed_form", "conditional"):
        pyro.clear_param_store()
        em = EM(model, m_step=m_step)
        em.step(samples)
        loc, scale = (em.guide.params()[name] for name in ("loc", "scale"))
        precision = scale.square().reciprocal()
        off[m_step] = float((loc - (precision * samples.mean(1)).sum() / precision.sum()).abs())
        torch.testing.assert_close(scale.square(), (samples - loc).square().mean(1), rtol=1e-9, atol=0)
    assert off["closed_form"] < 1e-9 and off["conditional"] > 1e-2


def test_counted_data_has_the_steps_of_repeated_data() -> None:
    """A scale is outside of the sum over components: it leaves responsibilities, and counts in every M-step."""
    x = torch.tensor([-2.0, -1.5, 0.3, 1.0, 2.5], dtype=torch.float64)
    counts = torch.tensor([3, 1, 2, 4, 1])

    def model(x: Tensor, counts: Tensor) -> None:
        weights = pyro.param("weights", x.new_tensor([0.5, 0.5]), constraint=constraints.simplex)
        loc = pyro.param("loc", x.new_tensor([-1.0, 1.0]))
        scale = pyro.param("scale", x.new_ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x)), poutine.scale(scale=counts):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    found = []
    for data, times in ((x, counts), (x.repeat_interleave(counts), torch.ones(11))):
        pyro.clear_param_store()
        em = EM(model)
        rise = em.run(data, times, max_steps=4, tol=0).elbo
        found.append(torch.cat([rise, *(value.flatten() for value in em.guide.params().values())]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_step_that_fails_leaves_the_posterior_of_the_last_one() -> None:
    """A component that shrinks on one point ends the second step; Q is as it was before it."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(10, dtype=torch.float64), torch.tensor([12.0]).double()])

    def model(x: Tensor) -> None:
        mu = pyro.param("mu", x.new_tensor([0.0, 6.0]))
        s = pyro.param("s", x.new_ones(2), constraint=constraints.positive)
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu[z], s[z]), obs=x)

    em = EM(model)
    em.step(x)
    before = em.free_energy(x), em.q_function(x)
    with pytest.raises(NaturalDomainError):
        for _ in range(10):
            em.step(x)
            before = em.free_energy(x), em.q_function(x)
    assert (em.free_energy(x), em.q_function(x)) == before
