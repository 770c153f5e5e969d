"""Coordinate ascent and SVI race to the best bound, on four textbook models, at several learning rates.

- ``normal-gamma``: mean and precision of a sample; coordinate ascent with one block is exact after one sweep;
- ``mixture``: two full Gaussians on Old Faithful; SVI with the hand-written guide, of the same family;
- ``lda``: topics of documents drawn from known ones; SVI with the Dirichlet guide, of the same family, and coordinate
  ascent that ends with its steps;
- ``vae``: a network makes it non-conjugate, so that there is no coordinate ascent: learning rates race each other.

All methods of a model start at the same place, the clock runs inside ``step`` only, and one estimator scores every q
with the same random numbers. Run it with ``python -m examples.race --model mixture``; ``--device cuda`` puts the data
and the networks on a GPU. It prints a table and writes ``race-<model>.png``.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from examples.compare_guides import LEARNING_RATES
from examples.compare_guides import methods as mixture_methods
from pyro_latent import CAVI, AutoConjugate, plotting
from pyro_latent.criticism import Race, race, start_like, svi_grid
from pyro_latent.models import datasets, gmm, lda, normal_gamma
from pyro_latent.models.vae import VAE, load_digits


def race_normal_gamma(steps: int, device: str, seed: int = 0) -> Race:
    """A sample of 1,000 points."""
    x = (3.0 + 2.0 * torch.randn(1000, dtype=torch.float64)).to(device)
    model = normal_gamma.model
    init = start_like(lambda: AutoConjugate(model), x)
    return race(
        model,
        {
            "CAVI, one block": lambda: CAVI(model, AutoConjugate(model, blocks=[("mean", "precision")])),
            "CAVI, mean field": lambda: CAVI(model, AutoConjugate(model)),
            **svi_grid(
                model,
                lambda: AutoNormal(model, init_loc_fn=init),
                LEARNING_RATES,
                loss=partial(Trace_ELBO, num_particles=10, vectorize_particles=True, max_plate_nesting=1),
                name="SVI, AutoNormal",
                over=steps,
            ),
        },
        x,
        max_steps=steps,
        device=device,
        seed=seed,
    )


def race_mixture(steps: int, device: str, seed: int = 0) -> Race:
    """Old Faithful, two components, all methods from the same k-means clusters."""
    data = datasets.old_faithful().to(device)
    made = {n: make for n, make in mixture_methods(data, 2, steps, seed).items() if "AutoNormal" not in n}
    return race(gmm.model, made, data, 2, max_steps=steps, seed=seed)


class ThenSVI:
    """Coordinate ascent until its bound settles, and from there SVI: a driver as a race takes it.

    Args:
        first: coordinate ascent.
        second: makes the SVI, of the guide that coordinate ascent has fitted.
        tol: it has settled once its loss falls by no more than this, relative to its size.
    """

    def __init__(self, first: CAVI, second: Callable[[AutoConjugate], SVI], tol: float = 1e-6) -> None:
        self.driver: CAVI | SVI = first
        self._second, self._tol, self._loss = second, tol, math.inf

    @property
    def guide(self) -> Any:
        return self.driver.guide

    def step(self, *args: Any, **kwargs: Any) -> Any:
        loss = self.driver.step(*args, **kwargs)
        if isinstance(self.driver, CAVI) and not self.driver.is_annealing:
            if self._loss - loss <= self._tol * abs(loss):
                self.driver = self._second(self.driver.guide)
            self._loss = loss
        return loss


def race_lda(steps: int, device: str, seed: int = 0) -> Race:
    """200 documents of 80 words from 5 topics over 100 words; SVI on the model with the assignments summed out."""
    corpus = documents().to(device)
    return race(lda.model, lda_methods(corpus, steps), corpus, 5, max_steps=steps, seed=seed)


def documents() -> lda.Corpus:
    """A draw of the documents."""
    topics = torch.distributions.Dirichlet(torch.full((100,), 0.1).double()).sample((5,))
    shares = torch.distributions.Dirichlet(torch.full((5,), 0.3).double()).sample((200,))
    return lda.as_corpus(torch.distributions.Multinomial(80, shares @ topics).sample())


def lda_methods(corpus: lda.Corpus, steps: int) -> dict[str, Callable[[], Any]]:
    """What races on the documents, for so many steps, all from one start."""
    marginal = partial(lda.model, marginal=True)
    start = lda_start(corpus, 5)

    def cavi(annealing: int = 0) -> CAVI:
        return CAVI(lda.model, mean_field(start), annealing=annealing)

    def guide(values: Mapping[str, Tensor] = start) -> Any:
        for name, value in values.items():
            pyro.param(name, value.clone(), constraint=dist.constraints.positive)
        return lda.guide

    def svi(fitted: AutoConjugate) -> SVI:
        q: Any = fitted.posterior()
        values = {"topic_word": q["beta"].concentration, "doc_topic": q["theta"].concentration}
        made: Any = svi_grid(marginal, lambda: guide(values), [0.1], loss=Trace_ELBO, over=steps // 2).popitem()[1]()
        return made

    rates = [10 * rate for rate in LEARNING_RATES]  # concentrations are in the hundreds
    grid = svi_grid(marginal, guide, rates, loss=Trace_ELBO, name="SVI, Dirichlet guide", over=steps)
    own = {
        "CAVI": cavi,
        "CAVI, annealed": lambda: cavi(60),
        "CAVI, annealed, then SVI": lambda: ThenSVI(cavi(60), svi),
    }
    with pyro.get_param_store().scope():
        next(iter(grid.values()))().step(corpus, 5)  # first calls cost nobody, whenever a method comes to them
    return own | grid


def mean_field(start: Mapping[str, Tensor]) -> AutoConjugate:
    """Coordinate ascent's guide, with these concentrations of q(beta) and q(theta)."""
    given = {"beta": dist.Dirichlet(start["topic_word"]), "theta": dist.Dirichlet(start["doc_topic"])}
    return AutoConjugate(lda.model, init=given)


def lda_start(corpus: lda.Corpus, num_topics: int) -> dict[str, Tensor]:
    """The concentrations that the Dirichlet guide starts at, by parameter."""
    with pyro.get_param_store().scope(), torch.no_grad():
        poutine.block(lda.guide)(corpus, num_topics)
        return {name: pyro.param(name).detach().clone() for name in ("topic_word", "doc_topic")}


def race_vae(steps: int, device: str, seed: int = 0) -> Race:
    """500 of scikit-learn's digits in two latent dimensions, all in each step; each run from the same networks."""
    images = load_digits()[0][:500].flatten(1)
    vae = VAE([64], latent_dim=2, hidden=[64])
    vae.to(device)
    start = copy.deepcopy(vae.state_dict())

    def guide() -> Any:
        vae.load_state_dict(start)
        return vae.guide

    grid = svi_grid(vae.model, guide, LEARNING_RATES, loss=Trace_ELBO, name="SVI, amortised guide", over=steps)
    counts = {"max_steps": steps, "num_samples": 50, "final_samples": 100}
    return race(vae.model, grid, images, **counts, device=device, seed=seed)


RACES: dict[str, Callable[..., Race]] = {
    "normal-gamma": race_normal_gamma,
    "mixture": race_mixture,
    "lda": race_lda,
    "vae": race_vae,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Race]:
    """Run the races; returns each."""
    parser = argparse.ArgumentParser(description="Race coordinate ascent against SVI at several learning rates.")
    parser.add_argument("--model", choices=[*RACES, "all"], default="mixture", help="default: mixture")
    parser.add_argument("--steps", type=int, default=500, help="steps of each method, at most (default: 500)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the pictures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found: dict[str, Race] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in RACES if options.model == "all" else (options.model,):
        pyro.set_rng_seed(0)
        found[name] = RACES[name](options.steps, options.device)
        path = options.out / f"race-{name}.png"
        plotting.plot_race(found[name], title=f"Gap to the best ELBO, {name}").savefig(path)
        print(f"\n{name}\n{found[name]}\nWrote {path}.", flush=True)
    return found


if __name__ == "__main__":
    main()
