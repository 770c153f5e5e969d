"""``AutoConjugate``: the posterior of coordinate ascent, as a Pyro autoguide.

:class:`pyro_latent.CAVI` moves its :class:`~pyro_latent.guide.state.PosteriorState`; it samples, describes and saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..errors import ArgumentError, DataError, ModelError, as_real, check_choice, check_count, check_seed, in_our_words
from ..objective import BlockKey, Init, Program, State, explain
from ..particles import name_of
from ..recording import record
from ..reparam import Conjugate
from ..signatures import Args, Kwargs, Model, PlainState
from .arguments import check_model, check_state, checked_init, joint_blocks, levels_of, site_names
from .augmented import Augmented, moved_value, transformed
from .calls import Calls
from .describe import summary_of
from .new_data import NewData
from .param_store import write_params
from .prediction import LogPredictive, Prediction, log_predictive, predict
from .reading import posterior_of, read_quantiles, runs_bare, stored_draw, stored_posterior, waits_for_data
from .refusals import check_dtype, check_same_model, check_saved, sites_named
from .response import LinearResponse
from .sampling import Sampler
from .state import Fit, PosteriorState, Prepared
from .summary import Summary
from .terms import ElboTerms, elbo_terms_of


class AutoConjugate(AutoGuide):
    """A guide whose factors are exponential families, found from the model, and fitted in closed form.

    It is the guide of :class:`pyro_latent.CAVI`, and an ordinary Pyro guide: for ``SVI`` with ``Trace_ELBO`` or
    ``TraceEnum_ELBO`` (which then scores it), ``Predictive``, and ``pyro.infer.importance``. Discrete sites are sampled
    from their exact joint posterior given the other blocks; inside an enumeration the sites that the model marks are
    left out.

    Args:
        model: a Pyro model.
        blocks: tuples of sites that share a joint factor, such as ``[("mean", "precision")]`` for a Normal-Gamma or
            Normal-Wishart, or any normal sites, whatever their shapes and plates; names may be patterns, as in
            ``["x_*"]``, and a Gamma site may be among them that all of their precisions are proportional to. ``"auto"``
            joins all normal sites that can be, with such a precision. Every other site is a factor of its own (mean
            field).
        init: where to start. None: from the data where the model has clusters in it, else a draw from the prior, with
            seed 0; an integer: the same with that seed; a dict from site or block to a distribution, a location, or
            (discrete sites) responsibilities of shape ``plates + (values,)``; or a function of a site that returns one
            of these or None.
        restarts: the number of starts that are optimised at once; the best is kept.
        point: latent sites that get a point estimate, the mode of their coordinate optimum (MAP), as do sites with
            ``infer={"estimate": "point"}``. Their entropy is left out, so the ELBO is then a bound on log p(x, point).
            Every ``pyro.param`` of the model is a point estimate too, by maximum likelihood.
        mean_field: discrete sites whose elements are independent in the posterior. By default the joint posterior of
            all discrete sites is exact, given the continuous ones; where elements of one site meet (``z[i]`` against
            ``z[j]``) and their joint is not affordable, they become independent by themselves, with a warning.
        check: whether to run the model once more when it is first recorded, and again for data of another kind, with
            draws of the latents, and to compare the log density of every site with Pyro's own; it is left out where
            the distributions of a run hold more than four million numbers.
        reparam: whether auxiliary sites make the model conjugate, those of :class:`~pyro_latent.reparam.Conjugate`,
            which may be given itself. The ELBO is then that of the model with them, which is at most that of its own
            sites. Draws, posteriors and quantiles are of the model's own sites.

    Blocks in subsampled plates, those of which each observation has an element of its own, and those whose site has
    ``infer={"local": True}`` (the proportions of a document, say) belong to the data at hand: they are fitted anew to
    new data, and first in a sweep. The others are global, and stay. Where some observations share an element, and
    others another, new data of the same size may be of the same groups or of others: the model says which by
    ``infer={"local": True}`` or ``False``; data of another size is of others.

    Raises:
        ModelError, DataError, NotConjugateError: at the first call, which records the model.

    Source: mean-field coordinate ascent, Bishop (2006) §10.1; the updates are gradients, Hoffman et al. (2013) §2.
    """

    #: Inside an enumeration the guide leaves out the discrete sites that the model marks.
    leaves_out_marked = True

    def __init__(
        self,
        model: Model,
        *,
        blocks: Sequence[str | Sequence[str]] | str | None = None,
        init: Init = None,
        restarts: int = 1,
        point: Sequence[str] = (),
        mean_field: Sequence[str] = (),
        check: bool = True,
        reparam: bool | Conjugate = False,
    ) -> None:
        check_model(model)
        self.restarts = check_count("restarts", restarts)
        super().__init__(model)
        #: The blocks that are asked for.
        self.joint = joint_blocks(blocks)
        self.init = checked_init(init)
        self.point = site_names("point", point)
        self.mean_field = site_names("mean_field", mean_field)
        self.check = check
        #: The model that is recorded, with its auxiliary sites.
        self.augmented = Augmented(model, reparam)
        #: What the guide keeps, and drivers move.
        self.posterior_state = PosteriorState(self)
        #: What its calls work on.
        self.calls = Calls(self)

    @property
    def state(self) -> State:
        """The natural parameters by block, each with a leading dimension over starts."""
        return self.posterior_state.naturals

    def prepare(
        self, args: Args, kwargs: Kwargs, *, predict: bool = False, rescale: bool = True, redraws: bool = True
    ) -> Prepared:
        """What a call with these arguments works on: the model is recorded only if the call would see something new.

        Args:
            args, kwargs: the model's arguments.
            predict: False: the call fits the guide, which stays as it is until :meth:`PosteriorState.commit`. True: the
                call reads the best start of a guide that stays as it is: new data is looked at with the globals as they
                are and the local blocks at their optimum. Without arguments the call is the last one.
            rescale, redraws: whether subsampled plates scale their sites to the size of the whole, and whether one that
                draws its subsample draws another one, in a call that fits.

        Raises:
            ModelError: if latents, families or global shapes are not those of the fitted guide.
            DataError: if the data's dtype or device are not.
        """
        return self.calls.read(args, kwargs) if predict else self.calls.fit(args, kwargs, rescale, redraws)

    # Sampling.

    @torch.inference_mode(False)
    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent site from the posterior, as Pyro sample statements. Without its data, a guide from a file
        samples its factors, in no plates.
        """
        posterior = self.posterior_state
        if waits_for_data(posterior, args, kwargs) and not runs_bare(self.model):
            with self.augmented.drawing():
                return self.augmented.own(stored_draw(posterior), moved_value)
        if posterior.program is None:
            posterior.commit(self.prepare(args, kwargs))  # a model without arguments, too, is recorded here
        found = self.prepare(args, kwargs, predict=True)
        sampler = Sampler(found.program, found.state, posterior.structured)
        with self.augmented.drawing():
            values = sampler.latents()
            if found.program.recording.hidden:
                sampler.missing(self.augmented.model, args, kwargs)
        return self.augmented.own(values, moved_value)

    # New data.

    @torch.inference_mode(False)
    def predict(self, *args: Any, num_samples: int = 1000, seed: int = 0, **kwargs: Any) -> Prediction:
        """What the model predicts with other arguments: draws of the sites of data, given what the fit has learned.

        The arguments are those of the model for new data: with data that is not given, such as ``y=None``, for
        predictions of it. Latents that the new data has of its own (labels, effects of new groups) are drawn given each
        draw of the globals: from the model where no data at hand depends on them, else from their posterior given
        that data, exact for discrete ones and for one conjugate block. A site whose data is given is drawn anew beside
        it. Pyro's ``Predictive(model, guide=guide)`` has the same law where the new data has no latents of its own.

        Args:
            args, kwargs: the model's arguments.
            num_samples: S, the number of draws.
            seed: of the draws. The global random state stays as it is.

        Returns:
            A mapping from site to draws ``[S] + shape``, with ``mean``, ``sd`` and ``quantiles(levels)`` by site, the
            ``latents`` that go with the draws, and the ``distributions`` that have a closed form under q.

        Raises:
            ModelError: if the guide was not fitted, the arguments are of another model, a plate subsamples, or a
                discrete site belongs to the data of the fit.

        Source: the posterior predictive distribution, Gelman et al. (2013) §1.3, with q in place of the posterior.
        """
        num, seed = check_count("num_samples", num_samples), check_seed(seed)
        return predict(lambda: NewData(self, self.calls, args, kwargs), num, seed)

    @torch.inference_mode(False)
    def log_predictive(
        self, *args: Any, pointwise: bool = False, num_samples: int = 1000, seed: int = 0, **kwargs: Any
    ) -> LogPredictive:
        """The log density that the fit gives new data, log p(x_new | x), in nats, with q in place of the posterior.

        It is the logarithm of a mean over draws of the globals from q, in which the discrete latents of the new data
        are summed out exactly, and the continuous ones averaged by importance weights from their posterior given each
        draw. It is exact, and no draw is made, where it is a ratio of normalizers: each term of the density of a datum
        reads one block (so of a regression with ``blocks=[("w", "tau")]``), given its one discrete latent, if any. As
        in the fit, ``poutine.scale`` counts a datum so many times, as word counts do: score new data at a scale of 1.

        Args:
            args, kwargs: the model's arguments, with the new data.
            pointwise: False: one number for all of the new data together, whose elements share the globals. True: one
                for each element of the plates that all of the new data and its latents lie in, as if it were the only
                one; their sum is the usual score of held-out data, and not the number for all together.
            num_samples: the number of draws.
            seed: of the draws. The global random state stays as it is.

        Returns:
            ``value``, its standard error ``error`` by the delta method, and ``is_exact``. A warning says where few
            draws carry the value.

        Raises:
            ModelError: as :meth:`predict` does, and if no data is given or the model has a ``pyro.factor``.

        Source: the log pointwise predictive density, Gelman et al. (2013) §7.1.
        """
        check_choice("pointwise", pointwise, [True, False])
        num, seed = check_count("num_samples", num_samples, 2), check_seed(seed)
        return log_predictive(lambda: NewData(self, self.calls, args, kwargs), pointwise, num, seed)

    # Summaries.

    @torch.inference_mode(False)
    def summary(self, *, prob: float = 0.94) -> Summary:
        """The posterior of the global sites: mean, standard deviation and an equal-tailed interval of ``prob``.

        ``print`` shows it, as it does for the guide itself, and a notebook a table of HTML; ``to_frame()`` gives a
        pandas ``DataFrame`` with the names of columns that ``arviz.summary`` has. Moments are those of the marginals,
        by formulas and integrals, and so are the ends of the interval, but for those of matrices, which come from 4,000
        draws with a fixed seed. A discrete site that the model has once has the probabilities of its values; a site
        that belongs to the data at hand, one line with its shape; a point estimate, its value.
        """
        if not 0 < as_real(prob) < 1:
            raise ArgumentError(f"Expected prob to be a number in (0, 1); got {prob!r}. Write prob=0.94.")
        return summary_of(f"{type(self).__name__} of {name_of(self.model)}", self, prob)

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    @overload
    def posterior(
        self, *args: Any, joint: Literal[False] = False, auxiliary: bool = False, **kwargs: Any
    ) -> dict[str, TorchDistribution]: ...

    @overload
    def posterior(
        self, *args: Any, joint: bool, auxiliary: bool = False, **kwargs: Any
    ) -> dict[BlockKey, TorchDistribution]: ...

    @torch.inference_mode(False)
    def posterior(self, *args: Any, joint: bool = False, auxiliary: bool = False, **kwargs: Any) -> dict[Any, Any]:
        """The posterior as Pyro distributions.

        Args:
            joint: False: by site, the marginals (a Student-t for the mean of a joint block, responsibilities for a
                discrete site); True: by block, its distribution, and the discrete sites'.
            auxiliary: whether to give the auxiliary sites of ``reparam=True`` in place of the model's own alone; the
                counts of a sum of rates are a function of the rates, and in no table.
            args, kwargs: the model's arguments; left out, those of the last call. A guide from a file that has not seen
                its data gives its factors, without discrete sites.
        """
        if waits_for_data(self.posterior_state, args, kwargs):
            result = stored_posterior(self.posterior_state, joint)
        else:
            result = posterior_of(self.prepare(args, kwargs, predict=True), joint)
        return result if auxiliary else self.augmented.own(result, transformed)

    @torch.inference_mode(False)
    def linear_response(self, *args: Any, **kwargs: Any) -> LinearResponse:
        """Covariances between all latents, corrected for the independence of the factors, at the optimum of a run."""
        prepared = self.prepare(args, kwargs, predict=True)
        return LinearResponse(prepared.program, prepared.state)

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The elementwise posterior median by site, of the site's shape."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.inference_mode(False)
    def quantiles(self, quantiles: Sequence[float], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The elementwise posterior quantiles by site: the first dimension runs along ``quantiles``, each in (0, 1).

        They are exact, but for matrix-valued sites, where they come from 4,000 draws with a fixed seed.
        """
        levels, posterior = levels_of(quantiles), self.posterior_state
        waits = waits_for_data(posterior, args, kwargs)
        prepared = None if waits else self.prepare(args, kwargs, predict=True)
        return self.augmented.own(read_quantiles(posterior, prepared, levels, self.augmented.moved), moved_value)

    @torch.inference_mode(False)
    def elbo(self, *args: Any, **kwargs: Any) -> float:
        """The exact ELBO, in nats, of the current posterior.

        Raises:
            DataError: if it is not finite.
        """
        prepared = self.prepare(args, kwargs, predict=True)
        program, state = prepared.program, prepared.state
        value = float(program.bound(state, program.means(state)).elbo)
        if not math.isfinite(value):
            raise DataError(
                f"Expected data whose ELBO is a number in {program.recording.dtype}; got {value}. Values as large as "
                "these overflow when they are squared: divide the data by their scale."
            )
        return value

    @torch.inference_mode(False)
    def elbo_terms(self, *args: Any, **kwargs: Any) -> ElboTerms:
        """The exact ELBO, site by site and block by block; its terms add up to :meth:`elbo`."""
        prepared = self.prepare(args, kwargs, predict=True)
        return elbo_terms_of(prepared.program, prepared.state)

    @torch.inference_mode(False)
    def explain(self, *args: Any, **kwargs: Any) -> str:
        """A table of all sites: family, block, and how each is updated, or all that is in the way of that."""
        known = self.posterior_state.program
        if args or kwargs or known is None:
            found = record(self.augmented.model, *args, point=self.point, **kwargs)
            return self.augmented.advice(explain(found, self.joint, self.mean_field), args, kwargs, self.joint)
        return explain(known.recording, self.joint, self.mean_field)

    def params(self) -> dict[str, Tensor]:
        """The current values by name of the model's parameters, constrained."""
        state, best = self.state, self.posterior_state.best
        blocks = self._known_program().params
        return {b.sites[0].name: b.params(state[b.key])["value"][best] for b in blocks}

    @torch.inference_mode(False)
    def write_params(self) -> None:
        """Put the parameters into Pyro's store, as SVI leaves them; existing entries keep their identity."""
        program, posterior = self._known_program(), self.posterior_state
        known = posterior.call if program.params and posterior.call and posterior.call.is_of_same_model() else None
        write_params(program, self.params())
        posterior.note_params(program)
        if known is not None:  # what a module holds now is what was found: the model is the same
            posterior.call = known.now()

    def _known_program(self) -> Program:
        program = self.posterior_state.program
        if program is None:
            raise ModelError("Expected a guide that has seen its data; got none. Call guide(data) once.")
        return program

    # Saving.

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> AutoConjugate:
        """What ``.to()``, ``.float()`` and ``.double()`` do; ``.half()`` and ``.bfloat16()`` are an error."""
        for buffer in self.buffers():
            check_dtype(fn(buffer[:0] if buffer.ndim else buffer).dtype)
        moved: AutoConjugate = super()._apply(fn, *args, **kwargs)
        return moved

    def __getstate__(self) -> PlainState:
        """What a copy keeps: not what was recorded, which is made anew at the next call."""
        return self.__dict__ | {"master": None}

    def get_extra_state(self) -> dict[str, Any]:
        """What names the buffers, in plain types: safe under ``weights_only=True``."""
        posterior = self.posterior_state
        return {
            "layout": posterior.layout,
            "best": posterior.best,
            "structured": posterior.structured,
            "fit": posterior.fit._asdict(),
            "augmented": self.augmented.stored(),
            "named": sites_named(self.model, posterior.layout),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take on what :meth:`get_extra_state` gave, but for the layout, which goes before the buffers."""
        posterior = self.posterior_state
        posterior.best, posterior.structured = state["best"], state.get("structured", False)
        posterior.fit = Fit(**state.get("fit", {"steps": None}))

    def load_state_dict(self, state_dict: Mapping[str, object], *args: Any, **kwargs: Any) -> Any:
        """Take on what ``state_dict()`` of another guide of the model gave.

        Raises:
            ModelError: if it is of another model, or not of a fitted guide.
        """
        check_state(state_dict)
        with in_our_words("the state of a guide of the same model", lambda: "Save it from a fitted guide."):
            return super().load_state_dict(state_dict, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        extra = state_dict.get(prefix + "_extra_state")
        if extra and extra["layout"]:
            own = {name[len(prefix) :]: t for name, t in state_dict.items() if name.startswith(prefix)}
            check_same_model(self.model, self.posterior_state.layout, extra["layout"], extra.get("named", ()))
            check_saved(extra["layout"], own)
            self.augmented.restore(extra.get("augmented", {}))
            self.posterior_state.receive(extra["layout"], own)
        super()._load_from_state_dict(state_dict, prefix, *args)


__all__ = ["AutoConjugate", "ElboTerms"]
