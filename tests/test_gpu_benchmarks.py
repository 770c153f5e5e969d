"""``make gpu``: every part runs, and its section is written; without a card nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu


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


def test_responsibilities_start_near_the_labels() -> None:
    """They add up to one, and the points are those of the clusters."""
    data, start = gpu.points(50, 2, 3, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(start.sum(1), torch.ones(50, dtype=torch.float64))
    assert data.shape == (50, 2)
    torch.testing.assert_close(start.amax(1), torch.full((50,), 0.8 + 0.2 / 3, dtype=torch.float64))
