"""Checkpoints: a killed run, resumed, ends where the unkilled one does; files are whole, safe, and checked."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_models import batch_mixture as mixture
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

from pyro_latent import CAVI, EM, AutoConjugate, CheckpointError, RobbinsMonro
from pyro_latent.checkpoint import Run, fingerprint, read_checkpoint, write_checkpoint
from pyro_latent.gradient.monte_carlo_em import MonteCarloEM


def likelihood(x: Tensor) -> None:
    mean = pyro.param("mean", x.new_tensor([-2.0, 0.5, 2.0]))
    scale = pyro.param("scale", x.new_ones(3), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(x.new_ones(3) / 3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mean[z], scale[z]), obs=x)


def clusters(count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)[torch.randint(3, (count,), generator=generator)]
    return centre + torch.randn(count, generator=generator, dtype=torch.float64)


class Killed(Exception):
    """What ends a run in these tests, at any step."""


def killer(step: int) -> Callable[[int, float], None]:
    def callback(steps: int, elbo: float) -> None:
        if steps == step:
            raise Killed

    return callback


def batches(x: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x), batch_size=60, shuffle=True)


RUNS: dict[str, Callable[[Tensor, dict[str, Any]], Any]] = {
    "coordinate ascent": lambda x, more: CAVI(mixture, AutoConjugate(mixture)).run(x, tol=1e-9, **more),
    "several starts": lambda x, more: CAVI(mixture, AutoConjugate(mixture, restarts=3)).run(x, tol=1e-9, **more),
    "em": lambda x, more: EM(likelihood).run(x, tol=1e-10, **more),
    "stochastic": lambda x, more: CAVI(mixture, AutoConjugate(mixture), step_size=RobbinsMonro()).run_batches(
        batches(x), epochs=2, size=400, **more
    ),
    "memoised": lambda x, more: CAVI(mixture, AutoConjugate(mixture), memoised=True).run_batches(
        [(p,) for p in x.split(100)], epochs=4, size=400, **more
    ),
    "structured": lambda x, more: CAVI(
        mixture, AutoConjugate(mixture), step_size=RobbinsMonro(), structured=3
    ).run_batches(batches(x), epochs=2, size=400, **more),
}


@functools.cache
def unkilled(name: str) -> Any:
    torch.manual_seed(7)
    whole = RUNS[name](clusters(), {})
    pyro.clear_param_store()
    return whole


@pytest.mark.parametrize("step", [1, 4, 9])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_ends_where_the_unkilled_one_does(name: str, step: int, tmp_path: Path) -> None:
    x, path = clusters(), tmp_path / "run.pt"
    whole = unkilled(name)
    torch.manual_seed(7)
    with pytest.raises(Killed):
        RUNS[name](x, {"checkpoint": path, "checkpoint_every": 2, "callback": killer(step)})
    if not path.exists():  # killed before the first write: the run starts anew, from the seed
        torch.manual_seed(7)
    else:
        torch.manual_seed(99)
    pyro.clear_param_store()
    resumed = RUNS[name](x, {"checkpoint": path, "checkpoint_every": 2})
    pyro.clear_param_store()
    torch.testing.assert_close(resumed.elbo, whole.elbo, rtol=1e-11, atol=1e-11)
    assert (resumed.num_steps, resumed.converged) == (whole.num_steps, whole.converged)


@pytest.mark.parametrize("own_generator", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_killed_at_the_end_of_a_pass_goes_on_with_the_next(own_generator: bool, tmp_path: Path) -> None:
    x, path = clusters(), tmp_path / "run.pt"

    def run(**more: Any) -> Any:
        generator = torch.Generator().manual_seed(5) if own_generator else None
        loader = DataLoader(TensorDataset(x), batch_size=60, shuffle=True, generator=generator)
        driver = CAVI(mixture, AutoConjugate(mixture), step_size=RobbinsMonro())
        return driver.run_batches(loader, epochs=3, size=400, **more)

    torch.manual_seed(7)
    whole = run()
    for kill, every in ((8, 7), (11, 5)):
        torch.manual_seed(7)
        path.unlink(missing_ok=True)
        with pytest.raises(Killed):
            run(checkpoint=path, checkpoint_every=every, callback=killer(kill))
        torch.manual_seed(99)
        torch.testing.assert_close(run(checkpoint=path, checkpoint_every=every).elbo, whole.elbo, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", ["coordinate ascent", "em", "stochastic", "memoised"])
def test_a_finished_run_that_is_started_again_returns_what_it_reached(name: str, tmp_path: Path) -> None:
    x = clusters()
    torch.manual_seed(7)
    first = RUNS[name](x, {"checkpoint": tmp_path / "run.pt"})
    pyro.clear_param_store()
    again = RUNS[name](x, {"checkpoint": tmp_path / "run.pt"})
    pyro.clear_param_store()
    assert torch.equal(again.elbo, first.elbo)


def test_loaded_parameters_go_before_those_in_the_store(tmp_path: Path) -> None:
    x = clusters()
    driver = EM(likelihood)
    driver.run(x)
    fitted = driver.guide.params()["mean"]
    driver.save(tmp_path / "em.pt")
    pyro.clear_param_store()
    pyro.param("mean", x.new_tensor([-1.0, 0.0, 1.0]))
    other = EM(likelihood)
    other.load(tmp_path / "em.pt")
    other.step(x)
    torch.testing.assert_close(other.guide.params()["mean"], fitted, atol=1e-3, rtol=0)
    pyro.clear_param_store()


def test_a_checkpoint_of_other_batches_is_refused(tmp_path: Path) -> None:
    x, path = clusters(), tmp_path / "run.pt"
    CAVI(mixture, AutoConjugate(mixture), step_size=0.5).run_batches(batches(x), size=400, checkpoint=path)
    with pytest.raises(CheckpointError, match="with the same data"):
        CAVI(mixture, AutoConjugate(mixture), step_size=0.5).run_batches(batches(x + 50), size=400, checkpoint=path)


def hierarchical(x: Tensor) -> None:
    """A continuous latent for each row: the E-step of Monte Carlo EM is a chain."""
    spread = pyro.param("spread", x.new_tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), spread))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Interrupted(MonteCarloEM):
    """A run that is killed in a step."""

    left = 3

    def step(self, *args: Any, **kwargs: Any) -> float:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().step(*args, **kwargs)


@pytest.mark.parametrize("model", [likelihood, hierarchical])
def test_monte_carlo_em_that_was_killed_ends_where_the_unkilled_one_does(
    model: Callable[..., Any], tmp_path: Path
) -> None:
    x, path = clusters(12), tmp_path / "run.pt"
    settings: dict[str, Any] = {"num_samples": 5, "warmup": 10, "burn_in": 2, "max_tree_depth": 3}
    torch.manual_seed(7)
    whole = MonteCarloEM(model, **settings).run(x, max_steps=5)
    pyro.clear_param_store()
    torch.manual_seed(7)
    with pytest.raises(Killed):
        Interrupted(model, **settings).run(x, max_steps=5, checkpoint=path, checkpoint_every=2)
    pyro.clear_param_store()
    torch.manual_seed(99)
    resumed = MonteCarloEM(model, **settings).run(x, max_steps=5, checkpoint=path)
    torch.testing.assert_close(resumed.q_function, whole.q_function, rtol=1e-9, atol=1e-9)
    for name, values in whole.params.items():
        torch.testing.assert_close(resumed.params[name], values, rtol=1e-9, atol=1e-9)
    with pytest.raises(CheckpointError, match="Expected a checkpoint with the same data"):
        MonteCarloEM(model, **settings).run(x + 1, max_steps=5, checkpoint=path)


SCRIPT = """
import sys, time
import torch
sys.path.append("tests")
from test_checkpoint import clusters, mixture
from pyro_latent import CAVI, AutoConjugate

torch.manual_seed(7)
CAVI(mixture, AutoConjugate(mixture)).run(
    clusters(), tol=0, max_steps=60, checkpoint=sys.argv[1], checkpoint_every=1, callback=lambda *_: time.sleep(0.1)
)
"""


def test_a_process_that_is_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    root, path = Path(__file__).parent.parent, tmp_path / "killed.pt"
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=root, env=environment)
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.communicate()
    read_checkpoint(path, "CAVI")
    torch.manual_seed(7)
    whole = CAVI(mixture, AutoConjugate(mixture)).run(clusters(), tol=0, max_steps=60)
    torch.manual_seed(99)
    resumed = CAVI(mixture, AutoConjugate(mixture)).run(clusters(), tol=0, max_steps=60, checkpoint=path)
    assert resumed.num_steps == whole.num_steps == 60
    torch.testing.assert_close(resumed.elbo, whole.elbo, rtol=1e-12, atol=0)


def test_save_and_load_keep_a_loop_of_steps(tmp_path: Path) -> None:
    x = clusters()
    driver = CAVI(mixture, AutoConjugate(mixture), step_size=0.5)
    for _ in range(3):
        driver.step(x[:100], 400)
    driver.save(tmp_path / "steps.pt")
    expected = [driver.step(piece, 400) for piece in x.split(100)]
    other = CAVI(mixture, AutoConjugate(mixture), step_size=0.5)
    other.load(tmp_path / "steps.pt")
    assert [other.step(piece, 400) for piece in x.split(100)] == pytest.approx(expected, rel=1e-12)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    x, path = clusters(), tmp_path / "run.pt"
    CAVI(mixture, AutoConjugate(mixture)).run(x, max_steps=3, checkpoint=path)
    with pytest.raises(CheckpointError, match="with the same data"):
        CAVI(mixture, AutoConjugate(mixture)).run(x + 1, max_steps=5, checkpoint=path)
    with pytest.raises(CheckpointError, match="local_steps"):
        CAVI(mixture, AutoConjugate(mixture), local_steps=2).run(x, max_steps=5, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"of EM .*one of CAVI"):
        EM(likelihood).run(x, max_steps=5, checkpoint=path)


def _written(path: Path) -> Path:
    write_checkpoint(path, "CAVI", {})
    return path


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    write_checkpoint(path, "CAVI", {"a": torch.ones(2)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="does not load"):
        read_checkpoint(path, "CAVI")
    for cut in range(0, len(whole), 7):
        for damaged in (whole[:cut], whole[:cut] + b"\x00\xff" + whole[cut + 2 :], b"junk" + whole[:cut]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                read_checkpoint(path, "CAVI")
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match="got another file"):
        read_checkpoint(path, "CAVI")
    torch.save({"format": torch.load(_written(path), weights_only=True)["format"]}, path)
    with pytest.raises(CheckpointError, match="whose bytes have changed"):
        read_checkpoint(path, "CAVI")
    with pytest.raises(CheckpointError, match=r"of EM .*got one of CAVI"):
        read_checkpoint(_written(path), "EM")
    with pytest.raises(CheckpointError, match="folder"):
        write_checkpoint(tmp_path / "none" / "a.pt", "CAVI", {})


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    write_checkpoint(path, "CAVI", {"a": 1})
    with pytest.raises(CheckpointError, match=r"Expected tensors, numbers.*; got function at \['a'\]"):
        write_checkpoint(path, "CAVI", {"a": lambda: 1})
    assert read_checkpoint(path, "CAVI") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["some.pt"]


@dataclass
class Record:
    """What a model may be given in the place of tensors."""

    rows: Tensor
    name: str = "a"


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (torch.ones(3), torch.ones(3, dtype=torch.float64)),
        (torch.ones(2, 3), torch.ones(3, 2)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        ([torch.ones(2), torch.zeros(1)], [torch.ones(2), torch.zeros(1), None]),
        ([[1, 2], [3]], [[1], [2, 3]]),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        (1, True),
        (1, 1.0),
        ("1", 1),
        (Record(torch.ones(2)), Record(torch.zeros(2))),
        (Record(torch.ones(2)), Record(torch.ones(2), "b")),
    ],
    ids=str,
)
def test_unequal_data_have_unequal_fingerprints(here: Any, there: Any) -> None:
    assert fingerprint(here) != fingerprint(there)


def test_equal_data_have_equal_fingerprints_whatever_holds_them() -> None:
    rows = torch.arange(6.0).reshape(2, 3)
    for same in (rows.clone(), rows.numpy(), rows.mT.contiguous().mT, rows.to_sparse(), rows.requires_grad_()):
        assert fingerprint([same, "a"]) == fingerprint((rows, "a"))
    assert fingerprint(rows[:1, 0]) == fingerprint(torch.zeros(1))  # of one element, whatever its stride
    assert fingerprint(Record(rows), {"size": 3}) == fingerprint(Record(rows.clone()), {"size": 3})


def test_a_run_is_kept_at_its_turns_and_at_its_end_and_never_twice(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    written: list[int] = []

    def keep(run: Run, step: int, last: bool) -> None:
        def state() -> dict[str, Any]:
            written.append(step)
            return {"at": step}

        run.keep(step, state, last)

    run = Run(path, "some", every=2, data={"x": torch.ones(2)})
    for step in (0, 1, 2, 3, 4, 5, 5):
        keep(run, step, last=step == 5)
    assert written == [0, 2, 4, 5]
    again = Run(path, "some", data={"x": torch.ones(2)})
    state = again.read()
    assert state is not None and state["at"] == 5
    keep(again, 5, last=True)
    keep(Run(None, "some", data={"x": None}), 7, last=True)
    assert written == [0, 2, 4, 5]


def test_a_run_compares_data_and_the_settings_that_both_know(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    Run(path, "some", data={"x": torch.ones(2), "held_out": None}, settings={"rate": 0.5, "old": 1}).keep(1, dict)
    assert Run(path, "some", data={"x": torch.ones(2), "held_out": None}, settings={"rate": 0.5, "new": 2}).read()
    for data, settings, words in [
        ({"x": torch.ones(2), "held_out": None}, {"rate": 0.1}, r"with rate = 0\.1 in .*; got one with 0\.5\. Delete"),
        ({"x": torch.ones(3), "held_out": None}, {}, "with the same x in .*; got one with others"),
        ({"x": torch.ones(2), "held_out": torch.ones(1)}, {}, "with the same held_out in .*; got one with no held_out"),
        ({"x": None, "held_out": None}, {}, "with no x in .*; got one with others"),
    ]:
        with pytest.raises(CheckpointError, match=f"Expected a checkpoint {words}"):
            Run(path, "some", data=data, settings=settings).read()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected checkpoint_every to be an integer of at least 1; got 0"):
        Run(path, "some", every=0, data={})


def test_a_checkpoint_of_another_release_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"format": "pyro_latent checkpoint 1", "kind": "CAVI", "content": {}}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"got a pyro_latent checkpoint 1, of another release\. Name another"):
        read_checkpoint(tmp_path / "run.pt", "CAVI")
