"""Numbers that tell apart the labels and the variables that recordings make."""

from __future__ import annotations

import itertools
import re

#: So large that nothing else is: two recordings of one model can be compared up to their numbers.
_FIRST = 2**40
_numbers = itertools.count(_FIRST)
_WRITTEN = re.compile(r"\d{13,}")


def fresh_number() -> int:
    """A number that nothing else has."""
    return next(_numbers)


def numbers_in(value: object) -> tuple[list[int], object]:
    """The numbers of :func:`fresh_number` in a label or a name, and what it is without them."""
    if isinstance(value, str):
        return [int(n) for n in _WRITTEN.findall(value)], _WRITTEN.sub("", value)
    if isinstance(value, int) and abs(value) >= _FIRST:
        return [value], None
    return [], value


__all__ = ["fresh_number", "numbers_in"]
