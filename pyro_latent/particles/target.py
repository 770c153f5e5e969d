"""A model at given arguments, and the log density of its latents there.

Discrete sites that the model marks for parallel enumeration are summed out, exactly, where they are not given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number

import torch
from torch import Tensor

from ..errors import DataError, ModelError
from ..signatures import Args
from ..values import kind_of
from .runs import SCORING_WAYS, ProgramCall, ProgramRunner, PyroProgram, Values, Way, quiet_redraws
from .sites import TraceSite, check_no_subsample, is_latent, is_mixture, max_nesting, sample_sites


@dataclass(frozen=True)
class Target:
    """A model with its arguments, run once: what its latents are.

    Attributes:
        call: the model and its arguments.
        sites: by name, the sample sites of that run.
        nesting: the batch dimensions that they take up.
    """

    call: ProgramCall
    sites: Mapping[str, TraceSite]
    nesting: int

    @staticmethod
    def of(model: PyroProgram, args: Args, kwargs: Mapping[str, object], *, inferred: bool = True) -> Target:
        """Run the model.

        Args:
            model: a Pyro model.
            args, kwargs: its arguments.
            inferred: whether there has to be a latent.

        Raises:
            ModelError: if a plate subsamples, or nothing is latent.
        """
        call = ProgramCall(model, args, kwargs)
        with quiet_redraws(), torch.no_grad():
            trace = call.trace()
        check_no_subsample(trace)
        target = Target(call, sample_sites(trace), max_nesting(trace))
        quantized = [n for n, s in target.sites.items() if isinstance(s["value"], Tensor) and s["value"].is_quantized]
        if quantized:
            raise DataError(f"Expected data as numbers; got quantized data at {quantized}. Write x.dequantize().")
        others = {
            n: kind_of(s["value"]) for n, s in target.sites.items() if not isinstance(s["value"], Tensor | Number)
        }
        if others:
            raise DataError(f"Expected tensors as values of sites; got {others}. Write torch.as_tensor(x).")
        if inferred and not target.latents:
            raise ModelError(
                "Expected a model with latent sites; got none that is not observed. Leave out obs= at the sites to "
                "infer."
            )
        return target

    @property
    def latents(self) -> dict[str, TraceSite]:
        """The sites, by name, that are neither observed nor deterministic."""
        return {n: s for n, s in self.sites.items() if is_latent(s)}

    @property
    def marked(self) -> tuple[str, ...]:
        """The discrete ones among them that the model marks for enumeration."""
        marks = {n: s["infer"].get("enumerate") == "parallel" for n, s in self.latents.items()}
        return tuple(n for n, mark in marks.items() if mark and self.sites[n]["fn"].has_enumerate_support)

    @property
    def scored(self) -> dict[str, TraceSite]:
        """The latents that a guide has to sample."""
        return {n: s for n, s in self.latents.items() if n not in self.marked}

    @property
    def mixtures(self) -> dict[str, TraceSite]:
        """The sites, by name, with a ``MixtureSameFamily``."""
        return {n: s for n, s in self.sites.items() if is_mixture(s["fn"])}

    def check_observed(self) -> None:
        """There has to be something that the model explains.

        Raises:
            ModelError: if no site is observed.
        """
        if not any(s["is_observed"] for s in self.sites.values()):
            raise ModelError(
                "Expected a model with an observed site; got none. Pass the data, and obs= at a pyro.sample."
            )

    def check_drawn(self) -> None:
        """There has to be something to draw.

        Raises:
            ModelError: if all latents are summed out.
        """
        if not self.scored:
            raise ModelError(
                f"Expected a latent site that is not summed out, to draw; got only {list(self.marked)}, marked for "
                "enumeration. Leave out infer={'enumerate': 'parallel'} to have them drawn; or take the evidence, "
                "which is exact here, from TraceEnum_ELBO."
            )

    def shape(self, name: str) -> torch.Size:
        """The shape of a latent's value in one run."""
        shape: torch.Size = self.sites[name]["value"].shape
        return shape


class LogJoint:
    """log p(x, z) at given values of the latents; marked sites that are not given are summed out.

    Args:
        target: the model.
        ways: how to run it, as :class:`ProgramRunner` has them.
        once: whether to check the first batch only, for an optimiser that asks often.
    """

    def __init__(self, target: Target, ways: Sequence[Way] = SCORING_WAYS, *, once: bool = False) -> None:
        self.target, self._ways, self._once = target, ways, once
        self._runners: dict[frozenset[str], ProgramRunner] = {}

    def __call__(self, values: Mapping[str, Tensor], num: int | None = None) -> Tensor:
        """Float64 ``[S]``, in nats; differentiable in the values and in the model's parameters.

        Args:
            values: by latent site, ``[S] + shape``.
            num: S, where there are no values, since all latents are summed out.

        Raises:
            ModelError: if a site is missing, unknown, or of another shape.
        """
        self._check(values)
        return self._runner(values).log_prob(values, len(next(iter(values.values()))) if num is None else num)

    def _runner(self, given: Collection[str]) -> ProgramRunner:
        target, names = self.target, frozenset(given)
        if names not in self._runners:
            marginal = not names >= target.latents.keys()
            self._runners[names] = ProgramRunner(
                target.call, target.nesting, self._ways, marginal=marginal, once=self._once
            )
        return self._runners[names]

    def _check(self, values: Mapping[str, Tensor]) -> None:
        target = self.target
        if not target.scored.keys() <= values.keys() <= target.latents.keys():
            raise ModelError(
                f"Expected values of the latent sites {sorted(target.scored)}; got {sorted(values)}. Give every latent "
                "site that is not summed out its values, and no other."
            )
        counts = {v.shape[:1] for v in values.values()}
        if len(counts) > 1 or any(v.dim() == 0 or v.shape[1:] != target.shape(n) for n, v in values.items()):
            expected = {n: ["S", *target.shape(n)] for n in values}
            found = {n: list(v.shape) for n, v in values.items()}
            raise ModelError(
                f"Expected values of shapes {expected}, with one S; got {found}. Put the draws along the first "
                "dimension."
            )


def log_joint(target: Target, values: Values) -> Tensor:
    """log p(latents, data) of each draw, ``[S]``, float64, with marked sites summed out where ``values`` lacks them."""
    return LogJoint(target)(values)
