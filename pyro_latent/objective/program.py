r"""A compiled model: the ELBO as a function of the mean parameters, and the two equations that raise it.

.. math:: \bar L(μ) + \sum_b s_b (A_b(η_b) - \langle η_b, μ_b \rangle)

A sweep is, block by block, :meth:`Program.optimum_of` and :meth:`Program.means_after`,

.. math:: η_b \leftarrow \frac{1}{s_b} \frac{\partial \bar L}{\partial μ_b}, \qquad μ_b \leftarrow ∇A_b(η_b).

:func:`.compile_program` makes a program of a recording; :class:`.DiscreteElimination` is its discrete part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import NotConjugateError
from ..expressions.variables import Variable
from ..families import Mean, Natural
from ..families.quadrature import Quadrature
from ..recording import DiscreteSite, Recording
from .blocks import Block, BlockKey, Means, State, starts_of
from .bound import ElboBound
from .densities import usable_terms, with_indicators
from .derived import with_derived
from .discrete import DiscreteElimination, DiscretePosterior
from .expectation import expect
from .factors import DiscreteFactor
from .joints import Joint
from .log_sums import LogSum
from .modes import DEGREES, Doubt, degree_of, joint_mode, mode
from .repeated_sums import SiteSums
from .summands import Summand, cast, gradients, merged, sum_of, summand_of

#: New data's local blocks are set to their optimum in at most so many rounds, or until they move less than this.
_SETTLING_ROUNDS = 100
_SETTLED = 1e-10
#: Points of more elements in all than this are maximized over one after another: a Hessian is its square.
_MOST_TOGETHER = 2000


@dataclass(frozen=True, eq=False)
class Program:
    """The ELBO of a recorded model under blocks; :func:`.compile_program` makes it.

    Attributes:
        recording: the model.
        blocks: the factors of q in the order of the model, but for those of ``elimination``.
        owners: by latent site its block and its place there; by derived variable a point block that stands for it.
        derived: what the model computes from points by operations without a rule.
        mean_field: by discrete site whose elements are independent in q, why they are.
        elimination: the other discrete sites, and the densities that depend on them.
        site_summands: by site the sums that its log density gives, but for factors over discrete sites.
        exact_summands: all of them in float64, which the ELBO is computed in: where terms cancel, float32 loses nats.
            Large ones, by datum, are kept in the dtype of the data alone.
        whole_summands, part_summands: those of sites outside of subsampled plates, and of those inside, in the dtype
            of the data.
        turns: by block whose elements meet in a density, masks over them: the elements of each are updated together.
        local, shared: the blocks that belong to the data at hand, and those of which nobody can tell.
    """

    recording: Recording
    blocks: dict[BlockKey, Block]
    owners: Mapping[str, tuple[Block, int]]
    derived: Sequence[Variable]
    mean_field: Mapping[str, str]
    elimination: DiscreteElimination
    site_summands: SiteSums
    exact_summands: list[Summand]
    whole_summands: list[Summand]
    part_summands: list[Summand]
    turns: Mapping[BlockKey, list[Tensor]]
    local: frozenset[BlockKey]
    shared: frozenset[BlockKey]

    @cached_property
    def summands(self) -> list[Summand]:
        """All sums over parameters, in the dtype of the data."""
        return self.whole_summands + self.part_summands

    @cached_property
    def log_sums(self) -> list[LogSum]:
        """Those that are logarithms of sums of rates."""
        return [s for s in self.summands if isinstance(s, LogSum)]

    @cached_property
    def by_block(self) -> dict[BlockKey, list[Summand]]:
        """By block, the sums that depend on it."""
        return {key: [s for s in self.summands if key in s.blocks] for key in self.blocks}

    @cached_property
    def params(self) -> list[Block]:
        """The blocks that are parameters of the model, ``pyro.param`` sites."""
        return [block for block in self.blocks.values() if block.is_param]

    @cached_property
    def default_order(self) -> list[BlockKey]:
        """The blocks by their rank, in the order of their updates where none is given."""
        return [block.key for block in sorted(self.blocks.values(), key=lambda block: block.rank)]

    @cached_property
    def discrete(self) -> list[DiscreteSite]:
        """The discrete sites with an exact posterior."""
        return self.elimination.sites

    @cached_property
    def factors(self) -> list[DiscreteFactor]:
        """The expected log densities that depend on them."""
        return self.elimination.factors

    @cached_property
    def joints(self) -> list[Joint]:
        """The sets of them that hang together."""
        return self.elimination.joints

    @cached_property
    def is_exact(self) -> bool:
        """Whether states are in float64 as they stand."""
        return self.recording.dtype == torch.float64

    # The two equations of a sweep.

    def optimum_of(
        self,
        block: Block,
        means: Means,
        terms: Sequence[Summand],
        inverse_temperature: float = 1.0,
        start: Natural | None = None,
    ) -> Natural:
        """η ← ∂L̄/∂μ / s: the natural parameters that a sum of terms gives a block; those of a scalar by quadrature are
        made into a table at once, with the panels of ``start`` where they serve.
        """
        slopes = gradients(block, means, terms)
        if isinstance(block.family, Quadrature):
            return block.family.optimum(slopes, block.scale, block.mask, inverse_temperature, start)
        natural = Natural(**{n: slopes[n] / scale for n, scale in block.plate_scales.items()})
        natural = natural if inverse_temperature == 1 else block.family.tempered(natural, inverse_temperature)
        return natural if block.mask is None else block.where_read(natural)

    def means_after(self, means: Means, key: BlockKey, natural: Natural) -> Means:
        """μ ← ∇A(η): the mean parameters with one block's new ones."""
        means = means | {key: self.blocks[key].family.mean(natural)}
        changed = [v for v in self.derived if key in v.parents]
        return with_derived(means, changed, self.blocks, self.recording.dtype) if changed else means

    def optimum(
        self,
        key: BlockKey,
        means: Means,
        held: Sequence[Summand],
        summary: Sequence[Summand] | None = None,
        inverse_temperature: float = 1.0,
        start: Natural | None = None,
        doubts: list[Doubt] | None = None,
    ) -> Natural:
        """The coordinate optimum of a block, by :meth:`optimum_of`; of a point, the value that maximizes L̄.

        ``held`` are the factors over discrete sites as sums; ``summary`` takes the place of the terms in subsampled
        plates. It is that of the density to the ``inverse_temperature``; ``doubts`` are those of :func:`.mode`.
        """
        base = self.by_block[key] if summary is None else [*self.whole_summands, *summary]
        block, terms = self.blocks[key], [s for s in (*base, *held) if key in s.blocks]
        if block.is_point:
            self._check_closed_form(block)
            return mode(block, means, terms, doubts)
        return self.optimum_of(block, means, terms, inverse_temperature, start)

    def _check_closed_form(self, block: Block) -> None:
        """Raise where something is computed from a point by an operation without a rule."""
        used = sorted({v.site.split()[0] for v in self.derived if block.key in v.parents})
        if used:
            raise NotConjugateError(
                f"Expected a maximum over {block.label!r} in closed form; got a model that computes {', '.join(used)} "
                "of it. Use EM(model, m_step='gradient')."
            )

    def quadratic_groups(
        self, points: Sequence[BlockKey], coupled: Mapping[BlockKey, set[BlockKey]], held: Sequence[Summand]
    ) -> dict[BlockKey, list[BlockKey]]:
        """By point, the points that hang together with it through terms that are jointly quadratic in them.

        ``coupled`` are by point those that it shares a term with.
        """
        terms = [s for s in (*self.summands, *held) if s.blocks & set(points)]
        derived = {parent for variable in self.derived for parent in variable.parents}
        others = {m.block.key for s in terms for m in s.moments if m.statistic not in DEGREES} | derived
        others |= {key for key in points if self.blocks[key].update is not None}
        found: dict[BlockKey, list[BlockKey]] = {}
        seen = set(others)
        for start in points:
            group = [start] if start not in seen else []
            for key in group:  # grows on the way
                group += [k for k in points if k in coupled[key] and k not in others and k not in group]
            seen |= set(group)
            blocks = [self.blocks[key] for key in group]
            if len(group) < 2 or sum(b.numel for b in blocks) > _MOST_TOGETHER:
                continue
            if degree_of(terms, blocks) <= 2:
                found |= dict.fromkeys(group, group)
        return found

    def joint_optimum(
        self, keys: Sequence[BlockKey], means: Means, held: Sequence[Summand]
    ) -> dict[BlockKey, Natural] | None:
        """The joint maximum over points that L̄ is quadratic in; None where it is not concave in them."""
        terms = [s for s in (*self.summands, *held) if s.blocks & set(keys)]
        best = joint_mode([self.blocks[key] for key in keys], means, terms)
        return None if best is None else dict(zip(keys, best, strict=True))

    # Mean parameters.

    def means(self, state: State) -> Means:
        """The mean parameters of every block, and what the model computes from its points."""
        means = {key: block.family.mean(state[key]) for key, block in self.blocks.items()}
        return self.with_derived(means) if self.derived else means

    def with_derived(self, means: Means) -> Means:
        """The mean parameters, with what depends on points computed again."""
        return with_derived(means, self.derived, self.blocks, self.recording.dtype) if self.derived else means

    def exactly(self, state: State) -> tuple[State, Means]:
        """A state and its mean parameters in float64: the ELBO of the state as it stands, without further rounding."""
        exact = {key: natural.map(Tensor.double) for key, natural in state.items()}
        return exact, self.means(exact)

    def blank_mean(self, block: Block, starts: int) -> Mean:
        """Mean parameters of the block's shapes, of no meaning: a place to take gradients at."""
        return block.family.mean(self.standard(block, starts))

    def standard(self, block: Block, starts: int) -> Natural:
        """The natural parameters of some proper member of the block's family."""
        params = {n: p.to(self.recording.like).expand(starts, *p.shape) for n, p in block.example.items()}
        return block.family.from_params(params)

    # The ELBO.

    def bound(self, state: State, means: Means, held: DiscretePosterior | None = None) -> ElboBound:
        """The ELBO of each start, in float64, with the discrete sites at their exact posterior.

        ``held``: or at this posterior of theirs, held at the same mean parameters.
        """
        if held is None and self.factors:
            held = self.elimination.eliminate(means)
        exact_state, exact = (state, means) if self.is_exact else self.exactly(state)
        total, magnitude = self.terms(exact_state, exact, self.blocks, self.exact_summands)
        if held is not None:
            total = total + held.log_normalizer + self.unrounded(held, means, exact)
            magnitude = magnitude + held.magnitude
        return ElboBound(total, magnitude, held)

    def terms(
        self, state: State, means: Means, keys: Iterable[BlockKey], summands: Iterable[Summand] = ()
    ) -> tuple[Tensor, Tensor]:
        """The entropy of some blocks, A(η) − ⟨η, μ⟩, and some sums over parameters, for each start, and the size of
        what it sums; float64.
        """
        starts = starts_of(state)
        total = torch.zeros(starts, dtype=torch.float64, device=self.recording.device)
        magnitude = torch.zeros_like(total)
        for key in keys:
            block = self.blocks[key]
            for part in (block.family.log_normalizer(state[key]), -block.family.inner(state[key], means[key])):
                weighted = block.weight(part).reshape(starts, -1)
                total = total + weighted.sum(1, dtype=torch.float64)
                magnitude = magnitude + weighted.abs().sum(1, dtype=torch.float64)
        for summand in summands:
            value = summand.value(means).double()
            total, magnitude = total + value, magnitude + value.abs()
        return total, magnitude

    def entropy(self, state: State, held: DiscretePosterior | None) -> Tensor:
        """H(q) for each start, float64."""
        total = self.terms(*self.exactly(state), self.blocks)[0]
        return total if held is None else total + held.entropy

    def unrounded(self, held: DiscretePosterior, means: Means, exact: Means) -> Tensor | float:
        """What log Z of the discrete sites, computed at mean parameters that are rounded, lacks to that at exact ones.

        The gradient of log Z is the posterior that is held, so the difference is that of the sums over parameters, up
        to the square of the rounding. It matters: one rounded parameter is rounded alike for all of the data.
        """
        if self.is_exact:
            return 0.0
        found = self.elimination.held_summands(held)
        return sum(s.value(exact) - s.value(means, torch.float64) for s in found)

    def rise_unrounded(self, state: State, held: DiscretePosterior | None) -> Tensor:
        """How much the ELBO of each start rises, in nats, by one sweep in float64 with the discrete sites held.

        Near zero at an optimum. Where float32 has stopped short of one, for want of digits, it is not.
        """
        state, means = self.exactly(state)
        summands = cast([*self.exact_summands, *self.elimination.held_summands(held)], torch.float64)
        keys = [k for k, b in self.blocks.items() if not b.is_point and b.update is None and k not in self.turns]

        def level() -> Tensor:
            return self.terms(state, means, keys, [s for s in summands if s.blocks])[0]

        before = level()
        for key in keys:
            block = self.blocks[key]
            natural = self.optimum_of(block, means, [s for s in summands if key in s.blocks], start=state[key])
            if bool(block.family.in_domain(natural).all()):
                state, means = state | {key: natural}, self.means_after(means, key, natural)
        return level() - before

    def points_energy(self, means: Means, held: Sequence[Summand]) -> Callable[[Means], Tensor]:
        """Q as a function of the points, for each start: the terms that depend on them, the other blocks held fixed; in
        float64, as the ELBO.
        """
        keys = {k for k, b in self.blocks.items() if b.is_point} | {v.site for v in self.derived}
        found = [s for s in (*self.exact_summands, *cast(held, torch.float64)) if s.blocks & keys]

        def energy(points: Means) -> Tensor:
            at_points = self.with_derived(means | points)
            return sum_of(s.value(at_points) for s in found)

        return energy

    def impossible(self, means: Means) -> list[str]:
        """The sites whose density is zero whatever the discrete latents are, in the order of the model."""
        found = {n for n, own in self.site_summands.items() if any(bool(s.value(means).isneginf().any()) for s in own)}
        found |= self.elimination.impossible(means)
        return [name for name in self.recording.scored if name in found]

    # Blocks.

    def is_local(self, key: BlockKey) -> bool:
        """Whether a block belongs to the data at hand: it lies in a subsampled plate, or, where none is, each
        observation has an element of its own, or the model says so.
        """
        return key in self.local

    def is_shared(self, key: BlockKey) -> bool:
        """Whether nobody can tell whether a block belongs to the data at hand: several observations share an element
        of it, and others another; and the model does not say.
        """
        return key in self.shared

    def in_subsample(self, key: BlockKey) -> bool:
        """Whether a block lies in a subsampled plate, so that it is of the minibatch at hand only."""
        return self.recording.is_subsample and key in self.local

    def settled(self, state: State, local: Sequence[BlockKey], means: Means | None = None) -> State:
        """The local blocks at their optimum given the others, as far as a number of rounds reaches.

        ``means``: the mean parameters to start from, where they are not those of the state.
        """
        means = self.means(state) if means is None else means
        for _ in range(_SETTLING_ROUNDS if local else 0):
            before = {k: means[k] for k in local}
            summands = self.elimination.held_summands(self.elimination.eliminate(means))
            for key in local:
                for turn in self.turns.get(key, (None,)):
                    natural = in_turn(turn, self.optimum(key, means, summands, start=state[key]), state[key])
                    state = state | {key: natural}
                    means = self.means_after(means, key, natural)
            moved = [
                ((means[k][n] - before[k][n]).abs() / (1 + before[k][n].abs())).max() for k in local for n in means[k]
            ]
            if float(torch.stack(moved).max()) < _SETTLED:
                break
        return state

    def prior_summands(self, sites: set[str]) -> list[Summand]:
        """The log densities of some latent sites alone; over discrete sites they depend on, the average."""
        plain, found = set(sites), []
        for scored in (s for s in self.recording.scored.values() if s.name in sites):
            terms = with_indicators(usable_terms(scored), self.recording.discrete, self.mean_field)
            if any(term.choices for term in terms):
                shares = (expect(term, self.owners, scored.name).averaged for term in terms)
                found += [summand_of(scored, share, self.recording) for share in shares]
                plain.remove(scored.name)
        return cast(merged([*found, *self.site_summands.of(plain)]), self.recording.dtype)

    @cached_property
    def unused_params(self) -> list[str]:
        """The parameters that no density depends on."""
        moments = [m for s in self.summands for m in s.moments]
        moments += [m for f in self.factors for p in f.pieces for m in p.moments]
        used = {m.block.key for m in moments} | {p for v in self.derived for p in v.parents}
        return [block.label for block in self.params if block.key not in used]


def in_turn(turn: Tensor | None, natural: Natural, old: Natural) -> Natural:
    """New natural parameters of the elements whose turn it is, those of a discrete block; None: of all."""
    if turn is None:
        return natural
    return Natural(**{n: torch.where(turn.unsqueeze(-1), natural[n], old[n]) for n in natural})


__all__ = ["ElboBound", "Program", "in_turn"]
