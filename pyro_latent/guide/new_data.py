r"""New data under a fitted guide: draws of what the model predicts, and the density that it gives what came.

The globals θ are drawn from q(θ) as it stands. The latents z of the new data are drawn given each draw of them, from
p(z | θ) where no data at hand depends on z, and else from q(z | θ, x), their optimum given θ, which for discrete
latents and for a single conjugate block is p(z | θ, x). So

.. math:: p(x \mid \text{fit}) = E_{q(θ)}\, E_{q(z \mid θ, x)} \frac{p(x, z \mid θ)}{q(z \mid θ, x)},

in which discrete latents are summed out, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..errors import DataError, ModelError
from ..objective import BlockKey, exact_log_predictive
from ..particles import (
    SCORING_WAYS,
    ProgramRunner,
    ScoredRun,
    Target,
    TraceSite,
    Values,
    innermost,
    is_latent,
    quiet_redraws,
)
from ..rules import NAN_MASKED
from ..signatures import Args, Kwargs
from .calls import CalledGuide, Calls
from .sampling import Sampler
from .state import PosteriorState, Prepared

#: How far Pyro's density may be from that of the recording, relative to it: what the order of sums changes.
_AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3}


class _Parameters(Messenger):
    """Gives the model's parameters the values that the guide has, whatever Pyro's store holds."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._values = values

    def _pyro_param(self, msg: Any) -> None:
        if msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True


class NewData:
    """A fitted guide and the arguments of its model for new data.

    Args:
        guide: the guide.
        calls: its calls.
        args, kwargs: the model's arguments.

    Attributes:
        own: the model's own latents, those of the fit.
        summed: the discrete ones among them that have an exact posterior.
        local: the continuous ones that belong to the data at hand.

    Raises:
        ModelError: if a discrete site belongs to the data of the fit.
    """

    def __init__(self, guide: CalledGuide, calls: Calls, args: Args, kwargs: Kwargs) -> None:
        posterior, augmented = guide.posterior_state, guide.augmented
        self.guide, self.augmented, self.arguments = guide, augmented, (args, kwargs)
        self.prepared: Prepared = calls.new(args, kwargs)
        program, state = self.prepared.program, self.prepared.state
        params = {b.sites[0].name: b.params(state[b.key])["value"][0] for b in program.params}
        with quiet_redraws():
            self.target = Target.of(_Parameters(params)(guide.model), args, kwargs, inferred=False)
        blocks = [b for b in program.blocks.values() if not b.is_param]
        self.keys: set[BlockKey] = {b.key for b in blocks} & {*posterior.of_new_data(program)}
        owners = {s.name: b for b in blocks for s in b.sites}
        shown = augmented.own(owners, lambda block, _: block)
        self.own = frozenset([*shown, *posterior.layout["discrete"]])
        self.local = frozenset(name for name, block in shown.items() if block.key in self.keys)
        self.summed = frozenset(n for n in posterior.layout["discrete"] if n in self.target.latents)
        self.points = frozenset(name for name, block in shown.items() if block.is_point)
        self._check_discrete(posterior)

    def _check_discrete(self, posterior: PosteriorState) -> None:
        known = posterior.layout.get("of_data", ())
        wrong = [n for n in sorted(self.summed) if n not in known and not self.target.sites[n]["infer"].get("local")]
        if wrong:
            raise ModelError(
                f"Expected discrete sites that belong to the data at hand; got {wrong}, whose posterior is that of the "
                'data of the fit. Write infer={"local": True} at a site that new data has its own of; for one that it '
                "shares with the data of the fit, give both in one call, with the new data missing."
            )

    @property
    def nesting(self) -> int:
        """The dimensions of plates, of the model and of the guide."""
        return max(self.target.nesting, self.prepared.program.recording.max_plate_nesting)

    @property
    def is_certain(self) -> bool:
        """Whether all draws would be the same: every continuous latent is a point."""
        return self.points >= self.own - self.summed

    @property
    def has_data(self) -> bool:
        """Whether any data is given."""
        return any(map(self._is_given, self.target.sites))

    # Draws.

    def draws(self, num: int) -> ScoredRun:
        """Draws of the latents, ``[num] + shape`` each, and their log densities under q."""
        program = ProgramRunner(self.target.call.with_program(self._draw), self.nesting, fixed=self.points)
        return program({}, num)

    def _draw(self, *args: Any, **kwargs: Any) -> None:
        with self.augmented.drawing():
            Sampler(self.prepared.program, self.prepared.state, True, self.keys).latents()

    def held(self, draws: ScoredRun) -> Values:
        """The draws of the sites that the model has."""
        return {n: v for n, v in draws.values.items() if n in self.target.latents and n in self.own}

    def predicted(self, held: Values, num: int) -> Values:
        """Draws of the predicted sites, ``[num] + shape`` each: of data that is given once more, as if it were not, and
        of what comes later given that data, which a program may go on from.
        """
        program, sites = self.target.call.program, self.predicted_sites()
        found = self._run(poutine.uncondition(program), held, num)
        new = [n for n in sites if is_latent(self.target.sites[n])]
        later = [n for n in sites[sites.index(new[0]) :] if not self._is_given(n)] if new else []
        if later and self.has_data:
            given = self._run(program, held, num)
            found |= {n: given[n] for n in later if n in given}
        return {n: found[n] for n in sites if n in found}

    def _run(self, program: Callable[..., Any], held: Values, num: int) -> Values:
        """Values of all sites of a program like the model at draws of its latents."""
        with quiet_redraws():
            run = ProgramRunner(self.target.call.with_program(program), self.target.nesting, SCORING_WAYS)
            return dict(run(held, num).values)

    def _is_given(self, name: str) -> bool:
        """Whether a site is data at hand."""
        site = self.target.sites[name]
        return bool(site["is_observed"]) and not site["infer"].get("_deterministic")

    def predicted_sites(self) -> list[str]:
        """The sites that are predicted: data that is given or not, and what the model computes."""
        sites = self.target.sites
        halves = {n + half for n in sites for half in ("_observed", "_unobserved")}  # what obs_mask makes of a site
        return [n for n, s in sites.items() if n not in self.own | halves and not _is_empty(s)]

    # Densities.

    def counted(self) -> dict[str, TraceSite]:
        """The sites of the density of the new data: its own observations and latents.

        Raises:
            ModelError: if nothing is observed, or there is a ``pyro.factor``.
        """
        sites = self.target.sites
        factors = [n for n, s in sites.items() if isinstance(innermost(s["fn"]), dist.Unit)]
        if factors:
            raise ModelError(
                f"Expected a model whose data is in sites with obs=; got pyro.factor at {factors}, of which nobody can "
                "tell whether it is a density of data. Write it as a pyro.sample with obs=."
            )
        observed = {n: s for n, s in sites.items() if self._is_given(n)}
        if not observed:
            raise ModelError(
                "Expected new data whose density is asked for; got none: no site is observed with these arguments. "
                "Pass the data, or write guide.predict(...) for draws of it."
            )
        return observed | {n: sites[n] for n in sites if n in self.local or n in self.summed}

    def exact(self, pointwise: bool) -> Tensor | None:
        """The log predictive density in closed form: of each element, or of all together; None where it has none."""
        if self.augmented.is_used or self.local or self.is_certain:
            return None
        program, counted = self.prepared.program, self.counted()
        if not counted.keys() <= program.recording.scored.keys():
            return None
        return exact_log_predictive(program, self.prepared.state, list(counted), pointwise)

    def log_density(self, held: Values, num: int, kept: Sequence[str]) -> Tensor:
        """log p(x, z | θ) at draws of θ and of continuous z, discrete latents summed out: ``[num, *kept]``, float64.

        Raises:
            DataError: for NaN under a mask, which Pyro scores.
            ModelError: if Pyro's enumeration gives another density than the recording has.
        """
        counted = self.counted()
        _check_numbers(counted)
        without = frozenset(self.target.sites.keys() - counted.keys())
        summed = self.summed

        def marks(msg: Any) -> Any:
            return {"enumerate": "parallel"} if msg["name"] in summed else {}

        marked = poutine.infer_config(self.target.call.program, config_fn=marks)
        runner = ProgramRunner(
            self.target.call.with_program(marked),
            self.target.nesting,
            SCORING_WAYS,
            marginal=True,
            without=without,
            kept=tuple(kept),
        )
        given = {n: v for n, v in held.items() if n not in summed}
        found = runner(given, num).log_probs[""].double()
        self._check_density({n: v[:1] for n, v in given.items()}, float(found[0].sum()))
        return found

    def _check_density(self, first: Values, found: float) -> None:
        """Compare with the recorded densities at one draw, where they are exact."""
        program = self.prepared.program
        scored = program.recording.scored
        if self.augmented.is_used or program.log_sums or any(s.is_bound for s in scored.values()):
            return
        if not all(site.name in first for b in program.blocks.values() if not b.is_param for site in b.sites):
            return
        means = program.means(self.prepared.state)
        for key, block in program.blocks.items():
            if not block.is_param:
                means[key] = block.statistics([first[site.name] for site in block.sites])
        held = program.elimination.eliminate(program.with_derived(means))
        counted = self.counted()
        parts = [s.value(means).double() for n, own in program.site_summands.items() if n in counted for s in own]
        total = float(sum(parts)) + (0.0 if held is None else float(held.log_normalizer))
        if abs(total - found) > _AGREEMENT.get(program.recording.dtype, 1e-3) * (1 + abs(total)):
            raise ModelError(
                f"Expected Pyro to sum out {sorted(self.summed)} as the recording does; got a log density of "
                f"{found:.6g} in place of {total:.6g} at one draw. Index with pyro.ops.indexing.Vindex."
            )

    def log_proposal(self, draws: ScoredRun, kept: Sequence[str]) -> Tensor:
        """log q(z | θ, x) of the continuous latents of the new data, ``[num, *kept]``, float64."""
        total = torch.zeros((), dtype=torch.float64)
        for name in sorted(self.local):
            own = draws.log_probs[name].double()
            places = {f.name: f.dim for f in self.target.sites[name]["cond_indep_stack"] if f.vectorized}
            apart = [places[n] + own.ndim for n in kept]
            others = [d for d in range(1, own.ndim) if d not in apart]
            total = total + (own.sum(others) if others else own)  # no dimensions would be all of them
        return total

    def common_plates(self) -> dict[str, int]:
        """The plates that all of the new data and its latents lie in, from the left to the right, with their sizes."""
        stacks = [{f.name: f for f in s["cond_indep_stack"] if f.vectorized} for s in self.counted().values()]
        shared = set[str].intersection(*(set(stack) for stack in stacks))
        return {n: int(f.size) for n, f in sorted(stacks[0].items(), key=lambda item: item[1].dim) if n in shared}


def _check_numbers(counted: Mapping[str, TraceSite]) -> None:
    given = [n for n, s in counted.items() if s["is_observed"] and not isinstance(innermost(s["fn"]), NAN_MASKED)]
    wrong = [n for n in given if bool(torch.as_tensor(counted[n]["value"]).isnan().any())]
    if wrong:
        raise DataError(
            f"Expected numbers under the masks of new data; got NaN at {wrong}. Write data.nan_to_num(): what the mask "
            "hides counts for nothing."
        )


def _is_empty(site: TraceSite) -> bool:
    """Whether a site has no value to predict, as that of ``pyro.factor``."""
    return isinstance(site["value"], Tensor) and not site["value"].numel() and not is_latent(site)


class Mixed(NamedTuple):
    """The logarithm of a mean of weights, and its standard error."""

    value: Tensor
    error: Tensor
    effective: Tensor

    @staticmethod
    def of(log_weights: Tensor) -> Mixed:
        """Over the first dimension, S draws."""
        num = len(log_weights)
        top = log_weights.max(0).values
        top = torch.where(top.isfinite(), top, torch.zeros_like(top))
        ratios = (log_weights - top).exp()
        mean = ratios.mean(0)
        error = ratios.std(0, correction=0) / mean / max(num - 1, 1) ** 0.5
        effective = ratios.sum(0).square() / ratios.square().sum(0)
        return Mixed(mean.log() + top, error if num > 1 else torch.zeros_like(mean), effective)


__all__ = ["Mixed", "NewData"]
