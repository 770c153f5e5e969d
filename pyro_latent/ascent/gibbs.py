r"""Gibbs sampling by the conditionals that coordinate ascent takes expectations of.

Coordinate ascent sets a block to the optimum η̂ = ∂L̄/∂μ at the mean parameters of the others. At *draws* of the others,
the same η̂ are the natural parameters of the block's full conditional:

.. math:: p(z_j \mid z_{-j}, x) = q(z_j; η̂), \qquad η̂ = \frac{∂\bar L}{∂μ_j}\Big|_{μ = t(z)},

and the discrete sites are one block, drawn from their joint posterior by one elimination (forward filtering, backward
sampling). The chains run side by side, as restarts do.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import ArgumentTypeError, ModelError, check_count
from ..families import Natural
from ..guide import AutoConjugate, Sampler, nodes_given
from ..objective import Block, BlockKey, Init, Means, Program, Summand, shaped, starts_of
from ..signatures import Model
from .full import check_whole
from .sweep import ModelArguments


class FullConditionals(MCMCKernel):
    """The kernel that :class:`Gibbs` says it has: the model, for what reads a finished ``MCMC``."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.transforms: dict[str, Any] = {}

    def sample(self, params: object) -> Any:
        raise ModelError(
            "Expected Gibbs, which runs its chains itself; got MCMC around its kernel. "
            "Write Gibbs(model, num_samples).run(data)."
        )


class Gibbs(MCMC):
    """Gibbs sampling of an ordinary Pyro model whose sites have full conditionals in closed form.

    It is a Pyro ``MCMC`` without a kernel to choose: ``run``, ``get_samples``, ``summary`` and ``diagnostics`` are its
    own, and whatever takes a finished ``MCMC`` takes it (``Predictive`` by ``get_samples``, ``to_arviz``, ``compare``).
    In the limit draws are of the exact posterior; discrete sites are drawn too, whether the model marks them for
    enumeration or not, and so are missing data. What a mask hides from every density has no posterior,
    and its draws mean nothing. Seed it by ``pyro.set_rng_seed``.

    Args:
        model: a Pyro model that :class:`~pyro_latent.AutoConjugate` can fit, without ``pyro.param`` sites.
        num_samples: draws of each chain that are kept.
        warmup_steps: draws of each chain before them, by default ``num_samples // 2``.
        num_chains: chains, which run side by side in one process.
        blocks: groups of sites that are drawn together, as in ``AutoConjugate``; it mixes better where they depend on
            each other.
        mean_field: discrete sites whose elements are drawn in turn and not together, as in ``AutoConjugate``.
        init: where the chains start, as in ``AutoConjugate``; by default each at a random start of its own.
        save_params: the sites to keep draws of, by default all.
        disable_progbar: whether to show no progress bar.

    Raises:
        ValueError: if a count is no positive integer.
        NotConjugateError: in ``run``, if a site has no full conditional in closed form.
        ModelError: in ``run``, if the model has parameters, or latents under ``poutine.scale`` or in a subsample.

    Source: Gelfand and Smith 1990; the discrete block, Chib 1996.

    Example::

        mcmc = Gibbs(model, num_samples=1000, num_chains=4)
        mcmc.run(x)
        mcmc.summary()
    """

    def __init__(
        self,
        model: Model,
        num_samples: int,
        warmup_steps: int | None = None,
        num_chains: int = 4,
        *,
        blocks: Sequence[Sequence[str]] = (),
        mean_field: Sequence[str] = (),
        init: Init = None,
        save_params: Sequence[str] | None = None,
        disable_progbar: bool = True,
    ) -> None:
        num_samples = check_count("num_samples", num_samples)
        warmup = num_samples // 2 if warmup_steps is None else check_count("warmup_steps", warmup_steps, 0)
        super().__init__(FullConditionals(model), num_samples, warmup, disable_progbar=disable_progbar)
        self.num_chains = check_count("num_chains", num_chains)
        if isinstance(save_params, str):
            raise ArgumentTypeError(
                f"Expected a list of sites; got {save_params!r}. Write save_params=[{save_params!r}]."
            )
        self.save_params = save_params
        self._diagnostics: list[Any] = [
            {"divergences": []} for _ in range(num_chains)
        ]  # which readers of an MCMC ask for
        self._no_progress = disable_progbar
        self._guide = AutoConjugate(model, blocks=blocks, mean_field=mean_field, init=init, restarts=num_chains)

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, *args: Any, **kwargs: Any) -> None:
        """Draw ``warmup_steps + num_samples`` times from every full conditional; the arguments are the model's."""
        with poutine.block(), pyro.validation_enabled(False):
            chains = _Chains(self._guide, (args, kwargs), self.num_chains)
            names = chains.check_names(self.save_params)
            kept: dict[str, list[Tensor]] = {name: [] for name in names}
            steps = tqdm(range(self.warmup_steps + self.num_samples), disable=self._no_progress, desc="Gibbs")
            for step in steps:
                chains.step()
                if step >= self.warmup_steps:
                    for name, value in chains.draw(names).items():
                        kept[name].append(value)
        self._args, self._kwargs = args, kwargs
        self._samples = {name: torch.stack(values, 1) for name, values in kept.items()}

    def get_samples(self, num_samples: int | None = None, group_by_chain: bool = False) -> Any:
        """The draws by site, ``[chains × draws] + shape``, or ``[chains, draws] + shape``; or some of them."""
        self._check_ran()
        return super().get_samples(num_samples, group_by_chain)

    def diagnostics(self) -> Any:
        """The effective sample size and R̂ of every site, as of any ``MCMC``."""
        return MCMC.diagnostics(self._with_floats())

    def summary(self, prob: float = 0.9) -> None:
        """Print mean, standard deviation, an interval of probability ``prob``, effective sample size and R̂ by site."""
        MCMC.summary(self._with_floats(), prob)

    def _with_floats(self) -> Gibbs:
        """This, with the draws of discrete sites as floats, which Pyro's statistics ask for.

        Raises:
            ModelError: if it has not run, or has fewer draws than R̂ takes.
        """
        if self._samples is not None and self.num_samples < 4:
            raise ModelError(f"Expected 4 draws or more of each chain; got {self.num_samples}. Raise num_samples.")
        shown, samples = copy.copy(self), self.get_samples(group_by_chain=True)
        kinds = {n: v if v.is_floating_point() else v.to(torch.float64) for n, v in samples.items()}
        shown._samples = kinds
        return shown

    def _check_ran(self) -> None:
        if self._samples is None:
            raise ModelError("Expected a Gibbs that has run; got a new one. Call run(data).")


class _Chains:
    """The current draw of every chain.

    Attributes:
        values: by site, ``[chains] + shape``.
    """

    def __init__(self, guide: AutoConjugate, arguments: ModelArguments, count: int) -> None:
        self._model, self._arguments, self._count = guide.model, arguments, count
        prepared = guide.prepare(*arguments)
        self.program = prepared.program
        _check_drawn(self.program)
        one = {key: natural.map(lambda t: t[:1]) for key, natural in prepared.state.items()}
        self._sampler = Sampler(self.program, one, structured=False)
        self.values: dict[str, Tensor] = {}
        self._means: Means = self.program.means(prepared.state)
        self._summands: list[Summand] = []
        for key, block in self.program.blocks.items():
            if block.is_discrete:
                self._take(key, self._drawn(block, prepared.state[key]))
        if self.program.discrete:
            elimination = self.program.elimination
            held = elimination.hold(prepared.starts, self._means) if prepared.starts else None
            if held is None or not bool(held.log_normalizer.isfinite().all()):
                held = elimination.eliminate(self._means)
            self._summands = elimination.held_summands(held)

    def step(self) -> None:
        """Draw every block from its full conditional, and the discrete sites from theirs."""
        for key in self.program.default_order:
            block = self.program.blocks[key]
            for turn in self.program.turns.get(key, (None,)):
                natural = self.program.optimum(key, self._means, self._summands)
                new = self._drawn(block, natural)
                if turn is not None:  # elements that meet in no density
                    (name,) = (site.name for site in block.sites)
                    new = [torch.where(_over(turn, new[0]), new[0], self.values[name])]
                self._take(key, new)
        if self.program.discrete:
            self.values |= self._sampler.discrete(self._means, self._count)
            labels = {s.name: s.numbers_of(self.values[s.name]) for s in self.program.discrete}
            elimination = self.program.elimination
            self._summands = elimination.held_summands(elimination.hold(labels, self._means))

    def draw(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The current values of some sites, missing data among them."""
        hidden = [name for name in names if name in self.program.recording.hidden]
        found = {name: self.values[name] for name in names if name not in hidden}
        if hidden:
            each = [self._missing({n: v[i] for n, v in self.values.items()}) for i in range(self._count)]
            found |= {name: torch.stack([one[name] for one in each]) for name in hidden}
        return found

    def _missing(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Missing data, drawn from the model given everything else."""
        nodes = nodes_given(self._model, values, *self._arguments, self.program.recording.hidden)
        return {name: nodes[name]["value"] for name in self.program.recording.hidden}

    def check_names(self, names: Sequence[str] | None) -> list[str]:
        """The sites to keep draws of, in the order of the model.

        Raises:
            ModelError: if one is not a latent of the model.
        """
        sites = [s.name for b in self.program.blocks.values() for s in b.sites]
        sites += [*(s.name for s in self.program.discrete), *self.program.recording.hidden]
        unknown = [name for name in names or () if name not in sites]
        if unknown:
            raise ModelError(f"Expected save_params among the latent sites {sites}; got {unknown}. Name some of these.")
        return [name for name in sites if names is None or name in names]

    def _drawn(self, block: Block, natural: Natural) -> list[Tensor]:
        """A draw from a block at natural parameters ``[chains, ...]``, by site."""
        drawn: dict[int, Tensor] = {}
        chains = starts_of({block.key: natural})
        if block.joint_normal:  # whose sites are in different plates
            depth = max(len(site.batch_shape) for site in block.sites)
            natural = natural.map(lambda t: t.reshape(chains, *[1] * depth, *t.shape[1:]))
        for component, conditional in block.family.conditionals(block.params(natural)):
            drawn[component] = shaped(block, component, conditional(*drawn.values())).sample()
        return [drawn[i].reshape(chains, *site.shape) for i, site in enumerate(block.sites)]

    def _take(self, key: BlockKey, values: Sequence[Tensor]) -> None:
        block = self.program.blocks[key]
        self.values |= {site.name: value for site, value in zip(block.sites, values, strict=True)}
        self._means = self._means | {key: block.statistics(values)}


def _over(mask: Tensor, value: Tensor) -> Tensor:
    """A mask over the batch of a site, over its event too."""
    return mask.reshape(mask.shape + (1,) * (value.ndim - 1 - mask.ndim))


def _check_drawn(program: Program) -> None:
    """Every latent has a full conditional, of the density that Pyro's traces have.

    Raises:
        ModelError: if not.
    """
    check_whole(program)
    points = [block.label for block in program.blocks.values() if block.is_point]
    if points:
        raise ModelError(
            f"Expected latents with a prior; got the parameters or points {points}. Write priors for them, or use EM."
        )
    if program.log_sums:
        raise ModelError(
            "Expected densities with full conditionals; got a sum of rates, whose counts are put at their optimum. "
            "Write a Poisson site of counts for each of the rates, or NUTS of the model as it is written."
        )
    bounds = [s.name for s in program.recording.scored.values() if s.is_bound]
    if bounds:
        raise ModelError(
            f"Expected densities with full conditionals; got those of {bounds}, which are bounds of logistic "
            "functions. Write NUTS of the model as it is written."
        )
    sites: list[Any] = [*(s for b in program.blocks.values() for s in b.sites), *program.discrete]
    scaled = [s.name for s in sites if isinstance(s.scale, Tensor) or s.scale != 1]
    if scaled:
        raise ModelError(f"Expected latents outside of poutine.scale; got {scaled}. Leave the scale out around them.")


__all__ = ["FullConditionals", "Gibbs"]
