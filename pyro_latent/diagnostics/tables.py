"""Tables as text, as :mod:`pyro_latent.tables` makes them."""

from ..tables import text_table

__all__ = ["text_table"]
