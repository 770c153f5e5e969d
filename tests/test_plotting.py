"""Pictures of mixtures, topics and forests: what they show of odd input, and what they refuse in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from pyro_latent import AutoConjugate, plotting
from pyro_latent.criticism import compare
from pyro_latent.models import normal_gamma

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------------------- mixtures


def test_more_fits_than_colours_are_told_apart_by_their_dashes() -> None:
    fits = {f"fit {i}": (torch.zeros(1, 2), torch.eye(2)[None]) for i in range(12)}
    axes = plotting.plot_mixture(POINTS, fits).axes[0]
    looks = {(outline.get_edgecolor(), str(outline.get_linestyle())) for outline in axes.patches}
    assert len(axes.patches) == 12 == len(looks)
    legend: Any = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(fits)
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1  # beside the data, not on them


def test_variances_draw_the_ellipses_of_their_diagonal_matrices() -> None:
    means, variances = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 1.0], [1.0, 9.0]])
    axes = plotting.plot_mixture(POINTS, {"rows": (means, variances), "full": (means, torch.diag_embed(variances))})
    rows, full = np.split(np.array([p.get_extents().bounds for p in axes.axes[0].patches]), 2)
    np.testing.assert_allclose(rows, full)


@pytest.mark.parametrize("labels", ["min", ("min",), "ab"])
def test_labels_that_are_not_two_are_named(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected two labels; got .*Write labels=\("):
        plotting.plot_mixture(POINTS, {"fit": (torch.zeros(1, 2), torch.eye(2)[None])}, labels=labels)


@pytest.mark.parametrize("covariances", [torch.eye(2)[None], torch.ones(3, 2), torch.eye(2)])
def test_covariances_that_do_not_suit_the_means_are_named(covariances: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected means \[K, D\].* of 'fit'; got \[5, 2\] and .*Give one matrix"):
        plotting.plot_mixture(POINTS, {"fit": (torch.zeros(5, 2), covariances)})


# --------------------------------------------------------------------------------------------------------------- topics


def test_no_two_texts_of_topics_with_long_words_overlap() -> None:
    words = [f"internationalization{i}" for i in range(8)]
    figure = plotting.plot_topics(np.random.default_rng(0).random((9, 8)), words)
    assert figure.get_supxlabel() == "probability of the word in the topic"
    shown = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text() and t.get_visible()]
    shown = [t for t in shown if t.axes is None or t.axes.axison]
    boxes = [t.get_window_extent() for t in shown if not _off_the_axis(t)]
    assert len(boxes) > 9 * 8
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.8).overlaps(b)]
    assert overlaps == []


def _off_the_axis(text: Text) -> bool:
    """A label of a tick beyond the ends of its axis, which is not drawn."""
    if text.axes is None or text not in text.axes.get_xticklabels():
        return False
    low, high = text.axes.get_xlim()
    return not low <= float(text.get_position()[0]) <= high


@pytest.mark.parametrize(
    ("topics", "options", "words"),
    [
        ([[-0.1, 1.1]], {}, r"Expected word weights that are not negative.*got -0\.1 at the least.*log_weights\.exp"),
        ([[0.0, 0.0]], {}, "and 0 as the least sum"),
        (np.zeros((0, 2)), {}, r"one column a word; got \[0, 2\]. Give at least one topic"),
        ([[0.5, 0.5]], {"columns": 0}, "Expected columns to be an integer of at least 1; got 0"),
        ([[0.5, 0.5]], {"top": 0}, "Expected top to be an integer of at least 1; got 0"),
        ([[0.5, 0.5]], {"titles": ["one", "two"]}, "Expected 1 titles, one for each topic; got 2"),
    ],
)
def test_topics_that_cannot_be_drawn_are_named(topics: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.plot_topics(topics, ["cat", "dog"], **options)


# ---------------------------------------------------------------------------------------------- densities, and by ArviZ


def test_densities_have_their_units() -> None:
    x = torch.randn(20, dtype=torch.float64)
    found = compare(normal_gamma.model, {"cavi": AutoConjugate(normal_gamma.model)}, x, num_samples=200)
    axes = plotting.plot_densities(found, units={"mean": "min"}).axes
    labels = {a.get_title(loc="left"): a.get_xlabel() for a in axes}
    assert labels["mean"] == "min" and labels["precision"] == ""
