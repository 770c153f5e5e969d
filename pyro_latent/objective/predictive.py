r"""Log predictive densities in closed form, as ratios of normalizers.

Where the log density of an observation is ⟨s_b, t_b(θ_b)⟩ + c, summed over blocks b that it does not mix in one term,

.. math:: \log E_q\, p(x \mid θ) = c + \sum_b A_b(η_b + s_b) - A_b(η_b),

for a block's density has base measure 1. The s_b are the gradient of the expected log density in the mean parameters,
as the update of a block is. A discrete latent of the observation is summed out: there is one such term for each value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..families import Mean, Natural
from ..families.quadrature import Quadrature
from ..recording import ScoredSite
from .blocks import Block, BlockKey, Means, State
from .by_site import expected_log_densities
from .densities import usable_terms, with_indicators
from .expectation import expect
from .program import Program

#: The most numbers that the gradients of all elements may hold.
_MOST = 2**23


def exact_log_predictive(
    program: Program, state: State, names: Sequence[str], pointwise: bool, *, by_value: bool = False
) -> Tensor | None:
    """The log predictive density of some sites, in nats, float64, or None where it has no closed form.

    Args:
        program: the recorded model, with the new data.
        state: one start, ``[1, ...]``.
        names: the sites: observations, and the discrete latent that they may have, which is summed out.
        pointwise: whether to give that of each element of the sites' batch, which they have in common, alone.
        by_value: whether to leave the values of the discrete latent apart, in the first dimension, which is there in
            any case.
    """
    sites = [program.recording.scored[name] for name in names]
    if not _has_closed_form(program, sites, pointwise):
        return None
    exact, means = program.exactly(state)
    keys = blocks_read(program, sites)
    leaves: Means = {k: means[k].map(lambda t: t.detach().requires_grad_()) for k in keys}
    with torch.enable_grad():
        found = expected_log_densities(program, means | leaves)
        total = sum((found[s.name][0] for s in sites), torch.zeros((), dtype=torch.float64))  # [values, ...] + batch
        flat = total.reshape(-1) if pointwise else total.sum().reshape(1)
        tensors = [t for k in keys for t in leaves[k].values()]
        if flat.numel() * sum(t.numel() for t in tensors) > _MOST:
            return None
        slopes = _jacobian(flat, tensors)
    rows = flat.detach()
    for key in keys:
        block, own = program.blocks[key], slopes[: len(leaves[key])]
        slopes = slopes[len(leaves[key]) :]
        gained = _gain(block, exact[key], means[key], dict(zip(leaves[key], own, strict=True)))
        if gained is None:
            return None
        rows = rows + gained
    shape = total.shape if pointwise else torch.Size()
    rows = rows.reshape(shape)
    has_values = pointwise and rows.ndim > len(sites[0].shape)
    if by_value:
        return rows if has_values else rows.unsqueeze(0)
    return rows.logsumexp(0) if has_values else rows


def _jacobian(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of each of M numbers in tensors ``[1, ...]``: ``[M, ...]``."""
    if not tensors:
        return []
    eye = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    found = torch.autograd.grad(flat, list(tensors), eye, is_grads_batched=True, allow_unused=True)
    rows = zip(found, tensors, strict=True)
    return [t.new_zeros(len(flat), *t.shape[1:]) if g is None else g[:, 0] for g, t in rows]


def _gain(block: Block, natural: Natural, mean: Mean, slopes: dict[str, Tensor]) -> Tensor | None:
    """A(η + s) − A(η) − ⟨s, μ⟩ for each of M gradients s, ``[M]``; None where η + s is no proper distribution."""
    family, count = block.family, len(next(iter(slopes.values())))
    for name in family.symmetric:
        slopes[name] = (slopes[name] + slopes[name].mT) / 2
    moved = Natural(**{n: natural[n] + slopes[n] for n in family.statistics})
    if not bool(family.in_domain(moved).all()):
        return None
    inner = sum((slopes[n] * mean[n]).reshape(count, -1).sum(1) for n in family.statistics)
    gained = family.log_normalizer(moved) - family.log_normalizer(natural)
    return gained.reshape(count, -1).sum(1) - inner


def blocks_read(program: Program, sites: Sequence[ScoredSite]) -> list[BlockKey]:
    """The blocks with a distribution that the densities of some sites read."""
    found = {key for site in sites for keys in _keys_by_term(program, site) for key in keys}
    return [key for key in program.blocks if key in found]


def _keys_by_term(program: Program, site: ScoredSite) -> list[set[BlockKey]]:
    """The blocks with a distribution that each term of a site's density reads."""
    terms = with_indicators(usable_terms(site), program.recording.discrete, program.mean_field)
    expected = (expect(term, program.owners, site.name) for term in terms)
    return [{m.block.key for m in e.moments if not m.block.is_point} for e in expected]


def _has_closed_form(program: Program, sites: Sequence[ScoredSite], pointwise: bool) -> bool:
    """Whether the densities are of the form that has one: no block but exponential families, none mixed in a term,
    elements that do not meet, and at most one discrete latent, in the plates of the observations.
    """
    discrete = [s for s in sites if s.name in program.recording.discrete]
    plain = all(s.mask is None and not s.is_bound and not isinstance(s.scale, Tensor) and s.scale == 1 for s in sites)
    if not plain or program.log_sums or program.mean_field or len(discrete) > 1 or (discrete and not pointwise):
        return False
    if pointwise and not _have_one_batch(sites):
        return False
    own = [(s.plates, c) for s in sites for c in {c.label: c for t in usable_terms(s) for c in t.choices}.values()]
    names = {s.name for s in discrete}
    if not all(c.site in names and sorted(map(str, c.axes)) == sorted(str(p.dim) for p in plates) for plates, c in own):
        return False
    if any(len(keys) > 1 for site in sites for keys in _keys_by_term(program, site)):
        return False
    families = [program.blocks[key].family for key in blocks_read(program, sites)]
    return not any(isinstance(f, Quadrature) for f in families)


def _have_one_batch(sites: Sequence[ScoredSite]) -> bool:
    """Whether all sites lie in the same plates, and in no other batch."""
    plates = [sorted((p.dim, p.size, p.declared) for p in s.plates) for s in sites]
    sizes = [size for _, size, _ in plates[0]]
    is_whole = all(list(s.shape) == sizes for s in sites) and all(declared for _, _, declared in plates[0])
    return is_whole and all(p == plates[0] for p in plates)


__all__ = ["blocks_read", "exact_log_predictive"]
