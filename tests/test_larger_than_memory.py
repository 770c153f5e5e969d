"""Data in files that are read a piece at a time: the fit of all of them, in the memory of a piece."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_latent import CAVI, ArgumentError, AutoConjugate
from pyro_latent.errors import CheckpointError
from pyro_latent.recording.symbols import spread_out

PEAK, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Read = Callable[[int], Any]


def mixture(x: Tensor, size: int) -> None:
    """Three normals, at means that are a local latent's distance away from data."""
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(3)))
    with pyro.plate("components", 3):
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        shift = pyro.sample("shift", dist.Normal(x.new_tensor(0.0), 0.5))
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[z] + shift, 0.5), obs=x)


def normal(x: Tensor, size: int) -> None:
    mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
    precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)


class Pieces(Dataset[tuple[Tensor]]):
    """Pieces of a file, read when they are asked for."""

    def __init__(self, count: int, read: Read) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor]:
        return (torch.from_numpy(np.array(self.read(i))),)


def loader(count: int, read: Read) -> DataLoader[Any]:
    return DataLoader(Pieces(count, read), batch_size=None)


def data(count: int = 60) -> Tensor:
    centers = torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64).repeat(count // 3)
    return centers + 0.5 * torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fitted(batches: Any, **settings: Any) -> tuple[CAVI, Tensor]:
    guide = AutoConjugate(mixture, init={"mean": torch.tensor([-3.0, 0.1, 3.0], dtype=torch.float64)})
    driver = CAVI(mixture, guide, **settings)
    return driver, driver.run_batches(batches, epochs=2, tol=0, size=60).elbo


@functools.cache
def in_memory() -> Tensor:
    return fitted([(part,) for part in data().split(15)], memoised=True)[1]


def memory_mapped(x: np.ndarray[Any, Any], folder: Path) -> Read:
    np.save(folder / "x.npy", x)
    return lambda i: np.load(folder / "x.npy", mmap_mode="r")[15 * i : 15 * i + 15]


def parquet(x: np.ndarray[Any, Any], folder: Path) -> Read:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(arrow.table({"x": x}), folder / "x.parquet", row_group_size=15)
    return lambda i: files.ParquetFile(folder / "x.parquet").read_row_group(i)["x"].to_numpy()


def arrow_stream(x: np.ndarray[Any, Any], folder: Path) -> Read:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"x": x})
    with arrow.OSFile(str(folder / "x.arrow"), "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=15)

    def read(i: int) -> Any:
        with arrow.memory_map(str(folder / "x.arrow")) as file:
            return arrow.ipc.open_file(file).get_batch(i)["x"].to_numpy().copy()

    return read


@pytest.mark.parametrize("written", [memory_mapped, parquet, arrow_stream])
def test_pieces_of_a_file_are_fitted_as_pieces_in_memory(written: Callable[..., Read], tmp_path: Path) -> None:
    """To the last bit; also with their summaries and local latents in files, which are gone with the driver."""
    x, folder = data(), tmp_path / "summaries"
    expected = in_memory()
    read = written(x.numpy(), tmp_path)
    assert torch.equal(fitted(loader(4, read), memoised=True)[1], expected)
    driver, found = fitted(loader(4, read), memoised=folder)
    assert torch.equal(found, expected)
    assert len(list(folder.glob("*/*.pt"))) == 4  # what a piece said before is not kept
    for file in folder.glob("*/*.pt"):
        file.unlink()
    with pytest.raises(CheckpointError, match="Expected the summary of a piece in"):
        driver.step_piece(0, x[:15], 60)
    del driver
    gc.collect()
    assert not list(folder.iterdir())


def test_summaries_in_files_go_into_a_checkpoint_and_keep_the_best_start(tmp_path: Path) -> None:
    """As those in memory do: a run of two starts that goes on from its file ends alike."""
    pieces, elbo = [(part,) for part in data().split(30)], []
    for memoised in (True, tmp_path / "summaries"):
        torch.manual_seed(0)
        driver = CAVI(mixture, AutoConjugate(mixture, restarts=2), memoised=memoised)
        driver.run_batches(pieces, tol=0, size=60)
        driver.save(tmp_path / "driver.pt")
        again = CAVI(mixture, AutoConjugate(mixture, restarts=2), memoised=memoised)
        again.load(tmp_path / "driver.pt")
        elbo.append(again.run_batches(pieces, tol=0, size=60).elbo)
    assert torch.equal(*elbo)


@pytest.mark.parametrize("memoised", [3, "", "file/inside"])
def test_where_summaries_cannot_be_is_told(memoised: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / memoised if memoised == "file/inside" else memoised
    with pytest.raises((ArgumentError, CheckpointError), match=r"Expected (memoised to be|a folder)"):
        CAVI(mixture, AutoConjugate(mixture), memoised=place)


def test_a_plate_may_be_of_more_than_there_is_memory_for() -> None:
    """Of 10¹³ data, a permutation of which would take 80 TB: minibatches count each datum as so many."""
    x, size = data(), 10**13

    def counted(x: Tensor, size: int) -> None:
        mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 10.0))
        precision = pyro.sample("precision", dist.Gamma(x.new_tensor(1.0), 1.0))
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=size / len(x)):
            pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)

    guide, expected = AutoConjugate(normal), AutoConjugate(counted)
    driver, alone = CAVI(normal, guide, step_size=1.0), CAVI(counted, expected)
    for _ in range(20):
        driver.step(x, size)
        alone.step(x, size)
    for name in ("mean", "precision"):
        found, wanted = guide.posterior()[name], expected.posterior()[name]
        assert float(found.mean) == pytest.approx(float(wanted.mean), rel=1e-9)


def test_a_subsample_of_a_large_plate_has_each_place_as_often_and_none_twice() -> None:
    """Four of 23: counts are within five standard deviations of a binomial's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([spread_out(_Subsample(23, 4)) for _ in range(4000)])
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    share = torch.tensor(4 / 23)
    deviation = (4000 * share * (1 - share)).sqrt()
    assert float((drawn.flatten().bincount(minlength=23) - 4000 * share).abs().max()) < 5 * float(deviation)


@pytest.mark.skipif(not CLEAR.exists(), reason="needs Linux, which tells the largest memory that a process had")
def test_memory_is_that_of_a_piece(tmp_path: Path) -> None:
    """A file of 32 MB in 32 pieces: a pass takes less than a quarter of it."""
    count, piece = 32, 2**17
    file = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float64, (count * piece,))
    for i in range(count):
        file[i * piece : (i + 1) * piece] = np.random.default_rng(i).standard_normal(piece)
    del file

    def read(i: int) -> Any:
        return np.load(tmp_path / "x.npy", mmap_mode="r")[i * piece : (i + 1) * piece]

    def peak() -> int:
        line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    driver = CAVI(normal, AutoConjugate(normal), memoised=tmp_path)
    driver.run_batches(loader(8, read), size=count * piece)  # what is loaded and made once
    CLEAR.write_text("5")
    before = peak()
    driver.run_batches(loader(count, read), size=count * piece)
    assert peak() - before < count * piece * 8 / 4
