"""Moving the data, and the prior of the location at the top, moves the locations and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate

_GROUPS, _ROWS = 12, 8
_OF_ROW = torch.arange(_GROUPS).repeat_interleave(_ROWS)


def _top(shift: float) -> tuple[Tensor, Tensor, Tensor]:
    precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
    between = pyro.sample("between", dist.Gamma(1.0, 1.0))
    return precision, between, pyro.sample("top", dist.Normal(shift, 10.0))


def _nested(x: Tensor, shift: float) -> None:
    precision, between, top = _top(shift)
    with pyro.plate("groups", _GROUPS, dim=-2):
        group = pyro.sample("group", dist.Normal(top, between.rsqrt()))
        with pyro.plate("rows", _ROWS, dim=-1):
            pyro.sample("x", dist.Normal(group, precision.rsqrt()), obs=x.reshape(_GROUPS, _ROWS))


def _one_for_each_datum(x: Tensor, shift: float) -> None:
    precision, between, top = _top(shift)
    with pyro.plate("groups", _GROUPS, dim=-2):
        group = pyro.sample("group", dist.Normal(top, between.rsqrt()))
        with pyro.plate("rows", _ROWS, dim=-1):
            row = pyro.sample("row", dist.Normal(group, precision.rsqrt()))
            pyro.sample("x", dist.Normal(row, 0.5), obs=x.reshape(_GROUPS, _ROWS))


def _by_index(x: Tensor, shift: float) -> None:
    precision, between, top = _top(shift)
    with pyro.plate("groups", _GROUPS):
        group = pyro.sample("group", dist.Normal(top, between.rsqrt()))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(group[_OF_ROW], precision.rsqrt()), obs=x)


def _mixture(x: Tensor, shift: float) -> None:
    precision, between, top = _top(shift)
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(top, between.rsqrt()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], precision.rsqrt()), obs=x)


def _effects(x: Tensor, shift: float) -> None:
    precision, between, top = _top(shift)
    with pyro.plate("groups", _GROUPS, dim=-2):
        effect = pyro.sample("effect", dist.Normal(0.0, between.rsqrt()))
        with pyro.plate("rows", _ROWS, dim=-1):
            pyro.sample("x", dist.Normal(effect + top, precision.rsqrt()), obs=x.reshape(_GROUPS, _ROWS))


def _vectors(x: Tensor, shift: float) -> None:
    between = pyro.sample("between", dist.Gamma(1.0, 1.0))
    top = pyro.sample("top", dist.Normal(torch.full((2,), shift), 10.0).to_event(1))
    with pyro.plate("groups", _GROUPS):
        group = pyro.sample("group", dist.Normal(top, between.rsqrt()).to_event(1))
    with pyro.plate("rows", len(x) // 2):
        rows = x.reshape(-1, 2)
        pyro.sample("x", dist.Normal(group[_OF_ROW[: len(rows)]], 1.0).to_event(1), obs=rows)


@pytest.mark.parametrize("model", [_nested, _one_for_each_datum, _by_index, _mixture, _effects, _vectors])
def test_far_data_loses_nothing(model: Callable[..., None]) -> None:
    """A chain of locations is measured from the data up to its top, so that no square of 1e6 is ever taken."""
    generator = torch.Generator().manual_seed(0)
    groups = 4 * torch.randn(_GROUPS, generator=generator, dtype=torch.float64).repeat_interleave(_ROWS)
    near = groups + torch.randn(_GROUPS * _ROWS, generator=generator, dtype=torch.float64)
    far = near + 2.0**20
    guides = AutoConjugate(model), AutoConjugate(model)
    at_zero = CAVI(model, guides[0]).run(far - 2.0**20, 0.0, max_steps=40, tol=0.0).elbo
    far_away = CAVI(model, guides[1]).run(far, 2.0**20, max_steps=40, tol=0.0).elbo
    torch.testing.assert_close(far_away, at_zero, rtol=1e-8, atol=1e-6)
    assert bool((far_away.diff() > -1e-6).all())
    tops: list[Any] = [g.posterior()["top"] for g in guides]
    tops = [getattr(t, "base_dist", t).mean for t in tops]
    torch.testing.assert_close(tops[1] - 2.0**20, tops[0], rtol=1e-6, atol=1e-6)
