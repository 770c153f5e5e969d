"""What the estimators share: arrays become tensors, the model is fitted from some starts, and the best is kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyro.poutine.messenger import Messenger
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_latent.arviz import to_arviz
from pyro_latent.ascent import CAVI, CAVIResult
from pyro_latent.errors import ArgumentError, ModelError, as_real, check_count
from pyro_latent.guide import AutoConjugate
from pyro_latent.models.gmm import Covariance
from pyro_latent.values import kind_of

__all__ = [
    "COVARIANCES",
    "Array",
    "Estimator",
    "WideEstimator",
    "check_number",
    "drawing",
    "generator_of",
    "tensors_of",
    "weights_of",
]

Array = npt.NDArray[Any]
#: What the models call the covariances, by scikit-learn's names.
COVARIANCES: dict[str, Covariance] = {"full": "full", "tied": "tied", "diag": "diagonal", "spherical": "spherical"}
#: What is only of the fit at hand, and no part of a pickle.
_OF_THE_FIT = ("model_args_", "model_kwargs_")


class Estimator(BaseEstimator):
    """A Pyro model with scikit-learn's face.

    One of these says which ``model`` it fits, in which ``blocks``; its ``fit`` makes the model's arguments and its
    starts, calls :meth:`_ascend`, and reads the posterior.

    Attributes (after a fit):
        guide_: the fitted guide of ``model``; model_args_, model_kwargs_: the arguments of that model.
        lower_bound_: the exact ELBO, in nats; lower_bounds_: that after each sweep.
        n_iter_: the number of sweeps; converged_: whether the last one raised the ELBO by no more than ``tol`` of it.
    """

    guide_: AutoConjugate
    model_args_: tuple[Any, ...]
    model_kwargs_: dict[str, Any]
    lower_bound_: float
    lower_bounds_: list[float]
    n_iter_: int
    converged_: bool

    max_iter: int
    tol: float

    def _read(self, X: Any, *, reset: bool = False, **checks: Any) -> Tensor:
        """Rows of numbers as a tensor ``[N, D]``: of their own dtype in a fit, and after it of that of the fit."""
        if not reset:
            check_is_fitted(self)
        rows = torch.tensor(validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], **checks))
        return rows if reset else rows.to(self._dtype())

    def _dtype(self) -> torch.dtype:
        """The dtype of the fit."""
        naturals = next(iter(self.guide_.state.values()))
        return next(iter(naturals.values())).dtype

    def _ascend(
        self,
        model: Callable[..., Any],
        starts: Iterable[Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        blocks: Sequence[Sequence[str]] = (),
    ) -> None:
        """Fit the model from each start, and keep the guide with the highest ELBO."""
        found: tuple[AutoConjugate, CAVIResult] | None = None
        for start in starts:
            guide = AutoConjugate(model, blocks=blocks or None, init=start)
            result = CAVI(model, guide).run(*args, max_steps=self.max_iter, tol=self.tol, **kwargs)
            if found is None or result.elbo[-1] > found[1].elbo[-1]:
                found = guide, result
        assert found is not None
        self.guide_, result = found
        self.model_args_, self.model_kwargs_ = args, dict(kwargs)
        self.lower_bounds_, self.lower_bound_ = result.elbo.tolist(), float(result.elbo[-1])
        self.n_iter_, self.converged_ = result.num_steps, result.converged
        self._warn_if_cut_short()

    def _warn_if_cut_short(self) -> None:
        if not self.converged_:
            warnings.warn(
                f"Expected the fit to converge within max_iter={self.max_iter} sweeps; got an ELBO that still rises by "
                f"more than tol={self.tol} of it. Raise max_iter, or tol.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _check_fit(self) -> None:
        """The parameters that every fit has are as they should be."""
        check_count("max_iter", self.max_iter)
        check_number("tol", self.tol)

    def to_arviz(self, num_samples: int = 200, seed: int = 0, **options: Any) -> Any:
        """Draws of the posterior of the fit as ArviZ data; see :func:`pyro_latent.to_arviz`.

        Args:
            num_samples: the number of draws.
            seed: of the draws.
            options: further ones of :func:`pyro_latent.to_arviz`, such as ``coords``.

        Raises:
            ModelError: if this estimator was unpickled, for the data of the fit is no part of a pickle.
        """
        self._check_has_data("Call fit, or write pyro_latent.to_arviz(model, estimator.guide_, data, ...).")
        options |= {"num_samples": num_samples, "seed": seed}
        return to_arviz(self._drawable(), self.guide_, *self.model_args_, **options, **self.model_kwargs_)

    def _check_has_data(self, advice: str) -> None:
        """The estimator has been fitted, and still holds the data of the fit.

        Raises:
            ModelError: if it was unpickled: it says what to do.
        """
        check_is_fitted(self)
        if not hasattr(self, "model_args_"):
            raise ModelError(
                "Expected the estimator that was fitted; got an unpickled one, which does not have the data. " + advice
            )

    def _drawable(self) -> Callable[..., Any]:
        """The model as a program that can be run without its guide."""
        model: Callable[..., Any] = self.guide_.model
        return model

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle keeps: not the data of the fit."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in _OF_THE_FIT}


class _At(Messenger):
    """Sites are at these values where nothing else says where they are; their priors are too wide to draw from."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class WideEstimator(Estimator):
    """An estimator whose priors are flat, or too wide for draws of them to be floating numbers."""

    def to_arviz(self, num_samples: int = 200, seed: int = 0, **options: Any) -> Any:
        """Draws of the posterior of the fit as ArviZ data; see :func:`pyro_latent.to_arviz`.

        Args:
            num_samples: the number of draws.
            seed: of the draws.
            options: further ones of :func:`pyro_latent.to_arviz`, but for ``prior_samples``.

        Raises:
            ModelError: if this estimator was unpickled, for the data of the fit is no part of a pickle.
            ArgumentError: for ``prior_samples``.
        """
        if options.get("prior_samples"):
            raise ArgumentError(
                f"Expected prior_samples=0, for these priors have no draws; got {options['prior_samples']}. Leave it "
                "out."
            )
        return super().to_arviz(num_samples, seed, **options)

    def _drawable(self) -> Callable[..., Any]:
        return _At(self.guide_.median())(self.guide_.model)


def tensors_of(values: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Numbers and arrays as tensors of a dtype; None, for a default, stays.

    Raises:
        ArgumentError: naming the first that is neither.
    """
    found: dict[str, Tensor | None] = dict.fromkeys(values)
    for name, value in values.items():
        if value is not None:
            try:
                found[name] = torch.as_tensor(np.asarray(value, dtype=float)).to(dtype)
            except (TypeError, ValueError) as error:
                message = f"Expected {name} to be numbers; got {kind_of(value)}. Leave it out, for its default."
                raise ArgumentError(message) from error
    return found


def weights_of(sample_weight: Any, rows: Tensor, least: int = 2) -> Tensor | None:
    """How many observations each of N rows counts as, ``[N]``, of the rows' dtype; None where nothing is said.

    Raises:
        ArgumentError: if they are no numbers of at least 0, one for each row, of which ``least`` are positive.
    """
    if sample_weight is None:
        return None
    try:
        given = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.shape not in ((), (len(rows),)):
        raise ArgumentError(
            f"Expected sample_weight to be {len(rows)} numbers, one for each row; got {kind_of(sample_weight)}. Leave "
            "it out, for 1 each."
        )
    fits, advice = np.isfinite(given) & (given >= 0), "Write how many observations each row counts as."
    if not fits.all():
        raise ArgumentError(
            f"Expected sample_weight to be finite and at least 0; got {given[~fits].flat[0]:g} among it. {advice}"
        )
    if (given.ndim and (given > 0).sum() < least) or not given.any():
        raise ArgumentError(
            f"Expected sample_weight to be above zero for {least} rows at least; got {(given > 0).sum()}. {advice}"
        )
    return torch.tensor(np.broadcast_to(given, len(rows)).copy()).to(rows.dtype)


def generator_of(random_state: Any) -> torch.Generator:
    """A torch generator that draws as ``random_state`` says: a seed, a NumPy state, or None for NumPy's global one."""
    return torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))


@contextmanager
def drawing(random_state: Any) -> Iterator[torch.Generator]:
    """Inside, torch's global generator draws as ``random_state`` says; after it, as if nothing had been drawn."""
    generator = generator_of(random_state)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield torch.default_generator


def check_number(name: str, value: Any, above: bool = False) -> None:
    """Check that a parameter is a finite number of at least 0, or with ``above`` of more than 0.

    Raises:
        ArgumentError: if it is not.
    """
    number = as_real(value)
    if not 0 <= number < math.inf or (above and number == 0):
        expected = "above 0" if above else "of at least 0"
        raise ArgumentError(f"Expected {name} to be a finite number {expected}; got {value!r}. Leave it out, say.")
