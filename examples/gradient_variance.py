"""How much four estimators of the ELBO's gradient vary, measured along the training of two autoencoders.

- The digits of scikit-learn by a variational autoencoder: two networks, ten latents.
- A linear-Gaussian autoencoder on data of its own kind, whose q comes to be the exact posterior.

The first is trained with estimator B, the other with sticking the landing, whose noise dies out as q gets there. On the
way, at fixed parameters and one fixed minibatch, ``estimator_variance`` measures the estimators A (pathwise), B
(closed-form KL), sticking the landing, and the score function, one draw each. All but B have one and the same loss.

Run ``python examples/gradient_variance.py --help``. It prints both courses, and writes ``gradient_variance.png``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from pyro.infer import ELBO, SVI
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_latent.criticism.pictures import PALETTE, picture, save
from pyro_latent.gradient.estimators import (
    AnalyticKLELBO,
    EstimatorReport,
    PathwiseELBO,
    ScoreFunctionELBO,
    StickingTheLandingELBO,
    estimator_variance,
)

Program = Callable[..., None]
NOISE = 0.5


def estimators() -> dict[str, ELBO]:
    """What is compared, one draw each."""
    return {
        "A, pathwise": PathwiseELBO(),
        "B, closed-form KL": AnalyticKLELBO(),
        "sticking the landing": StickingTheLandingELBO(),
        "score function": ScoreFunctionELBO(),
    }


@dataclass(frozen=True)
class Course:
    """One training: what was measured after each of ``steps``.

    Attributes:
        name: of the model.
        steps: numbers of steps.
        reports: of :func:`estimator_variance`, in step.
        guide_parameters: how the names of the guide's parameters begin.
    """

    name: str
    steps: Sequence[int]
    reports: Sequence[EstimatorReport]
    guide_parameters: str

    def loss_variance(self, estimator: str) -> list[float]:
        """Variance of the estimate of -ELBO, in nats squared."""
        return [report[estimator].loss_variance for report in self.reports]

    def guide_variance(self, estimator: str) -> list[float]:
        """Variance of the gradient by the guide's parameters, summed over them."""
        return [
            sum(float(v.sum()) for n, v in report[estimator].gradient_variance.items() if self.is_guides(n))
            for report in self.reports
        ]

    def is_guides(self, parameter: str) -> bool:
        return parameter.startswith(self.guide_parameters)


# ------------------------------------------------------------------------------------------------------------- models


class Autoencoder:
    """Bernoulli pixels, N(0, I) latents, and one hidden layer in each network."""

    def __init__(self, num_pixels: int, num_latents: int, num_hidden: int) -> None:
        self.num_latents = num_latents
        self.decoder = nn.Sequential(nn.Linear(num_latents, num_hidden), nn.Tanh(), nn.Linear(num_hidden, num_pixels))
        self.encoder = nn.Sequential(
            nn.Linear(num_pixels, num_hidden), nn.Tanh(), nn.Linear(num_hidden, 2 * num_latents)
        )

    def model(self, images: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(images)):
            z = pyro.sample("z", dist.Normal(images.new_zeros(self.num_latents), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=images)

    def guide(self, images: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(images).chunk(2, -1)
        with pyro.plate("data", len(images)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class LinearAutoencoder:
    """x = z W + noise. The rows of W are orthogonal, so that the posterior is of the guide's kind; W is known."""

    def __init__(self, loadings: Tensor) -> None:
        self.loadings = loadings

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(self.loadings)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.loadings, NOISE).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        encoder = pyro.param("encoder.weights", lambda: torch.zeros_like(self.loadings.mT))
        log_scale = pyro.param("encoder.log_scale", lambda: x.new_zeros(len(self.loadings)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ encoder, log_scale.exp()).to_event(1))


# ---------------------------------------------------------------------------------------------------------- measuring


def checkpoints(num_steps: int) -> list[int]:
    """0, 1, and each half as many steps again, up to the last."""
    steps, step = {0, num_steps}, 1.0
    while step < num_steps:
        steps.add(int(step))
        step = max(step + 1, 1.6 * step)
    return sorted(steps)


def measure(
    name: str,
    model: Program,
    guide: Program,
    batches: Iterator[Tensor],
    fixed: Tensor,
    num_steps: int,
    num_samples: int,
    elbo: ELBO,
    rate: float,
) -> Course:
    """Train by Adam on ``elbo``, and measure all estimators at the checkpoints on the ``fixed`` minibatch."""
    svi = SVI(model, guide, pyro.optim.Adam({"lr": rate}), elbo)
    steps, reports = checkpoints(num_steps), []
    for step in range(num_steps + 1):
        if step in steps:
            found = estimator_variance(model, guide, fixed, estimators=estimators(), num_samples=num_samples)
            reports.append(found)
        svi.step(next(batches))
    return Course(name, steps, reports, "encoder")


def minibatches(data: Tensor, size: int) -> Iterator[Tensor]:
    while True:
        yield data[torch.randint(len(data), (size,))]


def digits_course(num_steps: int, num_samples: int) -> Course:
    """Black and white digits, minibatches of 100."""
    pyro.clear_param_store()
    images = (torch.from_numpy(load_digits().data) > 7).float()
    vae = Autoencoder(images.shape[1], num_latents=10, num_hidden=128)
    batches = minibatches(images, 100)
    return measure(
        "digits", vae.model, vae.guide, batches, images[:100], num_steps, num_samples, AnalyticKLELBO(), rate=2e-3
    )


def linear_course(num_steps: int, num_samples: int) -> Course:
    """Ten points of six dimensions, all of them each step."""
    pyro.clear_param_store()
    loadings = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q.mT * torch.tensor([[2.0], [1.0]]).double()
    data = torch.randn(10, 2, dtype=torch.float64) @ loadings + NOISE * torch.randn(10, 6, dtype=torch.float64)
    linear = LinearAutoencoder(loadings)
    model, guide = linear.model, linear.guide
    batches, elbo = itertools.repeat(data), StickingTheLandingELBO()
    return measure("linear-Gaussian", model, guide, batches, data, num_steps, num_samples, elbo, rate=0.03)


# ------------------------------------------------------------------------------------------------------------- showing


def table(course: Course) -> str:
    """Both variances of every estimator, a row for each checkpoint."""
    names = list(estimators())
    lines = [f"{course.name}: variance of the loss, and of the gradient by the guide's parameters"]
    lines.append("  ".join(["   step", *(f"{name:>23}" for name in names)]))
    columns = {n: zip(course.loss_variance(n), course.guide_variance(n), strict=True) for n in names}
    for step in course.steps:
        cells = (next(columns[name]) for name in names)
        lines.append("  ".join([f"{step:7,}", *(f"{loss:11.3g} {gradient:11.3g}" for loss, gradient in cells)]))
    return "\n".join(lines)


COLORS = {
    "A, pathwise": PALETTE[1],
    "B, closed-form KL": PALETTE[0],
    "sticking the landing": PALETTE[2],
    "score function": "0.45",
}
LOSSES = {name: COLORS[name] for name in ("A, pathwise", "B, closed-form KL")}


def draw_picture(digits: Course, linear: Course, path: Path) -> None:
    """Upper row digits, lower row linear-Gaussian; left the loss, right the gradient."""
    with picture(7, 5, 2, 2) as (figure, ((loss, gradient), below)):
        draw(loss, digits, digits.loss_variance, LOSSES, "loss")
        draw(gradient, digits, digits.guide_variance, COLORS, "gradient by the guide's parameters")
        draw(below[0], linear, linear.loss_variance, LOSSES, "loss")
        draw(below[1], linear, linear.guide_variance, COLORS, "gradient by the guide's parameters")
        handles, labels = gradient.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    save(figure, path)


def draw(
    axes: Axes, course: Course, variance: Callable[[str], list[float]], colors: Mapping[str, str], what: str
) -> None:
    """One variance of every estimator against the steps, in nats²: parameters have no unit."""
    for name, color in colors.items():
        axes.plot(course.steps, variance(name), "o-", markersize=2.5, linewidth=1.2, color=color, label=name)
    axes.set(xscale="symlog", yscale="log", xlabel="steps of training", ylabel="variance (nats²)")
    axes.set_title(f"{course.name}: {what}")
    axes.set_xlim(left=0)


# ---------------------------------------------------------------------------------------------------------------- main


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the variance of gradient estimators along two trainings.")
    parser.add_argument("--steps", type=int, default=3000, help="of training on the digits (default: 3000)")
    parser.add_argument("--linear-steps", type=int, default=1000, help="on the linear model (default: 1000)")
    parser.add_argument("--samples", type=int, default=100, help="estimates at each checkpoint (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for what is written")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> tuple[Course, Course]:
    """Train both, print and draw; returns the courses."""
    options = parse(arguments)
    torch.set_num_threads(1)  # so small networks gain nothing from more
    pyro.set_rng_seed(options.seed)
    digits = digits_course(options.steps, options.samples)
    linear = linear_course(options.linear_steps, options.samples)
    print(table(digits), table(linear), sep="\n\n")
    options.out.mkdir(parents=True, exist_ok=True)
    draw_picture(digits, linear, options.out / "gradient_variance.png")
    print(f"\nWrote {options.out / 'gradient_variance.png'}.")
    return digits, linear


if __name__ == "__main__":
    main()
