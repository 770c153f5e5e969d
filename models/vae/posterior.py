"""q(z | x) beyond the diagonal Gaussian: the encoder's Gaussian sent through a flow.

    z = f(loc(x) + scale(x) ε; c(x)),  ε ~ N(0, I),  log q(z | x) = log N(f⁻¹(z); loc, scale²) - log |det J_f|

The flow f is the user's: one for all images, or one whose parameters come from a context c(x) that the encoder gives.

Source: [2], normalizing flows; Rezende and Mohamed 2015 (10)-(13), (20); Kingma et al. 2016 (the context).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_latent.distributions import forget_last_draw
from pyro_latent.errors import ArgumentError, ArgumentTypeError

__all__ = ["FlowedGaussian", "check_flow", "layers_of"]


class FlowedGaussian(dist.TransformedDistribution):
    """A diagonal Gaussian through a transform of vectors; event shape ``[latent_dim]``.

    Args:
        gaussian: the base, of event shape ``[latent_dim]``.
        flow: a torch transform; a conditional one has been given its context.

    Raises:
        ValueError: from ``log_prob``, if the value is not the last draw of a flow without an inverse.
    """

    def __init__(self, gaussian: Any, flow: Transform) -> None:
        super().__init__(gaussian, [flow], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowedGaussian:
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return FlowedGaussian(self.base_dist.expand(torch.Size(batch_shape)), self.transforms[0])

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(value), of the batch shape."""
        try:
            return super().log_prob(value)
        except (KeyError, NotImplementedError):
            raise ArgumentError(
                "Expected the last draw of q(z | x), whose flow has no inverse in closed form; got another value. Use "
                "a flow with an inverse, such as make_flow('affine_coupling', latent_dim), to score any z."
            ) from None


def check_flow(flow: Any, latent_dim: int, context_dim: int | None) -> None:
    """The flow maps vectors of the latent dimension, and has a context where one is given.

    Raises:
        TypeError: if it is no transform.
        ValueError: if its dimension or its context does not fit.
    """
    if flow is None:
        if context_dim is not None:
            raise ArgumentError(
                f"Expected a conditional flow with context_dim={context_dim}; got no flow. Write flow=."
            )
        return
    conditional = hasattr(flow, "condition")
    if not conditional and not isinstance(flow, Transform):
        raise ArgumentTypeError(
            f"Expected flow to be a transform or a conditional one; got {type(flow).__name__}. Write "
            f"flow=make_flow('affine_coupling', {latent_dim}), of pyro_latent.gradient.flows."
        )
    if conditional != (context_dim is not None):
        wanted, fix = (
            ("context_dim with a conditional flow", "Write context_dim=, with the flow's")
            if conditional
            else ("no context_dim with a flow that has no context", f"Write make_flow(..., context_dim={context_dim})")
        )
        raise ArgumentError(f"Expected {wanted}; got context_dim={context_dim}. {fix}.")
    _try(flow, latent_dim, context_dim)


@torch.no_grad()
def _try(flow: Any, latent_dim: int, context_dim: int | None) -> None:
    """Send one vector through, so that a flow of another dimension is found before the first step."""
    like = next(iter(flow.parameters()), torch.zeros(())) if isinstance(flow, nn.Module) else torch.zeros(())
    try:
        given = flow if context_dim is None else flow.condition(like.new_zeros(1, context_dim))
        shape = list(given(like.new_zeros(1, latent_dim)).shape)
    except (RuntimeError, IndexError) as error:
        shape, reason = [], f" ({str(error).splitlines()[0]})"
    else:
        reason = ""
    forget_last_draw(flow)
    if shape != [1, latent_dim]:
        context = "" if context_dim is None else f" and a context of {context_dim} elements"
        raise ArgumentError(
            f"Expected a flow of vectors of latent_dim={latent_dim} elements{context}; got one that does not take "
            f"them{reason}. Make the flow with the VAE's numbers."
        )


def layers_of(flow: Any) -> list[str]:
    """The kinds of a flow's layers."""
    parts = getattr(flow, "parts", None) or getattr(flow, "transforms", None)
    return [type(part).__name__ for part in (parts if parts is not None else [flow])]
