"""Settings of the library, one for all of a process: ``pyro_latent.settings.memory_limit = 8 * 2**30``."""

from __future__ import annotations

from .errors import ArgumentError, ModelError


class Settings:
    """What holds for all guides and drivers that are made from now on."""

    def __init__(self) -> None:
        self._memory_limit = 2**32

    @property
    def memory_limit(self) -> int:
        """The bytes that one table may take, 4 GiB by default.

        A model that needs a larger one (all combinations of discrete latents, the values of a discrete latent for each
        datum, a full covariance) is refused before anything is allocated. Features of data that would take more than an
        eighth of it are computed by chunks, at each sweep.
        """
        return self._memory_limit

    @memory_limit.setter
    def memory_limit(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"Expected a memory_limit in bytes, an integer of at least 1; got {value!r}.")
        self._memory_limit = value

    def __repr__(self) -> str:
        return f"Settings(memory_limit={self.memory_limit:,})"


settings = Settings()


def check_memory(what: str, numbers: int, advice: str, each: int = 8) -> None:
    """A table of so many numbers is within the limit.

    Args:
        what: the table, in words, with its site.
        numbers: how many it holds.
        advice: what to write instead.
        each: the bytes of a number.

    Raises:
        ModelError: if it is not.
    """
    limit, size = settings.memory_limit, each * numbers
    if size > limit:
        raise ModelError(
            f"Expected {what} within pyro_latent.settings.memory_limit, {limit:,} bytes; got {size:,} bytes. {advice} "
            "Or raise the limit, where there is the memory."
        )


__all__ = ["Settings", "check_memory", "settings"]
