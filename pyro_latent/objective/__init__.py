"""The ELBO as a function of the mean parameters: blocks, expectations, elimination, and their compilation."""

from .blocks import Block, BlockKey, Means, State, of_start, padded, starts_of
from .by_site import expected_log_densities, expected_log_joint
from .compilation import compile_program
from .components import ComponentSites, components_of
from .discrete import DiscreteElimination, DiscretePosterior, as_probabilities
from .elimination import Table
from .explain import explain
from .joining import AUTO
from .modes import Doubt
from .partition import make_blocks
from .posterior import (
    DependentElements,
    Posteriors,
    conditional_probabilities,
    discrete_distribution,
    marginals,
    natural_of,
    posteriors,
    probabilities_of,
    quantiles_of,
    quantiles_of_block,
    responsibilities,
    shaped,
)
from .predictive import blocks_read, exact_log_predictive
from .program import ElboBound, Program, in_turn
from .starts import Init, fresh_blocks, initial_state
from .stored import block_of, of_data, stored_blocks
from .summands import Summand
from .summaries import DataSummary, summarize

__all__ = [
    "AUTO",
    "Block",
    "BlockKey",
    "ComponentSites",
    "DataSummary",
    "DependentElements",
    "DiscreteElimination",
    "DiscretePosterior",
    "Doubt",
    "ElboBound",
    "Init",
    "Means",
    "Posteriors",
    "Program",
    "State",
    "Summand",
    "Table",
    "as_probabilities",
    "block_of",
    "blocks_read",
    "compile_program",
    "components_of",
    "conditional_probabilities",
    "discrete_distribution",
    "exact_log_predictive",
    "expected_log_densities",
    "expected_log_joint",
    "explain",
    "fresh_blocks",
    "in_turn",
    "initial_state",
    "make_blocks",
    "marginals",
    "natural_of",
    "of_data",
    "of_start",
    "padded",
    "posteriors",
    "probabilities_of",
    "quantiles_of",
    "quantiles_of_block",
    "responsibilities",
    "shaped",
    "starts_of",
    "stored_blocks",
    "summarize",
]
