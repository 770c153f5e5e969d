"""Large models: what is computed by chunks equals what is held, and the limits of memory are the user's."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, LatentValueError
from pyro_latent.kmeans import k_means
from pyro_latent.models import gmm
from pyro_latent.objective import features
from pyro_latent.settings import settings


@pytest.fixture
def limit() -> Iterator[None]:
    """The limit of memory is put back."""
    before = settings.memory_limit
    yield
    settings.memory_limit = before


def grid(x: Tensor) -> None:
    """Two plates of data for each discrete site, so that places run along more than one dimension."""
    with pyro.plate("kinds", 3):
        loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.0), 3.0))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), 1.0))
    with pyro.plate("rows", x.shape[0], dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
        z = pyro.sample("z", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], precision[z].rsqrt()), obs=x)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("name", ["full covariances", "two plates"])
def test_features_by_chunks_give_what_held_features_do(
    name: str, restarts: int, limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(700, 5, dtype=torch.float64) + 3 * (torch.rand(700, 1) < 0.5)

    def run() -> Tensor:
        if name == "two plates":
            driver = CAVI(grid, AutoConjugate(grid, init=0, restarts=restarts))
            return driver.run(x[:40], max_steps=6, tol=0).elbo
        guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init=0, restarts=restarts)
        return CAVI(gmm.model, guide).run(x, 4, max_steps=6, tol=0).elbo

    held = run()
    settings.memory_limit = 2**10
    monkeypatch.setattr(features, "_CHUNK", 2**9)
    torch.testing.assert_close(run(), held, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1GB"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(value: object, limit: None) -> None:
    before = settings.memory_limit
    with pytest.raises(ValueError, match="Expected a memory_limit in bytes"):
        settings.memory_limit = value  # type: ignore[assignment]
    assert settings.memory_limit == before


def test_a_table_over_the_limit_is_refused_with_its_size(limit: None) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", 6):
            z = pyro.sample("z", dist.Categorical(x.new_ones(4) / 4), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal((z[0] * z[1] * z[2] * z[3] * z[4]).exp(), 1.0), obs=x)

    x = torch.tensor(1.0)
    settings.memory_limit = 2**12
    with pytest.raises(LatentValueError, match=r"of 'z', which have 1024 .* bytes, over pyro_latent.settings.memory"):
        CAVI(model, AutoConjugate(model)).step(x)


def test_the_clusters_of_many_points_are_those_of_a_sample() -> None:
    """Well separated clusters are found whatever the number of points is; every point has the label of its cluster."""
    generator = torch.Generator().manual_seed(1)
    centers = 50.0 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    for count in (600, 60_000):
        own = torch.randint(6, (count,), generator=generator)
        labels = k_means(
            centers[own] + torch.randn(count, 3, generator=generator, dtype=torch.float64), 6, generator=generator
        )
        pairs = {(int(a), int(b)) for a, b in zip(own, labels, strict=True)}
        assert len(pairs) == 6 and len({b for _, b in pairs}) == 6
