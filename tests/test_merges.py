"""Moves between components: the ELBO never falls, what is refused leaves no trace, and the right number remains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from shared_models import batch_mixture, gaussian
from torch import Tensor

from benchmarks.merges import clusters, mixture, sticks
from pyro_latent import CAVI, ArgumentError, AutoConjugate, ModelError, RobbinsMonro, handlers
from pyro_latent.ascent import moves
from pyro_latent.models import gmm, lda

pytestmark = pytest.mark.usefixtures("float64")


def masses_of(guide: AutoConjugate) -> Tensor:
    """The expected number of observations of each component."""
    return guide.posterior()["z"].probs.reshape(-1, guide.posterior()["z"].probs.shape[-1]).sum(0)


def falls(elbo: Tensor) -> float:
    """The largest fall of an ELBO from sweep to sweep, relative to it."""
    return float((-elbo.diff() / elbo[1:].abs()).max())


@pytest.mark.parametrize(("model", "count"), [(mixture, 6), (sticks, 5)])
def test_from_thirty_components_the_right_number_remains(model: Callable[..., None], count: int) -> None:
    """The run ends above that of the same start without moves."""
    x = clusters(count, 600)
    plain = CAVI(model, AutoConjugate(model, init=0)).run(x, tol=1e-6)
    guide = AutoConjugate(model, init=0)
    result = CAVI(model, guide, merges=True).run(x, tol=1e-6)
    assert result.converged
    assert int((masses_of(guide) > 1).sum()) == count
    assert result.moves["merge"] >= 1
    assert float(result.elbo[-1]) > float(plain.elbo[-1])
    assert falls(result.elbo) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("model", [mixture, sticks])
@pytest.mark.parametrize("count", [6, 8])
def test_each_of_five_starts_ends_at_least_where_the_best_without_moves_does(
    model: Callable[..., None], count: int
) -> None:
    x = clusters(count, seed=count)
    plain = CAVI(model, AutoConjugate(model, init=0, restarts=5)).run(x, tol=1e-7)
    for seed in range(5):
        guide = AutoConjugate(model, init=seed)
        result = CAVI(model, guide, merges=True).run(x, tol=1e-7)
        assert int((masses_of(guide) > 1).sum()) == count
        assert float(result.elbo[-1]) > float(plain.restarts.max()) - 1e-3


def test_components_of_broken_sticks_end_in_order_of_size() -> None:
    x = torch.cat([torch.randn(30, 2) - 8, torch.randn(120, 2) + 8])
    guide = AutoConjugate(sticks, init={"z": F.one_hot((torch.arange(150) >= 30).long(), 6).double()})
    result = CAVI(sticks, guide, merges=True).run(x, 6)
    assert result.moves["order"] >= 1
    masses = masses_of(guide)
    assert bool((masses.diff() < 0.1).all())
    torch.testing.assert_close(masses[:2], torch.tensor([120.0, 30.0]), atol=0.5, rtol=0)


def test_what_is_refused_leaves_everything_bit_for_bit() -> None:
    """Two clusters far apart: every move costs nats, and the run is that without moves."""
    x = torch.cat([torch.randn(40, 2) - 8, torch.randn(50, 2) + 8])
    guides = [AutoConjugate(mixture, init=0) for _ in range(2)]
    plain, moving = CAVI(mixture, guides[0]), CAVI(mixture, guides[1], merges=True)
    for _ in range(6):
        assert plain.step(x, 2) == moving.step(x, 2)
        for key, natural in guides[0].state.items():
            assert all(t.equal(guides[1].state[key][n]) for n, t in natural.items())
    assert moving.run(x, 2).moves == {}


def test_moves_that_would_lower_the_elbo_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is proposed: here the merges that look worst come first."""
    proposed = moves.Mover._candidates
    monkeypatch.setattr(moves.Mover, "_candidates", lambda self, point: iter(list(proposed(self, point))[::-1]))
    result = CAVI(mixture, AutoConjugate(mixture, init=0), merges=True).run(clusters(4, 300), 12, tol=1e-6)
    assert falls(result.elbo) < 1e-12
    assert result.moves


def test_deletes_alone_reach_the_right_number(monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = moves.Mover._candidates

    def deletes(self: moves.Mover, point: moves.Candidate) -> Iterator[moves.Move]:
        return (move for move in proposed(self, point) if move[0] == "delete")

    monkeypatch.setattr(moves.Mover, "_candidates", deletes)
    guide = AutoConjugate(mixture, init=0)
    result = CAVI(mixture, guide, merges=True).run(clusters(3, 200), 8, tol=1e-6)
    assert int((masses_of(guide) > 1).sum()) == 3
    assert set(result.moves) == {"delete"}
    assert falls(result.elbo) < 1e-12


def test_what_was_refused_for_other_data_is_tried_again() -> None:
    """So one driver can fit one part of the data after another."""
    guide = AutoConjugate(mixture, init=0)
    cavi = CAVI(mixture, guide, merges=True)
    cavi.run(clusters(4, 150), 10)
    other = clusters(3, 150, seed=5)
    result = cavi.run(other, 10)
    assert result.converged
    assert falls(result.elbo) < 1e-12
    again = CAVI(mixture, guide, merges=True).run(other, 10)
    assert again.moves == {}
    assert float(again.elbo[-1]) == pytest.approx(float(result.elbo[-1]), abs=1e-3)


def test_each_of_several_starts_has_moves_of_its_own() -> None:
    x = clusters(4, 150)
    guide = AutoConjugate(mixture, init=0, restarts=2)
    result = CAVI(mixture, guide, merges=True).run(x, 10, tol=1e-7)
    plain = CAVI(mixture, AutoConjugate(mixture, init=0, restarts=2)).run(x, 10, tol=1e-7)
    assert bool((result.restarts >= plain.restarts - 1e-6).all())
    assert int((masses_of(guide) > 1).sum()) == 4
    assert -CAVI(mixture, guide).evaluate_loss(x, 10) == pytest.approx(float(result.elbo[-1]), rel=1e-12)


@pytest.mark.parametrize("cut", [2, 9])
def test_a_run_that_is_cut_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    x = clusters(4, 200)

    def made() -> CAVI:
        return CAVI(mixture, AutoConjugate(mixture, init=1, restarts=2), merges=True)

    whole = made().run(x, 10, tol=1e-7)
    path = tmp_path / "run.pt"
    made().run(x, 10, tol=1e-7, max_steps=cut, checkpoint=path)
    resumed = made().run(x, 10, tol=1e-7, checkpoint=path)
    assert resumed.elbo.equal(whole.elbo)
    assert resumed.moves == whole.moves and resumed.converged


def test_written_updates_move_as_the_derived_ones_do(old_faithful: Tensor) -> None:
    found = []
    for model in (gmm.model, handlers.closed_form(gmm.model, gmm.updates)):
        guide = AutoConjugate(model, blocks=[("mean", "precision")], init=0)
        found.append(CAVI(model, guide, merges=True).run(old_faithful, 6, tol=1e-8))
    assert found[0].moves == found[1].moves and found[0].moves["merge"] >= 2
    torch.testing.assert_close(found[0].elbo, found[1].elbo, rtol=1e-8, atol=0)


def states(x: Tensor, k: int = 4) -> None:
    """A hidden Markov model."""
    with pyro.plate("states", k):
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(k)))
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 10.0))
    state: Any = 0
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"z_{t}", dist.Categorical(rows[state]), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(mu[state], 1.0), obs=x[t])


@pytest.mark.slow
def test_states_of_a_chain_are_merged() -> None:
    """The states of every step are one set of components."""
    torch.manual_seed(0)
    own = (torch.arange(40) // 5) % 2
    x = 8.0 * own - 4 + torch.randn(40)
    guide = AutoConjugate(states, init=0)
    result = CAVI(states, guide, merges=True).run(x, tol=1e-6)
    plain = CAVI(states, AutoConjugate(states, init=0)).run(x, tol=1e-6)
    probs = torch.stack([guide.posterior()[f"z_{t}"].probs for t in range(40)])
    assert int((probs.sum(0) > 1).sum()) == 2
    assert falls(result.elbo) < 1e-12
    assert float(result.elbo[-1]) > float(plain.elbo[-1])


def two_kinds(x: Tensor, k: int = 5) -> None:
    """Each column has components of its own."""
    for i in range(2):
        weights = pyro.sample(f"weights_{i}", dist.Dirichlet(torch.ones(k)))
        with pyro.plate(f"components_{i}", k):
            mu = pyro.sample(f"mu_{i}", dist.Normal(torch.tensor(0.0), 8.0))
        with pyro.plate(f"data_{i}", len(x)):
            z = pyro.sample(f"z_{i}", dist.Categorical(weights))
            pyro.sample(f"x_{i}", dist.Normal(mu[z], 0.4), obs=x[:, i])


def test_components_of_two_kinds_are_moved_one_kind_at_a_time() -> None:
    torch.manual_seed(0)
    own = torch.stack([torch.randint(2, (120,)) * 6.0, torch.randint(3, (120,)) * 5.0], 1)
    guide = AutoConjugate(two_kinds, init=1)
    result = CAVI(two_kinds, guide, merges=True).run(own + 0.3 * torch.randn(120, 2), tol=1e-7)
    counts = [int((guide.posterior()[f"z_{i}"].probs.sum(0) > 1).sum()) for i in range(2)]
    assert counts == [2, 3]
    assert falls(result.elbo) < 1e-12


def corpus_of(seed: int, topics: int, documents: int) -> Any:
    """Documents of known topics."""
    torch.manual_seed(seed)
    known = torch.distributions.Dirichlet(torch.full((100,), 0.1)).sample((topics,))
    shares = torch.distributions.Dirichlet(torch.full((topics,), 0.3)).sample((documents,))
    return lda.as_corpus(torch.distributions.Multinomial(60, shares @ known).sample())


def topics_after(seed: int, corpus: Any, most: int) -> tuple[int, float, float]:
    """The topics with at least one percent of all words, and the ELBO with moves and without."""
    priors: dict[str, Any] = {"doc_topic_prior": 0.1, "topic_word_prior": 0.1}
    guide = AutoConjugate(lda.model, init=seed)
    result = CAVI(lda.model, guide, merges=True).run(corpus, most, tol=1e-6, **priors)
    assert falls(result.elbo) < 1e-12
    plain = CAVI(lda.model, AutoConjugate(lda.model, init=seed)).run(corpus, most, tol=1e-6, **priors)
    words = (guide.posterior()["theta"].concentration - 0.1).sum(0)
    return int((words > 0.01 * words.sum()).sum()), float(result.elbo[-1]), float(plain.elbo[-1])


def test_topics_that_are_not_needed_end_empty() -> None:
    count, moved, plain = topics_after(0, corpus_of(0, 4, 60), 10)
    assert count == 4
    assert moved > plain


def test_annealed_sweeps_come_before_the_moves() -> None:
    x = clusters(4, 200)
    guide = AutoConjugate(mixture, init=0)
    cavi = CAVI(mixture, guide, annealing=5, merges=True)
    for _ in range(4):
        cavi.step(x, 10)
    assert int((masses_of(guide) > 1).sum()) > 4
    result = cavi.run(x, 10, tol=1e-7)
    assert int((masses_of(guide) > 1).sum()) == 4
    assert falls(result.elbo[1:]) < 1e-12


def of_constants(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[z], 1.0), obs=x)


@pytest.mark.parametrize(("model", "got"), [(gaussian, "no discrete site"), (of_constants, "'z', whose values choose")])
def test_a_model_without_components_is_named(model: Callable[..., None], got: str) -> None:
    with pytest.raises(ModelError, match=f"Expected components to merge: .*; got {got}"):
        CAVI(model, AutoConjugate(model), merges=True).run(torch.randn(20))


@pytest.mark.parametrize("option", [{"step_size": RobbinsMonro()}, {"memoised": True}])
def test_moves_take_all_of_the_data(option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="Expected merges on all of the data; got"):
        CAVI(batch_mixture, AutoConjugate(batch_mixture), merges=True, **option)


def test_merges_is_true_or_false() -> None:
    with pytest.raises(ArgumentError, match="merges"):
        CAVI(mixture, AutoConjugate(mixture), merges="yes")  # type: ignore[arg-type]
