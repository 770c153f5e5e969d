"""States, data and settings that no exact answer exists for are refused, and nothing has changed then."""

from __future__ import annotations

import math
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, DataError, ModelError, NotConjugateError


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
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        weights: Any = z > 0
        with poutine.mask(mask=weights):
            pyro.sample("x", dist.Normal(loc + fewer + several.sum(), scale), obs=x)


_OBSTACLES = {
    "count": "a Poisson with infinitely many values",
    "several": "an event of several",
    "fewer": "known total_count of the discrete latent 'fewer'",
    "scale": "HalfCauchy",
    "x": r"constant mask at site 'x'; got one that depends on the latents \['z'\]",
}


def test_obstacles_of_the_recording_are_named_with_all_others_at_once() -> None:
    with pytest.raises(NotConjugateError, match="got 5 obstacles") as caught:
        CAVI(_in_the_way, AutoConjugate(_in_the_way)).run(_X)
    for words in _OBSTACLES.values():
        assert caught.match(words)
    rows = {line.split()[0]: line for line in AutoConjugate(_in_the_way).explain(_X).splitlines()}
    for name, words in _OBSTACLES.items():
        assert re.search(f"none: .*{words}", rows[name]), rows[name]
    assert "none: " not in rows["z"] + rows["loc"]
