"""``VAE``: a variational autoencoder to fit, encode, decode and draw from, around its two Pyro programs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_latent.errors import ArgumentError, check_count, checked_call
from pyro_latent.particles import seeded

from .evaluation import DRAWS_OF_A_FLOW
from .model import Autoencoder
from .reading import as_images
from .training import History, fit

__all__ = ["VAE"]


class VAE(Autoencoder):
    """A variational autoencoder; ``model`` and ``guide`` are Pyro programs with sites ``z`` and ``images``.

    ``fit``, ``encode``, ``decode``, ``reconstruct`` and ``sample`` need no Pyro.

    Both sites are in the plate ``data``; ``z`` has event shape ``[latent_dim]`` and ``images`` the images' shape. With
    ``weight_prior`` there is a site ``decoder.<name>`` for each of the decoder's parameters, outside of the plate.

    Args:
        input_shape: the shape of one image: ``[pixels]``, ``[height, width]`` or ``[channels, height, width]``.
        latent_dim: the dimension of z, J.
        hidden: units of each hidden layer of the encoder, mirrored in the decoder (default 400), or the channels of
            each convolution (default 32, 64); ``()`` makes linear networks.
        likelihood: ``"bernoulli"``: images in [0, 1], grey ones being scored by their expectation over black and white
            ones. ``"gaussian"``: any finite images; the scale of the noise is learned. ``"categorical"``: integer
            images of ``levels`` grey levels, 0 to ``levels - 1``.
        network: ``"mlp"``, or ``"conv"`` for two- and three-dimensional images.
        levels: how many grey levels; for ``"categorical"`` only.
        weight_prior: the standard deviation of the Gaussian prior of each weight and bias of the decoder, which then
            get a posterior; None: a point estimate.
        reduction: ``"sum"`` makes the loss an estimate of -ELBO of all N images, N / M times the sum over a minibatch
            of M, [4] (154). ``"mean"`` divides all of it by N, the KL divergence of the weights too.
        flow: a torch transform of vectors of ``latent_dim`` elements, such as ``make_flow("planar", latent_dim)`` of
            ``pyro_latent.gradient.flows``; q(z | x) is then the encoder's Gaussian sent through it. A module is trained
            with the VAE. There is no KL divergence in closed form: use ``Trace_ELBO``, or estimator ``"A"``.
        context_dim: for a conditional flow, made with that ``context_dim``: the encoder gives it a context of so many
            elements for each image.
        name: a prefix of the parameters' names in Pyro's store, for more than one VAE there.

    Raises:
        TypeError: if ``input_shape`` or ``hidden`` is one number, or ``flow`` no transform.
        ValueError: if an argument is not as above.

    Example::

        vae = VAE((8, 8), latent_dim=4)
        history = vae.fit(images, validation=held_out, patience=10)
        z = vae.encode(held_out)
        drawn = vae.sample(16)

    Source: [4] (167)-(168), and (155)-(162) with ``weight_prior``; [2], normalizing flows, with ``flow``.
    """

    def fit(self, images: Any, **options: Any) -> History:
        """Train it in place; the arguments, errors and what is returned are those of :func:`fit`."""
        return fit(self, images, **options)

    @checked_call
    @torch.no_grad()
    def encode(self, images: Any, num_samples: int | None = None) -> Tensor:
        """Where the guide puts images: the means of q(z | x), or draws of it.

        Args:
            images: ``[N, *input_shape]``: a tensor, a NumPy array, or a ``DataLoader``, all of whose images are read.
            num_samples: S, the number of draws, from torch's global random state; None: the means, which with a flow
                have no closed form, and are those of 50 draws with a fixed seed.

        Returns:
            ``[N, latent_dim]``, or ``[S, N, latent_dim]``.

        Raises:
            DataError: if the images do not fit the VAE.
        """
        posterior = self.posterior(as_images(self, images))
        if num_samples is not None:
            return posterior.sample((check_count("num_samples", num_samples),))
        if self.flow is None:
            return posterior.mean
        with seeded(0, self.prior_loc.device):
            found: Tensor = posterior.sample((DRAWS_OF_A_FLOW,)).mean(0)
        return found

    @checked_call
    @torch.no_grad()
    def decode(self, z: Any) -> Tensor:
        """The mean images of latent vectors, E[x | z].

        Args:
            z: ``[..., latent_dim]``, a tensor or a NumPy array.

        Returns:
            ``[..., *input_shape]``, in the unit of the images. With ``weight_prior`` the weights are at their means.

        Raises:
            ArgumentError: if ``z`` has another last dimension, or is no tensor or array.
        """
        z = torch.from_numpy(np.ascontiguousarray(z)) if isinstance(z, np.ndarray) else z
        if not isinstance(z, Tensor) or z.shape[-1:] != (self.latent_dim,):
            found = f"shape {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ArgumentError(
                f"Expected latent vectors as a tensor of shape [..., {self.latent_dim}]; got {found}. Write "
                "vae.decode(vae.encode(images)), or torch.as_tensor(z)."
            )
        return self.mean_images(z.to(self.prior_loc))

    def reconstruct(self, images: Any) -> Tensor:
        """The mean images at the means of q(z | x): ``decode(encode(images))``, ``[N, *input_shape]``."""
        return self.decode(self.encode(images))

    @checked_call
    @torch.no_grad()
    def sample(self, num_images: int = 1, *, noise: bool = True) -> Tensor:
        """New images from the model: z from its prior, and x given z; from torch's global random state.

        Args:
            num_images: N.
            noise: False: the means of x given z in place of draws.

        Returns:
            ``[N, *input_shape]``. With ``weight_prior`` the weights are at their means; ``Predictive(vae.model)`` draws
            them from their prior.
        """
        z = self.prior((check_count("num_images", num_images),)).sample()
        return self.pixels(z).sample() if noise else self.mean_images(z)
