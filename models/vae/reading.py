"""What images come in: tensors, NumPy arrays, and the loaders of torch that stream them in minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, SubsetRandomSampler

from pyro_latent.errors import ArgumentError, DataError, check_count
from pyro_latent.gradient.trainer import trainable

from .model import Autoencoder

__all__ = ["Minibatches", "as_images", "minibatches"]


def as_images(vae: Autoencoder, images: Any) -> Tensor:
    """Images ``[N, *input_shape]`` on the VAE's device, checked: a tensor as it is, an array in the VAE's dtype, or all
    that a ``DataLoader`` has.

    Raises:
        DataError: if they do not fit the VAE.
    """
    if isinstance(images, DataLoader):
        batches = [_converted(vae, _first(batch)) for batch in images]
        if not batches:
            raise DataError("Expected a DataLoader with at least one minibatch; got none. Write drop_last=False.")
        return torch.cat(batches)
    if isinstance(images, np.ndarray):
        return _converted(vae, images)
    vae.check_values(images)
    return images


def _first(batch: Any) -> Any:
    """The images of a minibatch that may have labels beside them."""
    return batch[0] if isinstance(batch, Sequence) and len(batch) else batch


def _converted(vae: Autoencoder, images: Any) -> Tensor:
    """An array or a tensor on the VAE's device, floating ones in its dtype; integers stay."""
    like = vae.prior_loc
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "biuf":
            raise DataError(f"Expected images of numbers; got an array of dtype {images.dtype}. Write them as floats.")
        images = torch.from_numpy(np.ascontiguousarray(images.astype(images.dtype.newbyteorder("="))))
    if isinstance(images, Tensor):
        images = images.to(like.device, like.dtype if images.is_floating_point() else images.dtype)
    vae.check_values(images)
    return images


class Minibatches:
    """All images in memory, in random minibatches.

    Args:
        images: ``[N, *input_shape]``.
        batch_size: M; the last minibatch of an epoch may be smaller.
    """

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.images)

    @property
    def steps(self) -> int:
        """The number of minibatches of an epoch."""
        return math.ceil(len(self) / self.batch_size)

    @property
    def content(self) -> Any:
        """What a checkpoint knows the images by."""
        return self.images

    def epoch(self) -> Iterator[Tensor]:
        """Every image once, in a random order."""
        order = torch.randperm(len(self.images), device=self.images.device)
        for index in order.split(self.batch_size):
            yield self.images[index]


class Streamed(Minibatches):
    """The minibatches of a ``DataLoader``, as it deals them out: its images are never all in memory."""

    def __init__(self, vae: Autoencoder, loader: DataLoader[Any]) -> None:
        self.vae, self.loader = vae, loader
        self.batch_size = loader.batch_size or 0
        sampler, dataset = loader.sampler, loader.dataset
        counted = sampler.indices if isinstance(sampler, SubsetRandomSampler) else dataset
        if not hasattr(counted, "__len__"):
            raise ArgumentError(
                "Expected a DataLoader whose dataset has a length, which the ELBO of all images needs; got "
                f"{type(dataset).__name__}. Give the dataset a __len__."
            )
        self._size = len(counted)
        if not self._size or not len(loader):
            raise DataError("Expected a DataLoader with at least one minibatch; got none. Write drop_last=False.")

    def __len__(self) -> int:
        return self._size

    @property
    def steps(self) -> int:
        return len(self.loader)

    @property
    def content(self) -> Any:
        return [type(self.loader.dataset).__name__, len(self), self.steps]

    def epoch(self) -> Iterator[Tensor]:
        for batch in self.loader:
            yield _converted(self.vae, _first(batch))


def minibatches(vae: Autoencoder, images: Any, batch_size: int | None) -> Minibatches:
    """The minibatches of images to train on; those of a ``DataLoader`` are its own.

    Raises:
        DataError: if the images do not fit the VAE.
        ArgumentError: if there is a batch size beside a ``DataLoader``, or it is no count.
    """
    if isinstance(images, DataLoader):
        if batch_size is not None:
            raise ArgumentError(
                f"Expected no batch_size with a DataLoader, which has its own; got {batch_size!r}. Write "
                f"DataLoader(dataset, batch_size={batch_size!r}, shuffle=True)."
            )
        return Streamed(vae, images)
    size = check_count("batch_size", 100 if batch_size is None else batch_size)
    return Minibatches(trainable(vae, as_images(vae, images)), size)
