"""Topics: the likeliest words of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..criticism.arguments import as_array
from ..criticism.pictures import PALETTE, panels_in
from ..errors import ArgumentError, ArgumentTypeError, check_count, checked_call
from ..signatures import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_topics"]


@checked_call
def plot_topics(
    topics: object,
    vocabulary: Sequence[str] | None = None,
    *,
    top: int = 8,
    columns: int = 4,
    titles: Sequence[str] | None = None,
    ax: object = None,
) -> Figure:
    """The likeliest words of each topic.

    Args:
        topics: a fitted ``LDA``, scikit-learn's too; or word weights, ``[K, V]``, not negative; each row is divided by
            its sum.
        vocabulary: the V words; by default those that the ``LDA`` knows.
        top: how many words of each.
        columns: of panels.
        titles: above the panels, one for each topic; its number by default.
        ax: matplotlib Axes to draw on, an array of one for each topic; a new figure by default.

    Returns:
        The figure of ``ax``, or the new one.

    Raises:
        TypeError: if there is no vocabulary.
        ValueError: if there are not as many words as columns of ``topics``, if there is no topic, or a weight is
            negative or not finite, or all of a row are 0, or ``top`` or ``columns`` is below 1.
    """
    words = _vocabulary(topics, vocabulary)
    shares = _shares(getattr(topics, "components_", topics), words)
    top, columns = check_count("top", top), check_count("columns", columns)
    titles = [f"topic {k}" for k in range(len(shares))] if titles is None else titles
    if len(titles) != len(shares):
        raise ArgumentError(f"Expected {len(shares)} titles, one for each topic; got {len(titles)}. Give all of them.")
    best = [np.argsort(-row)[:top] for row in shares]
    longest = max(len(str(words[i])) for found in best for i in found)
    with panels_in(len(shares), columns, 1.0 + 0.065 * longest, 0.16 * top + 0.35, 0.15, ax) as (figure, grid):
        for axes, row, found, title in zip(grid, shares, best, titles, strict=True):
            axes.barh(range(len(found)), row[found], color=PALETTE[0], height=0.7)
            axes.set_yticks(range(len(found)), [words[i] for i in found])
            axes.invert_yaxis()
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=2)
            axes.set_title(title)
        if ax is None:
            figure.supxlabel("probability of the word in the topic", fontsize=8)
        else:
            grid[-1].set_xlabel("probability of the word in the topic")
    return figure


def _vocabulary(topics: object, vocabulary: Sequence[str] | None) -> Sequence[str]:
    """The words given, or those that a fitted estimator knows."""
    known = getattr(topics, "vocabulary_", None) if vocabulary is None else vocabulary
    if known is None:
        raise ArgumentTypeError(
            f"Expected the words of the topics; got none, and {type(topics).__name__} does not know them. Write "
            "plot_topics(topics, vocabulary), or lda.fit(counts, vocabulary=words)."
        )
    return known


def _shares(topics: object, vocabulary: Sequence[str]) -> Array:
    """Word weights over the sum of their row, ``[K, V]``."""
    weights = as_array(topics).astype(float)
    if weights.ndim != 2 or len(weights) == 0 or weights.shape[1] != len(vocabulary):
        raise ArgumentError(
            f"Expected topics of shape [K, {len(vocabulary)}], one column a word; got "
            f"{list(weights.shape)}. Give at least one topic, and the vocabulary that they were fitted with."
        )
    sums = weights.sum(1, keepdims=True)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (sums > 0).all()):
        raise ArgumentError(
            f"Expected word weights that are not negative, and not all 0 in a topic; got {weights.min():.3g} at the "
            f"least, and {sums.min():.3g} as the least sum. Give probabilities or counts, not logarithms: "
            "log_weights.exp()."
        )
    found: Array = weights / sums
    return found
