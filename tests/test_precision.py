"""The ELBO that is reported in float32 is that of the posterior as it stands, and its falls are real."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import gmm


def _sharp_prior(x: Tensor) -> None:
    probs = pyro.sample("probs", dist.Dirichlet(torch.full((3,), 1e8)))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Categorical(probs), obs=(x[:, 0] > 0).long())


def _normal_gamma(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 100.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=1000 + x[:, 0])


def _regression(x: Tensor) -> None:
    """On the year, uncentered."""
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    year = torch.arange(len(x)).to(x) % 70 + 1950
    design = torch.stack([torch.ones_like(year), year], 1)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(design @ weights, precision.rsqrt()), obs=x[:, 0] + 0.02 * year)


def _local(x: Tensor) -> None:
    """A latent for each datum, and a mask."""
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    mask: Any = x[:, 1] > 0
    with pyro.plate("n", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(0.0, (precision * rate).rsqrt()), obs=x[:, 0])


def _mixture(x: Tensor) -> None:
    gmm.model(x, 6)


def _clusters(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(6, 2, generator=generator)
    return centers[torch.arange(count) % 6] + torch.randn(count, 2, generator=generator)


def _fitted(model: Callable[..., Any], x: Tensor, blocks: Any) -> tuple[AutoConjugate, Tensor]:
    guide = AutoConjugate(model, blocks=blocks)
    return guide, CAVI(model, guide).run(x, max_steps=15, tol=0.0).elbo


_CASES = [
    (_sharp_prior, None),
    (_normal_gamma, None),
    (_regression, None),
    (_local, None),
    (_mixture, [("mean", "precision")]),
]


@pytest.mark.parametrize(("model", "blocks"), _CASES)
def test_elbo_in_float32_is_that_of_its_state_in_float64(model: Callable[..., Any], blocks: Any) -> None:
    """The same natural parameters, read in float64, have the same ELBO to a part in ten million."""
    x = _clusters(20_000)
    guide, elbo = _fitted(model, x, blocks)
    exact = AutoConjugate(model, blocks=blocks)
    state = {name: t.double() if isinstance(t, Tensor) else t for name, t in guide.state_dict().items()}
    exact.load_state_dict(state)
    value = exact.elbo(x.double())
    assert guide.elbo(x) == pytest.approx(value, rel=1e-7)
    assert float(elbo[-1]) == pytest.approx(value, rel=1e-7)
    assert sum(guide.elbo_terms(x).log_densities.values()) + sum(
        guide.elbo_terms(x).entropies.values()
    ) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize(("model", "blocks"), _CASES)
def test_elbo_in_float32_rises_as_in_float64(model: Callable[..., Any], blocks: Any) -> None:
    elbo = _fitted(model, _clusters(20_000), blocks)[1]
    assert float(elbo.diff().min()) > -5e-3


def test_pieces_in_float32_have_the_elbo_of_the_whole() -> None:
    def model(x: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
        mean = pyro.sample("mean", dist.Normal(0.0, (0.1 * precision).rsqrt()))
        with pyro.plate("n", 4000, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)

    x = _clusters(4000)[:, 0]
    blocks = [("mean", "precision")]
    pieces = CAVI(model, AutoConjugate(model, blocks=blocks), memoised=True).run_batches(x.split(1000), epochs=3)
    whole = CAVI(model, AutoConjugate(model, blocks=blocks)).run(x.double())
    assert float(pieces.elbo[-1]) == pytest.approx(float(whole.elbo[-1]), abs=2e-3)


def _line(x: Tensor, y: Tensor) -> None:
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1000.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 100.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, precision.rsqrt()), obs=y)


def _line_data(origin: float) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-10, 10, 200)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
    return origin + x, 3 + 0.5 * x + noise


def test_run_that_float32_has_stopped_short_of_the_optimum_has_not_converged() -> None:
    x, y = _line_data(1e4)
    with pytest.warns(UserWarning, match="float32 to have the digits"):
        result = CAVI(_line, AutoConjugate(_line)).run(x, y, max_steps=100)
    assert not result.converged
    double = CAVI(_line, AutoConjugate(_line)).run(x.double(), y.double(), max_steps=100)
    assert not double.converged
    assert float(double.elbo.diff()[-1]) > 0


@pytest.mark.parametrize("tol", [1e-8, 1e-4])
def test_run_in_float32_converges_where_its_digits_suffice(tol: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CAVI(_line, AutoConjugate(_line)).run(*_line_data(30.0), max_steps=1000, tol=tol).converged


@pytest.mark.parametrize(("model", "blocks"), [c for c in _CASES if c[0] is not _mixture])
def test_runs_in_float32_converge(model: Callable[..., Any], blocks: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = CAVI(model, AutoConjugate(model, blocks=blocks)).run(_clusters(2000), max_steps=300)
    assert result.converged
