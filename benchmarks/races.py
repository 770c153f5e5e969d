"""The races of docs/compare.md over several seeds: their table, and the picture with its bands.

``python -m benchmarks.races`` writes ``docs/race-bands.png`` and prints where each method ends below the best of its
race. Of topics it also prints two bounds of what coordinate ascent and SVI end at: that of mean field, in which the
assignment of each token is a factor, and that in which it is summed out, which the race goes by. Seconds are of CPU.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from examples.race import RACES, documents, lda_methods, mean_field
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism import Race, Runner, score
from pyro_latent.criticism.methods import Stopwatch
from pyro_latent.criticism.pictures import picture
from pyro_latent.models import lda
from pyro_latent.plotting import plot_race

from .seeds import SEEDS, ranged
from .timing import markdown

PICTURE = Path(__file__).parent.parent / "docs" / "race-bands.png"
STEPS = {"normal-gamma": 300, "mixture": 300, "lda": 400, "vae": 300}
TITLES = {
    "normal-gamma": "Normal-Gamma, 1,000 points",
    "mixture": "mixture, Old Faithful",
    "lda": "LDA, 200 documents",
    "vae": "VAE, 500 digits",
}
#: The methods whose posteriors are scored by both bounds, and the number of draws.
COLLAPSED, SVI_ALONE = "CVB0, from a random start", "SVI, Dirichlet guide, rate 0.3"
STARTED, BACK = "CAVI, from CVB0's topics", f"{SVI_ALONE}, then CAVI"
BOTH = ("CAVI, annealed", STARTED, COLLAPSED, SVI_ALONE, BACK, "CAVI, annealed, then SVI")
NUM_DRAWS = 1000


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Singular sample detected")
    setattr(Stopwatch, "_now", staticmethod(time.process_time))  # noqa: B010 - others use the machine
    began = time.process_time()
    found = {}
    for name in RACES:
        found[name] = [raced(name, seed) for seed in SEEDS]
        print(
            f"## {TITLES[name]}, at most {STEPS[name]} steps\n\n{table(found[name])}\n\n{duel(found[name])}\n",
            flush=True,
        )
    plot_bands(found).savefig(PICTURE)
    print(f"## Two bounds of the posteriors of topics\n\n{two_bounds()}\n")
    print(f"{time.process_time() - began:,.0f} s of CPU")


def raced(name: str, seed: int) -> Race:
    """A race of the example, with this seed for its data and starts, and for the noise of its methods too."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    return RACES[name](STEPS[name], "cpu", seed)


# --------------------------------------------------------------------------------------------------------------- tables


def table(found: Sequence[Race]) -> str:
    """Where each method ends below the best of its race, and the seconds to come within one nat of it."""
    heading = ["method", "nats below the best", "best bound", "within 1 nat", "seconds to 1 nat", "seconds"]
    return markdown(heading, [row(method, found) for method in found[0].runners])


def row(method: str, found: Sequence[Race]) -> list[str]:
    runners = [contest[method] for contest in found]
    gaps = [contest.best - r.score.elbo for contest, r in zip(found, runners, strict=True)]
    best = sum(gap == 0 for gap in gaps)
    within = [r.seconds_within(1.0, contest.best) for contest, r in zip(found, runners, strict=True)]
    reached = [w for w in within if math.isfinite(w)]
    return [
        method,
        ranged(gaps, 3 if max(gaps) < 10 else 0),
        f"{best} of {len(gaps)}",
        f"{len(reached)} of {len(gaps)}",
        ranged(reached) if reached else "never",
        ranged([r.seconds for r in runners]),
    ]


def duel(found: Sequence[Race]) -> str:
    """The last bound of coordinate ascent less that of SVI at its best rate, and when either comes to SVI's."""

    def best_of(contest: Race, is_svi: bool) -> Runner | None:
        runners = [r for r in contest.runners.values() if bool(r.rate) == is_svi]
        return max(runners, key=lambda r: r.score.elbo, default=None)

    pairs = [(best_of(contest, False), best_of(contest, True)) for contest in found]
    rates = f"The best rate by seed: {', '.join(svi.rate for _, svi in pairs if svi is not None)}."
    both = [(cavi, svi) for cavi, svi in pairs if cavi is not None and svi is not None]
    if not both:
        return rates
    gaps = [cavi.score.elbo - svi.score.elbo for cavi, svi in both]
    own = [cavi.seconds_within(1.0, svi.score.elbo) for cavi, svi in both]
    ends = [svi.seconds for _, svi in both]
    return (
        f"Coordinate ascent less SVI at its best rate: {ranged(gaps, 3)}. To within a nat of where that SVI ends after "
        f"{ranged(ends)} s it takes {ranged(own)} s. {rates}"
    )


def two_bounds() -> str:
    """The bound of mean field, exact, and that with the assignments summed out, by draws that all methods share."""
    exact: dict[str, list[float]] = {name: [] for name in BOTH}
    summed: dict[str, list[float]] = {name: [] for name in BOTH}
    errors = []
    for seed in SEEDS:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        corpus = documents()
        made = lda_methods(corpus, STEPS["lda"])
        for name in BOTH:
            with pyro.get_param_store().scope():
                torch.manual_seed(seed)
                guide = _fitted(name, made, corpus)
                found = score(lda.model, guide, corpus, 5, num_samples=NUM_DRAWS, seed=seed)
                exact[name].append(_mean_field(guide, corpus))
            summed[name].append(found.elbo)
            errors.append(found.elbo_error)
    rows = [[name, _above(exact, name), _above(summed, name)] for name in BOTH]
    heading = ["posterior", "bound with a factor for each assignment", "bound with the assignments summed out"]
    return (
        f"{markdown(heading, rows)}\n\nNats above coordinate ascent. The first bound is exact; the second is by "
        f"{NUM_DRAWS:,} draws, with a standard error of at most {max(errors):.2f} nats."
    )


def _fitted(name: str, made: Mapping[str, Callable[[], Any]], corpus: lda.Corpus) -> Any:
    """The guide that one of :data:`BOTH` ends with."""
    if name == COLLAPSED:
        return _collapsed(corpus)
    if name == STARTED:
        topics = lda.collapsed_topics(corpus, *lda.complete_priors(corpus, 5))
        return _run(CAVI(lda.model, AutoConjugate(lda.model, init={"beta": dist.Dirichlet(topics)})), corpus)
    if name == BACK:
        _run(made[SVI_ALONE](), corpus)
        return _run(CAVI(lda.model, mean_field(_stored())), corpus)
    return _run(made[name](), corpus)


def _run(driver: Any, corpus: lda.Corpus) -> Any:
    """The guide of a driver after the steps of the race."""
    for _ in range(STEPS["lda"]):
        driver.step(corpus, 5)
    return driver.guide


def _collapsed(corpus: lda.Corpus) -> Any:
    """The Dirichlet guide at the expected counts of CVB0."""
    fitted = lda.collapsed_fit(corpus, 5, max_iter=STEPS["lda"], tol=1e-4)
    for name, value in (("topic_word", fitted.lambda_), ("doc_topic", fitted.gamma)):
        pyro.param(name, value, constraint=constraints.positive)
    return lda.guide


def _mean_field(guide: Any, corpus: lda.Corpus) -> float:
    """The bound of mean field at the guide's q(beta) and q(theta), with each assignment at its best."""
    if guide is not lda.guide:
        return float(guide.elbo(corpus, 5))
    return float(mean_field(_stored()).elbo(corpus, 5))


def _stored() -> dict[str, Tensor]:
    """The concentrations of the Dirichlet guide."""
    return {name: pyro.param(name).detach().clone() for name in ("topic_word", "doc_topic")}


def _above(values: Mapping[str, Sequence[float]], name: str) -> str:
    return ranged([v - first for v, first in zip(values[name], values[BOTH[0]], strict=True)], 1)


# -------------------------------------------------------------------------------------------------------------- picture


def plot_bands(found: Mapping[str, Sequence[Race]]) -> Any:
    """Nats below the best of each race against the clock: medians over the seeds, with the least and the greatest."""
    with picture(7.6, 6.6, 2, 2) as (figure, grid):
        for axes, (name, races) in zip(grid.flatten(), found.items(), strict=True):
            plot_race(races, title=TITLES[name], ax=axes)
            axes.set_xlabel("seconds of CPU")
    return figure


if __name__ == "__main__":
    main()
