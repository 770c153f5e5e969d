"""Autoencoders with categorical latents: relaxed, straight-through, exact, and vector-quantised.

    z_nv ~ Categorical(1 / K), v = 1 … V,  x_n | z_n ~ Bernoulli(decoder(z_n))

A draw of a category has no derivative, so each way puts something in its place:

- ``"gumbel_softmax"``: z is a point inside the simplex, softmax((logits + Gumbel noise) / temperature), which nears a
  one-hot vector as the temperature falls;
- ``"straight_through"``: the decoder sees the nearest one-hot vector, and its gradient goes to that point as it is;
- ``"exact"``: z is one-hot, for an estimator that needs no derivative of a draw (``ScoreFunctionELBO`` of
  ``pyro_latent.gradient.estimators``); it alone has no bias;
- :class:`VQVAE`: z is the code nearest to the encoder's output, and the gradient at the code is either copied to that
  output (straight-through), or turned and scaled as the output would have to be to become the code (rotation).

Whichever trained it, ``elbo`` is a lower bound on log p(x) of the discrete model above.

Source: [4] §3.4, which says that reparameterisation does not serve discrete laws; Jang, Gu and Poole 2017; Maddison,
Mnih and Teh 2017; van den Oord, Vinyals and Kavukcuoglu 2017; Fifty et al. 2024 for the rotation; Dhariwal et al. 2020
for restarts of unused codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from pyro.nn import pyro_method
from torch import Tensor, nn

from pyro_latent.errors import ArgumentError, DataError, check_choice, check_count

from .checks import check_gray_values, check_images, check_sizes
from .model import BernoulliImages
from .network import layers
from .quantizer import (
    CodeGradient,
    Quantized,
    ResidualQuantizer,
    VectorQuantizer,
    rotate_gradient,
    straight_through,
)
from .store import NonFiniteLossError, StoredModule

__all__ = [
    "VQVAE",
    "DiscreteVAE",
    "Quantized",
    "ResidualQuantizer",
    "TemperatureSchedule",
    "VectorQuantizer",
    "perplexity",
    "rotate_gradient",
    "straight_through",
]

Relaxation: TypeAlias = Literal["gumbel_softmax", "straight_through", "exact"]


@dataclass(frozen=True)
class TemperatureSchedule:
    """A temperature that falls exponentially to a floor: max(floor, start · exp(-rate · step)).

    Attributes:
        start: at step 0.
        floor: where it stays; positive, and no more than ``start``.
        rate: per step; at least 0.

    Raises:
        ValueError: if they are not so.

    Source: Jang, Gu and Poole 2017, §4.
    """

    start: float = 1.0
    floor: float = 0.5
    rate: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.floor <= self.start < math.inf and 0 <= self.rate < math.inf):
            raise ArgumentError(
                f"Expected 0 < floor <= start and rate >= 0; got start={self.start}, floor={self.floor} and "
                f"rate={self.rate}. Write TemperatureSchedule(start=1.0, floor=0.5, rate=1e-3)."
            )

    def __call__(self, step: int) -> float:
        """The temperature at a step, the first of which is 0."""
        return max(self.floor, self.start * math.exp(-self.rate * step))


def perplexity(codes: Tensor, num_categories: int) -> Tensor:
    """How many categories each variable uses: exp of the entropy of their frequencies, from 1 to K.

    Args:
        codes: integers ``[N, V]``, or ``[N, V, Q]`` of residual codes, N >= 1.
        num_categories: K.

    Returns:
        ``[V]``, or ``[V, Q]``, floating.

    Raises:
        DataError: if the codes are not such integers.
    """
    if codes.is_floating_point() or codes.dim() not in (2, 3) or not len(codes):
        raise DataError(f"Expected integer codes of shape [N, V]; got {codes.dtype} {list(codes.shape)}. Use codes().")
    if int(codes.min()) < 0 or int(codes.max()) >= num_categories:
        raise DataError(
            f"Expected codes from 0 to {num_categories - 1}; got {int(codes.min())} to {int(codes.max())}. "
            "Give the model's num_categories."
        )
    frequencies = nn.functional.one_hot(codes.long(), num_categories).double().mean(0)
    return torch.special.entr(frequencies).sum(-1).exp()


class _CodeAutoencoder(StoredModule):
    """What both kinds share: the decoder from V code vectors, checks, and the images' likelihood."""

    def __init__(
        self, num_pixels: int, num_variables: int, num_categories: int, code_dim: int, hidden: Sequence[int], name: str
    ) -> None:
        super().__init__(name)
        hidden = check_sizes("hidden", hidden)
        for argument, size in {"num_pixels": num_pixels, "num_variables": num_variables, "code_dim": code_dim}.items():
            check_count(argument, size)
        check_count("num_categories", num_categories, 2)
        self.num_pixels, self.num_variables, self.num_categories = num_pixels, num_variables, num_categories
        self.code_dim = code_dim
        self.code_shape: tuple[int, ...] = (num_variables,)
        self.encoder = layers(num_pixels, hidden, num_variables * code_dim)
        self.decoder = layers(num_variables * code_dim, hidden[::-1], num_pixels)

    def _encode(self, images: Tensor) -> Tensor:
        """``[N, V, code_dim]``."""
        self._check(images)
        encoded: Tensor = self._finite("encoder", self.encoder(images))
        return encoded.unflatten(-1, (self.num_variables, self.code_dim))

    def likelihood(self, codes: Tensor) -> dist.Independent:
        """p(x | z): Bernoulli pixels, event shape ``[P]``, of code vectors ``[..., V, code_dim]``.

        A grey level scores its expected log probability as a share of white pixels.

        Raises:
            NonFiniteLossError: while Pyro's validation is on, if an output of the decoder is not finite.
        """
        logits = self._finite("decoder", self.decoder(codes.flatten(-2)))
        return BernoulliImages(dist.Bernoulli(logits=logits, validate_args=False), 1)

    def _finite(self, network: str, outputs: Tensor) -> Tensor:
        """The outputs, checked before a step is made of them."""
        if is_validation_enabled() and not bool(outputs.isfinite().all()):
            raise NonFiniteLossError(
                f"Expected finite outputs of the {network}; got NaN or infinity. The parameters are {self._health()}. "
                "Lower the learning rate, or clip the gradient by pyro.optim.ClippedAdam."
            )
        return outputs

    def _check(self, images: Tensor) -> None:
        check_images(images, (self.num_pixels,), "bernoulli", next(self.parameters()))
        if is_validation_enabled():
            check_gray_values(images, "bernoulli", None)

    def _plate(self, images: Tensor, num_data: int | None) -> Any:
        """A plate over the images of a minibatch of ``num_data``, all of them if None."""
        rows = torch.arange(len(images), device=images.device)
        return pyro.plate("data", len(images) if num_data is None else num_data, subsample=rows)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Means of images of codes drawn from the prior, ``[num_samples, P]`` in [0, 1]."""
        check_count("num_samples", num_samples)
        weight = next(self.parameters())
        codes = torch.randint(self.num_categories, (num_samples, *self.code_shape), device=weight.device)
        return self.likelihood(self.code_vectors(codes)).mean

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Means of the images of their own codes, ``[N, P]`` in [0, 1]."""
        return self.likelihood(self.code_vectors(self.codes(images))).mean

    def codes(self, images: Tensor) -> Tensor:
        """The categories of images, integers ``[N, V]``."""
        raise NotImplementedError

    def code_vectors(self, codes: Tensor) -> Tensor:
        """What the decoder sees of categories ``[..., V]``: ``[..., V, code_dim]``."""
        raise NotImplementedError


class DiscreteVAE(_CodeAutoencoder):
    """A variational autoencoder with V latents of K categories, and an amortised guide.

    ``model`` and ``guide`` are Pyro programs: ``SVI(vae.model, vae.guide, optimizer, elbo)``, with
    ``svi.step(images, temperature)``. Site ``z`` has event shape ``[V, K]``.

    Args:
        num_pixels: P.
        num_variables: V.
        num_categories: K, at least 2.
        hidden: widths of the encoder's hidden layers; the decoder's are these, reversed.
        relaxation: ``"gumbel_softmax"``, ``"straight_through"`` or ``"exact"``; the module's page says what each is.
            The first two are reparameterised, for any ELBO; ``"exact"`` needs the score function.
        name: a prefix of the parameters' names in Pyro's store, for more than one autoencoder there.

    Raises:
        ValueError: if a size or ``relaxation`` is not as above.
    """

    def __init__(
        self,
        num_pixels: int,
        num_variables: int = 8,
        num_categories: int = 8,
        *,
        hidden: Sequence[int] = (128,),
        relaxation: Relaxation = "gumbel_softmax",
        name: str = "",
    ) -> None:
        super().__init__(num_pixels, num_variables, num_categories, num_categories, hidden, name)
        check_choice("relaxation", relaxation, get_args(Relaxation))
        self.relaxation = relaxation

    def _relaxed(self, logits: Tensor, temperature: float) -> dist.TorchDistribution:
        if not temperature > 0:
            raise ArgumentError(
                f"Expected a temperature > 0; got {temperature}. Use TemperatureSchedule, with a floor."
            )
        is_soft = self.relaxation == "gumbel_softmax"
        family = dist.RelaxedOneHotCategorical if is_soft else dist.RelaxedOneHotCategoricalStraightThrough
        return family(logits.new_tensor(temperature), logits=logits).to_event(1).mask(False)

    @pyro_method
    def model(self, images: Tensor, temperature: float = 1.0, num_data: int | None = None) -> None:
        """p(x | z), and p(z) where z is one-hot (``"exact"``). A relaxed z is scored by the guide alone.

        Args:
            images: grey levels in [0, 1], floating ``[N, P]``.
            temperature: of the guide's relaxation, positive; ``"exact"`` has none.
            num_data: of how many images these are a minibatch; default: these are all.

        Raises:
            DataError: if the images are not as above.
            ModelError: if Pyro's store has another autoencoder's parameters under the names of this one's.
            NonFiniteLossError: while Pyro's validation is on, if a network's output is not finite; ``SVI`` has then
                taken no step.
            ValueError: if the temperature is not positive.
        """
        self._check(images)
        self._check_store("decoder", self.decoder)
        prior = dist.OneHotCategorical(logits=images.new_zeros(self.num_variables, self.num_categories)).to_event(1)
        with self._plate(images, num_data):
            z = pyro.sample("z", prior if self.relaxation == "exact" else prior.mask(False))
            pyro.sample("x", self.likelihood(z), obs=images)

    @pyro_method
    def guide(self, images: Tensor, temperature: float = 1.0, num_data: int | None = None) -> None:
        """q(z | x); the arguments are the model's.

        A relaxed z has no density here: at site ``divergence`` stands KL(q(z | x) ‖ p(z)) of the categories in closed
        form, so that the ELBO is E log p(x | relaxed z) minus it (Jang, Gu and Poole 2017, §3).
        """
        logits = self._encode(images)
        self._check_store("encoder", self.encoder)
        with self._plate(images, num_data):
            if self.relaxation == "exact":
                pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))
            else:
                pyro.sample("z", self._relaxed(logits, temperature))
                pyro.factor("divergence", self._divergence(logits), has_rsample=True)

    def _divergence(self, logits: Tensor) -> Tensor:
        """KL from the uniform categories, ``[N]``, in nats."""
        log_probs = logits.log_softmax(-1)
        return self.num_variables * math.log(self.num_categories) + (log_probs.exp() * log_probs).sum((-2, -1))

    @torch.no_grad()
    def elbo(self, images: Tensor, num_samples: int = 1) -> Tensor:
        """The discrete model's bound on log p(x), in nats, ``[N]``: unrelaxed, whatever the training was.

        E log p(x | z) over ``num_samples`` draws of categories, minus the exact KL(q(z | x) ‖ uniform).

        Raises:
            DataError: if the images do not fit.
            ValueError: if ``num_samples`` is not positive.
        """
        check_count("num_samples", num_samples)
        logits = self._encode(images)
        q = dist.OneHotCategorical(logits=logits)
        draws = [self.likelihood(q.sample()).log_prob(images) for _ in range(num_samples)]
        return torch.stack(draws).mean(0) - self._divergence(logits)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """The most probable categories under q, integers ``[N, V]``."""
        return self._encode(images).argmax(-1)

    def code_vectors(self, codes: Tensor) -> Tensor:
        """One-hot vectors, ``[..., V, K]``."""
        return nn.functional.one_hot(codes, self.num_categories).to(next(self.parameters()).dtype)


class VQVAE(_CodeAutoencoder):
    """An autoencoder whose V latents are codes of one codebook of K vectors, chosen without noise.

    ``model`` has no latent site, and ``guide`` none either: the code is a function of the image, and any SVI maximises
    log p(x | code) minus the codebook's losses, which are a factor at site ``codebook``. With ``num_quantizers`` Q > 1
    a latent is a sum of Q codes, one of each of Q codebooks (:class:`ResidualQuantizer`), and codes are ``[N, V, Q]``.

    Args:
        num_pixels: P.
        num_variables: V.
        num_categories: K, at least 2.
        code_dim: D, the length of a code.
        hidden: widths of the encoder's hidden layers; the decoder's are these, reversed.
        gradient: ``"rotation"`` or ``"straight_through"``.
        commitment: the weight of the commitment loss; 0.25 in the paper.
        num_quantizers: Q, the number of codebooks.
        name: a prefix of the parameters' names in Pyro's store, for more than one autoencoder there.

    Raises:
        ValueError: if an argument is not as above.
    """

    def __init__(
        self,
        num_pixels: int,
        num_variables: int = 8,
        num_categories: int = 32,
        *,
        code_dim: int = 4,
        hidden: Sequence[int] = (128,),
        gradient: CodeGradient = "rotation",
        commitment: float = 0.25,
        num_quantizers: int = 1,
        name: str = "",
    ) -> None:
        super().__init__(num_pixels, num_variables, num_categories, code_dim, hidden, name)
        if not 0 <= commitment < math.inf:
            raise ArgumentError(f"Expected commitment >= 0; got {commitment}. The paper has 0.25.")
        self.commitment = commitment
        self.quantizer: Any  # one of two
        if check_count("num_quantizers", num_quantizers) == 1:
            self.quantizer = VectorQuantizer(num_categories, code_dim, gradient)
        else:
            self.quantizer = ResidualQuantizer(num_quantizers, num_categories, code_dim, gradient)
            self.code_shape = (num_variables, num_quantizers)

    @pyro_method
    def model(self, images: Tensor, num_data: int | None = None) -> None:
        """p(x | code) and the codebook's losses; the arguments are those of :meth:`DiscreteVAE.model`."""
        quantized = self.quantizer(self._encode(images))
        self._check_store("decoder", self.decoder)
        losses = quantized.codebook_loss + self.commitment * quantized.commitment_loss
        with self._plate(images, num_data):
            pyro.sample("x", self.likelihood(quantized.values), obs=images)
            pyro.factor("codebook", -losses.flatten(1).sum(-1))

    def guide(self, images: Tensor, num_data: int | None = None) -> None:
        """Nothing is left to infer."""

    @torch.no_grad()
    def elbo(self, images: Tensor) -> Tensor:
        """A bound on log p(x) under uniform codes, in nats, ``[N]``: log p(x | code) - V Q log K."""
        log_likelihood = self.likelihood(self.code_vectors(self.codes(images))).log_prob(images)
        return log_likelihood - math.prod(self.code_shape) * math.log(self.num_categories)

    @torch.no_grad()
    def codes(self, images: Tensor) -> Tensor:
        """The nearest codes, integers ``[N, V]``, or ``[N, V, Q]``."""
        return self.quantizer.nearest(self._encode(images))

    def code_vectors(self, codes: Tensor) -> Tensor:
        """Rows of the codebook, or their sums over depths, ``[..., V, D]``."""
        vectors: Tensor = self.quantizer.vectors(codes)
        return vectors

    @torch.no_grad()
    def restart_unused(self, images: Tensor) -> int:
        """Move codes that no vector of these images is nearest to onto vectors drawn from them.

        A code that is never nearest gets no gradient and stays unused. Call it before training, with enough images to
        start the codes among the encoder's outputs, and now and then during it. Returns how many were moved.
        """
        moved: int = self.quantizer.restart_unused(self._encode(images).flatten(0, 1))
        return moved
