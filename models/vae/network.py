"""The networks of a VAE: an encoder z | x and a decoder x | z, fully connected or convolutional.

An encoder maps images to the location and the scale of a diagonal Gaussian; a decoder maps latent vectors to the
parameters of the pixels' distribution. Both are plain PyTorch modules, and know nothing of inference.

Source: [4] (167), §3.5; Kingma and Welling 2014, appendix C.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

from pyro_latent.errors import ArgumentError

__all__ = ["Decoder", "Encoder", "Linear", "Network"]

Network: TypeAlias = Literal["mlp", "conv"]

#: Units of the hidden layers, or channels of the convolutions, where the user names none.
DEFAULT_HIDDEN: dict[str, tuple[int, ...]] = {"mlp": (400,), "conv": (32, 64)}


class Linear(nn.Linear):
    """``nn.Linear`` whose weights may be draws: ``weight`` ``[..., out, in]`` with ``bias`` ``[..., out]``.

    Leading dimensions of the weights are those of vectorised particles; the last of them is the data's plate and has
    size 1, as Pyro's plates make it.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return nn.functional.linear(input, self.weight, self.bias)
        # One matrix product a particle: the plate of the data leaves the weight and stays in the input.
        return input @ self.weight.squeeze(-3).mT + self.bias


class Encoder(nn.Module):
    """q(z | x): images ``[..., *input_shape]`` to location and scale, each ``[..., latent_dim]``, and a context.

    Args:
        input_shape: the shape of one image: ``[pixels]``, ``[height, width]`` or ``[channels, height, width]``.
        latent_dim: the dimension of z.
        hidden: units of each hidden layer, or output channels of each convolution (3 × 3, stride 2).
        network: ``"mlp"`` or ``"conv"``.
        context_dim: with one, a third output of so many elements, for a conditional flow.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        latent_dim: int,
        hidden: Sequence[int],
        network: Network,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.channels = channels_of(input_shape) if network == "conv" else None
        if network == "conv":
            body, width = _convolutions(input_shape, hidden), math.prod(_sizes(input_shape, hidden)[-1]) * hidden[-1]
        else:
            body, width = layers(math.prod(input_shape), hidden), [math.prod(input_shape), *hidden][-1]
        self.body = body
        self.sizes = [latent_dim, latent_dim, *([] if context_dim is None else [context_dim])]
        self.head = Linear(width, sum(self.sizes))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        batch = images.shape[: images.dim() - len(self.input_shape)]
        if self.channels is None:
            features = self.body(images.reshape(*batch, -1))
        else:
            planes = images.reshape(-1, *self.channels)
            features = self.body(planes).reshape(*batch, -1)
        loc, log_scale, *context = self.head(features).split(self.sizes, -1)
        return loc, log_scale.exp(), *context


class Decoder(nn.Module):
    """p(x | z): latent vectors ``[..., latent_dim]`` to ``[..., *input_shape]``, or ``[..., *input_shape, levels]``.

    Args:
        input_shape, hidden, network: as for the encoder, whose layers are mirrored.
        latent_dim: the dimension of z.
        levels: how many numbers for each pixel; 1 adds no dimension.
    """

    def __init__(
        self, input_shape: Sequence[int], latent_dim: int, hidden: Sequence[int], network: Network, levels: int = 1
    ) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.levels = levels
        widths = [latent_dim, *reversed(hidden)]
        if network == "conv":
            smallest = _sizes(input_shape, hidden)[-1]
            self.body: nn.Module = nn.Sequential(Linear(latent_dim, hidden[-1] * math.prod(smallest)), nn.ReLU())
            self.head: nn.Module = _transposed(input_shape, hidden, levels, smallest)
        else:
            self.body = layers(latent_dim, widths[1:])
            self.head = Linear(widths[-1], math.prod(input_shape) * levels)
        self.convolutional = network == "conv"

    def forward(self, z: Tensor) -> Tensor:
        features = self.body(z)
        if not self.convolutional:
            shape = self.input_shape if self.levels == 1 else (*self.input_shape, self.levels)
            values: Tensor = self.head(features)
            return values.reshape(*values.shape[:-1], *shape)
        batch = features.shape[:-1]
        values = self.head(features.reshape(-1, features.shape[-1]))
        if self.levels == 1:
            return values.reshape(*batch, *self.input_shape)
        channels, height, width = channels_of(self.input_shape)
        values = values.reshape(-1, channels, self.levels, height, width).movedim(2, -1)
        return values.reshape(*batch, *self.input_shape, self.levels)


def channels_of(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of images of this shape; a plane has one channel.

    Raises:
        ValueError: for shapes of other than two or three dimensions.
    """
    if len(input_shape) not in (2, 3):
        raise ArgumentError(
            "Expected input_shape [height, width] or [channels, height, width] for network='conv'; "
            f"got {list(input_shape)}. Reshape the images, or write network='mlp'."
        )
    channels, height, width = (1, *input_shape) if len(input_shape) == 2 else tuple(input_shape)
    return channels, height, width


def layers(inputs: int, hidden: Sequence[int], outputs: int | None = None) -> nn.Sequential:
    """Fully connected layers, each with rectified outputs, and with ``outputs`` a last one without."""
    made: list[nn.Module] = []
    for before, after in itertools.pairwise([inputs, *hidden]):
        made += [Linear(before, after), nn.ReLU()]
    if outputs is not None:
        made.append(Linear([inputs, *hidden][-1], outputs))
    return nn.Sequential(*made)


def _sizes(input_shape: Sequence[int], hidden: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width before and after each convolution: each halves them, rounding up."""
    _, height, width = channels_of(input_shape)
    sizes = [(height, width)]
    for _ in hidden:
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def _convolutions(input_shape: Sequence[int], hidden: Sequence[int]) -> nn.Sequential:
    widths = [channels_of(input_shape)[0], *hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _transposed(
    input_shape: Sequence[int], hidden: Sequence[int], levels: int, smallest: tuple[int, int]
) -> nn.Sequential:
    """The convolutions run backwards, from the smallest plane to ``channels * levels`` planes of full size."""
    widths = [channels_of(input_shape)[0] * levels, *hidden]
    sizes = _sizes(input_shape, hidden)
    layers: list[nn.Module] = [nn.Unflatten(-1, (hidden[-1], *smallest))]
    for i in reversed(range(len(hidden))):
        # A stride of 2 makes 2 n - 1 of n; the padding adds the row and the column that an even size is short of.
        padding = (sizes[i][0] - (2 * sizes[i + 1][0] - 1), sizes[i][1] - (2 * sizes[i + 1][1] - 1))
        layers.append(nn.ConvTranspose2d(widths[i + 1], widths[i], 3, stride=2, padding=1, output_padding=padding))
        if i:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
