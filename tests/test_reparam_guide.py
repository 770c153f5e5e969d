"""``AutoConjugate(model, reparam=True)``: the guide of a model that auxiliary sites make conjugate, without them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import Tensor

from pyro_latent import CAVI, ArgumentTypeError, AutoConjugate, NotConjugateError, to_arviz
from pyro_latent.criticism import compare
from pyro_latent.reparam import Conjugate

X = torch.tensor([0.5, 1.2, -0.3, 2.0, 4.0, -1.5, 0.1, 9.0], dtype=torch.float64)
LABEL = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def scale(x: Tensor) -> None:
    mu, s = pyro.sample("mu", dist.Normal(x.new_zeros(()), 3.0)), pyro.sample("s", dist.HalfCauchy(x.new_tensor(2.0)))
    with pyro.plate("n", x.shape[-1]):
        pyro.sample("y", dist.Normal(mu, s), obs=x)


def student(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 3.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.StudentT(4.0, mu, 1.5), obs=x)


def gated(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=a + x / 4))
        pyro.sample("y", dist.Normal(3.0 * z, 1.0), obs=x)


def logistic(x: Tensor) -> None:
    a, b = pyro.sample("a", dist.Normal(x.new_zeros(()), 2.0)), pyro.sample("b", dist.Normal(x.new_zeros(()), 2.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=LABEL)


MODELS = {
    scale: ({"mu", "s"}, {"s_rate", "s_precision"}),
    student: ({"mu"}, {"y_gamma"}),
    gated: ({"a", "z"}, {"z_weight"}),
    logistic: ({"a", "b"}, {"y_weight"}),
}
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)


def fit(model: Any, **options: Any) -> tuple[AutoConjugate, Any]:
    guide = AutoConjugate(model, reparam=True, **options)
    return guide, CAVI(model, guide).run(X)


@each_model
def test_the_auxiliary_sites_are_shown_when_they_are_asked_for(model: Any) -> None:
    own, auxiliary = MODELS[model]
    guide, result = fit(model)
    assert set(result.augmented) == auxiliary
    for shown in (guide.posterior(), guide.posterior(joint=True), guide.median(), guide.quantiles([0.1]), guide(X)):
        assert set(shown) == own
    assert own - {"s"} < set(guide.posterior(auxiliary=True)) | {"s"} == own | auxiliary | {"s"}
    drawn = [n for n, s in poutine.trace(guide).get_trace(X).nodes.items() if s["type"] == "sample" and n != "n"]
    assert set(drawn) == own


@each_model
def test_the_elbo_of_the_original_model_is_at_least_that_of_the_augmented_one(model: Any) -> None:
    guide, result = fit(model)
    pyro.set_rng_seed(0)
    elbo = Trace_ELBO()
    losses = torch.tensor([-elbo.loss(model, guide, X) for _ in range(200)])
    assert float(losses.mean()) + 3 * float(losses.std()) / 200**0.5 > float(result.elbo[-1])
    assert guide.elbo() == pytest.approx(float(result.elbo[-1]), abs=1e-9)


def test_a_site_in_other_coordinates_has_the_law_of_their_function() -> None:
    guide, _ = fit(scale)
    precision = guide.posterior(auxiliary=True)["s_precision"]
    law = scipy.stats.invgamma(float(precision.concentration), scale=float(precision.rate))
    levels = [0.05, 0.5, 0.9]
    assert guide.quantiles(levels)["s"].tolist() == pytest.approx(law.ppf(levels) ** 0.5, rel=1e-9)
    points = torch.linspace(0.05, 60, 20_000, dtype=torch.float64)
    density = guide.posterior()["s"].log_prob(points).exp()
    assert float(torch.trapezoid(density, points)) == pytest.approx(1, abs=1e-3)
    assert float(guide.posterior()["s"].log_prob(torch.tensor(2.0).double())) == pytest.approx(
        float(law.logpdf(4.0)) + math.log(4.0), abs=1e-9
    )
    pyro.set_rng_seed(0)
    drawn = torch.stack([guide(X)["s"] for _ in range(500)])
    assert scipy.stats.kstest(drawn.numpy() ** 2, law.cdf).pvalue > 1e-3


def test_compare_scores_every_guide_on_the_original_model() -> None:
    pyro.clear_param_store()
    guide, result = fit(scale)
    svi = SVI(scale, AutoNormal(scale), Adam({"lr": 0.05}), Trace_ELBO())
    found = compare(scale, {"cavi": guide, "svi": svi}, X, max_steps=300, num_samples=4000)
    pyro.set_rng_seed(1)
    losses = torch.tensor([-Trace_ELBO().loss(scale, guide, X) for _ in range(500)])
    entry = found["cavi"]
    assert set(entry.moments) == {"mu", "s"}
    assert entry.score is not None
    error = 4 * (float(losses.std()) / 500**0.5 + entry.score.elbo_error)
    assert entry.score.elbo == pytest.approx(float(losses.mean()), abs=error)
    assert entry.score.elbo + 3 * entry.score.elbo_error > float(result.elbo[-1])
    assert entry.exact_elbo is None  # which is the augmented model's


def test_a_fit_is_saved_and_loaded_and_taken_up(tmp_path: Path) -> None:
    guide, _ = fit(scale)
    other = AutoConjugate(scale, reparam=True)
    other.load_state_dict(guide.state_dict())
    assert other.elbo(X) == pytest.approx(guide.elbo(), abs=1e-12)
    assert set(other.posterior()) == {"mu", "s"}
    runs = []
    for count in (2, 5):
        cavi = CAVI(scale, AutoConjugate(scale, reparam=True))
        runs.append(cavi.run(X, checkpoint=tmp_path / "run.pt", max_steps=count, tol=0.0))
    assert torch.equal(runs[1].elbo[:2], runs[0].elbo)
    assert set(runs[1].augmented) == {"s_rate", "s_precision"}


def test_draws_for_arviz_are_of_the_models_own_sites() -> None:
    guide, _ = fit(student)
    data = to_arviz(student, guide, X, num_samples=50)
    assert set(data.posterior.data_vars) == {"mu"}


def test_a_model_that_is_conjugate_has_no_auxiliary_sites() -> None:
    def normal(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=x)

    guide, result = fit(normal)
    assert result.augmented == ()
    plain = AutoConjugate(normal)
    assert CAVI(normal, plain).run(X).augmented == ()
    assert guide.elbo() == pytest.approx(plain.elbo(), abs=1e-12)


def test_a_strategy_of_ones_own_says_what_it_did() -> None:
    strategy = Conjugate()
    guide = AutoConjugate(student, reparam=strategy)
    CAVI(student, guide).run(X)
    assert strategy.auxiliary == {"y_gamma": "y"}
    assert "y_gamma" in guide.explain(X)


@each_model
def test_the_error_of_a_model_that_reparam_would_make_conjugate_says_so(model: Any) -> None:
    if model in (scale, student, gated):  # one scalar alone has an integral
        assert "by quadrature" in AutoConjugate(model).explain(X)
        return
    before = torch.get_rng_state()
    with pytest.raises(NotConjugateError, match=r"Or write AutoConjugate\(model, reparam=True\)"):
        CAVI(model, AutoConjugate(model)).run(X)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_error_of_another_model_does_not() -> None:
    def model(x: Tensor) -> None:
        center = pyro.sample("center", dist.Normal(0.0, 1.0))
        mu = pyro.sample("mu", dist.Cauchy(center, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mu, 1.5), obs=x)

    for reparam in (False, True):
        with pytest.raises(NotConjugateError) as caught:
            CAVI(model, guide := AutoConjugate(model, reparam=reparam)).run(X)
        assert "Cauchy" in str(caught.value)
        assert "reparam" not in str(caught.value)
        assert not guide.posterior_state.layout


def test_another_reparam_is_an_error() -> None:
    with pytest.raises(ArgumentTypeError, match=r"Expected reparam to be True, False or a Conjugate\(\); got 'all'"):
        AutoConjugate(scale, reparam="all")  # type: ignore[arg-type]
