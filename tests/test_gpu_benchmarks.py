"""``make gpu``: every part runs, and its section is written; without a card nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from pyro_latent import CAVI, AutoConjugate
from pyro_latent.models import gmm


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_card_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"Expected a CUDA device; got none"):
        gpu.main(["mixture", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_every_part_writes_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves are not run here; sections come in one order, and one that is run again is replaced."""
    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | {"tests": lambda bench: "old"})
    common = ["--device", "cpu", "--tiny", "--out", str(tmp_path)]
    gpu.main(["mixture", "tests", *common])
    monkeypatch.setattr(gpu, "PARTS", gpu.PARTS | {"tests": lambda bench: "new"})
    path = gpu.main(["race", "vae", "lda", "tests", *common])
    text = path.read_text()
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == ["## tests", "## mixture", "## lda", "## vae", "## race"]
    assert "new" in text
    assert "old" not in text
    assert "| 300 | float32 | cpu |" in text
    assert "| CAVI, one block |" in text
    assert list(tmp_path.iterdir()) == [path]


def test_a_sweep_launches_as_many_kernels_whatever_there_is_to_compute() -> None:
    """Points and components are dimensions of tensors, and no loops."""
    counts = []
    for count, components in (300, 3), (900, 5):
        data, start = gpu.points(count, 2, components, torch.device("cpu"), torch.float64)
        guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init={"component": start})
        driver = CAVI(gmm.model, guide)
        driver.run(data, components, max_steps=2, tol=0)
        counts.append(gpu.launches_of_a_sweep(driver, data, components))
    assert counts[0] == counts[1] > 0


def test_responsibilities_start_near_the_labels() -> None:
    """They add up to one, and the points are those of the clusters."""
    data, start = gpu.points(50, 2, 3, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(start.sum(1), torch.ones(50, dtype=torch.float64))
    assert data.shape == (50, 2)
    torch.testing.assert_close(start.amax(1), torch.full((50,), 0.8 + 0.2 / 3, dtype=torch.float64))
