"""Expected log densities, one rule a file; see :mod:`.base` for how to write one."""

from . import (
    beta,
    chains,
    dirichlet,
    discrete,
    exponential,
    gamma,
    multivariate_normal,
    nan_masked,
    normal,
    positive,
    unit,
    weight,
    wishart,
)
from .arguments import distribution_arguments, raw_arguments
from .base import RULES, Arguments, in_form, register_rule, rule_of
from .chains import at_step, parts_of, through
from .construction import random_arguments
from .nan_masked import NAN_MASKED
from .random_distribution import (
    BOUNDS,
    RandomDistribution,
    expected_log_density,
    family_class,
    is_checked,
    without_latents,
)
from .repeats import Repeats
from .wrappers import unwrap, unwrap_masks

__all__ = [
    "BOUNDS",
    "NAN_MASKED",
    "RULES",
    "Arguments",
    "RandomDistribution",
    "Repeats",
    "at_step",
    "beta",
    "chains",
    "dirichlet",
    "discrete",
    "distribution_arguments",
    "expected_log_density",
    "exponential",
    "family_class",
    "gamma",
    "in_form",
    "is_checked",
    "multivariate_normal",
    "nan_masked",
    "normal",
    "parts_of",
    "positive",
    "random_arguments",
    "raw_arguments",
    "register_rule",
    "rule_of",
    "through",
    "unit",
    "unwrap",
    "unwrap_masks",
    "weight",
    "wishart",
    "without_latents",
]
