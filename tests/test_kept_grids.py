"""Densities on grids that stay, by functions kept at their nodes, against the grids that evaluate them."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from benchmarks.scalars import intercepts
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.distributions import kept_grids
from pyro_latent.distributions.grids import ANY, SMOOTH, Demands, Integrals, PanelTable, cut_within, on_grid
from pyro_latent.distributions.kept_grids import KeptGrid, keeping_pays, kept_grid, on_kept_grid
from pyro_latent.families import settled_grid

LIKE = torch.empty(0, dtype=torch.float64)
SHAPE = (2, 40)


def functions_at(places: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The value e^u, and functions of it: itself, u, u² and a kink, which is the last."""
    return places.exp(), [places.exp(), places.expand(len(places), *SHAPE), places.square(), (places - 0.3).abs()]


def slopes_of(kink: float, bad: float | None = None) -> Tensor:
    """What the functions are multiplied by, for some counts and rates; one of them may be no number."""
    generator = torch.Generator().manual_seed(0)
    counts, rates = torch.rand(2, math.prod(SHAPE), generator=generator, dtype=torch.float64)
    found = torch.stack([-1 - 0.2 * rates, 1 + counts, torch.full_like(counts, -0.5), torch.full_like(counts, -kink)])
    if bad is not None:
        found[1, 7] = bad
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kink", [0.0, 1e-5])
@pytest.mark.parametrize("demands", [SMOOTH, ANY], ids=["smooth", "any"])
@pytest.mark.parametrize("ends", [(-8.5, 3.8), (-12.0, 5.0), (-4.0, 4.0), (-40.0, 40.0)])
@pytest.mark.parametrize("bad", [None, torch.nan, -500.0])
def test_kept_functions_give_the_same_or_nothing(
    ends: tuple[float, float], demands: Demands, kink: float, dtype: torch.dtype, bad: float | None
) -> None:
    """Too narrow a grid, too coarse a one, a kink, a number that is none and a mode elsewhere are seen alike."""
    count, slopes = demands.counts[-1], slopes_of(kink, bad)
    left, right = (torch.full(SHAPE, end, dtype=dtype) for end in ends)
    of_each = slopes.reshape(-1, *SHAPE)

    def integrand(places: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor | None]]]:
        values, functions = functions_at(places)
        total = sum((s * f for s, f in zip(of_each, functions, strict=True)), torch.zeros(1, *SHAPE))
        return total, values, [(f, None) for f in functions[:3]]

    expected = on_grid(integrand, left, right, count, 7, left.new_empty(0), demands)
    kept = kept_grid(functions_at, left, right, count, demands, 7, 4)
    found = on_kept_grid(kept, slopes, 3)
    assert (found is None) == (expected is None)
    if bad is None and kink == 0 and ends == (-8.5, 3.8):
        assert found is not None
    if found is not None and expected is not None:
        rounding = 1e-12 if dtype == torch.float64 else 1e-4
        for ours, its in zip(found[0], expected[0], strict=True):
            torch.testing.assert_close(ours, its, rtol=rounding, atol=rounding)
        for ours, its in zip(found[1].expectations, expected[1].expectations, strict=True):
            torch.testing.assert_close(ours, its, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[1].log_normalizer, expected[1].log_normalizer, rtol=0, atol=1e-12)


def test_a_grid_is_cut_where_densities_have_fallen() -> None:
    """A normal has fallen by 38 at √76; what has not by the end of its grid keeps that end."""
    count = 480
    left, right = LIKE.new_tensor([-12.0, -6.0]), LIKE.new_tensor([12.0, 10.0])
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    places = left[:, None] + (right - left)[:, None] * shares
    low, high = cut_within(left, right, -0.5 * places.square(), 38.0)
    torch.testing.assert_close(low, LIKE.new_tensor([-math.sqrt(76), -6.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(high, LIKE.new_tensor([math.sqrt(76)] * 2), rtol=0, atol=1e-3)


def soft(counts: Tensor) -> None:
    """A function that is not known to have no kink."""
    level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("units", len(counts)):
        own = pyro.sample("own", dist.Normal(level, 1.0))
        pyro.sample("counts", dist.Poisson(torch.nn.functional.softplus(own)), obs=counts)


@pytest.mark.parametrize("model", [intercepts, soft])
@pytest.mark.parametrize("options", [{}, {"restarts": 2}], ids=["once", "restarts"])
def test_a_fit_is_the_same_where_functions_are_kept(
    model: Callable[[Tensor], None], options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = torch.poisson(torch.linspace(-1, 2, 100).exp(), generator=torch.Generator().manual_seed(0)).double()

    def fitted() -> tuple[list[float], dict[str, Tensor]]:
        guide = AutoConjugate(model, restarts=options.get("restarts", 1))
        cavi = CAVI(model, guide)
        elbos = [cavi.step(counts) for _ in range(12)]
        found = guide.posterior(counts)
        return elbos, {f"{n} {m}": getattr(d, m) for n, d in found.items() for m in ("mean", "variance")}

    used = []

    def counted(kept: KeptGrid, slopes: Tensor, num_sums: int) -> tuple[PanelTable, Integrals] | None:
        used.append(on_kept_grid(kept, slopes, num_sums))
        return used[-1]

    monkeypatch.setattr(kept_grids, "_LEAST", 1)
    monkeypatch.setattr(settled_grid, "on_kept_grid", counted)
    elbos, found = fitted()
    assert sum(table is not None for table in used) >= (1 if options else 5)
    monkeypatch.setattr(settled_grid, "keeping_pays", lambda *args: False)
    plain, expected = fitted()
    assert elbos == pytest.approx(plain, rel=1e-11)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_functions_are_kept_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a few elements, nor over the limit of memory, nor without Numba."""
    cpu = torch.device("cpu")
    assert keeping_pays(4, 36, 100_000, cpu)
    assert not keeping_pays(4, 36, 1_000, cpu) and not keeping_pays(4, 36, 10_000_000, cpu)
    monkeypatch.setattr(kept_grids, "_kernel", lambda: None)
    assert not keeping_pays(4, 36, 100_000, cpu)
