"""Flows: determinants against autograd, densities against quadrature, and posteriors beside the Gaussian ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from sklearn.datasets import load_digits, make_moons
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pyro_latent.errors import DataError, ModelError
from pyro_latent.infer.baselines import importance_sampling
from pyro_latent.infer.flows import ElementwiseAffine, FlowDensity, FlowGuide, FlowPosterior, make_flow, push
from pyro_latent.models import normal_gamma, two_modes

KINDS = (
    "planar",
    "radial",
    "affine_coupling",
    "affine_autoregressive",
    "spline",
    "spline_coupling",
    "spline_autoregressive",
)
CONDITIONAL = ("planar", "radial", "affine_coupling", "affine_autoregressive", "spline_autoregressive")
INVERTIBLE = ("affine_coupling", "spline", "spline_coupling", "spline_autoregressive")


@pytest.fixture(autouse=True)
def fresh() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def log_abs_det(f: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """log |det J_f| at each point, by autograd."""
    jacobians = [torch.autograd.functional.jacobian(lambda z: f(z[None])[0], z) for z in points]
    return torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])


# ---------------------------------------------------------------------------------------------------------------- flows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 3])
def test_the_determinants_of_the_layers_multiply_to_that_of_the_flow(kind: str, dim: int) -> None:
    flow, z = make_flow(kind, dim, length=3, hidden=(8,)).double(), torch.randn(6, dim, dtype=torch.float64)
    x, terms = push(flow, z)
    torch.testing.assert_close(terms.sum(-1), log_abs_det(flow, z), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(terms.sum(-1), flow.log_abs_det_jacobian(z, flow(z)))
    torch.testing.assert_close(x, flow(z))


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_a_conditional_flow_has_the_determinant_of_its_context(kind: str) -> None:
    flow = make_flow(kind, 3, length=2, hidden=(8,), context_dim=2).double()
    contexts, points = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for context, point in zip(contexts, points, strict=True):
        conditioned, z = flow.condition(context[None]), point[None]
        _, terms = push(conditioned, z)
        torch.testing.assert_close(terms.sum(-1), log_abs_det(conditioned, z), rtol=1e-8, atol=1e-8)
    both = [flow.condition(c[None])(points[:1]) for c in contexts]
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("kind", INVERTIBLE)
def test_the_inverse_undoes_the_flow(kind: str) -> None:
    flow, z = make_flow(kind, 3, length=3).double(), torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(flow.inv(flow(z).clone()), z, rtol=1e-7, atol=1e-7)


def test_the_affine_layer_is_the_affine_map() -> None:
    layer = ElementwiseAffine(torch.tensor([1.0, -2.0]).double(), 0.5)
    z = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(layer(z), z * 0.5 + torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(layer.inv(layer(z).clone()), z)
    torch.testing.assert_close(layer.log_abs_det_jacobian(z, layer(z)), torch.full((4,), 2 * math.log(0.5)).double())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("cubic", {}, r"Expected kind to be one of \['affine_autoregressive', .*got 'cubic'"),
        ("planar", {"dim": 0}, "Expected dim to be an integer of at least 1; got 0"),
        ("planar", {"length": 1.5}, "Expected length to be an integer of at least 1; got 1.5"),
        ("spline_coupling", {"dim": 1}, "Expected dim of at least 2 for 'spline_coupling'.*Use 'spline'"),
        ("spline", {"context_dim": 2}, "Expected kind to be one of .*got 'spline'"),
    ],
)
def test_a_flow_that_cannot_be_made_is_named(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_flow(kind, **{"dim": 2, **options})


# -------------------------------------------------------------------------------------------------------------- density


def moons(count: int, seed: int) -> Tensor:
    """Two interleaved half circles, in other units than the base's."""
    points, _ = make_moons(count, noise=0.08, random_state=seed)
    return torch.from_numpy(points) * torch.tensor([10.0, 0.1]) + torch.tensor([500.0, -3.0])


@pytest.mark.parametrize("kind", ["affine_coupling", "spline_coupling", "planar", "spline_autoregressive"])
def test_a_density_integrates_to_one(kind: str) -> None:
    density = FlowDensity(2, kind, length=2, hidden=(8,)).double()
    density.shift, density.spread = torch.tensor([5.0, -1.0]).double(), torch.tensor([2.0, 0.3]).double()
    half = 6.5
    axis = torch.linspace(-half, half, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis) * density.spread + density.shift
    cell = (2 * half / 400) ** 2 * density.spread.prod()
    with torch.no_grad():
        assert (density.log_prob(points).exp().sum() * cell).item() == pytest.approx(1, abs=2e-3)


def test_maximum_likelihood_on_two_moons_beats_every_small_mixture_of_gaussians() -> None:
    train, held_out, test = moons(1500, 0), moons(500, 1), moons(1000, 2)
    density = FlowDensity(2, "affine_coupling", length=6, hidden=(32,))
    fit = density.fit(train, held_out=held_out, max_steps=500, batch_size=256, learning_rate=1e-2)
    flow = density.log_prob(test).detach()
    assert fit.held_out.max() == pytest.approx(density.log_prob(held_out).mean().item(), rel=1e-9)
    for components in (1, 2, 3):
        mixture = torch.from_numpy(GaussianMixture(components, random_state=0).fit(train.numpy()).score_samples(test))
        gap = flow - mixture
        assert gap.mean() > 4 * gap.std() / math.sqrt(len(gap))


def test_draws_of_a_fitted_density_have_its_moments() -> None:
    density = FlowDensity(2, "affine_coupling", length=2, hidden=(8,))
    data = moons(400, 0)
    density.fit(data, max_steps=60)
    draws = density.sample(4000)
    weights = (density.log_prob(draws) - density.log_prob(draws)).exp()
    assert draws.dtype == torch.float64 and bool((weights == 1).all())
    error = draws.std(0) / math.sqrt(4000)
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis) * density.spread + density.shift
    with torch.no_grad():
        probability = density.log_prob(points).softmax(0)
    assert bool(((probability @ points - draws.mean(0)).abs() < 4 * error + 1e-3 * density.spread).all())


def test_the_pyro_model_of_a_density_has_its_likelihood() -> None:
    data = moons(30, 0)
    density = FlowDensity(2, "affine_coupling").double()
    loss = Trace_ELBO().loss(density, lambda data: None, data)
    assert -loss == pytest.approx(density.log_prob(data).sum().item(), rel=1e-10)


def test_a_density_that_diverges_keeps_its_last_parameters() -> None:
    density = FlowDensity(2, "affine_coupling")
    with pytest.raises(ModelError, match=r"Expected a finite likelihood; got nan by step .*\. Lower"):
        density.fit(moons(100, 0), learning_rate=math.inf, max_steps=30, check_every=5)
    assert bool(density.log_prob(moons(100, 0)).isfinite().all())


def test_data_that_have_no_density_are_named() -> None:
    density = FlowDensity(2, "planar")
    with pytest.raises(
        DataError, match=r"Expected a floating tensor of shape \[\.\.\., 2\]; got torch.float32 \[5, 3\]"
    ):
        density.fit(torch.randn(5, 3))
    with pytest.raises(DataError, match="Expected finite data"):
        density.fit(torch.full((5, 2), math.nan))
    with pytest.raises(DataError, match=r"Expected points of shape \[N, 2\]; got shape \[2\]"):
        density.fit(torch.randn(2))
    for name in ("max_steps", "batch_size", "check_every"):
        options: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=f"Expected {name} of at least 1; got 0"):
            density.fit(torch.randn(5, 2), **options)
    with pytest.raises(DataError, match=r"Expected columns that vary; got column \[1\] constant"):
        density.fit(torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
    with pytest.raises(
        ValueError, match="Expected a flow that can be inverted, to sample; got one that has no inverse"
    ):
        density.sample(3)


# --------------------------------------------------------------------------------------------------------------- guides


def fitted(model: Callable[..., Any], guide: Any, x: Tensor, steps: int) -> Any:
    """The guide after SVI with sixteen particles a step, its rate falling to a tenth."""
    adam = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, adam, Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(steps):
        svi.step(x)
    return guide


@pytest.mark.parametrize(
    ("model", "evidence", "least"),
    [(two_modes.model, two_modes.log_evidence, 0.3), (two_modes.banana_model, two_modes.banana_log_evidence, 0.8)],
    ids=["two modes", "banana"],
)
def test_a_flow_beats_mean_field_where_the_posterior_is_no_gaussian(model: Any, evidence: Any, least: float) -> None:
    x = torch.tensor([4.0], dtype=torch.float64)
    mean_field = fitted(model, AutoNormal(model), x, 300)
    flow = fitted(model, FlowGuide(model, "affine_coupling", hidden=(16,)), x, 300)
    found = [importance_sampling(model, guide, x, num_samples=20_000) for guide in (mean_field, flow)]
    error = math.sqrt(sum(f.log_weights.var().item() / f.num_samples for f in found))
    assert found[1].elbo - found[0].elbo > max(least, 4 * error)
    assert found[1].elbo < evidence(x).item() + 4 * error


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_flow_guide_is_that_of_its_draws(kind: str) -> None:
    """Importance sampling with any q, also untrained and on constrained sites, finds the exact evidence."""
    x = torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)
    start = {"precision": x.new_tensor(0.8), "mean": x.new_tensor(0.8)}
    guide = FlowGuide(normal_gamma.model, kind, length=2, init_loc_fn=lambda s: start[s["name"]], init_scale=0.9)
    found = importance_sampling(normal_gamma.model, guide, x, num_samples=20_000)
    assert abs(found.log_evidence - normal_gamma.log_evidence(x).item()) < 4 * found.standard_error < 0.4
    assert all(p.dtype == torch.float64 for p in guide.parameters())


def test_quantiles_of_a_flow_guide_are_those_of_its_draws() -> None:
    x = torch.tensor([1.3, -0.2, 2.5], dtype=torch.float64)
    guide = FlowGuide(normal_gamma.model, "affine_coupling")
    levels = guide.quantiles([0.1, 0.5, 0.9], x, num_samples=20_000)
    draws = Predictive(normal_gamma.model, guide=guide, num_samples=20_000, parallel=True, return_sites=["precision"])(
        x
    )
    for level, found in zip((0.1, 0.5, 0.9), levels["precision"], strict=True):
        share = (draws["precision"] < found).double().mean().item()
        assert abs(share - level) < 4 * math.sqrt(2 * level * (1 - level) / 20_000)
    assert guide.median(x)["mean"].shape == ()


def test_a_flow_guide_of_one_latent_asks_for_an_elementwise_flow() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor(0.3)
    with pytest.raises(ValueError, match="Expected dim of at least 2 for 'affine_coupling'"):
        FlowGuide(model)(x)
    pyro.clear_param_store()
    found = importance_sampling(model, FlowGuide(model, "spline", init_scale=1.0), x, num_samples=20_000)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).item()
    assert abs(found.log_evidence - exact) < 4 * found.standard_error
    with pytest.raises(ValueError, match="Expected flow to be one of"):
        FlowGuide(model, "cubic")


# ----------------------------------------------------------------------------------------------------------- posteriors


def test_a_posterior_without_layers_is_its_gaussian() -> None:
    loc, scale = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.1
    flow = torch.distributions.ComposeTransform([])
    value = torch.randn(5, 3, dtype=torch.float64)
    expected = dist.Normal(loc, scale).log_prob(value).sum(-1)
    torch.testing.assert_close(FlowPosterior(loc, scale, flow).log_prob(value), expected)


@pytest.mark.parametrize("kind", ["planar", "affine_coupling", "spline_autoregressive"])
@pytest.mark.parametrize("context_dim", [None, 2])
def test_a_posterior_has_the_density_of_its_base_over_the_determinant(kind: str, context_dim: int | None) -> None:
    loc, scale = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.1
    context = None if context_dim is None else torch.randn(4, 2, dtype=torch.float64)
    q = FlowPosterior(loc, scale, make_flow(kind, 3, length=2, context_dim=context_dim).double(), context)
    torch.manual_seed(5)
    log_prob = q.log_prob(q.rsample())  # at once: a flow without an inverse knows its last draw only
    torch.manual_seed(5)
    z = dist.Normal(loc, scale).rsample()
    for n in range(4):
        part = make_like(q, n, context)
        expected = dist.Normal(loc[n], scale[n]).log_prob(z[n]).sum() - log_abs_det(part, z[n : n + 1])[0]
        assert log_prob[n].item() == pytest.approx(expected.item(), abs=1e-6)
    assert q.batch_shape == (4,) and q.event_shape == (3,)


def make_like(q: FlowPosterior, n: int, context: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The flow at the n-th context, as a function of one row."""
    return lambda row: q.flow(row.expand(4, -1))[n : n + 1] if context is not None else q.flow(row)


def test_a_posterior_expands_over_particles() -> None:
    loc, scale = torch.zeros(4, 2), torch.ones(4, 2)
    q = FlowPosterior(loc, scale, make_flow("affine_coupling", 2)).expand([7, 4])
    draws = q.rsample()
    assert draws.shape == (7, 4, 2) and q.log_prob(draws).shape == (7, 4)


def test_a_posterior_that_cannot_score_or_be_made_is_named() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="Expected the last draw of this distribution; got another value"):
        FlowPosterior(one, one, make_flow("planar", 2)).log_prob(one)
    with pytest.raises(ValueError, match=r"Expected loc and scale of one shape \[\.\.\., D\]; got \[2\] and \[3\]"):
        FlowPosterior(one, torch.ones(3), make_flow("planar", 2))
    with pytest.raises(ValueError, match="Expected a context for a conditional flow; got none"):
        FlowPosterior(one, one, make_flow("planar", 2, context_dim=3))
    with pytest.raises(ValueError, match=r"Expected no context for a flow without one; got \[2\]"):
        FlowPosterior(one, one, make_flow("planar", 2), one)


class Autoencoder(PyroModule):
    """A small Bernoulli autoencoder whose posterior is a Gaussian, or a Gaussian through a flow."""

    def __init__(self, flow: Any, latent: int = 2, hidden: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = torch.nn.Sequential(
            torch.nn.Linear(latent, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 64)
        )
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(64, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 2 * latent)
        )
        self.flow = flow

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        pyro.module("flow", self.flow)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", FlowPosterior(loc, log_scale.exp(), self.flow))


def trained(flow: Any, images: Tensor, steps: int) -> Autoencoder:
    """An autoencoder after some steps of Adam; networks, batches and noise start from the same seeds each time."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = Autoencoder(flow)
    pyro.set_rng_seed(1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(steps):
        svi.step(images[torch.randint(len(images), (128,))])
    return vae


@torch.no_grad()
def bound(vae: Autoencoder, x: Tensor, particles: int = 100) -> Tensor:
    """The evidence lower bound of each image, in nats, ``[N]``."""
    loc, log_scale = vae.encoder(x).chunk(2, -1)
    q = FlowPosterior(loc, log_scale.exp(), vae.flow).expand([particles, len(x)])
    z = q.rsample()
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_likelihood = dist.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1)
    return (log_likelihood + log_prior - q.log_prob(z)).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["planar", "affine_coupling"])
def test_a_flow_as_an_autoencoders_posterior_is_no_worse_than_the_gaussian(kind: str) -> None:
    digits = torch.from_numpy((load_digits().data > 7).astype(np.float32))
    images, held_out = digits[:1400], digits[1400:]
    gaussian = bound(trained(ComposeTransformModule([]), images, 1500), held_out)
    flow = bound(trained(make_flow(kind, 2, length=4, hidden=(16,)), images, 1500), held_out)
    gap = flow - gaussian
    print(f"{kind}: {flow.mean():.3f} - {gaussian.mean():.3f} = {gap.mean():.3f} nats")
    assert gap.mean() > -2 * gap.std() / math.sqrt(len(gap))
