"""Large models: what is computed by chunks equals what is held, and the limits of memory are the user's."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, LatentValueError, ModelError
from pyro_latent.kmeans import k_means
from pyro_latent.models import gmm
from pyro_latent.objective import discrete, features
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


def chains(x: Tensor) -> None:
    """A chain of three states in each row."""
    move = x.new_tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    with pyro.plate("states", 3):
        loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.0), 3.0))
    with pyro.plate("rows", len(x)):
        z = torch.tensor(0)
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])


def masked(x: Tensor, seen: Any) -> None:
    """A mixture whose data is seen in part, with a scale."""
    with pyro.plate("kinds", 3):
        loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.0), 3.0))
    with pyro.plate("rows", len(x)), poutine.scale(scale=0.5), poutine.mask(mask=seen):
        z = pyro.sample("z", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize(("name", "most"), [("full covariances", 2**18), ("two plates", 2**14)])
def test_features_by_chunks_give_what_held_features_do(
    name: str, most: int, restarts: int, limit: None, monkeypatch: pytest.MonkeyPatch
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
    settings.memory_limit = most
    monkeypatch.setattr(features, "_CHUNK", 2**12)
    torch.testing.assert_close(run(), held, rtol=1e-12, atol=0)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("name", ["full covariances", "two plates", "chains", "masked"])
def test_sites_that_are_eliminated_by_parts_of_a_plate_give_what_all_at_once_does(
    name: str, restarts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(701, 3, dtype=torch.float64) + 3 * (torch.rand(701, 1) < 0.5)
    programs: dict[str, tuple[Callable[..., None], tuple[Any, ...], list[tuple[str, ...]]]] = {
        "full covariances": (gmm.model, (x, 4), [("mean", "precision")]),
        "two plates": (grid, (x,), []),
        "chains": (chains, (x,), []),
        "masked": (masked, (x[:, 0], torch.rand(701) < 0.7), []),
    }
    model, arguments, blocks = programs[name]

    def run() -> tuple[Tensor, Tensor]:
        guide = AutoConjugate(model, blocks=blocks, init=0, restarts=restarts)
        elbo = CAVI(model, guide).run(*arguments, max_steps=4, tol=0).elbo
        return elbo, next(d.probs for d in guide.posterior().values() if hasattr(d, "probs"))

    whole = run()
    monkeypatch.setitem(discrete._TABLE, "cpu", 2**9)
    for found, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 701), (701, 3)])
def test_parts_of_a_plate_hold_no_copy_of_the_features(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)

    def run() -> Tensor:
        return CAVI(grid, AutoConjugate(grid, init=0)).run(x, max_steps=4, tol=0).elbo

    whole = run()
    monkeypatch.setitem(discrete._TABLE, "cpu", 2**9)
    torch.testing.assert_close(run(), whole, rtol=1e-12, atol=0)
    elimination = AutoConjugate(grid).prepare((x,), {}).program.elimination
    parts = elimination._divided(0, 1)
    assert len(parts) > 1
    pairs = [
        (f.features, own.features) for part in parts for f, own in zip(elimination.factors, part.factors, strict=True)
    ]
    found = [(a._whole, b._whole) for a, b in pairs if a is not None and b is not None]
    assert found
    for all_of_it, own in found:
        assert all_of_it is not None and own is not None
        assert own.untyped_storage().data_ptr() == all_of_it.untyped_storage().data_ptr()


def test_tables_that_are_eliminated_by_parts_count_as_a_part(limit: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain, the pairs of states at each row are never held at once; the states of each row are."""
    torch.manual_seed(0)
    x = torch.randn(2000, 3)
    states, pairs = 2000 * 3 * 4, 2000 * 9 * 4

    def run() -> Tensor:
        return CAVI(chains, AutoConjugate(chains, init=0)).run(x, max_steps=3, tol=0).elbo

    whole = run()
    assert pairs > 2 * states
    settings.memory_limit = 2 * states  # what does not fit goes by parts
    torch.testing.assert_close(run(), whole, rtol=1e-5, atol=0)
    monkeypatch.setitem(discrete._TABLE, "cpu", 2**9)  # and so does what leaves the cache
    torch.testing.assert_close(run(), whole, rtol=1e-5, atol=0)
    settings.memory_limit = states - 1
    with pytest.raises(ModelError, match=rf"a table of all values of 'z_0' .* got {states:,} bytes"):
        run()


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


def huge(x: Tensor, which: str) -> None:
    """Models that no machine has the memory for."""
    mark: Any = {"enumerate": "parallel"}
    if which == "w":
        w = pyro.sample("w", dist.Normal(x.new_zeros(10**6), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w[..., 0], 1.0), obs=x[0])
        return
    if which == "grid":
        sites: dict[tuple[int, int], Tensor] = {}
        for i, j in itertools.product(range(9), repeat=2):
            z = sites[i, j] = pyro.sample(f"z_{i}_{j}", dist.Categorical(x.new_ones(90) / 90), infer=mark)
            for near in ((i - 1, j), (i, j - 1)):
                if near in sites:
                    pyro.sample(f"x_{i}_{j}_{near}", dist.Normal(z - sites[near], 1.0), obs=x[0])
        return
    wide = pyro.plate("rows", 10**7)
    with wide:
        if which == "count":
            z = pyro.sample("count", dist.Binomial(10**14, x.new_tensor(0.5)), infer=mark)
        elif which == "one_hot":
            z = pyro.sample("one_hot", dist.OneHotCategorical(x.new_ones(10**6) / 10**6), infer=mark)[..., 0]
        elif which == "tosses":
            z = pyro.sample("tosses", dist.Binomial(10**6, x.new_tensor(0.5)), infer=mark)
        else:
            z = pyro.sample("label", dist.Categorical(x.new_ones(10**6) / 10**6), infer=mark)
    with pyro.plate("kinds", 10**6):
        loc = pyro.sample("loc", dist.Normal(x.new_tensor(0.0), 1.0))
    with wide:
        pyro.sample("x", dist.Normal(loc[z] if which == "label" else z * 1e-3, 1.0), obs=x.expand(10**7))


@pytest.mark.parametrize(
    ("which", "site"),
    [
        ("count", "'count'"),
        ("one_hot", "'one_hot'"),
        ("tosses", "'tosses'"),
        ("label", "'label'"),
        ("w", "'w'"),
        ("grid", "'z_0_0', 'z_0_1'"),
    ],
)
def test_what_takes_more_memory_than_any_machine_has_is_refused_before_it_is_allocated(which: str, site: str) -> None:
    """The errors name the sites, the bytes, the limit, and what to write instead."""
    x = torch.zeros(1, dtype=torch.float64)
    with (
        warnings.catch_warnings(),
        pytest.raises(
            (ModelError, LatentValueError), match=rf"{site}.* [\d,]{{15,}} bytes.*(Give|give|Take)"
        ) as caught,
    ):
        warnings.simplefilter("ignore")
        CAVI(huge, AutoConjugate(huge)).step(x, which)
    assert "pyro_latent.settings.memory_limit" in str(caught.value)


def test_a_limit_that_is_raised_lets_a_model_through(limit: None) -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    settings.memory_limit = 50 * 3 * 8 - 1
    with pytest.raises(ModelError, match=r"a table of all values of 'component' .* 1,199 bytes; got 1,200 bytes"):
        CAVI(gmm.model, AutoConjugate(gmm.model)).step(x, 3)
    settings.memory_limit += 1
    CAVI(gmm.model, AutoConjugate(gmm.model)).step(x, 3)


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


def test_clusters_are_found_in_sorted_data_of_any_number() -> None:
    """The seeds are among some of the points, which must not be the first ones."""
    generator = torch.Generator().manual_seed(0)
    centers = 50.0 * torch.randn(6, 3, generator=generator, dtype=torch.float64)
    for count in (600, 3_600, 6_000):
        own = torch.arange(count) * 6 // count
        noise = torch.randn(count, 3, generator=generator, dtype=torch.float64)
        labels = k_means(centers[own] + noise, 6, generator=generator)
        assert len(set(zip(own.tolist(), labels.tolist(), strict=True))) == 6


@pytest.mark.parametrize("is_on", [True, False])
def test_a_recording_leaves_the_collection_of_garbage_as_it_was(is_on: bool) -> None:
    seen = []

    def model(x: Tensor) -> None:
        seen.append(gc.isenabled())
        if len(x) == 1:
            raise ValueError("no data")
        pyro.sample("x", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0).expand([len(x)]).to_event(1), obs=x)

    before = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        CAVI(model, AutoConjugate(model)).run(torch.zeros(2))
        with pytest.raises(ModelError, match="no data"):
            CAVI(model, AutoConjugate(model)).run(torch.zeros(1))
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if before else gc.disable)()
    assert not any(seen)


def test_a_first_fit_imports_no_computer_algebra() -> None:
    """It would take longer than the fit."""
    script = """
import sys, pyro, torch, pyro.distributions as dist
from pyro_latent import CAVI, AutoConjugate
def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
CAVI(model, AutoConjugate(model)).run(torch.zeros(3))
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
