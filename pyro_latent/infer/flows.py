r"""Normalizing flows: densities by change of variables, as models and as posteriors.

A flow is a chain of invertible maps f = f_K ∘ … ∘ f_1, each with parameters. Its log-determinants add up,

.. math:: \log p(x) = \log p_z(f(x)) + \sum_k \log |\det J_{f_k}|,

the maps being Pyro's own (``pyro.distributions.transforms``). There are three uses of one:

- :class:`FlowDensity`: a model of data, fitted by maximum likelihood; f takes data to noise, the *normalizing* way.
- :class:`FlowGuide`: the posterior of any model with continuous latents; f takes noise to latents, the *generative*
  way.
- :class:`FlowPosterior`: the posterior of a variational autoencoder, whose base an encoder gives for each datum.

Source: ``docs/sources.md`` [2], "normalizing flows"; Rezende and Mohamed 2015 (planar, radial); Dinh et al. 2017
(affine coupling); Kingma et al. 2016 (autoregressive); Durkan et al. 2019 (splines).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.distributions.torch_transform import ComposeTransformModule, TransformModule
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.utils import _sum_rightmost

from ..distributions import forget_last_draw
from ..errors import CheckpointError, DataError, check_count
from .flow_fit import FlowFit, FlowTraining, Settings

__all__ = [
    "ElementwiseAffine",
    "ElementwiseSpline",
    "FlowDensity",
    "FlowFit",
    "FlowGuide",
    "FlowPosterior",
    "Reverse",
    "make_flow",
    "push",
]


class ElementwiseAffine(TransformModule):
    """x = loc + exp(log_scale) z, with both parameters trained: alone, it makes the mean-field Gaussian.

    Args:
        loc: where it starts, ``[D]``.
        scale: the scale that all coordinates start at, positive.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, scale: float) -> None:
        super().__init__(cache_size=1)  # a layer after it may know the inverse of its own last output only
        self.loc = torch.nn.Parameter(loc.detach().clone())
        self.log_scale = torch.nn.Parameter(torch.full_like(loc, scale).log())

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.log_scale.exp() * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale.sum(-1).expand(x.shape[:-1])


class ElementwiseSpline(TransformModule):
    """Pyro's spline of each coordinate by itself, as a map of vectors: its log-determinant is a sum over coordinates.

    Args:
        dim: D.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, dim: int) -> None:
        super().__init__(cache_size=1)
        self.spline = _quiet(T.spline(dim))

    def _call(self, x: Tensor) -> Tensor:
        return self.spline(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.spline.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.spline.log_abs_det_jacobian(x, y).sum(-1)


class Reverse(TransformModule):
    """The coordinates from the last to the first: between layers that treat them unlike.

    It has no tensors, so it acts on every device; the permutation of Pyro's ``permute`` stays where it was made.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    volume_preserving = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.flip(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[:-1])


class _Flow(ComposeTransformModule):
    """Pyro's chain, which can be copied and pickled after use."""

    def __getstate__(self) -> Any:
        forget_last_draw(self)
        return super().__getstate__()


class _ConditionalFlow(ConditionalComposeTransformModule):
    """The same for layers with a context."""

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
_LAYERS: dict[str, Callable[[int, Sequence[int]], Transform]] = {
    "planar": lambda dim, hidden: T.planar(dim),
    "radial": lambda dim, hidden: T.radial(dim),
    "affine_coupling": lambda dim, hidden: T.affine_coupling(dim, list(hidden)),
    "affine_autoregressive": lambda dim, hidden: T.affine_autoregressive(dim, list(hidden)),
    "spline": lambda dim, hidden: ElementwiseSpline(dim),
    "spline_coupling": lambda dim, hidden: _quiet(T.spline_coupling(dim, hidden_dims=list(hidden))),
    "spline_autoregressive": lambda dim, hidden: T.spline_autoregressive(dim, list(hidden)),
}
#: The same for layers whose parameters come from a context by a network.
_CONDITIONAL_LAYERS: dict[str, Callable[[int, int, Sequence[int]], Any]] = {
    "planar": lambda dim, context, hidden: T.conditional_planar(dim, context, list(hidden)),
    "radial": lambda dim, context, hidden: T.conditional_radial(dim, context, list(hidden)),
    "affine_coupling": lambda dim, context, hidden: T.conditional_affine_coupling(dim, context, list(hidden)),
    "affine_autoregressive": lambda dim, context, hidden: T.conditional_affine_autoregressive(
        dim, context, list(hidden)
    ),
    "spline_autoregressive": lambda dim, context, hidden: T.conditional_spline_autoregressive(
        dim, context, list(hidden)
    ),
}
_COUPLED = ("affine_coupling", "spline_coupling", "affine_autoregressive", "spline_autoregressive")
_NO_INVERSE = "has no inverse in closed form. Use 'affine_coupling', 'spline_coupling' or 'spline_autoregressive'."


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
    known = _LAYERS if context_dim is None else _CONDITIONAL_LAYERS
    if kind not in known:
        raise ValueError(f"Expected kind to be one of {sorted(known)}; got {kind!r}. Try 'affine_coupling' first.")
    for name, value in {"dim": dim, "length": length, "context_dim": 1 if context_dim is None else context_dim}.items():
        check_count(name, value)
    if kind in _COUPLED and dim < 2:
        raise ValueError(
            f"Expected dim of at least 2 for {kind!r}, which couples coordinates; got {dim}. Use 'spline'."
        )
    layers: list[Any] = []
    for k in range(length):
        if k and kind in _COUPLED:
            layers.append(Reverse())
        if context_dim is None:
            layers.append(_LAYERS[kind](dim, hidden))
        else:
            layers.append(_CONDITIONAL_LAYERS[kind](dim, context_dim, hidden))
    return _Flow(layers) if context_dim is None else _ConditionalFlow(layers)


def push(flow: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Send vectors through a flow, layer by layer.

    Args:
        flow: what :func:`make_flow` returns, or any composed transform of vectors.
        z: ``[..., D]``.

    Returns:
        f(z), ``[..., D]``, and the log-determinant of each layer, ``[..., K]``; their sum is that of the whole.

    Source: [2], det(J_f) = Π_k det(J_{f_k}).
    """
    terms = []
    for part in getattr(flow, "parts", [flow]):
        moved = part(z)
        term = part.log_abs_det_jacobian(z, moved)
        terms.append(_sum_rightmost(term, max(term.dim() - z.dim() + 1, 0)))  # by coordinate, of an elementwise map
        z = moved
    return z, torch.stack(torch.broadcast_tensors(*terms), -1)


class FlowGuide(AutoNormalizingFlow):
    """A flow over all latents of a model: Pyro's ``AutoNormalizingFlow``, placed and scaled.

    The noise N(0, I) goes through the flow and then through a trained location and scale for each coordinate, so that
    the mean-field Gaussian is the special case without a flow, and a posterior far from zero, or in other units, is
    within reach. The parameters are of the latents' dtype and device. Fit it by ``SVI``, as any autoguide. A deep copy
    shares the model; a pickle leaves it out, as that of any autoguide, so pickle a guide that has been called.

    Args:
        model: a Pyro model with continuous latents.
        flow: the kind of :func:`make_flow`, or a function from the number of unconstrained dimensions to a transform.
        length, hidden: as in :func:`make_flow`; for a function, unused.
        init_loc_fn: where the location starts, as in Pyro's autoguides.
        init_scale: the scale that every coordinate starts at, positive.

    Raises:
        ValueError: at the first call, if the flow does not suit the number of dimensions.

    Source: [2]; Rezende and Mohamed 2015.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        flow: str | Callable[[int], Transform] = "affine_coupling",
        *,
        length: int = 4,
        hidden: Sequence[int] = (32, 32),
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.5,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(
                f"Expected init_scale to be positive; got {init_scale}. Write init_scale=0.5, the default."
            )
        if isinstance(flow, str) and flow not in _LAYERS:
            raise ValueError(
                f"Expected flow to be one of {sorted(_LAYERS)}, or a function; got {flow!r}. Try 'affine_coupling' "
                "first, or write lambda dim: make_flow(...)."
            )
        make = flow if callable(flow) else functools.partial(make_flow, flow, length=length, hidden=hidden)
        super().__init__(InitMessenger(init_loc_fn)(model), make)
        self._init_scale = init_scale

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        loc = self._init_loc()
        flow = self._init_transform_fn(self.latent_dim)
        parts = [*getattr(flow, "parts", [flow]), ElementwiseAffine(loc, self._init_scale)]
        self.transform = _Flow(parts).to(loc)

    @property
    def _parameter(self) -> Tensor:
        flow: Any = self.transform
        found: Tensor = next(flow.parameters())
        return found

    def get_base_dist(self) -> Any:
        """N(0, I), where the parameters are now."""
        like = self._parameter
        return dist.Normal(like.new_zeros(1), like.new_ones(1)).expand([self.latent_dim]).to_event(1)

    def __getstate__(self) -> dict[str, Any]:
        model = self._model
        try:
            return dict(super().__getstate__())  # Pyro's takes the model away from the guide itself
        finally:
            self._model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowGuide:
        forget_last_draw(self)
        memo[id(self.prototype_trace)] = self.prototype_trace  # is read only, and may hold a graph
        new: FlowGuide = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, num_samples: int = 10_000, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Marginal quantiles of every latent, ``[quantiles] + shape``, from draws of the flow.

        The draws have a seed of their own: torch's random state stays as it is, and two calls find the same.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        place = self._parameter.device
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            torch.manual_seed(0)
            draws = self.get_posterior(*args, **kwargs).sample((num_samples,))
        levels = torch.as_tensor(quantiles, dtype=draws.dtype, device=draws.device)
        found = torch.stack([torch.quantile(draws, level, 0) for level in levels])
        # Bijections of one coordinate keep its quantiles; others (a simplex) are not monotone in each, nor quantiles.
        return {name: torch.stack([dict(self._sites(row))[name] for row in found]) for name, _ in self._sites(found[0])}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The marginal median of every latent, as :meth:`quantiles`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    def _sites(self, latent: Tensor) -> list[tuple[str, Tensor]]:
        return [(site["name"], biject_to(site["fn"].support)(value)) for site, value in self._unpack_latent(latent)]


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
            raise ValueError(
                f"Expected loc and scale of one shape [..., D]; got {list(loc.shape)} and {list(scale.shape)}. Write "
                "loc, scale = torch.broadcast_tensors(loc, scale)."
            )
        conditional = hasattr(flow, "condition")
        if conditional != (context is not None):
            wanted = "a context for a conditional flow" if conditional else "no context for a flow without one"
            fix = "Write context=" if conditional else "Leave it out, or write make_flow(..., context_dim=)"
            raise ValueError(f"Expected {wanted}; got {'none' if context is None else list(context.shape)}. {fix}.")
        self.flow = flow.condition(context) if conditional else flow
        super().__init__(dist.Normal(loc, scale).to_event(1), [self.flow], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowPosterior:
        base = self.base_dist.expand(torch.Size(batch_shape)).base_dist
        return FlowPosterior(base.loc, base.scale, self.flow, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(value), of the batch shape."""
        try:
            return super().log_prob(value)
        except (KeyError, NotImplementedError):
            raise ValueError(
                f"Expected the last draw of this distribution; got another value, and its flow {_NO_INVERSE}"
            ) from None


class FlowDensity(PyroModule):
    """A density of vectors by a flow, for maximum likelihood: x → (x - shift) / spread → f → N(0, I).

    Called with data it is a Pyro model: the data, in a plate, under :attr:`distribution`. ``shift`` and ``spread`` are
    buffers, the mean and standard deviation of the data once :meth:`fit` has seen them.

    Args:
        dim: D, the length of the vectors.
        flow: the kind of :func:`make_flow`, or a composed transform in the normalizing way, from data to noise.
        length, hidden: as in :func:`make_flow`.

    Source: [2], "training of normalizing flows".
    """

    def __init__(
        self, dim: int, flow: str | Transform = "spline_coupling", *, length: int = 4, hidden: Sequence[int] = (32, 32)
    ) -> None:
        super().__init__()
        self.dim = dim
        self.flow = make_flow(flow, dim, length=length, hidden=hidden) if isinstance(flow, str) else flow
        self.shift: Tensor
        self.spread: Tensor
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    @property
    def distribution(self) -> dist.TransformedDistribution:
        """p(x), of event shape ``[D]``; a Pyro distribution."""
        noise = dist.Normal(torch.zeros_like(self.shift), torch.ones_like(self.spread), validate_args=False)
        units = T.AffineTransform(self.shift, self.spread, event_dim=1)
        # Without torch's own checks, so that a fit that diverges ends in the error of fit.
        return dist.TransformedDistribution(noise.to_event(1), [self.flow.inv, units], validate_args=False)

    def terms(self, x: Tensor) -> Tensor:
        """log p(x) by terms, ``[..., 2 + K]``: minus log spread, each layer's log-determinant, and log p_z(f(x))."""
        z, layers = push(self.flow, (x - self.shift) / self.spread)
        noise = dist.Normal(torch.zeros_like(z), torch.ones_like(z), validate_args=False).log_prob(z).sum(-1)
        units = -self.spread.log().sum().expand(noise.shape)
        return torch.cat([units.unsqueeze(-1), layers, noise.unsqueeze(-1)], -1)

    def __getstate__(self) -> dict[str, Any]:
        forget_last_draw(self)
        return dict(super().__getstate__())

    def forward(self, data: Tensor) -> Tensor:
        """The Pyro model: site ``x`` in plate ``data``; ``data`` is ``[N, D]``."""
        with pyro.plate("data", len(data)):
            return pyro.sample("x", self.distribution, obs=data)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, ``[...]``, for x ``[..., D]`` of the density's dtype and device.

        Raises:
            DataError: if x is not as above, or not finite.
        """
        self._check(x)
        _check_like("x", x, self.shift)
        return self.distribution.log_prob(x)

    @torch.no_grad()
    def sample(self, num_samples: int) -> Tensor:
        """Draws, ``[num_samples, D]``, from torch's random state.

        Raises:
            ValueError: if the flow has no inverse, or ``num_samples`` is no integer of at least 1.
        """
        num_samples = check_count("num_samples", num_samples)
        try:
            return self.distribution.sample((num_samples,))
        except (KeyError, NotImplementedError):
            raise ValueError(f"Expected a flow that can be inverted, to sample; got one that {_NO_INVERSE}") from None

    def fit(
        self,
        data: Tensor,
        *,
        max_steps: int = 1000,
        learning_rate: float = 5e-3,
        batch_size: int | None = None,
        held_out: Tensor | None = None,
        check_every: int = 25,
        progress: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        checkpoint_every: int = 100,
    ) -> FlowFit:
        """Maximum likelihood by Adam, the rate falling to zero along a cosine; the module takes the data's dtype.

        A flow bends around single points if it is let. With held-out points the parameters that score them best are
        kept.

        Args:
            data: the points, ``[N, D]``, N at least 2, finite and floating; no column constant.
            max_steps: steps of Adam.
            learning_rate: its rate at the start.
            batch_size: points a step, drawn with replacement from torch's random state; all of them by default.
            held_out: points that are scored, not fitted, ``[M, D]``, of the data's dtype and device.
            check_every: steps between two scores of these.
            progress: whether to show a bar.
            checkpoint: a file. It is written before the first step and after every ``checkpoint_every``; where it
                exists the fit goes on from it, with its random state: a run that was killed ends where it would have
                ended. Delete it to begin anew.
            checkpoint_every: steps between two writes.

        Raises:
            DataError: if the data is not as above.
            ValueError: if ``max_steps``, ``batch_size``, ``check_every`` or ``checkpoint_every`` is below 1.
            CheckpointError: if the file is of another flow, other data or other arguments; the density is then as it
                was.
            ModelError: if the likelihood or a parameter is no longer finite, naming the step and the first term of
                :meth:`terms` that is not; the parameters are then the last that had a finite one, those before the
                step that spoiled them. Looked for every ``check_every`` steps, and before a checkpoint is written.
        """
        counts = {"max_steps": max_steps, "check_every": check_every, "checkpoint_every": checkpoint_every}
        counts |= {} if batch_size is None else {"batch_size": batch_size}
        for name, value in counts.items():
            check_count(name, value)
        self._check(data, held_out)
        for x in (data, held_out):
            if x is not None and x.dim() != 2:
                raise DataError(
                    f"Expected points of shape [N, {self.dim}]; got shape {list(x.shape)}. Write x.reshape(-1, "
                    f"{self.dim})."
                )
        if held_out is not None:
            _check_like("held_out", held_out, data)
        for name, x, least in (("data", data, 2), ("held_out", held_out, 1)):
            if x is not None and len(x) < least:
                raise DataError(f"Expected {name} of at least {least} points; got {len(x)}. Give more points.")
        settings = Settings(max_steps, learning_rate, batch_size, check_every)
        before = self.state_dict()
        self._standardise(data)
        training = FlowTraining(self, data, held_out, settings)
        try:
            file = training.start(checkpoint, checkpoint_every)
        except CheckpointError:  # the density stays as it was
            self.to(before["shift"])
            self.load_state_dict(before)
            raise
        return training.run(file, progress)

    def _standardise(self, data: Tensor) -> None:
        """Take the dtype, device, mean and standard deviation of the data."""
        spread = data.std(0, correction=0)
        if not bool((spread > 0).all()):
            constant = [i for i, s in enumerate(spread.tolist()) if s == 0]
            raise DataError(
                f"Expected columns that vary; got column {constant} constant. A flow has a density: drop constants."
            )
        self.to(data)
        self.shift, self.spread = data.mean(0), spread

    def _check(self, *points: Tensor | None) -> None:
        for x in points:
            if x is None:
                continue
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0 or x.shape[-1] != self.dim:
                found = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise DataError(
                    f"Expected a floating tensor of shape [..., {self.dim}]; got {found}. Write "
                    "torch.as_tensor(x).float(), and make the FlowDensity with the number of columns."
                )
            if not bool(x.isfinite().all()):
                raise DataError("Expected finite data; got NaN or infinity. Drop those rows: x[x.isfinite().all(-1)].")


def _check_like(name: str, x: Tensor, like: Tensor) -> None:
    if x.dtype != like.dtype or x.device != like.device:
        raise DataError(
            f"Expected {name} in {like.dtype} on {like.device}; got {x.dtype} on {x.device}. Write {name}.to"
            f"(dtype={like.dtype}, device={str(like.device)!r})."
        )
