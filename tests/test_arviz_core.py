"""The conversion to ArviZ, and what ArviZ does with it, in 0.x and in 1.x, without torch.

Run it under ArviZ 1.x (Python 3.12 or newer, no torch needed) with ``pytest --noconftest tests/test_arviz_core.py``.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
az: Any = pytest.importorskip("arviz")
ROOT = Path(__file__).parent.parent / "pyro_latent"
TREE = int(az.__version__.split(".")[0]) >= 1


def module(name: str) -> ModuleType:
    """A module of the library, in a package whose ``__init__``, which imports torch, is left out."""
    package = sys.modules.setdefault("_pyro_latent", ModuleType("_pyro_latent"))
    package.__path__ = [str(ROOT)]
    return importlib.import_module(f"_pyro_latent.{name}")


core = module("arviz_core")

NUM, DRAWS = 12, 2000
GROUPS = {
    "posterior",
    "posterior_predictive",
    "prior",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
}


class Normal:
    """One unknown mean with a Normal prior (sd 2) and unit noise: exact draws, or from a guide off by ``shift`` sds."""

    def __init__(self, shift: float = 0.0, width: float = 1.0, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.x = 1.0 + np.random.default_rng(1).standard_normal(NUM)
        precision = 0.25 + NUM
        self.loc, self.scale = self.x.sum() / precision, precision**-0.5
        loc, scale = self.loc + shift * self.scale, width * self.scale
        self.mean = loc + scale * random.standard_normal((1, DRAWS))
        self.log_likelihood = log_normal(self.x, self.mean[..., None], 1.0)
        self.lp = self.log_likelihood.sum(-1) + log_normal(self.mean, 0.0, 2.0)
        self.log_q = log_normal(self.mean, loc, scale)
        self.predicted = self.mean[..., None] + random.standard_normal((1, DRAWS, NUM))

    def exact_elpd(self) -> float:
        """The sum of the exact leave-one-out log predictive densities."""
        total = 0.0
        for i in range(NUM):
            rest = np.delete(self.x, i)
            variance = 1 / (0.25 + len(rest))
            total += log_normal(self.x[i], rest.sum() * variance, (1 + variance) ** 0.5)
        return float(total)

    def data(self, **options: Any) -> Any:
        groups = {
            "posterior": {"mean": self.mean},
            "posterior_predictive": {"obs": self.predicted},
            "prior": {"mean": 2 * np.random.default_rng(2).standard_normal((1, 100))},
            "log_likelihood": {"obs": self.log_likelihood},
            "sample_stats": {"lp": self.lp, "log_q": self.log_q},
            "observed_data": {"obs": self.x},
            "constant_data": {"time": np.arange(NUM)},
        }
        dims = {"obs": ["points"], "time": ["points"]}
        coords = {"points": [f"p{i}" for i in range(NUM)]}
        return core.container(groups | options, dims, coords, {"method": "by hand", "elbo": -3.5})


def log_normal(value: Any, loc: Any, scale: Any) -> Any:
    return -0.5 * ((value - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def dataset(data: Any, group: str) -> Any:
    """A group as a Dataset, in either ArviZ."""
    return data[group].to_dataset() if TREE else data[group]


def test_groups_values_dimensions_labels_and_attributes() -> None:
    model = Normal()
    data = model.data()
    assert type(data).__name__ == ("DataTree" if TREE else "InferenceData")
    assert (set(data.children) if TREE else set(data.groups())) == GROUPS
    posterior = dataset(data, "posterior")
    assert posterior["mean"].dims == ("chain", "draw")
    np.testing.assert_array_equal(posterior["mean"].values, model.mean)
    assert posterior.attrs["method"] == data.attrs["method"] == "by hand" and posterior.attrs["elbo"] == -3.5
    assert "method" not in dataset(data, "prior").attrs
    assert dataset(data, "log_likelihood")["obs"].dims == ("chain", "draw", "points")
    observed = dataset(data, "observed_data")["obs"]
    assert observed.dims == ("points",) and float(observed.sel(points="p3")) == model.x[3]
    assert dataset(data, "constant_data")["time"].dims == ("points",)


def test_dimensions_without_names_get_arvizs_own() -> None:
    data = core.container({"posterior": {"w": np.zeros((2, 5, 3, 4))}}, {"w": ["row"]}, {}, {})
    w = dataset(data, "posterior")["w"]
    assert w.dims == ("chain", "draw", "row", "w_dim_1") and w["row"].values.tolist() == [0, 1, 2]


def test_labels_that_are_too_few_are_an_error() -> None:
    with pytest.raises(ValueError, match="Expected 3 labels along 'row'; got 2"):
        core.container({"posterior": {"w": np.zeros((1, 5, 3))}}, {"w": ["row"]}, {"row": ["a", "b"]}, {})


def test_empty_groups_are_left_out() -> None:
    data = core.container({"posterior": {"w": np.zeros((1, 5))}, "constant_data": {}}, {}, {}, {})
    assert (set(data.children) if TREE else set(data.groups())) == {"posterior"}


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    data = Normal().data()
    data.to_netcdf(str(tmp_path / "fit.nc"))
    loaded = az.from_netcdf(str(tmp_path / "fit.nc"))
    for group in GROUPS:
        assert dataset(loaded, group).equals(dataset(data, group)), group
    assert loaded["posterior"].attrs["elbo"] == -3.5


def test_a_summary_has_the_moments_of_the_draws() -> None:
    model = Normal()
    summary = az.summary(model.data(), kind="stats")
    assert float(summary.loc["mean", "mean"]) == pytest.approx(model.mean.mean(), abs=0.006)
    assert float(summary.loc["mean", "sd"]) == pytest.approx(model.mean.std(), abs=0.006)


def test_loo_of_exact_draws_is_exact_and_needs_no_correction() -> None:
    model = Normal()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = core.loo(model.data())
    assert elpd(found) == pytest.approx(model.exact_elpd(), abs=0.05)


def test_loo_of_an_approximation_is_corrected_where_arviz_can_and_noted_where_it_cannot() -> None:
    model = Normal(shift=0.7, width=1.3)
    if TREE:
        corrected, plain = elpd(core.loo(model.data())), elpd(az.loo(model.data()))
        assert corrected == pytest.approx(model.exact_elpd(), abs=0.1)
        assert abs(plain - model.exact_elpd()) > abs(corrected - model.exact_elpd())
        return
    with pytest.warns(UserWarning, match=r"ArviZ 0\..* cannot correct leave-one-out.*1\.x, for Python 3\.12"):
        found = core.loo(model.data())
    assert elpd(found) == pytest.approx(elpd(az.loo(model.data())), abs=1e-12)


def test_loo_of_mcmc_draws_is_arvizs() -> None:
    model = Normal()
    data = model.data(sample_stats={"lp": model.lp})
    assert elpd(core.loo(data)) == elpd(az.loo(data))


def elpd(found: Any) -> float:
    return float(found.elpd if TREE else found.elpd_loo)


def test_compare_ranks_by_the_leave_one_out_density() -> None:
    good, bad = Normal(), Normal(shift=6.0)
    table = az.compare({"bad": bad.data(), "good": good.data()})
    assert list(table.index) == ["good", "bad"]


@pytest.mark.filterwarnings("ignore")
def test_arviz_draws_forests_checks_and_comparisons_of_it(tmp_path: Path) -> None:
    one, other = Normal().data(), Normal(shift=1.0, seed=3).data()
    named = {"one": one, "other": other}
    if TREE:
        forest = az.plot_forest(named, var_names=["mean"], backend="matplotlib")
        checks = az.plot_ppc_dist(one, backend="matplotlib")
        models = az.plot_compare(az.compare(named), backend="matplotlib")
    else:
        forest = az.plot_forest([one, other], model_names=list(named), var_names=["mean"], combined=True)
        checks = az.plot_ppc(one)
        models = az.plot_compare(az.compare(named))
    for drawn in (forest, checks, models):
        figure = _figure(drawn)
        figure.savefig(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000
    if not TREE:
        ax = np.ravel(forest)[0]
        assert {t.get_text() for t in ax.get_legend().get_texts()} == {"one", "other"}
        middles = sorted(round(float(line.get_xdata()[0]), 6) for line in ax.lines if len(line.get_xdata()) == 1)
        expected = sorted(round(float(np.median(m.mean)), 6) for m in (Normal(), Normal(shift=1.0, seed=3)))
        np.testing.assert_allclose(middles, expected, atol=1e-5)


def _figure(drawn: Any) -> Any:
    if TREE:
        chart = drawn.viz["chart"] if "chart" in drawn.viz else drawn.viz["figure"]
        return chart.item() if hasattr(chart, "item") else chart
    return np.ravel(drawn)[0].figure


def test_the_core_imports_no_torch() -> None:
    code = (
        "import sys, types, importlib\n"
        "bare = sys.modules['bare'] = types.ModuleType('bare')\n"
        "bare.__path__ = sys.argv[1:2]\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module('bare.' + name)\n"
        "print('torch' in sys.modules, 'arviz' in sys.modules, 'matplotlib' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(ROOT), "arviz_core"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
