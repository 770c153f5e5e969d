"""On a GPU the same models reach the same ELBO, and the posterior stays there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from shared_models import batch_mixture, regression
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.gradient.flows import FlowDensity, FlowGuide, FlowPosterior, make_flow
from pyro_latent.models import gmm, normal_gamma

pytestmark = pytest.mark.gpu


def mixture(x: Tensor, size: int) -> None:
    batch_mixture(x, size, k=2)


def rows(count: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, columns, generator=generator, dtype=torch.float64)


def walk(y: Tensor) -> None:
    x = y.new_zeros(())
    scale = pyro.sample("scale", dist.HalfNormal(y.new_ones(())))
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, scale), obs=y[t])


def factorization(counts: Tensor) -> None:
    one = torch.ones((), dtype=torch.float64, device=counts.device)
    theta = pyro.sample("theta", dist.Gamma(one, one).expand([counts.shape[0], 2]).to_event(2))
    beta = pyro.sample("beta", dist.Gamma(one, one).expand([2, counts.shape[1]]).to_event(2))
    pyro.sample("counts", dist.Poisson(theta @ beta).to_event(2), obs=counts)


def sticks(label: Tensor) -> None:
    one = torch.ones((), dtype=torch.float64, device=label.device)
    with pyro.plate("sticks", 9):
        v = pyro.sample("v", dist.Beta(one, one))
    weights = torch.nn.functional.pad(v, (0, 1), value=1) * torch.nn.functional.pad(
        (1 - v).cumprod(-1), (1, 0), value=1
    )
    with pyro.plate("data", len(label)):
        pyro.sample("label", dist.Categorical(weights), obs=label)


CASES: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (normal_gamma.model, (rows(1000, 1)[:, 0],), {}),
    (normal_gamma.model, (rows(1000, 1)[:, 0],), {"blocks": [("mean", "precision")]}),
    (gmm.model, (rows(500, 2) + 6 * (torch.arange(500) % 2).double()[:, None], 2), {"blocks": [("mean", "precision")]}),
    (regression, (rows(200, 3), rows(200, 3).sum(1)), {}),
    (walk, (rows(30, 1)[:, 0].cumsum(0),), {"blocks": ["x_*"]}),
    (factorization, (rows(20, 10).exp().round(),), {"reparam": True}),
    (sticks, (torch.arange(30) % 7,), {}),
]


@pytest.mark.parametrize(("model", "args", "options"), CASES)
def test_the_elbo_is_that_of_the_cpu(model: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    on_gpu = tuple(a.cuda() if isinstance(a, Tensor) else a for a in args)
    here, there = AutoConjugate(model, **options), AutoConjugate(model, **options)
    expected = CAVI(model, here).run(*args, tol=1e-12).elbo[-1]
    found = CAVI(model, there).run(*on_gpu, tol=1e-12).elbo[-1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert all(buffer.is_cuda for buffer in there.buffers())


@pytest.mark.parametrize("settings", [{"step_size": 0.5}, {"memoised": True}], ids=str)
def test_steps_on_minibatches_are_those_of_the_cpu(settings: dict[str, Any]) -> None:
    data = rows(400, 1)[:, 0] + 6 * (torch.arange(400) % 2)
    start = {"mean": torch.tensor([-1.0, 1.0], dtype=torch.float64)}
    here, there = AutoConjugate(mixture, init=start), AutoConjugate(mixture, init=start)
    batches = [(part,) for part in data.split(100)]
    on_gpu = [(part.cuda(),) for part in data.split(100)]
    expected = CAVI(mixture, here, **settings).run_batches(batches, epochs=3, tol=0.0, size=400)
    found = CAVI(mixture, there, **settings).run_batches(on_gpu, epochs=3, tol=0.0, size=400)
    torch.testing.assert_close(found.elbo, expected.elbo, rtol=1e-9, atol=0)


FLOWS = ("planar", "radial", "affine_coupling", "affine_autoregressive", "spline_coupling", "spline_autoregressive")


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_fits_and_scores_there_as_on_the_cpu(kind: str) -> None:
    """A few steps from the same parameters: after many, rounding alone would tell the two apart."""
    data = rows(200, 2)
    torch.manual_seed(0)
    here = FlowDensity(2, kind, length=3, hidden=(8,))
    there = copy.deepcopy(here)
    expected = here.fit(data, max_steps=5, held_out=data[:50])
    found = there.fit(data.cuda(), max_steps=5, held_out=data[:50].cuda())
    torch.testing.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.held_out, expected.held_out, rtol=1e-8, atol=1e-8)
    assert all(value.is_cuda for value in there.state_dict().values())
    if kind in ("affine_coupling", "spline_coupling"):
        assert there.sample(7).is_cuda


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_guide_and_a_flow_posterior_stay_there(kind: str) -> None:
    x = rows(50, 1)[:, 0].cuda()
    guide = FlowGuide(normal_gamma.model, kind, length=2, hidden=(8,))
    svi = SVI(normal_gamma.model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(x)) for _ in range(5))
    assert all(p.is_cuda for p in guide.parameters())
    state = torch.cuda.get_rng_state()
    assert all(value.is_cuda for value in guide.median(x).values())
    assert torch.equal(torch.cuda.get_rng_state(), state)
    loc = rows(4, 2).cuda()
    q = FlowPosterior(loc, loc.exp(), make_flow(kind, 2, length=2).double().cuda())
    assert q.log_prob(q.rsample()).is_cuda
