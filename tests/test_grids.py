"""Grids of equal steps, against panels; densities that are no matter for them."""

import math
from collections.abc import Callable

import pytest
import scipy.integrate
import scipy.stats
import torch

from pyro_latent.distributions.panels import TableSearch, tabulate
from pyro_latent.distributions.tabulated import Tabulated

LIKE = torch.empty(0, dtype=torch.float64)


def of_counts(places: torch.Tensor) -> torch.Tensor:
    """The log density of the log of a rate, LogNormal(0, 1), given a count: that of each element of a batch."""
    counts = torch.tensor([[0.0, 3.0, 30.0]]).to(LIKE)
    return -0.5 * places.square() + counts * places - places.exp()


def test_integrals_on_a_grid_are_those_on_panels() -> None:
    table, integrals = TableSearch(lambda u: (of_counts(u), u, [(u.exp(), None)]), (1, 3), 1e30, LIKE).anew()
    by_panels = Tabulated(*tabulate(of_counts, (1, 3), 1e30, LIKE))
    assert integrals is not None and table[0].shape[-1] == 1 < by_panels.left.shape[-1]
    places = by_panels.places.movedim(-1, 0)
    log_normalizer = (of_counts(places) - by_panels.log_density.movedim(-1, 0))[len(places) // 2]
    torch.testing.assert_close(integrals.log_normalizer, log_normalizer, rtol=0, atol=1e-10)
    expected = by_panels.expectation(by_panels.places.exp())
    torch.testing.assert_close(integrals.expectations[0], expected, rtol=1e-9, atol=0)


def test_a_grid_is_read_as_the_same_distribution() -> None:
    grid = Tabulated(*TableSearch(lambda u: (of_counts(u), u, []), (1, 3), 1e30, LIKE).anew()[0])
    by_panels = Tabulated(*tabulate(of_counts, (1, 3), 1e30, LIKE))
    levels = torch.tensor([1e-4, 0.1, 0.5, 0.9, 0.9999]).to(LIKE)[:, None, None]
    quantiles = by_panels.icdf(levels)
    torch.testing.assert_close(grid.icdf(levels), quantiles, rtol=0, atol=1e-7)
    torch.testing.assert_close(grid.cdf(quantiles), levels.expand(5, 1, 3), rtol=0, atol=1e-9)
    torch.testing.assert_close(grid.log_prob(quantiles), by_panels.log_prob(quantiles), rtol=0, atol=1e-7)
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(grid, name), getattr(by_panels, name), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grid.entropy(), by_panels.entropy(), rtol=0, atol=1e-9)


def log_normalizer_of(log_density: Callable[[torch.Tensor], torch.Tensor], limit: float = 1e30) -> float:
    """Of the table that is found, on a grid or not."""
    table, integrals = TableSearch(lambda u: (log_density(u), u, []), (), limit, LIKE).anew()
    if integrals is not None:
        return float(integrals.log_normalizer)
    found = Tabulated(*table)
    mode = found.log_density.argmax()
    return float(log_density(found.places[mode]) - found.log_density[mode])


@pytest.mark.parametrize("slope", [2.0, 2e-2, 2e-3, 2e-4, 2e-5, 1e-6])
@pytest.mark.parametrize("place", [-0.4, 0.3, 1.7, 3.3, 4.3, 6.3])
def test_a_kink_is_no_error_however_weak(place: float, slope: float) -> None:
    """A weak one, which a grid for smooth densities takes, would leave an error of 1e-6."""

    def log_density(places: torch.Tensor) -> torch.Tensor:
        return -0.5 * places.square() - slope * (places - place).clamp(min=0)

    cdf = scipy.stats.norm.cdf
    beyond = math.exp(slope * place + slope**2 / 2) * cdf(-place - slope)
    assert abs(log_normalizer_of(log_density) - math.log(math.sqrt(2 * math.pi) * (cdf(place) + beyond))) < 1.5e-9


def test_a_kink_between_the_last_node_and_the_end_of_a_panel_is_seen() -> None:
    """Where halves of a panel have no node beyond it, they agree with the whole. Found among random densities."""
    place, slope, scale, shift = 2.1033972401587837, 4.705666467145126, 2.2369558483121406, -2.3653039062769743

    def log_density(places: torch.Tensor) -> torch.Tensor:
        z = (places - shift) / scale
        return z.square() - z**4 / 4 - slope * (places - place).clamp(min=0) / scale

    def density(z: float) -> float:
        return math.exp(float(log_density(torch.tensor(z, dtype=torch.float64))))

    ends = ((-15.0, place), (place, 12.0))
    exact = sum(scipy.integrate.quad(density, *both, epsabs=0, epsrel=1e-12)[0] for both in ends)
    assert abs(log_normalizer_of(log_density) - math.log(exact)) < 1e-10


def test_a_function_with_a_kink_is_not_for_grids() -> None:
    """Though its slope is zero, so that the density has none."""
    _, integrals = TableSearch(lambda u: (-0.5 * u.square(), u, [((u - 0.3).abs(), None)]), (1,), 1e30, LIKE).anew()
    assert integrals is None


@pytest.mark.parametrize("frequency", [25.0, 32.5, 50.5, 62.5])
@pytest.mark.parametrize("size", [1e-3, 0.5, 2.0])
def test_a_wave_of_the_period_of_the_nodes_is_no_error(frequency: float, size: float) -> None:
    """At nodes of equal steps it is a slow one, or none: it shows between them. Against a sum of 400,000 places."""

    def wave(places: torch.Tensor) -> torch.Tensor:
        return -0.5 * places.square() + size * (frequency * places).sin()

    places = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    expected = float(wave(places).logsumexp(0)) + math.log(24 / 400_000)
    assert log_normalizer_of(wave) == pytest.approx(expected, abs=1e-9)
