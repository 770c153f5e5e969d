"""From a recording to a program: blocks, sums over parameters, factors over discrete sites, and their joints.

Terms of sites that depend on no discrete latent are summed over their plates once: what remains of the data are its
sufficient statistics, and a sweep does not touch the data. Factors over discrete latents keep their plates; where the
data and the parameters meet only in sums (as in mixtures) they become two matrix products: features × parameters, and,
for given responsibilities, responsibilities × features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ModelError, NotConjugateError
from ..expressions.terms import Term
from ..families.point import VALUE, PointMean
from ..families.quadrature import Quadrature
from ..recording import DiscreteSite, Recording, ScoredSite
from ..settings import check_memory
from .blocks import Block, BlockKey, Means, discrete_block
from .densities import DensityPart, conflicts, density_parts, summed_terms, with_indicators, without_masks
from .derived import derived_block, derived_variables
from .discrete import DiscreteElimination
from .expectation import CoupledElementsError
from .factors import DiscreteFactor, make_factor
from .groups import connected
from .joining import KnownPairs
from .joints import Joint, TooLargeError, is_nested
from .layouts import Layout
from .locality import is_in_subsample, locality
from .obstacles import all_at_once
from .partition import make_blocks
from .program import Program
from .repeated_sums import sums_over_plates
from .stacks import Repeat, stacks_of
from .summands import cast, gradients, merged

_SMALLER_BLOCK = (
    "If its elements may be independent, declare them with pyro.plate and without .to_event(); or give it fewer."
)
#: Constants of more elements than this are not kept in float64 beside the dtype of the data.
_LARGE = 2**22

Reader = TypeVar("Reader")
TermsBySite = Mapping[str, Sequence[Term]]


def compile_program(
    recording: Recording,
    joint: tuple[tuple[str, ...], ...] = (),
    mean_field: Collection[str] = (),
    starts: int = 1,
    pairs: KnownPairs = MappingProxyType({}),
) -> Program:
    """The ELBO of a recorded model under blocks.

    Args:
        recording: the model.
        joint: sites that share a block.
        mean_field: discrete sites whose elements are independent in q.
        starts: the number of starts that the memory of tables is estimated for.
        pairs: of joint normal blocks, pairs of elements that come first in their natural parameters.

    Raises:
        NotConjugateError: if sites are not conditionally conjugate, or couple the elements of a block: it lists all.
        ModelError: if ``mean_field`` names no discrete site, or a table is over the limit of memory.
    """
    try:
        return _compiled(recording, joint, mean_field, starts, pairs)
    except NotConjugateError as first:
        coupled = first.block.sites if isinstance(first, CoupledElementsError) else ()
        whole = recording.with_event(coupled[0].name) if len(coupled) == 1 else None
        if whole is not None:
            return compile_program(whole, joint, mean_field, starts, pairs)
        raise all_at_once(recording, joint, first) from None


def _compiled(
    recording: Recording,
    joint: tuple[tuple[str, ...], ...],
    mean_field: Collection[str],
    starts: int,
    pairs: KnownPairs,
) -> Program:
    blocks = make_blocks(recording, joint, pairs)
    scored, live = without_masks(recording)
    terms = {name: summed_terms(s) for name, s in scored.items()}
    divided = _divided(recording, scored, terms)
    why = _in_mean_field(recording, [part.layout for _, parts in divided.values() for part in parts], mean_field)
    if why:
        written = {name: with_indicators(own, recording.discrete, why) for name, own in terms.items()}
        divided = _divided(recording, scored, written)
    blocks = _in_order(recording, blocks | _discrete_blocks(recording, why, live)) if why else blocks
    each = recording.dtype.itemsize
    for block in blocks.values():
        check_memory(
            f"the posterior of {block.label!r}, a {block.family.name}", starts * block.numbers, _SMALLER_BLOCK, each
        )
    derived = derived_variables(recording)
    owners: dict[str, tuple[Block, int]] = {s.name: (b, i) for b in blocks.values() for i, s in enumerate(b.sites)}
    owners |= {v.site: (derived_block(v, recording), 0) for v in derived}

    sums = sums_over_plates({name: plain for name, (plain, _) in divided.items()}, scored, owners, recording)
    repeats = [Repeat.of(scored[name], p, owners, recording) for name, (_, parts) in divided.items() for p in parts]
    factors = [make_factor(stack, owners, recording) for stack in stacks_of(repeats)]
    inside = {name for name, s in scored.items() if is_in_subsample(s.plates)}
    whole = merged(group.total for group in sums.groups if group.sites[0] not in inside)
    part = merged(group.total for group in sums.groups if group.sites[0] in inside)

    sites = [s for s in recording.discrete.values() if s.name not in why]
    elimination = DiscreteElimination(recording, sites, factors, _joints(factors, sites), live)
    _check_tables(elimination, starts)
    local, shared = locality(recording, blocks, owners)
    program = Program(
        recording=recording,
        blocks=blocks,
        owners=owners,
        derived=derived,
        mean_field=why,
        elimination=elimination,
        site_summands=sums,
        exact_summands=[s if s.constant.numel() <= _LARGE else cast([s], recording.dtype)[0] for s in whole + part],
        whole_summands=cast(whole, recording.dtype),
        part_summands=cast(part, recording.dtype),
        turns=_turns(recording, terms, why),
        local=local,
        shared=shared,
    )
    return replace(program, blocks={key: _with_readers(program, block) for key, block in blocks.items()})


# Discrete sites.


def _divided(
    recording: Recording, scored: Mapping[str, ScoredSite], terms: TermsBySite
) -> dict[str, tuple[list[Term], list[DensityPart]]]:
    """By site the terms that depend on no discrete site, and the others, by what they read."""
    sites, nesting = recording.discrete, recording.max_plate_nesting
    return {name: density_parts(scored[name], own, sites, nesting) for name, own in terms.items()}


def _in_mean_field(recording: Recording, read: Sequence[Layout], asked: Collection[str]) -> dict[str, str]:
    """The discrete sites whose joint posterior is not affordable, beside those that are asked for, and why.

    ``read`` is what densities read of them.
    """
    sites = recording.discrete
    unknown = [name for name in asked if name not in sites]
    if unknown:
        raise ModelError(f"Expected mean_field to name discrete sites of {sorted(sites)}; got {unknown}.")
    found = dict.fromkeys(asked, "as asked")
    layouts = [x for x in read if not set(x.names) & set(asked)]
    for group, own in _together(sites, [(set(x.names), x) for x in layouts], [n for n in sites if n not in asked]):
        if is_nested(own):
            continue
        try:
            Joint([[x] for x in own], group, range(len(own)))
        except TooLargeError as problem:
            found |= dict.fromkeys((s.name for s in group), f"their joint posterior needs {problem}")
    return found


def _together(
    sites: Mapping[str, DiscreteSite], readers: Sequence[tuple[Collection[str], Reader]], names: Iterable[str]
) -> list[tuple[list[DiscreteSite], list[Reader]]]:
    """The sites of these names in groups that nothing reads together, and what reads each group."""
    groups = connected(names, [read for read, _ in readers])
    place = {name: i for i, group in enumerate(groups) for name in group}
    found: list[tuple[list[DiscreteSite], list[Reader]]] = [([sites[n] for n in group], []) for group in groups]
    for read, reader in readers:
        found[place[next(iter(read))]][1].append(reader)
    return found


def _check_tables(elimination: DiscreteElimination, starts: int) -> None:
    """The log factors of discrete sites and the tables of their elimination fit into memory.

    Raises:
        ModelError: if one does not.
    """
    each = elimination.recording.dtype.itemsize
    for number, joint in enumerate(elimination.joints):
        for factor in (elimination.factors[i] for i in joint.indices):
            names = ", ".join(dict.fromkeys(map(repr, factor.layout.names)))
            names += f" and {len(factor.rows) - 1} alike" if len(factor.rows) > 1 else ""
            is_compact = joint.is_in_place and len(factor.layout.names) > 1  # of one site: its posterior is as large
            numbers = factor.numbers if is_compact else factor.shape.numel()
            advice = (
                f"Give {names} fewer values or elements, or the data in batches: CAVI(model, guide, memoised=True)."
            )
            check_memory(f"a table of all values of {names}", starts * numbers, advice, each)
        few = [site.name for site in joint.sites][:8]
        names = ", ".join(map(repr, few)) + (f" and {len(joint.sites) - 8} more" if len(joint.sites) > 8 else "")
        advice = f"Take some of them for independent: AutoConjugate(model, mean_field={few[:2]})."
        check_memory(f"the joint posterior of {names} in tables", elimination.numbers_of(number, starts), advice, each)


def _discrete_blocks(recording: Recording, names: Collection[str], live: Mapping[str, Tensor]) -> dict[BlockKey, Block]:
    """Blocks of discrete sites whose elements are independent in q."""
    sites = {n: site for n, site in recording.discrete.items() if n in names}
    seen = {n: None if site.mask is None else site.mask | live[n] for n, site in sites.items()}
    return {n: discrete_block(site, seen[n], recording.device) for n, site in sites.items()}


def _in_order(recording: Recording, blocks: Mapping[BlockKey, Block]) -> dict[BlockKey, Block]:
    """The blocks in the order of the model, in which starts are drawn."""
    places = {name: i for i, name in enumerate(recording.scored)}
    order = sorted(blocks.values(), key=lambda b: min(places.get(s.name, -1) for s in b.sites))
    return {block.key: block for block in order}


def _joints(factors: Sequence[DiscreteFactor], sites: Sequence[DiscreteSite]) -> list[Joint]:
    read = {name for f in factors for name in f.names}
    groups = _together(
        {s.name: s for s in sites},
        [(f.names, i) for i, f in enumerate(factors)],
        [s.name for s in sites if s.name in read],
    )
    return [Joint([factors[i].layouts for i in indices], group, indices) for group, indices in groups]


def _turns(recording: Recording, terms: TermsBySite, names: Collection[str]) -> dict[BlockKey, list[Tensor]]:
    """By discrete site whose elements meet in a density, masks over them: those of one mask do not meet."""
    found: dict[BlockKey, list[Tensor]] = {}
    for name in names:
        site = recording.discrete[name]
        each = [
            conflicts(t, site) for own in terms.values() for t in own if [c.site for c in t.choices].count(name) > 1
        ]
        meet = torch.stack(each).any(0) if each else None
        if meet is not None and bool(meet.any()):
            found[name] = [m.reshape(site.batch_shape) for m in _independent_sets(meet)]
    return found


def _independent_sets(meet: Tensor) -> list[Tensor]:
    """Elements in sets that do not meet, by greedy coloring of the graph in which they do."""
    rows = meet.cpu()
    color = torch.full((len(rows),), -1)
    for i in range(len(rows)):
        used = set(color[rows[i]].tolist())
        color[i] = next(c for c in range(len(rows)) if c not in used)
    return [(color == c).to(meet.device) for c in range(int(color.max()) + 1)]


# Masked latents.


def _with_readers(program: Program, block: Block) -> Block:
    """The block, with every element counted that some log density reads.

    A mask on a latent leaves its prior out of the joint density p, and not what is observed of it. Of such an element
    p holds the likelihood alone, so the ELBO E_q log p + H(q) bounds the evidence only with the element's entropy in
    full, and its optimum is the normalized likelihood, or an error where that is improper. An element that no density
    reads is not in p at all: its entropy has no weight.
    """
    if block.mask is None or block.is_point:
        return block
    means = _generic_means(program)
    values = program.elimination.values(means)
    read = [t for f, v in zip(program.factors, values, strict=True) for t in f.summands(_generic(torch.ones_like(v)))]
    found = [s for s in (*program.summands, *read) if block.key in s.blocks]
    shape = block.mask.shape if block.joint_normal else block.batch_shape
    is_read = torch.zeros(shape, dtype=torch.bool, device=block.device)
    for statistic, gradient in gradients(block, means, found).items():
        is_read = is_read | _elements_of(block, statistic, gradient[0] != 0)
    return block.counting(is_read)


def _elements_of(block: Block, statistic: str, which: Tensor) -> Tensor:
    """The elements of a block that some elements of a statistic are of."""
    if block.joint_normal:
        return block.joint_normal.elements_of(statistic, which)
    element = block.family.functions[statistic].element if isinstance(block.family, Quadrature) else None
    if element is None:
        return which.unsqueeze(-1).flatten(len(block.batch_shape)).any(-1)
    found = torch.zeros(block.batch_shape.numel(), dtype=torch.bool, device=block.device)
    found[element.expand(which.shape)[which]] = True
    return found.reshape(block.batch_shape)


def _generic_means(program: Program) -> Means:
    """Mean parameters at which no term has a gradient of zero by chance; they mean nothing else."""
    means: Means = {}
    for key, block in program.blocks.items():
        point = block.sites[0].point
        if point is None:
            means[key] = program.blank_mean(block, 1).map(_generic)
        else:
            means[key] = PointMean(**{VALUE: 1.1 * point.unsqueeze(0)})
    return program.with_derived(means)


def _generic(tensor: Tensor) -> Tensor:
    """The tensor, moved by random amounts that are always the same."""
    generator = torch.Generator().manual_seed(0)
    return 1.1 * tensor + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


__all__ = ["compile_program"]
