"""Runs of a model that write its sites and densities down, and leave no trace outside."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled, site_is_subsample
from torch import Tensor

from ..errors import ArgumentTypeError, DataError, LatentValueError, ModelError, in_our_words
from ..expressions import RandomTensor
from ..rules import random_arguments
from ..signatures import Args, Kwargs, Model
from ..values import leaving_random_state
from .check import LARGEST_CHECK, check_recording
from .hearing import Apart, OwnThreadMessenger
from .hidden import hidden_sites, reached_from
from .messengers import RecordMessenger, StructureMessenger
from .sites import Recording
from .symbols import SymbolMessenger

#: Pyro's stack of handlers, its store and torch's default dtype are shared by all threads: one of them records at once.
ALONE = threading.RLock()


@dataclass(frozen=True)
class _Model:
    """A model and the arguments of a call."""

    function: Callable[..., Any]
    args: Args
    kwargs: Kwargs

    def run(self, messenger: SymbolMessenger) -> None:
        """Run the model under the messenger.

        Raises:
            NotConjugateError: where it ends in an error after a site that cannot be recorded, for which another stood.
        """
        with _recording_context(messenger.like, random_arguments(messenger.stand_ins)), messenger:
            try:
                self.function(*self.args, **self.kwargs)
                with messenger.stand_ins.resting():
                    messenger.finish()
            except Exception as error:
                for problem in messenger.refused.values():
                    raise problem from error
                raise

    def advice(self, like: Tensor) -> str:
        """What to do about an error inside the model: whether Pyro meets it too."""
        if self.draw(like, {}, is_validation_enabled()) is None:
            return "The model alone meets it too, or another error: call it with these arguments, and mend it."
        return (
            "The model alone runs: here a latent has no value, and a discrete one stands for all of its values. Write "
            "the operation with other ones, or that latent's site otherwise."
        )

    def draw(self, like: Tensor, subsamples: Mapping[str, Tensor], validates: bool = False) -> Any:
        """A trace of the model itself; None where it cannot be drawn from, as under an improper prior."""
        try:
            with (
                _recording_context(like, nullcontext()),
                warnings.catch_warnings(),
                pyro.validation_enabled(validates),
                _Draws(subsamples),
            ):
                warnings.simplefilter("ignore")
                return poutine.trace(self.function).get_trace(*self.args, **self.kwargs)
        except Exception:  # whatever a draw from a vague prior breaks
            return None

    def first_guess(self) -> Tensor:
        """An empty tensor of the dtype and device that the model most likely computes in: its arguments'."""
        tensors = [item for item in (*self.args, *self.kwargs.values()) if isinstance(item, Tensor)]
        for item in tensors:
            if item.dtype in (torch.float32, torch.float64):
                return torch.empty(0, dtype=item.dtype, device=item.device)
        return torch.empty(0, device=tensors[0].device if tensors else None)


class _Draws(OwnThreadMessenger):
    """Every plate at the subsample that was recorded, and one choice that is drawn for many elements with its
    probabilities held once, where torch would lay them out for each.
    """

    def __init__(self, subsamples: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.subsamples = subsamples

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if site_is_subsample(msg):
            if msg["value"] is None and msg["name"] in self.subsamples:
                msg["value"], msg["done"] = self.subsamples[msg["name"]], True
        elif msg["is_observed"] or msg["done"]:
            return
        elif type(fn) is dist.Categorical and not any(fn._param.stride()[:-1]):
            first = fn._param[(0,) * len(fn.batch_shape)]
            is_probs = fn._param is vars(fn).get("probs")  # it may hold both
            one = dist.Categorical(probs=first) if is_probs else dist.Categorical(logits=first)
            cumulated = one.probs.cumsum(-1)
            draws = cumulated[-1] * torch.rand(fn.batch_shape, dtype=cumulated.dtype, device=cumulated.device)
            numbers = torch.searchsorted(cumulated, draws, right=True).clamp(max=len(cumulated) - 1)
            one.logits  # noqa: B018 (it is computed here once, and expanded)
            msg["fn"], msg["value"], msg["done"] = one.expand(fn.batch_shape), numbers, True


@contextmanager
def _recording_context(like: Tensor, arguments: AbstractContextManager[None]) -> Iterator[None]:
    """Constants in the dtype and on the device of the data, a treatment of random arguments, no gradients, and the
    random state left as it was.
    """
    default = torch.get_default_dtype()
    store = pyro.get_param_store()
    known = set(store.keys())
    devices = [like.device] if like.device.type == "cuda" else []
    with (
        arguments,
        Apart(),
        torch.random.fork_rng(devices),
        torch.no_grad(),
        torch.device(like.device) if like.device.type != "cpu" else nullcontext(),
    ):
        torch.set_default_dtype(like.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            for name in set(store.keys()) - known:
                del store[name]


def record(
    model: Model,
    *args: Any,
    origins: Mapping[str, Tensor] | None = None,
    point: Collection[str] = (),
    known: Collection[str] | None = None,
    rescale: bool = True,
    before: Recording | None = None,
    check: bool = False,
    **kwargs: Any,
) -> Recording:
    """Run a model once, and write down the log density of every site as an expression in its latents.

    Latents are random tensors, discrete ones too. The model's random draws and its parameters
    leave no trace outside: the global random state and the handlers around are untouched.

    Args:
        model: a Pyro model; the other arguments are its own.
        origins: by site, a constant that the latent is measured from, for exact differences from data far from zero;
            by default the mean of the data that the latent is a location of, or a location of such a location.
        point: latent sites that get a point estimate, beside the parameters and those with ``infer={"estimate":
            "point"}``.
        known: the latent sites of a fitted guide, for prediction: others are data that is not given, and left out.
        rescale: whether subsampled plates scale their sites to the size of the whole, as Pyro does.
        before: a recording of the same model with data of the same kind, which may save one of two runs.
        check: whether to run the model once more, with draws of the latents, and compare the density of every site with
            Pyro's; not where ``before`` has been, nor where that run would hold more than four million numbers.

    Returns:
        The recording; sites without a rule hold their error, which is raised when the density is needed.

    Raises:
        ModelError: if there is no latent site, nothing is observed in a model of data, or a loop over a plate
            subsamples.
        DataError: if observed data is not finite, outside the support, of the wrong shape or dtype.
        LatentValueError: if the model uses a latent's value as a number.
        RecordingError: if a recorded density is not Pyro's.
    """
    check_arguments(model, args, kwargs)
    with ALONE:
        return _recorded(_Model(model, args, kwargs), origins, point, known, rescale, before, check)


def _recorded(
    call: _Model,
    origins: Mapping[str, Tensor] | None,
    point: Collection[str],
    known: Collection[str] | None,
    rescale: bool,
    before: Recording | None,
    check: bool,
) -> Recording:
    messenger = None if before is None else _recorded_as(before, call, origins or {}, point, rescale)
    own_data: dict[str, Tensor] = {}
    if messenger is None:
        with in_our_words("a model that runs with these arguments", lambda: call.advice(call.first_guess())):
            messenger, own_data = _recorded_anew(call, origins, point, rescale)
    else:
        check = False
    if known is None:
        _check_sites(messenger, bool(call.args or call.kwargs))
    hidden, hidden_parents = hidden_sites(messenger.latents, messenger.discrete, messenger.scored, known or ())
    unknown = _unknown(messenger, known, hidden)
    dropped = {*hidden, *unknown}
    recording = Recording(
        latents={name: site for name, site in messenger.latents.items() if name not in dropped},
        discrete={name: site for name, site in messenger.discrete.items() if name not in dropped},
        scored={name: site for name, site in messenger.scored.items() if name not in dropped},
        max_plate_nesting=messenger.nesting,
        dtype=messenger.like.dtype,
        device=messenger.like.device,
        observations={n: v for n, v in messenger.observations.items() if n in messenger.scored},  # no masked-out sites
        hidden={name: plates for name, plates in hidden.items() if name not in unknown},
        hidden_parents=hidden_parents - unknown,
        redraws=messenger.redraws,
        rescaled=rescale,
        declares_size=messenger.declares_size,
        own_data=own_data,
    )
    check = check and not messenger.refused and messenger.numbers <= LARGEST_CHECK
    trace = call.draw(messenger.like, messenger.subsamples) if check else None
    if trace is not None:
        check_recording(recording, trace)
    return recording


def _recorded_anew(
    call: _Model, origins: Mapping[str, Tensor] | None, point: Collection[str], rescale: bool
) -> tuple[RecordMessenger, dict[str, Tensor]]:
    """The run that is the recording, the first or a second; with it, by latent that is the location of one observation
    for each element, that data.
    """
    first = _structure_of(call, rescale, is_first=origins is None, is_final=not point)
    guess = first.like.double() if torch.float64 in first.dtypes else first.like
    like = _data_like(first.observations, guess)
    found = first.search.found if origins is None else origins
    if first.is_final and not found and (like.dtype, like.device) == (first.like.dtype, first.like.device):
        return first, first.search.own_data
    messenger = RecordMessenger(like, found, point, rescale, first.marked, first.subsamples, first.is_first)
    call.run(messenger)
    return messenger, first.search.own_data


def check_arguments(
    model: Model,
    args: Args,
    kwargs: Mapping[str, object],
    method: Callable[..., Any] | None = None,
) -> None:
    """Raise where a model cannot be called with these arguments, which a method passes on beside options of its own.

    Raises:
        ArgumentTypeError: with the arguments that the model takes, and the options of the method.
    """
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # a compiled function has none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        own = inspect.signature(method).parameters.values() if method is not None else ()
        options = ", ".join(p.name for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY)
        also = f", and the options of {method.__name__}: {options}" if method is not None else ""
        raise ArgumentTypeError(
            f"Expected the arguments of the model, {_name_of(model)}{signature}{also}; got others: {error}."
        ) from None


def _name_of(model: object) -> str:
    return getattr(model, "__name__", type(model).__name__)


def _structure_of(call: _Model, rescale: bool, is_first: bool, is_final: bool) -> StructureMessenger:
    """A first run, which finds the dtype of the data, the subsamples, and the origins, and may be the recording.

    Raises:
        DataError: if a plate is empty.
    """
    guess = call.first_guess()
    messenger = StructureMessenger(guess, rescale, is_first, is_final)
    try:
        call.run(messenger)
    except ZeroDivisionError as error:
        raise DataError(
            f"Expected data in every plate; got a plate of size 0 ({error}). Leave empty batches out."
        ) from None
    except RuntimeError as error:
        if "dtype" not in str(error) or guess.dtype == torch.float64 or isinstance(error, LatentValueError):
            raise
        guess = guess.double()  # for data that the model closes over
        messenger = StructureMessenger(guess, rescale, is_first, is_final)
        call.run(messenger)
    _move_on(messenger)
    return messenger


def _move_on(messenger: SymbolMessenger) -> None:
    """The draws inside a recording are taken back: go on from them, so that the next one sees another subsample."""
    if messenger.redraws:
        for device in {s.device for s in messenger.subsamples.values()}:
            torch.rand(1, device=device)


def _recorded_as(
    before: Recording, call: _Model, origins: Mapping[str, Tensor], point: Collection[str], rescale: bool
) -> RecordMessenger | None:
    """One run instead of two, for data of the same kind as in an earlier recording; None if it is of another."""
    marked = {site.name: site.marked for site in before.discrete.values()}
    messenger = RecordMessenger(before.like, origins, point, rescale, marked, {})
    try:
        with leaving_random_state():
            call.run(messenger)
            like = _data_like(messenger.observations, before.like)
    except Exception:  # the two runs say better what is wrong
        return None
    same = messenger.nesting == before.max_plate_nesting and (like.dtype, like.device) == (before.dtype, before.device)
    if not same or set(messenger.discrete) - set(before.hidden) != set(before.discrete):
        return None
    _move_on(messenger)
    return messenger


def _data_like(observations: Mapping[str, Tensor], guess: Tensor) -> Tensor:
    """An empty tensor of the dtype and device of the data.

    Raises:
        DataError: if observed sites differ in dtype or device, or are of half precision.
    """
    kinds: dict[tuple[torch.dtype, torch.device], str] = {}
    for name, value in observations.items():
        if value.dtype in (torch.float16, torch.bfloat16):
            raise DataError(
                f"Expected data of float32 or float64 at site {name!r}; got {value.dtype}. Convert it: x.float()."
            )
        if value.is_floating_point() and not isinstance(value, RandomTensor):
            kinds.setdefault((value.dtype, value.device), name)
    if len(kinds) > 1:
        listed = ", ".join(f"{n!r}: {d} on {v}" for (d, v), n in kinds.items())
        raise DataError(f"Expected observed sites of one dtype and device; got {listed}.")
    if kinds:
        ((dtype, device),) = kinds
        return torch.empty(0, dtype=dtype, device=device)
    devices = {v.device for v in observations.values()}
    return torch.empty(0, dtype=guess.dtype, device=next(iter(devices), guess.device))


def _unknown(messenger: RecordMessenger, known: Collection[str] | None, hidden: Collection[str]) -> set[str]:
    """Latent sites that the guide does not know: data that is not given, and the steps of a loop that come after those
    of the fit, to be predicted; and the hidden ones that depend on these, which the model draws with them.

    Raises:
        ModelError: if something that is given, or known, depends on one, for then it is another model.
    """
    if known is None:
        return set()
    found = [name for name in (*messenger.latents, *messenger.discrete) if name not in known and name not in hidden]
    readers = reached_from(found, {*messenger.latents, *messenger.discrete}, messenger.scored)
    wrong = [name for name in messenger.scored if name in readers and name not in {*found, *hidden}]
    if wrong:
        raise ModelError(
            f"Expected latent sites of the fitted guide, {_few(known)}, or, to be predicted, others that nothing given "
            f"depends on; got {_few(found)} besides, which {_few(wrong)} depend on. Make a new guide for another "
            "model, or for more data."
        )
    return {*found, *(name for name in hidden if name in readers)}


def _few(names: Collection[str]) -> str:
    """Names in a message, but for those in the middle of many."""
    listed = sorted(names)
    return str(listed) if len(listed) <= 8 else f"[{', '.join(map(repr, listed[:6]))}, and {len(listed) - 6} more]"


def _check_sites(messenger: RecordMessenger, has_arguments: bool) -> None:
    if not messenger.latents and not messenger.discrete:
        raise ModelError("Expected a model with at least one latent site; got none: every pyro.sample has obs=.")
    if any(s.observed for s in messenger.scored.values()):
        return
    if has_arguments:
        raise ModelError("Expected a model with an observed site; got none. Pass the data, and obs= at a pyro.sample.")
    warnings.warn(
        "Expected a model with an observed site; got none, so the posterior is the prior. If there is data, write obs= "
        "at a pyro.sample.",
        stacklevel=2,
    )
