"""A Gaussian sent through a flow: the posterior of an autoencoder.

Source: ``docs/sources.md`` [2], "normalizing flows"; Rezende and Mohamed 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ...errors import ArgumentError
from .layers import NO_INVERSE

__all__ = ["FlowPosterior"]


class FlowPosterior(dist.TransformedDistribution):
    """A Gaussian with given loc and scale, sent through a flow: the q(z | x) of an autoencoder beyond the Gaussian.

    As a Pyro distribution it goes into a guide, ``pyro.sample("z", FlowPosterior(loc, scale, self.flow))``, where the
    encoder gives loc and scale and ``self.flow`` is registered with the module. With no flow it is the Gaussian.

    Args:
        loc, scale: of the base, ``[..., D]``; scale positive.
        flow: what :func:`make_flow` returns.
        context: for a conditional flow, ``[..., context_dim]``.

    Raises:
        ValueError: if the shapes differ, or a context is missing or not wanted; from ``log_prob``, if the value is not
            the last draw of a flow without an inverse.

    Source: [2]; Rezende and Mohamed 2015 (10)-(13), (20).
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        flow: Any,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() == 0 or loc.shape != scale.shape:
            raise ArgumentError(
                f"Expected loc and scale of one shape [..., D]; got {list(loc.shape)} and {list(scale.shape)}. Write "
                "loc, scale = torch.broadcast_tensors(loc, scale)."
            )
        conditional = hasattr(flow, "condition")
        if conditional != (context is not None):
            wanted = "a context for a conditional flow" if conditional else "no context for a flow without one"
            fix = (
                "Write context=, or context_dim= of a VAE"
                if conditional
                else "Leave it out, or write make_flow(..., context_dim=)"
            )
            raise ArgumentError(f"Expected {wanted}; got {'none' if context is None else list(context.shape)}. {fix}.")
        self.flow = flow.condition(context) if conditional else flow
        super().__init__(dist.Normal(loc, scale).to_event(1), [self.flow], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> FlowPosterior:
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        base = self.base_dist.expand(torch.Size(batch_shape)).base_dist
        return FlowPosterior(base.loc, base.scale, self.flow, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(value), of the batch shape."""
        try:
            return super().log_prob(value)
        except (KeyError, NotImplementedError):
            raise ArgumentError(
                f"Expected the last draw of this distribution; got another value, and its flow {NO_INVERSE}"
            ) from None
