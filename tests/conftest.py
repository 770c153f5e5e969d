"""What every test starts from: an empty parameter store, a fixed seed, and Pyro's validation switched on."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pyro
import pytest
import torch
from shared_models import registries_kept
from torch import Tensor

import pyro_latent.models.lda  # noqa: F401 (it registers a rule, which is there from the start for all)
from pyro_latent.models import datasets


@pytest.fixture(autouse=True)
def own_registries() -> Iterator[None]:
    """No test sees the rules and families that another registers."""
    with registries_kept():
        yield


@pytest.fixture(autouse=True)
def fresh_pyro() -> None:
    """No test sees another's parameters or random state."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)


@pytest.fixture
def float64() -> Iterator[None]:
    """Numbers in models are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def old_faithful() -> Tensor:
    """Duration and waiting time of 272 eruptions, in minutes: float64, [272, 2]."""
    return datasets.old_faithful()


@pytest.fixture
def x() -> Tensor:
    """Thirty points, float64."""
    return 3.0 + 2.0 * torch.randn(30, dtype=torch.float64)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Take what is imported out of garbage collections, which then look at what tests make alone: a tenth of their
    time.
    """
    gc.collect()
    gc.freeze()
