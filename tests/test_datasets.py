"""The data sets of the package are those that others print and ship."""

from __future__ import annotations

import pytest
import torch

from pyro_latent.models import datasets


def test_old_faithful_has_the_moments_that_r_prints() -> None:
    """``summary(faithful)``, ``sd`` and ``cor`` of R."""
    data = datasets.old_faithful()
    assert data.shape == (272, 2) and data.dtype == torch.float64
    assert data.mean(0).tolist() == pytest.approx([3.487783, 70.89706], abs=1e-5)
    assert data.std(0).tolist() == pytest.approx([1.141371, 13.59497], abs=1e-5)
    assert float(torch.corrcoef(data.mT)[0, 1]) == pytest.approx(0.9008112, abs=1e-7)


def test_the_schools_pool_to_the_mean_of_the_literature() -> None:
    """Gelman et al., Bayesian Data Analysis, §5.5: weighted by precision, 7.7 with a standard error of 4.1."""
    effects, standard_errors = datasets.eight_schools()
    weights = standard_errors**-2
    assert effects.shape == standard_errors.shape == (8,)
    assert float(weights @ effects / weights.sum()) == pytest.approx(7.7, abs=0.05)
    assert float(weights.sum().rsqrt()) == pytest.approx(4.1, abs=0.05)


def test_the_nile_is_that_of_statsmodels() -> None:
    nile = pytest.importorskip("statsmodels.datasets").nile
    assert datasets.nile().tolist() == nile.load_pandas().data["volume"].tolist()


def test_what_a_caller_writes_into_a_data_set_stays_with_the_caller() -> None:
    datasets.nile().zero_()
    assert float(datasets.nile().sum()) > 0
