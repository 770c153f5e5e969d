"""The variational autoencoder as two Pyro programs: ``VAE.model``, p(x, z), and the amortised ``VAE.guide``, q(z | x).

    z_n ~ N(0, I),  x_n | z_n ~ p(x | decoder(z_n)),  q(z_n | x_n) = N(loc(x_n), diag scale(x_n)²)

With ``flow`` the Gaussian of q goes through that flow.

Pixels are Bernoulli (the decoder gives logits), Gaussian (it gives locations; one scale for all pixels is learned) or
Categorical over grey levels. With ``weight_prior`` the decoder's weights are latent too, w ~ N(0, weight_prior²), with
a posterior q(w) = N(m, diag s²): full variational Bayes.

Any Pyro inference works on the pair: ``SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())``, ``Predictive``,
``Importance``. :func:`pyro_latent.models.vae.fit` trains it faster, with annealing, checkpoints and a history.

Source: [4] (146)-(148), (154), (155)-(162), (167)-(168); Kingma and Welling 2014.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import pyro_method
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_latent.distributions import forget_last_draw
from pyro_latent.errors import ArgumentError, ModelError, as_real, check_choice, check_count
from pyro_latent.gradient.flows import FlowPosterior

from .checks import check_flow, check_gray_values, check_images, check_levels, check_sizes
from .network import DEFAULT_HIDDEN, Decoder, Encoder, Network
from .store import StoredModule

__all__ = ["Autoencoder", "Likelihood", "Reduction"]

Likelihood: TypeAlias = Literal["bernoulli", "gaussian", "categorical"]
Reduction: TypeAlias = Literal["sum", "mean"]
Weights: TypeAlias = Mapping[str, Tensor] | None

#: The log of the posterior's scale that every weight of a Bayesian decoder starts with.
_INITIAL_LOG_SCALE = -4.0


class _Independent(dist.Independent):
    """An ``Independent`` whose expansion to the batch shape that it has is itself.

    Every plate expands the distribution of a site. Here the shapes agree already, and a new distribution with a view of
    each tensor would only cost time, in the forward pass and in the backward one.
    """

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        if _instance is None and torch.Size(batch_shape) == self.batch_shape:
            return self
        return super().expand(batch_shape, _instance)


class BernoulliImages(_Independent):
    """Independent Bernoulli pixels that score grey levels too: log p(x) = x log p + (1 - x) log(1 - p) for x in [0, 1].

    That is the expectation over black and white images whose pixels are white with probability x.
    """

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.unit_interval, self.reinterpreted_batch_ndims)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = torch.broadcast_tensors(self.base_dist.logits, value)
        errors = nn.functional.binary_cross_entropy_with_logits(logits, value, reduction="none")
        # The sign is changed after the sum: on the pixels it would take two more passes over them, there and back.
        return -errors.sum(tuple(range(-self.reinterpreted_batch_ndims, 0)))


class Autoencoder(StoredModule):
    """The two Pyro programs of a variational autoencoder and their networks; ``VAE`` says what its arguments are."""

    encoder: Encoder
    decoder: Decoder
    prior_loc: Tensor
    prior_scale: Tensor
    noise_log_scale: nn.Parameter
    weight_log_scales: nn.ParameterList

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int = 2,
        *,
        hidden: Sequence[int] | None = None,
        likelihood: Likelihood = "bernoulli",
        network: Network = "mlp",
        levels: int | None = None,
        weight_prior: float | None = None,
        reduction: Reduction = "sum",
        flow: Any = None,
        context_dim: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__(name)
        for choice, value, kind in (("network", network, Network), ("likelihood", likelihood, Likelihood)):
            check_choice(choice, value, get_args(kind))
        check_choice("reduction", reduction, get_args(Reduction))
        input_shape = check_sizes("input_shape", input_shape)
        hidden = check_sizes("hidden", DEFAULT_HIDDEN[network] if hidden is None else hidden)
        check_count("latent_dim", latent_dim)
        check_levels(likelihood, levels)
        if not input_shape:
            raise ArgumentError("Expected input_shape, the shape of one image; got (). Write (pixels,) for vectors.")
        if network == "conv" and not hidden:
            raise ArgumentError("Expected channels in hidden for network='conv'; got none. Write hidden=(32, 64).")
        if weight_prior is not None and not 0 < as_real(weight_prior) < math.inf:
            raise ArgumentError(
                f"Expected weight_prior to be a positive standard deviation or None; got {weight_prior!r}. Write "
                "weight_prior=1.0, or None for a point estimate."
            )
        if context_dim is not None:
            check_count("context_dim", context_dim)
        check_flow(flow, latent_dim, context_dim)
        self.input_shape = input_shape
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.likelihood: Likelihood = likelihood
        self.network: Network = network
        self.levels = levels
        self.weight_prior = weight_prior
        self.reduction: Reduction = reduction
        self.flow = flow
        self.context_dim = context_dim
        self.encoder = Encoder(input_shape, latent_dim, hidden, network, context_dim)
        self.decoder = Decoder(input_shape, latent_dim, hidden, network, levels or 1)
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_dim), persistent=False)
        if likelihood == "gaussian":
            self.noise_log_scale = nn.Parameter(torch.zeros(()))
        if weight_prior is not None:
            self.weight_log_scales = nn.ParameterList(
                torch.full_like(weight, _INITIAL_LOG_SCALE) for weight in self.decoder.parameters()
            )

    # ------------------------------------------------------------------------------------------------- Pyro programs

    @pyro_method
    def model(
        self, images: Tensor | None = None, *, num_images: int | None = None, batch_size: int | None = None
    ) -> Tensor:
        """p(x, z), and p(w) with ``weight_prior``, as a Pyro program.

        Args:
            images: ``[M, *input_shape]``; None draws ``num_images`` images (default 1) from the model.
            num_images: N, where ``images`` are a minibatch of so many; default M.
            batch_size: where ``images`` are all of them: take a random minibatch of so many, anew in each run.

        Returns:
            The images, ``[M, *input_shape]``, observed or drawn.

        Raises:
            DataError: if the images are not of the model's shape, dtype and device; and, while Pyro's validation is on,
                if a value is none that the likelihood allows.
            ValueError: if the sizes do not fit together.
        """
        self._check_store("decoder", self.decoder)
        if images is not None:
            self.check_images(images)
        return self._model(images, num_images, batch_size)

    @pyro_method
    def guide(self, images: Tensor, *, num_images: int | None = None, batch_size: int | None = None) -> Tensor:
        """q(z | x), and q(w) with ``weight_prior``, as a Pyro program; the arguments are the model's.

        Returns:
            The draw of z, ``[M, latent_dim]``.
        """
        self._check_store("encoder", self.encoder)
        if images is None:
            raise ModelError("Expected images, which the guide encodes; got None. Only the model runs without them.")
        self.check_images(images)
        return self._guide(images, num_images, batch_size)

    def _model(self, images: Tensor | None, num_images: int | None, batch_size: int | None) -> Tensor:
        with self._reduced(images, num_images):
            weights = self._sample_weights(self._weight_prior) if self.weight_prior is not None else None
            with self._batch(images, num_images, batch_size) as batch:
                if batch is not None and is_validation_enabled():
                    self.check_values(batch)
                z = pyro.sample("z", self.prior(() if batch is None else batch.shape[:1]))
                values: Tensor = pyro.sample("images", self.pixels(z, weights), obs=batch)
        return values

    def _guide(self, images: Tensor, num_images: int | None, batch_size: int | None) -> Tensor:
        with self._reduced(images, num_images):
            if self.weight_prior is not None:
                self._sample_weights(self._weight_posterior)
            with self._batch(images, num_images, batch_size) as batch:
                assert batch is not None
                z: Tensor = pyro.sample("z", self.posterior(batch))
        return z

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but what the flow's layers remember of their last draw."""
        if self.flow is not None:
            forget_last_draw(self.flow)
        return super().__getstate__()

    # ------------------------------------------------------------------------------------------------- distributions

    def prior(self, batch_shape: Sequence[int] = ()) -> dist.Independent:
        """p(z): N(0, I), event shape ``[latent_dim]``."""
        shape = (*batch_shape, self.latent_dim)
        return _Independent(dist.Normal(self.prior_loc.expand(shape), self.prior_scale.expand(shape)), 1)

    def posterior(self, images: Tensor) -> dist.Independent | FlowPosterior:
        """q(z | x) of images ``[..., *input_shape]``: a diagonal Gaussian, or one through the flow.

        Its event shape is ``[latent_dim]``. Its KL divergence has a closed form only without a flow.
        """
        loc, scale, *context = self.encoder(self._features(images))
        if self.flow is None:
            return _Independent(dist.Normal(loc, scale), 1)
        return FlowPosterior(loc, scale, self.flow, context[0] if context else None, validate_args=False)

    def pixels(self, z: Tensor, weights: Weights = None) -> dist.Independent:
        """p(x | z) of latent vectors ``[..., latent_dim]``: a distribution of event shape ``input_shape``.

        Args:
            z: latent vectors.
            weights: the decoder's parameters by name, such as a draw of :meth:`draw_weights`; default its own, which
                with ``weight_prior`` are the posterior's means.
        """
        if weights is None:
            return self._likelihood(self.decoder(z))
        if self.network == "conv" and any(w.dim() > self.decoder.get_parameter(n).dim() for n, w in weights.items()):
            raise ModelError(
                "Expected one draw of the weights at a time for network='conv'; got several, as vectorised particles "
                "make. Write num_particles=1; an estimator of Pyro's own takes vectorize_particles=False too."
            )
        return self._likelihood(torch.func.functional_call(self.decoder, dict(weights), (z,)))

    def _likelihood(self, values: Tensor) -> dist.Independent:
        if self.likelihood == "bernoulli":
            return BernoulliImages(dist.Bernoulli(logits=values), len(self.input_shape))
        if self.likelihood == "gaussian":
            return dist.Normal(values, self.noise_log_scale.exp()).to_event(len(self.input_shape))
        return dist.Categorical(logits=values).to_event(len(self.input_shape))

    def mean_images(self, z: Tensor, weights: Weights = None) -> Tensor:
        """E[x | z], ``[..., *input_shape]``, in the unit of the images; the arguments are those of :meth:`pixels`."""
        pixels = self.pixels(z, weights)
        if self.levels is None:
            return pixels.mean
        probs: Tensor = pixels.base_dist.probs
        return probs @ torch.arange(self.levels, dtype=probs.dtype, device=probs.device)

    def draw_weights(self, sample_shape: Sequence[int] = ()) -> dict[str, Tensor] | None:
        """Draws of the decoder's parameters from q(w), ``sample_shape + shape`` each; None for a point estimate."""
        if self.weight_prior is None:
            return None
        shape = torch.Size(sample_shape)
        return {name: self._weight_posterior(name).sample(shape) for name, _ in self.decoder.named_parameters()}

    def _sample_weights(self, of: Callable[[str], dist.Independent]) -> dict[str, Tensor]:
        names = [name for name, _ in self.decoder.named_parameters()]
        return {name: pyro.sample(f"decoder.{name}", of(name)) for name in names}

    def _weight_prior(self, name: str) -> dist.Independent:
        weight = self.decoder.get_parameter(name)
        zeros = torch.zeros_like(weight)
        return dist.Normal(zeros, zeros + float(self.weight_prior or 0.0)).to_event(weight.dim())

    def _weight_posterior(self, name: str) -> dist.Independent:
        position = [n for n, _ in self.decoder.named_parameters()].index(name)
        weight = self.decoder.get_parameter(name)
        return dist.Normal(weight, self.weight_log_scales[position].exp()).to_event(weight.dim())

    # -------------------------------------------------------------------------------------------------------- batches

    def _features(self, images: Tensor) -> Tensor:
        """What the encoder sees: grey levels as numbers in [0, 1], other images as they are."""
        if self.levels is None:
            return images
        return images.to(self.prior_loc.dtype) / (self.levels - 1)

    @contextmanager
    def _batch(self, images: Tensor | None, num_images: int | None, batch_size: int | None) -> Iterator[Tensor | None]:
        """The plate of the data, and the images in it."""
        if images is None:
            with pyro.plate("data", 1 if num_images is None else num_images):
                yield None
            return
        total = len(images) if num_images is None else num_images
        if total < len(images) or (batch_size is not None and num_images is not None):
            raise ArgumentError(
                f"Expected num_images >= the {len(images)} images of the minibatch, or batch_size alone; got "
                f"num_images={num_images}, batch_size={batch_size}. Write num_images=N with a minibatch of the N, or "
                "batch_size=M with all of them."
            )
        device: Any = images.device  # Pyro's annotation asks for its name, which would lose the index
        if batch_size is not None and batch_size < len(images):
            with pyro.plate("data", total, subsample_size=batch_size, device=device) as index:
                yield images[index]
        else:
            subsample = torch.arange(len(images), device=device) if total > len(images) else None
            with pyro.plate("data", total, subsample=subsample, device=device):
                yield images

    def _reduced(self, images: Tensor | None, num_images: int | None) -> AbstractContextManager[object]:
        """The scale of all sites: 1 / N for the batch mean."""
        if self.reduction == "sum":
            return nullcontext()
        return poutine.scale(scale=1.0 / (num_images or (1 if images is None else len(images))))

    def check_images(self, images: Tensor) -> None:
        """Check shape, dtype and device, without a look at the values.

        Raises:
            DataError: naming what was expected and what came.
        """
        check_images(images, self.input_shape, self.likelihood, self.prior_loc)

    def check_values(self, images: Tensor) -> None:
        """Check shape, dtype, device, and that the likelihood allows every value; all values are read once.

        Raises:
            DataError: naming what was expected and what came.
        """
        self.check_images(images)
        check_gray_values(images, self.likelihood, self.levels)
