"""The variational autoencoder: its programs against Pyro's estimators, its bounds against exact densities, its training
against a loop in plain PyTorch, its checkpoints against a run that nobody killed."""

from __future__ import annotations

import copy
import gzip
import math
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from shared_models import Killed
from torch import Tensor, nn

from examples import vae_digits
from pyro_latent import checkpoint
from pyro_latent.errors import CheckpointError, DataError, ModelError
from pyro_latent.gradient.flows import make_flow
from pyro_latent.models.vae import (
    VAE,
    VAE_ELBO,
    NonFiniteLossError,
    PosteriorCollapseWarning,
    anneal_linearly,
    binarize,
    diagnose,
    fit,
    importance_weighted_bounds,
    load_digits,
    load_mnist,
    read_idx,
    training,
)
from pyro_latent.models.vae.discrete import VQVAE, DiscreteVAE

KINDS: list[dict[str, Any]] = [
    {},
    {"hidden": ()},
    {"likelihood": "gaussian", "hidden": (12, 7)},
    {"likelihood": "categorical", "levels": 5},
    {"network": "conv", "hidden": (4, 6)},
    {"network": "conv", "hidden": (4,), "likelihood": "categorical", "levels": 5},
    {"weight_prior": 1.0},
    {"weight_prior": 0.5, "likelihood": "gaussian", "hidden": (12, 7)},
]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits()[0]


def make(kind: dict[str, Any], shape: Sequence[int] = (6, 5), latent_dim: int = 3) -> VAE:
    return VAE(shape, latent_dim, **{"hidden": (16,), **kind})


def pictures(vae: VAE, count: int = 12) -> Tensor:
    """Images that the likelihood allows."""
    if vae.levels is not None:
        return torch.randint(vae.levels, (count, *vae.input_shape))
    return torch.rand(count, *vae.input_shape, dtype=vae.prior_loc.dtype)


def parameters(vae: VAE) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in vae.named_parameters()}


def linear_gaussian(noise: float = 0.5, exact: bool = True) -> tuple[Any, Tensor, np.ndarray]:
    """Probabilistic PCA as a VAE with linear networks, images [40, 5], and log p(x) of each by scipy.

    The loadings have orthogonal columns, so that the posterior N(M⁻¹ Wᵀ (x - b), σ² M⁻¹), M = WᵀW + σ² I, has a
    diagonal covariance, and the encoder can hold it exactly.
    """
    vae: Any = VAE((5,), 2, hidden=(), likelihood="gaussian").double()
    loadings = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q * torch.tensor([2.0, 0.8]).double()
    offset = torch.randn(5, dtype=torch.float64)
    scatter = (loadings.mT @ loadings + noise**2 * torch.eye(2)).diagonal()
    with torch.no_grad():
        vae.noise_log_scale.fill_(math.log(noise))
        vae.decoder.head.weight.copy_(loadings)
        vae.decoder.head.bias.copy_(offset)
        vae.encoder.head.weight.zero_()
        vae.encoder.head.weight[:2] = loadings.mT / scatter[:, None]
        vae.encoder.head.bias[:2] = -(loadings.mT @ offset) / scatter
        vae.encoder.head.bias[2:] = (noise**2 / scatter).log() / 2
        if not exact:
            vae.encoder.head.bias += torch.tensor([0.3, -0.2, 0.4, 0.3]).double()
    with torch.no_grad():
        images = vae.model(None, num_images=40)
    covariance = (loadings @ loadings.mT + noise**2 * torch.eye(5)).numpy()
    return vae, images, scipy.stats.multivariate_normal(offset.numpy(), covariance).logpdf(images.numpy())


# ------------------------------------------------------------------------------------------------ programs and the ELBO


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_estimators_a_and_b_are_pyros_own_on_the_same_draws(
    kind: dict[str, Any], particles: int, reduction: str
) -> None:
    if kind.get("network") == "conv" and "weight_prior" in kind and particles > 1:
        pytest.skip("one draw of convolutions at a time")
    vae = make({**kind, "reduction": reduction}).double()
    images = pictures(vae)
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 1}
    for estimator, theirs in (("A", Trace_ELBO(**options)), ("B", TraceMeanField_ELBO(**options))):
        ours = VAE_ELBO(estimator, num_particles=particles)  # type: ignore[arg-type]
        found = []
        for elbo in (ours, theirs):
            pyro.set_rng_seed(3)
            vae.zero_grad()
            loss = elbo.differentiable_loss(vae.model, vae.guide, images, batch_size=7)
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in vae.parameters() if p.grad is not None)])
        assert len(found[0]) == len(found[1]) > 1
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_kl_of_z_is_that_of_168() -> None:
    vae = make({}).double()
    images = pictures(vae)
    loc, scale = (t.detach().numpy() for t in vae.encoder(images))
    expected = -0.5 * (1 + np.log(scale**2) - loc**2 - scale**2).sum()
    found = VAE_ELBO().terms(vae.model, vae.guide, images)
    assert found.kl.item() == pytest.approx(expected, rel=1e-12)
    assert found.penalty.item() == found.kl.item() and found.weight_kl.item() == 0
    assert found.elbo.item() == pytest.approx(-found.loss.item(), rel=1e-12)


def test_kl_of_the_weights_is_that_of_162() -> None:
    vae = make({"weight_prior": 0.7}).double()
    found = VAE_ELBO().terms(vae.model, vae.guide, pictures(vae)).weight_kl
    scales = [s.detach().exp() / 0.7 for s in vae.weight_log_scales]
    means = [w.detach() / 0.7 for w in vae.decoder.parameters()]
    expected = sum(-0.5 * (1 + (s**2).log() - m**2 - s**2).sum() for m, s in zip(means, scales, strict=True))
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight_prior", [None, 1.0])
def test_estimators_a_and_b_have_one_mean(weight_prior: float | None) -> None:
    vae = make({"weight_prior": weight_prior}).double()
    images = pictures(vae)
    elbos = VAE_ELBO("A", num_particles=50), VAE_ELBO("B", num_particles=50)
    a, b = (np.array([elbo.loss(vae.model, vae.guide, images) for _ in range(60)]) for elbo in elbos)
    error = math.sqrt((a.var() + b.var()) / len(a))
    assert abs(a.mean() - b.mean()) < 4 * error


def test_minibatches_of_an_epoch_average_to_the_full_value() -> None:
    """[4] (154): N / M times the sum over a minibatch; with q concentrated on its mean there is nothing else random."""
    vae = make({}).double()
    with torch.no_grad():
        vae.encoder.head.weight[3:] = 0.0
        vae.encoder.head.bias[3:] = -40.0
    images = pictures(vae, 12)
    full = VAE_ELBO().loss(vae.model, vae.guide, images)
    parts = [VAE_ELBO().loss(vae.model, vae.guide, part, num_images=12) for part in images.split(4)]
    assert np.mean(parts) == pytest.approx(full, rel=1e-12)
    drawn = np.array([VAE_ELBO().loss(vae.model, vae.guide, images, batch_size=4) for _ in range(400)])
    assert abs(drawn.mean() - full) < 4 * drawn.std() / math.sqrt(len(drawn))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_batch_mean_is_the_sum_over_n_in_value_and_gradient(kind: dict[str, Any]) -> None:
    vae = make(kind).double()
    images = pictures(vae)
    found = []
    for reduction, factor in (("sum", 30), ("mean", 1)):
        vae.reduction = reduction  # type: ignore[assignment]
        pyro.set_rng_seed(5)
        vae.zero_grad()
        loss = VAE_ELBO().differentiable_loss(vae.model, vae.guide, images, num_images=30) / factor
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in vae.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_pixels_have_the_densities_of_their_definition() -> None:
    images = torch.rand(4, 6, 5).double()
    z = torch.randn(4, 3).double()
    vae = make({}).double()
    logits = vae.decoder(z).detach().numpy()
    probs = 1 / (1 + np.exp(-logits))
    expected = (images.numpy() * np.log(probs) + (1 - images.numpy()) * np.log1p(-probs)).sum((1, 2))
    np.testing.assert_allclose(vae.pixels(z).log_prob(images).detach().numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(vae.mean_images(z).detach().numpy(), probs, rtol=1e-10)

    vae = make({"likelihood": "gaussian"}).double()
    with torch.no_grad():
        vae.noise_log_scale.fill_(-0.7)
    loc = vae.decoder(z).detach().numpy()
    expected = scipy.stats.norm.logpdf(images.numpy(), loc, math.exp(-0.7)).sum((1, 2))
    np.testing.assert_allclose(vae.pixels(z).log_prob(images).detach().numpy(), expected, rtol=1e-10)

    vae = make({"likelihood": "categorical", "levels": 5}).double()
    levels = torch.randint(5, (4, 6, 5))
    log_probs = scipy.special.log_softmax(vae.decoder(z).detach().numpy(), -1)
    expected = np.take_along_axis(log_probs, levels.numpy()[..., None], -1).sum((1, 2, 3))
    np.testing.assert_allclose(vae.pixels(z).log_prob(levels).detach().numpy(), expected, rtol=1e-10)
    mean = (np.exp(log_probs) * np.arange(5)).sum(-1)
    np.testing.assert_allclose(vae.mean_images(z).detach().numpy(), mean, rtol=1e-10)


def test_a_grey_level_scores_the_expectation_over_black_and_white_images() -> None:
    vae = VAE((4,), 2, hidden=()).double()
    grey, z = torch.rand(4).double(), torch.randn(2).double()
    whites = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 4)
    weights = (grey * whites + (1 - grey) * (1 - whites)).prod(-1)
    pixels = vae.pixels(z)
    torch.testing.assert_close(pixels.log_prob(grey), (weights * pixels.log_prob(whites)).sum(), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="support"):
        pixels.log_prob(grey + 1)


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (1, 1), (3, 5, 4), (28, 28)])
@pytest.mark.parametrize("levels", [None, 3])
def test_convolutions_mirror_every_shape(shape: tuple[int, ...], levels: int | None) -> None:
    likelihood: Any = "bernoulli" if levels is None else "categorical"
    vae = VAE(shape, 2, hidden=(3, 4, 5), network="conv", likelihood=likelihood, levels=levels)
    images = pictures(vae, 2)
    pixels = vae.pixels(torch.randn(6, 2, 2))
    assert pixels.batch_shape == (6, 2) and pixels.event_shape == shape
    assert vae.posterior(images).event_shape == (2,)
    assert math.isfinite(VAE_ELBO(num_particles=2).loss(vae.model, vae.guide, images))


def test_predictive_draws_images_from_the_prior_and_again_from_the_posterior() -> None:
    vae, images, _ = linear_gaussian()
    drawn = Predictive(vae.model, num_samples=800)(num_images=2)["images"]
    assert drawn.shape == (800, 2, 5)
    loadings, noise = vae.decoder.head.weight.detach(), vae.noise_log_scale.detach().exp()
    expected = loadings @ loadings.mT + noise**2 * torch.eye(5)
    points = drawn.reshape(-1, 5) - vae.decoder.head.bias.detach()
    products = points[:, :, None] * points[:, None, :]
    errors = products.std(0) / math.sqrt(len(products))
    assert bool(((products.mean(0) - expected).abs() < 4.5 * errors).all())
    again = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=3000, parallel=True)(images)
    means = again["images"].mean(0)
    center = vae.mean_images(vae.posterior(images).base_dist.loc)
    spread = again["images"].std(0) / math.sqrt(3000)
    assert bool(((means - center).abs() < 4.5 * spread).all())


def test_svi_with_pyros_own_estimator_and_optimiser_trains_the_programs(digits: Tensor) -> None:
    vae = VAE((8, 8), 2, hidden=(32,))
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    losses = [svi.step(digits, batch_size=100) for _ in range(250)]
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:3])
    assert set(pyro.get_param_store()) == {
        *(f"encoder$$${name}" for name, _ in vae.encoder.named_parameters()),
        *(f"decoder$$${name}" for name, _ in vae.decoder.named_parameters()),
    }


@pytest.mark.slow
def test_svi_learns_the_noise_and_the_posterior_of_the_weights() -> None:
    """Pictures of two factors, whose noise has standard deviation 0.2."""
    vae = VAE((6, 5), 2, hidden=(16,), likelihood="gaussian", weight_prior=1.0)
    images = (torch.randn(300, 2) @ torch.randn(2, 30) + 0.2 * torch.randn(300, 30)).reshape(300, 6, 5)
    before = parameters(vae)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 2e-2}), VAE_ELBO())
    for _ in range(300):
        svi.step(images)
    assert all(not torch.equal(value, before[name]) for name, value in parameters(vae).items())
    assert vae.noise_log_scale.exp().item() == pytest.approx(0.2, rel=0.15)
    weight_kl = VAE_ELBO().terms(vae.model, vae.guide, images).weight_kl
    assert 0 < weight_kl.item() < math.inf


def test_a_second_vae_is_not_trained_by_mistake_on_the_firsts_parameters() -> None:
    first, second = make({}), make({})
    images = pictures(first)
    SVI(first.model, first.guide, pyro.optim.Adam({"lr": 1e-2}), VAE_ELBO()).step(images)
    with pytest.raises(ModelError, match=r"(?s)Expected this VAE's own parameter under 'encoder.*clear_param_store"):
        SVI(second.model, second.guide, pyro.optim.Adam({"lr": 1e-2}), VAE_ELBO()).step(images)
    VAE_ELBO().loss(second.model, second.guide, images)  # a look is allowed
    named = VAE((6, 5), 3, hidden=(16,), name="named")
    before = parameters(named)
    SVI(named.model, named.guide, pyro.optim.Adam({"lr": 1e-2}), VAE_ELBO()).step(images)
    assert not torch.equal(parameters(named)["encoder.head.bias"], before["encoder.head.bias"])


def test_particles_of_a_bayesian_convolution_are_an_error() -> None:
    vae = make({"network": "conv", "hidden": (4,), "weight_prior": 1.0})
    words = r"Expected one draw of the weights at a time for network='conv'; got several.* Write num_particles=1"
    with pytest.raises(ModelError, match=words):
        VAE_ELBO(num_particles=2).loss(vae.model, vae.guide, pictures(vae))
    with pytest.raises(ModelError, match=words):
        fit(vae, pictures(vae), num_particles=2)


def test_other_programs_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"Expected programs with a latent site 'z' and an observed site 'images'"):
        VAE_ELBO().loss(lambda: None, lambda: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "rnn"}, "Expected network to be 'mlp' or 'conv'; got 'rnn'"),
        ({"likelihood": "poisson"}, "Expected likelihood to be 'bernoulli' or 'gaussian' or 'categorical'"),
        ({"reduction": "max"}, "Expected reduction to be 'sum' or 'mean'"),
        ({"latent_dim": 0}, "Expected latent_dim to be an integer of at least 1; got 0"),
        ({"hidden": (3, 0)}, r"Expected hidden\[1\] to be an integer of at least 1; got 0"),
        ({"input_shape": ()}, "Expected input_shape, the shape of one image"),
        ({"input_shape": (6,), "network": "conv"}, r"Expected input_shape \[height, width\]"),
        ({"network": "conv", "hidden": ()}, "Expected channels in hidden"),
        ({"levels": 5}, "Expected levels >= 2 with likelihood='categorical'"),
        ({"likelihood": "categorical"}, "Expected levels >= 2"),
        ({"weight_prior": 0.0}, "Expected weight_prior to be a positive standard deviation"),
    ],
    ids=str,
)
def test_wrong_arguments_are_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**{"input_shape": (6, 5), **arguments})


@pytest.mark.parametrize("make_vae", [VAE, DiscreteVAE, VQVAE])
def test_one_number_for_a_sequence_is_an_error_that_writes_it(make_vae: Any) -> None:
    with pytest.raises(TypeError, match=r"Expected hidden to be a sequence.*; got 64. Write hidden=\(64,\)"):
        make_vae((30,) if make_vae is VAE else 30, hidden=64)


def test_a_number_of_pixels_for_a_shape_is_an_error_that_writes_it() -> None:
    with pytest.raises(TypeError, match=r"Expected input_shape to be .*; got 64. Write input_shape=\(64,\)"):
        VAE(64, latent_dim=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "images", "message"),
    [
        ({}, [[0.0]], r"Expected images as a tensor; got list"),
        ({}, torch.rand(4, 5, 6), r"Expected images of shape \[M, 6, 5\] with M >= 1; got shape \[4, 5, 6\]"),
        ({}, torch.rand(0, 6, 5), r"got shape \[0, 6, 5\]"),
        ({}, torch.rand(4, 6, 5).double(), r"Expected images of the VAE's dtype torch.float32; got torch.float64"),
        ({}, 255 * torch.rand(4, 6, 5), r"Expected images in \[0, 1\] for likelihood='bernoulli'; got values from"),
        (
            {},
            torch.full((4, 6, 5), 1e3).where(torch.arange(5) > 0, torch.nan),
            r"Expected images without NaN; got 24 NaN among 120 values. Fill in missing pixels",
        ),
        ({"likelihood": "gaussian"}, torch.full((4, 6, 5), torch.nan), r"Expected images without NaN"),
        ({}, torch.zeros(4, 6, 5).byte(), r"got torch.uint8. Write images.float\(\) / 255\."),
        ({"likelihood": "gaussian"}, torch.full((4, 6, 5), torch.inf), r"Expected finite images"),
        ({"likelihood": "categorical", "levels": 4}, torch.rand(4, 6, 5), r"Expected integer grey levels"),
        (
            {"likelihood": "categorical", "levels": 4},
            torch.full((4, 6, 5), 4),
            r"Expected images in \[0, 3\] for likelihood='categorical'; got values from 4 to 4. Give levels=",
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (dict, str)) else "",
)
def test_images_that_do_not_fit_are_errors(kind: dict[str, Any], images: Any, message: str) -> None:
    vae = make(kind)
    for use in (fit, importance_weighted_bounds, diagnose):
        with pytest.raises(DataError, match=message):
            use(vae, images)


def test_svi_too_finds_images_that_do_not_fit() -> None:
    vae = make({})
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    with pytest.raises(DataError, match=r"(?s)Expected images in \[0, 1\] .* Divide by the largest value"):
        svi.step(255 * pictures(vae))
    with pytest.raises(DataError, match=r"Expected images of shape \[M, 6, 5\]"):
        svi.step(torch.rand(4, 30))


def test_sizes_that_do_not_fit_are_errors() -> None:
    vae = make({})
    with pytest.raises(ValueError, match="Expected num_images >= the 12 images of the minibatch"):
        vae.model(pictures(vae), num_images=5)
    with pytest.raises(ModelError, match="Expected images, which the guide encodes"):
        vae.guide(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected estimator to be 'A' or 'B'"):
        VAE_ELBO("C")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected free_bits >= 0 and finite; got -1"):
        VAE_ELBO(free_bits=-1.0)
    with pytest.raises(ValueError, match=r"Expected num_particles to be an integer of at least 1; got 0"):
        VAE_ELBO(num_particles=0)


# ------------------------------------------------------------------------------------------------------------- bounds


def test_with_the_exact_posterior_every_bound_is_log_p_of_x() -> None:
    vae, images, exact = linear_gaussian()
    for bound in importance_weighted_bounds(vae, images, (1, 7, 50)):
        np.testing.assert_allclose(bound.values.numpy(), exact, rtol=1e-10)
    assert VAE_ELBO("A").loss(vae.model, vae.guide, images) == pytest.approx(-exact.sum(), rel=1e-12)


def test_bounds_rise_with_k_stay_below_log_p_and_reach_it() -> None:
    vae, images, exact = linear_gaussian(exact=False)
    one, ten, many = importance_weighted_bounds(vae, images, (1, 10, 5000), chunk_size=50_000)
    assert bool((one.values < ten.values).all() and (ten.values < many.values).all())
    assert bool((ten.values.numpy() < exact).all())
    np.testing.assert_allclose(many.values.numpy(), exact, atol=0.05)
    found = np.array([-VAE_ELBO().loss(vae.model, vae.guide, images) for _ in range(400)]) / len(images)
    spread = math.hypot(found.std() / 20, one.values.std().item() / math.sqrt(5000))
    assert abs(found.mean() - one.mean) < 4 * spread


def test_bounds_do_not_depend_on_the_chunks_but_for_their_draws() -> None:
    vae, images, _ = linear_gaussian(exact=False)
    (other,) = importance_weighted_bounds(vae, images, (60,))
    for chunk_size in (1, 7, 100, 10**6):
        (bound,) = importance_weighted_bounds(vae, images, (60,), chunk_size=chunk_size)
        assert bound.values.shape == (40,)
        assert abs(bound.mean - other.mean) < 0.1
    assert str(bound).startswith("L_60 = ") and "±" in str(bound)


def test_bounds_of_concentrated_weights_are_those_of_the_point_estimate() -> None:
    for kind in ({}, {"network": "conv", "hidden": (4,)}):
        vae = make({**kind, "weight_prior": 1.0}).double()
        with torch.no_grad():
            for scale in vae.weight_log_scales:
                scale.fill_(-30.0)
        point = make(kind).double()
        point.load_state_dict({name: v for name, v in vae.state_dict().items() if not name.startswith("weight_log")})
        images = pictures(vae)
        (found,) = importance_weighted_bounds(vae, images, (200,))
        (expected,) = importance_weighted_bounds(point, images, (200,))
        assert abs(found.mean - expected.mean) < 0.05


@pytest.mark.slow
def test_the_bound_of_bayesian_convolutions_draws_weights_for_each_z() -> None:
    """A latent that the decoder ignores, one pixel whose logit is the last bias: E_q(w) p(x | w) by quadrature.

    With one draw of the weights for all z the bound would be log p(x | w) of that draw.
    """
    vae: Any = VAE((1, 1), 1, hidden=(2,), network="conv", weight_prior=1.0).double()
    with torch.no_grad():
        for weight in (*vae.encoder.parameters(), *vae.decoder.parameters()):
            weight.zero_()
        names = [name for name, _ in vae.decoder.named_parameters()]
        for name, log_scale in zip(names, vae.weight_log_scales, strict=True):
            log_scale.fill_(math.log(2.0) if name == names[-1] else -30.0)
    logits = np.linspace(-16, 16, 20_001)
    density = scipy.stats.norm.pdf(logits, 0, 2) * (logits[1] - logits[0])
    images = torch.tensor([[[0.25]], [[0.9]]]).double()
    shares = images.numpy()[:, 0]
    log_probs = shares * -np.logaddexp(0, -logits) + (1 - shares) * -np.logaddexp(0, logits)
    expected = np.log((np.exp(log_probs) * density).sum(1))
    (bound,) = importance_weighted_bounds(vae, images, 2000)
    np.testing.assert_allclose(bound.values.numpy(), expected, atol=0.06)


def test_the_bound_of_a_bayesian_decoder_integrates_the_weights() -> None:
    """A latent that the decoder ignores, one pixel: log p(x) = log N(x; m, s² + σ²), over the posterior of the bias."""
    vae: Any = VAE((1,), 1, hidden=(), likelihood="gaussian", weight_prior=1.0).double()
    with torch.no_grad():
        for weight in vae.encoder.parameters():
            weight.zero_()
        vae.decoder.head.weight.zero_()
        vae.decoder.head.bias.fill_(0.3)
        for log_scale, value in zip(vae.weight_log_scales, (-30.0, math.log(0.8)), strict=True):
            log_scale.fill_(value)
    images = torch.tensor([[-1.0], [0.2], [2.0]]).double()
    (bound,) = importance_weighted_bounds(vae, images, (200_000,), chunk_size=600_000)
    expected = scipy.stats.norm.logpdf(images.numpy()[:, 0], 0.3, math.sqrt(0.8**2 + 1))
    np.testing.assert_allclose(bound.values.numpy(), expected, atol=0.02)


def test_one_number_of_draws_is_one_bound() -> None:
    vae, images, exact = linear_gaussian()
    (bound,) = importance_weighted_bounds(vae, images, 5)
    assert bound.num_samples == 5
    np.testing.assert_allclose(bound.values.numpy(), exact, rtol=1e-10)


def test_wrong_counts_of_draws_are_errors() -> None:
    vae = make({})
    with pytest.raises(ValueError, match="Expected num_samples to be an integer of at least 1; got 0"):
        importance_weighted_bounds(vae, pictures(vae), 0)
    for bad in ((0,), (5, -1)):
        with pytest.raises(ValueError, match="Expected num_samples to be an integer of at least 1; got"):
            importance_weighted_bounds(vae, pictures(vae), bad)
    with pytest.raises(ValueError, match="Expected one number of draws or more"):
        importance_weighted_bounds(vae, pictures(vae), ())
    with pytest.raises(ValueError, match="Expected chunk_size to be an integer of at least 1; got 0"):
        diagnose(vae, pictures(vae), chunk_size=0)


# ----------------------------------------------------------------------------------------------------------- diagnosis


def test_the_diagnosis_is_the_elbo_taken_apart_and_names_collapsed_dimensions() -> None:
    vae, images, exact = linear_gaussian()
    with torch.no_grad():
        vae.encoder.head.weight[1] = 0.0
    with pytest.warns(PosteriorCollapseWarning, match=r"Latent dimensions 1 of 2 have collapsed.*anneal.*free_bits"):
        found = diagnose(vae, images, num_samples=2000)
    loc, scale = (t.detach().numpy() for t in vae.encoder(images))
    each = -0.5 * (1 + np.log(scale**2) - loc**2 - scale**2).mean(0)
    np.testing.assert_allclose(found.kl_per_dimension.numpy(), each, rtol=1e-10)
    np.testing.assert_allclose(found.activity.numpy(), loc.var(0, ddof=1), rtol=1e-10, atol=1e-12)
    assert found.kl == pytest.approx(each.sum()) and found.elbo == found.reconstruction - found.kl
    assert found.collapsed == [1] and found.active.tolist() == [True, False]
    assert found.elbo < exact.mean()
    elbo = np.array([-VAE_ELBO().loss(vae.model, vae.guide, images) / 40 for _ in range(500)])
    assert abs(elbo.mean() - found.elbo) < 5 * elbo.std() / math.sqrt(500)
    assert "1 of 2 latent dimensions are active" in str(found)


def test_the_threshold_says_which_dimensions_are_active() -> None:
    vae, images, _ = linear_gaussian()
    activity = vae.encoder(images)[0].detach().var(0)
    between = float(activity.mean())
    with pytest.warns(PosteriorCollapseWarning):
        found = diagnose(vae, images, threshold=between)
    assert found.active.tolist() == (activity > between).tolist() and int(found.active.sum()) == 1


def test_no_warning_where_every_dimension_is_active() -> None:
    vae, images, _ = linear_gaussian()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert diagnose(vae, images).collapsed == []
    with pytest.raises(DataError, match="Expected two images or more"):
        diagnose(vae, images[:1])


# -------------------------------------------------------------------------------------------------- flows as posterior

FLOWS: list[tuple[str, int | None]] = [
    *((kind, None) for kind in ("planar", "radial", "affine_coupling", "affine_autoregressive", "spline")),
    *((kind, 5) for kind in ("planar", "affine_coupling", "affine_autoregressive", "spline_autoregressive")),
]


def with_flow(kind: str, context_dim: int | None, shape: Sequence[int] = (6, 5), **options: Any) -> VAE:
    flow = make_flow(kind, 3, length=2, hidden=(8,), context_dim=context_dim)
    return VAE(shape, 3, hidden=(16,), flow=flow, context_dim=context_dim, **options)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("kind", "context_dim"), FLOWS)
def test_estimator_a_of_a_flow_is_pyros_own(kind: str, context_dim: int | None, particles: int) -> None:
    vae = with_flow(kind, context_dim).double()
    images = pictures(vae)
    options: dict[str, Any] = {"num_particles": particles, "vectorize_particles": particles > 1}
    found = []
    for elbo in (VAE_ELBO("A", num_particles=particles), Trace_ELBO(max_plate_nesting=1, **options)):
        pyro.set_rng_seed(3)
        vae.zero_grad()
        loss = elbo.differentiable_loss(vae.model, vae.guide, images, batch_size=7)
        loss.backward()
        assert all(p.grad is not None for p in vae.parameters())
        found.append([loss.detach(), *(p.grad.clone() for p in vae.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def elementwise_affine(loc: Sequence[float], scale: Sequence[float]) -> Any:
    """z ↦ loc + scale z: the Gaussian through it is a Gaussian."""
    affine = torch.distributions.AffineTransform(torch.tensor(loc).double(), torch.tensor(scale).double(), event_dim=1)
    return torch.distributions.ComposeTransform([affine])


def test_a_flow_that_completes_the_exact_posterior_makes_every_bound_log_p_of_x() -> None:
    """The encoder is off by an affine map of z, which is the flow."""
    vae, images, exact = linear_gaussian()
    loc, scale = [0.4, -0.3], [1.7, 0.6]
    vae.flow = elementwise_affine(loc, scale)
    with torch.no_grad():  # the encoder's Gaussian becomes f⁻¹ of what it was
        head = vae.encoder.head
        head.weight[:2] /= torch.tensor(scale).double()[:, None]
        head.bias[:2] = (head.bias[:2] - torch.tensor(loc).double()) / torch.tensor(scale).double()
        head.bias[2:] -= torch.tensor(scale).double().log()
    for bound in importance_weighted_bounds(vae, images, (1, 7)):
        np.testing.assert_allclose(bound.values.numpy(), exact, rtol=1e-10)
    assert VAE_ELBO("A").loss(vae.model, vae.guide, images) == pytest.approx(-exact.sum(), rel=1e-10)


def test_the_diagnosis_of_a_flow_estimates_what_a_gaussian_has_in_closed_form() -> None:
    """q is a Gaussian again, with a dimension whose mean does not vary, so KL and variance of the mean are known."""
    vae, images, _ = linear_gaussian(exact=False)
    with torch.no_grad():
        vae.encoder.head.weight[1] = 0.0
    vae.flow = elementwise_affine([0.4, -0.3], [1.5, 0.8])
    with torch.no_grad():
        base = vae.encoder(images)
    loc = np.array([0.4, -0.3]) + np.array([1.5, 0.8]) * base[0].numpy()
    scale = np.array([1.5, 0.8]) * base[1].numpy()
    kl = -0.5 * (1 + np.log(scale**2) - loc**2 - scale**2).sum(1).mean()
    with pytest.warns(PosteriorCollapseWarning, match="Latent dimensions 1 of 2"):
        found = [diagnose(vae, images.repeat(20, 1), num_samples=3) for _ in range(5)]
    assert np.mean([each.kl for each in found]) == pytest.approx(kl, abs=0.03)
    activity = torch.stack([each.activity for each in found]).mean(0).numpy()
    np.testing.assert_allclose(activity, loc.var(0), rtol=0.02, atol=2e-3)
    assert bool(found[0].kl_per_dimension.isnan().all()) and found[0].collapsed == [1]
    assert found[0].elbo == found[0].reconstruction - found[0].kl


@pytest.mark.parametrize(("kind", "context_dim"), [("affine_coupling", None), ("affine_autoregressive", 5)])
def test_a_vae_with_a_flow_trains_all_of_it_and_resumes(
    kind: str, context_dim: int | None, digits: Tensor, tmp_path: Path
) -> None:
    ends = []
    for stops in ([4], [2, 4]):
        pyro.set_rng_seed(0)
        vae = with_flow(kind, context_dim, (8, 8))
        start = parameters(vae)
        for epochs in stops:
            history = fit(
                vae,
                digits[:300],
                epochs=epochs,
                estimator="A",
                validation=digits[300:400],
                checkpoint=tmp_path / f"{len(stops)}.pt",
            )
        ends.append(parameters(vae))
    assert all(not torch.equal(value, start[name]) for name, value in ends[0].items())
    assert all(torch.equal(value, ends[0][name]) for name, value in ends[1].items())
    assert history.elbo[-1] > history.elbo[0] + 1
    one = importance_weighted_bounds(vae, digits[300:400], (1,))[0]
    assert history.validation_elbo[-1] == pytest.approx(one.mean, abs=0.5)
    with pytest.raises(CheckpointError, match=r"Expected a checkpoint with flow = \['.*Planar"):
        fit(with_flow("planar", context_dim, (8, 8)), digits[:300], estimator="A", checkpoint=tmp_path / "1.pt")
    wider = make_flow(kind, 3, length=2, hidden=(9,), context_dim=context_dim)
    other = VAE((8, 8), 3, hidden=(16,), flow=wider, context_dim=context_dim)
    with pytest.raises(CheckpointError, match="Expected a checkpoint with the same parameter shapes"):
        fit(other, digits[:300], estimator="A", checkpoint=tmp_path / "1.pt")


def test_svi_trains_the_flow_too(digits: Tensor) -> None:
    vae = with_flow("planar", 5, (8, 8))
    before = parameters(vae)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(digits[:200]) for _ in range(30)]
    assert losses[-1] < 0.95 * losses[0]
    assert all(not torch.equal(value, before[name]) for name, value in parameters(vae).items())


def test_a_closed_form_is_not_to_be_had_of_a_flow() -> None:
    vae = with_flow("planar", None)
    images = pictures(vae)
    with pytest.raises(ValueError, match=r"Expected estimator='A' for a VAE with a flow.*; got 'B'. Write fit\("):
        fit(vae, images)
    with pytest.raises(ModelError, match=r"Expected a closed-form KL .* none from FlowPosterior.*use VAE_ELBO\('A'\)"):
        VAE_ELBO("B").loss(vae.model, vae.guide, images)
    with pytest.raises(ModelError, match=r"(?s)Expected q\(z \| x\) to be a product .*for free_bits; got a flow"):
        fit(vae, images, estimator="A", free_bits=0.1)
    q = vae.posterior(images)
    first, _ = q.sample(), q.sample()
    with pytest.raises(ValueError, match=r"Expected the last draw of this distr.*no inverse in closed form"):
        q.log_prob(first)


@pytest.mark.parametrize(
    ("flow", "context_dim", "kind", "message"),
    [
        ("planar", None, TypeError, "Expected flow to be a transform or a conditional one; got str. Write flow=make_"),
        (None, 4, ValueError, "Expected a conditional flow with context_dim=4; got no flow"),
        (make_flow("planar", 2), None, ValueError, "Expected a flow of vectors of latent_dim=3 elements; got one that"),
        (
            make_flow("planar", 3),
            4,
            ValueError,
            "Expected no context for a flow without one; got",
        ),
        (
            make_flow("planar", 3, context_dim=4),
            None,
            ValueError,
            "Expected a context for a conditional flow; got n",
        ),
        (make_flow("planar", 3, context_dim=4), 5, ValueError, "Expected a flow .* and a context of 5 elements; got"),
        (make_flow("planar", 3, context_dim=4), 0, ValueError, "Expected context_dim to be an integer of at least 1"),
    ],
)
def test_a_flow_that_does_not_fit_is_an_error(flow: Any, context_dim: int | None, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        VAE((6, 5), 3, flow=flow, context_dim=context_dim)


# ------------------------------------------------------------------------------------------------------ copies of a VAE


@pytest.mark.parametrize(
    "make_one",
    [
        None,
        lambda: make_flow("affine_coupling", 3),
        lambda: transforms.planar(3),
        lambda: transforms.affine_autoregressive(3, [8]),
        lambda: ComposeTransformModule([transforms.affine_coupling(3, [8]), transforms.radial(3)]),
    ],
    ids=["Gaussian", "made", "Pyro's planar", "Pyro's autoregressive", "a chain of Pyro's"],
)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))], ids=["copy", "pickle"])
def test_a_used_vae_is_copied_and_pickled(copied: Any, make_one: Any) -> None:
    """After fit, SVI and a draw with its graph: the copy scores as the original, and shares nothing with it."""
    vae = make({} if make_one is None else {"flow": make_one()})
    images = pictures(vae)
    fit(vae, images, epochs=1, estimator="A")
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(images)
    VAE_ELBO("A").differentiable_loss(vae.model, vae.guide, images)
    other = copied(vae)
    losses = []
    for each in (vae, other):
        pyro.set_rng_seed(1)
        losses.append(VAE_ELBO("A").loss(each.model, each.guide, images))
    assert losses[0] == losses[1]
    before = parameters(vae)
    fit(other, images, epochs=1, estimator="A")
    assert all(torch.equal(value, before[name]) for name, value in parameters(vae).items())
    assert all(not torch.equal(value, before[name]) for name, value in parameters(other).items())


# ------------------------------------------------------------------------------------------- annealing and free bits


def test_annealing_rises_in_a_line_to_one() -> None:
    schedule = anneal_linearly(4, start=0.2)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    with pytest.raises(ValueError, match="Expected num_steps to be an integer of at least 1; got 0"):
        anneal_linearly(0)
    with pytest.raises(ValueError, match=r"Expected start in \[0, 1\]; got 2"):
        anneal_linearly(4, start=2.0)


def test_the_weight_and_the_free_bits_change_the_loss_as_defined() -> None:
    vae = make({}).double()
    images = pictures(vae)
    loc, scale = (t.detach().numpy() for t in vae.encoder(images))
    each = -0.5 * (1 + np.log(scale**2) - loc**2 - scale**2).mean(0)
    free = float(np.sort(each)[1]) + 1e-3  # two of the three dimensions are below
    expected = 0.3 * 30 * np.maximum(each, free).sum()
    for particles in (1, 4):
        elbo = VAE_ELBO(kl_weight=0.3, free_bits=free, num_particles=particles)
        terms = elbo.terms(vae.model, vae.guide, images, num_images=30)
        assert terms.penalty.item() == pytest.approx(expected, rel=1e-10)
        assert terms.kl.item() == pytest.approx(30 * each.sum(), rel=1e-10)
    vae.zero_grad()
    terms.penalty.backward()
    below = np.flatnonzero(each < free)
    gradient = vae.encoder.head.bias.grad
    assert gradient is not None
    assert len(below) == 2 and float(gradient[below].abs().max()) == 0.0 and float(gradient.abs().max()) > 0


def test_free_bits_keep_dimensions_in_use_that_would_collapse(digits: Tensor) -> None:
    found = {}
    for free_bits in (0.0, 0.5):
        pyro.set_rng_seed(0)
        vae = VAE((8, 8), 10, hidden=(64,))
        fit(vae, digits, epochs=15, free_bits=free_bits)
        found[free_bits] = diagnose(vae, digits).kl_per_dimension
    assert float(found[0.0].median()) < 0.15 and float(found[0.5].min()) > 0.3


def test_the_history_has_the_true_elbo_whatever_the_weight(digits: Tensor) -> None:
    vae = VAE((8, 8), 2, hidden=(16,))
    history = fit(vae, digits[:300], epochs=4, kl_weight=anneal_linearly(6))
    assert history.kl_weight == pytest.approx([2 / 6, 5 / 6, 1.0, 1.0])
    terms = zip(history.elbo, history.reconstruction, history.kl, strict=True)
    assert all(elbo == pytest.approx(reconstruction - kl) for elbo, reconstruction, kl in terms)
    assert history.loss[0] < -300 * history.elbo[0] and history.loss[-1] == pytest.approx(-300 * history.elbo[-1])


# ------------------------------------------------------------------------------------------------------------ training


class PlainVAE(nn.Module):
    """The same networks in plain PyTorch, with the loss of [4] (168) times N / M."""

    def __init__(self, pixels: int, units: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, units), nn.ReLU(), nn.Linear(units, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, units), nn.ReLU(), nn.Linear(units, pixels))

    def forward(self, x: Tensor) -> Tensor:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
        kl = -0.5 * (1 + 2 * log_scale - loc**2 - (2 * log_scale).exp()).sum()
        return kl + nn.functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")


def test_fit_is_algorithm_5_in_plain_pytorch(digits: Tensor) -> None:
    images = digits[:250].double()
    vae = VAE((8, 8), 3, hidden=(20,)).double()
    plain = PlainVAE(64, 20, 3).double()
    with torch.no_grad():
        for mine, theirs in zip(vae.parameters(), plain.parameters(), strict=True):
            theirs.copy_(mine)
    pyro.set_rng_seed(1)
    history = fit(vae, images, epochs=3)
    pyro.set_rng_seed(1)
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        total = 0.0
        for index in torch.randperm(250).split(100):
            loss = plain(images[index].flatten(1)) * 250 / len(index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(index) / 250
        losses.append(total)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-9)
    for mine, theirs in zip(vae.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)


def test_the_history_of_the_batch_mean_is_that_of_the_sum_for_one_image(digits: Tensor) -> None:
    """At a learning rate that moves nothing, from the same draws: all but the loss agree, and the loss is over N."""
    found = {}
    for reduction in ("sum", "mean"):
        pyro.set_rng_seed(0)
        vae = make({"hidden": (8,), "weight_prior": 1.0, "reduction": reduction}, (8, 8), 2).double()
        images = digits[:250].double()
        found[reduction] = fit(vae, images, learning_rate=1e-30, epochs=1, validation=images[:130], batch_size=60)
    one, other = found["sum"], found["mean"]
    for name in ("elbo", "reconstruction", "kl", "weight_kl", "validation_elbo"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)
    assert other.loss[0] == pytest.approx(one.loss[0] / 250, rel=1e-12)
    assert other.loss[0] == pytest.approx(-other.elbo[0], rel=1e-12)


def test_checkpoints_are_written_after_every_so_many_epochs(
    digits: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(checkpoint, "write_checkpoint", lambda path, kind, content: written.append(content["step"]))
    fit(VAE((8, 8), 2, hidden=(8,)), digits[:100], epochs=7, checkpoint=tmp_path / "run.pt", checkpoint_every=3)
    assert written == [0, 3, 6, 7]


@pytest.mark.slow
def test_a_trained_vae_beats_every_model_with_independent_pixels(digits: Tensor) -> None:
    """Held-out images: their exact log p(x) under the best such model, and a lower bound of ours."""
    seen, held_out = digits[:1400], digits[1400:]
    mean = seen.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = (held_out * mean.log() + (1 - held_out) * (-mean).log1p()).sum((1, 2)).mean().item()
    vae = VAE((8, 8), 8, hidden=(128,))
    history = fit(vae, seen, epochs=40, validation=held_out)
    bound = importance_weighted_bounds(vae, held_out, (1, 20))
    assert bound[0].mean > independent + 5 * bound[0].error and bound[1].mean > bound[0].mean
    assert history.validation_elbo[-1] == pytest.approx(bound[0].mean, abs=1.0)
    assert len(history) == 40 and history.elbo[-1] > history.elbo[0] + 10


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_improves_on_its_start(kind: dict[str, Any], digits: Tensor) -> None:
    vae = VAE((8, 8), 3, **{"hidden": (32,), **kind})
    images = (digits[:500] * 4).round().long() if vae.levels else digits[:500]
    history = fit(vae, images, epochs=8, learning_rate=3e-3)
    assert all(b > a for a, b in zip(history.elbo[:4], history.elbo[1:5], strict=True))
    assert history.elbo[-1] > history.elbo[0] + 3


def test_both_estimators_train_to_the_same_bound(digits: Tensor) -> None:
    ends = []
    for estimator in ("A", "B"):
        pyro.set_rng_seed(0)
        vae = VAE((8, 8), 4, hidden=(64,))
        ends.append(fit(vae, digits, epochs=25, estimator=estimator).elbo[-1])
    assert abs(ends[0] - ends[1]) < 0.5


def test_looking_at_validation_images_changes_nothing(digits: Tensor) -> None:
    found = []
    for validation in (None, digits[200:300]):
        pyro.set_rng_seed(0)
        vae = VAE((8, 8), 2, hidden=(8,))
        fit(vae, digits[:200], epochs=2, validation=validation)
        found.append((parameters(vae), torch.get_rng_state()))
    assert all(torch.equal(value, found[1][0][name]) for name, value in found[0][0].items())
    assert torch.equal(found[0][1], found[1][1])


def test_fit_leaves_pyros_parameter_store_alone_and_its_validation_on(digits: Tensor) -> None:
    vae = VAE((8, 8), 2, hidden=(8,))
    fit(vae, digits[:100], epochs=1)
    assert not list(pyro.get_param_store())
    with pytest.raises(ValueError, match="invalid values"):
        torch.distributions.Normal(0.0, -1.0)


def test_the_users_optimiser_is_used_and_a_bar_is_shown(digits: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    vae = VAE((8, 8), 2, hidden=(8,), reduction="mean")
    before = parameters(vae)
    fit(vae, digits[:100], epochs=1, optimizer=lambda p: torch.optim.SGD(p, 0.0), progress=True)
    assert all(torch.equal(value, before[name]) for name, value in parameters(vae).items())
    assert "1/1" in capsys.readouterr().err


def test_wrong_arguments_of_fit_are_errors(digits: Tensor) -> None:
    vae = VAE((8, 8), 2, hidden=(8,))
    wrong: list[dict[str, Any]] = [{"epochs": 0}, {"epochs": -1}, {"epochs": 1.5}, {"batch_size": 0}]
    wrong += [{"batch_size": 10.5}, {"num_particles": 0}, {"num_particles": 1.5}]
    for bad in [*wrong, {"learning_rate": 0.0}, {"learning_rate": math.inf}, {"checkpoint_every": 0}]:
        (name,) = bad
        least = "> 0 and finite" if name == "learning_rate" else "to be an integer of at least 1"
        with pytest.raises(ValueError, match=rf"Expected {name} {least}; got .*\. Write {name}="):
            fit(vae, digits, **bad)
    with pytest.raises(ValueError, match="Expected epochs to be an integer of at least 0; got -1"):
        fit(vae, digits, epochs=-1, checkpoint="unwritten")
    with pytest.raises(ValueError, match="Expected kl_weight >= 0 and finite; got -1"):
        fit(vae, digits, kl_weight=lambda step: -1.0)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        (torch.optim.Adam([torch.zeros(1)]), "Adam"),
        (pyro.optim.Adam({"lr": 1e-3}), "PyroOptim"),
        (lambda parameters: None, "NoneType"),
    ],
    ids=["made", "Pyro's", "nothing"],
)
def test_what_makes_no_torch_optimiser_is_an_error_that_writes_one(optimizer: Any, kind: str, digits: Tensor) -> None:
    words = rf"optimizer to be a function of the parameters; got {kind}. Write lambda parameters: torch.optim.Adam\("
    vae = VAE((8, 8), 2, hidden=(8,))
    before = parameters(vae)
    with pytest.raises(TypeError, match=words):
        fit(vae, digits, optimizer=optimizer)
    assert all(torch.equal(value, before[name]) for name, value in parameters(vae).items())


def test_a_loss_that_is_not_finite_is_an_error_that_fits_every_optimiser(digits: Tensor) -> None:
    vae = VAE((8, 8), 2, hidden=(8,))
    with pytest.raises(NonFiniteLossError, match="Lower the learning rate, or scale the images"):
        fit(vae, digits, optimizer=lambda parameters: torch.optim.SGD(parameters, 1e30))


def test_a_checkpoint_of_more_epochs_is_read_as_it_is(digits: Tensor, tmp_path: Path) -> None:
    path, first = tmp_path / "run.pt", VAE((8, 8), 2, hidden=(8,))
    whole = fit(first, digits[:100], epochs=3, checkpoint=path)
    content, second = path.read_bytes(), VAE((8, 8), 2, hidden=(8,))
    assert fit(second, digits[:100], epochs=2, checkpoint=path) == whole
    expected = parameters(first)
    assert all(torch.equal(value, expected[name]) for name, value in parameters(second).items())
    assert path.read_bytes() == content


@pytest.mark.parametrize("steps_between_looks", [1, 4, 50])
@pytest.mark.parametrize(
    ("network", "message"),
    [("decoder", r"got reconstruction nan at step 7 \(epoch 2\)"), ("encoder", r"KL divergence of z nan")],
)
def test_a_loss_that_is_not_finite_is_named_and_its_step_not_taken(
    steps_between_looks: int, network: str, message: str, digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step at which the network fails is chosen by the schedule, so that a step run again fails again."""
    monkeypatch.setitem(training._STEPS_BETWEEN_LOOKS, "cpu", steps_between_looks)
    images = digits[:300]

    def run(failing: int | None, epochs: int) -> VAE:
        pyro.set_rng_seed(0)
        vae = VAE((8, 8), 2, hidden=(8,))
        step = 0

        def schedule(number: int) -> float:
            nonlocal step
            step = number
            return 1.0

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if step != failing:
                return None
            return output * torch.nan if network == "decoder" else (output[0], output[1] * torch.nan)

        getattr(vae, network).register_forward_hook(hook)
        if failing is None:
            fit(vae, images, epochs=epochs, kl_weight=schedule, optimizer=limited)
        else:
            with pytest.raises(NonFiniteLossError, match=f"(?s){message}.*The parameters are as before the step"):
                fit(vae, images, epochs=epochs, kl_weight=schedule)
        return vae

    class Limited(torch.optim.Adam):
        """Adam that stops after seven steps."""

        taken = 0

        def step(self, closure: Any = None) -> Any:
            self.taken += 1
            return super().step(closure) if self.taken <= 7 else None

    def limited(p: Any) -> torch.optim.Optimizer:
        return Limited(p, 1e-3, fused=True)

    found, expected = run(7, 4), run(None, 3)
    for name, value in parameters(found).items():
        torch.testing.assert_close(value, parameters(expected)[name], rtol=1e-6, atol=1e-8)


# --------------------------------------------------------------------------------------------------------- checkpoints


def fit_with_checkpoint(path: Path | None, images: Tensor, epochs: int = 4) -> VAE:
    pyro.set_rng_seed(0)
    vae = VAE((8, 8), 2, hidden=(8,), weight_prior=1.0)
    fit(vae, images, epochs=epochs, kl_weight=anneal_linearly(5), checkpoint=path, validation=images[:50])
    return vae


def die_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end where this step would begin."""
    original = training._Training._terms

    def dying(self: Any, batch: Tensor) -> Any:
        if self.step == step:
            raise Killed
        return original(self, batch)

    patch.setattr(training._Training, "_terms", dying)


@pytest.mark.parametrize("kill_at", [0, 1, 3, 5, 11])
def test_a_killed_run_resumed_ends_where_the_unkilled_one_does(
    kill_at: int, tmp_path: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = digits[:300]
    expected = fit_with_checkpoint(None, images)
    path = tmp_path / "run.pt"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(kill_at, patch)
        fit_with_checkpoint(path, images)
    torch.manual_seed(1234)  # the resumed process starts anywhere
    found = fit_with_checkpoint(path, images)
    for name, value in parameters(expected).items():
        assert torch.equal(parameters(found)[name], value), name
    options: dict[str, Any] = {"kl_weight": anneal_linearly(5), "validation": images[:50]}
    again = fit(found, images, epochs=4, checkpoint=path, **options)  # complete: nothing is left to do
    assert len(again) == 4 and len(again.validation_elbo) == 4
    assert all(torch.equal(parameters(found)[name], value) for name, value in parameters(expected).items())


RUN = """
import sys, time, pyro, torch
from pyro_latent.models.vae import VAE, fit, load_digits
torch.set_num_threads(1)
pyro.set_rng_seed(0)
vae = VAE((8, 8), 2, hidden=(8,))
class Slow(torch.optim.Adam):
    steps = 0
    def step(self, closure=None):
        time.sleep(float(sys.argv[2]))
        print(Slow.steps, flush=True)
        Slow.steps += 1
        return super().step(closure)
make = lambda p: Slow(p, 1e-3)
fit(vae, load_digits()[0][:500], epochs=4, optimizer=make, checkpoint=sys.argv[1] or None)
torch.save(vae.state_dict(), sys.argv[3])
"""


@pytest.mark.slow
def test_a_process_that_is_killed_by_a_signal_resumes(tmp_path: Path) -> None:
    checkpoint, ends = tmp_path / "run.pt", [tmp_path / "whole.pt", tmp_path / "resumed.pt"]
    command = [sys.executable, "-c", RUN]
    subprocess.run([*command, "", "0", str(ends[0])], check=True, stdout=subprocess.DEVNULL)
    with subprocess.Popen([*command, str(checkpoint), "0.05", str(ends[1])], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        while int(run.stdout.readline()) < 13:
            pass
        os.kill(run.pid, signal.SIGKILL)
    assert not ends[1].exists()
    subprocess.run([*command, str(checkpoint), "0", str(ends[1])], check=True, stdout=subprocess.DEVNULL)
    whole, resumed = (torch.load(end, weights_only=True) for end in ends)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 3}, "latent_dim = 3"),
        ({"hidden": (9,)}, r"hidden = \(9,\)"),
        ({"reduction": "mean"}, "reduction = mean"),
        ({"batch_size": 50}, "batch_size = 50"),
        ({"free_bits": 0.1}, "free_bits = 0.1"),
        ({"images": lambda x: x[100:200]}, "the same images .* got one with others"),
        ({"images": lambda x: x[:100].flip(0)}, "the same images"),
        ({"images": lambda x: x[:100].flip(1)}, "the same images"),
        ({"images": lambda x: x[:100].transpose(1, 2)}, "the same images"),
        ({"images": lambda x: x[:99]}, "the same images"),
        ({"optimizer": lambda p: torch.optim.SGD(p, 1e-3)}, "optimizer = SGD"),
        ({"optimizer": lambda p: torch.optim.Adam(p, 1e-3)}, "learning_rate = None"),
        ({"learning_rate": 1e-2}, r"learning_rate = 0\.01 .* got one with 0\.001"),
        ({"kl_weight": 0.5}, r"kl_weight at step 0 = 0\.5 .* got one with 1\.0"),
        ({"kl_weight": anneal_linearly(20)}, r"kl_weight at step 0 = 0\.0 .* got one with 1\.0"),
        ({"validation": torch.zeros(2, 8, 8)}, r"the same validation .* got one with no validation"),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value)),  # the same in every worker
)
def test_a_checkpoint_of_another_run_is_an_error(
    change: dict[str, Any], message: str, tmp_path: Path, digits: Tensor
) -> None:
    path = tmp_path / "run.pt"
    fit(VAE((8, 8), 2, hidden=(8,)), digits[:100], epochs=1, checkpoint=path)
    network = {name: change.pop(name) for name in ("latent_dim", "hidden", "reduction") if name in change}
    vae = VAE((8, 8), **{"latent_dim": 2, "hidden": (8,), **network})
    images = change.pop("images", lambda x: x[:100])(digits)
    before = parameters(vae)
    with pytest.raises(CheckpointError, match=f"Expected a checkpoint with {message}.*Delete the file"):
        fit(vae, images, epochs=2, checkpoint=path, **change)
    assert all(torch.equal(value, before[name]) for name, value in parameters(vae).items())


def test_a_checkpoint_knows_a_schedule_by_its_values_at_each_of_the_first_steps(digits: Tensor, tmp_path: Path) -> None:
    path, run = tmp_path / "run.pt", {"batch_size": 10, "checkpoint": tmp_path / "run.pt"}

    def dipped(step: int) -> float:
        return 0.5 if step == 5 else 1.0

    fit(VAE((8, 8), 2, hidden=(8,)), digits[:100], epochs=1, kl_weight=dipped, **run)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"kl_weight at step 5 = 1\.0 .*; got one with 0\.5"):
        fit(VAE((8, 8), 2, hidden=(8,)), digits[:100], epochs=2, **run)  # type: ignore[arg-type]
    path.unlink()
    table = [0.5] * 10 + [1.0] * 10  # a schedule with no values past its end is not asked for any
    fit(VAE((8, 8), 2, hidden=(8,)), digits[:100], epochs=1, kl_weight=table.__getitem__, **run)  # type: ignore[arg-type]
    history = fit(VAE((8, 8), 2, hidden=(8,)), digits[:100], epochs=2, kl_weight=table.__getitem__, **run)  # type: ignore[arg-type]
    assert history.kl_weight == [0.5, 1.0]


@pytest.mark.parametrize(("option", "other"), [("lr", 1e-1), ("weight_decay", 0.5), ("betas", (0.5, 0.9))])
def test_a_checkpoint_of_an_optimiser_with_other_options_is_an_error(
    option: str, other: Any, tmp_path: Path, digits: Tensor
) -> None:
    path = tmp_path / "run.pt"

    def run(epochs: int, **options: Any) -> None:
        options = {"lr": 1e-3, **options}
        vae = VAE((8, 8), 2, hidden=(8,))
        fit(vae, digits[:100], epochs=epochs, checkpoint=path, optimizer=lambda p: torch.optim.AdamW(p, **options))

    run(1)
    run(2)
    with pytest.raises(CheckpointError, match=rf"Expected a checkpoint with an optimiser of {option} = .*; got one"):
        run(3, **{option: other})


# -------------------------------------------------------------------------------------------------------------- images


def idx_bytes(code: int, array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, np.uint8), (0x09, np.int8), (0x0B, np.int16), (0x0C, np.int32), (0x0D, np.float32), (0x0E, np.float64)],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_of_every_type_are_read_back(code: int, dtype: Any, packed: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-100, 100, (3, 4, 5)).astype(dtype)
    content = idx_bytes(code, array)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(content) if packed else content)
    found = read_idx(path)
    np.testing.assert_array_equal(found.numpy(), array)
    assert found.numpy().dtype == dtype


#: What a whole file holds.
GOOD = idx_bytes(0x08, np.arange(60, dtype=np.uint8).reshape(3, 4, 5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got nothing"),
        (b"\0\0", "Expected an IDX file in .*got 00 00"),
        (b"\x89PNG" + GOOD, "got 89 50 4e 47"),
        (b"\0\0\x07\x03" + GOOD[4:], "got 00 00 07 03"),
        (GOOD[:9], "Expected a header of 16 bytes in .*; got 9 bytes"),
        (GOOD[:-1], r"Expected 76 bytes for shape \[3, 4, 5\] in .*; got 75 bytes"),
        (GOOD + b"\0", r"Expected 76 bytes for shape \[3, 4, 5\] in .*; got 77 bytes"),
        (b"\0\0\x08\x41" + b"\0\0\0\1" * 65 + b"\7", "Expected an IDX file of at most 64 dimensions in .*; got 65"),
        (gzip.compress(GOOD)[:-9], "Expected a whole gzip file in .*; got .* bytes that do not unpack"),
        (gzip.compress(GOOD[:-1]), r"Expected 76 bytes .* got 75 bytes"),
    ],
    ids=range(10),
)
def test_a_damaged_idx_file_is_an_error_with_its_bytes(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_mnist_is_read_from_a_folder_under_either_name(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28)).astype(np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(0x08, images)))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx_bytes(0x08, labels))
    found, classes = load_mnist(tmp_path)
    np.testing.assert_allclose(found.numpy(), images / np.float32(255), rtol=1e-6)
    assert classes.tolist() == list(range(7)) and found.dtype == torch.float32
    with pytest.raises(FileNotFoundError, match=r"Expected t10k-images-idx3-ubyte or .*\.gz in .*; got neither"):
        load_mnist(tmp_path, "test")
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx_bytes(0x08, labels[:5]))
    with pytest.raises(DataError, match=r"got images \[7, 28, 28\] of torch.uint8 with labels \[5\]"):
        load_mnist(tmp_path)


def test_digits_are_scikit_learns_in_the_unit_interval(digits: Tensor) -> None:
    from sklearn.datasets import load_digits as theirs

    np.testing.assert_allclose(digits.numpy() * 16, theirs().images, rtol=1e-6)
    assert digits.shape == (1797, 8, 8) and float(digits.max()) == 1.0
    first, again, other = (binarize(digits, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    white = torch.stack([binarize(digits[:50], torch.Generator().manual_seed(i)) for i in range(200)])
    assert set(white.unique().tolist()) == {0.0, 1.0}
    assert float((white.mean(0) - digits[:50]).abs().max()) < 5 * 0.5 / math.sqrt(200)


# -------------------------------------------------------------------------------------------- few data, and the example


@pytest.mark.slow
def test_with_few_data_a_posterior_over_weights_holds_what_a_point_estimate_loses(digits: Tensor) -> None:
    """200 black and white digits, 1,000 epochs: the point estimate has overfitted; paired on 1,000 held-out digits."""
    generator = torch.Generator().manual_seed(0)
    images = binarize(digits, generator)[torch.randperm(len(digits), generator=generator)]
    bounds = {}
    for weight_prior in (None, 1.0):
        pyro.set_rng_seed(0)
        vae = VAE((8, 8), 8, hidden=(200,), weight_prior=weight_prior)
        fit(vae, images[:200], epochs=1000)
        (bounds[weight_prior],) = importance_weighted_bounds(vae, images[200:1200], (100,))
    difference = bounds[1.0].values - bounds[None].values
    assert difference.mean() > 8 * difference.std() / math.sqrt(len(difference))


def test_the_example_writes_its_pictures_and_compares_the_estimators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_digits, "DRAWS", 5)
    fits = vae_digits.main(["--epochs", "3", "--hidden", "16", "--latent", "2", "5", "--out", str(tmp_path)])
    assert [(fitted.latent, fitted.estimator) for fitted in fits] == [(2, "A"), (2, "B"), (5, "A"), (5, "B")]
    assert all(list(fitted.spread) == [0, 1, 2, 3] and len(fitted.history) == 3 for fitted in fits)
    for name in ("losses", "reconstructions", "samples", "latent_plane"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "L_500" in capsys.readouterr().out


def test_a_pause_of_the_example_changes_nothing(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains from stop to stop by way of a checkpoint: the end is that of one call of ``fit``."""
    images = vae_digits.Images(digits[:200], digits[200:220], torch.zeros(20))
    monkeypatch.setattr(vae_digits, "DRAWS", 5)
    paused = vae_digits.train("B", images, 2, [8], 4, seed=3)
    pyro.set_rng_seed(3)
    vae = VAE((8, 8), 2, hidden=(8,))
    fit(vae, images.train, epochs=4)
    assert all(torch.equal(value, parameters(paused.vae)[name]) for name, value in parameters(vae).items())


def test_pictures_are_laid_side_by_side_in_rows() -> None:
    images = torch.arange(6.0).reshape(6, 1, 1).expand(6, 2, 2)
    found = vae_digits.montage(images, 3)
    assert found.shape == (5, 8)
    assert found[0, ::3].tolist() == [0.0, 1.0, 2.0] and found[3, ::3].tolist() == [3.0, 4.0, 5.0]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_on_a_gpu_training_resumes_and_scores(kind: dict[str, Any], tmp_path: Path) -> None:
    vae = VAE((8, 8), 3, **{"hidden": (16,), **kind}).cuda()
    images = pictures(vae.cpu(), 300).cuda()
    vae.cuda()
    history = fit(vae, images, epochs=2, checkpoint=tmp_path / "run.pt", validation=images[:50])
    history = fit(vae, images, epochs=3, checkpoint=tmp_path / "run.pt", validation=images[:50])
    assert len(history) == 3 and all(map(math.isfinite, history.elbo + history.validation_elbo))
    one, many = importance_weighted_bounds(vae, images, (1, 20))
    assert one.values.is_cuda and bool((one.values <= many.values + 1e-4).all())


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "context_dim"), FLOWS)
def test_on_a_gpu_a_flow_trains_and_scores(kind: str, context_dim: int | None) -> None:
    vae = with_flow(kind, context_dim).cuda()
    images = torch.rand(300, 6, 5).cuda()
    history = fit(vae, images, epochs=2, estimator="A", validation=images[:50])
    assert all(map(math.isfinite, history.elbo + history.validation_elbo))
    one, many = importance_weighted_bounds(vae, images, (1, 20))
    assert one.values.is_cuda and bool((one.values <= many.values + 1e-4).all())
    assert math.isfinite(diagnose(vae, images, threshold=-1.0).kl)
