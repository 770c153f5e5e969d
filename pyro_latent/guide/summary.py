"""What a guide says of itself: a table of its global sites, with exact moments, and how far it was fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..tables import text_table

#: Of a site with more elements so many are shown, the first half and the last; and so many rows of a table.
_MOST_ELEMENTS, _MOST_ROWS = 8, 60


@dataclass(frozen=True)
class SiteSummary:
    """What a summary says of one site.

    Attributes:
        name: the site.
        shape: of its value.
        family: of its posterior.
        columns: by the name of a column, its numbers, of the site's shape: mean, sd, and the ends of the interval; of a
            point estimate the mean alone, and of a discrete site its probabilities, ``[values] + shape``, under
            "probability". Empty for a site that belongs to the data at hand.
        values: of a discrete site, its values in words.
        note: what else there is to say of it.
    """

    name: str
    shape: torch.Size
    family: str
    columns: dict[str, Tensor] = field(default_factory=dict)
    values: tuple[str, ...] = ()
    note: str = ""

    def rows(self, names: Sequence[str], most: int | None = None) -> Iterator[tuple[str, list[float | None]]]:
        """The rows: each has its label, as ArviZ writes it, and its numbers; None for one that there is not.

        Args:
            names: the columns.
            most: so many elements at most, the first half and the last; None: all.
        """
        if not self.columns:
            return
        count = self.shape.numel()
        half = count if most is None or count <= most else most // 2
        for number in range(min(half, count)):
            yield from self._element(number, names)
        if half < count:
            yield f"... ({count - 2 * half} more of {self.name})", [None] * len(names)
            for number in range(count - half, count):
                yield from self._element(number, names)

    def _element(self, number: int, names: Sequence[str]) -> Iterator[tuple[str, list[float | None]]]:
        index = [int(i) for i in np.unravel_index(number, self.shape)] if self.shape else []
        label = self.name + (str(index) if index else "")
        if "probability" in self.columns:
            probs = self.columns["probability"].reshape(len(self.values), -1)[:, number].tolist()
            for value, prob in zip(self.values, probs, strict=True):
                yield f"P({label} = {value})", [prob, *[None] * (len(names) - 1)]
            return
        flat = {name: column.reshape(-1) for name, column in self.columns.items()}
        yield label, [float(flat[name][number]) if name in flat else None for name in names]


@dataclass(frozen=True, repr=False)
class Summary:
    """The posterior of a guide's global sites as a table, by ``str``; in a notebook, as one of HTML.

    Attributes:
        title: what the guide is, and how far it was fitted.
        sites: the sites, in the order of the model.
        intervals: the names of the columns with the ends of the interval, as ArviZ names them.
    """

    title: str
    sites: tuple[SiteSummary, ...]
    intervals: tuple[str, str]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns with numbers."""
        return ("mean", "sd", *self.intervals)

    def to_frame(self) -> Any:
        """All rows as a pandas ``DataFrame``, with ArviZ's names of columns; a number that there is not is NaN."""
        import pandas  # type: ignore[import-untyped]

        rows = [row for site in self.sites for row in site.rows(self.columns)]
        return pandas.DataFrame([r for _, r in rows], [n for n, _ in rows], list(self.columns), dtype=float)

    def _table(self) -> list[list[str]]:
        """The cells, cut where there are too many, under their heading."""
        found: list[list[str]] = []
        for site in self.sites:
            words = [str(list(site.shape)), site.family]
            rows = list(site.rows(self.columns, _MOST_ELEMENTS)) or [(site.name, [None] * len(self.columns))]
            for label, numbers in rows:
                found.append([label, *words, *map(_number, numbers)])
                words = ["", ""]
        left_out = len(found) - _MOST_ROWS
        if left_out > 0:
            cut = [f"... ({left_out} more rows: summary().to_frame() has all)", *[""] * (2 + len(self.columns))]
            found = [*found[: _MOST_ROWS // 2], cut, *found[-(_MOST_ROWS // 2) :]]
        return [["site", "shape", "posterior", *self.columns], *found]

    @property
    def _notes(self) -> list[str]:
        return [f"{site.name}: {site.note}" for site in self.sites if site.note]

    def __str__(self) -> str:
        if not self.sites:
            return self.title
        return "\n".join([self.title, "", text_table(self._table()), *self._notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table in HTML."""
        title = f"<p>{escape(self.title)}</p>"
        if not self.sites:
            return title
        heading, *rows = self._table()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes)
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def interval_names(prob: float) -> tuple[str, str]:
    """The names that ArviZ gives the ends of an equal-tailed interval: ``eti_3%`` and ``eti_97%`` for 0.94."""
    return f"eti_{50 * (1 - prob):.3g}%", f"eti_{50 * (1 + prob):.3g}%"


__all__ = ["SiteSummary", "Summary", "interval_names"]
