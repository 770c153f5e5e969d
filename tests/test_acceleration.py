"""Extrapolated sweeps: the optimum is that of plain ones, the ELBO never falls, and what is refused leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_models import batch_mixture
from torch import Tensor
from torch.distributions import constraints

from benchmarks.acceleration import crossed, factors, level, lines, ratings, regression, schools, sweeps, walk
from benchmarks.merges import clusters, mixture
from benchmarks.mixtures import ppca_model
from pyro_latent import CAVI, EM, ArgumentError, AutoConjugate, CAVIResult, CheckpointError, RobbinsMonro, handlers
from pyro_latent.ascent import extrapolation
from pyro_latent.ascent.extrapolation import Extrapolation, carried
from pyro_latent.families import Natural

pytestmark = pytest.mark.usefixtures("float64")

SMALL: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "crossed": (crossed, ratings(60, 5, 6, 1.0)),
    "level": (level, (*walk(5), 0.3)),
    "regression": (regression, lines(20)),
    "schools": (schools, ()),
    "factors": (ppca_model, factors(40, 4, (1.0,))),
}


def fitted(model: Callable[..., Any], *args: Any, tol: float = 1e-12, **options: Any) -> tuple[CAVIResult, Any]:
    """A run with acceleration by default, and its guide."""
    settings = {key: options.pop(key) for key in ("init", "restarts", "blocks") if key in options}
    guide = AutoConjugate(model, **settings)
    return CAVI(model, guide, **({"accelerate": True} | options)).run(*args, max_steps=4000, tol=tol), guide


def falls(result: CAVIResult) -> float:
    """The largest fall of an ELBO from sweep to sweep, relative to it."""
    return float((-result.elbo.diff() / result.elbo[1:].abs()).max())


@pytest.mark.parametrize("name", list(SMALL))
def test_the_optimum_is_that_of_plain_sweeps(name: str) -> None:
    """To the ELBO's precision and to that of the mean parameters, in fewer sweeps, with no fall of the ELBO."""
    model, args = SMALL[name]
    plain, guide = fitted(model, *args, accelerate=False)
    fast, other = fitted(model, *args)
    assert fast.converged
    assert float(fast.elbo[-1]) == pytest.approx(float(plain.elbo[-1]), rel=1e-9)
    assert falls(fast) < 1e-12
    assert fast.moves["point"] > 0
    assert sweeps(fast) < 0.6 * plain.num_steps
    own, others = guide.posterior(), other.posterior()
    for site in own if name != "factors" else ["precision"]:  # whose factors turn into one another
        torch.testing.assert_close(others[site].mean, own[site].mean, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(others[site].variance, own[site].variance, atol=1e-5, rtol=2e-5)


def test_factors_creep_and_extrapolated_ones_do_not() -> None:
    """To within 1e-6 of one ELBO, at least five times fewer sweeps."""
    data = factors(40, 4, (1.0,))
    plain, _ = fitted(ppca_model, *data, accelerate=False, tol=1e-8)
    fast, _ = fitted(ppca_model, *data, tol=1e-8)
    target = float(plain.elbo[-1]) * (1 + 1e-6)
    needed = [int((result.elbo >= target).nonzero()[0]) + 1 for result in (plain, fast)]
    assert needed[0] >= 5 * (needed[1] + fast.moves["refused"])


def test_for_an_affine_map_it_is_exact_after_as_many_sweeps_as_it_has_slow_directions() -> None:
    """Anderson's extrapolation is then GMRES: here the map of the mean of two coupled normals has one direction."""

    def model(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 10.0))
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 10.0))
        pyro.sample("y", dist.Normal(a + b, 0.5), obs=y)

    y = torch.tensor(3.0)
    fast, guide = fitted(model, y, tol=1e-12)
    assert fast.num_steps < 10
    exact = y * 100 / (200 + 0.25)
    torch.testing.assert_close(guide.posterior()["a"].mean, exact, rtol=1e-5, atol=0)
    assert fitted(model, y, tol=1e-12, accelerate=False)[0].num_steps > 200


def test_the_weights_are_those_of_a_least_squares_problem() -> None:
    """In the norm ⟨Δη, Δμ⟩, here that of a diagonal metric, by lstsq of numpy on all weights that add up to one."""
    generator = torch.Generator().manual_seed(0)
    metric = torch.rand(7, generator=generator) + 0.1
    moves = torch.randn(4, 7, generator=generator)
    path = Extrapolation()
    path.moves = [extrapolation.SweepMove({"a": Natural(x=torch.zeros(1))}, move, metric * move) for move in moves]
    weights = path._weights([])
    root = metric.sqrt()
    free = torch.linalg.lstsq((root * (moves[:3] - moves[3])).T, -(root * moves[3])).solution
    torch.testing.assert_close(weights[:3], free)
    assert float(weights.sum()) == pytest.approx(1)


def test_what_a_sweep_reads_before_it_writes_is_carried() -> None:
    """Locals that are written first are a function of the globals; every block of a discrete factor is read at once."""

    def keys(model: Callable[..., Any], *args: Any) -> list[Any]:
        program = AutoConjugate(model).prepare(args, {}).program
        return carried(program, program.default_order)

    assert keys(ppca_model, *factors(20, 5)) == ["loadings", "precision"]
    assert keys(regression, *lines(20)) == ["b", "tau"] or keys(regression, *lines(20)) == ["w", "tau"]
    assert sorted(keys(mixture, clusters(2, 20), 2)) == ["mu", "tau", "weights"]


def test_a_sweep_that_reads_nothing_of_the_last_one_is_plain() -> None:
    """One factor in all: it is at its optimum after one sweep, and there is nowhere to go."""
    result, _ = fitted(regression, *lines(20), blocks=[("w", "b")], accelerate=True, tol=1e-6)
    assert result.converged

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    result, _ = fitted(model, torch.ones(3))
    assert result.converged
    assert result.num_steps == 2
    assert result.moves == {}


def test_starts_are_those_of_single_runs() -> None:
    """Each start has its own extrapolation and its own safeguard."""
    x = clusters(4, 120, 1)
    state = AutoConjugate(mixture, init=0, restarts=3)
    together = CAVI(mixture, state, accelerate=True)
    steps = [together.step(x, 5) for _ in range(25)]
    paths = together._steps._paths  # type: ignore[attr-defined]
    assert sum(path.refused for path in paths.values()) > 0
    first = AutoConjugate(mixture, init=0, restarts=3)
    prepared = first.prepare((x, 5), {})
    ends = [float(program_elbo(state, i, x)) for i in range(3)]
    for number in range(3):
        alone = AutoConjugate(mixture, init=0)
        program = alone.posterior_state.commit(alone.prepare((x, 5), {}))
        own = {k: Natural(**{n: t[[number]].clone() for n, t in x.items()}) for k, x in prepared.state.items()}
        alone.posterior_state.store(own)
        alone.posterior_state.starts = {name: probs[[number]] for name, probs in prepared.starts.items()}
        assert program is alone.posterior_state.program
        cavi = CAVI(mixture, alone, accelerate=True)
        last = [cavi.step(x, 5) for _ in range(25)][-1]
        assert -last == pytest.approx(ends[number], abs=1e-7)
        path = cavi._steps._paths[0]  # type: ignore[attr-defined]
        assert (path.kept, path.refused) == (paths[number].kept, paths[number].refused)
    assert -steps[-1] == pytest.approx(max(ends))


def program_elbo(guide: AutoConjugate, start: int, x: Tensor) -> Tensor:
    """The ELBO of one start of a guide."""
    program = guide.posterior_state.program
    assert program is not None
    own = {key: natural.map(lambda t: t[[start]]) for key, natural in guide.state.items()}
    return program.bound(own, program.means(own)).elbo[0]


def test_what_is_refused_leaves_everything_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points far away: every one is refused, and the run is that of plain sweeps."""

    def far(self: Extrapolation, blocks: Any) -> Any:
        if len(self.moves) < 2:
            return None
        end = self.moves[-1].end
        return end | {key: Natural(**end[key] | {"x": end[key].x + 1e4}) for key in ("b", "mu") if key in end}

    monkeypatch.setattr(Extrapolation, "point", far)
    model, args = SMALL["crossed"]
    guides = [AutoConjugate(model) for _ in range(2)]
    plain, fast = CAVI(model, guides[0]), CAVI(model, guides[1], accelerate=True)
    for _ in range(12):
        assert plain.step(*args) == fast.step(*args)
        for key, natural in guides[0].state.items():
            assert all(t.equal(guides[1].state[key][n]) for n, t in natural.items())
    moves = fast.run(*args, max_steps=8).moves
    assert moves["refused"] > 2
    assert moves["point"] == 0


@pytest.mark.parametrize("name", ["crossed", "schools"])
def test_the_elbo_never_falls_whatever_the_weights_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here those of a step far the other way."""
    model, args = SMALL[name]

    def wrong(self: Extrapolation, blocks: Any) -> Tensor:
        weights = torch.zeros(len(self.moves))
        weights[-1], weights[0] = -30.0, 31.0
        return weights

    monkeypatch.setattr(Extrapolation, "_weights", wrong)
    plain, _ = fitted(model, *args, accelerate=False, tol=1e-8)
    fast, _ = fitted(model, *args, tol=1e-8)
    assert fast.moves["refused"] > 2
    assert falls(fast) < 1e-12
    assert float(fast.elbo[-1]) == pytest.approx(float(plain.elbo[-1]), rel=1e-5)


def test_a_point_outside_the_domain_is_taken_back() -> None:
    """Halfway again and again, and to nothing where that does not help: a Gamma's rate stays positive."""
    block = AutoConjugate(regression).prepare(lines(), {}).program.blocks["tau"]
    ends = [Natural(log_x=torch.tensor([1.0]), x=torch.tensor([-rate])) for rate in (4.0, 1.0)]
    path = Extrapolation()
    path._weights = lambda blocks: torch.tensor([-1.0, 2.0])  # type: ignore[method-assign]
    path.moves = [extrapolation.SweepMove({"tau": end}, torch.zeros(2), torch.zeros(2)) for end in ends]
    found = path.point([block])
    assert found is not None
    assert float(found["tau"].x) == -0.25  # a rate of −2, of −0.5, and of 0.25
    path._weights = lambda blocks: torch.tensor([-1000.0, 1001.0])  # type: ignore[method-assign]
    assert path.point([block]) is None


def test_tables_are_combined_as_log_densities() -> None:
    """Of normals on the line the combination is the normal of the combined natural parameters."""
    family = AutoConjugate(schools).prepare((), {}).program.blocks["tau"].family
    like = torch.zeros(1, 1)

    def table(loc: float, scale: float) -> Natural:
        values = dist.LogNormal(like + loc, like + scale, validate_args=False)
        return Natural(**{n: t.reshape(1, -1) for n, t in family.distribution_params(values).items()})

    ends, weights = [table(0.0, 1.0), table(0.5, 0.8)], [-0.4, 1.4]
    precision = sum(w / s**2 for w, s in zip(weights, (1.0, 0.8), strict=True))
    loc = sum(w * m / s**2 for w, m, s in zip(weights, (0.0, 0.5), (1.0, 0.8), strict=True)) / precision
    found = family.distribution(family.to_params(family.combined(ends, weights)))
    assert float(found.mean) == pytest.approx(float(dist.LogNormal(loc, precision**-0.5).mean), rel=1e-7)
    ratio = family.log_ratio(ends[0], ends[1], ends[0])
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    difference = dist.Normal(0.5, 0.8).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)
    assert ratio is not None
    assert float(ratio.square().sum()) == pytest.approx(float(difference.var()), rel=0.02)


def test_float32_reaches_what_float64_does() -> None:
    data = tuple(t.float() if t.is_floating_point() else t for t in ratings(60, 5, 6, 1.0))
    torch.set_default_dtype(torch.float32)
    fast, guide = fitted(crossed, *data, tol=1e-7)
    torch.set_default_dtype(torch.float64)
    exact, other = fitted(crossed, *ratings(60, 5, 6, 1.0), tol=1e-12)
    assert float(fast.elbo[-1]) == pytest.approx(float(exact.elbo[-1]), rel=1e-5)
    assert falls(fast) < 1e-6
    torch.testing.assert_close(guide.posterior()["a"].mean.double(), other.posterior()["a"].mean, atol=0.02, rtol=0)


def test_em_extrapolates_unconstrained_parameters() -> None:
    """The maximum of the likelihood is that of plain EM; a scale stays positive, shares add up to one."""

    def model(x: Tensor) -> None:
        shares = pyro.param("shares", torch.full((2,), 0.5), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-0.5, 0.8]))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], scale), obs=x)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, generator=generator) + 2.2 * (torch.rand(300, generator=generator) < 0.3)
    found = {}
    for accelerate in (False, True):
        pyro.clear_param_store()
        em = EM(model, accelerate=accelerate)
        result = em.run(x, max_steps=5000, tol=1e-13)
        assert result.converged
        assert falls(result) < 1e-12
        found[accelerate] = result, {name: value.clone() for name, value in em.guide.params().items()}
    assert sweeps(found[True][0]) < 0.3 * sweeps(found[False][0])
    assert float(found[True][0].elbo[-1]) == pytest.approx(float(found[False][0].elbo[-1]), rel=1e-9)
    for name, value in found[True][1].items():
        torch.testing.assert_close(value, found[False][1][name], atol=1e-3, rtol=1e-3)
    with pytest.raises(ArgumentError, match="m_step='closed_form' or 'conditional'"):
        EM(model, accelerate=True, m_step="gradient")


def test_each_start_of_em_has_its_own_e_step() -> None:
    """After points of some starts were refused, too: Q and the entropy of the best one add up to its ELBO."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.zeros(3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = clusters(3, 60)[:, 0]
    em = EM(model, init=1, restarts=4, accelerate=True)
    for _ in range(20):
        em.step(x)
    paths = em._steps._paths  # type: ignore[attr-defined]
    assert sum(path.refused for path in paths.values()) > 0
    assert em.free_energy(x) == pytest.approx(em.guide.elbo(x), abs=1e-2)
    result = em.run(x, tol=1e-10)
    assert em.free_energy(x) == pytest.approx(float(result.elbo[-1]), abs=1e-6)


@pytest.mark.parametrize("name", ["crossed", "schools"])
def test_a_run_that_was_cut_ends_where_it_would_have_ended(name: str, tmp_path: Path) -> None:
    model, args = SMALL[name]
    whole, _ = fitted(model, *args, tol=1e-10)
    path = tmp_path / "run.pt"

    def driver() -> CAVI:
        return CAVI(model, AutoConjugate(model), accelerate=True)

    driver().run(*args, tol=1e-10, checkpoint=path, callback=lambda step, _: step == 7)
    again = driver().run(*args, tol=1e-10, checkpoint=path)
    torch.testing.assert_close(again.elbo, whole.elbo, rtol=1e-12, atol=0)
    assert again.moves == whole.moves
    with pytest.raises(CheckpointError, match="accelerate"):
        CAVI(model, AutoConjugate(model)).run(*args, tol=1e-10, checkpoint=path)


def test_a_run_after_a_file_is_the_run_after_the_run(tmp_path: Path) -> None:
    """What was remembered outlives a recording of the same data, in the process that made it and in another."""
    model, args = SMALL["crossed"]
    first, other = (CAVI(model, AutoConjugate(model), accelerate=True) for _ in range(2))
    first.run(*args, max_steps=10, tol=0)
    first.save(tmp_path / "run.pt")
    other.load(tmp_path / "run.pt")
    results = [cavi.run(*args, max_steps=10, tol=0) for cavi in (first, other)]
    assert torch.equal(results[0].elbo, results[1].elbo) and results[0].moves == results[1].moves


def test_annealed_sweeps_are_plain_and_come_first() -> None:
    x = clusters(3, 100)
    plain, _ = fitted(mixture, x, 4, init=0, annealing=6, accelerate=False, tol=1e-11)
    fast, _ = fitted(mixture, x, 4, init=0, annealing=6, tol=1e-11)
    torch.testing.assert_close(fast.elbo[:6], plain.elbo[:6], rtol=0, atol=0)
    assert falls(CAVIResult(fast.elbo[6:], True, 0, fast.restarts)) < 1e-12
    assert float(fast.elbo[-1]) == pytest.approx(float(plain.elbo[-1]), rel=1e-7)


def test_hand_written_updates_and_joint_blocks_have_the_same_optimum() -> None:
    """A hand-written update may read every block; natural parameters by pairs are combined pair by pair."""

    def update(q: Any, x: Tensor, y: Tensor) -> Any:
        tau, w = q["tau"].mean, q["w"]
        precision = tau * len(y) + 0.01
        return dist.Normal((tau * (y - x @ w.mean).sum()) / precision, precision.rsqrt())

    x, y = lines(20)
    written = handlers.closed_form(regression, {"b": update})
    plain, _ = fitted(regression, x, y, accelerate=False, tol=1e-10)
    fast, _ = fitted(written, x, y, tol=1e-10)
    assert float(fast.elbo[-1]) == pytest.approx(float(plain.elbo[-1]), rel=1e-8)
    data = ratings(60, 5, 6, 1.0)
    plain, _ = fitted(crossed, *data, blocks=[("a", "mu")], accelerate=False, tol=1e-10)
    fast, _ = fitted(crossed, *data, blocks=[("a", "mu")], tol=1e-10)
    assert fast.moves["point"] > 0
    assert float(fast.elbo[-1]) == pytest.approx(float(plain.elbo[-1]), rel=1e-8)


def test_data_of_another_kind_forgets_what_was_remembered() -> None:
    """A guide that goes on with other data is not pulled to where the last ones were going."""
    data, other = ratings(60, 5, 6, 1.0), ratings(60, 5, 6, 1.0)
    guide = AutoConjugate(crossed)
    cavi = CAVI(crossed, guide, accelerate=True)
    cavi.run(*data, tol=1e-8)
    result = cavi.run(other[0] + 5, *other[1:], tol=1e-12)
    fresh, _ = fitted(crossed, other[0] + 5, *other[1:], tol=1e-12)
    assert falls(result) < 1e-12
    assert float(result.elbo[-1]) == pytest.approx(float(fresh.elbo[-1]), rel=1e-9)


def test_what_it_does_not_go_with_is_an_error() -> None:
    guide = AutoConjugate(batch_mixture)
    with pytest.raises(ArgumentError, match="Expected accelerate on all of the data; got a step_size"):
        CAVI(batch_mixture, guide, accelerate=True, step_size=RobbinsMonro())
    with pytest.raises(ArgumentError, match="Expected accelerate on all of the data; got memoised=True"):
        CAVI(batch_mixture, guide, accelerate=True, memoised=True)
    with pytest.raises(ArgumentError, match="merges=True or accelerate=True; got both"):
        CAVI(batch_mixture, guide, accelerate=True, merges=True)
    with pytest.raises(ArgumentError, match="accelerate"):
        CAVI(batch_mixture, guide, accelerate=2)  # type: ignore[arg-type]
