"""Where the data are on an accelerator, so is all that is made of them, and a sweep waits for it once.

The accelerator is :class:`accelerator.Accelerator`, which is played on the CPU; ``test_gpu.py`` is for a real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed as td
from accelerator import Accelerator
from shared_models import batch_mixture
from test_gpu import factorization, rows, walk
from torch import Tensor
from torch.distributions import constraints

from pyro_latent import CAVI, EM, AutoConjugate, Gibbs
from pyro_latent.models import gmm, normal_gamma

#: The sweeps that are counted come after these: the first ones make what is kept.
FIRST, LAST = 2, 3


def regression(x: Tensor, y: Tensor) -> None:
    one = x.new_ones(())
    precision = pyro.sample("precision", dist.Gamma(one, one))
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[1]), precision.rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, precision.rsqrt()), obs=y)


def chain(x: Tensor) -> None:
    rows_ = pyro.sample("rows", dist.Dirichlet(x.new_ones(2, 2)).to_event(1))
    with pyro.plate("states", 2):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 5.0))
    z: Any = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(rows_[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(mean[z], 1.0), obs=x[t])


def documents(words: Tensor) -> None:
    one = torch.ones(2, dtype=torch.float64, device=words.device)
    with pyro.plate("each_topic", 2):
        topics = pyro.sample("topics", dist.Dirichlet(one[:1].expand(6)))
    with pyro.plate("documents", len(words), dim=-2):
        shares = pyro.sample("shares", dist.Dirichlet(one))
        with pyro.plate("places", words.shape[1], dim=-1):
            z = pyro.sample("z", dist.Categorical(shares))
            pyro.sample("words", dist.Categorical(topics[z]), obs=words)


def maximum(x: Tensor) -> None:
    weights = pyro.param("weights", x.new_full((2,), 0.5), constraint=constraints.simplex)
    mean = pyro.param("mean", x.new_tensor([-1.0, 1.0]))
    scale = pyro.param("scale", x.new_ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], scale[z]), obs=x)


class Case(NamedTuple):
    """A model, its arguments, options of its guide, and how often a sweep may wait beside the once that all do."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = {}
    more: int = 0


POINTS = rows(12, 2) + 6 * (torch.arange(12) % 2).double()[:, None]
CASES = {
    "normal and gamma": Case(normal_gamma.model, (rows(50, 1)[:, 0],)),
    "joint block": Case(normal_gamma.model, (rows(50, 1)[:, 0],), {"blocks": [("mean", "precision")]}),
    "mixture": Case(gmm.model, (POINTS.float(), 2), {"restarts": 3, "blocks": [("mean", "precision")]}),
    "regression": Case(regression, (rows(9, 3), rows(9, 3).sum(1)), {"blocks": [("weights", "precision")]}),
    "chain": Case(chain, (POINTS[:4, 0],)),
    "documents": Case(documents, (torch.arange(20).reshape(4, 5) % 6,)),
    "quadrature": Case(walk, (rows(3, 1)[:, 0].cumsum(0),), {"blocks": ["x_*"]}, 5),  # until its integral settles
    "sums of rates": Case(factorization, (rows(6, 5).exp().round(),), {"reparam": True}, 3),  # at each of them
}
SETTINGS: list[dict[str, Any]] = [{"annealing": 5}, {"local_steps": 3}]


def watched(make: Callable[[], Any], args: tuple[Any, ...], accelerator: Accelerator) -> tuple[Any, Counter[str]]:
    """The driver after a run with its data on the accelerator, and what the sweeps between two read there."""
    after: dict[int, Counter[str]] = {}

    def note(step: int, elbo: float) -> None:
        after[step] = accelerator.reads + accelerator.uploads

    there = [accelerator.put(a) if isinstance(a, Tensor) else a for a in args]
    with accelerator.entered():
        driver = make()
        driver.run(*there, max_steps=LAST, tol=0, callback=note)
    assert all(accelerator.holds(buffer) for buffer in driver.guide.buffers())
    return driver, after[LAST] - after[FIRST]


def assert_once(found: Counter[str], more: int = 0) -> None:
    """Each sweep reads the ELBO with the flags of its updates, at its end, and waits no more often than allowed."""
    sweeps = LAST - FIRST
    ends = [n for line, n in found.items() if line.startswith("tolist") and "checked" in line]
    assert ends == [sweeps]
    assert found.total() <= sweeps * (1 + more), found


@pytest.mark.parametrize("name", CASES)
def test_a_sweep_waits_once(name: str) -> None:
    """Its numbers are those of the CPU, where other branches may be taken."""
    case, accelerator = CASES[name], Accelerator()
    driver, found = watched(lambda: CAVI(case.model, AutoConjugate(case.model, **case.options)), case.args, accelerator)
    assert_once(found, case.more)
    plain = CAVI(case.model, AutoConjugate(case.model, **case.options))
    expected = plain.run(*case.args, max_steps=LAST, tol=0).elbo[-1]
    assert driver.guide.posterior_state.fit.elbo == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Expected more steps than those of annealing")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_so_do_sweeps_at_temperatures_and_local_rounds(settings: dict[str, Any]) -> None:
    _, found = watched(lambda: CAVI(gmm.model, AutoConjugate(gmm.model), **settings), (POINTS, 2), Accelerator())
    assert_once(found)


@pytest.mark.parametrize(("m_step", "more"), [("conditional", 0), ("closed_form", 8)])
def test_an_m_step_waits_with_its_sweep(m_step: str, more: int) -> None:
    """One until no parameter moves waits at each visit to those that share a term."""
    pyro.clear_param_store()
    _, found = watched(lambda: EM(maximum, m_step=m_step), (POINTS[:, 0],), Accelerator())  # type: ignore[arg-type]
    waits = found.total() / (LAST - FIRST)
    assert waits == 1 if more == 0 else waits <= 1 + more


@pytest.mark.parametrize("settings", [{"step_size": 0.5}, {"memoised": True}, {"step_size": 0.5, "structured": 2}])
def test_minibatches_stay_there(settings: dict[str, Any]) -> None:
    accelerator = Accelerator()
    start = {"mean": accelerator.put(torch.tensor([-1.0, 1.0, 8.0], dtype=torch.float64))}
    batches = [(accelerator.put(part),) for part in POINTS[:, 0].split(6)]
    with accelerator.entered():
        guide = AutoConjugate(batch_mixture, init=start)
        CAVI(batch_mixture, guide, **settings).run_batches(batches, epochs=2, tol=0.0, size=len(POINTS))
    assert all(accelerator.holds(buffer) for buffer in guide.buffers())


@pytest.mark.skipif(not td.is_gloo_available(), reason="needs torch.distributed with gloo")
def test_sums_over_processes_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep waits for its updates, for what its shard says, for the sum and whether all have gone on, and for the
    ELBO; a callback is asked for in all processes. Collectives are played, for they make tensors of their own.
    """

    def gather(found: list[Any], item: Any, group: Any = None) -> None:
        found[0] = item

    td.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for name in ("all_reduce", "broadcast_object_list", "monitored_barrier"):
            monkeypatch.setattr(td, name, lambda *_, **__: None)
        monkeypatch.setattr(td, "all_gather_object", gather)
        accelerator, start = Accelerator(), torch.tensor([-1.0, 1.0, 8.0], dtype=torch.float64)

        def make() -> CAVI:
            guide = AutoConjugate(batch_mixture, init={"mean": accelerator.put(start)})
            return CAVI(batch_mixture, guide, process_group=td.group.WORLD)

        _, found = watched(make, (POINTS[:, 0], len(POINTS)), accelerator)
    finally:
        td.destroy_process_group()
    ranks = Counter({line: n for line, n in found.items() if "ranks.py" in line or "new_tensor" in line})
    assert (found - ranks).total() == 3 * (LAST - FIRST)
    assert sum("any" not in line for line in ranks) <= 2


@pytest.mark.parametrize("settings", [{"merges": True}, {"accelerate": True}], ids=str)
def test_moves_and_extrapolated_points_stay_there(settings: dict[str, Any]) -> None:
    watched(lambda: CAVI(gmm.model, AutoConjugate(gmm.model), **settings), (POINTS, 2), Accelerator())


def test_steps_by_gradient_stay_there() -> None:
    pyro.clear_param_store()
    watched(lambda: EM(maximum, m_step="gradient", gradient_steps=3), (POINTS[:, 0],), Accelerator())


def test_what_a_guide_and_gibbs_draw_is_there() -> None:
    accelerator = Accelerator()
    points = accelerator.put(POINTS)
    with accelerator.entered():
        guide = AutoConjugate(gmm.model)
        CAVI(gmm.model, guide).run(points, 2, max_steps=2)
        drawn = guide(points, 2)
        drawn |= guide.quantiles([0.5]) | dict(guide.predict(points, 2, num_samples=2).latents)
        sampler = Gibbs(gmm.model, num_samples=2, num_chains=2)
        sampler.run(points, 2)
        drawn |= sampler.get_samples()
    assert drawn
    assert all(accelerator.holds(value) for value in drawn.values())


def test_the_accelerator_refuses_what_a_real_one_does() -> None:
    """Two devices do not mix, but for scalars; what is made without a device is not there; reads are counted."""
    accelerator = Accelerator()
    there, here = accelerator.put(torch.ones(3)), torch.ones(3)
    with accelerator.entered():
        with pytest.raises(RuntimeError, match="on the same device"):
            there + here
        with pytest.raises(RuntimeError, match="on the same device"):
            there[:2] * torch.arange(2)
        kept = [there + 1, there * torch.tensor(2.0), here.to(there), torch.arange(3, device=there.device), there[:1]]
        assert all(accelerator.holds(value) for value in kept)
        assert not accelerator.holds(here)
        assert not accelerator.reads
        float(there.sum()), there.tolist(), bool((here > 0).all())
        assert accelerator.reads.total() == 2
