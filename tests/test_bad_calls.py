"""Whatever is given where, a call returns, or raises an error of the library; and nothing around it has changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
from bad_calls import TARGETS, Arguments, surroundings_kept
from bad_reads import READS

from pyro_latent import PyroLatentError

_CALLS, _MORE = 10, 160  # of each target


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of any name that a call writes is in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def _call(target: Callable[[Arguments], None], seed: int) -> None:
    pyro.clear_param_store()
    arguments = Arguments(seed)
    try:
        with warnings.catch_warnings(), surroundings_kept(arguments):
            warnings.simplefilter("ignore")
            target(arguments)
    except PyroLatentError:
        pass
    except Exception as error:
        error.add_note(f"Given to {target.__name__}, seed {seed}: {arguments.given}")
        raise


@pytest.mark.parametrize("target", [*TARGETS, *READS], ids=lambda t: t.__name__)
def test_a_call_returns_or_says_in_our_words_why_not(target: Callable[[Arguments], None]) -> None:
    for seed in range(_CALLS):
        _call(target, seed)


@pytest.mark.slow
@pytest.mark.parametrize("target", [*TARGETS, *READS], ids=lambda t: t.__name__)
def test_many_calls_return_or_say_in_our_words_why_not(target: Callable[[Arguments], None]) -> None:
    for seed in range(_CALLS, _CALLS + _MORE):
        _call(target, seed)
