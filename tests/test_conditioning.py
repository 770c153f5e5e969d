"""A design that loses digits: the evidence is right, or the error says what to center."""

from __future__ import annotations

import itertools

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ElboDecreaseError, NaturalDomainError, handlers


def _model(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 1e6).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)


def _evidence(x: Tensor, y: Tensor) -> float:
    """By sixty digits."""
    with mpmath.workdps(60):
        design, data = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())
        precision = design.T * design + mpmath.eye(x.shape[1]) * mpmath.mpf(10) ** -12
        inner = design.T * data
        square = (inner.T * mpmath.lu_solve(precision, inner))[0] - (data.T * data)[0]
        scales = mpmath.log(mpmath.det(precision)) + 12 * x.shape[1] * mpmath.log(10)
        return float((square - scales - len(y) * mpmath.log(2 * mpmath.pi)) / 2)


def _problem(kind: str, size: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    if kind == "collinear":
        x[:, 2] = x[:, 0] + x[:, 1] + x[:, 2] / size
    elif kind == "outlier":
        x[0, 1] = size
    else:
        x[:, 0] = 1.0
        x[:, 1] += size
    noise = torch.randn(60, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) + noise


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9])
@pytest.mark.parametrize("kind", ["collinear", "outlier", "far from zero"])
def test_evidence_is_right_or_refused(kind: str, size: float) -> None:
    x, y = _problem(kind, size)
    try:
        found = float(CAVI(_model, AutoConjugate(_model)).run(x, y).elbo[-1])
    except NaturalDomainError as error:
        assert size >= 1e5
        assert "columns of a design may depend on each other" in str(error)
        return
    yy = float((y**2).sum())
    assert found == pytest.approx(_evidence(x, y), abs=1e-2 + 1e-14 * yy)


def test_falls_are_blamed_on_an_update_only_if_it_is_hand_written() -> None:
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    steps = itertools.chain([0.5], itertools.repeat(5.0))
    wrong = handlers.closed_form(model, {"loc": lambda q, x: dist.Normal(next(steps), 0.5)})
    cavi, x = CAVI(wrong, AutoConjugate(wrong)), torch.tensor([0.2, 0.9])
    cavi.step(x)
    with pytest.raises(ElboDecreaseError, match="It is hand-written: check_updates"):
        cavi.step(x)
