"""Interleaved timings, and their ratios with a spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(statistics.median(values), low, high)

    def scaled(self, factor: float, digits: int = 3) -> str:
        """As text: the median and in brackets the quartiles, times ``factor``."""
        median, low, high = (_digits(v * factor, digits) for v in (self.median, self.low, self.high))
        return f"{median} ({low} to {high})"


def _digits(value: float, digits: int) -> str:
    """A number with so many significant digits, and no exponent."""
    whole = max(1, math.floor(math.log10(abs(value))) + 1) if value else 1
    return f"{value:,.{max(0, digits - whole)}f}"


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    repeat: int = 1,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds for one call of each function, in turn: ``rounds`` rounds of ``repeat`` calls, after ``warm`` rounds.

    ``clock`` is ``time.process_time`` to count CPU seconds of this process, where others share the machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm + rounds):
        for name, run in runs.items():
            start = clock()
            for _ in range(repeat):
                run()
            if number >= warm:
                seconds[name].append((clock() - start) / repeat)
    return seconds


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times as long ``slow`` takes, round by round."""
    return Spread.of([s / f for s, f in zip(slow, fast, strict=True)])


def write_report(heading: str, parts: Iterable[str], path: Path) -> None:
    """Print each part as it is made, and write them under the heading."""
    made = [heading]
    for part in parts:
        made.append(part)
        print(part, "\n", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(made) + "\n", encoding="utf-8")
    print(f"Wrote {path}.")


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
