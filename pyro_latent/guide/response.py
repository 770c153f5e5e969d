r"""Covariances that mean field loses, by linear response.

The factors of q are independent, but where q is depends on the model. Let each latent be pushed by a little t: the log
joint gets ⟨t, x⟩, and the factors answer. How far they move, per t, is the covariance

.. math:: \hat Σ = \frac{d E_q x}{dt} = -F''(μ)^{-1} = (I - V H)^{-1} V,

with F the ELBO as a function of the mean parameters μ, V the covariance of the statistics under q, block by block, and
H = ∂²\bar L / ∂μ². Where the model is normal it is the exact covariance, though q's are too narrow. Discrete sites are
at their optimum given the others throughout, so \bar L has log Z in it: what remains is the Schur complement of the
larger system. Everything is written here in statistics ε that are uncorrelated under q, t − μ = T ε and V = T Tᵀ: then

.. math:: \hat Σ = T (I - K)^{-1} T^⊤, \qquad K = T^⊤ H T.

Source: Giordano, Broderick and Jordan (2015; 2018). For functions that are no statistics, such as the probabilities of
a Dirichlet, their covariances with ε under q take the place of T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError, ModelError
from ..families import Mean
from ..objective import Block, Means, Program, State
from ..objective.summands import cast
from ..settings import check_memory
from .whitening import Whitened, WhitenedReading, slopes_in, whitened

#: The most that a Newton step may raise the ELBO of a fixed point, in nats.
_GAP = 1e-3
#: A curvature of less than this is none, where that of a factor alone is 1.
_FLAT = 1e-7
#: Numbers of what is differentiated at once.
_AT_ONCE = 2**21


class LinearResponse:
    """Covariances between all latents with a factor, corrected for the independence of the factors.

    ``guide.linear_response(*args)`` makes one, at the optimum that a run has reached. They are those of the posterior
    as far as its means answer linearly: exact where it is normal given everything else that is known, discrete sites
    summed out, and better than those of q where it is near to that.

    Attributes:
        sites: the names of the sites, in the order of the model.
        conditional_on: points and parameters, which have no factor: the covariances are those given their values.
        gap: how far a Newton step would raise the ELBO, in nats, of which at most 0.001 passes for an optimum.

    Raises:
        ModelError: if the guide is not at an optimum; at a saddle, which is none either; where optima are a line; for a
            subsample; for sites with a scale; if the statistics are too many for the limit of memory.

    Source: Giordano, Broderick and Jordan (2015, 2018).
    """

    def __init__(self, program: Program, state: State) -> None:
        _check(program)
        self._program = program
        self._state, self._means = program.exactly(state)
        blocks = [block for block in program.blocks.values() if not block.is_point]
        self.conditional_on = tuple(s.name for b in program.blocks.values() if b.is_point for s in b.sites)
        self._known: dict[str, WhitenedReading] = {}
        self._check_size(blocks)
        self._whitened: list[Whitened] = []
        first = 0
        for block in blocks:
            found = whitened(block, self._state[block.key], self._means[block.key], first)
            self._whitened.append(found)
            first = found.places.stop
        self.sites = tuple(s.name for b in blocks if not b.is_discrete for s in b.sites)
        self._response, self.gap = self._solved(first)

    def _check_size(self, blocks: Sequence[Block]) -> None:
        sizes = {b.label: sum(t.numel() for t in self._means[b.key].values()) for b in blocks}
        total = sum(sizes.values())
        largest = max(sizes, key=sizes.__getitem__, default="")
        check_memory(
            f"the system of the {total} statistics of all factors, most of them of {largest!r},",
            4 * total**2,
            "Linear response is for models whose latents are not many: sum them out, or leave data out.",
        )

    # The system.

    def _solved(self, count: int) -> tuple[Tensor, float]:
        """(I − K)⁻¹, and how far a Newton step would raise the ELBO."""
        like = self._program.recording.like.new_empty(0, dtype=torch.float64)
        system = torch.eye(count, dtype=like.dtype, device=like.device) - self._coupling(count, like)
        residual = self._residual(like)
        factor, info = torch.linalg.cholesky_ex(system)
        if int(info) != 0:
            values, directions = torch.linalg.eigh(system)
            raise self._no_maximum(float(values[0]), directions[:, 0], residual)
        gap = 0.5 * float(torch.cholesky_solve(residual.unsqueeze(-1), factor)[:, 0] @ residual)
        if not gap <= _GAP:
            raise ModelError(
                f"Expected a guide at an optimum, which a Newton step raises by at most {_GAP:g} nats; got one that it "
                f"raises by {gap:.3g}. Run on, from where it is: CAVI(model, guide, accelerate=True).run(..., "
                "tol=1e-12)."
            )
        found = torch.cholesky_inverse(factor)
        largest, direction = _largest(found)
        if largest * _FLAT > 1:
            raise self._no_maximum(1 / largest, direction, residual)
        return found, gap

    def _no_maximum(self, curvature: float, direction: Tensor, residual: Tensor) -> ModelError:
        """What is wrong where the ELBO does not fall along a direction."""
        worst = direction.square()
        label = max(self._whitened, key=lambda w: float(worst[w.places].sum())).block.label
        if float(residual.square().sum()) > _GAP:
            return ModelError(
                f"Expected a guide at an optimum; got one whose next updates move it by {float(residual.norm()):.3g} "
                "standard deviations in all. Run on, from where it is: CAVI(model, guide).run(..., tol=1e-12)."
            )
        if curvature > -_FLAT:
            return ModelError(
                f"Expected one optimum; got a line of them along {label!r}, where the ELBO stays as it is: the model "
                "does not tell its values apart, as those of factors that may be rotated. Fix what is free in it."
            )
        return ModelError(
            f"Expected a maximum of the ELBO; got a saddle, from which it rises along {label!r} (a curvature of "
            f"{curvature:.3g}, where a factor alone has 1). Start elsewhere: AutoConjugate(model, init=1), or "
            "restarts=10."
        )

    def _residual(self, like: Tensor) -> Tensor:
        """How far each factor's next update would move its uncorrelated statistics."""
        program, means = self._program, self._means
        held = program.elimination.eliminate(_rounded(program, means))
        terms = cast([*program.exact_summands, *program.elimination.held_summands(held)], torch.float64)
        found = []
        for w in self._whitened:
            key, own = w.block.key, [s for s in terms if w.block.key in s.blocks]
            natural = program.optimum_of(w.block, means, own, start=self._state[key])
            moved = w.packed(w.block.family.mean(natural)) - w.packed(means[key])
            found.append((w.inverse @ moved[0].unsqueeze(-1)).reshape(-1))
        return torch.cat(found) if found else like

    def _coupling(self, count: int, like: Tensor) -> Tensor:
        """K = Tᵀ H T, some columns at a time: one of them is a start of the program."""
        found = torch.zeros(count, count, dtype=like.dtype, device=like.device)
        numbers = sum(t.numel() for mean in self._means.values() for t in mean.values())
        numbers += sum(value.numel() for value in _log_factors(self._program, self._means))
        at_once = max(1, _AT_ONCE // max(1, numbers))
        for w in self._whitened:
            elements, size = w.spread.shape[:2]
            for begin in range(0, elements * size, at_once):
                columns = torch.arange(begin, min(elements * size, begin + at_once), device=like.device)
                direction = w.spread.new_zeros(len(columns), elements, size)
                element, place = columns // size, columns % size
                direction[torch.arange(len(columns), device=like.device), element] = w.spread[element, :, place]
                found[:, w.first + columns] = self._curved(w, direction)
        return (found + found.mT) / 2

    def _curved(self, along: Whitened, direction: Tensor) -> Tensor:
        """Tᵀ H of directions ``[B, elements, d]`` in the mean parameters of a block: ``[count, B]``."""
        program, count = self._program, len(direction)
        with torch.enable_grad():
            leaves: Means = {
                w.block.key: self._means[w.block.key].map(lambda t: t.detach().expand(count, *t.shape[1:]).clone())
                for w in self._whitened
            }
            flat = [t.requires_grad_() for mean in leaves.values() for t in mean.values()]
            points = {
                key: block.family.mean(self._state[key].map(lambda t: t.expand(count, *t.shape[1:])))
                for key, block in program.blocks.items()
                if block.is_point
            }
            total = _expected_log_joint(program, program.with_derived(leaves | points))
            own = leaves[along.block.key]
            names = [n for n in along.names if n in own]
            slopes = slopes_in(total, [own[n] for n in names], create_graph=True)
            slope = Mean(**dict(zip(names, slopes, strict=True)))
            inner = (along.packed(slope) * direction).sum()
            curved = iter(slopes_in(inner, flat))
        found = []
        for w in self._whitened:
            mean = Mean(**{n: next(curved) for n in leaves[w.block.key]})
            found.append(torch.einsum("eij,bei->bej", w.spread, w.packed(mean)).reshape(count, -1))
        return torch.cat(found, 1).mT

    # What is read off.

    def covariance(self, site: str, other: str | None = None) -> Tensor:
        """The covariances of all elements of a site with all of another, by default itself: the shapes of both.

        ``"log tau"`` is the logarithm of a site ``tau``.

        Raises:
            ArgumentError: for what is no continuous latent site with a factor.
            ModelError: where q's own covariances of the site have no formula.
        """
        left, right = self._reading(site), self._reading(other or site)
        a, b = left.whitened, right.whitened
        response = self._response[a.places, b.places].reshape(*a.spread.shape[:2], *b.spread.shape[:2])
        found = torch.einsum("evd,edfg,fwg->evfw", left.loadings, response, right.loadings)
        found = found.reshape(left.shape.numel(), right.shape.numel())
        more = left.unexplained(right)
        return (found if more is None else found + more).reshape(left.shape + right.shape)

    def sd(self, site: str) -> Tensor:
        """The standard deviations of the elements of a site, of its shape."""
        found = self.covariance(site)
        size = found.ndim // 2
        return found.reshape(found.shape[:size].numel(), -1).diagonal().sqrt().reshape(found.shape[:size])

    def correlation(self, site: str, other: str | None = None) -> Tensor:
        """The correlations of all elements of a site with all of another, by default itself: the shapes of both."""
        found, left, right = self.covariance(site, other), self.sd(site), self.sd(other or site)
        return found / left.reshape(left.shape + (1,) * right.ndim) / right

    def _reading(self, name: str) -> WhitenedReading:
        """What is read of a site."""
        if name not in self._known:
            is_log = name not in self.sites and name.startswith("log ")
            site = name.removeprefix("log ") if is_log else name
            if site not in self.sites:
                why = " It is a point: the covariances are given its value." if site in self.conditional_on else ""
                raise ArgumentError(f"Expected one of the sites {list(self.sites)}; got {name!r}.{why}")
            w, i = next((w, i) for w in self._whitened for i, s in enumerate(w.block.sites) if s.name == site)
            self._known[name] = WhitenedReading.of(w, i, is_log, self._state[w.block.key])
        return self._known[name]

    def __repr__(self) -> str:
        given = f", given {', '.join(self.conditional_on)}" if self.conditional_on else ""
        return f"LinearResponse of {', '.join(self.sites)}{given}"


def _check(program: Program) -> None:
    """Linear response is that of all data, and of sites that count once."""
    if program.recording.is_subsample:
        raise ModelError(
            "Expected all of the data; got a subsample. Call linear_response with all of it, and plates without "
            "subsample_size."
        )
    for block in program.blocks.values():
        scale = torch.as_tensor(block.scale)
        if not block.is_point and not bool((scale == 1).all()):
            raise ModelError(
                f"Expected sites that count once; got {block.label!r} with a scale. Take poutine.scale off it."
            )


def _log_factors(program: Program, means: Means) -> list[Tensor]:
    """The expected log factors of the discrete sites."""
    return program.elimination.values(_rounded(program, means))


def _rounded(program: Program, means: Means) -> Means:
    """Mean parameters in the dtype of the data, which the factors of discrete sites are in."""
    return {key: mean.map(lambda t: t.to(program.recording.dtype)) for key, mean in means.items()}


def _largest(matrix: Tensor, rounds: int = 30) -> tuple[float, Tensor]:
    """The largest eigenvalue of a positive definite matrix, from below, and its direction, by powers."""
    direction = matrix.diagonal().clone()
    for _ in range(rounds if len(matrix) else 0):
        direction = matrix @ (direction / direction.norm())
    return float(direction.norm()), direction


def _expected_log_joint(program: Program, means: Means) -> Tensor:
    r"""\bar L summed over starts, with the discrete sites at their optimum."""
    total = sum((s.value(means).sum() for s in program.exact_summands if s.moments), start=torch.zeros(()))
    values = _log_factors(program, means)
    for joint in program.joints:
        total = total + joint.run([values[i] for i in joint.indices])[0].sum()
    return total


__all__ = ["LinearResponse"]
