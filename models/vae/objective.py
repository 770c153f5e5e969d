"""The ELBO of a VAE with its terms kept apart: reconstruction, KL(q(z | x) ‖ p(z)), and KL(q(w) ‖ p(w)) of the weights.

    L_B = E_q log p(x | z) - KL(q(z | x) ‖ p(z)),   L_A = E_q [log p(x, z) - log q(z | x)]

Estimator B, [4] (153), has the KL divergence in closed form, estimator A, (152), takes it at the draw of z; their
values are those of Pyro's ``TraceMeanField_ELBO`` and ``Trace_ELBO`` on the same draws. With a posterior over weights
they are (162) and (161). The KL divergence of z may be weighted (annealing) and given free bits.

Source: [4] (147)-(154), (161)-(162), (168); Bowman et al. 2016 (annealing); Kingma et al. 2016, appendix C.8 (free
bits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor
from torch.distributions import Independent

from pyro_latent.errors import ArgumentError, ModelError, as_real, check_choice, check_count
from pyro_latent.gradient.elbos import OneLossELBO, divergence

__all__ = ["VAE_ELBO", "Estimator", "Terms"]

Estimator: TypeAlias = Literal["A", "B"]
Program: TypeAlias = Callable[..., Any]
Site: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Terms:
    """One estimate of the ELBO in three terms, each a scalar in nats, in the scale of the plate and the reduction.

    Attributes:
        reconstruction: E_q log p(x | z), negative for discrete pixels.
        kl: KL(q(z | x) ‖ p(z)), with no weight and no free bits.
        penalty: what the loss holds in the place of ``kl``.
        weight_kl: KL(q(w) ‖ p(w)); zero for a point-estimate decoder.
    """

    reconstruction: Tensor
    kl: Tensor
    penalty: Tensor
    weight_kl: Tensor

    @property
    def loss(self) -> Tensor:
        """What is minimized, ``penalty + weight_kl - reconstruction``."""
        return self.penalty - self.reconstruction + self.weight_kl

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound, whatever the weight and the free bits of the loss."""
        return self.reconstruction - self.kl - self.weight_kl


class _Recorder(Messenger):
    """Records the sample sites of a program; those named in ``values`` get that value (a trace and a replay in one)."""

    def __init__(self, values: Mapping[str, Site]) -> None:
        super().__init__()
        self.values = values
        self.sites: dict[str, Site] = {}

    def _pyro_sample(self, msg: Any) -> None:
        found = self.values.get(msg["name"])
        if found is not None:
            msg["value"], msg["done"] = found["value"], True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites[msg["name"]] = msg


class VAE_ELBO(OneLossELBO):
    """A Pyro ELBO for the programs of a :class:`VAE`, for ``SVI`` or by :meth:`terms`.

    Args:
        estimator: ``"B"``: KL divergences in closed form, [4] (153), (162); ``"A"``: at the draws, (152), (161).
        kl_weight: what KL(q(z | x) ‖ p(z)) counts in the loss.
        free_bits: nats for each latent dimension that cost nothing: the loss has the larger of this and the
            dimension's KL divergence, averaged over the minibatch. Not with a flow.
        num_particles: L, draws of z (and of the weights) for each image.

    Raises:
        ValueError: if an argument is not as above.
    """

    def __init__(
        self,
        estimator: Estimator = "B",
        *,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        num_particles: int = 1,
    ) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles=num_particles, max_plate_nesting=1, vectorize_particles=num_particles > 1)
        check_choice("estimator", estimator, get_args(Estimator))
        self.closed_form = estimator == "B"
        self.kl_weight = kl_weight
        self.free_bits = _not_negative("free_bits", free_bits, 0.0)

    @property
    def kl_weight(self) -> float:
        """What KL(q(z | x) ‖ p(z)) counts in the loss; a schedule sets it before each step."""
        return self._kl_weight

    @kl_weight.setter
    def kl_weight(self, value: float) -> None:
        self._kl_weight = _not_negative("kl_weight", value, 1.0)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss as a tensor to differentiate, [4] (154)."""
        loss = self.terms(model, guide, *args, **kwargs).loss
        warn_if_nan(loss.detach(), "loss")
        return loss

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """One estimate, differentiable in every parameter; the arguments after the programs are theirs.

        Raises:
            ModelError: if the programs are not those of a VAE, or a KL divergence has no closed form.
        """
        model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
        with _Recorder({}) as guided:
            guide(*args, **kwargs)
        with _Recorder(guided.sites) as generated:
            model(*args, **kwargs)
        return self._terms(generated.sites, guided.sites)

    def _terms(self, model: Mapping[str, Site], guide: Mapping[str, Any]) -> Terms:
        if "z" not in guide or "z" not in model or not model.get("images", {}).get("is_observed"):
            raise ModelError(
                "Expected programs with a latent site 'z' and an observed site 'images'; got sites "
                f"{sorted(guide)} in the guide and {sorted(model)} in the model. Give vae.model and vae.guide."
            )
        pixels = model["images"]
        reconstruction = self._scaled_sum(pixels["fn"].log_prob(pixels["value"]), pixels)
        kl, penalty = self._latent_kl(model["z"], guide["z"])
        weights = [name for name, site in guide.items() if name != "z" and not site_is_subsample(site)]
        divergences = [self._scaled_sum(self._divergence(model[name], guide[name]), guide[name]) for name in weights]
        weight_kl = torch.stack(divergences).sum() if divergences else torch.zeros_like(reconstruction)
        return Terms(reconstruction, kl, penalty, weight_kl)

    def _latent_kl(self, model: Site, guide: Site) -> tuple[Tensor, Tensor]:
        """The KL divergence of z, and what the loss has for it."""
        divergence = self._divergence(model, guide)
        if not self.free_bits:
            kl = self._scaled_sum(divergence, guide)
            return kl, kl if self.kl_weight == 1 else kl * self.kl_weight
        images, dimensions = divergence.shape[-2:]
        if dimensions != guide["fn"].event_shape[-1]:
            raise ModelError(
                "Expected q(z | x) to be a product over the dimensions of z, for free_bits; got a flow, whose KL "
                "divergence has no share of each. Write free_bits=0.0, and kl_weight=anneal_linearly(steps)."
            )
        each = guide["scale"] * divergence.reshape(-1, dimensions).sum(0) / self.num_particles
        floor = guide["scale"] * images * self.free_bits
        return each.sum(), each.clamp(min=floor).sum() * self.kl_weight

    def _divergence(self, model: Site, guide: Site) -> Tensor:
        """KL(q ‖ p) of a site, ``[..., dimensions]``: of each element where both are products, else one number."""
        q, p = guide["fn"], model["fn"]
        apart = isinstance(q, Independent) and isinstance(p, Independent)
        if apart:
            q, p = q.base_dist, p.base_dist
        draw = None if self.closed_form else guide["value"]
        instead = "VAE_ELBO('A'), or fit(..., estimator='A')"
        found = divergence(q, p, draw, site=guide["name"], instead=instead)
        return found if apart else found.unsqueeze(-1)

    def _scaled_sum(self, values: Tensor, site: Site) -> Tensor:
        """The mean over the particles of the sum, times the scale of the plates; a mask is of the batch."""
        mask = site["mask"]
        if mask is not None:
            values = scale_and_mask(values, mask=mask if values.dim() == mask.dim() else mask.unsqueeze(-1))
        return values.sum() * (site["scale"] / self.num_particles)


def _not_negative(name: str, value: float, default: float) -> float:
    if not 0 <= as_real(value) < math.inf:
        raise ArgumentError(f"Expected {name} >= 0 and finite; got {value!r}. Write {name}={default}, the default.")
    return value
