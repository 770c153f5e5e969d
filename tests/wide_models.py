"""Random programs as those of :mod:`random_models`, of what has no closed form by itself: scalars by quadrature,
densities that auxiliary sites make conjugate, and normal sites in joint blocks.

:func:`wide_program` writes one from a seed, of each of ``MODES`` in turn. With auxiliary sites the reported ELBO is
below that of Pyro's traces, by the laws of :class:`random_models.Table`; the others keep all laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from random_models import Axis, RandomProgram, Variable, Writer

MODES = ("scalars", "auxiliary", "joint")

#: Priors of a positive scalar without a closed form.
SPREADS = ("dist.LogNormal(0.2, 0.5)", "dist.Uniform(0.3, 3.0)", "dist.InverseGamma(3.0, 2.0)")
#: Those under which a precision has no mean. As a scale that a discrete site chooses among others, one that the
#: posterior leaves to its prior has an infinite expected density, and no ELBO: these are read by known indices.
THIN = ("dist.HalfNormal(1.5)", "dist.HalfCauchy(1.0)", "dist.Weibull(1.5, 2.0)")


class WideWriter(Writer):
    """Writes one program of a mode."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.mode = MODES[seed % len(MODES)]
        self.walks = False
        self.default = self.data_dtype = "torch.float64"

    # Latents.

    def continuous(self) -> None:
        """A latent of the first writer, a positive scalar without a closed form, or a random walk from a latent."""
        if self.mode == "joint" and self.variables and not self.walks and self.flip(0.4):
            self.walk()
            return
        if self.mode == "joint" or self.flip(0.5):
            super().continuous()
            return
        name = f"v{len(self.variables)}"
        plates = self.some_plates()
        if self.flip(0.3):
            own = Axis(f"k{len(self.variables)}", self.pick(2, 3), -1)
            self.body.append(f'{own.name} = pyro.plate("{own.name}", {own.size}, dim=-1)')
            plates = (own,)
        prior = "dist.HalfCauchy(1.0)" if self.mode == "auxiliary" else self.pick(*SPREADS, *THIN)
        self.site(name, prior, plates)
        self.variables.append(Variable(name, "spread", plates, size=-1 if prior in THIN else 0))

    def _prior(self, kind: str, size: int, plates: Sequence[Axis]) -> str:
        if self.mode == "auxiliary" and kind == "real" and self.flip(0.3):
            return self.pick("dist.StudentT(4.0, 0.3, 1.2)", "dist.Laplace(0.3, 1.2)")
        return super()._prior(kind, size, plates)

    def walk(self) -> None:
        """A random walk with data at each step, written as a loop."""
        self.walks = True
        data = self.observations([3], -2, 2)
        before = self.pick("0.0", *[v.name for v in self.candidates("real") if not v.plates])
        self.body.append(f"step = {before}")
        self.body.append("for t in range(3):")
        slope, spread = self.number(0.5, 1.1), self.deviation((), 0.3)
        self.body.append(f'    step = pyro.sample(f"w{{t}}", dist.Normal({slope} * step, {spread}))')
        self.body.append(f'    pyro.sample(f"e{{t}}", dist.Normal(step, {self.number(0.5, 2)}), obs={data}[t])')

    def deviation(self, plates: Sequence[Axis], chance: float) -> str:
        leaves = [text for v in self.candidates("spread") if (text := self.read(v, plates)) is not None]
        if leaves and self.flip(0.7):
            leaf = self.pick(*leaves)
            return self.pick(leaf, leaf, f"{self.number(0.5, 2)} * {leaf}", f"{leaf}.sqrt()")
        return super().deviation(plates, chance)

    def read(self, variable: Variable, plates: Sequence[Axis]) -> str | None:
        if variable.size != -1:
            return super().read(variable, plates)
        known, self.variables = self.variables, []  # no discrete site to read it by
        try:
            return super().read(variable, plates)
        finally:
            self.variables = known

    # Observed sites.

    def likelihood(self) -> None:
        """A site of the first writer, or one of the mode's own."""
        written = {"scalars": self.of_a_scalar, "auxiliary": self.augmented, "joint": lambda *_: None}[self.mode]
        plates = tuple(self.axes) if self.flip(0.75) else self.some_plates()
        shape = list(Variable("", "", plates).shape)
        found = written(plates, shape) if self.flip(0.75) else None
        if found is None:
            super().likelihood()
            return
        name = f"x{self.observed}"
        self.observed += 1
        self.site(name, found[0], plates, obs=found[1])

    def of_a_scalar(self, plates: tuple[Axis, ...], shape: list[int]) -> tuple[str, str] | None:
        """A density that reads one scalar by a function without a rule."""
        reals = [text for v in self.candidates("real") if (text := self.read(v, plates)) is not None]
        spreads = [text for v in self.candidates("spread") if (text := self.read(v, plates)) is not None]
        if not reals and not spreads:
            return None
        if reals and (not spreads or self.flip(0.6)):
            leaf = self.pick(*reals)
            return self.pick(
                (f"dist.Poisson(({leaf}).exp())", self.counts(shape, 4)),
                (f"dist.Bernoulli(torch.sigmoid({leaf}))", self.counts(shape, 1)),
                (f"dist.Binomial(4, logits={leaf})", self.counts(shape, 4)),
                (f"dist.StudentT(4.0, {leaf}, 1.0)", self.observations(shape, -2, 2)),
                (f"dist.Normal(0.3, ({leaf}).exp())", self.observations(shape, -2, 2)),
                (f"dist.Normal(torch.tanh({leaf}), 1.0)", self.observations(shape, -2, 2)),
            )
        leaf = self.pick(*spreads)
        return self.pick(
            (f"dist.Gamma({leaf}, {self.rate(plates, 0.7)})", self.observations(shape, 0.2, 3)),
            (f"dist.Gamma({leaf}, {leaf})", self.observations(shape, 0.2, 3)),
            (f"dist.StudentT(2.0 + {leaf}, 0.0, 1.0)", self.observations(shape, -2, 2)),
            (f"dist.Beta({leaf}, 2.0)", self.observations(shape, 0.1, 0.9)),
            (f"dist.NegativeBinomial({leaf}, torch.tensor(0.4))", self.counts(shape, 4)),
        )

    def augmented(self, plates: tuple[Axis, ...], shape: list[int]) -> tuple[str, str] | None:
        """A density that auxiliary sites make conjugate."""
        location, rate, probs = (
            f"(torch.tensor(0.0) + {text})"
            for text in (self.location(plates, 1), self.rate(plates, 0.9), self.probability(plates, 1))
        )
        spread = self.deviation(plates, 0.5)
        pair = f"torch.stack([{self._wide(location, shape)}, {self._wide(self.number(-1, 1), shape)}], -1)"
        real, count, bit = self.observations(shape, -2, 2), self.counts(shape, 4), self.counts(shape, 1)
        levels = f"torch.special.ndtr(torch.tensor([-0.5, 0.6]) - {self._wide(location, shape)}[..., None])"
        ends = f"torch.zeros({[*shape, 1]}), {levels}, torch.ones({[*shape, 1]})"
        return self.pick(
            (f"dist.StudentT({self.number(2, 6)}, {location}, {spread})", real),
            (f"dist.Laplace({location}, {self.number(0.5, 2)})", real),
            (f"dist.Bernoulli(logits={location})", bit),
            (f"dist.Bernoulli(torch.sigmoid({location}))", bit),
            (f"dist.Bernoulli(dist.Normal(0.0, 1.0).cdf(1.0 * {location}))", bit),
            (f"dist.Binomial(4, logits={location})", count),
            (f"dist.NegativeBinomial(2.5, logits={location})", count),
            (f"dist.GammaPoisson({self.number(1, 3)}, {rate})", count),
            (f"dist.BetaBinomial({self.number(1, 3)}, {self.number(1, 3)}, 4)", count),
            (f"dist.Poisson({rate} + {self.rate(plates, 0.9)})", count),
            *[(f"dist.Bernoulli({probs} * {self.probability(plates, 1)})", bit)] * 3,
            (f"dist.ZeroInflatedPoisson({rate}, gate=torch.tensor(0.3))", count),
            (f"dist.ZeroInflatedNegativeBinomial(2.5, logits={location}, gate=torch.tensor(0.3))", count),
            (f"dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), dist.Normal({pair}, 1.0))", real),
            (f"dist.Categorical(logits={pair})", self._labels(shape, 2)),
            (f"dist.Categorical(torch.cat([{ends}], -1).diff(dim=-1))", self._labels(shape, 3)),
        )

    def _wide(self, number: str, shape: list[int]) -> str:
        """A number over the shape of the data."""
        return f"({number} + torch.zeros({shape}))"

    def write(self) -> RandomProgram:
        made = super().write()
        return replace(made, blocks="auto" if self.mode == "joint" else (), reparam=self.mode == "auxiliary")

    def loop(self) -> None:
        """In place of a sequential plate, a random walk where normal sites are joined."""
        if self.mode == "joint" and not self.walks:
            self.walk()
        else:
            super().loop()


def wide_program(seed: int) -> RandomProgram:
    """The program of a seed."""
    return WideWriter(seed).write()
