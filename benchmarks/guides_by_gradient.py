"""How far the models' own guides end below coordinate ascent by SVI: ``python -m benchmarks.guides_by_gradient``.

300 steps of ClippedAdam with a rate that falls a hundredfold, on Old Faithful and on documents that are drawn. Bounds
are exact: that of the guide's factors, with the discrete sites at their optimum, less KL(q(z) ‖ optimum) where the
guide has a factor for them; but for ``lda.guide``, whose bound is an average over draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.gradient.elbos import AnalyticKLELBO
from pyro_latent.models import datasets, gmm, lda, normal_gamma

STEPS = 300
BLOCK = ("mean", "precision")
ENUMERATED: Any = TraceEnum_ELBO(max_plate_nesting=1)
Program = Callable[..., Any]


def train(
    model: Program, guide: Program, elbo: Any, rate: float, *args: Any, steps: int = STEPS, **kwargs: Any
) -> None:
    """Fit by SVI; the parameters are in Pyro's store."""
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": rate, "lrd": 0.01 ** (1 / steps)}), elbo)
    for _ in range(steps):
        svi.step(*args, **kwargs)


def bound_at(model: Program, init: Mapping[Any, Any], *args: Any, **kwargs: Any) -> float:
    """The ELBO of given factors, with discrete sites at their optimum."""
    blocks = [key for key in init if isinstance(key, tuple)]
    return AutoConjugate(model, blocks=blocks, init=init).elbo(*args, **kwargs)


def normal_gamma_gap(x: Tensor, best: float) -> float:
    """What the guide's factors lack to the best bound, in nats."""
    with torch.no_grad():
        trace = poutine.trace(normal_gamma.guide).get_trace(x)
    return best - bound_at(normal_gamma.model, {name: trace.nodes[name]["fn"] for name in BLOCK}, x)


def mixture_gap(data: Tensor, covariance: gmm.Covariance, best: float) -> float:
    """What the guide's factors lack to the best bound, in nats."""
    value = {name: tensor.detach() for name, tensor in pyro.get_param_store().items()}
    uniform = dist.Categorical(logits=data.new_zeros(len(data), len(value["mean_loc"])))
    like: Any = gmm.update_mean_precision({"component": uniform}, data, 2, covariance=covariance)
    scaling = value["mean_precision_scaling"]
    if covariance == "full":
        tril = value["precision_scale_tril"]
        block = type(like)(value["mean_loc"], scaling, value["precision_df"], tril @ tril.mT)
    else:
        gammas = value["precision_concentration"].unsqueeze(-1), value["precision_rate"]
        block = type(like)(*torch.broadcast_tensors(value["mean_loc"], scaling.unsqueeze(-1), *gammas))
    q: dict[Any, Any] = {"weights": dist.Dirichlet(value["weight_concentration"]), BLOCK: block}
    gap = best - bound_at(gmm.model, q, data, 2, covariance=covariance)
    if "component_probs" not in value:
        return gap
    optimum: Any = gmm.update_component(q, data, 2, covariance=covariance)
    own = torch.distributions.Categorical(value["component_probs"])
    return gap + torch.distributions.kl_divergence(own, optimum).sum().item()


def topic_gap(documents: lda.Corpus, best: float) -> float:
    """What the factors of ``lda.full_guide`` lack to the best bound, in nats."""
    q, probs = topics_of_store(), pyro.get_param_store()["topic_probs"].detach()
    optimum = lda.update_z(q, documents, 2).probs
    divergence = documents.count @ (torch.xlogy(probs, probs) - probs * optimum.log()).sum(-1)
    return best - bound_at(lda.model, q, documents, 2) + divergence.item()


def topics_of_store() -> dict[Any, Any]:
    """The factors that the parameters of LDA's guides stand for."""
    value = {name: tensor.detach() for name, tensor in pyro.get_param_store().items()}
    return {"beta": dist.Dirichlet(value["topic_word"]), "theta": dist.Dirichlet(value["doc_topic"])}


def topics() -> None:
    """Print the gaps of both guides of LDA on 15 documents of 30 tokens."""
    torch.manual_seed(1)
    words = dist.Dirichlet(torch.full((2, 12), 0.3, dtype=torch.float64)).sample()
    shares = dist.Dirichlet(torch.full((15, 2), 0.5, dtype=torch.float64)).sample()
    documents = lda.as_corpus(dist.Multinomial(30, shares @ words).sample())
    print(f"\n{len(shares)} documents of 30 tokens, full_guide, rate 0.003")
    for estimator in (ENUMERATED, TraceGraph_ELBO(), Trace_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        lda.full_guide(documents, 2)
        start = AutoConjugate(lda.model, init=topics_of_store())
        best = CAVI(lda.model, start).run(documents, 2, tol=1e-9).elbo[-1].item()
        before = topic_gap(documents, best)
        train(lda.model, lda.full_guide, estimator, 0.003, documents, 2)
        gap = topic_gap(documents, best)
        print(f"{type(estimator).__name__}: {before:.4f} at the start, {gap:.3f} in the end", flush=True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    lda.guide(documents, 2)
    start = AutoConjugate(lda.model, init=topics_of_store())
    best = CAVI(lda.model, start).run(documents, 2, tol=1e-9).elbo[-1].item()
    train(lda.model, lda.guide, Trace_ELBO(), 0.1, documents, 2, steps=400, marginal=True)
    many = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    above = -many.loss(lda.model, lda.guide, documents, 2, marginal=True) - best
    print(f"guide, 400 steps, rate 0.1: {above:.1f} nats above coordinate ascent")


def main() -> None:
    """Print the gaps of the three models, before and after."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    data = datasets.old_faithful()
    print(f"Nats below coordinate ascent, after {STEPS} steps\n\nNormal-Gamma, rate 0.03")
    for count in (len(data), 4):
        x = data[:count, 0]
        best = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model)).run(x, tol=0, max_steps=50).elbo[-1].item()
        for elbo in (Trace_ELBO(), AnalyticKLELBO()):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            normal_gamma.guide(x)
            before = normal_gamma_gap(x, best)
            train(normal_gamma.model, normal_gamma.guide, elbo, 0.03, x)
            gap = normal_gamma_gap(x, best)
            print(f"{count} points, {type(elbo).__name__}: {before:.2f} at the start, {gap:.3f} in the end", flush=True)
    print("\nmixture, rate 0.003\n\n| guide | estimator | full | diagonal |\n|---|---|---|---|")
    covariances: tuple[gmm.Covariance, ...] = ("full", "diagonal")
    starts = []
    rows: list[tuple[str, Any]] = [("guide", ENUMERATED)]
    rows += [("full_guide", estimator) for estimator in (ENUMERATED, TraceGraph_ELBO(), Trace_ELBO())]
    for name, estimator in rows:
        cells = []
        for covariance in covariances:
            pyro.set_rng_seed(0)
            init = {"component": gmm.initial_responsibilities(data, 2)}
            cavi = CAVI(gmm.model, AutoConjugate(gmm.model, blocks=[BLOCK], init=init))
            best = cavi.run(data, 2, tol=1e-10, covariance=covariance).elbo[-1].item()
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            guide: Program = getattr(gmm, name)
            guide(data, 2, covariance=covariance)
            starts.append(mixture_gap(data, covariance, best))
            pyro.set_rng_seed(0)
            train(gmm.model, guide, estimator, 0.003, data, 2, covariance=covariance)
            cells.append(f"{mixture_gap(data, covariance, best):.2f}")
        print(f"| `gmm.{name}` | `{type(estimator).__name__}` | {' | '.join(cells)} |", flush=True)
    print(f"\nat the start: {', '.join(f'{gap:.2f}' for gap in starts)}")
    topics()


if __name__ == "__main__":
    main()
