"""What of a guide is fitted anew to new data depends on what each observation reads, and on no plate's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ModelError


def _features(name: str, local: bool | None) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        infer: Any = {} if local is None else {"local": local}
        with pyro.plate(name, x.shape[1], dim=-1):
            w = pyro.sample("w", dist.Normal(0.0, 10.0), infer=infer)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("features", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


_X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
_NEW = _X[:5] + 4.0


@pytest.mark.parametrize("name", ["features", "others"])
@pytest.mark.parametrize("local", [True, False])
def test_a_plate_by_another_name_gives_the_same_elbo_of_new_data(name: str, local: bool) -> None:
    """As a global, w keeps its posterior; as a local, it has that of a guide of the new data alone."""
    model = _features(name, local)
    guide = AutoConjugate(model)
    CAVI(model, guide).run(_X)
    before = guide.posterior()["w"].loc
    if local:
        alone = CAVI(model, AutoConjugate(model)).run(_NEW).elbo[-1]
        assert guide.elbo(_NEW) == pytest.approx(float(alone))
        return
    torch.testing.assert_close(guide.posterior(_NEW)["w"].loc, before)
    q = guide.posterior()["w"]
    energy = dist.Normal(q.loc, 1.0).log_prob(_NEW).sum() - len(_NEW) * (q.scale**2).sum() / 2
    prior = dist.Normal(0.0, 10.0).log_prob(q.loc).sum() - (q.scale**2).sum() / 200
    assert guide.elbo(_NEW) == pytest.approx(float(energy + prior + q.entropy().sum()))


@pytest.mark.parametrize("name", ["features", "others"])
def test_what_observations_share_in_part_must_be_told(name: str) -> None:
    model = _features(name, None)
    guide = AutoConjugate(model)
    CAVI(model, guide).run(_X)
    with pytest.raises(ModelError, match=r"'w' stays as it is.*Write infer=\{\"local\": False\}"):
        guide.elbo(_NEW)
    other = CAVI(model, AutoConjugate(model)).run(_NEW[:, :2]).elbo[-1]
    assert guide.elbo(_NEW[:, :2]) == pytest.approx(float(other))  # of two features: these are others


def test_each_observations_own_latents_are_local() -> None:
    """A latent of each datum, what that one reads of its own, and the proportions of its discrete site."""

    def model(x: Tensor) -> None:
        top = pyro.sample("top", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
            weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
            inner = pyro.sample("inner", dist.Normal(top, 1.0))
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            offset = torch.tensor([-1.0, 1.0], dtype=torch.float64)[z]
            pyro.sample("x", dist.Normal(inner + offset, scale.rsqrt()), obs=x)

    guide = AutoConjugate(model)
    program = guide.posterior_state.commit(guide.prepare((_X[:, 0],), {}))
    assert {key for key in program.blocks if program.is_local(key)} == {"scale", "weights", "inner"}
    assert not any(program.is_shared(key) for key in program.blocks)


def test_as_many_components_as_data_are_still_global() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("components", len(x)):
            loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(len(x))), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    program = AutoConjugate(model).prepare((_X[:, 0],), {}).program
    assert not program.is_local("loc") and not program.is_shared("loc")


def test_pieces_that_share_a_local_block_are_refused() -> None:
    def model(x: Tensor, rows: Tensor, columns: Tensor) -> None:
        with pyro.plate("rows", 8, subsample=rows, dim=-2):
            row = pyro.sample("row", dist.Normal(0.0, 1.0))
        top = pyro.sample("top", dist.Normal(0.0, 10.0))
        with pyro.plate("rows_", 8, subsample=rows, dim=-2), pyro.plate("columns", 4, subsample=columns, dim=-1):
            pyro.sample("x", dist.Normal(row + top, 1.0), obs=x)

    cavi = CAVI(model, AutoConjugate(model), memoised=True)
    with pytest.raises(ModelError, match="share no latent; got 'row'"):
        cavi.step_piece(0, torch.zeros(4, 2), torch.arange(4), torch.arange(2))
