"""What a checkpoint of coordinate ascent keeps: the guide, what its steps remember, and the random state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from typing import Any

import torch

from ..checkpoint import Run, random_state, restore_random_state
from ..errors import CheckpointError, PyroLatentError
from ..guide import AutoConjugate
from ..recording import check_identity
from .progress import Progress
from .steps import Steps


def content_of(guide: AutoConjugate, steps: Steps) -> dict[str, Any]:
    """What a checkpoint keeps, in plain types and tensors."""
    device = next((str(b.device) for b in guide.buffers()), "cpu")
    return {"guide": guide.state_dict(), "device": device, "steps": steps.to_state(), "random": random_state()}


def read(file: Run, identify: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the model is known by in the file of a run, and what the file holds; None where there is none.

    Args:
        file: the file.
        identify: gives what the model is known by.

    Raises:
        CheckpointError: if it is the file of another model, of other data, or none of ours.
    """
    if file.path is None:
        return {}, None
    identity, content = identify(), file.read()
    if content is not None:
        try:
            check_identity(identity, content["identity"])
        except PyroLatentError:
            raise
        except Exception as error:  # what a foreign state breaks has no common class
            raise _foreign(error) from None
    return identity, content


def _foreign(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"Expected the state of coordinate ascent in the checkpoint; got another: {error!r}. Delete the file, or name "
        "another."
    )


def restore(guide: AutoConjugate, steps: Steps, content: Mapping[str, Any], progress: Progress | None = None) -> None:
    """Take on the content of a checkpoint, first by copies, so that what does not fit leaves everything as it was.

    Args:
        guide, steps: what takes it on.
        content: the content.
        progress: that of a run, which goes on from there.

    Raises:
        CheckpointError: if the content is none of ours.
        ModelError: if the guide's state is of another model.
    """
    before = random_state()
    try:
        device = torch.device(content["device"])
        device = device if device.type == "cuda" and torch.cuda.is_available() else torch.device("cpu")
        for own_guide, own_steps in ((deepcopy(guide), copy(steps)), (guide, steps)):
            own_guide.load_state_dict(content["guide"])
            if device.type == "cuda":
                own_guide.to(device)
            own_steps.load_state(content["steps"], device)
            if progress is not None:
                progress.load_state(content)
            restore_random_state(content["random"])
    except PyroLatentError:
        restore_random_state(before)
        raise
    except Exception as error:  # what a foreign state breaks has no common class
        restore_random_state(before)
        raise _foreign(error) from None


__all__ = ["content_of", "read", "restore"]
