"""What sample sites are: which of them are latent, which are points, and how many dimensions their plates take up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample

from ..errors import ModelError

#: A sample site of a trace: its ``fn``, ``value``, ``infer``, ``cond_indep_stack``, and so on.
TraceSite = Mapping[str, Any]


def sample_sites(trace: Trace) -> dict[str, TraceSite]:
    """The sample sites of a trace, without those of plates."""
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not site_is_subsample(s)}


def is_latent(site: TraceSite) -> bool:
    """Whether a site is a latent: not observed, and not deterministic."""
    return not site["is_observed"] and not site["infer"].get("_deterministic")


def is_delta(distribution: object) -> bool:
    """Whether a distribution is a point, under whatever wraps it."""
    return isinstance(innermost(distribution), dist.Delta)


def innermost(distribution: object) -> Any:
    """A distribution without what wraps it: independence, expansion, masks, transforms."""
    while hasattr(distribution, "base_dist") and not isinstance(distribution, dist.Delta):
        distribution = distribution.base_dist
    return distribution


def is_mixture(distribution: object) -> bool:
    """Whether a distribution is a ``MixtureSameFamily``, under whatever wraps it."""
    return isinstance(innermost(distribution), torch.distributions.MixtureSameFamily)


def max_nesting(*traces: Trace) -> int:
    """The number of batch dimensions in these traces: of plates, or of distributions outside of any."""
    sites = [s for t in traces for s in sample_sites(t).values()]
    plates = [-f.dim for s in sites for f in s["cond_indep_stack"] if f.vectorized]
    return max([*plates, *(len(s["fn"].batch_shape) for s in sites)], default=0)


def check_no_subsample(trace: Trace) -> None:
    """All plates have to be full: a density over a part of the data is another one at each run.

    Raises:
        ModelError: naming the plate.
    """
    for site in sample_sites(trace).values():
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.size != frame.full_size:
                raise ModelError(
                    f"Expected a model over all of its data; got plate {frame.name!r} with {frame.size} of "
                    f"{frame.full_size}. Pass the whole data, with no subsample_size."
                )
