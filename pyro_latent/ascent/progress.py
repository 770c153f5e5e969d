"""How far a run over passes of data has come, how it goes on from a checkpoint, and what it reached."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ArgumentTypeError, ModelError, PyroLatentError
from ..objective import State
from ..signatures import PlainState
from .batches import RandomState, generators_of, restore_state, state_of
from .steps import Steps


@dataclass(frozen=True, repr=False)
class CAVIResult:
    """What :meth:`CAVI.run` reached; ``print`` says it in three lines.

    Attributes:
        elbo: the ELBO at the end of each sweep, in nats, as it was computed: 1-D, float64. It never falls by more than
            rounding, relative to the sum of its terms' absolute values (or to 1, if that is more): 1e-9 of it for data
            in float64, 1e-4 in float32. On minibatches it is an unbiased estimate at each step, and with
            ``memoised=True`` the exact ELBO of the pieces seen so far.
        converged: whether the last sweep (or pass over pieces) raised it by no more than the tolerance, and not only
            because float32 lacks the digits to raise it.
        num_steps: the number of steps.
        restarts: the last ELBO of every start; the best one is the guide's. It is −∞ for a start that was dropped.
        dropped: by the number of each start that was dropped, the error that its updates ended in, while others went
            on.
        augmented: the auxiliary sites of the guide's ``reparam=True``: the ELBO is that of the model with them, which
            is at most the one of its own sites under the same posterior.
        moves: with ``merges=True``, how many moves of each kind the best start has taken on, "merge", "delete" and
            "order"; with ``accelerate=True``, how many sweeps began at an extrapolated "point" and were kept, and how
            many were "refused": these are sweeps beside those of ``num_steps``.
    """

    elbo: Tensor
    converged: bool
    num_steps: int
    restarts: Tensor
    dropped: Mapping[int, str] = field(default_factory=dict)
    augmented: tuple[str, ...] = ()
    moves: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.num_steps:
            return f"{type(self).__name__}: no step was taken"
        last = f", after {float(self.elbo[-2]):.6f} one step before" if self.num_steps > 1 else ""
        lines = [
            f"{type(self).__name__}: {'converged' if self.converged else 'not converged'} after {self.num_steps} steps",
            f"ELBO {float(self.elbo[-1]):.6f} nats{last}",
            self._starts_in_words(),
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def _starts_in_words(self) -> str:
        """The starts, moves and auxiliary sites."""
        kept = self.restarts[self.restarts > -math.inf]
        words = [f"{len(self.restarts)} start" + ("s" if len(self.restarts) > 1 else "")]
        if len(kept) > 1:
            words[0] += f", with an ELBO from {float(kept.min()):.6f} to {float(kept.max()):.6f}"
        words += [f"{len(self.dropped)} dropped (result.dropped)"] if self.dropped else []
        words += [f"moves: {', '.join(f'{n} {kind}' for kind, n in self.moves.items())}"] if self.moves else []
        words += [f"with the auxiliary sites {', '.join(self.augmented)}"] if self.augmented else []
        return "; ".join(words)


class Progress:
    """The ELBOs of a run, where its passes end, and the random state that its batches are drawn with.

    Args:
        resumes: whether the run is kept in a file: else no random state is taken down, which waits for a GPU.

    Attributes:
        ends: the number of steps at the end of each pass.
    """

    def __init__(self, resumes: bool = False) -> None:
        self._resumes = resumes
        self.ends: list[int] = []
        self._elbo = array("d")  # of every start after each step, in nats: one step after another
        self._starts = 1
        self._pass_random: RandomState | None = None
        self._resumed: RandomState | None = None
        self._generators: list[torch.Generator] = []

    def __len__(self) -> int:
        """The number of steps."""
        return len(self._elbo) // self._starts

    @property
    def in_pass(self) -> int:
        """The number of steps of the pass that is under way."""
        return len(self) - (self.ends[-1] if self.ends else 0)

    def after(self, step: int) -> list[float]:
        """The ELBO of every start after a step; −1 is the last one."""
        step %= len(self)
        return self._elbo[step * self._starts : (step + 1) * self._starts].tolist()

    def add(self, elbo: Sequence[float]) -> None:
        """Take down a step."""
        self._starts = len(elbo)
        self._elbo.extend(elbo)

    @property
    def history(self) -> Tensor:
        """The ELBO after each step, in nats: float64 ``[steps, starts]``."""
        if not self._elbo:
            return torch.empty(0, self._starts, dtype=torch.float64)
        return torch.frombuffer(self._elbo, dtype=torch.float64).clone().reshape(-1, self._starts)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`to_state`."""
        history = state["history"]
        self._elbo, self._starts = array("d", history.reshape(-1).tolist()), history.shape[1]
        self.ends = state["ends"].tolist()
        self._pass_random, self._resumed = state["pass_random"], state["random"]

    def to_state(self) -> PlainState:
        """What a resumed run needs, the random state of now included."""
        place = {"history": self.history, "ends": torch.tensor(self.ends), "pass_random": self._pass_random}
        return place | {"random": state_of(self._generators)}

    def rest(self, batches: Iterable[object]) -> Iterator[tuple[int, Any]]:
        """The batches of this pass that are left, with their numbers, in the order that the killed run had.

        A pass that was cut is begun again from the random state that it was begun with; where it was cut, before its
        next batch is asked for, the random state is that of the cut.
        """
        done = self.in_pass
        self._generators = generators_of(batches)
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            began = self._pass_random if done and self._pass_random is not None else resumed
            restore_state(began, self._generators)
        if self._resumes and (resumed is None or not done):
            self._pass_random = state_of(self._generators)
        remaining = iter(batches)
        for _ in range(done):
            next(remaining, None)
        if resumed is not None and done:
            restore_state(resumed, self._generators)
        yield from enumerate(remaining, start=done)

    def end_pass(self) -> None:
        """Note the end of a pass.

        Raises:
            ModelError: if it had no batch.
        """
        if not len(self) or (self.ends and self.ends[-1] == len(self)):
            raise ModelError("Expected batches of data; got none. Give a list of batches or a DataLoader.")
        self.ends.append(len(self))

    def has_settled(self, tol: float) -> bool:
        """Whether the last pass raised the ELBO of no start by more than the tolerance; one that was dropped, at −∞,
        did not rise. The first pass has nothing to compare with.
        """
        if tol <= 0 or len(self.ends) < 2:
            return False
        before, after = (self.after(end - 1) for end in self.ends[-2:])
        return all(a == -math.inf or a - b <= tol * max(1.0, abs(a)) for b, a in zip(before, after, strict=True))


@contextlib.contextmanager
def naming_batches(progress: Progress) -> Iterator[None]:
    """An error of the library in a step on a batch says which batch of which pass it is, both counted from 0."""
    try:
        yield
    except PyroLatentError as error:
        error.args = (
            f"{error} It came up at batch {progress.in_pass} of pass {len(progress.ends)}, both counted from 0.",
        )
        raise


def lacks_digits(steps: Steps, state: State, progress: Progress, tol: float) -> bool:
    """Whether a run in float32 stopped because its updates are rounded, and not at an optimum, which is a warning."""
    rise, least = steps.rise_left(state)
    if rise <= max(least, tol) * max(1.0, abs(max(progress.after(-1)))):
        return False
    warnings.warn(
        "Expected float32 to have the digits for this fit; got an ELBO that one sweep in float64 raises by "
        f"{rise:.3g} nats, so it has not converged. Subtract the means of data and of columns of a design, and "
        "divide by their spread, or write x.double().",
        stacklevel=4,
    )
    return True


def warn_of_annealing(max_steps: int) -> None:
    """A run ended before its sweeps at a temperature."""
    warnings.warn(
        f"Expected more steps than those of annealing; got max_steps={max_steps}: the posterior is that of the "
        "model's densities to a power. Run again, which goes on from here, or with a larger max_steps.",
        stacklevel=4,
    )


def check_callback(callback: object) -> None:
    """Raise where a callback cannot be called with the number of steps and the ELBO.

    Raises:
        ArgumentTypeError: before the first step.
    """
    try:
        fits = callback is None or (callable(callback) and bool(inspect.signature(callback).bind(1, 0.0)))
    except TypeError:
        fits = False
    except ValueError:  # a compiled function, whose arguments nobody knows
        fits = True
    if not fits:
        raise ArgumentTypeError(
            f"Expected callback to be a function of the number of steps and the ELBO; got {callback!r}. Write "
            "callback=lambda step, elbo: ..."
        )


class _AskedToEnd(Exception):
    """A callback ends a run."""


@contextlib.contextmanager
def recording(
    progress: Progress,
    write: Callable[[bool], None],
    total: int | None,
    bar: bool,
    callback: Callable[[int, float], Any] | None,
) -> Iterator[Callable[[Sequence[float]], None]]:
    """What takes down each step's ELBOs: in the history, the checkpoint, the bar, and for the callback.

    Ctrl-C, or a callback that returns True, ends the run there; the checkpoint is written at the end.

    Args:
        progress: the run's.
        write: writes the checkpoint if it is time, or, given True, in any case.
        total: the number of steps, where it is known.
        bar: whether to show a progress bar.
        callback: called with the number of steps and the best ELBO.
    """
    with tqdm(total=total, initial=len(progress), disable=not bar, desc="CAVI") as shown:

        def record(elbo: Sequence[float]) -> None:
            progress.add(elbo)
            write(False)
            shown.update()
            shown.set_postfix_str(f"ELBO {max(elbo):.6f}", refresh=False)
            if callback is not None and callback(len(progress), max(elbo)) is True:
                raise _AskedToEnd

        with contextlib.suppress(KeyboardInterrupt, _AskedToEnd):
            yield record
    if len(progress):
        write(True)


__all__ = ["CAVIResult", "Progress", "check_callback", "naming_batches", "recording"]
