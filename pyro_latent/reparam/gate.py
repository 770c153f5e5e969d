"""A probability that is a product of latents: each of them has to let a success through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.distributions as dist

from ..expressions import Expression, RandomTensor
from ..rules import raw_arguments
from .base import ConjugateReparam, Site


class GateReparam(ConjugateReparam):
    """x ~ Bernoulli(p q) is x ~ Bernoulli(z q) with z ~ Bernoulli(p), where p may be a product again; 1 − x has the law
    of x for 1 − p q, which is a noisy or of two causes that fail with probabilities p and q.

    The factors may be powers, such as ``p**n``. A probability with one latent alone, such as ``0.5 * p``, has a factor
    by quadrature, which is exact.
    """

    densities = (dist.Bernoulli,)
    suffixes = ("gate",)
    condition = " whose probability is a product of latents, as `p * q` and `p**n * q`, or `1 - p * q`"
    form = "Bernoulli, whose probability a Bernoulli site sets to 0, or to 1"
    source = "Pearl (1988), §4.3"

    def applies(self, site: Site) -> bool:
        probs = raw_arguments(site.fn).get("probs")
        return isinstance(probs, RandomTensor) and any(_is_product(e) for e in _both(probs))

    def augment(self, site: Site) -> Any:
        probs = raw_arguments(site.fn)["probs"]
        plain, failure = _both(probs)
        product = plain if _is_product(plain) else failure
        (term,) = product.terms
        factors = (replace(term, factors=term.factors[:-1]), replace(term, factors=term.factors[-1:], **_ALONE))
        rest, last = (RandomTensor(probs._placeholder, product.of_terms([t])) for t in factors)
        gate = site.auxiliary("gate", dist.Bernoulli(rest).expand(site.fn.batch_shape))
        return dist.Bernoulli(gate * last if product is plain else 1.0 - gate * last)


#: What a latent without the numbers and discrete sites that multiply it has.
_ALONE: dict[str, Any] = {"coefficient": 1.0, "constants": (), "choices": ()}


def _both(probs: RandomTensor) -> tuple[Expression, Expression]:
    """A probability, and that of the other value."""
    return probs.expression, 1.0 - probs.expression


def _is_product(probs: Expression) -> bool:
    """Whether it is a product of several latents that are nowhere negative, and of numbers up to 1."""
    if probs.opacity or probs.pieces or len(probs.terms) != 1 or probs.terms[0].summed:
        return False
    (term,) = probs.terms
    known = all(f.function == "x" and f.power > 0 and f.variable.nonnegative for f in term.factors)
    table = probs.of_terms([replace(term, factors=())])
    numbers = table.table(table.choices)
    return known and len(term.factors) > 1 and bool(((numbers >= 0) & (numbers <= 1)).all())
