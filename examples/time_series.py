"""Time series as loops: a decomposition with a forecast, and regimes of growth.

Carbon dioxide at Mauna Loa, by month (the weekly series comes with statsmodels), is a level that moves by a slope, a
season of twelve months, and noise (Harvey 1989, §2.3; Durbin and Koopman 2012, §3.2):

    level[t]  ~ Normal(level[t - 1] + slope[t - 1], ·),    slope[t] ~ Normal(slope[t - 1], ·),
    season[t] ~ Normal(−season[t - 1] − … − season[t - 11], ·),    co2[t] ~ Normal(level[t] + season[t], ·).

The states are one normal factor of the posterior, missing months have no data, and the two years that follow are a
forecast: they are steps without data too. The last two years of data are kept from the fit, to see how it does.

The growth of GDP of the United States by quarter (statsmodels' macrodata) is a trend that wanders, a normal chain, and
a drop of unknown size in some quarters, a hidden Markov chain (in the manner of Hamilton 1989): two exact factors, each
given the other.

python examples/time_series.py [--out docs]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.criticism.pictures import looks, picture, save

MONTHS, HELD_OUT = 180, 24
LOOK = looks(["CAVI"])["CAVI"]


def carbon_dioxide() -> Tensor:
    """Parts per million by month, the last 15 years of the series, NaN where a month has no data."""
    from statsmodels.datasets import co2

    monthly = co2.load_pandas().data["co2"].resample("MS").mean()
    return torch.tensor(monthly.to_numpy()[-MONTHS:], dtype=torch.float64)


def growth() -> Tensor:
    """Percent of growth by quarter, from the second one of 1959 on."""
    from statsmodels.datasets import macrodata

    gdp = torch.tensor(macrodata.load_pandas().data["realgdp"].to_numpy(), dtype=torch.float64)
    return 100 * gdp.log().diff()


def decomposition(series: Tensor, months: int) -> None:
    """Level, slope and season over so many months, of which the first have data where they are not NaN."""
    precisions = {n: pyro.sample(n, dist.Gamma(series.new_tensor(2.0), r)) for n, r in _RATES.items()}
    scales = {name: precision.rsqrt() for name, precision in precisions.items()}
    level = pyro.sample("level_0", dist.Normal(series.new_tensor(350.0), 50.0))
    slope = pyro.sample("slope_0", dist.Normal(series.new_tensor(0.0), 1.0))
    seasons: list[Tensor] = []
    for t in range(months):
        if t:
            level = pyro.sample(f"level_{t}", dist.Normal(level + slope, scales["moves"]))
            slope = pyro.sample(f"slope_{t}", dist.Normal(slope, scales["bends"]))
        year = -sum(seasons[-11:]) if t >= 11 else series.new_tensor(0.0)
        seasons.append(pyro.sample(f"season_{t}", dist.Normal(year, scales["drifts"] if t >= 11 else 5.0)))
        if t < len(series) and not series[t].isnan():
            pyro.sample(f"co2_{t}", dist.Normal(level + seasons[-1], scales["noise"]), obs=series[t])


#: What precisions are expected to be: their Gamma priors have a concentration of 2 and these rates.
_RATES = {"moves": 0.02, "bends": 1e-4, "drifts": 0.002, "noise": 0.1}


def regimes(series: Tensor) -> None:
    """A trend that wanders, and a drop in quarters that a chain of two states tells."""
    stays = pyro.sample("stays", dist.Beta(series.new_tensor([18.0, 6.0]), 2.0).to_event(1))
    drop = pyro.sample("drop", dist.Normal(series.new_tensor(-1.5), 0.5))
    wander = pyro.sample("wander", dist.Gamma(series.new_tensor(20.0), 0.05))
    noise = pyro.sample("noise", dist.Gamma(series.new_tensor(2.0), 0.5))
    trend = pyro.sample("trend_0", dist.Normal(series.new_tensor(1.0), 0.5))
    state = pyro.sample("state_0", dist.Bernoulli(series.new_tensor(0.1)))
    for t in range(len(series)):
        if t:
            trend = pyro.sample(f"trend_{t}", dist.Normal(trend, wander.rsqrt()))
            state = pyro.sample(f"state_{t}", dist.Bernoulli((1 - state) * (1 - stays[0]) + state * stays[1]))
        pyro.sample(f"growth_{t}", dist.Normal(trend + drop * state, noise.rsqrt()), obs=series[t])


def states_of(posterior: object, name: str, length: int) -> tuple[Tensor, Tensor]:
    """The means and standard deviations of the sites of a loop, ``[T]`` each."""
    sites = [posterior[f"{name}_{t}"] for t in range(length)]  # type: ignore[index]
    return torch.stack([q.mean for q in sites]), torch.stack([q.stddev for q in sites])


def forecast() -> dict[str, tuple[Tensor, Tensor]]:
    """Fit the decomposition without the last two years; print how the forecast does."""
    series = carbon_dioxide()
    shown = series[:-HELD_OUT]
    guide = AutoConjugate(decomposition, blocks=[("level_*", "slope_*", "season_*")])
    result = CAVI(decomposition, guide).run(shown, len(series), max_steps=400, tol=1e-6)
    posterior, joint = guide.posterior(), guide.posterior(joint=True)
    found = {name: states_of(posterior, name, len(series)) for name in ("level", "slope", "season")}
    whole = next(q for q in joint.values() if hasattr(q, "covariance"))
    both = torch.stack([whole.covariance(f"level_{t}", f"season_{t}") for t in range(len(series))]).reshape(-1)
    precision = posterior["noise"]
    noise = precision.rate / (precision.concentration - 1)  # E[1/τ]
    mean = found["level"][0] + found["season"][0]
    stddev = (found["level"][1] ** 2 + found["season"][1] ** 2 + 2 * both + noise).sqrt()
    error = (series - mean)[-HELD_OUT:]
    inside = (error.abs() < 2 * stddev[-HELD_OUT:]).double().mean()
    print(f"{'months':>8}{'sweeps':>8}{'ELBO':>9}{'error of the forecast':>23}{'as last year':>14}{'within 2 sd':>13}")
    naive = (series[-HELD_OUT:] - series[-HELD_OUT - 12 : -HELD_OUT].repeat(2)).square().mean().sqrt()
    root = error.square().mean().sqrt()
    print(f"{len(shown):8}{result.num_steps:8}{result.elbo[-1]:9.2f}{root:23.3f}{naive:14.3f}{inside:13.0%}")
    return found | {"co2": (mean, stddev), "data": (series, series)}


def recessions() -> dict[str, tuple[Tensor, Tensor]]:
    """Fit the regimes; print what was found."""
    series = growth()
    guide = AutoConjugate(regimes, blocks=["trend_*"], init=0)
    result = CAVI(regimes, guide).run(series, max_steps=400, tol=1e-6)
    posterior = guide.posterior()
    probs, _ = states_of(posterior, "state", len(series))
    trend = states_of(posterior, "trend", len(series))
    drop = posterior["drop"]
    print(f"{'quarters':>8}{'sweeps':>8}{'ELBO':>9}{'drop, % a quarter':>19}{'sd':>7}{'quarters in a drop':>20}")
    count = int((probs > 0.5).sum())
    print(f"{len(series):8}{result.num_steps:8}{result.elbo[-1]:9.2f}{drop.mean:19.2f}{drop.stddev:7.2f}{count:20}")
    return {"trend": trend, "state": (probs, probs), "data": (series, series)}


def draw_forecast(found: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """The series with its forecast, the slope, and the season of the last years."""
    series, _ = found["data"]
    years = 2002 - len(series) / 12 + torch.arange(len(series)) / 12
    titles = {"co2": "ppm", "slope": "slope (ppm a month)", "season": "season (ppm)"}
    with picture(7.6, 5.8, 3) as (figure, grid):
        for panel, (name, title) in zip(grid[:, 0], titles.items(), strict=True):
            draw_band(panel, years, *found[name])
            panel.axvline(float(years[-HELD_OUT]), color="0.4", linestyle=":")
            panel.set_ylabel(title)
        grid[0, 0].plot(years, series, ".", color="k", markersize=2)
        grid[0, 0].set_title("Means, and bands of 2 s.d.")
        grid[-1, 0].set_xlabel("year; from the dotted line on, a forecast")
    save(figure, path)


def draw_regimes(found: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Growth and its trend, and the probability of a drop."""
    (series, _), (probs, _) = found["data"], found["state"]
    years = 1959.25 + torch.arange(len(series)) / 4
    with picture(7.6, 4.2, 2) as (figure, ((top,), (bottom,))):
        top.plot(years, series, ".", color="0.5", markersize=4)
        draw_band(top, years, *found["trend"])
        top.set(ylabel="growth (% a quarter)", title="The trend, with a band of 2 s.d.")
        bottom.fill_between(years, 0, probs, step="mid", color=LOOK.color, alpha=0.7, linewidth=0)
        bottom.set(xlabel="year", ylabel="probability of a drop", ylim=(0, 1))
    save(figure, path)


def draw_band(axes: Axes, years: Tensor, mean: Tensor, stddev: Tensor) -> None:
    """A mean over the years, with two standard deviations to each side."""
    axes.fill_between(years, mean - 2 * stddev, mean + 2 * stddev, color=LOOK.color, alpha=0.25, linewidth=0)
    axes.plot(years, mean, linewidth=1, **LOOK._asdict())


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the folder to write the pictures to")
    out = parser.parse_args().out
    decomposed, found = forecast(), recessions()
    if out is not None:
        draw_forecast(decomposed, out / "time-series-co2.svg")
        draw_regimes(found, out / "time-series-regimes.svg")


if __name__ == "__main__":
    main()
