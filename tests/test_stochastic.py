"""Stochastic, memoised and structured inference: what each must equal, and what it must never do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.ops.indexing import Vindex
from pyro.optim import ClippedAdam
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_latent import CAVI, EM, AutoConjugate, RobbinsMonro, handlers
from pyro_latent.ascent.memoised import MemoisedSteps
from pyro_latent.ascent.stochastic import StochasticSteps
from pyro_latent.ascent.sweep import Sweep
from pyro_latent.distributions import NormalGamma
from pyro_latent.errors import DataError, ModelError, NotConjugateError
from pyro_latent.gradient.natural_gradient import draws_of, natural_gradient
from pyro_latent.models import normal_gamma
from pyro_latent.objective import compile_program

Model = Callable[..., Any]


def mixture(x: Tensor, size: int, K: int = 3) -> None:
    """Discrete locals; a conditional prior over weights fixed."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(K, dtype=x.dtype)))
    with pyro.plate("components", K):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()), obs=x)


def factors(x: Tensor, size: int) -> None:
    """Continuous locals, coupled with the globals in products."""
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    loading = pyro.sample("loading", dist.Normal(x.new_zeros(2, x.shape[1]), 1.0).to_event(2))
    with pyro.plate("data", size, subsample_size=len(x)):
        score = pyro.sample("score", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(score @ loading, precision.rsqrt()).to_event(1), obs=x)


def groups(x: Tensor, group: Tensor, size: int) -> None:
    """Globals that are read at each row's group, twice over: an effect and a precision."""
    with pyro.plate("groups", 4):
        effect = pyro.sample("effect", dist.Normal(x.new_tensor(0.0), 3.0))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(effect[group], precision[group].rsqrt()), obs=x)


def likelihood(x: Tensor, size: int) -> None:
    """Parameters instead of priors."""
    weights = pyro.param("weights", x.new_ones(3) / 3, constraint=constraints.simplex)
    mean = pyro.param("mean", x.new_tensor([-2.0, 0.5, 2.0]))
    scale = pyro.param("scale", x.new_ones(3), constraint=constraints.positive)
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], scale[z]), obs=x)


def clusters(count: int = 600, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)[torch.randint(3, (count,), generator=generator)]
    return centre + 0.7 * torch.randn(count, generator=generator, dtype=torch.float64)


def rows(count: int = 120, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made: list[Tensor] = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((count, 2), (2, 4))]
    return made[0] @ made[1] + 0.3 * torch.randn(count, 4, generator=generator, dtype=torch.float64)


def factorization(x: Tensor, user: Tensor, item: Tensor, size: int) -> None:
    """Two globals that each observation reads together, at its own places: K factors of users and of items."""
    with pyro.plate("users", 2):
        left = pyro.sample("left", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("items", 5):
        right = pyro.sample("right", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("x", dist.Normal((left[user] * right[item]).sum(-1), 0.5), obs=x)


def rows_with_levels(x: Tensor, size: int) -> None:
    """A local location for each row, which has many observations."""
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
    spread = pyro.sample("spread", dist.Gamma(x.new_tensor(2.0), 1.0))
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(2.0), 1.0))
    with pyro.plate("rows", size, subsample_size=len(x), dim=-2):
        level = pyro.sample("level", dist.Normal(mean, spread.rsqrt()))
        with pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(level, precision.rsqrt()), obs=x)


CASES: dict[str, tuple[Model, tuple[Tensor, ...]]] = {
    "mixture": (mixture, (clusters(),)),
    "factors": (factors, (rows(60),)),
    "groups": (groups, (clusters(), torch.arange(600) % 4)),
    "factorization": (factorization, (clusters(40) / 3, torch.arange(40) % 2, torch.arange(40) % 5)),
    "levels": (rows_with_levels, (rows(40) + 3.0,)),
}


def pieces_of(data: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """Pieces of equal sizes."""
    return list(zip(*(d.chunk(count) for d in data), strict=True))


def unequal(data: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Three pieces of different sizes."""
    sizes = [len(data[0]) // 5, len(data[0]) // 3, len(data[0]) - len(data[0]) // 5 - len(data[0]) // 3]
    return list(zip(*(d.split(sizes) for d in data), strict=True))


def distance(a: AutoConjugate, b: AutoConjugate, keys: Any = None) -> float:
    """The largest relative difference of natural parameters."""
    pairs = [(a.state[k][n], b.state[k][n]) for k in (keys or a.state) for n in a.state[k]]
    return max(float(((x - y).abs() / (1 + x.abs())).max()) for x, y in pairs)


# Stochastic.


@pytest.mark.parametrize("name", CASES)
def test_full_steps_on_all_the_data_are_coordinate_ascent(name: str) -> None:
    model, data = CASES[name]
    size = len(data[0])
    batch, stochastic = AutoConjugate(model), AutoConjugate(model)
    sweeps, steps = CAVI(model, batch), CAVI(model, stochastic, step_size=1.0)
    for _ in range(5):
        sweeps.step(*data, size)
        steps.step(*data, size)
        assert distance(batch, stochastic) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_the_estimates_of_a_partition_average_to_the_exact_elbo(name: str) -> None:
    """Minibatches scaled to the whole are unbiased: over equal parts their mean is the ELBO of all the data.

    Local blocks are at their optimum in the parts, and may not be there yet in the whole.
    """
    model, data = CASES[name]
    size = len(data[0])
    guide = AutoConjugate(model)
    CAVI(model, guide).run(*data, size, max_steps=3)
    parts = [guide.elbo(*piece, size) for piece in pieces_of(data, 4)]
    settled = sum(parts) / len(parts)
    assert settled >= guide.elbo(*data, size) - 1e-9 * abs(settled)
    if name in ("mixture", "groups", "factorization"):
        assert settled == pytest.approx(guide.elbo(*data, size), rel=1e-12)


def test_a_plate_that_draws_gives_another_minibatch_at_each_step() -> None:
    x = clusters()

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        with pyro.plate("data", len(x), subsample_size=50) as index:
            pyro.sample("x", dist.Normal(mean, 3.0), obs=x[index])

    torch.manual_seed(0)
    guide = AutoConjugate(model)
    driver = CAVI(model, guide, step_size=RobbinsMonro(1, 1.0))
    losses = [driver.step(x) for _ in range(400)]
    assert len(set(losses)) == 400
    # With ρ_t = 1 / (t + 1) the natural parameters are the average of the minibatches' optima.
    exact = (x.sum() / 9) / (1 / 100 + len(x) / 9)
    assert guide.posterior()["mean"].mean.item() == pytest.approx(exact.item(), abs=4 * 3.2 / math.sqrt(400 * 50))
    assert guide.posterior()["mean"].variance.item() == pytest.approx(1 / (1 / 100 + len(x) / 9), rel=1e-10)


def test_recording_leaves_the_random_state_alone_unless_a_plate_draws() -> None:
    x = clusters()
    guide = AutoConjugate(mixture)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model)).step(x)
    assert torch.equal(before, torch.get_rng_state())
    CAVI(mixture, guide, step_size=1.0).step(x[:100], 600)
    assert not torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_stochastic_passes_reach_the_batch_optimum_sooner_than_sweeps() -> None:
    """Held-out log density of a mixture, from one start, against passes over the data."""
    train, held = clusters(20_000, seed=1), clusters(2_000, seed=2)
    size = len(train)
    start = {"mean": dist.Normal(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), 0.1)}

    def score(guide: AutoConjugate) -> float:
        q = guide.posterior()
        log = dist.Normal(q["mean"].mean, q["precision"].mean.rsqrt()).log_prob(held.unsqueeze(-1))
        return (log + q["weights"].mean.log()).logsumexp(-1).mean().item()

    def passes_until(step: Callable[[], Any], guide: AutoConjugate, goal: float) -> int:
        for passes in itertools.count(1):
            step()
            if score(guide) >= goal:
                return passes
        raise AssertionError

    best = AutoConjugate(mixture, init=start)
    CAVI(mixture, best).run(train, size, tol=1e-12)
    goal = score(best) - 1e-3
    batch = AutoConjugate(mixture, init=start)
    sweeps = CAVI(mixture, batch)
    loader = DataLoader(TensorDataset(train), batch_size=200, shuffle=True, generator=torch.Generator().manual_seed(0))
    guide = AutoConjugate(mixture, init=start)
    driver = CAVI(mixture, guide, step_size=RobbinsMonro(10, 0.6))
    stochastic_passes = passes_until(lambda: driver.run_batches(loader, size=size), guide, goal)
    batch_passes = passes_until(lambda: sweeps.step(train, size), batch, goal)
    assert stochastic_passes * 3 <= batch_passes


@pytest.mark.slow
def test_lda_steps_are_those_of_scikit_learn() -> None:
    """Online LDA: λ after every minibatch, from the same start, with both document steps run to convergence."""
    generator = np.random.default_rng(0)
    topics = generator.dirichlet(np.full(30, 0.2), 4)
    theta = generator.dirichlet(np.full(4, 0.3), 40)
    counts = np.stack([generator.multinomial(60, t @ topics) for t in theta])
    peer = LatentDirichletAllocation(
        4, doc_topic_prior=3.0, topic_word_prior=0.2, learning_offset=3.0, learning_decay=0.7, total_samples=40,
        mean_change_tol=1e-12, max_doc_update_iter=20_000, random_state=0,
    )  # fmt: skip

    def model(document: Tensor, word: Tensor, count: Tensor, number: int) -> None:
        with pyro.plate("topics", 4):
            beta = pyro.sample("beta", dist.Dirichlet(torch.full((30,), 0.2, dtype=torch.float64)))
        with pyro.plate("documents", 40, subsample=torch.arange(number)):
            theta = pyro.sample("theta", dist.Dirichlet(torch.full((4,), 3.0, dtype=torch.float64)))
        size: Any = len(word) * 40 / number
        with (
            pyro.plate("tokens", size, subsample=torch.arange(len(word))),
            pyro.poutine.scale(scale=count),
        ):
            z = pyro.sample("z", dist.Categorical(theta[document]), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Categorical(beta[z]), obs=word)

    batches = [counts[i : i + 10] for i in range(0, 40, 10)]
    guide, driver = None, None
    for batch in batches * 2:
        if guide is None:
            peer._init_latent_vars(30, dtype=np.float64)
            guide = AutoConjugate(model, init={"beta": dist.Dirichlet(torch.tensor(peer.components_))})
            driver = CAVI(model, guide, step_size=RobbinsMonro(4.0, 0.7), local_steps=20_000, local_tol=1e-11)
        document, word = (torch.as_tensor(i) for i in np.nonzero(batch))
        count = torch.as_tensor(batch[document, word], dtype=torch.float64)
        peer.partial_fit(batch)
        assert driver is not None
        driver.step(document, word, count, len(batch))
        found = guide.posterior()["beta"].concentration.numpy()
        np.testing.assert_allclose(found, peer.components_, rtol=1e-5)


@pytest.mark.slow
def test_averaged_summaries_fit_parameters_from_minibatches() -> None:
    """Online EM ends near the maximum of the likelihood of all the data, as EM does."""
    x = clusters(2_000)
    best = EM(likelihood)
    best.run(x, 2_000, max_steps=500)
    means = best.guide.params()["mean"]
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = AutoConjugate(likelihood)
    loader = DataLoader(TensorDataset(x), batch_size=100, shuffle=True)
    CAVI(likelihood, guide, step_size=RobbinsMonro(2, 0.8)).run_batches(loader, epochs=10, size=2_000)
    assert guide.elbo(x, 2_000) == pytest.approx(best.guide.elbo(x, 2_000), abs=1.0)
    torch.testing.assert_close(guide.params()["mean"], means, atol=0.05, rtol=0)


def test_a_guide_of_minibatches_is_scored_by_pyro() -> None:
    """Trace_ELBO on a minibatch agrees with the exact estimate; the guide's plates match the model's."""
    torch.manual_seed(0)
    guide = AutoConjugate(factors)
    data = rows()
    CAVI(factors, guide, step_size=RobbinsMonro()).run_batches([(p,) for p in data.split(40)], epochs=3, size=120)
    piece = data[:40]
    losses = [Trace_ELBO().loss(factors, guide, piece, 120) for _ in range(100)]
    error = np.std(losses) / math.sqrt(len(losses))
    assert -np.mean(losses) == pytest.approx(guide.elbo(piece, 120), abs=4 * error)


# Step sizes.


def test_robbins_monro_is_its_formula_and_is_checked() -> None:
    steps = RobbinsMonro(delay=4, forgetting=0.75)
    assert [steps(t) for t in range(3)] == pytest.approx([4**-0.75, 5**-0.75, 6**-0.75])
    for wrong in ({"delay": 0.5}, {"forgetting": 0.5}, {"forgetting": 1.1}):
        with pytest.raises(ValueError, match="Expected"):
            RobbinsMonro(**wrong)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"step_size": 0.0}, ValueError, "in \\(0, 1\\]"),
        ({"step_size": "fast"}, TypeError, "RobbinsMonro"),
        ({"step_size": 0.5, "memoised": True}, ValueError, "got both"),
        ({"structured": 5}, ValueError, "step_size"),
        ({"step_size": 0.5, "structured": -1}, ValueError, "structured to be an integer of at least 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        CAVI(mixture, AutoConjugate(mixture), **settings)


def test_other_data_without_a_declared_size_is_an_error() -> None:
    x = clusters()
    driver = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model), step_size=0.5)
    driver.step(x[:100])
    with pytest.raises(ModelError, match="how much data there is in all"):
        driver.step(x[100:200])


def in_list(model: Any) -> Any:
    return lambda data: model(data[0])


def in_mapping(model: Any) -> Any:
    return lambda data: model(data["x"])


def as_array(model: Any) -> Any:
    return lambda data: model(torch.from_numpy(data))


@pytest.mark.parametrize(
    ("wrap", "pack"),
    [(in_list, lambda x: [x]), (in_mapping, lambda x: {"x": x}), (as_array, lambda x: x.numpy())],
)
def test_other_data_is_seen_in_any_argument(wrap: Any, pack: Any) -> None:
    x = clusters()
    model = wrap(normal_gamma.model)
    driver = CAVI(model, AutoConjugate(model), step_size=0.5)
    driver.step(pack(x[:100]))
    driver.step(pack(x[:100].clone()))
    with pytest.raises(ModelError, match="how much data there is in all"):
        driver.step(pack(x[100:200]))


class Stream(IterableDataset[Tensor]):
    """Data that nobody knows the length of."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


@pytest.mark.parametrize("driver", [{"step_size": RobbinsMonro(1, 0.7)}, {"memoised": True}])
def test_a_stream_is_as_good_as_a_dataset(driver: dict[str, Any], tmp_path: Path) -> None:
    x = clusters()
    fits: list[Tensor] = []
    for loader in (DataLoader(TensorDataset(x), batch_size=100), DataLoader(Stream(x), batch_size=100)):
        guide = AutoConjugate(mixture)
        result = CAVI(mixture, guide, **driver).run_batches(
            loader, epochs=2, size=len(x), progress=True, checkpoint=tmp_path / f"{len(fits)}.pt"
        )
        fits.append(result.elbo)
    assert torch.equal(*fits)


def test_batches_need_a_driver_for_them() -> None:
    x = clusters()
    with pytest.raises(ModelError, match="step_size=RobbinsMonro"):
        CAVI(mixture, AutoConjugate(mixture)).run_batches([(x,)], size=600)
    with pytest.raises(TypeError, match="iterated over again"):
        CAVI(mixture, AutoConjugate(mixture), step_size=0.5).run_batches(iter([(x,)]), size=600)
    with pytest.raises(ModelError, match="got none"):
        CAVI(mixture, AutoConjugate(mixture), step_size=0.5).run_batches([], size=600)
    with pytest.raises(ModelError, match=r"a subsample of 100 of 600.*step_size"):
        CAVI(mixture, AutoConjugate(mixture)).step(x[:100], 600)


@pytest.mark.parametrize("batch", [(torch.zeros(5, 2),), {"x": torch.zeros(5, 2)}, torch.zeros(5, 2)])
def test_a_forgotten_size_is_named_with_what_to_write(batch: Any) -> None:
    guide = AutoConjugate(mixture)
    driver = CAVI(mixture, guide, step_size=0.5)
    with pytest.raises(TypeError, match=r"arguments \(x.*, size.*missing.*'size'.*run_batches\(batches, size="):
        driver.run_batches([batch])
    assert guide.posterior_state.program is None


# Memoised.


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("factors", "mixture"))) for name in CASES]
)
def test_memoised_passes_are_exact_and_never_fall(name: str) -> None:
    """From one start the pieces end at the optimum of the whole; the ELBO is exact and rises at every step."""
    model, data = CASES[name]
    size = len(data[0])
    guide = AutoConjugate(model)
    batches = unequal(data)
    result = CAVI(model, guide, memoised=True).run_batches(batches, epochs=500, tol=1e-12, size=size)
    assert result.converged
    assert float(result.elbo[len(batches) :].diff().min()) >= -1e-9 * abs(float(result.elbo[-1]))
    whole = AutoConjugate(model)
    best = CAVI(model, whole).run(*data, size, tol=1e-13, max_steps=5000)
    assert float(result.elbo[-1]) == pytest.approx(float(best.elbo[-1]), rel=1e-8)
    assert guide.elbo(*data, size) == pytest.approx(float(result.elbo[-1]), rel=1e-8)


def test_one_pass_over_pieces_is_exact_where_the_posterior_is() -> None:
    """A conjugate model has no locals: after one pass the posterior and the evidence are those of all the data."""
    x = clusters()

    def model(x: Tensor, size: int) -> None:
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.5), 2.0))
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.5), (0.3 * precision).rsqrt()))
        with pyro.plate("data", size, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)

    guide = AutoConjugate(model, blocks=[("mean", "precision")])
    pieces = [(p,) for p in x.split([100, 250, 250])]
    result = CAVI(model, guide, memoised=True).run_batches(pieces, size=600)
    loc, scaling, shape, rate = 0.5, 0.3, 1.5, 2.0
    count = len(x)
    new_scaling, new_shape = scaling + count, shape + count / 2
    new_rate = rate + 0.5 * ((x - x.mean()) ** 2).sum() + scaling * count * (x.mean() - loc) ** 2 / (2 * new_scaling)
    evidence = (
        math.lgamma(new_shape) - math.lgamma(shape) + shape * math.log(rate) - new_shape * new_rate.log()
        + 0.5 * math.log(scaling / new_scaling) - count / 2 * math.log(2 * math.pi)
    )  # fmt: skip
    assert float(result.elbo[-1]) == pytest.approx(evidence.item(), rel=1e-10)
    q = guide.posterior()
    assert q["precision"].concentration.item() == pytest.approx(new_shape, rel=1e-12)
    assert q["precision"].rate.item() == pytest.approx(new_rate.item(), rel=1e-10)


def test_memoised_parameters_are_those_of_em() -> None:
    x = clusters()
    best = EM(likelihood).run(x, 600, tol=1e-13, max_steps=5000)
    pyro.clear_param_store()
    guide = AutoConjugate(likelihood)
    pieces = [(p,) for p in x.split(150)]
    result = CAVI(likelihood, guide, memoised=True).run_batches(pieces, epochs=1000, tol=1e-13, size=600)
    assert float(result.elbo[-1]) == pytest.approx(float(best.elbo[-1]), rel=1e-8)
    assert float(result.elbo[4:].diff().min()) >= -1e-7


def some_labels(x: Tensor, label: Tensor, known: Any, size: int) -> None:
    with pyro.plate("kinds", 2):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 5.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_tensor([0.3, 0.7])), obs=label, obs_mask=known)
        pyro.sample("x", dist.Normal(mean[z], 1.0), obs=x)


def test_the_first_piece_may_have_all_of_its_labels() -> None:
    """Then there is nothing to start at, and nothing is lost: no later piece lowers the ELBO."""
    x = 3.0 * torch.tensor([-1, 1, -1, 1, -1, 1], dtype=torch.float64) + torch.arange(6).double() / 10
    known = torch.tensor([True, True, True, True, False, False])
    arguments = x, (x > 0).long(), known
    pieces = list(zip(*(t.split(2) for t in arguments), strict=True))
    whole = CAVI(some_labels, AutoConjugate(some_labels)).run(*arguments, 6, tol=1e-13)
    found = CAVI(some_labels, AutoConjugate(some_labels), memoised=True).run_batches(pieces, epochs=9, tol=0, size=6)
    assert abs(found.elbo[-1] - whole.elbo[-1]) < 1e-9


def effects(y: Tensor, size: int) -> None:
    """Effects of the pieces' own, and their mean, which all pieces share."""
    mean = pyro.sample("mean", dist.Normal(y.new_tensor(0.0), 5.0))
    with pyro.plate("groups", size, subsample_size=len(y), dim=-2):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        with pyro.plate("rows", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def test_what_pieces_share_is_in_no_block_with_what_is_their_own() -> None:
    y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    exact = CAVI(effects, AutoConjugate(effects)).run(y, 6, tol=1e-13).elbo[-1]
    guide = AutoConjugate(effects, blocks="auto")
    found = CAVI(effects, guide, memoised=True).run_batches([(p,) for p in y.split(3)], epochs=60, tol=1e-9, size=6)
    assert abs(found.elbo[-1] - exact) < 1e-6 and abs(guide.elbo(y, 6) - exact) < 1e-6
    named = CAVI(effects, AutoConjugate(effects, blocks=[("mean", "effect")]), memoised=True)
    with pytest.raises(NotConjugateError, match="a subsampled plate to hold all or none"):
        named.step_piece(0, y[:3], 6)


def test_pieces_are_visited_by_name_in_any_order() -> None:
    x = clusters()
    guide = AutoConjugate(mixture)
    driver = CAVI(mixture, guide, memoised=True)
    halves = {"first": x[:200], "second": x[200:]}
    for name in ("first", "second", "second", "first") + ("first", "second") * 60:
        loss = driver.step_piece(name, halves[name], 600)
    assert -loss == pytest.approx(guide.elbo(x, 600), rel=1e-9)


def test_a_piece_of_one_datum_says_which_group_it_is_of() -> None:
    """A hundred groups' data and one more datum reach the ELBO of all of them at once."""
    y, group = clusters(101), torch.arange(101) % 4
    driver, ends = CAVI(groups, AutoConjugate(groups), memoised=True), torch.tensor([100, 1])
    pieces = list(zip(y.split(ends.tolist()), group.split(ends.tolist()), strict=True))
    result = driver.run_batches(pieces, epochs=300, tol=1e-12, size=101)
    whole = CAVI(groups, AutoConjugate(groups)).run(y, group, 101, tol=1e-12)
    assert float(result.elbo[-1]) == pytest.approx(float(whole.elbo[-1]), rel=1e-9)


def test_pieces_that_change_are_found_out() -> None:
    x = clusters()
    driver = CAVI(mixture, AutoConjugate(mixture), memoised=True)
    driver.step_piece(0, x[:300], 600)
    driver.step_piece(1, x[300:], 600)
    with pytest.raises(DataError, match=r"the data of piece 0 as in the pass before.*fixed order"):
        driver.step_piece(0, x[300:], 600)
    with pytest.raises(ModelError, match="run_batches, or step_piece"):
        driver.run(x, 600)


def test_a_second_piece_without_a_declared_size_is_an_error() -> None:
    x = clusters()
    driver = CAVI(normal_gamma.model, AutoConjugate(normal_gamma.model), memoised=True)
    driver.step_piece(0, x[:300])
    with pytest.raises(ModelError, match="this is piece 2"):
        driver.step_piece(1, x[300:])


@pytest.mark.parametrize("settings", [{"step_size": 0.3}, {"memoised": True}], ids=str)
@pytest.mark.parametrize("name", ["mixture", "factors"])
def test_several_starts_can_go_on_after_a_run(name: str, settings: dict[str, Any]) -> None:
    model, data = CASES[name]
    size = len(data[0])
    guide = AutoConjugate(model, restarts=3)
    driver = CAVI(model, guide, **settings)
    first = driver.run_batches(pieces_of(data, 4), epochs=3, tol=0.0, size=size)
    assert first.restarts.shape == (3,)
    second = driver.run_batches(pieces_of(data, 4), epochs=2, tol=0.0, size=size)
    if "memoised" in settings:
        assert float(second.elbo.diff().min()) >= -1e-9 * abs(float(second.elbo[-1]))
        assert float(second.elbo[0]) >= float(first.elbo[-1]) - 1e-9 * abs(float(first.elbo[-1]))


def test_the_start_that_stochastic_steps_keep_is_the_one_that_they_rank_best() -> None:
    x = clusters()
    guide = AutoConjugate(mixture, restarts=5)
    driver = CAVI(mixture, guide, step_size=RobbinsMonro(5, 0.7))
    for piece in x.split(30) * 3:
        driver.step(piece, 600)
    kept = guide.posterior()["mean"].mean.sort().values  # equal optima, up to the order, rank by rounding
    driver.run_batches([(x[:30],)], size=600)
    torch.testing.assert_close(guide.posterior()["mean"].mean.sort().values, kept, atol=0.5, rtol=0)


def test_a_batch_of_all_the_data_is_one_of_a_declared_size() -> None:
    x = clusters()
    loader = DataLoader(TensorDataset(x), batch_size=600, shuffle=True)
    result = CAVI(mixture, AutoConjugate(mixture), step_size=1.0).run_batches(loader, epochs=3, size=600)
    assert result.num_steps == 3


@pytest.mark.slow
def test_the_size_of_rounding_does_not_grow_with_the_passes() -> None:
    """The fall that memoised inference takes for rounding is relative to the ELBO's terms, however many the passes."""
    x = clusters()
    driver = CAVI(mixture, AutoConjugate(mixture), memoised=True)
    sizes = []
    for epochs in (1, 30):
        driver.run_batches([(p,) for p in x.split(100)], epochs=epochs, tol=0.0, size=600)
        assert isinstance(driver._steps, MemoisedSteps) and driver._steps._total is not None
        sizes.append(float(driver._steps._total.magnitude))
    assert sizes[1] < 2 * sizes[0]


def test_a_step_that_fails_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters()
    driver = CAVI(likelihood, AutoConjugate(likelihood), step_size=0.5)
    driver.step(x[:100], 600)
    assert isinstance(driver._steps, StochasticSteps)
    before, count = driver._steps._summary, driver._steps.count
    monkeypatch.setattr(Sweep, "check_proper", _raise)
    with pytest.raises(ArithmeticError):
        driver.step(x[100:200], 600)
    assert driver._steps._summary is before and driver._steps.count == count


def _raise(*args: Any) -> None:
    raise ArithmeticError


def test_step_sizes_outside_of_their_range_are_named() -> None:
    driver = CAVI(mixture, AutoConjugate(mixture), step_size=lambda step: -0.5)
    with pytest.raises(ValueError, match=r"step sizes in \(0, 1\]; got -0.5 at step 0"):
        driver.step(clusters()[:100], 600)
    with pytest.raises(DataError, match="plate of size 0"):
        CAVI(mixture, AutoConjugate(mixture), step_size=0.5).step(clusters()[:0], 600)
    with pytest.raises(TypeError, match="known by an integer or a string"):
        CAVI(mixture, AutoConjugate(mixture), memoised=True).step_piece(None, clusters(), 600)  # type: ignore[arg-type]


def test_locations_move_before_the_scales_that_depend_on_them() -> None:
    """A precision that is declared first does not wash the start of a mixture out."""
    x = clusters()

    def precision_first(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=x.dtype)))
        with pyro.plate("components", 3):
            precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mean[z], precision[z].rsqrt()), obs=x)

    for data in (x, x.float()):
        guide = AutoConjugate(precision_first)
        assert CAVI(precision_first, guide).run(data).converged
        found = guide.posterior()["mean"].mean.sort().values.double()
        torch.testing.assert_close(found, torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64), atol=0.2, rtol=0)


# Structured.


def pair(x: Tensor) -> None:
    """Two overlapping components and few points: z and the means are strongly dependent under the posterior."""
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_tensor([0.6, 0.4])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(Vindex(mean.unsqueeze(-2))[..., z], 1.0), obs=x)


@pytest.fixture(scope="module")
def structured() -> tuple[Tensor, AutoConjugate, CAVI, AutoConjugate, CAVI]:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(12, dtype=torch.float64) - 0.7, torch.randn(8, dtype=torch.float64) + 0.9])
    plain = AutoConjugate(pair)
    sweeps = CAVI(pair, plain)
    sweeps.run(x, tol=1e-12)
    guide = AutoConjugate(pair)
    driver = CAVI(pair, guide, step_size=RobbinsMonro(1, 0.7), structured=20)
    driver.run(x, max_steps=400)
    return x, plain, sweeps, guide, driver


def evidence_by_quadrature(x: Tensor) -> float:
    grid = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    log = dist.Normal(grid, 1.0).log_prob(x.unsqueeze(-1))
    joint = torch.logaddexp(math.log(0.6) + log.unsqueeze(2), math.log(0.4) + log.unsqueeze(1)).sum(0)
    prior = dist.Normal(0.0, 2.0).log_prob(grid)
    return float((joint + prior.unsqueeze(1) + prior).flatten().logsumexp(0)) + 2 * math.log(0.01)


def test_the_structured_bound_is_tighter_than_mean_field(
    structured: tuple[Tensor, AutoConjugate, CAVI, AutoConjugate, CAVI],
) -> None:
    x, plain, _, _, driver = structured
    bound, error = driver.structured_elbo(x, draws=20_000)
    assert bound - 4 * error > plain.elbo(x) + 0.2
    assert bound + 4 * error < evidence_by_quadrature(x)


def test_the_structured_bound_is_what_pyro_finds_for_the_guide(
    structured: tuple[Tensor, AutoConjugate, CAVI, AutoConjugate, CAVI],
) -> None:
    """TraceEnum_ELBO sums z out at each draw; Trace_ELBO draws z given the globals: both score q(β) q(z | β)."""
    x, _, _, guide, driver = structured
    bound, error = driver.structured_elbo(x, draws=20_000)
    for elbo in (TraceEnum_ELBO, Trace_ELBO):
        loss = elbo(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1).loss(pair, guide, x)
        assert -loss == pytest.approx(bound, abs=6 * error + 0.03)


@pytest.mark.slow
def test_the_structured_fit_is_the_best_that_gradients_find(
    structured: tuple[Tensor, AutoConjugate, CAVI, AutoConjugate, CAVI],
) -> None:
    """AutoNormal with z enumerated in the model has the same q and the same bound: neither beats the other."""
    x, plain, sweeps, guide, driver = structured
    bound, error = driver.structured_elbo(x, draws=50_000)
    started, _ = sweeps.structured_elbo(x, draws=50_000)
    pyro.clear_param_store()
    torch.manual_seed(0)
    normal = AutoNormal(
        poutine.block(pair, hide=["z"]), init_loc_fn=init_to_value(values={"mean": guide.posterior()["mean"].mean})
    )
    elbo = TraceEnum_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(pair, normal, ClippedAdam({"lr": 0.02, "lrd": 0.994}), elbo)
    for _ in range(500):
        svi.step(x)
    scorer = TraceEnum_ELBO(num_particles=50_000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        peer = -scorer.loss(pair, normal, x)
    assert bound == pytest.approx(peer, abs=6 * error)
    assert bound - 4 * error > started > plain.elbo(x)


@pytest.mark.parametrize("name", ["beta", "gamma", "dirichlet", "normal", "multivariate", "wishart", "normal-gamma"])
def test_the_natural_gradient_of_a_linear_function_of_the_statistics_is_its_slope(name: str) -> None:
    """E⟨s, t⟩ = ⟨s, μ⟩, whose gradient in μ is s; and the draws have the statistics' means."""
    one = torch.ones((), dtype=torch.float64)
    matrix = one * torch.tensor([[1.0, 0.3], [0.3, 0.6]], dtype=torch.float64)
    laws: dict[str, Any] = {
        "beta": dist.Beta(2.5 * one, 4.0),
        "gamma": dist.Gamma(3.0 * one, 2.0),
        "dirichlet": dist.Dirichlet(one * torch.tensor([1.5, 2.5, 4.0], dtype=torch.float64)),
        "normal": dist.Normal(0.4 * one, 1.5),
        "multivariate": dist.MultivariateNormal(matrix[0], matrix),
        "wishart": dist.Wishart(4.5 * one, matrix),
        "normal-gamma": NormalGamma(0.3 * one, 2.0 * one, 3.0 * one, 1.5 * one),
    }
    made = laws[name]

    def model() -> None:
        if name == "normal-gamma":
            precision = pyro.sample("precision", dist.Gamma(3.0 * one, 1.5))
            pyro.sample("mean", dist.Normal(0.3 * one, (2.0 * precision).rsqrt()))
        else:
            pyro.sample("latent", made)
        pyro.sample("seen", dist.Normal(0.0 * one, 1.0), obs=one)

    joint = (("precision", "mean"),) if name == "normal-gamma" else ()
    (block,) = compile_program(handlers.record(model), joint).blocks.values()
    natural = block.natural(block.family.distribution_params(made))
    torch.manual_seed(0)
    draws = draws_of(block, natural.map(lambda t: t.unsqueeze(0)), 400_000)
    for field, mean in block.family.mean(natural).items():
        torch.testing.assert_close(draws.statistics[field].mean(0).detach(), mean, atol=0.02, rtol=0.01)
    slopes = natural.map(lambda t: torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).reshape(t.shape))
    slopes = slopes.map(lambda t: (t + t.mT) / 2 if t.ndim == 2 else t)
    found = natural_gradient(draws, slopes.map(lambda t: t.expand(400_000, *t.shape)))
    assert found is not None
    for field, slope in slopes.items():
        torch.testing.assert_close(found[field][0], slope, atol=0.05, rtol=0)


def test_plain_inference_takes_the_structure_off_the_guide() -> None:
    x = clusters(20)
    guide = AutoConjugate(pair)
    CAVI(pair, guide, step_size=0.5, structured=3).run(x, max_steps=3)
    assert guide.posterior_state.structured
    CAVI(pair, guide).run(x, max_steps=3)
    assert not guide.posterior_state.structured


def test_for_one_posterior_of_the_globals_structure_never_loses(
    structured: tuple[Tensor, AutoConjugate, CAVI, AutoConjugate, CAVI],
) -> None:
    x, plain, sweeps, _, _ = structured
    bound, error = sweeps.structured_elbo(x, draws=20_000)
    assert bound - 4 * error > plain.elbo(x)


def shrunk(x: Tensor) -> None:
    """Locals that hang on a global far more than on their data: mean field's sd of mu is a fifth of the exact one."""
    mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 0.2))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(("draws", "steps"), [(1, 200), (10, 800)])
def test_structured_inference_finds_an_exact_posterior_and_its_evidence(draws: int, steps: int) -> None:
    """q(β) q(z | β) holds the exact posterior, where every draw says the same of the bound: it is the evidence."""
    x = 0.8 + torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = 1 / (1 / 9 + 10 / 1.04)
    covariance = 1.04 * torch.eye(10, dtype=torch.float64) + 9
    evidence = float(dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x))
    plain = AutoConjugate(shrunk)
    sweeps = CAVI(shrunk, plain)
    sweeps.run(x)
    assert sweeps.structured_elbo(x, draws=100)[1] < 1
    torch.manual_seed(0)
    guide = AutoConjugate(shrunk)
    driver = CAVI(shrunk, guide, step_size=RobbinsMonro(), structured=draws)
    driver.run(x, max_steps=steps)
    found = guide.posterior()["mu"]
    assert float(found.mean) == pytest.approx(variance * float(x.sum()) / 1.04, rel=0.05)
    assert float(found.stddev) == pytest.approx(math.sqrt(variance), rel=0.05)
    bound, error = driver.structured_elbo(x, draws=100)
    assert error < 0.01
    assert plain.elbo(x) < bound == pytest.approx(evidence, abs=0.02)


@pytest.mark.parametrize("seed", [7, 13, 46])
def test_the_noise_of_one_draw_leads_to_no_posterior_that_is_far_too_narrow(seed: int) -> None:
    """Steps as long as their draws said ended some thirty standard deviations off, at a quarter of the right one."""
    x = 0.8 + torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = 1 / (1 / 9 + 10 / 1.04)
    torch.manual_seed(seed)
    guide = AutoConjugate(shrunk)
    CAVI(shrunk, guide, step_size=RobbinsMonro(), structured=1).run(x, max_steps=60)
    found = guide.posterior()["mu"]
    assert abs(float(found.mean) - variance * float(x.sum()) / 1.04) < 0.2 * math.sqrt(variance)
    assert float(found.stddev) == pytest.approx(math.sqrt(variance), rel=0.1)


def test_structured_inference_with_continuous_locals() -> None:
    data = rows(60)
    torch.manual_seed(0)
    plain = AutoConjugate(factors)
    CAVI(factors, plain).run(data, 60, tol=1e-10, max_steps=2000)
    guide = AutoConjugate(factors, init={k: plain.posterior()[k] for k in ("precision",)})
    driver = CAVI(factors, guide, step_size=RobbinsMonro(1, 0.7), structured=10)
    driver.run(data, 60, max_steps=100)
    bound, error = driver.structured_elbo(data, 60, draws=2_000)
    losses = [Trace_ELBO().loss(factors, guide, data, 60) for _ in range(100)]
    assert error < 0.5
    assert -np.mean(losses) == pytest.approx(bound, abs=4 * math.hypot(error, np.std(losses) / math.sqrt(100)))
    assert bound - 4 * error > plain.elbo(data, 60)


def test_structured_inference_with_discrete_and_continuous_locals() -> None:
    """A discrete local that chooses the mean of a continuous one: both are at their optimum given each draw."""

    def two(x: Tensor) -> None:
        with pyro.plate("components", 2):
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            y = pyro.sample("y", dist.Normal(mean[z], 0.5))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    x = clusters(30)
    torch.manual_seed(0)
    plain = AutoConjugate(two)
    CAVI(two, plain).run(x, tol=1e-10)
    guide = AutoConjugate(two)
    driver = CAVI(two, guide, step_size=RobbinsMonro(), structured=5)
    driver.run(x, max_steps=30)
    bound, error = driver.structured_elbo(x, draws=500)
    losses = [Trace_ELBO().loss(two, guide, x) for _ in range(200)]
    assert error < 0.1
    assert -np.mean(losses) == pytest.approx(bound, abs=4 * math.hypot(error, np.std(losses) / math.sqrt(200)))
    assert bound - 4 * error > plain.elbo(x)


def test_structured_inference_says_what_it_cannot_do() -> None:
    x = clusters()
    with pytest.raises(ModelError, match="restarts=3"):
        CAVI(mixture, AutoConjugate(mixture, restarts=3), step_size=0.5, structured=2).step(x, 600)
    with pytest.raises(ModelError, match="parameters or MAP sites"):
        CAVI(likelihood, AutoConjugate(likelihood), step_size=0.5, structured=2).step(x, 600)


def test_functions_of_a_scalar_that_pieces_do_not_share_are_an_error() -> None:
    """The log of a probability that depends on c and on a covariate is another function of c for each datum."""

    def model(x: Tensor, known: Tensor) -> None:
        c = pyro.sample("c", dist.Beta(x.new_tensor(4.0), 2.0))
        with pyro.plate("n", 12, subsample_size=len(x)):
            pyro.sample("x", dist.Bernoulli(0.5 + 0.4 * c * known - 0.3 * c), obs=x)

    data = torch.tensor([1.0, 0.0, 1.0] * 4).double(), torch.tensor([1.0, 0.0, 0.0, 1.0] * 3).double()
    pieces = [tuple(t[i : i + 6] for t in data) for i in (0, 6)]
    guide = AutoConjugate(model)
    with pytest.raises(ModelError, match="Expected functions of the scalar 'c' that all pieces of the data share"):
        CAVI(model, guide, memoised=True).run_batches(pieces, epochs=2)
    assert bool(CAVI(model, guide, step_size=0.5).run_batches(pieces, epochs=2).elbo.isfinite().all())

    def exponential(x: Tensor, known: Tensor) -> None:
        c = pyro.sample("c", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("n", 12, subsample_size=len(x)):
            pyro.sample("x", dist.Poisson(c.exp()), obs=x)

    with pytest.raises(ModelError, match="which its powers and its logarithm are; got one of a piece's own"):
        CAVI(exponential, AutoConjugate(exponential), memoised=True).run_batches(pieces, epochs=2)
