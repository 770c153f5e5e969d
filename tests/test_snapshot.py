"""A guide answers for the data that the model would see now, however it was changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate
from pyro_latent.recording.snapshot import Snapshot, checksum

_SETTING: dict[str, Tensor] = {}


def _score(x: Tensor | None) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 100.0))
    with pyro.plate("n", 5):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def _tensor(x):
    _score(x)


def _array(x):
    _score(torch.as_tensor(x, dtype=torch.float64))


def _mapping(data):
    _score(data["x"])


def _global():
    _score(_SETTING["x"])


class _Holder:
    def __init__(self, x):
        self.x = x

    def model(self):
        _score(self.x)


class _Module(PyroModule):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self):
        _score(self.x)


@dataclass
class _Case:
    """A model, its arguments, and how its data becomes the given one in place."""

    model: Callable[..., Any]
    args: tuple
    change: Callable[[Tensor], Any]


def _case(kind: str) -> _Case:
    x = torch.zeros(5, dtype=torch.float64)
    if kind == "in place":
        return _Case(_tensor, (x,), lambda new: x.copy_(new))
    if kind == "behind the version counter":
        return _Case(_tensor, (x,), lambda new: x.data.copy_(new))
    if kind == "array":
        array = np.zeros(5)
        return _Case(_array, (array,), lambda new: array.__setitem__(slice(None), new.numpy()))
    if kind == "list":
        numbers = [0.0] * 5
        return _Case(_array, (numbers,), lambda new: numbers.__setitem__(slice(None), new.tolist()))
    if kind == "mapping":
        data = {"x": x}
        return _Case(_mapping, (data,), lambda new: data.__setitem__("x", new))
    if kind == "closure":
        cell = [x]

        def closed():
            _score(cell[0])

        return _Case(closed, (), lambda new: cell.__setitem__(0, new))
    if kind == "global":
        _SETTING["x"] = x
        return _Case(_global, (), lambda new: _SETTING.__setitem__("x", new))
    if kind == "attribute":
        holder = _Holder(x)
        return _Case(holder.model, (), lambda new: setattr(holder, "x", new))
    if kind == "module":
        module = _Module(x)
        return _Case(module, (), lambda new: setattr(module, "x", new))
    data = {"x": x}
    conditioned = poutine.condition(lambda: _score(None), data=data)
    return _Case(conditioned, (), lambda new: data.__setitem__("x", new))


_KINDS = [
    "in place",
    "behind the version counter",
    "array",
    "list",
    "mapping",
    "closure",
    "global",
    "attribute",
    "module",
    "handler",
]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("by", ["step", "run", "elbo"])
def test_data_that_changes_in_place_is_seen(kind: str, by: str) -> None:
    """After the change the guide is that of a fit to the new data, by every road."""
    case, new = _case(kind), torch.tensor([99.0, 100.0, 101.0, 102.0, 98.0], dtype=torch.float64)
    guide = AutoConjugate(case.model)
    cavi = CAVI(case.model, guide)
    cavi.run(*case.args)
    case.change(new)
    if by == "elbo":
        loc = guide.posterior()["loc"] if case.args else guide.posterior(*case.args)["loc"]
        near = float(dist.Normal(loc.loc, 1.0).log_prob(new).sum())
        assert guide.elbo(*case.args) < near + 10 < -1000  # of a posterior at zero
        return
    cavi.step(*case.args) if by == "step" else cavi.run(*case.args)
    exact = 500 / (5 + 1e-4)
    assert float(guide.posterior(*case.args)["loc"].loc) == pytest.approx(exact, rel=1e-9)


def test_a_module_that_a_model_imports_and_the_environment_are_seen(monkeypatch) -> None:
    settings = ModuleType("settings_of_this_test")
    monkeypatch.setitem(sys.modules, settings.__name__, settings)

    def model(x):
        from settings_of_this_test import offset  # type: ignore[import-not-found]

        _score(x + offset + float(os.environ["SHIFT_OF_THIS_TEST"]))

    vars(settings)["offset"] = 1.0
    monkeypatch.setenv("SHIFT_OF_THIS_TEST", "0")
    before = Snapshot(model, (), {})
    assert before.is_of_same_model()
    vars(settings)["offset"] = 3.0
    assert not before.is_of_same_model()
    before = Snapshot(model, (), {})
    monkeypatch.setenv("SHIFT_OF_THIS_TEST", "2")
    assert not before.is_of_same_model()


def test_a_run_sees_what_no_snapshot_does(tmp_path) -> None:
    """A model that reads a file is recorded anew at each run."""
    path = tmp_path / "x.npy"

    def model():
        _score(torch.from_numpy(np.load(path)))

    np.save(path, np.zeros(5))
    guide = AutoConjugate(model)
    cavi = CAVI(model, guide)
    cavi.run()
    np.save(path, np.full(5, 100.0))
    cavi.run()
    assert float(guide.posterior()["loc"].loc) == pytest.approx(500 / (5 + 1e-4), rel=1e-9)


@pytest.mark.parametrize("kind", _KINDS)
def test_what_has_not_changed_is_not_recorded_again(kind: str) -> None:
    case = _case(kind)
    guide = AutoConjugate(case.model)
    cavi = CAVI(case.model, guide)
    cavi.run(*case.args)
    program = guide.posterior_state.commit(guide.prepare(case.args, {}))
    cavi.step(*case.args)
    assert guide.posterior_state.commit(guide.prepare(case.args, {})) is program


def test_a_model_that_holds_its_own_guide_is_not_recorded_at_each_step() -> None:
    class Experiment:
        def __init__(self):
            self.guide = AutoConjugate(self.model)
            self.cavi = CAVI(self.guide.model, self.guide)

        def model(self, x):
            _score(x)

    experiment, x = Experiment(), torch.zeros(5)
    experiment.cavi.step(x)
    program = experiment.guide.posterior_state.commit(experiment.guide.prepare((x,), {}))
    experiment.cavi.step(x)
    assert experiment.guide.posterior_state.commit(experiment.guide.prepare((x,), {})) is program


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool, torch.bfloat16])
def test_checksum_changes_with_every_element_and_with_the_order(dtype: torch.dtype) -> None:
    x = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    flipped = x.clone()
    flipped[1, 2] = 1 - flipped[1, 2].int()
    assert len({checksum(x), checksum(flipped), checksum(x.flip(1))}) == 3
    assert checksum(x) == checksum(x.clone())
    assert checksum(x.T) == checksum(x.T.contiguous())
    assert checksum(torch.empty(0, dtype=dtype)) == checksum(torch.empty(0, 3, dtype=dtype))
    assert checksum(x[0, 0].expand(1)) == checksum(x[0, 0]) != checksum(x[0, 1])  # a stride of 0


def test_snapshot_compares_values_and_not_their_containers() -> None:
    x = torch.zeros(3)
    snapshot = Snapshot(_tensor, ([x, 1],), {"k": {"a": (2, "b")}})
    assert snapshot.matches(([x, 1],), {"k": {"a": (2, "b")}})
    assert not snapshot.matches(([x, 1],), {"k": {"a": (2, "c")}})
    assert not snapshot.matches(([x, True],), {"k": {"a": (2, "b")}})
    assert not snapshot.matches(([x],), {"k": {"a": (2, "b")}})
    assert not snapshot.matches((), {})


def test_a_call_that_nobody_has_changed_is_the_same_each_time() -> None:
    """What is walked over is made on the way, and gone again: its number may be that of the next object."""
    x = torch.randn(5, 2)
    networks = [torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)) for _ in range(5)]

    def model(x: Tensor) -> Tensor:
        return sum((net(x) for net in networks), torch.zeros(()))

    before = Snapshot(model, (x,), {})
    assert all(before.matches((x,), {}) for _ in range(20))


class Agreeable:
    """An object that says it has every attribute, as mocks and loggers do."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__array__":
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any) -> Any:
        return self


def test_objects_that_say_they_have_every_attribute_are_walked() -> None:
    anything = Agreeable()

    def model(x: Tensor) -> None:
        assert anything.log(x) is anything
        pyro.sample("x", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run(torch.tensor(1.0))
    assert float(guide.posterior()["loc"].mean) == pytest.approx(0.5)
