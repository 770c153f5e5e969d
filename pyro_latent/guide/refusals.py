"""What a guide refuses: new data that its blocks are not known to be of, saved states that are none, half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, ModelError
from ..families import Natural, families_by_name
from ..objective import BlockKey, Program
from ..particles import name_of
from ..recording import literals
from ..signatures import Model


def check_told(program: Program, keys: Sequence[BlockKey]) -> None:
    """New data is read with globals as they are, and locals of its own.

    Raises:
        ModelError: naming the blocks that may be either.
    """
    mixed = [program.blocks[key].label for key in keys if program.blocks[key].joint_normal]
    if mixed:
        raise ModelError(
            "Expected new data for a guide whose blocks are of all data, or of the data at hand alone; got the joint "
            f"block of {', '.join(map(repr, mixed))}, of which some sites have an element for each observation. Put "
            "these in another block than the others, or fit a guide to the new data."
        )
    if keys:
        labels = ", ".join(program.blocks[key].label for key in keys)
        raise ModelError(
            f"Expected to know whether {labels!r} stays as it is for new data; got a site that some observations share "
            'in a plate of theirs. Write infer={"local": False} at it if the new data has the same elements, as of '
            'features, and infer={"local": True} if it has others, as of new groups or items.'
        )


def check_saved(layout: dict[str, Any], tensors: Mapping[str, object]) -> None:
    """A saved state is whole, and one of proper distributions.

    Raises:
        ModelError: naming the tensors that it lacks, or the first block that is not proper.
    """
    statistics, origins = enumerate(layout["statistics"]), range(len(layout.get("origins", ())))
    expected = [*(f"natural_{i}_{n}" for i, names in statistics for n in names), *(f"origin_{i}" for i in origins)]
    missing = [name for name in expected if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise ModelError(
            f"Expected the whole state of a guide; got one without the tensors {', '.join(missing)}. Load what "
            "guide.state_dict() gave as it is, or fit a new guide."
        )
    families = families_by_name()
    for i, names in enumerate(layout["blocks"]):
        family = families.get(layout["families"][i])
        natural = Natural(**{n: tensors[f"natural_{i}_{n}"] for n in layout["statistics"][i]})
        check_dtype(next(iter(natural.values())).dtype)
        proper = family is None or bool(family.in_domain(natural).all())
        if not proper or not all(bool(t.isfinite().all()) for t in natural.values()):
            raise ModelError(
                f"Expected a saved state of proper distributions; got natural parameters of {', '.join(names)!r} that "
                f"are not finite, or outside the domain of {layout['families'][i]}. Save the guide again, or fit it "
                "anew."
            )


def check_dtype(dtype: torch.dtype) -> None:
    """The mathematics needs 24 bits.

    Raises:
        DataError: for half precision.
    """
    if dtype in (torch.float16, torch.bfloat16):
        raise DataError(f"Expected a guide in float32 or float64; got {dtype}. Write guide.float().")


def sites_of(layout: Mapping[str, Any]) -> list[str]:
    """The latent sites of a layout; none of an empty one."""
    return [*(name for block in layout["blocks"] for name in block), *layout["discrete"]] if layout else []


def sites_named(model: Model, layout: Mapping[str, object]) -> list[str]:
    """The latent sites whose names are written in the code of a model, of those of a layout."""
    known = literals(model) or frozenset()
    return [name for name in sites_of(layout) if name in known]


def check_same_model(model: Model, known: Mapping[str, Any], saved: Mapping[str, Any], named: Sequence[str]) -> None:
    """A saved state is of the model of a guide.

    Args:
        model: the guide's model.
        known: the guide's layout; empty before it has seen data.
        saved: the layout of the state.
        named: the sites that are written in the code of the model that it is of.

    Raises:
        ModelError: naming what differs: the sites, families or global shapes of a guide that has seen data, or site
            names that the code of its model lacks.
    """
    if known and saved["blocks"] != known["blocks"]:
        raise ModelError(f"Expected a state of the blocks {known['blocks']}; got one of {saved['blocks']}.")
    for what in ("families", "discrete") if known else ():
        if saved[what] != known[what]:
            raise ModelError(f"Expected a state with the {what} {known[what]}; got one with {saved[what]}.")
    factors = zip(known.get("factors", ()), saved.get("factors", ()), strict=False)
    for ours, theirs in factors:
        if not ours["local"] and not theirs["local"] and ours["batch"] != theirs["batch"]:
            raise ModelError(
                f"Expected a state whose sites {[s[0] for s in ours['sites']]} have the batch shape {ours['batch']}; "
                f"got {theirs['batch']}."
            )
    written = None if known else literals(model)
    missing = [name for name in named if written is not None and name not in written]
    if missing:
        raise ModelError(
            f"Expected the state of a guide of {name_of(model)}; got one of another model, with the sites {missing}, "
            "which its code does not name. Make the guide with the model that the state was saved from; or, where that "
            "gets these names elsewhere now, show the guide its data first, by guide(data)."
        )


__all__ = ["check_dtype", "check_same_model", "check_saved", "check_told", "sites_named", "sites_of"]
