"""States, data and settings that no exact answer exists for are refused, and nothing has changed then."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import (
    CAVI,
    EM,
    ArgumentError,
    ArgumentTypeError,
    AutoConjugate,
    CheckpointError,
    DataError,
    ModelError,
    NotConjugateError,
)
from pyro_latent.gradient.flows import FlowDensity
from pyro_latent.gradient.monte_carlo_em import MonteCarloEM
from pyro_latent.models import restricted_q, vae
from pyro_latent.models.lda import LDA


def _model(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(loc, precision.rsqrt()), obs=x)


_X = torch.tensor([0.5, 1.2, -0.3, 2.0], dtype=torch.float64)


def _fitted() -> AutoConjugate:
    guide = AutoConjugate(_model)
    CAVI(_model, guide).run(_X)
    return guide


@pytest.mark.parametrize("bad", [math.nan, math.inf, -5.0])
@pytest.mark.parametrize("target", ["new", "fitted"])
def test_states_that_are_no_distributions_do_not_load(bad: float, target: str) -> None:
    guide = _fitted()
    state = {n: t.clone() if isinstance(t, Tensor) else t for n, t in guide.state_dict().items()}
    state["natural_0_log_x"].fill_(bad)
    other = AutoConjugate(_model) if target == "new" else guide
    before = {n: t.clone() for n, t in other.named_buffers()}
    with pytest.raises(ModelError, match=r"proper distributions; got .*'precision'"):
        other.load_state_dict(state)
    assert all(torch.equal(t, before[n]) for n, t in other.named_buffers())
    other.load_state_dict(guide.state_dict() if target == "new" else _fitted().state_dict())
    assert math.isfinite(other.elbo(_X))


@pytest.mark.parametrize("name", ["natural_0_x", "origin_0"])
def test_a_state_that_is_not_whole_does_not_load(name: str) -> None:
    state = _fitted().state_dict()
    del state[name]
    for other in (AutoConjugate(_model), _fitted()):
        before, layout = {n: t.clone() for n, t in other.named_buffers()}, dict(other.posterior_state.layout)
        with pytest.raises(ModelError, match=f"Expected the whole state of a guide; got one without .*{name}"):
            other.load_state_dict(state)
        assert {n: t.tolist() for n, t in other.named_buffers()} == {n: t.tolist() for n, t in before.items()}
        assert other.posterior_state.layout == layout


@pytest.mark.parametrize("method", ["half", "bfloat16"])
def test_guides_in_half_precision_are_refused(method: str) -> None:
    guide = _fitted()
    before = guide.elbo(_X)
    with pytest.raises(DataError, match="float32 or float64"):
        getattr(guide, method)()
    assert guide.elbo(_X) == before
    assert all(t.dtype == torch.float64 for t in guide.buffers())


def test_complex_data_is_refused() -> None:
    with pytest.raises(DataError, match="Expected real data at site 'x'"):
        CAVI(_model, AutoConjugate(_model)).step(_X + 1j)


def test_data_that_overflows_is_refused() -> None:
    guide = _fitted()
    with pytest.raises(DataError, match="divide the data by their scale"):
        guide.elbo(torch.full((4,), 1e308, dtype=torch.float64))


def _in_the_way(x: Tensor) -> None:
    """What cannot be recorded, beside what can be recorded and not updated."""
    count = pyro.sample("count", dist.Poisson(3.0))
    several = pyro.sample("several", dist.Bernoulli(torch.tensor([0.3, 0.4])).to_event(1))
    fewer = pyro.sample("fewer", dist.Binomial(count, torch.tensor(0.5)))
    width = pyro.sample("width", dist.HalfCauchy(1.0))
    scale = pyro.sample("scale", dist.HalfCauchy(width))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        weights: Any = z > 0
        with poutine.mask(mask=weights):
            pyro.sample("x", dist.Normal(loc + fewer + several.sum(), scale), obs=x)
    with poutine.scale(scale=scale):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=x[0])


_OBSTACLES = {
    "count": "a Poisson with infinitely many values",
    "several": "an event of several",
    "fewer": "known total_count of the discrete latent 'fewer'",
    "scale": "HalfCauchy",
    "x": r"constant mask at site 'x'; got one that depends on the latents \['z'\]",
    "y": r"constant scale at site 'y'; got one that depends on the latents \['scale'\]",
}


def test_obstacles_of_the_recording_are_named_with_all_others_at_once() -> None:
    with pytest.raises(NotConjugateError, match="got 6 obstacles") as caught:
        CAVI(_in_the_way, AutoConjugate(_in_the_way)).run(_X)
    for words in _OBSTACLES.values():
        assert caught.match(words)
    rows = {line.split()[0]: line for line in AutoConjugate(_in_the_way).explain(_X).splitlines()}
    for name, words in _OBSTACLES.items():
        assert re.search(f"none: .*{words}", rows[name]), rows[name]
    assert "none: " not in rows["z"] + rows["loc"]


def test_a_model_that_breaks_on_a_latent_that_cannot_be_recorded_is_told_of_that_latent() -> None:
    """And not of what it then did with a value that stood for it."""

    def model(x: Tensor) -> None:
        count = pyro.sample("count", dist.Poisson(3.0))
        for i in range(int(count)):
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i])

    with pytest.raises(NotConjugateError, match=r"'count'.*infinitely many values"):
        CAVI(model, AutoConjugate(model)).run(_X)


# Modes, files and settings.


def _scaled(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_goes_by_gradients_whatever_the_mode(mode: Any) -> None:
    autoencoder, density = vae.VAE((4,), 2, hidden=(4,)), FlowDensity(2, length=1)
    before = [p.detach().clone() for module in (autoencoder, density) for p in module.parameters()]
    with mode():
        vae.fit(autoencoder, (torch.rand(12, 4) > 0.5).float(), epochs=1)
        density.fit(torch.randn(50, 2), max_steps=2)
        MonteCarloEM(_scaled, num_samples=2, warmup=2).run(torch.randn(5), max_steps=1)
    after = [p for module in (autoencoder, density) for p in module.parameters()]
    assert not any(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_a_module_that_was_made_for_inference_alone_is_refused() -> None:
    with torch.inference_mode():
        density = FlowDensity(2, length=1)
    with pytest.raises(ModelError, match=r"FlowDensity that can be trained; .*inference_mode\(\)\. Make it outside"):
        density.fit(torch.randn(50, 2), max_steps=2)


def test_a_checkpoint_is_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got a folder or a device"):
        CAVI(_model, AutoConjugate(_model)).run(_X, checkpoint=tmp_path)


def test_an_optimizer_of_another_kind_is_named() -> None:
    with pytest.raises(ArgumentTypeError, match=r"a torch optimizer; got NoneType.*torch\.optim\.Adam"):
        EM(_scaled, m_step="gradient", optimizer=lambda params: None).run(_X)  # type: ignore[arg-type, return-value]


def test_topics_of_more_words_than_the_limit_holds_are_refused() -> None:
    with pytest.raises(ModelError, match=r"2 topics of 1000000000001 words within .*memory_limit"):
        LDA(2).fit([[10**12], [3, 4, 5]])


@pytest.mark.parametrize("order", [0.5, "mu", ["loc", 3], torch.arange(2)])
def test_an_order_that_is_no_list_of_names_is_refused(order: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"Expected order to be a list of site names"):
        CAVI(_model, AutoConjugate(_model), order=order)


def test_a_function_of_other_arguments_says_what_it_was_given() -> None:
    with pytest.raises(
        ArgumentError, match=r"gap to run with .*\(str, scale: float\); got TypeError: [^.]*\. Write"
    ) as caught:
        restricted_q.gap("a", scale=1.0)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)


def test_a_recurrence_of_products_is_an_error_and_soon() -> None:
    """The logistic equation by Euler's method: the number of terms squares at each step."""

    def model(y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.LogNormal(y.new_tensor(0.0), 0.5))
        b = pyro.sample("b", dist.LogNormal(y.new_tensor(0.0), 0.5))
        z = y.new_tensor(1.0)
        for t in range(len(y)):
            z = z + 0.1 * (a - b * z) * z
            pyro.sample(f"y_{t}", dist.LogNormal(z.log(), 1.0), obs=y[t])

    y = torch.ones(12, dtype=torch.float64)
    with pytest.raises(NotConjugateError, match=r"'y_0'.*log of 'a', 'b'"):
        CAVI(model, AutoConjugate(model)).run(y)


def test_the_advice_for_elements_that_meet_is_not_what_the_model_has() -> None:
    """Only a Normal's elements become one block by .to_event, which these have."""

    def model() -> None:
        w = pyro.sample("w", dist.Uniform(-_X.new_ones(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=_X[0])

    with pytest.raises(NotConjugateError, match=r"Give 'w' a Normal prior with \.to_event\(1\)"):
        CAVI(model, AutoConjugate(model)).run()


def test_a_bound_that_is_a_latent_is_named() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Uniform(_X.new_tensor(0.0), 1.0))
        b = pyro.sample("b", dist.Uniform(0.0, 1 - a))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=_X[0])

    with pytest.raises(NotConjugateError, match=r"support of 'a'.*bounds that are no latents"):
        CAVI(model, AutoConjugate(model)).run()
