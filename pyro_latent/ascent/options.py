"""The options of ``CAVI`` that say how it steps."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, as_real, check_choice
from ..guide import AutoConjugate
from .acceleration import AcceleratedSteps
from .distributed import DistributedSteps
from .distributed_batches import SharedMemoisedSteps, SharedStochasticSteps
from .full import FullSteps
from .memoised import MemoisedSteps
from .merging import MergingSteps
from .ranks import Alone, Ranks
from .step_size import StepSize, as_step_size, described
from .steps import Steps
from .stochastic import StochasticSteps
from .structured import StructuredSteps

#: The inverse temperature of the first sweep. Much below it the components of a mixture become one and stay so.
_FIRST = 0.7
_WRITE = "Write annealing=60, say, or annealing=[0.7, 0.8, 0.9]; exact sweeps come after these."


def inverse_temperatures(annealing: int | Sequence[float]) -> tuple[float, ...]:
    """The inverse temperature of each sweep: as given, or of so many sweeps, rising from 0.7 by one factor.

    Raises:
        ArgumentTypeError: for what is neither.
        ArgumentError: for a negative number of sweeps, or an inverse temperature outside (0, 1].
    """
    if isinstance(annealing, np.generic | np.ndarray | Tensor):
        annealing = annealing.tolist()
    if isinstance(annealing, int) and not isinstance(annealing, bool):
        if annealing < 0:
            raise ArgumentError(f"Expected annealing to be a number of sweeps of at least 0; got {annealing}. {_WRITE}")
        return tuple(_FIRST ** (1 - t / annealing) for t in range(annealing))
    if isinstance(annealing, bool | str | bytes) or not isinstance(annealing, Sequence):
        raise ArgumentTypeError(
            "Expected annealing to be a number of sweeps, or a sequence of inverse temperatures in (0, 1]; got "
            f"{annealing!r}. {_WRITE}"
        )
    for value in annealing:
        if not 0 < as_real(value) <= 1:
            raise ArgumentError(f"Expected inverse temperatures in (0, 1]; got {value!r}. {_WRITE}")
    return tuple(map(float, annealing))


def check_guide(model: object, guide: object, more: Sequence[object]) -> None:
    """Raise where the first arguments of ``CAVI`` are no model and guide, or there are others beside them.

    Raises:
        ArgumentTypeError: for another kind of guide, or more arguments.
        ArgumentError: for the guide of another model.
    """
    if more:
        raise ArgumentTypeError(
            f"Expected CAVI(model, guide); got {len(more)} more arguments. Leave out the optimizer and the loss of "
            "SVI: each update is an optimum in closed form, and the loss is the exact -ELBO."
        )
    if not isinstance(guide, AutoConjugate):
        kind = "an autoguide for SVI" if isinstance(guide, AutoGuide) else type(guide).__name__
        raise ArgumentTypeError(
            f"Expected an AutoConjugate guide; got {kind}. Write CAVI(model, AutoConjugate(model))."
        )
    if not callable(model) or guide.model != model:  # a bound method is another object each time
        raise ArgumentError("Expected the guide of this model; got the guide of another. Write AutoConjugate(model).")


def steps_for(
    step_size: float | StepSize | None,
    memoised: bool | str | PathLike[str],
    structured: int,
    annealing: Sequence[float],
    merges: bool,
    accelerate: bool,
    ranks: Alone | Ranks,
) -> Steps:
    """The way to step that the arguments of ``CAVI`` ask for."""
    folder, memoised = folder_of(memoised), bool(memoised)
    for name, value in (("merges", merges), ("accelerate", accelerate)):
        check_choice(name, value, [False, True])
    if isinstance(ranks, Ranks):
        others = {"structured": structured, "annealing": annealing, "merges": merges, "accelerate": accelerate}
        besides = [name for name, value in others.items() if value]
        if besides:
            raise ArgumentError(
                "Expected sweeps, steps on minibatches or memoised steps with a process_group; got "
                f"{', '.join(besides)} besides. Leave one of them out."
            )
    if memoised and step_size is not None:
        raise ArgumentError("Expected step_size or memoised=True; got both. Memoised inference has no step size.")
    if structured and step_size is None:
        raise ArgumentError("Expected a step_size with structured inference; got none. Write step_size=RobbinsMonro().")
    if merges and accelerate:
        raise ArgumentError(
            "Expected merges=True or accelerate=True; got both. Run with merges=True first; a driver with "
            "accelerate=True goes on from its guide."
        )
    if isinstance(ranks, Ranks) and step_size is None and not memoised:
        return DistributedSteps(ranks)
    if step_size is None and not memoised:
        return (MergingSteps if merges else AcceleratedSteps if accelerate else FullSteps)(annealing)
    asked = {"annealing": (annealing, "anneal"), "merges": (merges, "merge"), "accelerate": (accelerate, "accelerate")}
    for what, (is_asked, verb) in asked.items():
        if is_asked:
            raise ArgumentError(
                f"Expected {what} on all of the data; got {'memoised=True' if memoised else 'a step_size'}. Leave one "
                f"of them out: {verb} on a part of the data, and give its posterior as init=."
            )
    shared = ranks if isinstance(ranks, Ranks) and ranks.size > 1 else None
    if memoised:
        return MemoisedSteps(folder) if shared is None else SharedMemoisedSteps(shared, folder)
    assert step_size is not None
    size = as_step_size(step_size)
    if shared is not None:
        return SharedStochasticSteps(shared, size)
    return StructuredSteps(size, structured) if structured else StochasticSteps(size)


def folder_of(memoised: bool | str | PathLike[str]) -> str | PathLike[str] | None:
    """Where pieces are kept; None: in memory.

    Raises:
        ArgumentError: for what is neither a folder nor a Boolean.
    """
    if isinstance(memoised, str | PathLike) and str(memoised):
        return memoised
    if isinstance(memoised, bool):
        return None
    raise ArgumentError(f"Expected memoised to be True, False or a folder; got {memoised!r}. Write memoised=True.")


def compile_sweeps(steps: Steps, jit_compile: bool | None) -> None:
    """Say whether steps are compiled.

    Raises:
        ArgumentTypeError, ArgumentError: for what is no such choice, or steps that cannot be.
    """
    check_choice("jit_compile", jit_compile, [None, False, True])
    if isinstance(steps, FullSteps | StochasticSteps) and not isinstance(
        steps, StructuredSteps | SharedStochasticSteps
    ):
        steps.compiled.wanted = jit_compile
    elif jit_compile:
        raise ArgumentError(
            "Expected jit_compile=True with sweeps over all of the data, or with a step_size; got memoised=True, "
            "structured inference or a process_group. Leave jit_compile=True out."
        )


def settings_of(
    step_size: float | StepSize | None,
    memoised: bool | str | PathLike[str],
    structured: int,
    annealing: Sequence[float],
    merges: bool,
    accelerate: bool,
) -> dict[str, Any]:
    """The arguments of ``CAVI`` that a checkpoint is of, in plain types."""
    return {
        "step_size": described(step_size),
        "memoised": bool(memoised),
        "structured": structured,
        "annealing": list(annealing),
        "merges": merges,
        "accelerate": accelerate,
    }


__all__ = ["check_guide", "compile_sweeps", "inverse_temperatures", "settings_of", "steps_for"]
