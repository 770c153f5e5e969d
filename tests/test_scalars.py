"""Factors of scalars by quadrature, against scipy, Pyro's own densities, and the laws of coordinate ascent."""

import io
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import Adam
from torch.distributions import biject_to, constraints

from pyro_latent import CAVI, EM, AutoConjugate, RobbinsMonro
from pyro_latent.distributions.panels import NoTableError, line_of, tabulate
from pyro_latent.distributions.tabulated import Tabulated
from pyro_latent.errors import ModelError, NaturalDomainError, NotConjugateError
from pyro_latent.handlers import closed_form

LIKE = torch.empty(0, dtype=torch.float64)
DATA = torch.tensor([1.3, -0.4, 2.1, 0.7, -1.6, 0.2, 3.0, -0.9], dtype=torch.float64)
COUNTS = torch.tensor([0.0, 3.0, 1.0, 5.0, 2.0, 0.0, 7.0, 1.0], dtype=torch.float64)
POWERS = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(2, 8, 3)

pytestmark = pytest.mark.usefixtures("float64")


def fit(model, *args, guide=None, max_steps=500, **settings):
    guide = guide or AutoConjugate(model, **settings)
    return guide, CAVI(model, guide).run(*args, max_steps=max_steps, tol=1e-13)


def exact(model, site, low, high, shift=0.0):
    """The evidence and the moments of a model of one scalar, by scipy's adaptive quadrature of Pyro's own density."""

    def density(x):
        with pyro.validation_enabled(False):
            conditioned = poutine.condition(model, {site: torch.tensor(float(x))})
            return math.exp(float(poutine.trace(conditioned).get_trace().log_prob_sum()) - shift)

    settings = {"epsabs": 0, "epsrel": 1e-11, "limit": 400}
    total, first, second = (
        scipy.integrate.quad(lambda x, k=k: x**k * density(x), low, high, **settings)[0] for k in range(3)
    )
    mean = first / total
    return math.log(total) + shift, mean, second / total - mean**2


def normal(scale):
    return lambda s: dist.Normal(0.0, scale(s))


LIKELIHOODS = {
    "scale": (normal(lambda s: s), DATA),
    "log scale": (normal(torch.exp), DATA),
    "softplus": (normal(lambda s: torch.nn.functional.softplus(s) + 0.1), DATA),
    "clamped": (normal(lambda s: s.clamp(min=0.5)), DATA),
    "root": (normal(lambda s: (1 + s**2).sqrt()), DATA),
    "student": (lambda s: dist.StudentT(3.0, 0.0, s), DATA),
    "degrees of freedom": (lambda s: dist.StudentT(s, 0.0, 1.0), DATA),
    "location": (lambda s: dist.Laplace(s, 1.0), DATA),
    "gamma's shape": (lambda s: dist.Gamma(s, 2.0), DATA.abs()),
    "dispersion": (lambda s: dist.NegativeBinomial(s, probs=torch.tensor(0.3)), COUNTS),
    "poisson": (lambda s: dist.Poisson(torch.exp(s * torch.linspace(-1, 1, 8))), COUNTS),
    "logit": (lambda s: dist.Bernoulli(logits=s), (COUNTS > 1).double()),
    "probit": (lambda s: dist.Bernoulli(probs=0.5 * (1 + torch.erf(s / math.sqrt(2)))), (COUNTS > 1).double()),
    "log of a sum": (lambda s: dist.Normal(torch.logsumexp(s * POWERS, (0, 2)), 1.0), DATA),
    "softmax": (lambda s: dist.Categorical(torch.softmax(s * POWERS[0], -1)), COUNTS.clamp(max=2)),
    "mixture": (lambda s: dist.Normal(torch.stack([s, -2 * s, 0 * s]).logsumexp(0, keepdim=True), 1.0), DATA),
    "weak kink": (lambda s: dist.Normal(torch.relu(s - 0.3), 50.0), DATA),
    "where": (lambda s: dist.Normal(torch.where(s > 0.5, s, 0.5 * s), 1.0), DATA),
    "dirichlet": (
        lambda s: dist.Dirichlet(s * torch.ones(3)),
        torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7]], dtype=torch.float64),
    ),
}
POSITIVE = (1e-12, 60.0)
FIVE_TIMES = dist.transforms.AffineTransform(0.0, 5.0)
CASES = [
    ("uniform", lambda: dist.Uniform(0.0, 10.0), "scale", (1e-12, 10.0)),
    ("half cauchy", lambda: dist.HalfCauchy(1.0), "scale", POSITIVE),
    ("half normal", lambda: dist.HalfNormal(2.0), "scale", POSITIVE),
    ("lognormal", lambda: dist.LogNormal(0.0, 2.0), "scale", POSITIVE),
    ("exponential", lambda: dist.Exponential(0.5), "scale", POSITIVE),
    ("weibull", lambda: dist.Weibull(2.0, 1.5), "scale", POSITIVE),
    ("inverse gamma", lambda: dist.InverseGamma(2.0, 1.0), "scale", POSITIVE),
    ("pareto", lambda: dist.Pareto(0.5, 2.0), "scale", (0.5, 60.0)),
    ("transformed", lambda: dist.TransformedDistribution(dist.Beta(2.0, 2.0), FIVE_TIMES), "scale", (1e-12, 5.0)),
    ("improper", lambda: dist.ImproperUniform(constraints.positive, (), ()), "scale", (1e-12, 4000.0)),
    ("gamma", lambda: dist.Gamma(2.0, 1.0), "scale", POSITIVE),
    ("normal", lambda: dist.Normal(0.0, 1.0), "log scale", (-12, 12)),
    ("student", lambda: dist.StudentT(3.0, 0.0, 1.0), "log scale", (-30, 30)),
    ("normal", lambda: dist.Normal(0.0, 1.0), "softplus", (-12, 12)),
    ("uniform", lambda: dist.Uniform(0.0, 4.0), "clamped", (0.0, 4.0)),
    ("normal", lambda: dist.Normal(0.0, 1.0), "root", (-12, 12)),
    ("half cauchy", lambda: dist.HalfCauchy(1.0), "student", POSITIVE),
    ("gamma", lambda: dist.Gamma(2.0, 0.1), "degrees of freedom", (1e-9, 500.0)),
    ("normal", lambda: dist.Normal(0.0, 3.0), "location", (-20, 20)),
    ("exponential", lambda: dist.Exponential(1.0), "gamma's shape", POSITIVE),
    ("half normal", lambda: dist.HalfNormal(3.0), "dispersion", POSITIVE),
    ("normal", lambda: dist.Normal(0.0, 2.0), "poisson", (-12, 12)),
    ("normal", lambda: dist.Normal(0.0, 2.0), "logit", (-20, 20)),
    ("normal", lambda: dist.Normal(0.0, 2.0), "probit", (-7, 7)),
    ("normal", lambda: dist.Normal(0.0, 1.0), "log of a sum", (-8, 8)),
    ("normal", lambda: dist.Normal(0.0, 2.0), "softmax", (-15, 15)),
    ("normal", lambda: dist.Normal(0.0, 2.0), "mixture", (-15, 15)),
    ("normal", lambda: dist.Normal(0.0, 1.0), "weak kink", (-10, 10)),
    ("normal", lambda: dist.Normal(0.0, 2.0), "where", (-15, 15)),
    ("half cauchy", lambda: dist.HalfCauchy(1.0), "dirichlet", POSITIVE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("prior", "likelihood", "ends"), [c[1:] for c in CASES], ids=[f"{c[0]}, {c[2]}" for c in CASES]
)
def test_one_scalar_is_exact(prior, likelihood, ends):
    """With one latent, mean field is exact: the evidence, the mean and the variance are those of scipy."""
    of, data = LIKELIHOODS[likelihood]

    def model():
        s = pyro.sample("s", prior())
        with pyro.plate("data", len(data)):
            pyro.sample("x", of(s), obs=data)

    guide, result = fit(model)
    posterior = guide.posterior()["s"]
    shift = float(result.elbo[-1])
    evidence, mean, variance = exact(model, "s", ends[0], ends[1], shift)
    assert abs(shift - evidence) < 1e-8
    assert abs(float(posterior.mean) - mean) < 1e-8 * (1 + abs(mean))
    assert abs(float(posterior.variance) - variance) < 1e-7 * (1 + variance)


def regression(x=DATA, y=COUNTS):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def test_optimum_given_the_others():
    """At the end, each factor is the normalized exponential of the expected log joint, by draws of the other one."""
    guide, _ = fit(regression)
    slope, scale = (guide.posterior()[n] for n in ("slope", "scale"))
    grid = scale.icdf(torch.linspace(0.05, 0.95, 7))
    moments = slope.mean, slope.variance
    squares = (COUNTS - moments[0] * DATA).square().sum() + moments[1] * DATA.square().sum()
    log_joint = dist.HalfCauchy(1.0).log_prob(grid) - 8 * grid.log() - squares / (2 * grid**2)
    difference = scale.log_prob(grid) - log_joint
    assert float(difference.max() - difference.min()) < 1e-8


def test_elbo_is_that_of_draws():
    guide, result = fit(regression)
    torch.manual_seed(0)
    svi = SVI(regression, guide, Adam({"lr": 0.0}), Trace_ELBO(num_particles=20_000, vectorize_particles=True))
    assert abs(-svi.evaluate_loss() - float(result.elbo[-1])) < 0.03
    assert bool((result.elbo.diff() >= -1e-10).all())


OTHERS = (lambda: dist.HalfNormal(1.0), lambda: dist.LogNormal(0.3, 0.2), lambda: dist.Exponential(1.0))


@pytest.mark.parametrize("other", OTHERS)
def test_no_other_density_is_better(other):
    """The law of perturbation: a step from the optimum towards any other density lowers the ELBO."""
    _, result = fit(regression)
    guide, _ = fit(regression)
    best = guide.posterior()["scale"]
    for share in (0.05, 0.3):
        grid = torch.linspace(0.01, 30, 4000)
        mixed = (1 - share) * best.log_prob(grid) + share * other().log_prob(grid)
        weight = (mixed - mixed.logsumexp(0)).exp()
        q = weight / (grid[1] - grid[0])
        slope = guide.posterior()["slope"]
        squares = (COUNTS - slope.mean * DATA).square().sum() + slope.variance * DATA.square().sum()
        log_joint = dist.HalfCauchy(1.0).log_prob(grid) - 8 * (grid.log() + 0.5 * math.log(2 * math.pi))
        log_joint = log_joint - squares / (2 * grid**2)
        kl = torch.distributions.kl_divergence(slope, dist.Normal(0.0, 2.0))
        elbo = float((weight * (log_joint - q.clamp(min=1e-300).log())).sum() - kl)
        assert elbo < float(result.elbo[-1]) + 1e-3 * share


def groups(x):
    """Scales of groups, read by an index; their own data in a plate."""
    with pyro.plate("groups", 3):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale[torch.arange(len(x)) % 3]), obs=x)


def test_elements_of_a_plate_are_apart():
    guide, result = fit(groups, DATA)
    posterior, total = guide.posterior()["scale"], 0.0
    for k in range(3):
        own = DATA[k::3]

        def alone(own=own):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", len(own)):
                pyro.sample("x", dist.Normal(0.0, scale), obs=own)

        each, own_result = fit(alone)
        total += float(own_result.elbo[-1])
        assert torch.allclose(posterior.mean[k], each.posterior()["scale"].mean, rtol=1e-10)
    assert abs(total - float(result.elbo[-1])) < 1e-10


def test_functions_with_data_read_by_an_index():
    """exp(b[g] x): a function for each datum, of the element that it reads."""
    x, g = torch.linspace(-1, 1, 8), torch.arange(8) % 2

    def model(rows=slice(None), count=2):
        with pyro.plate("groups", count):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        index = g if count == 2 else torch.zeros(4, dtype=torch.long)
        with pyro.plate("data", len(COUNTS[rows])):
            pyro.sample("y", dist.Poisson(torch.exp(b[index] * x[rows])), obs=COUNTS[rows])

    guide, result = fit(model)
    parts = [fit(model, slice(k, None, 2), 1) for k in range(2)]
    assert abs(float(result.elbo[-1]) - sum(float(r.elbo[-1]) for _, r in parts)) < 1e-10
    means = torch.cat([part.posterior()["b"].mean for part, _ in parts])
    assert torch.allclose(guide.posterior()["b"].mean, means, rtol=1e-10)


def test_chosen_by_a_discrete_latent():
    """A mixture with one scale a component, by an exponential before or after the choice."""

    def model(first):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            log_scale = pyro.sample("log_scale", dist.Normal(torch.tensor([-1.0, 1.0]), 0.5))
        with pyro.plate("data", len(DATA)):
            z = pyro.sample("z", dist.Categorical(weights))
            scale = torch.exp(log_scale)[z] if first else torch.exp(log_scale[z])
            pyro.sample("x", dist.Normal(0.0, scale), obs=DATA)

    (one, a), (two, b) = fit(model, True), fit(model, False)
    assert abs(float(a.elbo[-1] - b.elbo[-1])) < 1e-9
    assert torch.allclose(one.posterior()["log_scale"].mean, two.posterior()["log_scale"].mean, atol=1e-6)


def test_a_choice_of_each_datum_within_a_function_of_a_scalar():
    """exp(s c[z]) is the function that z chooses, however it is written, though all data read one scalar."""
    sign = torch.tensor([1.0, -1.0])

    def model(scale):
        s = pyro.sample("s", dist.Normal(0.3, 0.5))
        with pyro.plate("data", len(DATA)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(0.0, scale(s, z)), obs=DATA)

    spellings = (
        lambda s, z: torch.stack([s.exp(), (-s).exp()])[z],
        lambda s, z: torch.exp(s * sign[z]),
        lambda s, z: torch.exp(s) ** (1 - 2 * z),
    )
    guides = [fit(model, scale) for scale in spellings]
    for guide, result in guides[1:]:
        assert abs(float(result.elbo[-1] - guides[0][1].elbo[-1])) < 1e-9
        assert torch.allclose(guide.posterior()["s"].mean, guides[0][0].posterior()["s"].mean, atol=1e-7)


def test_a_softmax_of_what_a_choice_of_each_datum_reads():
    """Two logits of which one is 0 are a Bernoulli's, where each datum chooses the other."""
    labels = torch.tensor([0, 1, 1, 0, 1])

    def model(is_softmax):
        with pyro.plate("levels", 2):
            v = pyro.sample("v", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
        with pyro.plate("data", 5):
            f = v[pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))]
            if is_softmax:
                pyro.sample("y", dist.Categorical(logits=torch.stack([torch.zeros(5), f], -1)), obs=labels)
            else:
                pyro.sample("y", dist.Bernoulli(logits=f), obs=labels.double())

    (one, first), (two, second) = (fit(model, is_softmax) for is_softmax in (True, False))
    assert float(first.elbo[-1]) == pytest.approx(float(second.elbo[-1]), abs=1e-8)
    torch.testing.assert_close(one.posterior()["v"].mean, two.posterior()["v"].mean, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_products_of_several_scalars():
    """exp(a + b[g]) is a product of a function of each."""
    g = torch.arange(8) % 2

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("groups", 2):
            b = pyro.sample("b", dist.Normal(0.0, scale))
        with pyro.plate("data", 8):
            pyro.sample("y", dist.Poisson(torch.exp(a + b[..., g])), obs=COUNTS)

    guide, result = fit(model)
    assert bool((result.elbo.diff() >= -1e-9).all())
    torch.manual_seed(0)
    svi = SVI(
        model, guide, Adam({"lr": 0.0}), Trace_ELBO(num_particles=5_000, vectorize_particles=True, max_plate_nesting=1)
    )
    assert abs(-svi.evaluate_loss() - float(result.elbo[-1])) < 0.1


def test_conjugate_sites_keep_their_closed_form():
    def model():
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(mu, torch.exp(-0.5 * tau.log())), obs=DATA)

    guide, _ = fit(model)
    posteriors = guide.posterior()
    assert isinstance(posteriors["tau"], dist.Gamma)
    assert isinstance(posteriors["mu"], dist.Normal)


def test_explain_says_what_and_why():
    text = AutoConjugate(regression).explain()
    assert "by quadrature (HalfCauchy has no family here), by the densities of scale, y" in text

    def model():
        log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, torch.exp(log_scale)), obs=torch.tensor(1.0))

    assert "by quadrature (E[exp(log_scale)^-2] in x has no closed form in a Normal)" in AutoConjugate(model).explain()


# The guide.


def test_posterior_in_pyro():
    guide, _ = fit(regression)
    trace = poutine.trace(guide).get_trace()
    expected = guide.posterior()["scale"].log_prob(trace.nodes["scale"]["value"])
    assert torch.allclose(trace.nodes["scale"]["fn"].log_prob(trace.nodes["scale"]["value"]), expected)
    torch.manual_seed(0)
    draws = Predictive(regression, guide=guide, num_samples=500)()["scale"]
    assert abs(float(draws.mean()) - float(guide.posterior()["scale"].mean)) < 0.2


def test_state_is_saved_and_read_without_functions():
    guide, _ = fit(regression)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    other = AutoConjugate(regression)
    other.load_state_dict(torch.load(file, weights_only=True))
    other()
    assert torch.equal(other.posterior()["scale"].mean, guide.posterior()["scale"].mean)


def test_new_data_leave_the_posterior():
    """Functions of the data at hand, as of a dispersion, do not change what is known of it."""

    def model(y):
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.NegativeBinomial(r, probs=torch.tensor(0.3)), obs=y)

    guide, _ = fit(model, COUNTS)
    before = guide.posterior()["r"].mean
    guide(COUNTS[:3])
    assert torch.equal(guide.posterior()["r"].mean, before)
    _, again = fit(model, COUNTS[:3], guide=guide)
    _, fresh = fit(model, COUNTS[:3])
    assert abs(float(again.elbo[-1] - fresh.elbo[-1])) < 1e-10


def subsampled(x, size=None):
    log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x), subsample_size=size) as i:
        pyro.sample("x", dist.Normal(mu, torch.exp(log_scale)), obs=x[i])


def test_minibatches():
    guide = AutoConjugate(subsampled)
    cavi = CAVI(subsampled, guide, step_size=RobbinsMonro())
    pyro.set_rng_seed(0)
    data = torch.randn(200)
    for _ in range(150):
        cavi.step(data, 40)
    full, _ = fit(subsampled, data)
    assert abs(float(guide.posterior()["log_scale"].mean - full.posterior()["log_scale"].mean)) < 0.05
    ratio = guide.posterior()["log_scale"].variance / full.posterior()["log_scale"].variance
    assert 0.8 < float(ratio) < 1.25


def test_a_prior_that_says_real_and_ends_starts_inside():
    """The support of a shifted Beta is the line to Pyro; about its ends the logarithm of a scale is NaN."""

    def model(x, size):
        scale = pyro.sample("scale", dist.TransformedDistribution(dist.Beta(2.0, 2.0), FIVE_TIMES))
        with pyro.plate("data", size, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    for seed in range(3):
        pyro.set_rng_seed(seed)
        cavi = CAVI(model, AutoConjugate(model), step_size=1.0)
        assert math.isfinite(cavi.step(DATA, 80))
    full, _ = fit(model, DATA.repeat(10), 80)
    difference = cavi.guide.posterior()["scale"].mean - full.posterior()["scale"].mean
    assert abs(float(difference)) < 1e-6


def test_restarts_annealing_and_float32_agree():
    _, reference = fit(subsampled, DATA)
    several, best = fit(subsampled, DATA, restarts=3)
    assert abs(float(best.elbo[-1].max() - reference.elbo[-1])) < 1e-9
    assert several.posterior()["log_scale"].batch_shape == ()
    annealed = CAVI(subsampled, AutoConjugate(subsampled), annealing=4).run(DATA, max_steps=200, tol=1e-12)
    assert abs(float(annealed.elbo[-1] - reference.elbo[-1])) < 1e-9
    torch.set_default_dtype(torch.float32)
    single, small = fit(subsampled, DATA.float())
    assert single.posterior()["log_scale"].mean.dtype == torch.float32
    assert abs(float(small.elbo[-1]) - float(reference.elbo[-1])) < 1e-4


def test_location_far_from_zero_keeps_its_digits():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(1e3, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Laplace(mu, 1.0), obs=x)

    guide, result = fit(model, DATA + 1e3)

    def near(x=DATA):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Laplace(mu, 1.0), obs=x)

    other, expected = fit(near)
    assert abs(float(result.elbo[-1] - expected.elbo[-1])) < 1e-7
    assert abs(float(guide.posterior()["mu"].mean - 1e3 - other.posterior()["mu"].mean)) < 1e-6


def test_em_with_a_scalar_latent():
    def model(x):
        mu = pyro.param("mu", torch.tensor(5.0))
        log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, torch.exp(log_scale)), obs=x)

    pyro.clear_param_store()
    result = EM(model).run(DATA, max_steps=100)
    assert bool((result.elbo.diff() >= -1e-9).all())
    assert abs(float(pyro.param("mu")) - float(DATA.mean())) < 1e-5


def test_start_and_written_update_of_any_density():
    guide, result = fit(regression, init={"scale": dist.LogNormal(0.5, 0.1)})
    _, reference = fit(regression)
    assert abs(float(result.elbo[-1] - reference.elbo[-1])) < 1e-9
    written = closed_form(regression, {"scale": lambda q: dist.LogNormal(1.0, 0.2)})
    guide, _ = fit(written, max_steps=3)
    assert abs(float(guide.posterior()["scale"].mean) - math.exp(1.02)) < 1e-8
    with pytest.raises(ModelError, match="distribution of shape"):
        fit(regression, init={"scale": dist.LogNormal(torch.zeros(3), 1.0)})


SEVERAL = {  # a function, what is seen of it and its sd, and the places about which it is that
    "absolute value": (torch.abs, 12.78, 0.01, (-12.78, 12.78)),
    "narrow absolute value": (torch.abs, 3.0, 2e-3, (-3.0, 3.0)),
    "square": (torch.square, 9.0, 0.05, (-3.0, 3.0)),
    "three roots": (lambda s: s**3 - 4 * s, 0.0, 2e-2, (-2.0, 0.0, 2.0)),
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("steps", [1, 5])
def test_modes_far_apart_are_all_seen(name, steps):
    """Each narrow, at places that no mesh has: by the slopes of the density on both sides."""
    function, value, scale, places = SEVERAL[name]
    seen = torch.tensor(value, dtype=torch.float64)

    def model():
        s = pyro.sample("s", dist.Normal(0.5, 4.0))
        pyro.sample("x", dist.Normal(function(s), scale), obs=seen)

    def density(s):
        s = torch.tensor(s, dtype=torch.float64)
        return math.exp(float(dist.Normal(0.5, 4.0).log_prob(s) + dist.Normal(function(s), scale).log_prob(seen)))

    guide, result = fit(model, max_steps=steps)
    ends = [(p - 12 * scale, p + 12 * scale) for p in places]
    masses = [scipy.integrate.quad(density, *both, epsabs=0, epsrel=1e-11)[0] for both in ends]
    assert float(result.elbo[-1]) == pytest.approx(math.log(sum(masses)), abs=1e-8)
    between = [torch.tensor((a + b) / 2) for a, b in itertools.pairwise(places)]
    shares = np.cumsum(masses)[:-1] / sum(masses)
    assert np.allclose([float(guide.posterior()["s"].cdf(p)) for p in between], shares, atol=1e-8)


MIXED = {  # where a narrow component is beside a standard normal one, and its standard deviation
    "far": (20.0, 0.3),
    "on the slope": (5.0, 0.003),
    "inside": (0.4, 1e-3),
}


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("name", MIXED)
def test_a_prior_that_is_a_mixture_of_a_wide_and_a_narrow_component(name, count):
    """Which hides the narrow one from a mesh: against the closed form of each component."""
    locs, scales = (torch.tensor([wide, narrow]) for wide, narrow in zip((0.0, 1.0), MIXED[name], strict=True))
    seen, noise = torch.linspace(-3.0, 3.0, count), 20.0

    def model():
        with pyro.plate("sites", count):
            components = dist.Normal(locs, scales)
            s = pyro.sample("s", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3])), components))
            pyro.sample("x", dist.Normal(s, noise), obs=seen)

    guide, result = fit(model)
    weights = torch.tensor([0.7, 0.3]).log() + dist.Normal(locs, (scales**2 + noise**2).sqrt()).log_prob(seen[:, None])
    assert float(result.elbo[-1]) == pytest.approx(float(weights.logsumexp(-1).sum()), abs=1e-9)
    precisions = scales**-2 + noise**-2
    means = (locs * scales**-2 + seen[:, None] * noise**-2) / precisions
    assert torch.allclose(guide.posterior()["s"].mean, (weights.softmax(-1) * means).sum(-1), atol=1e-9)


def test_rounding_of_lgamma_far_out_is_no_mode():
    """A sum of 3,000 differences of lgamma at 1e15 is off by thousands: more than the log density at the mode."""
    data = dist.Gamma(2.5, 1.5).sample((3000,))

    def model():
        df = pyro.sample("df", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.StudentT(df, 1.0, 0.7), obs=data)

    _, result = fit(model)
    places = torch.linspace(-3.0, 6.0, 9001)
    log_joint = dist.Normal(0.0, 1.0).log_prob(places) + dist.StudentT(places.exp()[:, None], 1.0, 0.7).log_prob(
        data
    ).sum(1)
    assert float(result.elbo[-1]) == pytest.approx(float(log_joint.logsumexp(0)) + math.log(1e-3), abs=1e-8)


# What is refused.


def test_functions_of_two_scalars_are_refused():
    def model():
        a = pyro.sample("a", dist.HalfCauchy(1.0))
        b = pyro.sample("b", dist.HalfCauchy(1.0))
        pyro.sample("x", dist.Normal(0.0, a + b), obs=torch.tensor(1.0))

    with pytest.raises(NotConjugateError, match="'a', 'b'"):
        fit(model)


def test_elements_tied_by_a_product_are_refused():
    design = torch.eye(3) + 0.1

    def model():
        with pyro.plate("features", 3):
            w = pyro.sample("w", dist.Laplace(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(design @ w, 1.0), obs=DATA[:3])

    with pytest.raises(NotConjugateError, match=r"independent within its plates.*elements as a site of its own"):
        fit(model)

    def apart():
        w = torch.stack([pyro.sample(f"w_{i}", dist.Laplace(0.0, 1.0)) for i in range(3)])
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(design @ w, 1.0), obs=DATA[:3])

    assert bool(fit(apart)[1].converged)


@pytest.mark.parametrize("datum", [0.0, 1.0])
def test_improper_posterior_is_refused(datum):
    """With a datum of 1 the density of log s is flat from there to where exp has no float64 any more."""

    def model():
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("x", dist.Normal(0.0, s), obs=torch.tensor(datum))

    with pytest.raises(NaturalDomainError, match="'s'"):
        fit(model)


@pytest.mark.parametrize("concentration", [0.3, 0.5])
def test_density_closer_to_an_end_than_float64_is_refused(concentration):
    def model():
        p = pyro.sample("p", dist.Beta(2.0, concentration))
        pyro.sample("x", dist.Normal(torch.sin(p), 10.0), obs=torch.tensor(0.0))

    with pytest.raises(NaturalDomainError, match="density of 'p'"):
        fit(model)


# Tables.

FROZEN = {
    "normal": (scipy.stats.norm(3, 2), lambda: dist.Normal(3.0, 2.0)),
    "narrow": (scipy.stats.norm(100, 0.1), lambda: dist.Normal(100.0, 0.1)),
    "lognormal": (scipy.stats.lognorm(2), lambda: dist.LogNormal(0.0, 2.0)),
    "gamma": (scipy.stats.gamma(50, scale=1 / 3), lambda: dist.Gamma(50.0, 3.0)),
    "small gamma": (scipy.stats.gamma(0.1, scale=1 / 3), lambda: dist.Gamma(0.1, 3.0)),
    "uniform": (scipy.stats.uniform(2, 10), lambda: dist.Uniform(2.0, 12.0)),
    "beta": (scipy.stats.beta(5, 3), lambda: dist.Beta(5.0, 3.0)),
    "laplace": (scipy.stats.laplace(1), lambda: dist.Laplace(1.0, 1.0)),
    "gumbel": (scipy.stats.gumbel_r(), lambda: dist.Gumbel(0.0, 1.0)),
}


def table_of(distribution):
    transform, limit = line_of(distribution.support)

    def log_density(places):
        values = transform(places)
        return distribution.log_prob(values) + transform.log_abs_det_jacobian(places, values)

    found = tabulate(log_density, distribution.batch_shape, limit, LIKE)
    return Tabulated(*found, distribution.support)


@pytest.mark.parametrize("name", FROZEN)
def test_table_is_the_distribution(name):
    frozen, distribution = FROZEN[name]
    with pyro.validation_enabled(False):
        table = table_of(distribution())
    values = torch.tensor(frozen.ppf([1e-4, 0.1, 0.3, 0.5, 0.8, 0.9999]))
    assert np.allclose(table.log_prob(values), frozen.logpdf(values), atol=1e-6)
    assert np.allclose(table.cdf(values), frozen.cdf(values), atol=1e-9)
    assert np.allclose(table.icdf(torch.tensor(frozen.cdf(values))), values, rtol=1e-4)
    for own, expected in (
        (table.mean, frozen.mean()),
        (table.variance, frozen.var()),
        (table.entropy(), frozen.entropy()),
    ):
        assert abs(float(own) - float(expected)) < 1e-9 * (1 + abs(float(expected)))


def test_quantiles_of_a_table_are_roots_of_its_cdf_each_alone_and_all_together():
    """Newton's steps stay at a root that they reach exactly."""
    table = table_of(dist.Gamma(torch.tensor(7.0).double(), torch.tensor(4.0).double()))
    levels = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    together = table.icdf(levels)
    alone = torch.stack([table.icdf(level) for level in levels[::4]])
    assert torch.allclose(table.cdf(together), levels, atol=1e-10)
    assert torch.allclose(alone, together[::4], rtol=1e-10)


def test_draws_of_a_table():
    torch.manual_seed(0)
    table = table_of(dist.Gamma(torch.tensor([2.0, 30.0]), 3.0))
    draws = table.sample((20_000,))
    for k, shape in enumerate((2.0, 30.0)):
        assert (
            scipy.stats.kstest(draws[:, k].numpy(), scipy.stats.gamma(shape, scale=1 / 3).cdf, method="asymp").pvalue
            > 1e-3
        )
    assert table.expand((4, 2)).log_prob(draws[0]).shape == (4, 2)


def test_moments_that_the_table_does_not_tell_are_nan():
    table = table_of(dist.HalfCauchy(1.0))
    assert bool(table.mean.isnan())
    assert abs(float(table.icdf(torch.tensor(0.5))) - 1.0) < 1e-6


@pytest.mark.parametrize("log_density", [torch.zeros_like, lambda u: u, lambda u: torch.full_like(u, -torch.inf)])
def test_what_has_no_integral_is_refused(log_density):
    with pytest.raises(NoTableError):
        tabulate(log_density, (), 1e30, LIKE)


def test_panels_resolve_kinks_jumps_and_plateaus():
    transform = biject_to(constraints.positive)
    for log_density, expected in (
        (lambda u: -(u - 0.123).abs(), math.log(2)),
        (lambda u: torch.where(transform(u) > 1.0, -transform(u), -100.0) + u, -1.0),
        (lambda u: torch.logaddexp(-((u - 3) ** 2) * 50, -((u + 3) ** 2) * 50), math.log(2 * math.sqrt(math.pi / 50))),
    ):
        left, right, values = tabulate(log_density, (), 700.0, LIKE)
        table = Tabulated(left, right, values)
        level = log_density(table.places) - values
        inside = values > -20
        assert abs(float(level[inside].mean()) - expected) < 1e-9


@pytest.mark.parametrize("support", [constraints.real, constraints.real_vector], ids=["real", "real_vector"])
def test_flat_prior_of_a_vector_is_conjugate(support):
    """Its posterior is the likelihood, normalized: least squares, with the inverse of X'X for a covariance."""
    design = torch.stack([torch.ones(8), torch.linspace(-1.0, 1.0, 8), torch.linspace(-1.0, 1.0, 8) ** 2], -1)
    target = torch.linspace(0.0, 2.0, 8).cos()

    def model():
        w = pyro.sample("w", dist.ImproperUniform(support, (), (3,)))
        with pyro.plate("data", 8):
            pyro.sample("y", dist.Normal(design @ w, 0.5), obs=target)

    q = fit(model)[0].posterior()["w"]
    torch.testing.assert_close(q.mean, torch.linalg.lstsq(design, target[:, None]).solution[:, 0])
    torch.testing.assert_close(q.covariance_matrix, 0.25 * torch.linalg.inv(design.T @ design))


def test_density_that_is_zero_on_a_side_is_cut_there():
    """log(1 - p) is infinite where p = 1, and the data multiply it by 0: the evidence is that of a truncated normal."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("above", dist.Bernoulli((x > 0.5).double()), obs=torch.tensor(1.0))

    guide, result = fit(model)
    assert float(result.elbo[-1]) == pytest.approx(math.log(1 - float(dist.Normal(0.0, 1.0).cdf(torch.tensor(0.5)))))
    assert float(guide.posterior()["x"].icdf(torch.tensor(1e-6))) >= 0.5


def test_function_that_is_nothing_where_a_start_lies_is_settled():
    """Steep logistic functions are 1e-60 about the start, and their tails a share of that."""
    length = torch.arange(1.0, 13.0)

    def model():
        level = pyro.sample("level", dist.Normal(7.0, 2.0))
        with pyro.plate("trials", 12):
            pyro.sample("y", dist.Bernoulli(logits=10 * (level - length)), obs=(length < 7).double())

    _, result = fit(model)
    log_z, *_ = exact(model, "level", -10.0, 30.0)
    assert float(result.elbo[-1]) == pytest.approx(log_z, abs=1e-6)
