"""The ELBO as a function of the mean parameters: blocks, expectations, elimination, and their compilation."""

from .blocks import Block, BlockKey, make_blocks
from .explain import explain
from .posterior import (
    DependentElements,
    Posteriors,
    discrete_distribution,
    marginals,
    natural_of,
    posteriors,
    quantiles_of,
    responsibilities,
    shaped,
)
from .program import Bound, DiscretePosterior, Program, taken
from .starts import Init, fresh_blocks, initial_state
from .summands import Means, State, Summand
from .summaries import Summary, summarize

__all__ = [
    "Block",
    "BlockKey",
    "Bound",
    "DependentElements",
    "DiscretePosterior",
    "Init",
    "Means",
    "Posteriors",
    "Program",
    "State",
    "Summand",
    "Summary",
    "discrete_distribution",
    "explain",
    "fresh_blocks",
    "initial_state",
    "make_blocks",
    "marginals",
    "natural_of",
    "posteriors",
    "quantiles_of",
    "responsibilities",
    "shaped",
    "summarize",
    "taken",
]
