"""Settings of the library, one for all of a process: ``pyro_latent.settings.memory_limit = 8 * 2**30``."""

from __future__ import annotations

from .errors import ArgumentError


class Settings:
    """What holds for all guides and drivers that are made from now on."""

    def __init__(self) -> None:
        self._memory_limit = 2**30

    @property
    def memory_limit(self) -> int:
        """The bytes that one table may take, 1 GiB by default.

        A model that needs a larger one (all combinations of discrete latents, say) is refused before anything is
        allocated. Features of data that would take more than half of it are computed by chunks, at each sweep.
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

__all__ = ["Settings", "settings"]
