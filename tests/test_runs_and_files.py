"""Runs and their files under violence: other models and data, damage, interrupts, full disks, loaders of all kinds."""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from shared_models import batch_mixture as mixture
from test_checkpoint import Killed, clusters, killer, likelihood
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from pyro_latent import CAVI, EM, AutoConjugate, CheckpointError, RobbinsMonro
from pyro_latent import checkpoint as files
from pyro_latent.checkpoint import Run, plain, read_checkpoint, uninterrupted, write_checkpoint

pd = pytest.importorskip("pandas")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# Whose file it is.


def normal(scale: float = 1.0, spread: float = 10.0, kind: Any = dist.Normal) -> Callable[[Any], None]:
    def model(x: Any) -> None:
        x = torch.as_tensor(np.asarray(x), dtype=torch.float64)
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), spread))
        with pyro.plate("data", len(x)):
            pyro.sample("x", kind(mean, scale), obs=x)

    return model


def fit(model: Callable[..., Any], *args: Any, **more: Any) -> Any:
    return CAVI(model, AutoConjugate(model)).run(*args, max_steps=3, tol=0, **more)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (normal(scale=1.1), "another density of site 'x'"),
        (normal(spread=11.0), "another density of site 'mean'"),
    ],
)
def test_a_file_of_another_model_is_refused_though_the_arguments_are_the_same(
    other: Callable[..., Any], words: str, tmp_path: Path
) -> None:
    x = clusters(20)
    fit(normal(), x, checkpoint=tmp_path / "run.pt")
    fit(normal(), x, checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=words):
        fit(other, x, checkpoint=tmp_path / "run.pt")


def test_a_file_of_other_sites_is_refused(tmp_path: Path) -> None:
    x = clusters(20)
    fit(normal(), x, checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="the sites"):
        fit(mixture, x, checkpoint=tmp_path / "run.pt")


@pytest.mark.parametrize("holder", [pd.Series, np.asarray, list], ids=["Series", "array", "list"])
def test_a_file_of_other_data_is_refused_whatever_holds_them(holder: Any, tmp_path: Path) -> None:
    x = clusters(20)
    fit(normal(), holder(x.numpy()), checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"other data at site 'x'|another density of site 'x'"):
        fit(normal(), holder((x + 1e-9).numpy()), checkpoint=tmp_path / "run.pt")


def test_a_file_of_other_data_in_a_closure_is_refused(tmp_path: Path) -> None:
    def closing(x: Tensor) -> Callable[[], None]:
        def model() -> None:
            normal()(x)

        return model

    fit(closing(clusters(20)), checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"other data at site 'x'|another density of site 'x'"):
        fit(closing(clusters(20).flip(0)), checkpoint=tmp_path / "run.pt")


class Rows(Dataset[Tensor]):
    """A dataset of one's own, which makes its items."""

    def __init__(self, shift: float) -> None:
        self.x = clusters(120) + shift

    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> Tensor:
        return self.x[index] * 2.0


def test_a_file_of_another_dataset_is_refused(tmp_path: Path) -> None:
    def run(shift: float) -> Any:
        driver = CAVI(mixture, AutoConjugate(mixture, init=0), step_size=0.5)
        loader = DataLoader(Rows(shift), batch_size=60, shuffle=True)
        return driver.run_batches(loader, size=120, checkpoint=tmp_path / "run.pt")

    run(0.0)
    run(0.0)
    with pytest.raises(CheckpointError, match="with the same data"):
        run(1.0)


@pytest.mark.parametrize(
    "other",
    [{"m_step": "conditional"}, {"gradient_steps": 3}, {"restarts": 4}, {"init": 3}],
    ids=lambda o: next(iter(o)),
)
def test_a_file_of_other_settings_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    x = clusters(50)
    EM(likelihood).run(x, max_steps=2, checkpoint=tmp_path / "run.pt")
    pyro.clear_param_store()
    with pytest.raises(CheckpointError, match=f"with {next(iter(other))} = "):
        EM(likelihood, **other).run(x, max_steps=3, checkpoint=tmp_path / "run.pt")


# What is in it.


class Way(Enum):
    """A setting of one's own."""

    SLOW = "slow"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (Way.SLOW, "slow"),
        (Path("a/b"), os.path.join("a", "b")),
        (np.str_("a"), "a"),
        ({np.int64(1): [np.float32(0.5)]}, {1: [0.5]}),
    ],
)
def test_what_is_written_can_be_read(value: Any, kept: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", "some", {"value": value})
    found = read_checkpoint(tmp_path / "a.pt", "some")["value"]
    assert found == kept and type(found) is type(kept)


def test_a_run_with_numpy_settings_is_taken_up(tmp_path: Path) -> None:
    x = clusters(50)
    for _ in range(2):
        driver = CAVI(mixture, AutoConjugate(mixture, init=0), local_tol=np.float64(1e-3), local_steps=2)
        driver.run(x, 50, max_steps=3, tol=np.float64(0.0), checkpoint=tmp_path / "run.pt")
    assert plain({"a": np.float64(1.0)}) == {"a": 1.0}


def test_a_write_does_not_grow_much_with_the_history(tmp_path: Path) -> None:
    """Eight bytes a step and start, and eight for the end of a pass."""
    sizes = []
    for steps in (1, 201):
        path = tmp_path / f"{steps}.pt"
        model = normal()
        CAVI(model, AutoConjugate(model)).run(clusters(20), max_steps=steps, tol=0, checkpoint=path)
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] <= 200 * 16 + 64


# Damage.


def damaged(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Flipped bits, truncations and foreign bytes of a real checkpoint."""
    generator = random.Random(seed)
    path = Path(os.environ["PYTEST_CHECKPOINT"])
    whole = path.read_bytes()
    for _ in range(count):
        place, bit = generator.randrange(len(whole)), generator.randrange(8)
        yield "flip", whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
    for _ in range(count * 2 // 5):
        yield "cut", whole[: generator.randrange(len(whole))]


class Hostile:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch PWNED",))


def hostile(count: int, seed: int) -> Iterator[bytes]:
    """Pickles that would run code, alone, in torch's files, and under our own mark and digest."""
    generator = random.Random(seed)
    for i in range(count):
        content: Any = {"format": files._FORMAT, "kind": "CAVI", "content": {"a": Hostile()}}
        for _ in range(generator.randrange(3)):
            content = {"content": content, "kind": "CAVI", "format": files._FORMAT}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        payload = pickle.dumps(content) if i % 3 == 0 else buffer.getvalue()
        yield payload if i % 3 == 1 else payload + files._digest(payload) + files._MARK


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_every_flipped_bit_every_truncation_and_every_hostile_pickle_is_refused(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.pt"
    monkeypatch.chdir(tmp_path)
    model = normal()
    CAVI(model, AutoConjugate(model)).run(clusters(20), max_steps=2, checkpoint=path)
    monkeypatch.setenv("PYTEST_CHECKPOINT", str(tmp_path / "whole.pt"))
    (tmp_path / "whole.pt").write_bytes(path.read_bytes())
    for _, content in damaged(count, seed=count):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            CAVI(model, AutoConjugate(model)).run(clusters(20), max_steps=3, checkpoint=path)
    for content in hostile(count * 2 // 5, seed=count):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_checkpoint(path, "CAVI")
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("hole", [{}, {"guide": {}}, {"guide": None, "steps": None}, {"history": "no"}])
def test_a_whole_file_with_a_foreign_state_is_refused_and_the_guide_kept(hole: dict[str, Any], tmp_path: Path) -> None:
    x, path = clusters(50), tmp_path / "run.pt"
    driver = CAVI(mixture, AutoConjugate(mixture, init=0))
    driver.run(x, 50, max_steps=3, tol=0, checkpoint=path)
    content = read_checkpoint(path, "CAVI")
    content["state"] = hole
    write_checkpoint(path, "CAVI", content)
    before = {name: t.clone() for name, t in driver.guide.named_buffers()}
    with pytest.raises(CheckpointError, match="Expected"):
        driver.run(x, 50, max_steps=5, checkpoint=path)
    assert all(torch.equal(t, before[name]) for name, t in driver.guide.named_buffers())


# Interrupts.


def test_ctrl_c_waits_for_a_write_and_for_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in a write the interrupt comes, the new file is whole."""
    path = tmp_path / "a.pt"
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def interrupted(*args: Any, original: Any = original) -> Any:
            signal.raise_signal(signal.SIGINT)
            return original(*args)

        write_checkpoint(path, "some", {"a": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_checkpoint(path, "some", {"a": 2})
        assert read_checkpoint(path, "some") == {"a": 2}
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_an_interrupt_at_any_line_of_a_step_leaves_a_whole_guide() -> None:
    """All buffers are of one state: the ELBO of the guide is that of the last step or of the one before."""
    x = clusters(60)
    driver = CAVI(mixture, AutoConjugate(mixture, init=0))
    driver.step(x, 60)
    generator = random.Random(0)
    for _ in range(12):
        before = driver.guide.elbo(x, 60)
        delay = generator.random() * 0.02
        timer = threading.Timer(delay, lambda: signal.raise_signal(signal.SIGINT))
        try:
            timer.start()
            for _ in range(3):
                driver.step(x, 60)
            timer.join()
        except KeyboardInterrupt:
            pass
        finally:
            timer.cancel()
        assert driver.guide.elbo(x, 60) >= before - 1e-9 * abs(before)


def test_the_handler_of_the_interrupt_is_put_back_and_threads_have_none() -> None:
    before = signal.getsignal(signal.SIGINT)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    seen: list[Any] = []

    def other() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]


# Disks.


def test_a_disk_that_is_full_costs_a_warning_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = clusters(50), tmp_path / "run.pt"
    whole = CAVI(mixture, AutoConjugate(mixture, init=0)).run(x, 50, max_steps=12, tol=0)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.warns(
            UserWarning, match=r"Expected to write the checkpoint .*No space left.* The run goes on"
        ) as seen:
            driver = CAVI(mixture, AutoConjugate(mixture, init=0))
            found = driver.run(x, 50, max_steps=12, tol=0, checkpoint=path, checkpoint_every=2)
    assert len([w for w in seen if "No space" in str(w.message)]) == 1
    assert torch.equal(found.elbo, whole.elbo) and not any(tmp_path.iterdir())


def test_a_folder_that_is_not_there_costs_a_warning_and_the_file(tmp_path: Path) -> None:
    model = normal()
    with pytest.warns(
        UserWarning, match=r"Expected a folder .*; got none\. Make it first\. The run goes on without it"
    ):
        result = fit(model, clusters(20), checkpoint=tmp_path / "none" / "run.pt")
    assert result.num_steps == 3


def test_what_is_saved_by_hand_is_saved_or_an_error(tmp_path: Path) -> None:
    driver = CAVI(mixture, AutoConjugate(mixture, init=0))
    driver.step(clusters(50), 50)
    with pytest.raises(CheckpointError, match="Expected a folder"):
        driver.save(tmp_path / "none" / "run.pt")


def test_what_a_killed_write_left_is_replaced_and_links_and_rights_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real.pt", tmp_path / "link.pt"
    (tmp_path / ".real.pt.partial").write_bytes(b"cut")
    write_checkpoint(real, "some", {"a": 1})
    link.symlink_to(real)
    write_checkpoint(link, "some", {"a": 2})
    assert link.is_symlink() and read_checkpoint(real, "some") == {"a": 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.pt", "real.pt"]
    mask = os.umask(0)
    os.umask(mask)
    assert real.stat().st_mode & 0o777 == 0o666 & ~mask


# Loaders.


def shuffled_by_numpy(x: Tensor) -> DataLoader[Any]:
    class Shuffled(RandomSampler):
        """torch's sampler, in an order of NumPy's."""

        def __iter__(self) -> Iterator[int]:
            return iter(np.random.permutation(len(x)).tolist())

    return DataLoader(TensorDataset(x), batch_size=60, sampler=Shuffled(range(len(x))))


LOADERS: dict[str, Callable[[Tensor], Any]] = {
    "torch's generator": lambda x: DataLoader(TensorDataset(x), batch_size=60, shuffle=True),
    "a loader's generator": lambda x: DataLoader(
        TensorDataset(x), batch_size=60, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "a sampler's generator": lambda x: DataLoader(
        TensorDataset(x),
        batch_size=60,
        sampler=RandomSampler(range(len(x)), generator=torch.Generator().manual_seed(5)),
    ),
    "weights": lambda x: DataLoader(
        TensorDataset(x),
        batch_size=60,
        sampler=WeightedRandomSampler([1.0] * len(x), len(x), generator=torch.Generator().manual_seed(5)),
    ),
    "NumPy's order": shuffled_by_numpy,
    "a list": lambda x: [(part,) for part in x.split(60)],
}


@pytest.mark.filterwarnings("ignore:Expected batches that a resumed run can repeat")
@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("a loader's generator", range(1, 10)),
        *((name, (1, 3, 5)) for name in LOADERS if name != "a loader's generator"),
        *(pytest.param(name, range(1, 10), marks=pytest.mark.slow) for name in LOADERS),
    ],
)
def test_a_run_that_is_killed_after_any_step_of_any_loader_ends_where_the_unkilled_one_does(
    name: str, kills: Sequence[int], tmp_path: Path
) -> None:
    x, path = clusters(180), tmp_path / "run.pt"

    def run(**more: Any) -> Any:
        driver = CAVI(mixture, AutoConjugate(mixture, init=0), step_size=RobbinsMonro())
        return driver.run_batches(LOADERS[name](x), epochs=3, size=180, **more)

    torch.manual_seed(7)
    np.random.seed(7)
    whole = run()
    for kill in kills:
        path.unlink(missing_ok=True)
        torch.manual_seed(7)
        np.random.seed(7)
        with pytest.raises(Killed):
            run(checkpoint=path, checkpoint_every=1, callback=killer(kill))
        torch.manual_seed(99)
        np.random.seed(99)
        torch.testing.assert_close(run(checkpoint=path, checkpoint_every=1).elbo, whole.elbo, rtol=1e-11, atol=0)


class Stream(IterableDataset[Tensor]):
    """Rows without an end that anybody knows."""

    def __iter__(self) -> Iterator[Tensor]:
        yield from clusters(120)


class Own:
    """Batches of one's own."""

    def __iter__(self) -> Iterator[Any]:
        yield from ((part,) for part in clusters(120).split(60))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Stream(), batch_size=60), "a DataLoader over a stream"),
        (lambda: shuffled_by_numpy(clusters(120)), "a DataLoader with Shuffled"),
        (
            lambda: DataLoader(TensorDataset(clusters(120)), batch_size=60, num_workers=1, persistent_workers=True),
            "persistent workers, whose",
        ),
        (Own, "got Own"),
    ],
)
def test_a_loader_that_cannot_be_resumed_is_named_at_the_start(loader: Any, words: str, tmp_path: Path) -> None:
    driver = CAVI(mixture, AutoConjugate(mixture, init=0), step_size=0.5)
    with pytest.warns(UserWarning, match=f"Expected batches that a resumed run can repeat.*{words}"):
        driver.run_batches(loader(), size=120, checkpoint=tmp_path / "run.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CAVI(mixture, AutoConjugate(mixture, init=0), step_size=0.5).run_batches(Own(), size=120)


# Kills.

DRIVERS: dict[str, Callable[[Tensor, dict[str, Any]], Any]] = {
    "coordinate ascent": lambda x, more: CAVI(mixture, AutoConjugate(mixture, init=0)).run(
        x, len(x), max_steps=30, tol=0, **more
    ),
    "em": lambda x, more: EM(likelihood).run(x, max_steps=30, tol=0, **more),
    "stochastic": lambda x, more: CAVI(mixture, AutoConjugate(mixture, init=0), step_size=0.5).run_batches(
        DataLoader(TensorDataset(x), batch_size=60, shuffle=True), epochs=10, size=180, **more
    ),
    "memoised": lambda x, more: CAVI(mixture, AutoConjugate(mixture, init=0), memoised=True).run_batches(
        [(p,) for p in x.split(60)], epochs=10, tol=0, size=180, **more
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kills", [60])
@pytest.mark.parametrize("name", DRIVERS)
def test_a_run_that_is_killed_again_and_again_ends_where_the_unkilled_one_does(
    name: str, kills: int, tmp_path: Path
) -> None:
    x, path, generator = clusters(180), tmp_path / "run.pt", random.Random(3)
    torch.manual_seed(7)
    whole = DRIVERS[name](x, {})
    for _ in range(max(1, kills // 3)):
        path.unlink(missing_ok=True)
        pyro.clear_param_store()
        done = 0
        for _ in range(3):
            done += generator.randrange(1, 12)
            if done >= 30:
                break
            torch.manual_seed(7 if not path.exists() else 99)
            with pytest.raises(Killed):
                DRIVERS[name](x, {"checkpoint": path, "checkpoint_every": 1, "callback": killer(done)})
            pyro.clear_param_store()
        torch.manual_seed(7 if not path.exists() else 99)
        found = DRIVERS[name](x, {"checkpoint": path, "checkpoint_every": 1})
        torch.testing.assert_close(found.elbo, whole.elbo, rtol=1e-11, atol=0)
    pyro.clear_param_store()


def test_a_run_of_files_knows_its_data_and_settings_as_plain_values(tmp_path: Path) -> None:
    run = Run(tmp_path / "a.pt", "some", data={}, settings={"rate": np.float64(0.5)})
    run.keep(1, dict, last=True)
    assert Run(tmp_path / "a.pt", "some", data={}, settings={"rate": 0.5}).read() is not None
