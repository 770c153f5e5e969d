r"""The ELBO as a function of the mean parameters, compiled from a recording.

.. math:: \bar L(μ) + \sum_b s_b (A_b(η_b) - \langle η_b, μ_b \rangle)

Terms of sites that depend on no discrete latent are summed over their plates once: what remains of the data are its
sufficient statistics, and a sweep does not touch the data. Factors over discrete latents keep their plates; where the
data and the parameters meet only in sums (as in mixtures) they become two matrix products: features × parameters, and,
for given responsibilities, responsibilities × features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import ModelError, NotConjugateError
from ..expressions import Expression
from ..expressions.axes import Axis, contract, fresh_label, is_position
from ..expressions.terms import Constant, Term, Variable
from ..families import Mean, Natural
from ..families.point import VALUE, Point, PointMean
from ..recording import DiscreteSite, LatentSite, Plate, Recording, ScoredSite
from .blocks import Block, BlockKey, discrete_block, make_blocks
from .densities import DensityPart, conflicts, is_finite, live_elements, masked, parts_of, with_indicators
from .elimination import laid, relative_scale
from .expectation import ExpectedTerm, expect
from .factors import DiscreteFactor, features_of, joint_probabilities, make_factor_term, over_places, place, product_of
from .joints import Joint, TooLargeError, connected
from .modes import PointTerm, mode
from .summands import Means, State, Summand, canonical, cast, labels_of, merged, renamed, total_of

#: New data's local blocks are set to their optimum in at most so many rounds, or until they move less than this.
_SETTLING_ROUNDS = 100
_SETTLED = 1e-10
#: Constants of more elements than this are not kept in float64 beside the dtype of the data.
_LARGE = 2**22


class DiscretePosterior(NamedTuple):
    """A posterior of the discrete sites that is held fixed.

    The weight of each factor's elements, the expected log factors plus the entropy (log Z, where it is the exact
    posterior) with their size, and the entropy.
    """

    weights: tuple[Tensor, ...]
    log_normalizer: Tensor
    magnitude: Tensor
    entropy: Tensor

    def of(self, starts: Sequence[int]) -> DiscretePosterior:
        """That of some starts alone."""

        def take(t: Tensor) -> Tensor:
            return t[list(starts)] if t.ndim and len(t) > 1 else t

        return DiscretePosterior(
            tuple(map(take, self.weights)), *map(take, (self.log_normalizer, self.magnitude, self.entropy))
        )


class Bound(NamedTuple):
    """The ELBO of each start, the sum of the absolute values of its terms, and where the state is proper."""

    elbo: Tensor
    magnitude: Tensor
    held: DiscretePosterior | None

    def of(self, starts: Sequence[int]) -> Bound:
        """That of some starts alone."""
        index = list(starts)
        held = None if self.held is None else self.held.of(index)
        return Bound(self.elbo[index], self.magnitude[index], held)


def _weighted(values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Σ weight × value over all factors, for each start, in float64."""
    return torch.stack([_inner(v, w) for v, w in zip(values, weights, strict=True)]).sum(0)


def _inner(value: Tensor, weight: Tensor) -> Tensor:
    """Σ weight × value, for each start, where what has no weight may be −∞."""
    return _product(value, weight).flatten(1).sum(1, dtype=torch.float64)


def _product(value: Tensor, weight: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).min) * weight


def _derived_variables(recording: Recording) -> list[Variable]:
    """What the model computes from points by operations without a rule, as far as densities use it."""
    found: dict[str, Variable] = {}
    for scored in recording.scored.values():
        for term in scored.density.terms if scored.density is not None else ():
            found |= {f.variable.site: f.variable for f in term.factors if f.variable.replay is not None}
    return list(found.values())


def _derived_block(variable: Variable, recording: Recording) -> Block:
    site = LatentSite(variable.site, dist.Delta, variable.shape, torch.Size(), (), 1.0, None)
    return Block((site,), Point(), variable.shape, (torch.Size(),), 1.0, None, recording.device)


def _part(summand: Summand, block: Block, means: Means) -> PointTerm:
    statistics = tuple(m.statistic for m in summand.moments if m.block.key == block.key)
    return PointTerm(statistics, lambda point: summand.value(means | {block.key: point}))


# Compilation.


def _cast(constant: Constant, like: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    return constant.tensor.to(device=like.device, dtype=like.dtype), constant.labels


def _precise(term: ExpectedTerm, like: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The constants of a term in float64, for sums that are taken once."""
    operands = [(c.tensor.to(device=like.device, dtype=torch.float64), c.labels) for c in term.constants]
    coefficient = torch.tensor(term.coefficient, dtype=torch.float64, device=like.device)
    return [(coefficient, ()), *operands]


class Program:
    """The ELBO of a recorded model under blocks.

    Raises:
        NotConjugateError: if a site is not conditionally conjugate, or couples the elements of a block.
    """

    def __init__(
        self, recording: Recording, joint: tuple[tuple[str, ...], ...] = (), mean_field: Collection[str] = ()
    ) -> None:
        self.recording = recording
        sites = recording.discrete
        self.blocks = make_blocks(recording, joint)
        terms = {s.name: usable_terms(s) for s in self._ready(recording).values()}
        #: By discrete site whose elements are independent in q, why they are.
        self.mean_field = self._not_exact(terms, dict.fromkeys(mean_field, "as asked"))
        self.blocks |= {
            n: discrete_block(site, self.seen(site), recording.device)
            for n, site in sites.items()
            if n in self.mean_field
        }
        if self.mean_field:  # in the order of the model, in which starts are drawn
            places = {name: i for i, name in enumerate(recording.scored)}
            order = sorted(self.blocks.values(), key=lambda b: min(places.get(s.name, -1) for s in b.sites))
            self.blocks = {block.key: block for block in order}
        self.owners = {s.name: (b, i) for b in self.blocks.values() for i, s in enumerate(b.sites)}
        self.discrete = [s for s in sites.values() if s.name not in self.mean_field]
        self.derived = _derived_variables(recording)
        self.owners |= {v.site: (_derived_block(v, recording), 0) for v in self.derived}
        self.factors: list[DiscreteFactor] = []
        self._compile(terms)
        self.summands = self.whole_summands + self.part_summands
        self._held_summands: tuple[DiscretePosterior, list[Summand]] | None = None
        self.by_block = {key: [s for s in self.summands if key in s.blocks] for key in self.blocks}
        self.joints = self._joints(self.factors)
        self._draws: dict[str, list[Tensor]] = {}
        #: By block whose elements meet in a density, masks over them: the elements of each are updated together.
        self.turns = self._turns(terms)
        self.blocks = {key: self._with_readers(block) for key, block in self.blocks.items()}

    # Compilation.

    def _ready(self, recording: Recording) -> dict[str, ScoredSite]:
        """The densities with the masks that weights cannot stand for: of discrete sites, and of what is −∞."""
        found = dict(recording.scored)
        live: dict[str, Tensor] = {}
        for site in reversed(recording.discrete.values()):
            scored = found[site.name]
            if site.mask is not None and scored.density is not None and not scored.density.opacity:
                live[site.name] = live_elements(recording, site, live)
                unseen = ~(site.mask | live[site.name])
                constant = -math.log(site.cardinality) * unseen.to(recording.dtype)
                density = masked(scored.density, site.mask) + Expression.constant(constant)
                found[site.name] = replace(scored, density=density, mask=None)
        for name, scored in found.items():
            if scored.mask is not None and scored.density is not None and not is_finite(scored.density):
                found[name] = replace(scored, density=masked(scored.density, scored.mask), mask=None)
        self._scored, self.live = found, live
        return found

    def _not_exact(self, terms: Mapping[str, Sequence[Term]], asked: dict[str, str]) -> dict[str, str]:
        """The discrete sites whose joint posterior is not affordable, beside those that are asked for, and why."""
        sites = self.recording.discrete
        unknown = [name for name in asked if name not in sites]
        if unknown:
            raise ModelError(f"Expected mean_field to name discrete sites of {sorted(sites)}; got {unknown}.")
        parts = [p for name, t in terms.items() for p in self._parts(name, t)[1]]
        found = dict(asked)
        free = [s for s in sites.values() if s.name not in asked]
        layouts = [p.layout for p in parts if not set(p.layout.names) & set(asked)]
        for group in connected(layouts, free):
            names = {s.name for s in group}
            own = [x for x in layouts if set(x.names) & names]
            try:
                Joint(own, group, range(len(own)))
            except TooLargeError as problem:
                found |= dict.fromkeys(names, f"their joint posterior needs {problem}")
        return found

    def _parts(self, name: str, terms: Sequence[Term]) -> tuple[list[Term], list[DensityPart]]:
        return parts_of(self._scored[name], terms, self.recording.discrete, self.recording.max_plate_nesting)

    def _compile(self, terms: Mapping[str, Sequence[Term]]) -> None:
        """Sums over parameters, outside of subsampled plates and inside, and factors over discrete sites."""
        whole: list[Summand] = []
        part: list[Summand] = []
        self._site_summands: dict[str, list[Summand]] = {}
        for name, own in terms.items():
            scored = self._scored[name]
            own = with_indicators(own, self.recording.discrete, self.mean_field)
            plain, parts = self._parts(name, own)
            found = [self._summand(scored, expect(t, self.owners, name)) for t in plain]
            self._site_summands[name] = found
            (part if _in_subsample(scored.plates) else whole).extend(found)
            self.factors += [self._discrete_factor(scored, p) for p in parts]
        whole, part = merged(whole), merged(part)
        dtype = self.recording.dtype
        #: All of them in float64, which the ELBO is computed in: where terms cancel, float32 loses nats. Large ones, by
        #: datum, are kept in the dtype of the data alone.
        self.exact_summands = [s if s.constant.numel() <= _LARGE else cast([s], dtype)[0] for s in whole + part]
        #: The terms of sites outside of subsampled plates, and of those inside.
        self.whole_summands, self.part_summands = cast(whole, dtype), cast(part, dtype)

    def _joints(self, factors: Sequence[DiscreteFactor]) -> list[Joint]:
        read = {name for f in factors for name in f.layout.names}
        groups = connected([f.layout for f in factors], [s for s in self.discrete if s.name in read])
        found = []
        for group in groups:
            names = {s.name for s in group}
            indices = [i for i, f in enumerate(factors) if set(f.layout.names) & names]
            found.append(Joint([factors[i].layout for i in indices], group, indices))
        return found

    def _turns(self, terms: Mapping[str, Sequence[Term]]) -> dict[BlockKey, list[Tensor]]:
        found: dict[BlockKey, list[Tensor]] = {}
        for name in self.mean_field:
            site = self.recording.discrete[name]
            each = [
                conflicts(t, site) for own in terms.values() for t in own if [c.site for c in t.choices].count(name) > 1
            ]
            meet = torch.stack(each).any(0) if each else None
            if meet is not None and bool(meet.any()):
                found[name] = [m.reshape(site.batch_shape) for m in _independent_sets(meet)]
        return found

    def _with_readers(self, block: Block) -> Block:
        """The block, with every element counted that some log density reads.

        A mask on a latent leaves its prior out of the joint density p, and not what is observed of it. Of such an
        element p holds the likelihood alone, so the ELBO E_q log p + H(q) bounds the evidence only with the element's
        entropy in full, and its optimum is the normalized likelihood, or an error where that is improper. An element
        that no density reads is not in p at all: its entropy has no weight.
        """
        if block.mask is None or block.is_point:
            return block
        means = self._generic_means()
        values = self._factor_values(means) if self.factors else []
        read = [t for f, v in zip(self.factors, values, strict=True) for t in f.summands(_generic(torch.ones_like(v)))]
        found = [s for s in (*self.summands, *read) if block.key in s.blocks]
        is_read = torch.zeros(block.batch_shape, dtype=torch.bool, device=block.device)
        for gradient in self._gradients(block, means, found).values():
            is_read = is_read | (gradient[0] != 0).unsqueeze(-1).flatten(len(block.batch_shape)).any(-1)
        return block.counting(is_read)

    def _generic_means(self) -> Means:
        """Mean parameters at which no term has a gradient of zero by chance; they mean nothing else."""
        means: Means = {}
        for key, block in self.blocks.items():
            point = block.sites[0].point
            if point is None:
                means[key] = self.blank_mean(block, 1).map(_generic)
            else:
                means[key] = PointMean(**{VALUE: 1.1 * point.unsqueeze(0)})
        return self.with_derived(means)

    @property
    def nesting(self) -> int:
        """The number of dimensions that plates take."""
        return self.recording.max_plate_nesting

    def _weights(self, scored: ScoredSite, scale: Tensor | float) -> list[Constant]:
        """The scale and the mask of a density, as constants."""
        found = []
        for weight in (scale, scored.mask):
            if weight is None or (not isinstance(weight, Tensor) and weight == 1):
                continue
            tensor = torch.as_tensor(weight, dtype=self.recording.dtype, device=self.recording.device)
            labels = tuple(i - tensor.ndim for i, n in enumerate(tensor.shape) if n != 1)
            found.append(Constant(tensor.reshape([n for n in tensor.shape if n != 1]), labels))
        return found

    def _summand(self, scored: ScoredSite, term: ExpectedTerm) -> Summand:
        """Sum a term over the plates; the constants are contracted once, in float64."""
        constants = (*term.constants, *self._weights(scored, scored.scale))
        present = {x for c in constants for x in c.labels} | set(labels_of(term.moments))
        repeats = 1.0
        for i, n in enumerate(scored.shape):
            if i - len(scored.shape) not in present:
                repeats *= n
        term = replace(term, coefficient=term.coefficient * repeats, constants=constants)
        shared = {x for c in constants for x in c.labels} & set(labels_of(term.moments))
        out = tuple(dict.fromkeys(x for x in labels_of(term.moments) if x in shared))
        constant = contract(_precise(term, self.recording.like), out)
        return canonical(Summand(constant, out, term.moments))

    def _discrete_factor(self, scored: ScoredSite, part: DensityPart) -> DiscreteFactor:
        """The factor of terms that read the same discrete elements, summed over places that no reading runs along."""
        layout, ndim = part.layout, len(part.layout.readings) + len(part.layout.sizes)
        sites = [r.site for r in layout.readings]
        inner = layout.innermost(scored.name)
        weights = self._weights(scored, relative_scale(scored.scale, inner.scale))
        summed = {
            i - len(scored.shape): n
            for i, n in enumerate(scored.shape)
            if n > 1 and i - len(scored.shape) not in part.places
        }
        pieces = []
        for term in part.terms:
            expected = expect(term, self.owners, scored.name)
            rename = {label: i - ndim for i, label in enumerate(part.choices)} | dict(part.places)
            constants = [_cast(c, self.recording.like) for c in (*expected.constants, *weights)]
            present = {x for _, c in constants for x in c} | set(labels_of(expected.moments))
            coefficient = expected.coefficient
            for label, size in summed.items():
                coefficient *= 1 if label in present else size
                rename[label] = fresh_label()
            moments = tuple(replace(m, axes=tuple(renamed(a, rename) for a in m.axes)) for m in expected.moments)
            constants = [(t, tuple(rename.get(x, x) for x in c)) for t, c in constants]
            number = torch.tensor(coefficient, dtype=self.recording.dtype, device=self.recording.device)
            pieces.append(make_factor_term([(number, ()), *constants], moments))
        rows, features = features_of(pieces)
        shape = torch.Size((*(s.cardinality for s in sites), *layout.sizes))
        return DiscreteFactor(scored.name, layout, shape, tuple(pieces), rows, features)

    def is_local(self, key: BlockKey) -> bool:
        """Whether a block belongs to the data at hand: it lies in a subsampled plate, or, where none is, each
        observation has an element of its own, or the model says so.
        """
        if self.recording.is_subsample:
            return self.in_subsample(key)
        said = [s.local for s in self.blocks[key].sites if s.local is not None]
        return any(said) if said else key in self._own[0]

    def is_shared(self, key: BlockKey) -> bool:
        """Whether nobody can tell whether a block belongs to the data at hand: several observations share an element
        of it, and others another, as rows share a group's mean, or all items that of a feature; and the model does not
        say.
        """
        said = any(s.local is not None for s in self.blocks[key].sites)
        return not said and not self.recording.is_subsample and key in self._own[1] - self._own[0]

    @cached_property
    def _own(self) -> tuple[set[BlockKey], set[BlockKey]]:
        """The blocks of which each observation has an element of its own, and those of which only some of them do.

        What a latent with an own element for each observation reads in turn element by element, an observation reads.
        """
        scored = self.recording.scored
        data = [s.name for s in scored.values() if s.observed and s.plates]
        own: set[BlockKey] = set()
        shared: set[BlockKey] = set()
        for name in data:  # grows on the way
            dims = {p.dim for p in scored[name].plates}
            for factor in (f for t in usable_terms(scored[name]) for f in t.factors):
                site = self.recording.latents.get(factor.variable.site)
                if site is None or site.is_param:
                    continue
                read = _places_of(factor.axes, site.plates)
                key = self.owners[site.name][0].key
                (own if read >= dims else shared if read & dims else set()).add(key)
                if read >= dims and site.name not in data:
                    data.append(site.name)
            for choice in (c for t in usable_terms(scored[name]) for c in t.choices):
                discrete = self.recording.discrete[choice.site]
                read = _places_of(choice.axes, discrete.plates)
                if choice.site in self.blocks:
                    (own if read >= dims else shared if read & dims else set()).add(choice.site)
                if read >= dims and choice.site not in data:
                    data.append(choice.site)
        return own, shared

    def in_subsample(self, key: BlockKey) -> bool:
        """Whether a block lies in a subsampled plate, so that it is of the minibatch at hand only."""
        return any(_in_subsample(s.plates) for s in self.blocks[key].sites)

    # Evaluation.

    def means(self, state: State) -> Means:
        """The mean parameters of every block, and what the model computes from its points."""
        return self.with_derived({key: block.family.mean(state[key]) for key, block in self.blocks.items()})

    def exactly(self, state: State) -> tuple[State, Means]:
        """A state and its mean parameters in float64: the ELBO of the state as it stands, without further rounding."""
        exact = {key: natural.map(Tensor.double) for key, natural in state.items()}
        return exact, self.means(exact)

    def with_derived(self, means: Means, changed: BlockKey | None = None) -> Means:
        """Compute again what depends on points (on one of them, if it is named)."""
        wanted = [v for v in self.derived if changed is None or changed in v.parents]
        if not wanted:
            return means
        like = next(means[k][VALUE] for k, b in self.blocks.items() if b.is_point)
        points = {k: b.params(Natural(x=means[k][VALUE]))["value"] for k, b in self.blocks.items() if b.is_point}
        points = {k: p.to(self.recording.dtype) for k, p in points.items()}  # as the model computes
        rows: dict[str, list[Tensor]] = {v.site: [] for v in wanted}
        for start in range(len(next(iter(points.values())))):
            values: dict[str, Tensor] = {str(k): p[start] for k, p in points.items()}
            known: dict[int, Tensor] = {}
            for variable in wanted:
                assert variable.replay is not None
                rows[variable.site].append(variable.replay(values, known).to(like.dtype))
        return means | {name: PointMean(**{VALUE: torch.stack(r)}) for name, r in rows.items()}

    def means_after(self, means: Means, key: BlockKey, natural: Natural) -> Means:
        """The mean parameters with one block's new ones."""
        block = self.blocks[key]
        means = means | {key: block.family.mean(natural)}
        return self.with_derived(means, key) if block.is_point else means

    def points_energy(self, means: Means, held: Sequence[Summand]) -> Callable[[Means], Tensor]:
        """Q as a function of the points, for each start: the terms that depend on them, the other blocks held fixed."""
        keys = {k for k, b in self.blocks.items() if b.is_point} | {v.site for v in self.derived}
        found = [s for s in (*self.summands, *held) if s.blocks & keys]
        return lambda points: total_of(found, self.with_derived(means | points))

    def in_domain(self, key: BlockKey, natural: Natural) -> Tensor:
        """Whether a block's natural parameters are proper everywhere."""
        return self.blocks[key].family.in_domain(natural).all()

    def eliminate(self, means: Means) -> DiscretePosterior | None:
        """The exact posterior of the discrete sites, given the other blocks."""
        if not self.factors:
            return None
        with torch.enable_grad():
            values = [v.detach().requires_grad_() for v in self._factor_values(means)]
            total, magnitude = self._eliminated(values)
            weights = torch.autograd.grad(total.sum(), values)
        with torch.no_grad():
            products = [_product(v, w).flatten(1) for v, w in zip(values, weights, strict=True)]
        energy = torch.stack([p.sum(1, dtype=torch.float64) for p in products]).sum(0)
        sizes = torch.stack([p.abs_().sum(1, dtype=torch.float64) for p in products]).sum(0)
        magnitude = magnitude + sizes
        return DiscretePosterior(weights, total.detach(), magnitude, (total - energy).detach())

    def _eliminated(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        found = [joint.run([values[i] for i in joint.indices]) for joint in self.joints]
        total, magnitude = found[0]
        for part, size in found[1:]:
            total, magnitude = total + part, magnitude + size
        return total, magnitude

    def _factor_values(self, means: Means) -> list[Tensor]:
        """The factors at the same number of starts each."""
        values = [f.value(means) for f in self.factors]
        starts = max(len(v) for v in values)
        return [v.expand(starts, *v.shape[1:]) for v in values]

    def energy(self, state: State, held: DiscretePosterior | None) -> Tensor:
        """E_q log p for each start, float64, with the discrete sites at a posterior that is held fixed."""
        means, exact = self.means(state), self.exactly(state)[1]
        total = sum((s.value(exact).double() for s in self.exact_summands), torch.zeros((), dtype=torch.float64))
        if held is None:
            return total
        return total + _weighted(self._factor_values(means), held.weights) + self.unrounded(held, means, exact)

    def entropy(self, state: State, held: DiscretePosterior | None) -> Tensor:
        """H(q) for each start, float64."""
        total = self.entropy_terms(*self.exactly(state), self.blocks)[0]
        return total if held is None else total + held.entropy

    def unrounded(self, held: DiscretePosterior, means: Means, exact: Means) -> Tensor | float:
        """What log Z of the discrete sites, computed at mean parameters that are rounded, lacks to that at exact ones.

        The gradient of log Z is the posterior that is held, so the difference is that of the sums over parameters, up
        to the square of the rounding. It matters: one rounded parameter is rounded alike for all of the data.
        """
        if self.recording.dtype == torch.float64:
            return 0.0
        found = self.held_summands(held)
        return sum(s.value(exact) - s.value(means, torch.float64) for s in found)

    def log_normalizer(self, means: Means, extra: Mapping[str, Tensor]) -> Tensor:
        """log Z of the discrete sites for each start, with more log factors on them: ``[starts, values] + plates``."""
        values = [f.value(means) for f in self.factors]
        for name, factor in extra.items():
            i = next(i for i, f in enumerate(self.factors) if f.site == name and name in f.layout.names)
            names = self.factors[i].layout.names
            lead = 1 + len(names)
            pad = (1,) * (values[i].ndim - lead - self.nesting)
            moved = laid(factor, (name,), names)
            values[i] = values[i] + moved.reshape(*moved.shape[:lead], *pad, *moved.shape[lead:])
        return self._eliminated(values)[0]

    def hold(self, responsibilities: Mapping[str, Tensor], means: Means) -> DiscretePosterior:
        """A posterior of the discrete sites that factorises into given probabilities.

        Args:
            responsibilities: by discrete site, ``[starts, plates..., values]``.
            means: the mean parameters of the blocks, at which the bound is taken.
        """
        probs = {s.name: _over_batch(s, responsibilities[s.name]) for s in self.discrete}
        weights, values = [], []
        for factor, value in zip(self.factors, self._factor_values(means), strict=True):
            joint = joint_probabilities(factor.layout, probs)
            inner = factor.layout.innermost(factor.site)
            shape = torch.broadcast_shapes(joint.shape, value.shape)
            weights.append((joint * inner.scale).expand(shape).sum_to_size(value.shape))
            values.append(value)
        energy, entropy = _weighted(values, weights), self._entropy_of(probs)
        return DiscretePosterior(tuple(weights), energy + entropy, energy.abs() + entropy, entropy)

    def _entropy_of(self, probs: Mapping[str, Tensor]) -> Tensor:
        """The entropy of independent discrete sites, for each start."""
        total = torch.zeros((), dtype=torch.float64)
        for site in self.discrete:
            p = over_places(site, probs[site.name], self.nesting)
            each = -torch.special.xlogy(p, p).sum(1)
            seen = self.seen(site)
            each = each if seen is None else torch.where(seen, each, math.log(site.cardinality) * torch.ones_like(each))
            each = each * site.scale
            total = total + each.reshape(len(each), -1).sum(1, dtype=torch.float64)
        return total

    def impossible(self, means: Means) -> list[str]:
        """The sites whose density is zero whatever the discrete latents are, in the order of the model."""
        found = {n for n, own in self._site_summands.items() if any(bool(s.value(means).isneginf().any()) for s in own)}
        values = self._factor_values(means) if self.factors else []
        for joint in self.joints:
            own = [values[i] for i in joint.indices]
            if bool(joint.run(own)[0].isneginf().any()):
                zero = {
                    self.factors[i].site for i, v in zip(joint.indices, own, strict=True) if bool(v.isneginf().any())
                }
                seen = {name for name in zero if self.recording.scored[name].observed}
                found |= seen or zero
        return [name for name in self.recording.scored if name in found]

    def rise_unrounded(self, state: State, held: DiscretePosterior | None) -> Tensor:
        """How much the ELBO of each start rises, in nats, by one sweep in float64 with the discrete sites held.

        Near zero at an optimum. Where float32 has stopped short of one, for want of digits, it is not.
        """
        state, means = self.exactly(state)
        summands = [*self.exact_summands, *self.held_summands(held)]
        summands = [replace(s, constant=s.constant.double()) for s in summands]
        keys = [k for k, b in self.blocks.items() if not b.is_point and b.update is None and k not in self.turns]

        def level() -> Tensor:
            parts = [s.value(means) for s in summands if s.blocks]
            return self.entropy_terms(state, means, keys)[0] + sum(parts, torch.zeros((), dtype=torch.float64))

        before = level()
        for key in keys:
            block = self.blocks[key]
            natural = self.optimum_of(block, means, [s for s in summands if key in s.blocks])
            if bool(block.family.in_domain(natural).all()):
                state, means = state | {key: natural}, self.means_after(means, key, natural)
        return level() - before

    def turns_of(self, site: DiscreteSite) -> list[Tensor] | None:
        """Masks over the elements of a discrete site that are drawn in turn; None where all are independent."""
        joint = next((j for j in self.joints if j.is_by_elements and site in j.sites), None)
        if joint is None:
            return None
        if site.name not in self._draws:
            self._draws[site.name] = joint.turns(site)
        return self._draws[site.name]

    def seen(self, site: DiscreteSite) -> Tensor | None:
        """Where a discrete site or something that depends on it is not masked; None: everywhere."""
        return None if site.mask is None else site.mask | self.live[site.name]

    def unused_params(self) -> list[str]:
        """The parameters that no density depends on."""
        moments = [m for s in self.summands for m in s.moments]
        moments += [m for f in self.factors for p in f.pieces for m in p.moments]
        used = {m.block.key for m in moments} | {p for v in self.derived for p in v.parents}
        return [b.label for key, b in self.blocks.items() if b.is_param and key not in used]

    def expected_log_densities(self, means: Means) -> dict[str, Tensor]:
        """By site, the expected log density for each start, over the site's batch shape."""
        found = {}
        like = next(iter(next(iter(means.values())).values())) if means else self.recording.like
        for scored in self.recording.scored.values():
            total: Tensor | None = None
            terms = usable_terms(scored)
            choices = tuple({c.label: c for t in terms for c in t.choices if c.site not in self.mean_field}.values())
            depth = len(choices) + len(scored.shape)
            for term in with_indicators(terms, self.recording.discrete, self.mean_field):
                expected = expect(term, self.owners, scored.name)
                constants = [_cast(c, like) for c in expected.constants]
                number = torch.tensor(expected.coefficient, dtype=like.dtype, device=like.device)
                tensor, labels = product_of(make_factor_term([(number, ()), *constants], expected.moments), means)
                names = {c.label: i - depth for i, c in enumerate(choices)}
                part = place(tensor, tuple(names.get(x, x) for x in labels), depth)
                total = part if total is None else total + part
            assert total is not None
            lead = total.shape[: 1 + len(choices)]
            found[scored.name] = total.expand(*lead, *scored.shape)
        return found

    def expected_log_joint(self, state: State, held: DiscretePosterior | None) -> dict[str, Tensor]:
        """By site, E_q log p for each start, float64: the site's share of L̄, with scales and masks."""
        means, exact = self.means(state), self.exactly(state)[1]
        zero = torch.zeros((), dtype=torch.float64, device=self.recording.device)
        found = {n: sum((s.value(exact).double() for s in own), zero) for n, own in self._site_summands.items()}
        if held is not None:
            for factor, value, weight in zip(self.factors, self._factor_values(means), held.weights, strict=True):
                sums = factor.summands(weight)
                rounded = sum(s.value(exact) - s.value(means, torch.float64) for s in sums)
                found[factor.site] = found[factor.site] + _inner(value, weight) + rounded
        return found

    def held_summands(self, held: DiscretePosterior | None) -> list[Summand]:
        """The discrete factors as sums over parameters, their posterior held fixed."""
        if held is None:
            return []
        if self._held_summands is None or self._held_summands[0] is not held:
            found = [s for f, w in zip(self.factors, held.weights, strict=True) for s in f.summands(w)]
            self._held_summands = (held, found)
        return self._held_summands[1]

    def optimum(
        self, key: BlockKey, means: Means, held: Sequence[Summand], summary: Sequence[Summand] | None = None
    ) -> Natural:
        """The coordinate optimum of a block: η = ∂L̄/∂μ, divided by the scale of its plates.

        ``summary`` takes the place of the terms in subsampled plates: it speaks for all of the data.
        """
        base = self.by_block[key] if summary is None else [*self.whole_summands, *summary]
        block, found = self.blocks[key], [s for s in (*base, *held) if key in s.blocks]
        if block.is_point and any(key in v.parents for v in self.derived):
            used = ", ".join(sorted({v.site.split()[0] for v in self.derived if key in v.parents}))
            raise NotConjugateError(
                f"Expected a maximum over {block.label!r} in closed form; got a model that computes {used} of it. "
                "Use EM(model, m_step='gradient')."
            )
        if block.is_point:
            return mode(block, means[key][VALUE], [_part(s, block, means) for s in found])
        return self.optimum_of(block, means, found)

    def prior_summands(self, sites: set[str]) -> list[Summand]:
        """The log densities of some latent sites alone; over discrete sites they depend on, the average."""
        found = []
        for name in sites:
            scored = self.recording.scored[name]
            terms = [
                expect(t, self.owners, name)
                for t in with_indicators(usable_terms(scored), self.recording.discrete, self.mean_field)
            ]
            for term in terms:
                count = math.prod(c.size for c in term.choices)
                found.append(self._summand(scored, replace(term, coefficient=term.coefficient / count)))
        return [replace(s, constant=s.constant.to(self.recording.dtype)) for s in found]

    def blank_mean(self, block: Block, starts: int) -> Mean:
        """Mean parameters of the block's shapes, of no meaning: a place to take gradients at."""
        like = self.recording.like
        params = {n: p.to(like).expand(starts, *p.shape) for n, p in block.example.items()}
        return block.family.mean(block.family.from_params(params))

    def optimum_of(self, block: Block, means: Means, found: Sequence[Summand]) -> Natural:
        """The natural parameters that a sum of terms gives a block: their gradient in its mean parameters."""
        fields = {}
        for name, gradient in self._gradients(block, means, found).items():
            event = block.family.statistics[name]
            gradient = (gradient + gradient.transpose(-1, -2)) / 2 if event == 2 else gradient
            fields[name] = gradient / _widened(block.scale, event)
        return self._guard(block, Natural(**fields))

    def _gradients(self, block: Block, means: Means, found: Sequence[Summand]) -> dict[str, Tensor]:
        """By statistic, the gradient of a sum of terms in the block's mean parameters."""
        leaves = means[block.key].map(lambda t: t.detach().requires_grad_())
        with torch.enable_grad():
            total = total_of(found, means | {block.key: leaves}).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), gradients, strict=True)
        return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in pairs}

    def _guard(self, block: Block, natural: Natural) -> Natural:
        """Elements that no log density reads get a standard distribution, which weighs nothing."""
        if block.mask is None:
            return natural
        mask = block.mask
        like = next(iter(natural.values()))
        standard = block.family.from_params({n: p.to(like) for n, p in block.example.items()})
        fields = {}
        for name, value in natural.items():
            wide = mask.reshape(mask.shape + (1,) * block.family.statistics[name])
            fields[name] = torch.where(wide, value, standard[name])
        return Natural(**fields)

    def settled(self, state: State, local: Sequence[BlockKey], means: Means | None = None) -> State:
        """The local blocks at their optimum given the others, as far as a number of rounds reaches.

        ``means``: the mean parameters to start from, where they are not those of the state.
        """
        means = self.means(state) if means is None else means
        for _ in range(_SETTLING_ROUNDS if local else 0):
            before = {k: means[k] for k in local}
            summands = self.held_summands(self.eliminate(means))
            for key in local:
                for turn in self.turns.get(key, (None,)):
                    natural = taken(turn, self.optimum(key, means, summands), state[key])
                    state = state | {key: natural}
                    means = self.means_after(means, key, natural)
            moved = [
                ((means[k][n] - before[k][n]).abs() / (1 + before[k][n].abs())).max() for k in local for n in means[k]
            ]
            if float(torch.stack(moved).max()) < _SETTLED:
                break
        return state

    def entropy_terms(self, state: State, means: Means, keys: Iterable[BlockKey]) -> tuple[Tensor, Tensor]:
        """The entropy of some blocks for each start, A(η) − ⟨η, μ⟩, and the size of what it sums; float64."""
        starts = len(next(iter(next(iter(state.values())).values()))) if state else 1
        total = torch.zeros(starts, dtype=torch.float64, device=self.recording.device)
        magnitude = torch.zeros_like(total)
        for key in keys:
            block = self.blocks[key]
            for part in (block.family.log_normalizer(state[key]), -block.family.inner(state[key], means[key])):
                weighted = block.weight(part).reshape(starts, -1)
                total = total + weighted.sum(1, dtype=torch.float64)
                magnitude = magnitude + weighted.abs().sum(1, dtype=torch.float64)
        return total, magnitude

    def bound(self, state: State, means: Means, held: DiscretePosterior | None = None) -> Bound:
        """The ELBO of each start, in float64, with the discrete sites at their exact posterior.

        ``held``: or at this posterior of theirs, held at the same mean parameters.
        """
        held = held or self.eliminate(means)
        exact_state, exact = self.exactly(state)
        total, magnitude = self.entropy_terms(exact_state, exact, self.blocks)
        for summand in self.exact_summands:
            value = summand.value(exact).double()
            total = total + value
            magnitude = magnitude + value.abs()
        if held is not None:
            total = total + held.log_normalizer + self.unrounded(held, means, exact)
            magnitude = magnitude + held.magnitude
        return Bound(total, magnitude, held)


def taken(turn: Tensor | None, natural: Natural, old: Natural) -> Natural:
    """New natural parameters of the elements whose turn it is, those of a discrete block; None: of all."""
    if turn is None:
        return natural
    return Natural(**{n: torch.where(turn.unsqueeze(-1), natural[n], old[n]) for n in natural})


def _independent_sets(meet: Tensor) -> list[Tensor]:
    """Elements in sets that do not meet, by greedy coloring of the graph in which they do."""
    rows = meet.cpu()
    color = torch.full((len(rows),), -1)
    for i in range(len(rows)):
        used = set(color[rows[i]].tolist())
        color[i] = next(c for c in range(len(rows)) if c not in used)
    return [(color == c).to(meet.device) for c in range(int(color.max()) + 1)]


def _over_batch(site: DiscreteSite, probs: Tensor) -> Tensor:
    """Probabilities ``[starts, plates..., values]`` over the whole batch shape of a site."""
    lead = len(site.batch_shape) + 2 - probs.ndim
    probs = probs.reshape(len(probs), *[1] * lead, *probs.shape[1:]) if lead > 0 else probs
    return probs.expand(len(probs), *site.batch_shape, site.cardinality)


def _places_of(axes: Sequence[Axis], plates: Sequence[Plate]) -> set[int]:
    """The dimensions of a density along which elements are read one by one."""
    return {a for a in axes if isinstance(a, int) and is_position(a)} | {p.dim for p in plates if p.size == 1}


def _generic(tensor: Tensor) -> Tensor:
    """The tensor, moved by random amounts that are always the same."""
    generator = torch.Generator().manual_seed(0)
    return 1.1 * tensor + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


def _in_subsample(plates: Sequence[Plate]) -> bool:
    return any(p.is_subsample for p in plates)


def usable_terms(scored: ScoredSite) -> tuple[Term, ...]:
    """The terms of a density.

    Raises:
        NotConjugateError: if an operation in it has no rule.
    """
    if scored.error is not None:
        raise scored.error
    assert scored.density is not None
    opacity = scored.density.opacity
    if opacity is None:
        return scored.density.terms
    parents = ", ".join(repr(s) for s in sorted(opacity.sites))
    hint = (
        opacity.hint or "sums, products, indexing and matrix products of latents, and powers of a precision or a rate"
    )
    raise NotConjugateError(
        f"Site {scored.name!r} ({scored.distribution}) is not conditionally conjugate in {parents}: "
        f"{opacity.operation} of {parents} has no expected log density in closed form. What would work: {hint}; "
        f"or fit {parents} by gradient, with an autoguide in SVI."
    )


def _widened(scale: Tensor | float, event: int) -> Tensor | float:
    return scale.reshape(scale.shape + (1,) * event) if isinstance(scale, Tensor) and scale.ndim else scale
