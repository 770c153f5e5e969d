r"""What a model computes from its latents, kept symbolically.

An :class:`Expression` is one of three things:

- a *polynomial*: a sum of :class:`~.terms.Term`, for which expectations are products of moments;
- *pieces*: polynomials chosen by masks, as ``torch.where`` makes them, so that powers and logarithms act on each;
- *opaque*: the result of an operation without a rule. It remembers the operation and the latents behind it, so that an
  error can name them.

A polynomial without continuous latents is a *table*: a number for each value of the discrete latents that it depends
on. Any elementwise function of tables is one.

Rules write log densities in this algebra with ordinary operators, and the methods ``log``, ``sum``, ``log_det`` and so
on.
"""

from __future__ import annotations

from .matrices import Matrices


class Expression(Matrices):
    """A tensor-valued function of the latents, with the ``shape``, ``dtype`` and ``device`` of its value.

    Each class that it is made of knows one thing: :class:`~.symbolic.Symbolic` what an expression is,
    :class:`~.arithmetic.Arithmetic` sums, products and powers, :class:`~.dimensions.Dimensions` views and sums,
    :class:`~.elementwise.Elementwise` functions of elements, and :class:`~.matrices.Matrices` matrix algebra.
    """

    __slots__ = ()
