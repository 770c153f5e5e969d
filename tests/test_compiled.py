"""Sweeps that torch compiles give the numbers of those that it does not, to the last bit, or give way to them."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from random_models import RandomProgram, default_dtype, program
from shared_models import batch_mixture
from test_accelerator import CASES, POINTS, maximum
from test_em import factors
from test_gpu import rows
from torch import Tensor
from wide_models import wide_program

from pyro_latent import CAVI, EM, AutoConjugate, NaturalDomainError, PyroLatentError, RobbinsMonro
from pyro_latent.ascent import compiled_sweep
from pyro_latent.ascent.compiled_sweep import CompiledSweeps
from pyro_latent.errors import ArgumentError, ModelError
from pyro_latent.models import gmm, normal_gamma, three_coins
from pyro_latent.recording import Compiled, NotCompiledError, Tape

X = rows(50, 1)[:, 0]
SEEDS, SLOW = 4, 500


def run(model: Callable[..., Any], args: Sequence[Any], guide: dict[str, Any], **options: Any) -> tuple[Tensor, CAVI]:
    """The ELBO after each of some sweeps from one start, and the driver."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    driver = CAVI(model, AutoConjugate(model, **guide), **options)
    return driver.run(*args, max_steps=12, tol=0).elbo, driver


@pytest.mark.parametrize("name", ["joint block", "mixture", "chain", "documents"])
def test_the_same_to_the_last_bit(name: str) -> None:
    case = CASES[name]
    found, driver = run(case.model, case.args, case.options, jit_compile=True)
    expected, plain = run(case.model, case.args, case.options, jit_compile=False)
    assert compiled_of(driver).is_compiled
    assert torch.equal(found, expected)
    for ours, others in zip(driver.guide.buffers(), plain.guide.buffers(), strict=True):
        assert torch.equal(ours, others)


@pytest.mark.parametrize("options", [{"accelerate": True}, {"annealing": 3}, {"local_steps": 2}], ids=str)
@pytest.mark.filterwarnings("ignore:Expected more steps than those of annealing")
def test_the_same_however_it_sweeps(options: dict[str, Any]) -> None:
    case = CASES["mixture"]
    found, driver = run(case.model, case.args, case.options, jit_compile=True, **options)
    expected, _ = run(case.model, case.args, case.options, jit_compile=False, **options)
    assert compiled_of(driver).is_compiled
    assert torch.equal(found, expected)


def test_the_same_on_minibatches() -> None:
    """With another step size at each, and batches of two sizes."""
    x = rows(70, 1)[:, 0] + 5 * (torch.arange(70) % 2)
    ways = []
    for jit_compile in (True, False):
        pyro.set_rng_seed(0)
        driver = CAVI(batch_mixture, AutoConjugate(batch_mixture), step_size=RobbinsMonro(), jit_compile=jit_compile)
        ways.append((driver.run_batches([(b, 70) for b in x.split(20)], epochs=6).elbo, driver))
    (found, driver), (expected, _) = ways
    assert compiled_of(driver).is_compiled
    assert torch.equal(found, expected)


def effects(y: Tensor) -> None:
    """Random effects of a minibatch of a hundred groups."""
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 10.0))
    between = pyro.sample("between", dist.Gamma(y.new_ones(()), 1.0))
    with pyro.plate("groups", 100, subsample=torch.arange(len(y)), dim=-2):
        effect = pyro.sample("effect", dist.Normal(mean, between.rsqrt()))
        slope = pyro.sample("slope", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("members", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(effect + slope * torch.arange(y.shape[1]), 1.0), obs=y)


def shares(y: Tensor) -> None:
    """Mixtures of one pair of components, each group of a minibatch by shares of its own."""
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 3.0))
    with pyro.plate("groups", 100, subsample=torch.arange(len(y)), dim=-2):
        own = pyro.sample("own", dist.Dirichlet(y.new_ones(2)))
        with pyro.plate("members", y.shape[1], dim=-1):
            z = pyro.sample("z", dist.Categorical(own), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mean[z], 1.0), obs=y)


@pytest.mark.parametrize(("model", "options"), [(effects, {}), (shares, {"local_steps": 3, "local_tol": 0.0})])
@pytest.mark.filterwarnings("ignore:Expected sweeps that can be compiled")
def test_the_same_with_latents_of_the_minibatch(model: Callable[..., Any], options: dict[str, Any]) -> None:
    """Whose rounds go on until they settle, or so many times, and are compiled apart from the rest of a step; also
    where the rounds alone are given up.
    """
    batches, ends = [(b,) for b in (rows(40, 4) + 3 * (torch.arange(40) % 2)[:, None]).split(20)], []
    for jit_compile in (True, False):
        pyro.set_rng_seed(0)
        driver = CAVI(model, AutoConjugate(model), step_size=RobbinsMonro(), jit_compile=jit_compile, **options)
        first = driver.run_batches(batches, epochs=4).elbo
        known = compiled_of(driver)._known
        assert len([kind for kind in known if kind.sweep is not None]) == (2 if jit_compile else 0)
        if jit_compile:
            known[0].sweep, known[0].obstacle = None, "a test"
        elbo = torch.cat([first, driver.run_batches(batches, epochs=2).elbo])
        ends.append(torch.cat([elbo, *(buffer.flatten() for buffer in driver.guide.buffers())]))
    assert torch.equal(*ends)


def em(model: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], jit_compile: bool) -> tuple[EM, Tensor]:
    """A driver after some steps of EM, and what it came to, as numbers."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    driver = EM(model, jit_compile=jit_compile, **options)
    elbo = driver.run(*args, max_steps=8, tol=0).elbo
    assert compiled_of(driver).is_compiled is jit_compile
    q = torch.tensor([driver.q_function(*args), driver.free_energy(*args)])
    return driver, torch.cat([elbo, q, *(buffer.flatten() for buffer in driver.guide.buffers())])


COINS = three_coins.model, (torch.tensor(three_coins.TOSSES, dtype=torch.float64), three_coins.STARTS[0])
MAXIMUM, FACTORS = (maximum, (POINTS[:, 0] / 6,)), (factors, (POINTS, 1))


@pytest.mark.parametrize(
    ("model", "args", "options"),
    [(*COINS, {}), (*MAXIMUM, {}), (*MAXIMUM, {"m_step": "conditional", "restarts": 2, "init": 1}), (*FACTORS, {})],
    ids=["coins", "mixture", "conditional", "factors"],
)
def test_em_is_the_same(model: Any, args: Any, options: dict[str, Any]) -> None:
    """To the last bit, and so are Q and F under the last E-step."""
    assert torch.equal(em(model, args, options, True)[1], em(model, args, options, False)[1])


def test_each_compiled_step_of_em_raises_its_bound() -> None:
    """With the last E-step it is between the likelihoods before and after the M-step (Neal and Hinton 1998)."""
    driver = EM(maximum, jit_compile=True)
    driver.run(*MAXIMUM[1], max_steps=3)
    levels, bounds = [-driver.step(*MAXIMUM[1])], []
    for _ in range(4):
        levels.append(-driver.step(*MAXIMUM[1]))
        bounds.append(driver.free_energy(*MAXIMUM[1]))
    assert compiled_of(driver).is_compiled
    assert all(low <= bound <= high for low, bound, high in zip(levels, bounds, levels[1:], strict=False))


def test_each_size_of_minibatches_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches, and after them a smaller one, in every epoch."""
    sizes, made = [], compiled_sweep._TapedSweep.__init__

    def counted(self: Any, swept: Any, like: Sequence[Tensor]) -> None:
        sizes.append(max(tensor.numel() for tensor in like))
        made(self, swept, like)

    monkeypatch.setattr(compiled_sweep._TapedSweep, "__init__", counted)
    x = rows(70, 1)[:, 0] + 5 * (torch.arange(70) % 2)
    driver = CAVI(batch_mixture, AutoConjugate(batch_mixture), step_size=RobbinsMonro(), jit_compile=True)
    driver.run_batches([(b, 70) for b in x.split(20)], epochs=10)
    assert len(sizes) == len(set(sizes)) == 2


def test_few_numbers_are_compiled_after_a_while_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_sweep, "_WAIT", 5)
    for largest, is_compiled in ((100, True), (10, False)):
        monkeypatch.setattr(compiled_sweep, "_LARGEST", largest)
        _, driver = run(normal_gamma.model, (X,), {})
        assert compiled_of(driver).is_compiled is is_compiled


def compiled_of(driver: CAVI) -> CompiledSweeps:
    """What a driver has compiled."""
    steps: Any = driver._steps
    assert isinstance(steps.compiled, CompiledSweeps)
    return steps.compiled


@pytest.mark.parametrize("make", [program, wide_program], ids=["random", "wide"])
def test_random_programs(make: Callable[[int], RandomProgram]) -> None:
    for seed in range(SEEDS):
        assert_same(make(seed))


@pytest.mark.slow
@pytest.mark.parametrize("make", [program, wide_program], ids=["random", "wide"])
def test_many_random_programs(make: Callable[[int], RandomProgram]) -> None:
    for seed in range(SEEDS, SLOW):
        assert_same(make(seed))


def assert_same(written: RandomProgram) -> None:
    """A program is fitted to the same numbers, or refused in the same words, with compiled sweeps."""
    ends: list[Any] = []
    with default_dtype(written.dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, data = written.load()
        for jit_compile in (True, False):
            guide = {"blocks": written.blocks, "reparam": written.reparam}
            try:
                ends.append(run(model, data, guide, jit_compile=jit_compile)[0].tolist())
            except PyroLatentError as error:
                ends.append(str(error))
    assert ends[0] == ends[1], written


# What may go wrong.


@pytest.mark.parametrize("is_measured", [False, True])
def test_what_goes_wrong_in_a_compiled_sweep_goes_wrong_in_the_same_words(is_measured: bool) -> None:
    """The squares of one batch overflow, or of latents that it measures."""

    def model(x: Tensor) -> None:
        precision = pyro.sample("precision", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", 100, subsample=torch.arange(len(x))):
            if not is_measured:
                pyro.sample("x", dist.Normal(0.0, precision.rsqrt()), obs=x)
                return
            y = pyro.sample("y", dist.Normal(0.0, precision.rsqrt()))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    errors = []
    for jit_compile in (True, False):
        driver = CAVI(model, AutoConjugate(model, check=False), step_size=0.5, jit_compile=jit_compile)
        for shift in range(8):
            driver.step(X + shift)
        assert compiled_of(driver).is_compiled is jit_compile
        before = {name: buffer.clone() for name, buffer in driver.guide.named_buffers()}
        with pytest.raises(PyroLatentError) as caught:
            driver.step(X * 1e200)
        errors.append((type(caught.value), str(caught.value)))
        assert all(torch.equal(before[name], buffer) for name, buffer in driver.guide.named_buffers())
    assert errors[0] == errors[1]


def test_a_collapse_under_a_compiled_step_of_em_is_told_in_the_same_words() -> None:
    x = torch.cat([rows(40, 1), torch.full((2, 1), 4.0, dtype=torch.float64)])
    start, errors = torch.where(x > 3, 0.9, 0.1), []
    for jit_compile in (True, False):
        driver = EM(gmm.ml_model, init={"component": torch.cat([1 - start, start], 1)}, jit_compile=jit_compile)
        with pytest.raises(NaturalDomainError, match=r"'covariance'.*element \[1\] at zero") as caught:
            driver.run(x, 2, covariance="spherical", max_steps=2000, tol=0.0)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_a_compiled_sweep_that_gives_other_numbers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(normal_gamma.model, (X,), {}, jit_compile=False)
    call = compiled_sweep._TapedSweep.__call__

    def other(self: Any, given: Sequence[Tensor]) -> list[Tensor]:
        return [tensor + 1e-9 for tensor in call(self, given) or ()]

    monkeypatch.setattr(compiled_sweep._TapedSweep, "__call__", other)
    with pytest.warns(UserWarning, match="other numbers"):
        found, driver = run(normal_gamma.model, (X,), {}, jit_compile=True)
    assert not compiled_of(driver).is_compiled
    assert torch.equal(found, expected)


def test_what_cannot_be_compiled_is_told_once_and_goes_on() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfCauchy(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    with pytest.warns(UserWarning, match="a factor by quadrature") as caught:
        found, driver = run(model, (X,), {}, jit_compile=True)
        driver.step(X)
    assert len(caught) == 1
    assert torch.equal(found, run(model, (X,), {}, jit_compile=False)[0])


@pytest.mark.parametrize("options", [{"memoised": True}, {"step_size": 0.5, "structured": 10}], ids=str)
def test_steps_that_are_never_compiled_say_so(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"Expected jit_compile=True with.*Leave"):
        CAVI(batch_mixture, AutoConjugate(batch_mixture), jit_compile=True, **options)


def test_an_optimizer_is_not_compiled() -> None:
    with pytest.raises(ArgumentError, match=r"Expected jit_compile=True with an M-step in closed form.*Leave"):
        EM(maximum, m_step="gradient", jit_compile=True)


def test_data_that_are_written_into_are_seen() -> None:
    """A compiled sweep holds the data as they are, which a step sees before it."""
    x = X.clone()
    _, driver = run(normal_gamma.model, (x,), {}, jit_compile=True)
    driver.step(x)
    x += 1
    with pytest.raises(ModelError, match="the data of the last step"):
        driver.step(x)


def test_a_copy_goes_on_alike() -> None:
    _, driver = run(normal_gamma.model, (X,), {}, jit_compile=True)
    steps: Any = copy.deepcopy(driver._steps.compiled)  # type: ignore[attr-defined]
    assert steps.wanted and not steps.is_compiled


# One program of torch's.


def compiled(function: Callable[[Tensor], Tensor], given: Tensor) -> Compiled:
    """A function of one tensor, compiled."""
    with Tape([given]) as tape:
        found = function(given)
    assert tape.obstacle is None
    place = tape.place_of(found)
    assert place is not None
    return Compiled(tape.played([place]), [place], [given])


def test_numbers_that_are_read_must_be_the_same_again() -> None:
    def function(x: Tensor) -> Tensor:
        return x * 2 if bool((x > 0).all()) and not torch.equal(x, x.flip(0)) else x * 3

    double = compiled(function, torch.tensor([1.0, 2.0]))
    found = double([torch.tensor([4.0, 5.0])])
    assert found is not None
    assert found[0].tolist() == [8.0, 10.0]
    assert double([torch.tensor([-4.0, 5.0])]) is None
    assert double([torch.tensor([4.0, 4.0])]) is None
    assert double([torch.tensor([4.0])]) is None


def test_numbers_that_stay_others_are_worth_another_tape() -> None:
    """A few times; then it is given up."""
    sweeps = CompiledSweeps(True)

    def swept(given: list[Tensor]) -> list[Tensor]:
        return [3 * given[0] if bool(given[0] > 0) else 2 * given[0]]

    def compiled_steps(number: float) -> int:
        steps = 0
        for _ in range(12):
            given, is_due = [torch.tensor(number)], sweeps.is_due("numbers")
            found = sweeps.played(given) if is_due else None
            if found is None:
                found = swept(given)
                if is_due:
                    sweeps.note(found, swept, given)
            else:
                steps += 1
            assert found[0].item() == (3 if number > 0 else 2) * number
        return steps

    assert compiled_steps(1.0) > 6
    assert compiled_steps(-1.0) > 3
    assert compiled_steps(1.0) > 3
    with pytest.warns(UserWarning, match="numbers that are read"):
        assert compiled_steps(-1.0) == 0


def test_a_constant_with_a_gradient_is_a_constant() -> None:
    """As those are that come of the gradients of log normalizers."""
    constant = torch.tensor([1.0, 2.0]).requires_grad_()
    with torch.no_grad():
        add = compiled(lambda x: torch.stack([x + constant, constant]), torch.zeros(2))
    found = add([torch.ones(2)])
    assert found is not None
    assert found[0].tolist() == [[2.0, 3.0], [1.0, 2.0]]


def test_a_constant_that_is_written_into_ends_it() -> None:
    constant = torch.tensor([1.0, 2.0])
    add = compiled(lambda x: x + constant, torch.zeros(2))
    assert add([torch.ones(2)]) is not None
    constant += 1
    assert add([torch.ones(2)]) is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        lambda x: x + torch.rand(2),
        lambda x: x.unique(),
        lambda x: x * 2 if torch.complex(x, x)[0].item() != 0 else x,
    ],
    ids=["by a mask", "random", "unique", "of a complex number"],
)
def test_results_that_a_graph_cannot_give_are_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotCompiledError, match="Expected"):
        compiled(function, torch.tensor([1.0, 2.0]))


def test_what_was_compiled_lets_its_constants_go() -> None:
    """A graph that torch keeps as long as Python runs would hold the data of each fit."""

    def made() -> tuple[Compiled, weakref.ref[Tensor]]:
        constant = torch.arange(10.0)
        return compiled(lambda x: x + constant, torch.zeros(10)), weakref.ref(constant)

    add, constant = made()
    gc.collect()
    assert add([torch.ones(10)]) is not None
    assert constant() is not None
    del add
    gc.collect()
    assert constant() is None
