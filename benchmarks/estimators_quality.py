"""Figures of docs/estimators.md: five ways to train on categories, and how much gradient estimators vary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import pyro_method
from torch import Tensor

from examples.gradient_variance import digits_course
from pyro_latent.gradient.estimators import PathwiseELBO, ScoreFunctionELBO, estimator_variance
from pyro_latent.models.vae import load_digits
from pyro_latent.models.vae.discrete import VQVAE, DiscreteVAE, TemperatureSchedule, perplexity

from .seeds import SEEDS, less, ranged
from .timing import markdown

NUM_SEEN, BATCH, STEPS = 1500, 100, 600
RATE = 3e-3
TEMPERATURE = TemperatureSchedule(start=1.0, floor=0.5, rate=2e-3)


class RelaxedDensities(DiscreteVAE):
    """Gumbel-softmax with the KL divergence of the *relaxed* z, at its draw, in the place of the categories'."""

    @pyro_method
    def model(self, images: Tensor, temperature: float = 1.0, num_data: int | None = None) -> None:
        flat = images.new_zeros(self.num_variables, self.num_categories)
        with self._plate(images, num_data):
            z = pyro.sample("z", self._density(flat, temperature))
            pyro.sample("x", self.likelihood(z), obs=images)

    @pyro_method
    def guide(self, images: Tensor, temperature: float = 1.0, num_data: int | None = None) -> None:
        with self._plate(images, num_data):
            pyro.sample("z", self._density(self._encode(images), temperature))

    @staticmethod
    def _density(logits: Tensor, temperature: float) -> Any:
        return dist.RelaxedOneHotCategorical(logits.new_tensor(temperature), logits=logits).to_event(1)


def _vae(relaxation: Any) -> Callable[[], DiscreteVAE]:
    return lambda: DiscreteVAE(64, 8, 8, relaxation=relaxation)


def _codebook(gradient: Any) -> Callable[[], VQVAE]:
    return lambda: VQVAE(64, 8, 32, gradient=gradient)


WAYS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "Gumbel-softmax": (_vae("gumbel_softmax"), PathwiseELBO),
    "straight-through": (_vae("straight_through"), PathwiseELBO),
    "exact, score function with 5 draws": (
        _vae("exact"),
        lambda: ScoreFunctionELBO(5, leave_one_out=True, vectorize_particles=True, max_plate_nesting=1),
    ),
    "codebook, rotation": (_codebook("rotation"), PathwiseELBO),
    "codebook, straight-through": (_codebook("straight_through"), PathwiseELBO),
    "Gumbel-softmax, relaxed densities": (lambda: RelaxedDensities(64, 8, 8), PathwiseELBO),
}
#: The other way of each pair.
BESIDE = {
    "straight-through": "Gumbel-softmax",
    "exact, score function with 5 draws": "Gumbel-softmax",
    "codebook, straight-through": "codebook, rotation",
}


def run() -> str:
    """The page's tables."""
    return "\n\n".join([discrete(), variances(), defects()])


# ---------------------------------------------------------------------------------------------------- discrete latents


def discrete() -> str:
    """The held-out bound, reconstruction and categories in use after 600 steps."""
    found = {name: [trained(*way, seed) for seed in SEEDS] for name, way in WAYS.items()}
    rows = []
    for name, by_seed in found.items():
        before, after, error, used = (list(column) for column in zip(*by_seed, strict=True))
        other = BESIDE.get(name)
        gap = "" if other is None else ranged(less(after, [result[1] for result in found[other]]))
        rows.append([name, ranged(before, 1), ranged(after, 1), gap, ranged(error, 3), ranged(used, 1)])
    images = load_digits()[0].flatten(1)
    held_out = images[NUM_SEEN:]
    of_mean, of_own = (float((held_out - part.mean(0)).square().mean()) for part in (images[:NUM_SEEN], held_out))
    heading = ["way", "bound before", "after", "less the other's", "reconstruction error", "categories in use"]
    return (
        f"## Categories\n\n{len(images) - NUM_SEEN} held-out digits, {STEPS} steps, minibatches of {BATCH}; 8 "
        f"variables of 8 categories, or a codebook of 32. The mean image has an error of {of_mean:.4f}, that of the "
        f"held-out images themselves {of_own:.4f}. The last row is no bound of the model that it is scored by. *The "
        "other* is Gumbel-softmax, or the codebook with rotation. The bound of a codebook pays 8 log 32 = "
        f"{8 * math.log(32):.1f} nats."
        f"\n\n{markdown(heading, rows)}"
    )


def trained(make: Callable[[], Any], make_elbo: Callable[[], Any], seed: int) -> tuple[float, float, float, float]:
    """The bound before and after, the mean square error of a pixel, and the perplexity of the codes."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    images = load_digits()[0].flatten(1)
    seen, held_out = images[:NUM_SEEN], images[NUM_SEEN:]
    vae = make()
    before = float(vae.elbo(held_out).mean())
    svi = SVI(vae.model, vae.guide, pyro.optim.ClippedAdam({"lr": RATE}), make_elbo())
    for step in range(STEPS):
        temperature = () if isinstance(vae, VQVAE) else (TEMPERATURE(step),)
        if isinstance(vae, VQVAE) and step % 100 == 0:
            vae.restart_unused(seen)
        svi.step(seen[torch.randint(NUM_SEEN, (BATCH,))], *temperature, num_data=NUM_SEEN)
    error = float((vae.reconstruct(held_out) - held_out).square().mean())
    used = float(perplexity(vae.codes(held_out), vae.num_categories).mean())
    return before, float(vae.elbo(held_out).mean()), error, used


# ------------------------------------------------------------------------------------------------------------ variances


def variances() -> str:
    """Variances of the encoder's gradient along the training of the example, at its start and its end."""
    rows: dict[str, list[list[float]]] = {"before": [], "after 3,000 steps": []}
    later = []
    for seed in SEEDS:
        pyro.set_rng_seed(seed)
        course = digits_course(3000, 100)
        a, b, score = (course.guide_variance(n) for n in ("A, pathwise", "B, closed-form KL", "score function"))
        losses = [course.loss_variance(n) for n in ("A, pathwise", "B, closed-form KL")]
        quieter = [x > y for x, y in zip(*losses, strict=True)]
        later.append(f"{sum(quieter)} of {len(quieter)}")
        for name, i in (("before", 0), ("after 3,000 steps", -1)):
            rows[name].append([a[i] / b[i], math.log10(score[i])])
    cells = [[name, *(ranged(list(c), 1) for c in zip(*found, strict=True))] for name, found in rows.items()]
    return (
        "## Variances\n\nDigits, 10 dimensions, 100 estimates a point (`examples/gradient_variance.py`).\n\n"
        f"{markdown(['', 'A over B, gradient by the encoder', 'score function, power of ten'], cells)}\n\nB has the "
        f"quieter loss at so many of the points, by seed: {', '.join(later)}."
    )


# ------------------------------------------------------------------------------------------------------- Pyro's defects


def gamma_model(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


def auxiliary_guide(x: Tensor) -> None:
    """The rate as exp of an auxiliary normal that is not reparameterised."""
    loc = pyro.param("loc", x.new_tensor(0.7))
    scale = pyro.param("scale", x.new_tensor(0.6), constraint=dist.constraints.positive)
    u = pyro.sample("u", NonreparameterizedNormal(loc, scale), infer={"is_auxiliary": True})
    pyro.sample("rate", dist.Delta(u.exp(), log_density=-u))


def defects() -> str:
    """What two of Pyro's estimators make of autoguides."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x = torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    auto = AutoNormal(gamma_model, init_loc_fn=lambda site: x.new_tensor(3.0), init_scale=0.1)
    auto(x)
    many: Any = {"vectorize_particles": True, "max_plate_nesting": 1}
    both = [elbo(10_000, **many).loss(gamma_model, auto, x) for elbo in (Trace_ELBO, TraceMeanField_ELBO)]
    named = {"theirs": Trace_ELBO(1000, **many), "ours": ScoreFunctionELBO(1000, **many)}
    report = estimator_variance(gamma_model, auxiliary_guide, x, estimators=named, num_samples=300)
    gradients = [
        f"{report[name].gradient_mean['scale']:.2f} ± {(report[name].gradient_variance['scale'] / 300).sqrt():.2f}"
        for name in named
    ]
    return (
        "## Pyro's estimators with autoguides\n\n`TraceMeanField_ELBO`, a rate near 3: -ELBO "
        f"{both[1]:.2f}, by `Trace_ELBO` {both[0]:.2f}, with 10,000 draws each; log 3 is {math.log(3):.2f}. "
        "`Trace_ELBO` with an auxiliary site that is not reparameterised: gradient by the log of its scale "
        f"{gradients[0]}, by `ScoreFunctionELBO` {gradients[1]}, from 300,000 draws each."
    )
