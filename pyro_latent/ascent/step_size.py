"""Step sizes of stochastic coordinate ascent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ArgumentError, ArgumentTypeError, as_real, check_count, in_our_words

#: The step size ρ in (0, 1] of step t = 0, 1, ….
StepSize = Callable[[int], float]


@dataclass(frozen=True)
class RobbinsMonro:
    r"""Step sizes ρ_t = (t + delay)^−forgetting, for t = 0, 1, ….

    Their sum diverges and the sum of their squares does not, so the steps reach an optimum of the whole data's ELBO
    (Robbins and Monro 1951; Hoffman et al. 2013, equation (26)).

    Args:
        delay: τ, at least 1: the larger, the less the first minibatches count.
        forgetting: κ in (0.5, 1]: the larger, the sooner the steps become small.

    Raises:
        ValueError: for values outside of these.
    """

    delay: float = 1.0
    forgetting: float = 0.7

    def __post_init__(self) -> None:
        if not as_real(self.delay) >= 1:
            raise ArgumentError(f"Expected a delay of at least 1; got {self.delay!r}.")
        if not 0.5 < as_real(self.forgetting) <= 1:
            raise ArgumentError(
                f"Expected forgetting in (0.5, 1]; got {self.forgetting!r}. Outside of it the steps do not converge."
            )

    def __call__(self, step: int) -> float:
        """The step size of step t."""
        return float((check_count("step", step, 0) + self.delay) ** -self.forgetting)


@dataclass(frozen=True)
class ConstantStep:
    """One step size for all steps: the globals then forget old minibatches at a fixed rate, and keep a noise."""

    value: float

    def __call__(self, step: int) -> float:
        """The step size."""
        return self.value


def as_step_size(step_size: float | StepSize) -> StepSize:
    """A schedule from a number or a function.

    Raises:
        ValueError: if a number is outside (0, 1].
        TypeError: if it is neither.
    """
    if isinstance(step_size, bool) or not (isinstance(step_size, int | float) or callable(step_size)):
        raise ArgumentTypeError(
            "Expected step_size to be a number in (0, 1], RobbinsMonro(...), or a function of the step; got "
            f"{step_size!r}."
        )
    if callable(step_size):
        with in_our_words("step_size to be a function of the step", lambda: "Write step_size=RobbinsMonro(), say."):
            float(step_size(0))
        return step_size
    if not 0 < step_size <= 1:
        raise ArgumentError(f"Expected a step_size in (0, 1]; got {step_size!r}.")
    return ConstantStep(float(step_size))


def described(step_size: float | StepSize | None) -> str | None:
    """What a step size is known by in a checkpoint: of a function, its first values and a few later ones."""
    if step_size is None or isinstance(step_size, int | float | RobbinsMonro):
        return None if step_size is None else repr(step_size)
    return repr([float(step_size(t)) for t in (*range(20), 100, 1_000, 10_000)])
