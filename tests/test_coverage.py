"""The models of other libraries: what the page says of them, a sample of the fits, and the check of a bound."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks.coverage import ENTRIES, PAGE, Entry, examine
from benchmarks.coverage.entry import CLOSED, REFUSED, WAYS, WRONG, first_sentence, holds
from pyro_latent import CAVI, AutoConjugate, NotConjugateError

TEXT = PAGE.read_text(encoding="utf-8")
LIBRARIES = list(dict.fromkeys(e.library for e in ENTRIES))
#: A few models of each kind whose fit takes a second.
SAMPLE = (
    "svi_part_i: a coin",
    "mle_map: a parameter",
    "baseball: fully pooled",
    "baseball: partially pooled",
    "bayesian_regression_ii, intro_long",
    "boosting_bbvi: two modes",
    "lake disasters: a switch",
    "logistic-growth: basic",
    "model_rendering: a sum over a plate",
    "hmm: model 1",
    "earn_height",
    "wells_dist",
    "Rate_1_model",
    "Survey_model",
    "dugongs_model",
    "gp_regr",
    "quick start: a normal",
    "coin toss",
    "two coins",
    "Gaussian mixture, univariate",
)


def outcomes_of(library: str) -> dict[str, str]:
    """What the page says of the models of a library."""
    table = TEXT.partition(f"\n## {library}\n")[2].partition("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("| ")]
    return {row[0]: row[1].strip(" |") for row in rows[2:]}


@pytest.mark.parametrize("library", LIBRARIES)
def test_page_has_each_model_with_an_expected_outcome(library: str) -> None:
    """A model that is said to fit does, in the way that it is said to."""
    expected = {e.name: e.expect if e.expect in WAYS else REFUSED for e in ENTRIES if e.library == library}
    assert outcomes_of(library) == expected


def test_counts_are_those_of_the_tables() -> None:
    (row,) = re.findall(r"^\| all \| (.*) \|$", TEXT, re.MULTILINE)
    found = [outcome for library in LIBRARIES for outcome in outcomes_of(library).values()]
    assert [int(n) for n in row.split(" | ")] == [len(ENTRIES), *(found.count(way) for way in WAYS)]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name in SAMPLE], ids=lambda e: e.name)
def test_sample_of_the_models(entry: Entry) -> None:
    """It fits as the page says, and its bound is that of Pyro's estimator."""
    found = examine(entry, num_draws=20)
    assert found.way == outcomes_of(entry.library)[entry.name], found.words


@pytest.mark.slow
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name not in SAMPLE], ids=lambda e: f"{e.library} {e.name}")
def test_models(entry: Entry) -> None:
    found = examine(entry)
    assert found.way == outcomes_of(entry.library)[entry.name], found.words


def test_wrong_bound_is_seen() -> None:
    """A hundredth of a nat is seen where the estimate does not vary, at the exact posterior."""
    x = torch.tensor([0.0, 1.0, 1.0]).double()

    def model() -> None:
        p = pyro.sample("p", dist.Beta(x.new_tensor(1.0), 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    guide = AutoConjugate(model)
    CAVI(model, guide).run()
    assert holds(CLOSED, model, guide, (), 10).way == CLOSED

    def moved(*args: Any) -> Any:
        return guide(*args)

    moved.elbo = lambda: guide.elbo() + 0.01  # type: ignore[attr-defined]
    assert holds(CLOSED, model, moved, (), 10).way == WRONG


def test_error_of_others_is_wrong() -> None:
    class Broken(Exception):
        pass

    def model() -> None:
        raise Broken("broken")

    found = examine(SimpleNamespace(model=model, data=tuple, expect=CLOSED))  # type: ignore[arg-type]
    assert found.way == WRONG and "broken" in found.words


def test_first_sentence_is_that_of_the_first_obstacle() -> None:
    words = "Expected sites that can all be updated; got 2 obstacles:\n1. Site 'a' is odd. Write b.\n2. Site 'c'."
    assert first_sentence(NotConjugateError(words)) == "Site 'a' is odd"
