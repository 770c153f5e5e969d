"""Checks of what an autoencoder is made of, and of the images that it is given."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_latent.distributions import forget_last_draw
from pyro_latent.errors import ArgumentError, ArgumentTypeError, DataError, check_count
from pyro_latent.gradient.flows import FlowPosterior


def check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """A sequence of positive integers, as a tuple.

    Raises:
        TypeError: if it is no sequence.
        ValueError: if one of them is no positive integer.
    """
    if not isinstance(sizes, Iterable):
        raise ArgumentTypeError(
            f"Expected {name} to be a sequence of integers; got {sizes!r}. Write {name}=({sizes!r},)."
        )
    return tuple(check_count(f"{name}[{i}]", size) for i, size in enumerate(sizes))


def check_levels(likelihood: str, levels: int | None) -> None:
    """Grey levels are given for categorical pixels alone, and are two at least.

    Raises:
        ValueError: if they are not.
    """
    if (likelihood == "categorical") != (levels is not None) or (levels is not None and levels < 2):
        raise ArgumentError(
            f"Expected levels >= 2 with likelihood='categorical' and no levels with another; got levels={levels!r} "
            f"with likelihood={likelihood!r}. Write likelihood='categorical', levels=16, or leave out levels."
        )


def check_images(images: Any, input_shape: tuple[int, ...], likelihood: str, like: Tensor) -> None:
    """Images have a shape, and the dtype and the device of a tensor; integer ones the device alone.

    Raises:
        DataError: naming what was expected and what came.
    """
    if not isinstance(images, Tensor):
        raise DataError(f"Expected images as a tensor; got {type(images).__name__}. Write torch.as_tensor(images).")
    if tuple(images.shape[1:]) != input_shape or images.dim() == 0 or len(images) == 0:
        raise DataError(
            f"Expected images of shape [M, {', '.join(map(str, input_shape))}] with M >= 1; got shape "
            f"{list(images.shape)}. Reshape them, or make the autoencoder for their shape."
        )
    if likelihood == "categorical":
        if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
            raise DataError(
                f"Expected integer grey levels for likelihood='categorical'; got dtype {images.dtype}. Write "
                "images.long()."
            )
    elif images.dtype != like.dtype:
        cast = "images.float()" if like.dtype == torch.float32 else f"images.to({like.dtype})"
        fix = f"{cast} / 255" if images.dtype == torch.uint8 else f"images.to({like.dtype}), or vae.double()"
        raise DataError(f"Expected images of the VAE's dtype {like.dtype}; got {images.dtype}. Write {fix}.")
    if images.device != like.device:
        raise DataError(
            f"Expected images on the VAE's device {like.device}; got {images.device}. Write vae.to(images.device)."
        )


def check_gray_values(images: Tensor, likelihood: str, levels: int | None) -> None:
    """Every value is one that the likelihood allows; all of them are read once.

    Raises:
        DataError: naming what was expected and what came.
    """
    low, high = (float(v) for v in images.aminmax())
    if math.isnan(low):
        raise DataError(
            f"Expected images without NaN; got {int(images.isnan().sum()):,} NaN among {images.numel():,} values. "
            "Fill in missing pixels, or leave out their images."
        )
    least, most, fix = {
        "bernoulli": (0.0, 1.0, "Divide by the largest value, or write VAE(..., likelihood='gaussian')."),
        "gaussian": (-math.inf, math.inf, "Remove what is not finite."),
        "categorical": (0.0, (levels or 1) - 1.0, "Give levels= the number of grey levels."),
    }[likelihood]
    if not (least <= low and high <= most) or low == -math.inf or high == math.inf:
        wanted = "finite images" if likelihood == "gaussian" else f"images in [0, {most:g}]"
        raise DataError(f"Expected {wanted} for likelihood={likelihood!r}; got values from {low:g} to {high:g}. {fix}")


@torch.no_grad()
def check_flow(flow: Any, latent_dim: int, context_dim: int | None) -> None:
    """The flow maps vectors of the latent dimension, and has a context where one is given: one vector is sent through.

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
    if not hasattr(flow, "condition") and not isinstance(flow, Transform):
        raise ArgumentTypeError(
            f"Expected flow to be a transform or a conditional one; got {type(flow).__name__}. Write "
            f"flow=make_flow('affine_coupling', {latent_dim}), of pyro_latent.gradient.flows."
        )
    like = next(iter(flow.parameters()), torch.zeros(())) if isinstance(flow, nn.Module) else torch.zeros(())
    context = None if context_dim is None else like.new_zeros(1, context_dim)
    vector, reason = like.new_zeros(1, latent_dim), ""
    try:
        shape = list(FlowPosterior(vector, vector + 1, flow, context, validate_args=False).flow(vector).shape)
    except (RuntimeError, IndexError) as error:
        shape, reason = [], f" ({str(error).splitlines()[0]})"
    forget_last_draw(flow)
    if shape != [1, latent_dim]:
        wanted = "" if context_dim is None else f" and a context of {context_dim} elements"
        raise ArgumentError(
            f"Expected a flow of vectors of latent_dim={latent_dim} elements{wanted}; got one that does not take "
            f"them{reason}. Make the flow with the VAE's numbers."
        )
