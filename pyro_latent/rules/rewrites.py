"""What to write for densities without a rule that are another program's margin: the same model, in sites with rules."""

from __future__ import annotations

#: By the name of a distribution class.
REWRITES = {
    "StudentT": "trust = pyro.sample('trust', Gamma(df / 2, df / 2)), and Normal(loc, scale * trust.rsqrt())",
    "Cauchy": "trust = pyro.sample('trust', Gamma(0.5, 0.5)), and Normal(loc, scale * trust.rsqrt())",
    "GammaPoisson": "rate = pyro.sample('rate', Gamma(concentration, rate)), and Poisson(rate)",
    "BetaBinomial": "p = pyro.sample('p', Beta(concentration1, concentration0)), and Binomial(total_count, p)",
    "DirichletMultinomial": "p = pyro.sample('p', Dirichlet(concentration)), and Multinomial(total_count, p)",
    "HalfCauchy": (
        "rate = pyro.sample('rate', Gamma(0.5, 1 / scale**2)), and the scale as "
        "pyro.sample('precision', Gamma(0.5, rate)).rsqrt()"
    ),
    "MixtureSameFamily": "z = pyro.sample('z', Categorical(weights)), and the component's parameters indexed by z",
    "LogNormal": "Normal(loc, scale) for the logarithm of the data",
}
