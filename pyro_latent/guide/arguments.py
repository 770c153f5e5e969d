"""What the constructor and the methods of a guide take, checked before anything else happens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from ..errors import ArgumentError, ArgumentTypeError
from ..objective import AUTO, Init


def check_model(model: object) -> None:
    """Raise where a model is no function."""
    if not callable(model):
        raise ArgumentTypeError(
            f"Expected a model, a function with pyro.sample statements; got {type(model).__name__}. Write "
            "AutoConjugate(model)."
        )


def check_state(state: object) -> None:
    """Raise where a state is no dictionary."""
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(
            f"Expected the state_dict() of a guide; got {type(state).__name__}. Write torch.load(f)."
        )


def numbers(values: Any) -> list[float]:
    """The numbers of a sequence."""
    try:
        return [float(v) for v in values]
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(f"Expected a list of numbers, such as [0.05, 0.95]; got {values!r}.") from None


def levels_of(quantiles: object) -> list[float]:
    """The levels of quantiles, each in (0, 1).

    Raises:
        ArgumentTypeError, ArgumentError: if they are no list of such numbers.
    """
    if isinstance(quantiles, int | float):
        raise ArgumentTypeError(f"Expected a list of quantiles, such as [{quantiles}]; got a number.")
    found = numbers(quantiles)
    wrong = [q for q in found if not 0 < q < 1]
    if wrong or not found:
        raise ArgumentError(f"Expected quantiles in (0, 1); got {wrong or 'none'}.")
    return found


def site_names(argument: str, names: Any) -> tuple[str, ...]:
    """Names of sites, given for an argument."""
    is_list = isinstance(names, Iterable) and not isinstance(names, str) and getattr(names, "ndim", 1) == 1
    found = tuple(names) if is_list else (None,)
    if not all(isinstance(n, str) for n in found):
        raise ArgumentTypeError(f"Expected {argument} to be a list of site names, such as ['mean']; got {names!r}.")
    return tuple(map(str, found))


def checked_init(init: object) -> Init:
    """A start, of which a seed is a plain integer."""
    if isinstance(init, Integral) and not isinstance(init, bool) and abs(int(init)) < 2**63:
        return int(init)
    if init is None or isinstance(init, Mapping) or callable(init):
        return init
    raise ArgumentTypeError(
        "Expected init to be None, a seed (an integer), a dict from site to distribution or responsibilities, or "
        f"a function; got {init!r}."
    )


def joint_blocks(blocks: Sequence[str | Sequence[str]] | str | None) -> tuple[tuple[str, ...], ...]:
    """The blocks that are asked for, by the names of their sites, which may be patterns."""
    if isinstance(blocks, str) and blocks == "auto":
        return AUTO
    found = []
    for block in () if blocks is None else blocks if isinstance(blocks, list | tuple) else (blocks,):
        block = (block,) if isinstance(block, str) and set(block) & set("*?[") else block
        if not isinstance(block, list | tuple) or not block or not all(isinstance(name, str) for name in block):
            raise ArgumentTypeError(
                "Expected blocks to be tuples of site names, such as [('mean', 'precision')], or patterns of them, "
                f"such as ['x_*'], or 'auto'; got {block!r}."
            )
        found.append(tuple(block))
    return tuple(found)


__all__ = ["check_model", "check_state", "checked_init", "joint_blocks", "levels_of", "numbers", "site_names"]
