r"""Chains of invertible maps with parameters, and their log-determinants, which add up.

The maps are Pyro's own (``pyro.distributions.transforms``), between which the coordinates change places.

Source: ``docs/sources.md`` [2], "normalizing flows"; Rezende and Mohamed 2015 (planar, radial); Dinh et al. 2017
(affine coupling); Kingma et al. 2016 (autoregressive); Durkan et al. 2019 (splines).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions.transforms as T
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.distributions.torch_transform import ComposeTransformModule, TransformModule
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.utils import _sum_rightmost

from ...distributions import forget_last_draw
from ...errors import ArgumentError, check_count, checked_call, is_count

__all__ = [
    "FLOWS",
    "NO_INVERSE",
    "ElementwiseAffine",
    "ElementwiseSpline",
    "Flow",
    "Reverse",
    "layers_of",
    "make_flow",
    "push",
]


class _VectorMap(TransformModule):
    """A bijection of real vectors that remembers its last draw, since a layer after it may invert no other."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)


class ElementwiseAffine(_VectorMap):
    """x = loc + exp(log_scale) z, with both parameters trained: alone, it makes the mean-field Gaussian.

    Args:
        loc: where it starts, ``[D]``.
        scale: the scale that all coordinates start at, positive.
    """

    def __init__(self, loc: Tensor, scale: float) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(loc.detach().clone())
        self.log_scale = torch.nn.Parameter(torch.full_like(loc, scale).log())

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.log_scale.exp() * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale.sum(-1).expand(x.shape[:-1])


class ElementwiseSpline(_VectorMap):
    """Pyro's spline of each coordinate by itself, as a map of vectors: its log-determinant is a sum over coordinates.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spline = _quiet(T.spline(dim))

    def _call(self, x: Tensor) -> Tensor:
        return self.spline(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.spline.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.spline.log_abs_det_jacobian(x, y).sum(-1)


class Reverse(_VectorMap):
    """The coordinates from the last to the first: between layers that treat them unlike.

    It has no tensors, so it acts on every device; the permutation of Pyro's ``permute`` stays where it was made.
    """

    volume_preserving = True

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


class Flow(ComposeTransformModule):
    """Pyro's chain, which can be copied and pickled after use."""

    def __getstate__(self) -> Any:
        forget_last_draw(self)
        return super().__getstate__()


class _ConditionalFlow(ConditionalComposeTransformModule):
    """A chain of layers with a context, which can be copied and pickled after use."""

    def __getstate__(self) -> Any:
        forget_last_draw(self)
        return dict(vars(self))


def _quiet(layer: Any) -> Any:
    """The layer with its free splines near the identity: Pyro draws them so wild that a fit starts with spikes."""
    for name, parameter in layer.named_parameters():
        if "unnormalized" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return layer


#: Pyro's maker of each kind of layer; ``hidden`` are the widths of its networks.
FLOWS: dict[str, Callable[[int, Sequence[int]], Transform]] = {
    "planar": lambda dim, hidden: T.planar(dim),
    "radial": lambda dim, hidden: T.radial(dim),
    "affine_coupling": lambda dim, hidden: T.affine_coupling(dim, list(hidden)),
    "affine_autoregressive": lambda dim, hidden: T.affine_autoregressive(dim, list(hidden)),
    "spline": lambda dim, hidden: ElementwiseSpline(dim),
    "spline_coupling": lambda dim, hidden: _quiet(T.spline_coupling(dim, hidden_dims=list(hidden))),
    "spline_autoregressive": lambda dim, hidden: T.spline_autoregressive(dim, list(hidden)),
}
#: The kinds that Pyro has with a context too: their parameters come from it by a network.
_CONDITIONAL = ("planar", "radial", "affine_coupling", "affine_autoregressive", "spline_autoregressive")
_COUPLED = ("affine_coupling", "spline_coupling", "affine_autoregressive", "spline_autoregressive")
NO_INVERSE = "has no inverse in closed form. Use 'affine_coupling', 'spline_coupling' or 'spline_autoregressive'."


def make_flow(
    kind: str, dim: int, *, length: int = 4, hidden: Sequence[int] = (32, 32), context_dim: int | None = None
) -> Any:
    """A chain of ``length`` layers of one kind, between which the coordinates change places.

    Args:
        kind: "planar", "radial" (no inverse in closed form), "affine_coupling", "spline_coupling",
            "spline_autoregressive", "affine_autoregressive" (its inverse takes D passes), or "spline" (each coordinate
            by itself). Splines act between -3 and 3, and are the identity outside.
        dim: D, the length of the vectors; coupling and autoregressive layers need two or more.
        length: K, the number of layers.
        hidden: widths of the hidden layers of their networks.
        context_dim: if given, each layer's parameters come from a context of that length, and the flow has
            ``condition(context)``; not for "spline" and "spline_coupling".

    Returns:
        A ``ComposeTransformModule``: a torch transform and a module, with the parameters of all layers in float32;
        ``.double()`` makes them float64, and ``.to(device)`` moves all of it. With a context, a
        ``ConditionalComposeTransformModule``. A copy or a pickle of either has no memory of its last draw, nor has the
        original then.

    Raises:
        ValueError: if an argument is not as above.

    Source: [2], "composition of transformations".
    """
    known = FLOWS if context_dim is None else _CONDITIONAL
    if not isinstance(kind, str) or kind not in known:
        raise ArgumentError(f"Expected kind to be one of {sorted(known)}; got {kind!r}. Try 'affine_coupling' first.")
    dim, length = check_count("dim", dim), check_count("length", length)
    context_dim = None if context_dim is None else check_count("context_dim", context_dim)
    if not isinstance(hidden, list | tuple) or not all(map(is_count, hidden)) or (kind in _COUPLED and not hidden):
        raise ArgumentError(f"Expected hidden to be widths of at least 1; got {hidden!r}. Write hidden=(32, 32).")
    if kind in _COUPLED and dim < 2:
        raise ArgumentError(
            f"Expected dim of at least 2 for {kind!r}, which couples coordinates; got {dim}. Use 'spline'."
        )
    layers: list[Any] = []
    for k in range(length):
        if k and kind in _COUPLED:
            layers.append(Reverse())
        if context_dim is None:
            layers.append(FLOWS[kind](dim, hidden))
        else:
            layers.append(getattr(T, f"conditional_{kind}")(dim, context_dim, list(hidden)))
    return Flow(layers) if context_dim is None else _ConditionalFlow(layers)


def layers_of(flow: object) -> list[Any]:
    """The layers of a flow, with a context or without one; a single transform is its own layer."""
    return list(getattr(flow, "parts", None) or getattr(flow, "transforms", None) or [flow])


@checked_call
def push(flow: object, z: Tensor) -> tuple[Tensor, Tensor]:
    """Send vectors through a flow, layer by layer.

    Args:
        flow: what :func:`make_flow` returns, or any composed transform of vectors.
        z: ``[..., D]``.

    Returns:
        f(z), ``[..., D]``, and the log-determinant of each layer, ``[..., K]``; their sum is that of the whole.

    Source: [2], det(J_f) = Π_k det(J_{f_k}).
    """
    terms = []
    for part in layers_of(flow):
        moved = part(z)
        term = part.log_abs_det_jacobian(z, moved)
        terms.append(_sum_rightmost(term, max(term.dim() - z.dim() + 1, 0)))  # by coordinate, of an elementwise map
        z = moved
    return z, torch.stack(torch.broadcast_tensors(*terms), -1)
