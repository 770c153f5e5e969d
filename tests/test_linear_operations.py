"""Linear operations on a normal latent: the evidence is that of the Gaussian that they make, and plates stay apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, PyroLatentError

DOUBLE = torch.float64
PLACES, GROUPS = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 2, 2, 1])
KERNEL = torch.tensor([[[1.0, 0.5, -0.2]]], dtype=DOUBLE)
ROWS = torch.arange(12, dtype=DOUBLE).reshape(3, 4).cos()
WEIGHTS = torch.tensor([0.3, 1.0, -2.0, 0.7], dtype=DOUBLE)


def autoregression(x: Any) -> Any:
    """Written into zeros, element by element."""
    path = torch.zeros(5, dtype=DOUBLE)
    for i in range(1, 5):
        path[i] = 0.5 * path[i - 1] + x[i - 1]
    path[1:] += 1.0
    return path


#: Operations on a vector of four elements.
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "pad": lambda x: F.pad(x, (1, 2)),
    "scatter": lambda x: torch.zeros(6, dtype=DOUBLE).scatter(0, PLACES, x),
    "index_add": lambda x: torch.ones(3, dtype=DOUBLE).index_add(0, GROUPS, x),
    "cumsum": lambda x: x.cumsum(0),
    "diff": lambda x: x.diff(prepend=torch.zeros(1, dtype=DOUBLE)),
    "flip, roll and repeat": lambda x: x.flip(0).roll(1).repeat(2) - x.repeat_interleave(2),
    "outer and diagonal": lambda x: torch.outer(x, WEIGHTS).diagonal(),
    "kron": lambda x: torch.kron(x, WEIGHTS[:2]),
    "tensordot and addmv": lambda x: torch.addmv(torch.tensordot(ROWS, x, 1), ROWS, x, beta=0.5, alpha=2.0),
    "lerp and addcmul": lambda x: torch.lerp(x, WEIGHTS, 0.3).addcmul(WEIGHTS, x, value=2.0),
    "convolution": lambda x: F.conv1d(x.reshape(1, 1, 4), KERNEL, padding=1).reshape(-1),
    "convolution by the latent": lambda x: F.conv1d(WEIGHTS.repeat(2).reshape(1, 1, 8), x.reshape(1, 1, 4)).reshape(-1),
    "triangle": lambda x: torch.outer(WEIGHTS, x).triu().sum(-1),
    "written into zeros": autoregression,
    "written by scatter_": lambda x: torch.zeros(6, dtype=DOUBLE).scatter_(0, PLACES, x),
    "masked": lambda x: x.masked_fill(WEIGHTS < 0, 0.5) + torch.where(WEIGHTS < 0, x, 0.0).sum(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_linear_operation_on_a_normal_has_the_evidence_of_its_gaussian(name: str) -> None:
    """The matrix of the operation is read off plain vectors: its constant, and its columns."""
    operation = OPERATIONS[name]
    mean, root = torch.arange(4, dtype=DOUBLE), torch.eye(4, dtype=DOUBLE).cumsum(0)
    constant = operation(torch.zeros(4, dtype=DOUBLE))
    matrix = torch.stack([operation(e) - constant for e in torch.eye(4, dtype=DOUBLE)], -1)
    data = torch.linspace(-1, 2, len(constant), dtype=DOUBLE)

    def model() -> None:
        x = pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=root))
        pyro.sample("y", dist.Normal(operation(x), 0.7).to_event(1), obs=data)

    guide = AutoConjugate(model)
    found = CAVI(model, guide).run(max_steps=1).elbo[0].item()
    covariance = matrix @ root @ root.T @ matrix.T + 0.49 * torch.eye(len(constant), dtype=DOUBLE)
    exact = scipy.stats.multivariate_normal.logpdf(data, matrix @ mean + constant, covariance)
    assert found == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(
    ("operation", "places"),
    [
        (lambda x: torch.zeros(6, dtype=DOUBLE).scatter(0, PLACES, x), [0, None, 1, 2, None, 3]),
        (lambda x: F.pad(x, (1, 2)), [None, 0, 1, 2, 3, None, None]),
        (lambda x: x.flip(0).repeat_interleave(2), [3, 3, 2, 2, 1, 1, 0, 0]),
    ],
)
def test_moved_elements_of_a_plate_stay_apart(operation: Callable[[Any], Any], places: list[int | None]) -> None:
    """Each element is a normal with a known scale, of the data at the places that it is moved to."""
    data = torch.linspace(-1, 2, len(places), dtype=DOUBLE)

    def model(data: Tensor) -> None:
        with pyro.plate("elements", 4):
            x = pyro.sample("x", dist.Normal(0.5, 2.0))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(operation(x), 0.7), obs=data)

    guide = AutoConjugate(model)
    found = CAVI(model, guide).run(data, max_steps=1).elbo[0].item()
    columns = np.array([[float(place == i) for i in range(4)] for place in places])
    covariance = 4 * columns @ columns.T + 0.49 * np.eye(len(places))
    exact = scipy.stats.multivariate_normal.logpdf(data, columns @ np.full(4, 0.5), covariance)
    assert found == pytest.approx(exact, rel=1e-10)


def test_products_of_gammas_are_precisions() -> None:
    """The shrinkage of a sparse factor model, against the mean field of the products written out."""

    def model(written_out: bool) -> None:
        rates = [pyro.sample(f"rate_{i}", dist.Gamma(2.0 + i, 1.0)) for i in range(3)]
        products = torch.stack([rates[0], rates[0] * rates[1], rates[0] * rates[1] * rates[2]])
        precision = products if written_out else torch.stack(rates).cumprod(0)
        scale = precision.rsqrt() if written_out else torch.exp(-0.5 * precision.log())
        data = torch.tensor([1.0, 0.5, -0.3], dtype=DOUBLE)
        pyro.sample("y", dist.Normal(0.0, scale).to_event(1), obs=data)

    elbos = [CAVI(model, AutoConjugate(model)).run(out, max_steps=5).elbo for out in (False, True)]
    torch.testing.assert_close(*elbos)


BUFFER = torch.arange(4, dtype=DOUBLE)


def test_a_tensor_that_the_model_writes_into_has_its_numbers_back() -> None:
    def model() -> None:
        place = pyro.sample("place", dist.Normal(0.0, 1.0))
        BUFFER[1:3] = place
        pyro.sample("y", dist.Normal(BUFFER, 0.7).to_event(1), obs=torch.ones(4, dtype=DOUBLE))

    guide = AutoConjugate(model, check=False)
    found = CAVI(model, guide).run(max_steps=1).elbo[0].item()
    assert torch.equal(BUFFER, torch.arange(4, dtype=DOUBLE))
    row = np.array([[0.0], [1.0], [1.0], [0.0]])
    covariance = row @ row.T + 0.49 * np.eye(4)
    exact = scipy.stats.multivariate_normal.logpdf(np.ones(4), np.array([0.0, 0.0, 0.0, 3.0]), covariance)
    assert found == pytest.approx(exact, rel=1e-10)


def test_what_shares_its_elements_with_a_tensor_that_is_written_into_is_never_stale() -> None:
    def by_row() -> None:
        table = torch.zeros(2, 3, dtype=DOUBLE)
        row = table[0]
        row[:] = pyro.sample("place", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(table, 1.0).to_event(2), obs=torch.ones(2, 3, dtype=DOUBLE))

    def by_table() -> None:
        table = torch.zeros(2, 3, dtype=DOUBLE)
        row = table[0]
        table[:] = pyro.sample("place", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(row, 1.0).to_event(1), obs=torch.ones(3, dtype=DOUBLE))

    for model, words in ((by_row, "got the in-place __setitem__"), (by_table, "finite|NaN|nan")):
        with pytest.raises(PyroLatentError, match=words):
            CAVI(model, AutoConjugate(model, check=False)).run()
