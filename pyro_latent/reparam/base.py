"""What all entries share: a site without its wrappers, and what a table says of an entry.

To implement an entry: a subclass of :class:`ConjugateReparam` that names the ``densities`` that it is for, and whose
``augment(site)`` draws the auxiliary sites and returns the site's distribution given them; then a line in ``ENTRIES``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam.reparam import Reparam
from torch import Tensor

from ..rules import family_class


@dataclass(frozen=True)
class Site:
    """A sample site whose distribution is bare: without ``.mask``, ``.to_event`` and ``.expand``.

    ``wrappers`` are those, the outermost first. ``value`` is None of a latent site, and ``mask`` is that of the
    handlers around it.
    """

    name: str
    fn: Any
    value: Tensor | None
    wrappers: tuple[Any, ...]
    mask: Tensor | bool | None

    @staticmethod
    def of(msg: Any) -> Site:
        """The site of a message of ``pyro.sample``."""
        fn, wrappers = msg["fn"], []
        while isinstance(fn, torch.distributions.Independent | dist.MaskedDistribution | dist.ExpandedDistribution):
            wrappers.append(fn)
            fn = fn.base_dist
        return Site(msg["name"], fn, msg["value"], tuple(wrappers), msg.get("mask"))

    def wrapped(self, fn: Any) -> Any:
        """A distribution of the bare one's batch shape, wrapped as the site's own is."""
        for wrapper in reversed(self.wrappers):
            if isinstance(wrapper, dist.MaskedDistribution):
                fn = fn.mask(wrapper._mask)
            elif isinstance(wrapper, torch.distributions.Independent):
                fn = fn.to_event(wrapper.reinterpreted_batch_ndims)
            else:
                fn = fn.expand(wrapper.batch_shape)
        return fn

    def auxiliary(self, suffix: str, fn: Any, block: str | None = None) -> Tensor:
        """Draw an auxiliary site, ``name_suffix``, of the bare batch shape; those of one ``block`` are one factor."""
        infer: Any = {} if block is None else {"block": f"{self.name}_{block}"}
        value: Tensor = pyro.sample(f"{self.name}_{suffix}", self.wrapped(fn), infer=infer)
        return value

    @property
    def is_latent(self) -> bool:
        return self.value is None

    @property
    def is_masked(self) -> bool:
        """Whether a mask leaves out the density of some of its elements, or may, as one of latents."""
        masks = [self.mask, *(w._mask for w in self.wrappers if isinstance(w, dist.MaskedDistribution))]
        known = [mask is None or (type(mask) in (bool, Tensor) and bool(torch.as_tensor(mask).all())) for mask in masks]
        return not all(known)


class ConjugateReparam(Reparam):
    """A reparameterizer that makes a site conditionally conjugate.

    Attributes:
        densities: the classes of the sites that it is for.
        suffixes: of the names of the auxiliary sites that it draws.
        condition: in words, which sites of these classes it is for.
        form, source, cost: what a table says: the conjugate form, where it is from, and whether it is exact once the
            auxiliary sites are integrated out.
    """

    densities: ClassVar[tuple[type, ...]]
    suffixes: ClassVar[tuple[str, ...]] = ()
    condition: ClassVar[str] = ""
    form: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str] = "exact"

    @abstractmethod
    def augment(self, site: Site) -> Any:
        """Draw the auxiliary sites, and return the bare distribution of the site given them."""

    def applies(self, site: Site) -> bool:
        """Whether a site, of a class in ``densities``, is one that it changes."""
        return True

    def names(self, site: Site) -> list[str]:
        """The auxiliary sites that it draws for a site."""
        return [f"{site.name}_{suffix}" for suffix in self.suffixes]

    def apply(self, msg: Any) -> Any:
        """The message of the site in its conjugate form; as it is where the entry is not for it."""
        site = Site.of(msg)
        is_for = issubclass(family_class(site.fn), self.densities) and self.applies(site)
        return {**msg, **self.changes(msg, site)} if is_for else msg

    def changes(self, msg: Any, site: Site) -> dict[str, Any]:
        """What is new in the message."""
        return {"fn": site.wrapped(self.augment(site))}


class MovedReparam(ConjugateReparam):
    """A reparameterizer of a latent site that becomes a function of an auxiliary one, which has the last suffix.

    ``augment`` returns the distribution of that one. A masked site stays as it is: what is flat in a function of a
    value is not flat in the value.

    Attributes:
        transform: the function, which falls.
    """

    transform: ClassVar[Any]

    def applies(self, site: Site) -> bool:
        return site.is_latent and not site.is_masked

    def changes(self, msg: Any, site: Site) -> dict[str, Any]:
        value = self.transform(site.auxiliary(self.suffixes[-1], self.augment(site)))
        return {"fn": dist.Delta(value, event_dim=msg["fn"].event_dim).mask(False), "value": value, "is_observed": True}


__all__ = ["ConjugateReparam", "MovedReparam", "Site"]
