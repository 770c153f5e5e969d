"""One sweep of coordinate ascent in progress: its two equations, and what they are evaluated at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import DataError, ElboDecreaseError, NaturalDomainError, PyroLatentError
from ..families import Natural
from ..objective import (
    Block,
    BlockKey,
    DiscretePosterior,
    Doubt,
    Means,
    Posteriors,
    Program,
    State,
    Summand,
    as_probabilities,
    in_turn,
    natural_of,
    probabilities_of,
    responsibilities,
    starts_of,
)
from ..recording import DiscreteSite
from ..signatures import Args, Kwargs

#: How much of a start of discrete sites becomes uniform where it cannot have made the data.
_SOFTENING = 1e-3
#: A fall of the ELBO beyond this, relative to the sum of its terms' absolute values, is an error and not rounding.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-7}


def rounding_of(magnitude: float, dtype: torch.dtype) -> float:
    """The fall of an ELBO, in nats, that rounding explains, by the sum of its terms' absolute values, or of 1."""
    return _ROUNDING[dtype] * max(1.0, magnitude)


def fall_of(before: Sequence[float], elbo: Sequence[float], magnitude: Sequence[float], dtype: torch.dtype) -> float:
    """The largest fall of a start's ELBO beyond what rounding explains, in nats; 0 where there is none."""
    triples = zip(before, elbo, magnitude, strict=True)
    return max((old - new for old, new, size in triples if old - new > rounding_of(size, dtype)), default=0.0)


def check_risen(before: Sequence[float], elbo: Sequence[float], sizes: Sequence[float], program: Program) -> None:
    """Raise where the ELBO of a start has fallen; ``sizes`` are those of what it sums.

    Raises:
        ElboDecreaseError: if it fell by more than rounding explains.
    """
    if fall := fall_of(before, elbo, sizes, program.recording.dtype):
        raise ElboDecreaseError(
            f"Expected the ELBO not to fall; got a fall of {fall:.6g} nats. The guide is as before the step."
        )


class NotFiniteError(ElboDecreaseError):
    """The ELBO of a start is no number."""


def _not_finite(elbo: Sequence[float], program: Program, means: Means) -> PyroLatentError:
    """The error of an ELBO, by start, that is no number: data of density zero whatever the latents are are named."""
    sites = program.impossible(means)
    if sites:
        return DataError(
            f"Expected data that the model can have made; got a density of zero at {', '.join(map(repr, sites))}, "
            "whatever the latents are. Check probabilities of zero, and supports. The guide is as before the step."
        )
    return NotFiniteError(f"Expected a finite ELBO; got {elbo}. The guide is as before the step.")


def check_start(program: Program, starts: Mapping[str, Tensor]) -> None:
    """Raise where the start of discrete sites, which tells equal components apart, would be spent on no data.

    Raises:
        DataError: if every element of these sites is masked, and none has its value given by ``obs_mask=``.
    """
    sites = (site for site in program.discrete if site.name in starts)
    masks = {site.name: site.mask for site in sites if not _is_labeled(program, site)}
    if masks and not any(mask is None or bool(mask.any()) for mask in masks.values()):
        raise DataError(
            f"Expected data in the first batch, which the start of {', '.join(map(repr, masks))} is made for; got a "
            "batch without any. Give a batch with data first, or a start of the other sites: AutoConjugate(model, "
            "init={...})."
        )


def _is_labeled(program: Program, site: DiscreteSite) -> bool:
    """Whether some elements of a site are observed, of which ``obs_mask=`` hides the others."""
    observed = site.name.removesuffix("_unobserved") + "_observed"
    if not site.name.endswith("_unobserved") or observed not in program.recording.observations:
        return False
    mask = program.recording.scored[observed].mask
    return mask is None or bool(mask.any())


#: The model's own arguments: by position, and by keyword.
ModelArguments = tuple[Args, Kwargs]


class Sweep:
    """One sweep in progress: the blocks so far, and the discrete posterior that they are updated against.

    ``held`` is that posterior where it is known already; ``probs`` where it was given by its probabilities; ``means``
    are the mean parameters to work at, where they are not those of the state; ``hold``: whether to eliminate the
    discrete sites at once. At an ``inverse_temperature`` the sweep is that of the model's densities to this power.
    """

    def __init__(
        self,
        program: Program,
        state: State,
        arguments: ModelArguments,
        held: DiscretePosterior | None = None,
        probs: Mapping[str, Tensor] | None = None,
        means: Means | None = None,
        hold: bool = True,
        inverse_temperature: float = 1.0,
    ) -> None:
        self.program = program
        self.inverse_temperature = inverse_temperature
        self.state = state
        self.args, self.kwargs = arguments
        self.means: Means = program.means(state) if means is None else means
        self.proper: dict[BlockKey, Tensor] = {}
        self.doubts: dict[BlockKey, list[Doubt]] = {}
        self.summands: list[Summand] = []
        self._probs: dict[str, Tensor] = {}
        self.held: DiscretePosterior | None = None
        # Whether the discrete posterior that is held was given, and whether a block has changed since.
        self._is_given = self._stale = False
        if program.discrete and hold:
            self._hold(held, dict(probs or {}))

    @property
    def is_stale(self) -> bool:
        """Whether a block has changed since the discrete posterior was held."""
        return self._stale and bool(self.program.discrete)

    @property
    def exact_at(self) -> State | None:
        """The state at which the discrete posterior that is held is the exact one; None where it is given, or there is
        none.
        """
        return self._held_state if self.held is not None and not self._is_given else None

    @property
    def starts(self) -> int:
        """The number of starts that are swept at once."""
        return starts_of(self.state)

    def _hold(self, held: DiscretePosterior | None, probs: dict[str, Tensor]) -> None:
        written = [s for s in self.program.discrete if s.update is not None and s.name not in probs]
        self._held_state, self._held_means = self.state, self.means
        self._is_given = self._stale = False
        self._probs = probs
        for site in written:
            _, update = site.update  # type: ignore[misc]
            like, args, kwargs = self.program.recording.like, self.args, self.kwargs
            found = torch.stack([probabilities_of(site, update(q, *args, **kwargs), like) for q in self._posteriors()])
            at_one = self.inverse_temperature == 1
            self._probs[site.name] = found if at_one else (self.inverse_temperature * found.log()).softmax(-1)
        if self._probs and self.program.factors:
            for site in self.program.discrete:
                if site.name not in self._probs:
                    self.responsibilities(site)
            held = self._given()
            self._is_given = bool(written) or _is_finite(held)
            if not self._is_given:  # a start that cannot have made the data
                self._probs = self._possible()
                held = self._given()
                self._is_given = _is_finite(held)
            if not self._is_given:
                held, self._probs = None, {}
        self.held = held or self.program.elimination.eliminate(self.means, self.inverse_temperature)
        self.summands = self.program.elimination.held_summands(self.held)

    def _given(self) -> DiscretePosterior:
        """The discrete sites at given probabilities."""
        given = {s.name: self._probs[s.name] for s in self.program.discrete}
        return self.program.elimination.hold(given, self.means)

    def _possible(self) -> dict[str, Tensor]:
        """The posterior of each discrete site where the given probabilities, made a little softer, are one more factor:
        it tells components apart as they do, and has no weight where the data have density zero.
        """
        depth, more = self.program.recording.max_plate_nesting, {}
        for site in self.program.discrete:
            probs = self.responsibilities(site).movedim(-1, 1)
            soft = probs + _SOFTENING * (1 / site.cardinality - probs)
            more[site.name] = soft.log().reshape(*soft.shape[:2], *[1] * (depth + 2 - soft.ndim), *soft.shape[2:])
        return responsibilities(self.program, self._held_means, self.program.discrete, more=more)

    def hold(self, held: DiscretePosterior, probs: Mapping[str, Tensor]) -> None:
        """Work against a posterior of the discrete sites that is given.

        ``probs`` are its probabilities ``[starts, plates..., values]`` by site, which hand-written updates read.
        """
        self._held_state, self._held_means = self.state, self.means
        self._is_given, self._stale = True, False
        self.held, self._probs = held, dict(probs)
        self.summands = self.program.elimination.held_summands(held)

    def responsibilities(self, site: DiscreteSite) -> Tensor:
        """The held posterior of a discrete site, for each start."""
        if site.name not in self._probs:
            self._probs = responsibilities(self.program, self._held_means, self.program.discrete) | self._probs
        return as_probabilities(self._probs[site.name], site.cardinality, self.program.recording.like)

    def visit(self, key: BlockKey | None) -> None:
        r"""Set a block to its optimum given the others; None stands for the discrete sites, which are eliminated anew.

        These are the two equations of coordinate ascent,

        .. math:: η \leftarrow \frac{1}{s} \frac{\partial \bar L}{\partial μ}, \qquad μ \leftarrow ∇A(η).
        """
        if key is None:
            if self.is_stale:
                self._hold(None, {})
            return
        block = self.program.blocks[key]
        for turn in self.program.turns.get(key, (None,)):
            natural = self.optimum_of(block)  # η ← ∂L̄/∂μ / s
            natural = natural if turn is None else in_turn(turn, natural, self.state[key])
            self.set(key, natural)  # μ ← ∇A(η)

    def optimum_of(self, block: Block) -> Natural:
        """The natural parameters of the block's optimum: by its hand-written update if it has one, else derived."""
        if block.update is not None:
            return self._written(block)
        at, start = self.inverse_temperature, self.state[block.key]
        doubts = self.doubts.setdefault(block.key, []) if block.is_point else None
        return self.program.optimum(block.key, self.means, self.summands, None, at, start, doubts)

    def _written(self, block: Block) -> Natural:
        """The natural parameters of the optimum that a hand-written update gives."""
        where, like = f"the update of {block.label!r}", self.program.recording.like
        names, update = block.update
        given = [name for name in names if name in self.program.recording.observations]
        advice = f"It is of {names}, of which {given} are observed: write one of the others alone." if given else ""
        values = [update(q, *self.args, **self.kwargs) for q in self._posteriors()]
        found = [natural_of(block, value, where, like, advice) for value in values]
        natural = Natural(**{n: torch.stack([f[n] for f in found]) for n in block.family.statistics})
        at_one = self.inverse_temperature == 1 or block.is_point
        return natural if at_one else block.family.tempered(natural, self.inverse_temperature)

    def set(self, key: BlockKey, natural: Natural) -> None:
        """Put a block at given natural parameters, and at their mean parameters μ = ∇A(η)."""
        self._stale = True
        proper = self.program.blocks[key].family.in_domain(natural).all()
        self.proper[key] = proper & self.proper[key] if key in self.proper else proper
        self.state = self.state | {key: natural}
        self.means = self.program.means_after(self.means, key, natural)

    def _posteriors(self) -> list[Posteriors]:
        """The current posteriors of every start, for hand-written updates."""
        probs = {
            s.name: self.responsibilities(s) for s in self.program.discrete if s.update is None or s.name in self._probs
        }
        params = {k: b.params(self.state[k]) for k, b in self.program.blocks.items()}
        return [
            Posteriors(
                self.program,
                {k: {n: t[i] for n, t in p.items()} for k, p in params.items()},
                {n: r[i] for n, r in probs.items()},
            )
            for i in range(self.starts)
        ]

    def rounds(self, local: Sequence[BlockKey], count: int, tol: float | None) -> None:
        """Visit the local blocks and the discrete sites in turn, until no mean parameter moves by more than ``tol``."""
        for _ in range(count if local else 0):
            before = self.means
            for key in local:
                self.visit(key)
            self.visit(None)
            if tol is not None and float(change_of_means(before, self.means, local)) <= tol:
                break

    def blend(self, key: BlockKey, natural: Natural, step_size: float) -> None:
        """Take a natural-gradient step towards an optimum: η ← (1 − ρ) η + ρ η̂."""
        if step_size < 1:
            natural = self.program.blocks[key].family.blend(self.state[key], natural, step_size)
        self.set(key, natural)

    def check_proper(self, more: Sequence[Tensor] = ()) -> list[float]:
        """Raise where an update was improper; one transfer from the device, which brings ``more`` along: the ELBO of
        each start, and further numbers of it.

        Raises:
            NaturalDomainError: naming the first block outside its domain.
            DataError: if the ELBO is not finite, for data have density zero whatever the latents are, with their sites.
            NotFiniteError: if it is not finite otherwise.
        """
        tensors = [*self.flags, *more]
        return self.checked(torch.cat(tensors)) if tensors else []

    @property
    def flags(self) -> list[Tensor]:
        """Whether every update of a block was proper, and inside its constraint, by block; float64 ``[1]`` each."""
        found = []
        for key, is_well in self.proper.items():
            for doubt in self.doubts.get(key, ()):
                is_well = is_well & doubt.is_well
            found.append(is_well.reshape(1).double())
        return found

    def checked(self, report: Tensor) -> list[float]:
        """The numbers after the :attr:`flags` in one tensor of both; raises as :meth:`check_proper` does."""
        values: list[float] = report.tolist()
        for key, flag in zip(self.proper, values, strict=False):
            if not flag:
                raise self._improper(key)
        numbers = values[len(self.proper) :]
        if not all(map(math.isfinite, numbers)):
            raise _not_finite(numbers[: self.starts], self.program, self.means)
        return numbers

    def _improper(self, key: BlockKey) -> NaturalDomainError:
        """The error of a block whose update was improper; that of a constraint is raised."""
        for doubt in self.doubts.get(key, ()):
            doubt.check()
        block = self.program.blocks[key]
        return NaturalDomainError(
            f"Expected the update of {block.label!r} to be a proper {block.family.name}; got natural parameters "
            "outside its domain. A prior may be improper, columns of a design may depend on each other, or the data be "
            "too extreme for its precision: center and scale the data and the columns, or use float64. The guide is as "
            "before the step."
        )


def _is_finite(held: DiscretePosterior) -> bool:
    """Whether a posterior gives no weight to what has density zero, for every start."""
    return bool(held.log_normalizer.isfinite().all())


def change_of_means(before: Means, after: Means, keys: Sequence[BlockKey]) -> Tensor:
    """The largest absolute change of a mean parameter; 0-dimensional."""
    return torch.stack([(after[k][n] - before[k][n]).abs().max() for k in keys for n in after[k]]).max()


__all__ = [
    "ModelArguments",
    "NotFiniteError",
    "Sweep",
    "change_of_means",
    "check_start",
    "fall_of",
    "rounding_of",
]
