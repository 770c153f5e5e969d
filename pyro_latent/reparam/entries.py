"""The entries that change a density and leave its value a datum of one site, as those of a mixture's components do."""

from __future__ import annotations

from collections.abc import Sequence

from ..rules import family_class
from .base import ConjugateReparam, Site
from .counts import BetaBinomialReparam, DirichletMultinomialReparam, GammaPoissonReparam
from .gate import GateReparam
from .gated_logistic import GatedLogisticReparam
from .laplace import LaplaceReparam
from .levels import LevelsReparam
from .logistic import PolyaGammaReparam
from .mixture import MixtureReparam
from .one_versus_each import OneVersusEachReparam
from .ordered_probit import OrderedProbitReparam
from .probit import ProbitReparam
from .student_t import StudentTReparam
from .sum_of_rates import SumOfRatesReparam
from .zero_inflated import ZeroInflatedReparam

OF_DENSITIES: tuple[type[ConjugateReparam], ...] = (
    StudentTReparam,
    LaplaceReparam,
    PolyaGammaReparam,
    GatedLogisticReparam,
    LevelsReparam,
    ProbitReparam,
    OrderedProbitReparam,
    OneVersusEachReparam,
    GammaPoissonReparam,
    BetaBinomialReparam,
    DirichletMultinomialReparam,
    ZeroInflatedReparam,
    SumOfRatesReparam,
    GateReparam,
    MixtureReparam,
)


def first_for(site: Site, entries: Sequence[type[ConjugateReparam]]) -> ConjugateReparam | None:
    """The first entry for a site."""
    found = (e() for e in entries if issubclass(family_class(site.fn), e.densities))
    return next((entry for entry in found if entry.applies(site)), None)
