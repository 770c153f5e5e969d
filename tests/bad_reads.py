"""More targets of ``bad_calls``: the functions that need no fit, one call each, by their names.

Distributions are left out: like PyTorch's, they raise its ``ValueError`` where arguments are outside their constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
import pyro.distributions as dist
import torch
from bad_calls import Arguments, linear
from pyro.infer.autoguide import AutoNormal
from shared_models import batch_mixture, gaussian
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, handlers, plotting, register_family, register_rule
from pyro_latent.ascent import ConstantStep
from pyro_latent.criticism import fit_conjugate, race, start_like, svi_grid
from pyro_latent.gradient.approximations import GaussianGuide, laplace, moment_matching
from pyro_latent.gradient.estimators import ScoreFunctionELBO, estimator_variance
from pyro_latent.gradient.flows import make_flow, push
from pyro_latent.models import (
    bivariate_gaussian,
    hmm,
    lda,
    normal_gamma,
    restricted_q,
    three_coins,
    two_modes,
    vae,
)

matplotlib.use("Agg")

_LINE = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)
_PLANE = torch.stack([_LINE, _LINE.square()], -1)
_PAIR, _SQUARE = torch.tensor([0.5, -1.0]).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
_COUNTS = torch.tensor([[3, 0, 1], [0, 2, 2], [1, 1, 0]])
_TOPICS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).double()
_TOSSES = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]).double()
_SYMBOLS = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
_FLOW, _VAE = make_flow("affine_coupling", 2), vae.VAE((4,), 2, hidden=(4,))
_IMAGES = (torch.arange(24).reshape(6, 4) % 3 > 1).float()


def _corpus() -> lda.Corpus:
    return lda.as_corpus(_COUNTS)


def _fitted(model: Any = gaussian) -> AutoConjugate:
    guide = AutoConjugate(model)
    with torch.random.fork_rng():
        CAVI(model, guide).run(_LINE, max_steps=1)
    return guide


def _mixture(x: Tensor) -> None:
    batch_mixture(x, k=2)


#: By name, a call.
_CALLS: dict[str, Callable[[Arguments], Any]] = {
    "ConstantStep": lambda a: ConstantStep(a.setting(0.5))(a.setting(0)),
    "evaluate_loss": lambda a: CAVI(gaussian, _fitted()).evaluate_loss(a.data(_LINE)),
    "structured_elbo": lambda a: CAVI(_mixture, _fitted(_mixture)).structured_elbo(a.data(_LINE), draws=a.setting(3)),
    "explain": lambda a: AutoConjugate(a.setting(linear)).explain(a.data(_PLANE)),
    "elbo_terms": lambda a: _fitted(_mixture).elbo_terms(a.data(_LINE)),
    "register_family": lambda a: register_family(a.setting(None), a.setting(None)),
    "register_rule": lambda a: register_rule(a.setting(None), a.setting(None)),
    "closed_form": lambda a: fit_conjugate(handlers.closed_form(a.setting(gaussian), a.setting({})), a.data(_LINE)),
    "expected_log_factors": lambda a: handlers.expected_log_factors(
        gaussian,
        a.setting({"mu": a.setting(dist.Normal(0.0, 1.0)), "tau": a.setting(dist.Gamma(1.0, 1.0))}),
        a.data(_LINE),
    ),
    "record": lambda a: handlers.record(a.setting(gaussian), a.data(_LINE), point=a.setting(())),
    "race": lambda a: race(
        gaussian, a.setting({"cavi": a.setting(None)}), a.data(_LINE), max_steps=a.setting(2), device=a.setting("cpu")
    ),
    "start_like": lambda a: start_like(a.setting(lambda: AutoConjugate(gaussian)), a.data(_LINE)),
    "svi_grid": lambda a: svi_grid(
        a.setting(gaussian), a.setting(lambda: AutoNormal(gaussian)), a.setting([1e-2]), loss=a.setting(None)
    ),
    "make_flow": lambda a: make_flow(
        a.setting("planar"), a.setting(2), length=a.setting(1), hidden=a.setting((4,)), context_dim=a.setting(None)
    ),
    "push": lambda a: push(_FLOW, a.data(_PLANE.float())),
    "GaussianGuide": lambda a: GaussianGuide(a.setting(gaussian), a.data(_PAIR), a.data(_SQUARE)),
    "laplace": lambda a: laplace(a.setting(gaussian), a.data(_LINE), max_steps=a.setting(2)),
    "moment_matching": lambda a: moment_matching(
        a.setting(gaussian),
        a.setting({"mu": a.data(_LINE), "tau": a.data(_LINE.exp())}),
        a.data(_LINE),
        covariance=a.setting("full"),
    ),
    "ScoreFunctionELBO": lambda a: ScoreFunctionELBO(a.setting(2), leave_one_out=a.setting(True)),
    "estimator_variance": lambda a: estimator_variance(
        a.setting(gaussian), a.setting(AutoNormal(gaussian)), a.data(_LINE), num_samples=a.setting(3)
    ),
    "bivariate_gaussian": lambda a: a.choice(
        [
            bivariate_gaussian.posterior,
            bivariate_gaussian.log_evidence,
            bivariate_gaussian.marginals,
            bivariate_gaussian.mean_field,
        ]
    )(a.data(_PAIR), a.data(_SQUARE)),
    "bivariate_gaussian of a precision": lambda a: a.choice(
        [bivariate_gaussian.contraction_rate, bivariate_gaussian.factor_divergence]
    )(a.data(_SQUARE)),
    "hmm.start": lambda a: hmm.start(a.data(_SYMBOLS), a.setting(2), num_symbols=a.setting(None)),
    "hmm.log_likelihood": lambda a: hmm.log_likelihood(a.data(_SYMBOLS), a.setting(hmm.start(_SYMBOLS, 2))),
    "AmortizedGuide": lambda a: lda.AmortizedGuide(a.data(_corpus()), a.setting(2), a.setting(4)),
    "coherence_npmi": lambda a: lda.coherence_npmi(a.data(lda.top_words(_TOPICS, 2)), a.data(_corpus())),
    "collapsed_fit": lambda a: lda.collapsed_fit(
        a.data(_COUNTS), a.setting(2), max_iter=a.setting(2), tol=a.setting(0.1), block_size=a.setting(2)
    ),
    "complete_priors": lambda a: lda.complete_priors(
        a.data(_corpus()), a.setting(2), doc_topic_prior=a.data(None), topic_word_prior=a.data(None)
    ),
    "dirichlet_bound": lambda a: lda.dirichlet_bound(a.data(_TOPICS), a.data(_TOPICS)),
    "dirichlet_concentration": lambda a: lda.dirichlet_concentration(a.data(_TOPICS.log().mean(0))),
    "symmetric_concentration": lambda a: lda.symmetric_concentration(a.data(_TOPICS.log().mean(0))),
    "dirichlet_gradient": lambda a: lda.dirichlet_gradient(a.data(_TOPICS[0].log()), a.data(_TOPICS[0])),
    "document_completion": lambda a: lda.document_completion(
        a.data(_corpus()), a.data(_TOPICS), fraction=a.setting(0.5), max_steps=a.setting(3)
    ),
    "document_step": lambda a: lda.document_step(
        a.data(_corpus()), a.data(_TOPICS), a.data(_PAIR.exp()), tol=a.setting(1e-3), max_steps=a.setting(3)
    ),
    "expected_topics": lambda a: lda.expected_topics(a.data(_TOPICS)),
    "expected_log": lambda a: lda.expected_log(a.data(_TOPICS)),
    "merge_topics": lambda a: lda.merge_topics(a.data(_TOPICS), a.setting(1)),
    "split_tokens": lambda a: lda.split_tokens(a.data(_corpus()), a.setting(0.5)),
    "top_words": lambda a: lda.top_words(a.data(_TOPICS), a.setting(2)),
    "posterior_predictive": lambda a: normal_gamma.posterior_predictive(a.setting(normal_gamma.posterior(_LINE))),
    "restricted_q": lambda a: restricted_q.fixed_point(a.data(_LINE), a.setting(True)),
    "restricted_q.gap": lambda a: restricted_q.gap(a.setting(3), a.setting(1.0)),
    "restricted_q.log_likelihood": lambda a: restricted_q.log_likelihood(a.data(_LINE), a.data(0.0), a.data(1.0)),
    "three_coins": lambda a: a.choice([three_coins.em_step, three_coins.log_likelihood, three_coins.responsibilities])(
        a.data(_TOSSES), a.setting((0.4, 0.6, 0.7))
    ),
    "two_modes": lambda a: a.choice([two_modes.log_evidence, two_modes.modes])(
        a.data(_LINE), prior_scale=a.setting(1.5), noise_scale=a.setting(1.0)
    ),
    "two_modes, bent": lambda a: two_modes.banana_log_evidence(a.data(_LINE), curvature=a.setting(0.5)),
    "anneal_linearly": lambda a: vae.anneal_linearly(a.setting(10), a.setting(0.0))(3),
    "binarize": lambda a: vae.binarize(a.data(_IMAGES), a.setting(None)),
    "VAE_ELBO": lambda a: vae.VAE_ELBO(
        a.setting("B"), kl_weight=a.setting(1.0), free_bits=a.setting(0.0), num_particles=a.setting(1)
    ),
    "diagnose": lambda a: vae.diagnose(
        a.setting(_VAE), a.data(_IMAGES), threshold=a.setting(0.01), chunk_size=a.setting(3)
    ),
    "importance_weighted_bounds": lambda a: vae.importance_weighted_bounds(
        a.setting(_VAE), a.data(_IMAGES), a.setting((1, 2)), chunk_size=a.setting(3)
    ),
    "load": lambda a: a.choice([vae.load_mnist, vae.read_idx])(a.setting("/nowhere/at/all")),
    "plot_topics": lambda a: plotting.plot_topics(a.data(_TOPICS), a.setting(["a", "b", "c"]), top=a.setting(2)),
    "plot_mixture": lambda a: plotting.plot_mixture(
        a.data(_PLANE), a.setting({"one": (a.data(_PLANE[:1]), a.data(_SQUARE[None]))}), labels=a.setting(())
    ),
    "plot_path": lambda a: plotting.plot_path(a.data(_PLANE), a.setting(lambda x, y: -(x**2) - y**2)),
}


def _named(name: str, call: Callable[[Arguments], Any]) -> Callable[[Arguments], None]:
    def target(a: Arguments) -> None:
        call(a)

    target.__name__ = name
    return target


READS = [_named(name, call) for name, call in _CALLS.items()]
