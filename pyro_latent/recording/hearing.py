"""Handlers that hear one thread: Pyro's stack of handlers is shared by all."""

from __future__ import annotations

import threading
from typing import Any

from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.messenger import Messenger


class OwnThreadMessenger(Messenger):
    """Handles what the thread that entered it samples; the statements of others pass as if it was not there."""

    def __enter__(self) -> Any:
        self._thread = threading.get_ident()
        return super().__enter__()

    def _process_message(self, msg: Any) -> None:
        if threading.get_ident() == self._thread:
            super()._process_message(msg)

    def _postprocess_message(self, msg: Any) -> None:
        if threading.get_ident() == self._thread:
            super()._postprocess_message(msg)


class Apart(OwnThreadMessenger, BlockMessenger):
    """Keeps the statements of its thread from the handlers outside."""
