"""Autoencoders with categorical latents: their bounds, their substitutes for a gradient, and that they train."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from pyro_latent.errors import DataError, ModelError
from pyro_latent.gradient.estimators import PathwiseELBO, ScoreFunctionELBO, estimator_variance
from pyro_latent.models.vae import NonFiniteLossError
from pyro_latent.models.vae.discrete import (
    VQVAE,
    DiscreteVAE,
    ResidualQuantizer,
    TemperatureSchedule,
    VectorQuantizer,
    perplexity,
    rotate_gradient,
    straight_through,
)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """1,797 digits of 8 × 8 pixels, grey levels in [0, 1]."""
    datasets = pytest.importorskip("sklearn.datasets")
    return torch.from_numpy(datasets.load_digits().data / 16).float()


def tiny(relaxation: Any = "gumbel_softmax") -> tuple[DiscreteVAE, Tensor]:
    """Two variables of three categories, so that all nine codes can be written out; and five images of four pixels."""
    vae = DiscreteVAE(4, 2, 3, hidden=(5,), relaxation=relaxation).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3)
    return vae, torch.rand(5, 4, dtype=torch.float64)


def bias(vae: DiscreteVAE) -> Tensor:
    """The last bias of the encoder: every logit moves with its own."""
    last: Any = vae.encoder[-1]
    found: Tensor = last.bias
    return found


def enumerated(vae: DiscreteVAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x | code) and q(code | x) of all codes, ``[N, codes]`` both."""
    probs = vae._encode(images).softmax(-1)
    codes = torch.tensor(list(itertools.product(range(vae.num_categories), repeat=vae.num_variables)))
    log_likelihood = torch.stack([vae.likelihood(vae.code_vectors(code)).log_prob(images) for code in codes], -1)
    posterior = torch.stack([probs[:, range(vae.num_variables), code].prod(-1) for code in codes], -1)
    return log_likelihood.detach(), posterior.detach()


# ------------------------------------------------------------------------------------------------------------- bounds


def test_the_elbo_has_the_enumerated_mean_and_is_below_the_evidence() -> None:
    vae, images = tiny()
    log_likelihood, posterior = enumerated(vae, images)
    exact = (posterior * (log_likelihood - math.log(9) - posterior.log())).sum(-1)
    log_evidence = torch.logsumexp(log_likelihood - math.log(9), -1)
    draws = torch.stack([vae.elbo(images) for _ in range(2000)])
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() < 4 * error).all()
    assert (exact < log_evidence).all()


@pytest.mark.slow
def test_the_score_function_estimates_the_enumerated_elbo_and_its_gradient() -> None:
    vae, images = tiny("exact")
    logits = bias(vae)
    probs = vae._encode(images).softmax(-1)
    log_likelihood, _ = enumerated(vae, images)
    codes = list(itertools.product(range(3), repeat=2))
    posterior = torch.stack([probs[:, range(2), code].prod(-1) for code in codes], -1)
    exact = (posterior * (log_likelihood - math.log(9) - posterior.log())).sum()
    (gradient,) = torch.autograd.grad(-exact, logits)
    elbo = ScoreFunctionELBO(4, leave_one_out=True, vectorize_particles=True)
    found = estimator_variance(vae.model, vae.guide, images, estimators={"score": elbo}, num_samples=500)["score"]
    assert abs(found.loss_mean + exact.item()) < 4 * math.sqrt(found.loss_variance / 500)
    (name,) = (n for n in found.gradient_mean if n.startswith("encoder") and n.endswith("2.bias"))
    error = (found.gradient_variance[name] / 500).sqrt()
    assert ((found.gradient_mean[name] - gradient).abs() < 4.5 * error).all()


@pytest.mark.parametrize("relaxation", ["gumbel_softmax", pytest.param("straight_through", marks=pytest.mark.slow)])
def test_the_relaxed_objective_nears_the_discrete_one_as_the_temperature_falls(relaxation: Any) -> None:
    vae, images = tiny(relaxation)
    log_likelihood, posterior = enumerated(vae, images)
    exact = (posterior * (log_likelihood - math.log(9) - posterior.log())).sum().item()
    losses = np.array([PathwiseELBO().loss(vae.model, vae.guide, images, 0.01) for _ in range(800)])
    assert abs(losses.mean() + exact) < 4 * losses.std() / math.sqrt(800) + 0.01


@pytest.mark.parametrize("relaxation", ["gumbel_softmax", "straight_through"])
def test_a_minibatch_is_scaled_to_the_data(relaxation: Any) -> None:
    vae, images = tiny(relaxation)
    losses = []
    for num_data in (None, 50):
        pyro.set_rng_seed(3)
        losses.append(PathwiseELBO().loss(vae.model, vae.guide, images, 0.7, num_data))
    assert losses[1] == pytest.approx(10 * losses[0])


# ---------------------------------------------------------------------------------------------------------- relaxation


def draw(vae: DiscreteVAE, images: Tensor, temperature: float, seed: int = 0) -> Tensor:
    pyro.set_rng_seed(seed)
    trace: Any = poutine.trace(vae.guide).get_trace(images, temperature)
    z: Tensor = trace.nodes["z"]["value"]
    return z


def test_the_largest_element_of_a_relaxed_draw_has_the_categories_probabilities() -> None:
    vae, images = tiny()
    images = images[:1].expand(20_000, 4)
    counts = draw(vae, images, 0.8).argmax(-1)[:, 0].bincount(minlength=3)
    expected = vae._encode(images[:1]).softmax(-1)[0, 0].detach() * 20_000
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_relaxed_draws_are_in_the_simplex_and_near_its_corners_when_cold() -> None:
    vae, images = tiny()
    warm, cold = draw(vae, images, 2.0), draw(vae, images, 0.01)
    for z in (warm, cold):
        assert (z >= 0).all()
        torch.testing.assert_close(z.sum(-1), torch.ones(5, 2, dtype=torch.float64))
    assert cold.max(-1).values.mean() > 0.99 > 0.9 > warm.max(-1).values.mean()


def test_straight_through_is_one_hot_forward_and_soft_backward() -> None:
    """With the same noise: the value is the corner nearest to the relaxed draw, and the gradient is that draw's."""
    gradients, values = [], []
    hard, images = tiny("straight_through")
    soft, _ = tiny("gumbel_softmax")
    soft.load_state_dict(hard.state_dict())
    weights = torch.randn(5, 2, 3, dtype=torch.float64)
    for vae in (hard, soft):
        pyro.clear_param_store()
        z = draw(vae, images, 0.7)
        values.append(z.detach())
        gradients.append(torch.autograd.grad((weights * z).sum(), bias(vae))[0])
    corners = torch.nn.functional.one_hot(values[1].argmax(-1), 3).double()
    assert torch.equal(values[0], corners)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_temperature_falls_exponentially_to_its_floor() -> None:
    schedule = TemperatureSchedule(start=2.0, floor=0.5, rate=0.01)
    assert schedule(0) == 2.0
    assert schedule(100) == pytest.approx(2 / math.e)
    assert schedule(50) / schedule(20) == pytest.approx(math.exp(-0.3))
    assert schedule(10_000) == 0.5


def test_perplexity_is_exp_of_scipys_entropy() -> None:
    codes = torch.tensor([[0, 1], [0, 2], [0, 2], [0, 0]])
    expected = [1.0, math.exp(scipy.stats.entropy([1, 1, 2]))]
    np.testing.assert_allclose(perplexity(codes, 5).numpy(), expected)


# --------------------------------------------------------------------------------------------------------- quantisation


def rotation(encoded: np.ndarray, code: np.ndarray) -> np.ndarray:
    """R of the plane of two vectors, by the angle between them: Rodrigues' formula in any dimension."""
    first = encoded / np.linalg.norm(encoded)
    target = code / np.linalg.norm(code)
    cosine = first @ target
    second = target - cosine * first
    sine = np.linalg.norm(second)
    second = second / sine
    turn = sine * (np.outer(second, first) - np.outer(first, second))
    squash = (cosine - 1) * (np.outer(first, first) + np.outer(second, second))
    return np.eye(len(encoded)) + turn + squash


def test_the_rotation_trick_has_its_definitions_value_and_gradient() -> None:
    encoded = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    code = torch.randn(6, 4, dtype=torch.float64)
    outward = torch.randn(6, 4, dtype=torch.float64)
    value = rotate_gradient(encoded, code)
    torch.testing.assert_close(value, code, rtol=1e-14, atol=1e-14)
    (found,) = torch.autograd.grad((outward * value).sum(), encoded)
    for e, q, g, gradient in zip(encoded.detach().numpy(), code.numpy(), outward.numpy(), found.numpy(), strict=True):
        turn = rotation(e, q)
        np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
        scale = np.linalg.norm(q) / np.linalg.norm(e)
        np.testing.assert_allclose(scale * turn @ e, q, rtol=1e-10)
        np.testing.assert_allclose(gradient, scale * turn.T @ g, rtol=1e-10, atol=1e-12)


def test_the_rotated_gradient_keeps_its_angle_to_the_vector() -> None:
    encoded = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    code, outward = torch.randn(2, 50, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad((outward * rotate_gradient(encoded, code)).sum(), encoded)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(found, encoded.detach(), -1), cosine(outward, code, -1))


def test_straight_through_copies_the_gradient() -> None:
    encoded = torch.randn(6, 4, requires_grad=True)
    code, outward = torch.randn(2, 6, 4)
    value = straight_through(encoded, code)
    torch.testing.assert_close(value, code)
    assert torch.equal(torch.autograd.grad((outward * value).sum(), encoded)[0], outward)


def test_where_no_rotation_exists_the_gradient_goes_straight_through() -> None:
    one = torch.tensor([1.0, 0.0, 0.0])
    encoded = torch.stack([one, torch.zeros(3), one]).requires_grad_()
    code = torch.stack([-2 * one, one, torch.zeros(3)])
    outward = torch.randn(3, 3)
    value = rotate_gradient(encoded, code)
    assert torch.equal(value, code)
    assert torch.equal(torch.autograd.grad((outward * value).sum(), encoded)[0], outward)


def test_a_quantizer_takes_the_nearest_code_and_its_losses_move_one_side_each() -> None:
    quantizer = VectorQuantizer(7, 3).double()
    encoded = torch.randn(20, 2, 3, dtype=torch.float64, requires_grad=True)
    found = quantizer(encoded)
    codebook = quantizer.codebook.detach()
    distances = np.linalg.norm(encoded.detach().numpy()[..., None, :] - codebook.numpy(), axis=-1)
    np.testing.assert_array_equal(found.codes.numpy(), distances.argmin(-1))
    torch.testing.assert_close(found.values, codebook[found.codes])
    difference = codebook[found.codes] - encoded.detach()
    both = encoded, quantizer.codebook
    by_vector, by_code = torch.autograd.grad(found.codebook_loss.sum(), both, allow_unused=True)
    assert by_vector is None
    expected = torch.zeros_like(codebook).index_add_(0, found.codes.flatten(), 2 * difference.flatten(0, 1))
    torch.testing.assert_close(by_code, expected)
    by_vector, by_code = torch.autograd.grad(found.commitment_loss.sum(), both, allow_unused=True)
    assert by_code is None
    torch.testing.assert_close(by_vector, -2 * difference)


@pytest.mark.parametrize("commitment", [0.0, 0.25, 2.0])
def test_the_programs_loss_is_the_papers(commitment: float, digits: Tensor) -> None:
    """-log p(x | code) + |sg[e] - q|² + β |e - sg[q]|² (van den Oord et al. 2017, (3)); its gradient by each side."""
    images = digits[:20].double()
    vae = VQVAE(64, 4, 16, gradient="straight_through", commitment=commitment).double()
    encoded = vae._encode(images)
    nearest = vae.quantizer.codebook[vae.codes(images)]
    reconstruction = -vae.likelihood(encoded + (nearest - encoded).detach()).log_prob(images).sum()
    expected = reconstruction + (encoded.detach() - nearest).square().sum()
    expected = expected + commitment * (encoded - nearest.detach()).square().sum()
    parameters = list(vae.parameters())
    found = PathwiseELBO().differentiable_loss(vae.model, vae.guide, images)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_unused_codes_restart_at_vectors_and_used_ones_stay(digits: Tensor) -> None:
    vae = VQVAE(64, 4, 16)
    with torch.no_grad():
        vae.quantizer.codebook[5:].add_(100)  # too far to be nearest
    before = vae.quantizer.codebook.detach().clone()
    used = vae.codes(digits).unique()
    assert vae.restart_unused(digits) == 16 - len(used)
    assert torch.equal(vae.quantizer.codebook[used], before[used])
    vectors = vae._encode(digits).flatten(0, 1).detach()
    moved = [k for k in range(16) if k not in used]
    assert all((vectors == vae.quantizer.codebook[k]).all(-1).any() for k in moved)


def test_the_nearest_code_is_found_far_from_the_origin_in_float32() -> None:
    quantizer = VectorQuantizer(64, 2)
    with torch.no_grad():
        quantizer.codebook.add_(4096)
    assert torch.equal(quantizer.nearest(quantizer.codebook.detach()[:50]), torch.arange(50))


def test_the_bound_of_uniform_codes_is_below_the_evidence_by_enumeration() -> None:
    vae = VQVAE(4, 2, 3, code_dim=2, hidden=(5,)).double()
    images = torch.rand(5, 4, dtype=torch.float64)
    codes = torch.tensor(list(itertools.product(range(3), repeat=2)))
    log_likelihood = torch.stack([vae.likelihood(vae.code_vectors(code)).log_prob(images) for code in codes], -1)
    assert (vae.elbo(images) <= torch.logsumexp(log_likelihood, -1) - math.log(9)).all()
    own = (codes == vae.codes(images)[:, None]).all(-1)
    torch.testing.assert_close(vae.elbo(images), log_likelihood[own] - math.log(9))


# ------------------------------------------------------------------------------------------------------------ training


def train(vae: Any, images: Tensor, elbo: Any, schedule: TemperatureSchedule | None, num_steps: int = 250) -> None:
    svi = SVI(vae.model, vae.guide, pyro.optim.ClippedAdam({"lr": 3e-3}), elbo)
    for step in range(num_steps):
        batch = images[torch.randint(len(images), (100,))]
        if isinstance(vae, VQVAE):
            if step % 100 == 0:
                vae.restart_unused(images)
            svi.step(batch, num_data=len(images))
        else:
            svi.step(batch, 1.0 if schedule is None else schedule(step), num_data=len(images))


@pytest.mark.parametrize(
    ("make", "elbo"),
    [
        pytest.param(lambda: DiscreteVAE(64, relaxation="gumbel_softmax"), PathwiseELBO(), marks=pytest.mark.slow),
        (lambda: DiscreteVAE(64, relaxation="straight_through"), PathwiseELBO()),
        (
            lambda: DiscreteVAE(64, relaxation="exact"),
            ScoreFunctionELBO(4, leave_one_out=True, vectorize_particles=True),
        ),
        (lambda: VQVAE(64, gradient="rotation"), PathwiseELBO()),
        pytest.param(lambda: VQVAE(64, gradient="straight_through"), PathwiseELBO(), marks=pytest.mark.slow),
    ],
    ids=["gumbel softmax", "straight through", "score function", "vq, rotation", "vq, straight through"],
)
def test_each_way_trains_on_digits_and_uses_its_categories(make: Any, elbo: Any, digits: Tensor) -> None:
    """Held-out: the bound rises by 15 nats, reconstructions beat the mean image, every variable uses categories."""
    images, held_out = digits[:1500], digits[1500:]
    vae = make()
    before = vae.elbo(held_out).mean()
    train(vae, images, elbo, TemperatureSchedule(rate=2e-3))
    assert vae.elbo(held_out).mean() > before + 15
    error = (vae.reconstruct(held_out) - held_out).square().mean()
    of_mean_image = (images.mean(0) - held_out).square().mean()
    assert error < 0.75 * of_mean_image
    assert perplexity(vae.codes(held_out), vae.num_categories).min() > 2
    samples = vae.sample(10)
    assert samples.shape == (10, 64)
    assert ((samples >= 0) & (samples <= 1)).all()


# ---------------------------------------------------------------------------------------------- residual quantization


def test_each_depth_takes_the_nearest_code_to_what_is_left() -> None:
    quantizer = ResidualQuantizer(3, 7, 4).double()
    encoded = torch.randn(20, 2, 4, dtype=torch.float64)
    found = quantizer(encoded)
    assert found.codes.shape == found.commitment_loss.shape == (20, 2, 3)
    left = encoded.numpy().copy()
    for depth, stage in enumerate(quantizer.depths):
        codebook: Any = stage.codebook
        codebook = codebook.detach().numpy()
        nearest = np.linalg.norm(left[..., None, :] - codebook, axis=-1).argmin(-1)
        np.testing.assert_array_equal(found.codes[..., depth].numpy(), nearest)
        left = left - codebook[nearest]
        squared = (left**2).sum(-1)
        np.testing.assert_allclose(found.commitment_loss[..., depth].detach().numpy(), squared, rtol=1e-12)
        np.testing.assert_allclose(found.codebook_loss[..., depth].detach().numpy(), squared, rtol=1e-12)
    np.testing.assert_allclose(found.values.detach().numpy(), encoded.numpy() - left, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(quantizer.vectors(quantizer.nearest(encoded)), found.values)


def test_the_losses_of_a_depth_move_its_codes_or_the_vectors() -> None:
    quantizer = ResidualQuantizer(2, 5, 3).double()
    encoded = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    found = quantizer(encoded)
    everything = [encoded, *quantizer.parameters()]
    for depth in range(2):
        moved = torch.autograd.grad(
            found.codebook_loss[:, depth].sum(), everything, retain_graph=True, allow_unused=True
        )
        assert [g is not None and bool(g.any()) for g in moved] == [False, depth == 0, depth == 1]
        moved = torch.autograd.grad(
            found.commitment_loss[:, depth].sum(), everything, retain_graph=True, allow_unused=True
        )
        assert [g is not None and bool(g.any()) for g in moved] == [True, False, False]


@pytest.mark.parametrize(("gradient", "carry"), [("rotation", rotate_gradient), ("straight_through", straight_through)])
def test_the_gradient_goes_through_the_whole_sum(gradient: Any, carry: Any) -> None:
    quantizer = ResidualQuantizer(3, 5, 3, gradient).double()
    encoded = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    outward = torch.randn(8, 3, dtype=torch.float64)
    found = quantizer(encoded)
    whole = carry(encoded, quantizer.vectors(found.codes).detach())
    assert torch.equal(found.values, whole)
    slopes = [torch.autograd.grad((outward * value).sum(), encoded)[0] for value in (found.values, whole)]
    assert torch.equal(*slopes)


def test_one_quantizer_of_a_residual_is_the_quantizer() -> None:
    alone, residual = VectorQuantizer(5, 3), ResidualQuantizer(1, 5, 3)
    residual.depths[0].load_state_dict(alone.state_dict())
    encoded = torch.randn(8, 3)
    found = residual(encoded)
    for one, other in zip(alone(encoded), found._replace(values=found.values[..., None]), strict=True):
        assert torch.equal(one, other[..., 0])
    assert isinstance(VQVAE(4, 2, 3, num_quantizers=1).quantizer, VectorQuantizer)


def test_the_error_on_digits_falls_with_depth(digits: Tensor) -> None:
    """Codebooks restarted among the residuals of 1,500 digits, errors of the others."""
    quantizer = ResidualQuantizer(4, 32, 64)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(100)  # so that none but one is nearest
    assert quantizer.restart_unused(digits[:1500]) >= 4 * 31
    errors = quantizer(digits[1500:]).commitment_loss.detach().mean(0)
    assert bool((errors.diff() < 0).all())


def test_an_autoencoder_of_two_depths_trains_samples_and_is_bounded(digits: Tensor) -> None:
    vae = VQVAE(64, 4, 16, num_quantizers=2)
    before = vae.elbo(digits[1500:]).mean()
    train(vae, digits[:1500], PathwiseELBO(), None)
    assert vae.elbo(digits[1500:]).mean() > before + 10
    codes = vae.codes(digits[1500:])
    assert codes.shape == (297, 4, 2)
    assert perplexity(codes, 16).shape == (4, 2)
    assert perplexity(codes, 16).min() > 2
    assert vae.sample(3).shape == (3, 64)
    log_likelihood = vae.likelihood(vae.code_vectors(codes)).log_prob(digits[1500:])
    torch.testing.assert_close(vae.elbo(digits[1500:]), log_likelihood - 8 * math.log(16))
    with pytest.raises(DataError, match=r"Expected codes \[\.\.\., 2\], one for each depth; got \[297, 4\]"):
        vae.code_vectors(codes[..., 0])


# ------------------------------------------------------------------------------------------------------------ programs


def test_the_prior_of_the_program_draws_one_hot_vectors() -> None:
    vae, images = tiny()
    trace: Any = poutine.trace(poutine.uncondition(vae.model)).get_trace(images)
    z = trace.nodes["z"]["value"]
    assert isinstance(trace.nodes["x"]["fn"], dist.Independent)
    assert torch.equal(z.sum(-1), torch.ones(5, 2, dtype=torch.float64))
    assert torch.equal(z, z.round())


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("make", [DiscreteVAE, VQVAE])
def test_a_second_autoencoder_is_not_trained_by_mistake_on_the_firsts_parameters(make: Any, digits: Tensor) -> None:
    """SVI on the second would move the first's parameters, which are those that Pyro's store has."""

    def train_once(vae: Any) -> None:
        SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), PathwiseELBO()).step(digits[:50])

    first, second, named = make(64), make(64), make(64, name="named")
    train_once(first)
    with pytest.raises(ModelError, match=rf"(?s)Expected this {make.__name__}'s own parameter .*clear_param_store"):
        train_once(second)
    for program in (second.model, second.guide) if make is DiscreteVAE else (second.model,):
        with pytest.raises(ModelError, match="own parameter"):
            program(digits[:50])
        with torch.no_grad():
            program(digits[:50])  # a look is allowed
    before = {name: value.detach().clone() for name, value in named.named_parameters()}
    train_once(named)
    assert all(not torch.equal(value, before[name]) for name, value in named.named_parameters())


@pytest.mark.parametrize("make", [DiscreteVAE, VQVAE])
def test_svi_goes_on_from_the_states_of_parameters_optimiser_and_generator(
    make: Any, digits: Tensor, tmp_path: Path
) -> None:
    """What the page says to save: six steps, and three with three more in another session, end alike bit for bit."""

    def run(vae: Any, num_steps: int, saved: dict[str, Any] | None = None) -> Any:
        pyro.clear_param_store()
        optimizer = pyro.optim.Adam({"lr": 1e-2})
        if saved is not None:
            vae.load_state_dict(saved["vae"])
            optimizer.set_state(saved["optimizer"])
            torch.set_rng_state(saved["random"])
        svi = SVI(vae.model, vae.guide, optimizer, PathwiseELBO())
        for _ in range(num_steps):
            svi.step(digits[torch.randint(len(digits), (50,))], num_data=len(digits))
        return optimizer.get_state()

    first = make(64, hidden=(16,))
    second, third = copy.deepcopy(first), make(64, hidden=(16,))
    pyro.set_rng_seed(1)
    run(first, 6)
    pyro.set_rng_seed(1)
    state = run(second, 3)
    content = {"vae": second.state_dict(), "optimizer": state, "random": torch.get_rng_state()}
    torch.save(content, tmp_path / "run.pt")
    run(third, 3, torch.load(tmp_path / "run.pt"))
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), third.parameters(), strict=True))


@pytest.mark.parametrize("network", ["encoder", "decoder"])
@pytest.mark.parametrize("make", [DiscreteVAE, VQVAE])
def test_a_network_that_overflows_stops_svi_before_the_step(make: Any, network: str, digits: Tensor) -> None:
    vae = make(64)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), PathwiseELBO())
    svi.step(digits[:50])
    before = {name: value.detach().clone() for name, value in vae.named_parameters()}
    hook = getattr(vae, network).register_forward_hook(lambda module, inputs, output: output / 0)
    words = f"Expected finite outputs of the {network}; got NaN or infinity. The parameters are as before the step"
    with pytest.raises(NonFiniteLossError, match=words):
        svi.step(digits[:50])
    assert all(torch.equal(value, before[name]) for name, value in vae.named_parameters())
    hook.remove()
    with torch.no_grad():
        getattr(vae, network)[0].bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=rf"The parameters are not finite in {network}\.0\.bias"):
        svi.step(digits[:50])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TemperatureSchedule(floor=0.0), "Expected 0 < floor <= start and rate >= 0; got"),
        (lambda: TemperatureSchedule(start=0.1, floor=0.5), "Expected 0 < floor <= start"),
        (lambda: TemperatureSchedule(rate=-1.0), "rate=-1.0"),
        (lambda: DiscreteVAE(64, num_categories=1), "Expected num_categories to be an integer of at least 2; got 1"),
        (lambda: DiscreteVAE(64, hidden=(0,)), r"Expected hidden\[0\] to be an integer of at least 1; got 0"),
        (lambda: VQVAE(64, code_dim=2.5), r"Expected code_dim to be an integer of at least 1; got 2.5"),  # type: ignore[arg-type]
        (lambda: tiny()[0].elbo(tiny()[1], 0), "Expected num_samples to be an integer of at least 1; got 0"),
        (lambda: VQVAE(4, 2, 3).sample(0), "Expected num_samples to be an integer of at least 1; got 0"),
        (lambda: DiscreteVAE(64, relaxation="soft"), "Expected relaxation to be 'gumbel_softmax' or"),  # type: ignore[arg-type]
        (lambda: VQVAE(64, gradient="copy"), "Expected gradient to be 'rotation' or"),  # type: ignore[arg-type]
        (lambda: VQVAE(64, num_quantizers=0), "Expected num_quantizers to be an integer of at least 1; got 0"),
        (lambda: VQVAE(64, commitment=-1.0), "Expected commitment >= 0; got -1.0"),
        (lambda: tiny()[0].guide(tiny()[1], 0.0), "Expected a temperature > 0; got 0.0. Use TemperatureSchedule"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(5, 3), r"Expected images of shape \[M, 4\] with .*; got shape \[5, 3\]. Reshape"),
        (torch.zeros(0, 4), r"Expected images of shape \[M, 4\] with M >= 1; got shape \[0, 4\]"),
        (torch.zeros(5, 4, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((5, 4), 16.0), r"Expected images in \[0, 1\] .* got values from 16 to 16. Divide"),
        (torch.full((5, 4), math.nan), "Expected images without NaN; got 20 NaN"),
    ],
)
def test_images_that_do_not_fit_are_named(images: Tensor, words: str) -> None:
    for program in (DiscreteVAE(4, 2, 3).model, VQVAE(4, 2, 3).model, DiscreteVAE(4, 2, 3).elbo):
        with pytest.raises(DataError, match=words):
            program(images)


def test_codes_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match="Expected codes from 0 to 2; got 0 to 3"):
        perplexity(torch.tensor([[0], [3]]), 3)
    with pytest.raises(DataError, match="Expected integer codes of shape"):
        perplexity(torch.zeros(3, 2), 3)
    with pytest.raises(DataError, match="Expected vectors of 3 elements; got 4"):
        VectorQuantizer(5, 3)(torch.zeros(2, 4))
