"""How each model is fitted, and how its posterior is held against a reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, CAVIResult

from . import data, models

REFERENCES = Path(__file__).parent.parent.parent / "tests" / "references"
DRAWS = 20_000

Values = Mapping[str, Tensor]


class Original(NamedTuple):
    """A model, and what is read from its posterior.

    Attributes:
        reference: the name of the file in ``tests/references``.
        model, data: the model and its arguments.
        quantities: the reference's quantities, ``[draws] + shape``, from draws by site.
        options: of :class:`~pyro_latent.AutoConjugate`.
        bound: whether auxiliary sites replace the likelihood by a bound of it at their optimum.
    """

    reference: str
    model: Callable[..., Any]
    data: Callable[[], tuple[Tensor, ...]]
    quantities: Callable[[Values], dict[str, Tensor]]
    options: dict[str, Any]
    bound: bool = False


class Errors(NamedTuple):
    """Of one quantity, by element: the errors of the means in standard deviations of the reference, and sd ratios."""

    means: np.ndarray
    sds: np.ndarray


def of_schools(draws: Values) -> dict[str, Tensor]:
    mu, tau = draws["mu"], draws["tau"]
    return {"mu": mu, "log_tau": tau.log(), "theta": mu[:, None] + tau[:, None] * draws["eta"]}


def of_weights(draws: Values) -> dict[str, Tensor]:
    found = {"weights": draws["weights"]}
    return found | ({"log_sigma": draws["sigma"].log()} if "sigma" in draws else {})


def of_radon(draws: Values) -> dict[str, Tensor]:
    found = {name: draws[name] for name in ("alpha", "mu", "beta")}
    return found | {"log_spread": draws["spread"].log(), "log_sigma": draws["sigma"].log()}


def of_horseshoe(draws: Values) -> dict[str, Tensor]:
    found = {f"log_{name}": draws[name].log() for name in ("local", "tau", "sigma")}
    return {"beta": draws["beta"]} | found


def of_factorisation(draws: Values) -> dict[str, Tensor]:
    return {"rates": draws["theta"] @ draws["beta"]}


AUXILIARY = {"reparam": True}

ORIGINALS = (
    Original("eight_schools", models.eight_schools, data.schools, of_schools, {"blocks": "auto"}),
    Original("kidiq", models.kidiq, data.kidiq, of_weights, {}),
    Original("radon", models.radon, data.radon, of_radon, {"blocks": "auto"}),
    Original("student_regression", models.student_regression, data.progression, of_weights, AUXILIARY),
    Original("horseshoe", models.horseshoe, data.diabetes, of_horseshoe, {"blocks": [("beta",)]}),
    Original("logistic", models.logistic, data.tumours, of_weights, AUXILIARY, bound=True),
    Original("probit", models.probit, data.progressed, of_weights, AUXILIARY, bound=True),
    Original("negative_binomial", models.negative_binomial, data.situps, of_weights, AUXILIARY, bound=True),
    Original(
        "poisson_factorisation", models.poisson_factorisation, lambda: (data.counts(),), of_factorisation, AUXILIARY
    ),
)


@contextmanager
def in_float64() -> Iterator[None]:
    """The numbers of the models in the data's precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fit(original: Original) -> tuple[AutoConjugate, CAVIResult]:
    """By coordinate ascent, to the end."""
    guide = AutoConjugate(original.model, **original.options)
    pyro.set_rng_seed(0)
    result = CAVI(original.model, guide).run(*original.data(), tol=1e-10, max_steps=5000)
    if not result.converged:
        raise RuntimeError(f"Expected {original.reference} to converge; got {result.num_steps} sweeps without an end.")
    return guide, result


def draws_of(original: Original, guide: Callable[..., Any], num: int = DRAWS) -> dict[str, Tensor]:
    """Draws from a guide by site, ``[num] + shape``."""
    arguments = original.data()
    shapes = {name: value.shape for name, value in guide(*arguments).items()}
    with torch.no_grad(), pyro.plate("draws", num, dim=-3):
        return {name: value.reshape(num, *shapes[name]) for name, value in guide(*arguments).items()}


def errors(original: Original, draws: Values) -> dict[str, Errors]:
    """By quantity, what draws differ by from the reference."""
    reference = np.load(REFERENCES / f"{original.reference}.npz")
    found = {}
    for name, values in original.quantities(draws).items():
        mean, sd = reference[f"{name}/mean"], reference[f"{name}/sd"]
        means = np.abs(values.double().mean(0).numpy() - mean) / sd
        found[name] = Errors(means, values.double().std(0).numpy() / sd)
    return found
