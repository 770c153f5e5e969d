"""Near-misses: programs beside the conjugate ones are refused by name, or answered rightly, and never wrongly."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from near_misses import TEMPLATES, near_miss
from random_models import check

from pyro_latent import PyroLatentError

#: How often each template is drawn in the slow tests.
DRAWS = 20


#: How else they are fitted: with auxiliary sites, and with normal sites joined.
WAYS: dict[str, dict[str, Any]] = {"auxiliary": {"reparam": True}, "joint": {"blocks": "auto"}}


def assert_refused_or_right(seed: int, **way: Any) -> None:
    """An error of the library that names a site of the program, or an answer that keeps every law."""
    program = replace(near_miss(seed), **way)
    outcome = check(program)
    assert not outcome.faults, f"near_miss({seed}):\n{program}\n" + "\n".join(outcome.faults)
    if outcome.refusal is not None:
        assert names_a_site(outcome.refusal, program.source), f"near_miss({seed}):\n{program}\n{outcome.refusal}"


def names_a_site(error: PyroLatentError, source: str) -> bool:
    """Whether a message quotes a site of a program."""
    sites = re.findall(r'pyro\.\w+\(["\'](\w+)["\']', source)
    return any(f"'{site}'" in str(error) for site in sites)


@pytest.mark.parametrize("seed", range(len(TEMPLATES)))
def test_near_miss_is_refused_or_right(seed: int) -> None:
    """Each template once."""
    assert_refused_or_right(seed)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))])
def test_near_miss_is_refused_or_right_in_other_ways(way: str, first: int) -> None:
    """An eighth of the templates at a time."""
    for seed in range(first, len(TEMPLATES), 8):
        assert_refused_or_right(seed, **WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("draw", range(1, DRAWS + 1))
def test_near_miss_is_refused_or_right_with_other_numbers(draw: int) -> None:
    """Each template, with other constants, sizes and dtypes."""
    for template in range(len(TEMPLATES)):
        assert_refused_or_right(draw * len(TEMPLATES) + template)
