"""Programs that are made of a tape are those that a new recording gives, to the last bit, or the model is recorded."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from random_models import RandomProgram, chunks, default_dtype, program
from shared_models import batch_mixture
from test_stochastic import CASES, likelihood, pieces_of
from torch import Tensor
from wide_models import wide_program

from pyro_latent import CAVI, AutoConjugate, PyroLatentError, RecordingError, RobbinsMonro, handlers
from pyro_latent.guide import calls, rebinding
from pyro_latent.guide.rebinding import Rebinding
from pyro_latent.recording import Template, first_difference, record

Model = Callable[..., Any]
T = TypeVar("T")
SEEDS, SLOW = 5, 1_000


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tape is made at the first call of a kind."""
    monkeypatch.setattr(rebinding, "_WAIT", 0)


def anew(self: Rebinding, args: Any, kwargs: Any, settings: Any, compiled: Callable[[], Any], is_same: Any) -> Any:
    """In the place of ``Rebinding.program``: every call is recorded."""
    return compiled(), None


def by_both(monkeypatch: pytest.MonkeyPatch, work: Callable[[], T]) -> tuple[T, T]:
    """What a piece of work gives with tapes, and where every call is recorded."""
    found = work()
    with monkeypatch.context() as patch:
        patch.setattr(Rebinding, "program", anew)
        return found, work()


def fitted(model: Model, batches: list[Any], epochs: int = 2, **options: Any) -> tuple[list[float], AutoConjugate]:
    """The estimates of the ELBO along a run over batches, and the guide."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = AutoConjugate(model, blocks=options.pop("blocks", ()), check=options.pop("check", True))
    result = CAVI(model, guide, **options).run_batches(batches, epochs=epochs, tol=0.0)
    return result.elbo.flatten().tolist(), guide


def assert_same_run(monkeypatch: pytest.MonkeyPatch, model: Model, batches: list[Any], **options: Any) -> AutoConjugate:
    """A run is that in which every batch is recorded, to the last bit."""
    (found, guide), (expected, other) = by_both(monkeypatch, lambda: fitted(model, batches, **options))
    assert found == expected
    for key, natural in other.state.items():
        assert all(torch.equal(natural[name], guide.state[key][name]) for name in natural)
    return guide


def obstacles(guide: AutoConjugate) -> list[str | None]:
    """Of each kind of call, why it is recorded each time; None where it is not."""
    return [known.obstacle for _, known in guide.calls._rebinding._known]


@pytest.mark.parametrize("options", [{"step_size": RobbinsMonro()}, {"memoised": True}], ids=["stochastic", "memoised"])
@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_recordings(monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]) -> None:
    model, data = CASES[name]
    batches = [(*piece, len(data[0])) for piece in pieces_of(data, 4)]
    guide = assert_same_run(monkeypatch, model, batches, **options)
    assert obstacles(guide) == [None]


def walk(x: Tensor, lags: Tensor) -> None:
    """A joint normal block of global weights, a scale by quadrature, and an offset for each row."""
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(lags.shape[1]), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(x.new_tensor(0.0), 3.0))
    scale = pyro.sample("scale", dist.HalfCauchy(x.new_tensor(1.0)))
    with pyro.plate("rows", 100, subsample_size=len(x)):
        offset = pyro.sample("offset", dist.Normal(x.new_tensor(0.0), 0.5))
        pyro.sample("x", dist.Normal(lags @ weights + level + offset, scale), obs=x)


def ragged(x: Tensor, lengths: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), 2.0))
    with pyro.plate("series", 30, subsample_size=len(x)):
        z = pyro.sample("z_0", dist.Normal(mean, 1.0))
        for t in range(3):
            mask: Any = t < lengths
            with poutine.mask(mask=mask):
                z = pyro.sample(f"z_{t}", dist.Normal(0.8 * z, 0.5)) if t else z
                pyro.sample(f"x_{t}", dist.Normal(z, precision.rsqrt()), obs=x[:, t])


def test_masked_series_in_a_joint_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which elements count is another thing in every batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    lengths = torch.arange(30) ** 2 % 7 % 3 + 1
    batches = list(zip(x.split(10), lengths.split(10), strict=True))
    assert_same_run(monkeypatch, ragged, batches, step_size=RobbinsMonro(), blocks=["z_*"], epochs=2)


def test_joint_blocks_and_quadrature(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    lags = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    x = lags @ torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    x = x + 0.3 * torch.randn(100, generator=generator, dtype=torch.float64)
    batches = list(zip(x.split(20), lags.split(20), strict=True))
    guide = assert_same_run(
        monkeypatch, walk, batches, step_size=RobbinsMonro(), blocks=[("weights", "level")], epochs=2
    )
    assert obstacles(guide) == [None]


def test_the_model_runs_at_the_first_calls_and_then_at_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches of two sizes: two calls, the tape, and the comparisons 1, 4, 16, … calls later."""
    monkeypatch.setattr(rebinding, "_WAIT", 2)
    x = torch.randn(210, generator=torch.Generator().manual_seed(0)) * 4
    runs: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(args)
        return record(*args, **kwargs)

    monkeypatch.setattr(calls, "record", counted)
    model = functools.partial(batch_mixture, size=210)
    _, guide = fitted(model, list(x.split(20)), epochs=4, step_size=RobbinsMonro())  # 40 of 20 points, 4 of 10
    assert obstacles(guide) == [None, None]
    assert len(runs) == 1 + (2 + 1 + 3) + (2 + 1 + 1)  # that starts the run; by size


def test_a_subsample_that_the_plate_draws_is_another_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(300, generator=torch.Generator().manual_seed(0)) * 4

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x), subsample_size=30) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])

    def steps() -> tuple[list[float], AutoConjugate]:
        pyro.set_rng_seed(3)
        cavi = CAVI(model, AutoConjugate(model), step_size=RobbinsMonro())
        return [cavi.step(x) for _ in range(12)], cavi.guide

    (losses, guide), (expected, _) = by_both(monkeypatch, steps)
    assert losses == expected
    assert len(set(losses)) == 12
    assert obstacles(guide) == [None]


# What no tape sees is recorded.


def _by_item(x: Tensor) -> Tensor:
    return x + 1.0 if x.mean().item() > 0 else x - 1.0


def _by_truth(x: Tensor) -> Tensor:
    return x + 1.0 if (x > 2.5).any() else x


def _by_list(x: Tensor) -> Tensor:
    return x + sum(v > 1 for v in x.tolist())


def _by_array(x: Tensor) -> Tensor:
    return x + float(x.numpy().mean() > 0)


def _by_copy(x: Tensor) -> Tensor:
    return x + torch.from_numpy(x.numpy() * 2)


def _by_alias(x: Tensor) -> Tensor:
    return x + x.data * 0.5


def _by_selection(x: Tensor) -> Tensor:
    return x + x[x > 0].sum()


def _by_place(x: Tensor) -> Tensor:
    return x + torch.nonzero(x > 0).double().mean()


def _by_write(x: Tensor) -> Tensor:
    return x.clone().index_fill_(0, torch.tensor([0]), 0.5).add_(x.mean())


def _by_buffer(x: Tensor) -> Tensor:
    table = torch.zeros(len(x), dtype=x.dtype)
    view = table[1:]
    view += x[:-1].abs()
    return x + table


def _by_deepcopy(x: Tensor) -> Tensor:
    import copy

    return x + copy.deepcopy(x)


def _by_constant(x: Tensor) -> Tensor:
    table = torch.zeros((), dtype=x.dtype)
    y = x + table
    table += 5.0
    return y


def _by_vmap(x: Tensor) -> Tensor:
    return torch.func.vmap(lambda v: v * v.abs())(x)


WAYS = [value for name, value in globals().items() if name.startswith("_by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whatever_the_model_does_with_its_data(
    monkeypatch: pytest.MonkeyPatch, way: Callable[[Tensor], Tensor]
) -> None:
    x = torch.randn(120, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x[60:] += 2.0

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        with pyro.plate("data", 120, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=way(x))

    assert_same_run(monkeypatch, model, list(x.split(10)), step_size=RobbinsMonro(), epochs=1)


def test_a_model_that_draws_numbers_elsewhere_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes from an iterator is another number in the first comparison."""
    x = torch.randn(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def fresh() -> Model:
        def numbers() -> Iterator[float]:
            yield from range(1000)

        stream = numbers()

        def model(x: Tensor) -> None:
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
            with pyro.plate("data", 60, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(mean + next(stream), 1.0), obs=x)

        return model

    batches = list(x.split(10))
    (found, guide), (expected, _) = by_both(
        monkeypatch, lambda: fitted(fresh(), batches, step_size=RobbinsMonro(), check=False)
    )
    assert found == expected
    assert obstacles(guide) != [None]


def test_a_model_that_changes_later_is_an_error(tmp_path: Path) -> None:
    """A file that it reads, which nothing else could know of."""
    file, x = tmp_path / "offset", torch.randn(300, dtype=torch.float64)
    file.write_text("0.0")

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        with pyro.plate("data", 300, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean + float(file.read_text()), 1.0), obs=x)

    guide = AutoConjugate(model)
    cavi = CAVI(model, guide, step_size=RobbinsMonro())
    with pytest.raises(RecordingError, match="by its arguments alone"):
        for number, batch in enumerate(x.split(10)):
            if number == 4:
                file.write_text("9.0")
            cavi.step(batch)
    state = {key: natural.map(Tensor.clone) for key, natural in guide.state.items()}
    assert cavi.step(x[:10]) < float("inf")  # it is recorded from there on
    assert any(not torch.equal(state[k][n], guide.state[k][n]) for k in state for n in state[k])


def test_a_global_that_changes_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, settings = torch.randn(120, dtype=torch.float64), {"offset": 0.0}

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        with pyro.plate("data", 120, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean + settings["offset"], 1.0), obs=x)

    def losses() -> Iterator[float]:
        pyro.set_rng_seed(0)
        cavi = CAVI(model, AutoConjugate(model), step_size=RobbinsMonro())
        for number, batch in enumerate(x.split(10)):
            settings["offset"] = float(number // 5)
            yield cavi.step(batch)

    found, expected = by_both(monkeypatch, lambda: list(losses()))
    assert found == expected


def shifted(x: Tensor, shift: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
    with pyro.plate("data", 120, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean + shift, 1.0), obs=x)


Kept = tuple[Model, Callable[[float], Any]]


def _in_a_class() -> Kept:
    class Base:
        shift = 0.0

    class Own(Base):
        def __call__(self, x: Tensor) -> None:
            shifted(x, self.shift)

    return Own(), lambda value: setattr(Base, "shift", value)


def _in_a_slot() -> Kept:
    class Own:
        __slots__ = ("shift",)

    own = Own()
    return lambda x: shifted(x, own.shift), lambda value: setattr(own, "shift", value)  # type: ignore[attr-defined]


def _in_a_queue() -> Kept:
    shifts: deque[float] = deque(maxlen=1)
    return lambda x: shifted(x, shifts[-1]), shifts.append


def _in_a_property() -> Kept:
    values = [0.0]

    class Own:
        @property
        def shift(self) -> float:
            return values[0]

        def model(self, x: Tensor) -> None:
            shifted(x, self.shift)

    return Own().model, lambda value: values.__setitem__(0, value)


def _at_a_function() -> Kept:
    def model(x: Tensor) -> None:
        shifted(x, vars(model)["shift"])

    return model, lambda value: vars(model).update(shift=value)


def _in_a_package() -> Kept:
    _package.__dict__["inner"] = inner = ModuleType("package.inner")
    return lambda x: shifted(x, _package.inner.shift), lambda value: vars(inner).update(shift=value)


def _in_another_guide() -> Kept:
    def first(x: Tensor) -> None:
        shifted(x, 0.0)

    other, data = AutoConjugate(first), torch.ones(120, dtype=torch.float64)
    other(data)
    return lambda x: shifted(x, other.posterior()["mean"].mean), lambda value: CAVI(first, other).run(data + value)


def _by_chance() -> Kept:
    return lambda x: shifted(x, float(random.random() < 0.2)), lambda _: None


def _by_chance_of_its_own() -> Kept:
    chance = torch.Generator().manual_seed(0)
    return lambda x: shifted(x, (torch.rand((), generator=chance) < 0.2).double()), lambda _: None


def _in_an_iterator() -> Kept:
    calls = itertools.count()
    return lambda x: shifted(x, float(next(calls) > 7)), lambda _: None


def _by_default_dtype() -> Kept:
    tens = torch.tensor([10, 20, 30, 40, 50, 60, 70, 80, 90, 100])
    return lambda x: shifted(x + (tens * x.long()) / 30, 0.0), lambda _: None


_package = ModuleType("package")
PLACES = [_in_a_class, _in_a_slot, _in_a_queue, _in_a_property, _at_a_function, _in_a_package, _in_another_guide]
PLACES += [_by_chance, _by_chance_of_its_own, _in_an_iterator, _by_default_dtype]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_what_a_model_reads_elsewhere_is_seen_at_once(
    monkeypatch: pytest.MonkeyPatch, place: Callable[[], Kept]
) -> None:
    x = torch.randn(120, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def losses() -> Iterator[float]:
        pyro.set_rng_seed(0)
        random.seed(0)
        model, change = place()
        change(0.0)
        cavi = CAVI(model, AutoConjugate(model, check=False), step_size=RobbinsMonro())
        for number, batch in enumerate(x.split(10)):
            if number == 8:
                change(1.0)
            yield cavi.step(batch)

    found, expected = by_both(monkeypatch, lambda: list(losses()))
    assert found == expected


def test_what_a_batch_has_beside_its_numbers_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute of a tensor, which one that looks for it by ``id`` may have elsewhere, and the sign of a zero."""
    batches = [b.clone() for b in torch.randn(120, dtype=torch.float64).split(10)]
    kept = {id(batch): float(number > 7) for number, batch in enumerate(batches)}
    for number, batch in enumerate(batches):
        vars(batch)["shift"] = float(number > 7)
    assert_same_run(monkeypatch, lambda x: shifted(x, x.shift), batches, step_size=RobbinsMonro(), epochs=1)
    batches = [vars(batch).clear() or batch for batch in batches]
    assert_same_run(monkeypatch, lambda x: shifted(x, kept[id(x)]), batches, step_size=RobbinsMonro(), epochs=1)
    pairs = [(batch, -0.0 if number > 7 else 0.0) for number, batch in enumerate(batches)]
    signed = lambda x, zero: shifted(x, math.copysign(1.0, zero))  # noqa: E731
    assert_same_run(monkeypatch, signed, pairs, step_size=RobbinsMonro(), epochs=1)


def test_bad_data_in_a_later_batch_is_refused_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(100, dtype=torch.float64)
    x[85] = torch.nan

    def refused() -> tuple[str, Any]:
        pyro.set_rng_seed(0)
        guide = AutoConjugate(batch_mixture)
        cavi = CAVI(batch_mixture, guide, step_size=RobbinsMonro())
        with pytest.raises(PyroLatentError) as error:
            for batch in x.split(10):
                cavi.step(batch, 100)
        return str(error.value), {k: {m: t.tolist() for m, t in n.items()} for k, n in guide.state.items()}

    found, expected = by_both(monkeypatch, refused)
    assert found == expected


def test_hand_written_updates_see_the_batch_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that closes over the data of its call."""

    def model(x: Tensor) -> None:
        def update(q: Any, data: Any) -> Any:
            precision = 0.01 + 60.0
            return dist.Normal(60 / len(x) * x.sum() / precision, x.new_tensor(precision**-0.5))

        def inner() -> None:
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
            with pyro.plate("data", 60, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

        handlers.closed_form(inner, {"mean": update})()

    x = torch.randn(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert_same_run(monkeypatch, model, list(x.split(10)), step_size=RobbinsMonro())


def test_parameters_are_recorded_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their values are those in Pyro's store."""
    x = torch.randn(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    batches = [(b, 60) for b in x.split(10)]
    assert_same_run(monkeypatch, likelihood, batches, step_size=RobbinsMonro(), epochs=2)


# Random programs.


def assert_rebound(written: RandomProgram) -> None:
    """At every step on other data of the same shapes, the program of a tape is the one that a recording gives."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    with default_dtype(written.dtype), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebinding, "_SPACING", 1)  # compared at each call
        model, data = written.load()
        guide = AutoConjugate(model, blocks=written.blocks, reparam=written.reparam)
        cavi = CAVI(model, guide, step_size=0.5)
        for shift in range(5):
            try:
                cavi.step(*(d.roll(shift, 0).contiguous() if d.ndim else d for d in data))
            except RecordingError:
                raise
            except PyroLatentError:
                return
    found = [obstacle for obstacle in obstacles(guide) if obstacle is not None and obstacle.startswith(".")]
    assert not found, f"{found}\n{written}"


@pytest.mark.parametrize("make", [program, wide_program], ids=["random", "wide"])
def test_random_programs(make: Callable[[int], RandomProgram]) -> None:
    for seed in range(SEEDS):
        assert_rebound(make(seed))


@pytest.mark.slow
@pytest.mark.parametrize("make", [program, wide_program], ids=["random", "wide"])
@pytest.mark.parametrize("seeds", chunks(SEEDS, SLOW), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_many_random_programs(make: Callable[[int], RandomProgram], seeds: range) -> None:
    for seed in seeds:
        assert_rebound(make(seed))


# Templates.


class Pair(NamedTuple):
    left: Any
    right: Any


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def doubled(self) -> Any:
        return 2 * self.value


class Own(dict[str, Any]):
    """A dict with attributes, which keeps what it has computed."""

    @functools.cached_property
    def total(self) -> Tensor:
        value: Tensor = self["x"].sum()
        return value


def held(x: Tensor) -> dict[str, Any]:
    """A tensor in every kind of container, and in the variables of functions."""

    def factorial(n: int) -> Tensor:
        return x if n == 0 else n * factorial(n - 1)

    return {
        "pair": Pair(x, [x, 1]),
        "slots": Slotted(x),
        "own": Own(x=x),
        "closure": factorial,
        "default": functools.partial(torch.add, x),
        "proxy": MappingProxyType({"x": (x, frozenset({1, 2}))}),
        "bound": Slotted(x).doubled,
        "shared": [1, 2],
    }


def test_a_copy_holds_the_new_tensor_everywhere() -> None:
    old, new = torch.ones(3), torch.full((3,), 2.0)
    source = held(old)
    assert source["own"].total == 3
    template = Template(source, lambda t: 0 if t is old else None, lambda t: t is old)
    assert template.obstacle is None
    copy = template.filled({0: new})
    assert first_difference(copy, held(new)) is None
    assert "another tensor" in str(first_difference(copy, source))
    assert copy["closure"](3).tolist() == [12.0] * 3
    assert copy["pair"].right[0] is copy["slots"].value is new
    assert source["closure"](3).tolist() == [6.0] * 3


@pytest.mark.parametrize(
    "hidden", [iter([1]), functools.lru_cache(lambda: 1), object()], ids=["iterator", "cache", "object"]
)
def test_what_cannot_be_looked_into_is_an_obstacle(hidden: Any) -> None:
    found = Template([hidden], lambda t: None, lambda t: False).obstacle
    assert found == f"a {type(hidden).__name__}, which is not looked into"
