"""What changes between the steps of a run is seen by the next step; what changes by running the model is an error."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_latent import CAVI, AutoConjugate, DataError, RecordingError

_X: Any = torch.tensor([1.0, 2.5, 3.0, 1.5], dtype=torch.float64)


def tempered(settings: SimpleNamespace) -> Callable[..., None]:
    """A normal mean whose likelihood counts ``settings.weight`` times."""

    def model(x: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=settings.weight):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return model


def with_offset(x: torch.Tensor) -> None:
    offset = pyro.param("offset", torch.tensor(1.0, dtype=x.dtype))
    mu = pyro.sample("mu", dist.Normal(offset, 1.0))
    tau = pyro.sample("tau", dist.Gamma(torch.ones((), dtype=x.dtype), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)


def test_annealed_scale_of_a_callback_ends_at_the_exact_posterior():
    """Under the last weight w the posterior mean is w Σx / (1 + w N); the run does not end while w changes."""
    settings = SimpleNamespace(weight=0.1)
    model = tempered(settings)
    guide = AutoConjugate(model)
    seen = []

    def warm(step: int, elbo: float) -> None:
        seen.append(float(guide.posterior()["mu"].loc))
        settings.weight = min(1.0, 0.1 * (step + 1))

    result = CAVI(model, guide).run(_X, callback=warm)
    weights = [min(1.0, 0.1 * (step + 1)) for step in range(result.num_steps)]
    assert result.converged and weights[-1] == 1.0
    assert seen == pytest.approx([w * float(_X.sum()) / (1 + w * len(_X)) for w in weights])


def test_parameter_of_a_callback_is_where_the_next_sweep_begins():
    """The ELBO falls to that of the new value, and rises again to the optimum of a run that nobody disturbs."""
    alone = CAVI(with_offset, AutoConjugate(with_offset)).run(_X, tol=1e-12)
    pyro.clear_param_store()

    def disturb(step: int, elbo: float) -> None:
        if step == 4:
            pyro.get_param_store()["offset"] = torch.tensor(30.0, dtype=torch.float64)

    result = CAVI(with_offset, AutoConjugate(with_offset)).run(_X, tol=1e-12, callback=disturb)
    assert result.elbo[4] < result.elbo[3] - 1
    assert float(result.elbo[-1]) == pytest.approx(float(alone.elbo[-1]), rel=1e-10)


@pytest.mark.parametrize("kind", ["scale", "mask"])
def test_weight_that_the_model_changes_by_running_is_an_error(kind):
    runs = []

    def model(x: torch.Tensor) -> None:
        runs.append(0)
        weight: Any = 1.0 / len(runs) if kind == "scale" else torch.arange(len(x)) < len(runs)
        handler = poutine.scale(scale=weight) if kind == "scale" else poutine.mask(mask=weight)
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("data", len(x)), handler:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    with pytest.raises(RecordingError, match=f"Expected the {kind} of site 'x' to be the same each time"):
        CAVI(model, AutoConjugate(model)).step(_X)


def test_a_piece_whose_scale_has_changed_is_an_error():
    """The summaries of the other pieces are of the scale before: their sum is of no model."""
    settings = SimpleNamespace(weight=0.5)

    def model(x: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("data", len(_X), subsample_size=len(x)), poutine.scale(scale=settings.weight):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    guide = AutoConjugate(model)
    cavi = CAVI(model, guide, memoised=True)
    for name in range(2):
        cavi.step_piece(name, _X[2 * name : 2 * name + 2])
    assert float(guide.posterior()["mu"].loc) == pytest.approx(0.5 * float(_X.sum()) / (1 + 0.5 * len(_X)))
    settings.weight = 1.0
    with pytest.raises(DataError, match="piece 0 as in the pass before, with its masks and scales"):
        cavi.step_piece(0, _X[:2])


def test_a_pass_in_which_a_parameter_is_moved_does_not_end_a_run():
    def model(x: torch.Tensor) -> None:
        offset = pyro.param("offset", torch.tensor(0.0, dtype=x.dtype))
        mu = pyro.sample("mu", dist.Normal(offset, 1.0))
        with pyro.plate("data", len(_X), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def disturb(step: int, elbo: float) -> None:
        if step == 5:
            pyro.get_param_store()["offset"] = torch.tensor(40.0, dtype=torch.float64)

    cavi = CAVI(model, AutoConjugate(model), memoised=True)
    result = cavi.run_batches([_X[:2], _X[2:]], epochs=100, tol=1e-12, callback=disturb)
    assert result.converged and pyro.param("offset").item() == pytest.approx(float(_X.mean()), abs=1e-4)
