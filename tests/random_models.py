"""Random Pyro programs, each small and printable as code, and the laws that a fit of one must keep.

:func:`program` writes a program from a seed: ``source`` is Python that defines ``data`` and ``model``, and
:meth:`RandomProgram.load` runs it. :func:`check` fits it by coordinate ascent and returns what is wrong with the
answer, as sentences. It uses the public interface of the library, and Pyro's own traces:

- the reported ELBO is the mean of log p(x, θ, z) − log q(θ, z) over draws of the guide, every value of z enumerated;
- log q(z) + constant is E_q(θ) log p(x, θ, z) (so a program of discrete sites alone reports its log evidence);
- the draws of the guide are possible under the model;
- no change of a factor's natural parameters raises the ELBO at the end, and no sweep lowers it.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, ElboDecreaseError, PyroLatentError

HEADER = """\
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.ops.indexing import Vindex
"""


@dataclass(frozen=True)
class RandomProgram:
    """A program as text, with the default dtype that it runs under, and how it is to be fitted: ``blocks`` as of
    ``AutoConjugate``, and whether with the auxiliary sites of ``reparam=True``.
    """

    source: str
    dtype: torch.dtype = torch.float64
    blocks: Any = ()
    reparam: bool = False

    def load(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The model and its data."""
        scope: dict[str, Any] = {}
        exec(compile(HEADER + self.source, "<random program>", "exec"), scope)
        return scope["model"], scope["data"]

    def __str__(self) -> str:
        fitted = f"# blocks={self.blocks!r}, reparam={self.reparam}\n" if self.blocks or self.reparam else ""
        return f"{fitted}torch.set_default_dtype({self.dtype})\n{self.source}"


# Checks.


@dataclass
class Outcome:
    """What became of a program: ``refusal`` is the library's own error, ``faults`` what is wrong."""

    refusal: PyroLatentError | None = None
    faults: list[str] = field(default_factory=list)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    """A default dtype, and the old one afterwards whatever happens."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check(program: RandomProgram, draws: int = 500, max_steps: int = 25, perturbations: int = 6) -> Outcome:
    """Fit a program and hold the answer against the laws above."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    with default_dtype(program.dtype):
        try:
            model, data = program.load()
            poutine.trace(model).get_trace(*data)
        except Exception as error:
            return Outcome(faults=[f"the program does not run in Pyro: {type(error).__name__}: {error}"])
        try:
            return _checked(program, model, data, draws, max_steps, perturbations)
        except PyroLatentError as error:
            if not isinstance(error, ElboDecreaseError):
                return Outcome(refusal=error)
            if "[-inf]" in str(error) and _is_impossible(model, data):
                return Outcome()  # rightly
            return Outcome(faults=[f"the ELBO fell: {error}"])
        except Exception as error:
            frame = _innermost(error)
            return Outcome(faults=[f"a foreign error, {type(error).__name__} at {frame}: {error}"])


def _innermost(error: Exception) -> str:
    """The last line of the library that an error passed through."""
    place, walk = "", error.__traceback__
    while walk is not None:
        code = walk.tb_frame.f_code
        if "pyro_latent" in code.co_filename or "random_models" in code.co_filename:
            place = f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_name}"
        walk = walk.tb_next
    return place


def _checked(
    program: RandomProgram, model: Any, data: tuple[Any, ...], draws: int, max_steps: int, perturbations: int
) -> Outcome:
    guide = AutoConjugate(model, blocks=program.blocks, reparam=program.reparam)
    cavi = CAVI(model, guide, step_size=1.0) if "subsample=" in program.source else CAVI(model, guide)
    outcome = Outcome()
    judge = _Judge(model, guide, data, draws)
    cavi.run(*data, max_steps=2, tol=0.0)
    outcome.faults += [f"after two sweeps, {fault}" for fault in judge.faults()]
    history = cavi.run(*data, max_steps=max_steps, tol=1e-9).elbo
    gain = abs(float(history[-1] - history[-2])) if len(history) > 1 else math.inf
    outcome.faults += [f"at the end, {fault}" for fault in judge.faults()]
    if not outcome.faults:
        outcome.faults += judge.perturbed(gain, perturbations)
    return outcome


class _Judge:
    """Independent measures of a guide."""

    def __init__(self, model: Any, guide: Any, data: tuple[Any, ...], draws: int) -> None:
        self.model, self.guide, self.data, self.draws = model, guide, data, draws

    def faults(self) -> list[str]:
        """What is wrong at the guide's present state; three standard errors are suspicious, and five of
        sixteen times the draws a fault.
        """
        reported = self.guide.elbo()
        found = self._measured(reported, self.draws, 11, errors=3)
        return found and self._measured(reported, 16 * self.draws, 12, errors=5)

    @property
    def _is_bound(self) -> bool:
        """Whether the reported ELBO is that of the model with auxiliary sites, below that of its own sites."""
        return bool(self.guide.augmented.names)

    def _measured(self, reported: float, draws: int, seed: int, errors: int) -> list[str]:
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            pyro.enable_validation(False)
            try:
                table = tabulate(self.model, self.guide, self.data, draws)
            finally:
                pyro.enable_validation(True)
        return [table] if isinstance(table, str) else table.faults(reported, errors, self._is_bound)

    def perturbed(self, gain: float, count: int) -> list[str]:
        """The changes of single natural parameters that raise the ELBO, of a few chosen by chance."""
        state = self.guide.state
        best = self.guide.elbo()
        slack = 20 * gain + 1e-7 * (1 + abs(best)) * (1 if self._exact() else 1000)
        places = [(key, name) for key in state for name in vars_of(state[key])]
        chance = random.Random(5)
        chance.shuffle(places)
        faults = []
        for key, name in places[:count]:
            for factor in (0.97, 1.03):
                changed = {n: (t * factor if n == name else t) for n, t in state[key].items()}
                self.guide.posterior_state.store({**state, key: type(state[key])(**changed)})
                now = self.guide.elbo()
                if now > best + slack:
                    faults.append(f"{factor} times {name!r} of {key!r} raises the ELBO from {best:.8f} to {now:.8f}")
        self.guide.posterior_state.store(state)
        return faults

    def _exact(self) -> bool:
        return all(t.dtype == torch.float64 for n in self.guide.state.values() for _, t in n.items())


def vars_of(natural: Any) -> list[str]:
    """The names of natural parameters; the nodes of a table are none."""
    return ["log_density"] if "log_density" in natural else [name for name, _ in natural.items()]


MAX_CONFIGS = 1024
ONE_BY_ONE = 1000  # evaluations of a model that cannot be vectorized


@dataclass
class Table:
    """log p and log q for draws of θ and every value of z.

    ``log_p``, ``log_q``: [draws, configurations], weighted and masked as Pyro's traces do; ``log_z``: [configurations],
    log q(z) without weights or masks; ``live``: the number of each configuration where elements that are masked out
    and that nothing depends on are left out; ``drawn``: the configuration of each draw of the guide; ``digits``: the
    relative precision; ``scale``: that of all discrete sites, None if they differ; ``marginals``: by discrete site
    what ``guide.posterior()`` says, and what q(z) does, ``[values, elements]``.
    """

    log_p: Tensor
    log_q: Tensor
    log_z: Tensor
    live: Tensor
    drawn: Tensor
    digits: float
    scale: float | None
    marginals: dict[str, tuple[Tensor, Tensor]]

    def faults(self, reported: float, errors: int = 5, is_bound: bool = False) -> list[str]:
        """What contradicts the reported ELBO, and what is wrong with q(z).

        Args:
            reported: the ELBO.
            errors: so many standard errors are a fault.
            is_bound: whether it may be less than that of the traces, and q(z) is not the optimum of these.
        """
        found = []
        q, zero = self.log_z.exp(), torch.zeros((), dtype=torch.float64)
        slack = self.digits * (1 + abs(reported))
        if not is_bound and not abs(float(q.sum()) - 1) <= 1e-4:  # the guide draws auxiliary gates first
            found.append(f"the guide's probabilities of the discrete sites add up to {float(q.sum()):.6f}, not 1")
        terms = torch.where(q > 0, q * (self.log_p - self.log_q), zero).sum(1)
        mean, error = float(terms.mean()), float(terms.std() / math.sqrt(len(terms)))
        above = reported - mean if is_bound else abs(mean - reported)
        if not above <= errors * error + slack:
            found.append(f"the reported ELBO is {reported:.6f}; Pyro's traces say {mean:.6f} ± {error:.2g}")
        for name, (reported_probs, probs) in ({} if is_bound else self.marginals).items():
            if not torch.allclose(reported_probs, probs, atol=1e-4):
                found.append(f"posterior()[{name!r}] says {reported_probs.tolist()}, the joint {probs.tolist()}")
        if len(q) == 1 or self.scale is None or is_bound:
            return found
        groups, live = self.live.unique(return_inverse=True)
        q = zero.expand(len(groups)).index_add(0, live, q)
        log_p = self.log_p[:, groups] / self.scale
        target = log_p.mean(0).log_softmax(0)
        best = log_p[:, q.argmax(), None]
        spread = ((log_p - best).std(0) / math.sqrt(len(log_p))).nan_to_num(0.0)
        error = float(((q - target.exp()).abs() * spread + torch.maximum(q, target.exp()) * spread**2).sum())
        gap = float(torch.where(q > 0, q * (q.log() - target), zero).sum())
        if not gap <= errors * error + slack:
            found.append(f"q(z) is {gap:.6f} nats from the exact joint posterior of the discrete sites")
        impossible = int((target[live[self.drawn]] + 5 * spread[live[self.drawn]] < math.log(1e-10)).sum())
        if impossible:
            found.append(f"{impossible} of {len(self.drawn)} draws of the discrete sites are impossible")
        return found


def tabulate(model: Any, guide: Any, data: tuple[Any, ...], draws: int) -> Table | str:
    """The table of a guide, or what makes one impossible, as a sentence."""
    prior = poutine.trace(model).get_trace(*data)
    sites = latents(prior)
    single = latents(poutine.trace(guide).get_trace(*data))
    if set(single) != set(sites):
        return f"the guide samples {sorted(single)}, the model {sorted(sites)}"
    for name, node in sites.items():
        ours, theirs = tuple(single[name]["value"].shape), tuple(node["value"].shape)
        if ours != theirs:
            return f"site {name!r} has shape {theirs} in the model, {ours} in the guide"
    hidden = {n for n in sites if n not in guide.posterior()}  # no data depends on them: drawn from the model
    missing = {  # as missing data is
        n: single[n]["value"]
        for n in sites
        if n.startswith("x") or (n in hidden and sites[n]["fn"].has_enumerate_support)
    }
    discrete = {n: s for n, s in sites.items() if s["fn"].has_enumerate_support and n not in missing}
    continuous = [n for n in sites if n not in discrete and n not in missing]
    configs, places = configurations(discrete)
    count = len(places)
    nodes = [n for n in prior.nodes.values() if n["type"] == "sample"]
    nesting = max((-f.dim for n in nodes for f in n["cond_indep_stack"] if f.dim is not None), default=0)
    draws = (40 if missing or hidden else max(40, min(draws, 60_000 // count))) if continuous else 50
    runs = _runs(guide, data, sites, nesting, [{}] * draws)
    values = {name: found[0] for name, found in runs.items()}
    given = {n: values[n] for n in continuous}
    log_q = sum((runs[n][1] for n in continuous), torch.zeros(draws))[:, None] if continuous else torch.zeros(2, 1)
    log_z = torch.zeros(count)
    if discrete:
        every = [{n: v[i] for n, v in configs.items()} for i in range(count)]
        runs = _runs(guide, data, sites, nesting, every)
        log_z = sum((runs[n][2] for n in discrete), log_z)
        log_q = log_q + sum((runs[n][1] for n in discrete), torch.zeros(count))
    log_p = _scores(model, data, given, configs, missing, draws if continuous else 2, count)
    log_q = log_q[: len(log_p)]
    scales = {float(s) for d in discrete.values() for s in torch.as_tensor(d["scale"]).reshape(-1)}
    narrow = any(t.dtype == torch.float32 for n in nodes for t in _tensors(n))
    return Table(
        log_p.double(),
        log_q.double().expand(log_p.shape),
        log_z.double(),
        _live(log_p, discrete, places),
        _which(values, configs, draws, count),
        1e-4 if narrow else 2e-6,
        scales.pop() if len(scales) == 1 else None,
        _marginals(guide.posterior(), discrete, places, log_z.double().exp()),
    )


def _is_impossible(model: Any, data: tuple[Any, ...]) -> bool:
    """Whether the data has no probability under any values of the latents: Pyro clamps log 0 to -36 nats in float64."""
    with torch.no_grad():
        traces = [latents(poutine.trace(model).get_trace(*data)) for _ in range(20)]
        discrete = {n: s for n, s in traces[0].items() if s["fn"].has_enumerate_support}
        configs, places = configurations(discrete)
        given = {n: torch.stack([t[n]["value"] for t in traces]) for n in traces[0] if n not in discrete}
        pyro.enable_validation(False)
        try:
            return bool(_scores(model, data, given, configs, {}, len(traces), len(places)).max() < -30)
        finally:
            pyro.enable_validation(True)


def latents(trace: Any) -> dict[str, Any]:
    """The unobserved sites of a trace."""
    nodes = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    return {n: s for n, s in nodes.items() if type(s["fn"]).__name__ != "_Subsample"}


def _tensors(node: Any) -> list[Tensor]:
    fn = node["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return [v for v in (*vars(fn).values(), node["value"]) if isinstance(v, Tensor)]


def configurations(discrete: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Every joint value of discrete sites, ``[configurations, *shape]`` each, and as numbers ``[configurations,
    elements]``.
    """
    supports = {n: s["fn"].enumerate_support(expand=False) for n, s in discrete.items()}
    supports = {n: v.reshape(len(v), *discrete[n]["fn"].event_shape) for n, v in supports.items()}
    sizes = {n: math.prod(s["fn"].batch_shape) for n, s in discrete.items()}
    ranges = [range(len(supports[n])) for n in discrete for _ in range(sizes[n])]
    total = math.prod(len(r) for r in ranges)
    if total > MAX_CONFIGS:
        raise ValueError(f"Expected at most {MAX_CONFIGS} values of the discrete sites; got {total}.")
    numbers = torch.tensor(list(itertools.product(*ranges)), dtype=torch.long).reshape(total, len(ranges))
    found, start = {}, 0
    for name, node in discrete.items():
        mine = numbers[:, start : start + sizes[name]]
        found[name] = supports[name][mine].reshape(total, *node["fn"].batch_shape, *node["fn"].event_shape)
        start += sizes[name]
    return found, numbers


def _runs(
    guide: Any, data: tuple[Any, ...], sites: dict[str, Any], depth: int, given: list[dict[str, Tensor]]
) -> dict[str, Any]:
    """Runs of a guide, one for each given set of values: by site its values ``[runs, *shape]``, log q with weights and
    masks and log q without, ``[runs]`` each.

    They are one run in a plate of particles, unless data is missing, or no data depends on a site: that is drawn by the
    model itself, which need not take particles.
    """
    count = len(given)
    if any(name.startswith("x") or name not in guide.posterior() for name in sites):
        traces = [poutine.trace(poutine.condition(guide, values)).get_trace(*data) for values in given]
        parts = [{n: _scored(t.nodes[n], 1, s) for n, s in sites.items()} for t in _computed(traces)]
        return {n: tuple(torch.cat(column) for column in zip(*(p[n] for p in parts), strict=True)) for n in sites}
    stacked = {}
    for name in given[0]:
        lead = [1] * (depth - len(sites[name]["fn"].batch_shape))
        values = torch.stack([v[name] for v in given])
        stacked[name] = values.reshape(count, *lead, *values.shape[1:])
    with pyro.plate("particles", count, dim=-1 - depth):
        trace = poutine.trace(poutine.condition(guide, stacked)).get_trace(*data)
    (trace,) = _computed([trace])
    return {n: _scored(trace.nodes[n], count, s) for n, s in sites.items()}


def _computed(traces: list[Any]) -> list[Any]:
    for trace in traces:
        trace.compute_log_prob()
    return traces


def _scored(node: Any, count: int, site: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A site of a guide's trace: its values, log q as the trace has it, and log q without weights and masks."""
    plain = _unmasked(node["fn"]).log_prob(node["value"])
    value = node["value"].reshape(count, *site["value"].shape)
    return value, node["log_prob"].reshape(count, -1).sum(1), plain.reshape(count, -1).sum(1)


def _scores(
    model: Any,
    data: tuple[Any, ...],
    given: dict[str, Tensor],
    configs: dict[str, Tensor],
    missing: dict[str, Tensor],
    draws: int,
    count: int,
) -> Tensor:
    """log p ``[draws, configurations]`` by Pyro's own traces; where they have to be run one by one, of fewer draws."""

    def score(theta: dict[str, Tensor], z: dict[str, Tensor]) -> Tensor:
        trace = poutine.trace(poutine.condition(model, {**theta, **z, **missing})).get_trace(*data)
        nodes = [n for name, n in trace.nodes.items() if n["type"] == "sample" and name not in missing]
        trace.compute_log_prob(site_filter=lambda name, node: name not in missing)
        return sum((n["log_prob_sum"] for n in nodes), torch.zeros(()))

    def over_z(theta: dict[str, Tensor]) -> Tensor:
        return torch.vmap(lambda z: score(theta, z))(configs) if configs else score(theta, {})[None]

    try:
        with multinomials_without_writes(), bernoullis_of_integers():
            return torch.vmap(over_z)(given) if given else over_z({}).expand(draws, count)
    except (RuntimeError, ValueError, NotImplementedError):  # an operation that vmap lacks, or control flow
        draws = max(10, min(draws, ONE_BY_ONE // count)) if given else 2
        thetas = [{n: v[i] for n, v in given.items()} for i in range(draws if given else 1)]
        zs = [{n: v[i] for n, v in configs.items()} for i in range(count)]
        with bernoullis_of_integers():
            return torch.stack([torch.stack([score(t, z) for z in zs]) for t in thetas]).expand(draws, count)


@contextmanager
def _scored_by(kind: Any, log_prob: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
    """A distribution of torch with another way to compute its log density."""
    before = kind.log_prob
    kind.log_prob = log_prob
    try:
        yield
    finally:
        kind.log_prob = before


def multinomials_without_writes() -> AbstractContextManager[None]:
    """The log density of torch's Multinomial without the write in place that vmap refuses."""

    def log_prob(self: Any, value: Tensor) -> Tensor:
        logits = torch.where((value == 0) & (self.logits == -torch.inf), 0.0, self.logits)
        return (1 + value.sum(-1)).lgamma() - (1 + value).lgamma().sum(-1) + (logits * value).sum(-1)

    return _scored_by(torch.distributions.Multinomial, log_prob)


def bernoullis_of_integers() -> AbstractContextManager[None]:
    """The log density of torch's Bernoulli of integers too, which older torch refuses."""
    before = torch.distributions.Bernoulli.log_prob

    def log_prob(self: Any, value: Tensor) -> Tensor:
        return before(self, value.to(self.logits))

    return _scored_by(torch.distributions.Bernoulli, log_prob)


def _live(log_p: Tensor, discrete: dict[str, Any], numbers: Tensor) -> Tensor:
    """By configuration the number of the one whose dead elements, masked out and without effect, are zero."""
    index = {tuple(row): i for i, row in enumerate(numbers.tolist())}
    live, start = numbers.clone(), 0
    for node in discrete.values():
        shape = node["fn"].batch_shape
        for mask in _masks(node):
            for element in (~torch.as_tensor(mask).expand(shape)).reshape(-1).nonzero()[:, 0].tolist():
                reduced = numbers.clone()
                reduced[:, start + element] = 0
                same = torch.tensor([index[tuple(row)] for row in reduced.tolist()])
                if torch.allclose(log_p, log_p[:, same], equal_nan=True):
                    live[:, start + element] = 0
        start += math.prod(shape)
    return torch.tensor([index[tuple(row)] for row in live.tolist()])


def _marginals(
    posterior: dict[str, Any], discrete: dict[str, Any], numbers: Tensor, q: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """By site its posterior as the guide summarizes it, and as the sum of q(z), ``[values, elements]`` each."""
    found, start = {}, 0
    for name, node in discrete.items():
        size = math.prod(node["fn"].batch_shape)
        if name not in posterior:  # no data depends on it: it is drawn from the model
            start += size
            continue
        fn = _unmasked(posterior[name])
        support = node["fn"].enumerate_support()
        reported = fn.log_prob(support).exp().double().reshape(len(support), -1)
        mine = numbers[:, start : start + size]
        found[name] = reported, torch.stack([(q[:, None] * (mine == k)).sum(0) for k in range(len(support))])
        start += size
    return found


def _unmasked(fn: Any) -> Any:
    while type(fn).__name__ == "MaskedDistribution":
        fn = fn.base_dist
    return fn


def _masks(node: Any) -> list[Any]:
    found, fn = [node["mask"]], node["fn"]
    while hasattr(fn, "base_dist"):
        found.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return [m for m in found if m is not None]


def _which(values: dict[str, Tensor], configs: dict[str, Tensor], draws: int, count: int) -> Tensor:
    """The number of the configuration of each draw."""
    same = torch.ones(draws, count, dtype=torch.bool)
    for name, every in configs.items():
        same &= (values[name].reshape(draws, 1, -1) == every.reshape(1, count, -1)).all(-1)
    if not same.any(1).all():
        raise AssertionError("a draw of the guide is no value of its site")
    return same.long().argmax(1)


# Programs.


@dataclass(frozen=True)
class Axis:
    """A plate: its name, the size that the model sees, and its dimension."""

    name: str
    size: int
    dim: int


@dataclass(frozen=True)
class Variable:
    """A latent site of a program: what it is called there, its kind, plates, and (for discrete ones) its values.

    Kinds: ``real``, ``positive``, ``probability``, ``simplex``, ``vector``, ``matrix``, ``discrete``, ``one_hot``.
    """

    name: str
    kind: str
    plates: tuple[Axis, ...]
    size: int = 0
    is_float: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its batch shape."""
        depth = max((-p.dim for p in self.plates), default=0)
        sizes = {p.dim: p.size for p in self.plates}
        return tuple(sizes.get(d, 1) for d in range(-depth, 0))


class Writer:
    """Writes one program: :meth:`write` returns it.

    A program is a few plates, one to three continuous latents, up to two discrete ones (or a chain), and one to three
    observed sites whose arguments are random expressions of these. Whatever is drawn runs in Pyro; that it is
    conjugate is likely, not certain.
    """

    MAX_ELEMENTS = 6

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.body: list[str] = []
        self.data: list[str] = []
        self.variables: list[Variable] = []
        self.elements = 0
        self.observed = 0
        self.axes = self._axes()
        self.data_dtype = self.pick("torch.float64", "torch.float64", "torch.float64", "torch.float32")
        self.closure = self.flip(0.25)
        self.default = self.pick("torch.float64", "torch.float64", "torch.float64", "torch.float32")

    # Chance.

    def pick(self, *options: Any) -> Any:
        return self.chance.choice(options)

    def flip(self, probability: float) -> bool:
        return self.chance.random() < probability

    def number(self, low: float, high: float) -> str:
        return f"{self.chance.uniform(low, high):.2f}"

    def tensor(self, shape: Sequence[int], low: float, high: float, dtype: str = "") -> str:
        """A constant tensor as text."""
        return f"torch.tensor({self._nested(shape, lambda: self.number(low, high))}{dtype and ', dtype=' + dtype})"

    def _nested(self, shape: Sequence[int], entry: Callable[[], str]) -> str:
        if not shape:
            return entry()
        return "[" + ", ".join(self._nested(shape[1:], entry) for _ in range(shape[0])) + "]"

    def simplexes(self, shape: Sequence[int], size: int, zeros: bool = False) -> str:
        """Constant probabilities ``shape + (size,)`` as text; with ``zeros``, some are zero."""

        def row() -> str:
            weights = [self.chance.randint(1, 9) for _ in range(size)]
            if zeros and self.default == "torch.float64" and size > 1 and self.flip(0.6):
                weights[self.chance.randrange(size)] = 0
            return "[" + ", ".join(f"{w}/{sum(weights)}" for w in weights) + "]"

        return f"torch.tensor({self._nested(shape, row)})"

    # Plates.

    def _axes(self) -> list[Axis]:
        dims = self.pick([-1], [-1], [-1], [-2], [-1, -2], [-2, -1], [-1, -3], [-3, -1], [])
        axes = [Axis(name, self.pick(1, 2, 2, 3, 3), dim) for name, dim in zip("ab", dims, strict=False)]
        if len(axes) == 2 and self.flip(0.4):
            axes[1] = Axis("b", axes[0].size, axes[1].dim)
        for axis in axes:
            if self.flip(0.12):
                full = axis.size + self.chance.randint(1, 3)
                kept = sorted(self.chance.sample(range(full), axis.size))
                size = f"{full}, subsample=torch.tensor({kept})"
            else:
                size = f"{axis.size}"
            self.body.append(f'{axis.name} = pyro.plate("{axis.name}", {size}, dim={axis.dim})')
        return axes

    def some_plates(self) -> tuple[Axis, ...]:
        """A random subset of the data's plates."""
        return tuple(p for p in self.axes if self.flip(0.5))

    def site(self, name: str, distribution: str, plates: Sequence[Axis], *, obs: str = "", extra: str = "") -> None:
        """Write one sample statement, in its plates, under a mask or a scale now and then."""
        contexts = [p.name for p in plates]
        self.chance.shuffle(contexts)
        shape = Variable(name, "", tuple(plates)).shape
        # Without a prior the posterior of a precision can be degenerate: of a matrix, or of one datum in float32.
        narrow = "torch.float32" in (self.data_dtype, self.default)
        degenerate = "Wishart" in distribution or (narrow and not obs and "Gamma(" in distribution)
        if self.flip(0.1) and not degenerate:
            mask = f"torch.tensor({self._nested(shape, lambda: str(self.flip(0.6)))})"
            if self.flip(0.5):
                contexts.append(f"poutine.mask(mask={mask})")
            else:
                distribution = f"{distribution}.mask({mask})"
        if self.flip(0.08):
            contexts.append(f"poutine.scale(scale={self.pick('2.0', '0.5', '3')})")
        statement = f'{name} = pyro.sample("{name}", {distribution}{obs and ", obs=" + obs}{extra})'
        if contexts:
            self.body.append(f"with {', '.join(contexts)}:")
            statement = "    " + statement
        self.body.append(statement)

    # Latents.

    def continuous(self) -> None:
        """A continuous latent: in no plate, in some of the data's, or in one of its own to be indexed."""
        name = f"v{len(self.variables)}"
        plates = self.some_plates()
        if self.flip(0.6):
            own = Axis(f"k{len(self.variables)}", self.pick(1, 2, 2, 2, 3, 3), self.pick(-1, -1, -1, -2))
            self.body.append(f'{own.name} = pyro.plate("{own.name}", {own.size}, dim={own.dim})')
            plates = (own,)
            if own.dim == -2 and self.flip(0.5):
                second = Axis(f"j{len(self.variables)}", self.pick(2, 3), -1)
                self.body.append(f'{second.name} = pyro.plate("{second.name}", {second.size}, dim=-1)')
                plates = (own, second)
        kinds = ["real", "real", "real", "positive", "positive", "probability", "simplex"]
        kind = self.pick(*kinds, *(["vector", "matrix"] if self.default == self.data_dtype else []))
        size = self.pick(2, 2, 3) if kind in ("simplex", "vector", "matrix") else 0
        self.site(name, self._prior(kind, size, plates), plates)
        self.variables.append(Variable(name, kind, plates, size))

    def _prior(self, kind: str, size: int, plates: Sequence[Axis]) -> str:
        if kind == "real":
            return f"dist.Normal({self.location(plates, 1)}, {self.deviation(plates, 0.3)})"
        if kind == "positive":
            if self.flip(0.15):
                return f"dist.Exponential({self.number(0.5, 2)})"
            return f"dist.Gamma({self.number(0.8, 4)}, {self.rate(plates, 0.3)})"
        if kind == "probability":
            return f"dist.Beta({self.number(0.8, 4)}, {self.number(0.8, 4)})"
        if kind == "simplex":
            return f"dist.Dirichlet({self.tensor([size], 0.8, 4)})"
        if kind == "vector":
            scale = self.pick(self.number(0.5, 2), self.tensor([size], 0.5, 2))
            if self.flip(0.5):
                return f"dist.Normal({self.tensor([size], -1, 1)}, {scale}).to_event(1)"
            return f"dist.MultivariateNormal({self.tensor([size], -1, 1)}, {self.positive_definite(size)})"
        return f"dist.Wishart(torch.tensor({size + 1}.5), {self.positive_definite(size)})"

    def positive_definite(self, size: int) -> str:
        return f"({self.number(0.5, 1)} * torch.eye({size}) + {self.number(0.1, 0.4)})"

    def discrete(self) -> None:
        """A discrete latent, in plates, whose probabilities may hang on other latents."""
        name = f"z{len(self.variables)}"
        plates = self.some_plates()
        room = self.MAX_ELEMENTS - self.elements
        while math.prod(p.size for p in plates) > room and plates:
            plates = plates[1:]
        count = math.prod(p.size for p in plates)
        if count > room:
            return
        self.elements += count
        kind = self.pick("Bernoulli", "Bernoulli", "Categorical", "Categorical", "Categorical", "OneHotCategorical")
        size = 2 if kind == "Bernoulli" or count > 3 else self.pick(2, 2, 3)
        argument = self.probability(plates, 1) if kind == "Bernoulli" else self.simplex(plates, size, 1)
        marked = self.pick("", "", ', infer={"enumerate": "parallel"}')
        if self.flip(0.08) and kind != "OneHotCategorical":
            shape = Variable(name, "", plates).shape
            known = self._nested(shape, lambda: str(self.chance.randrange(2)))
            dtype = ", dtype=torch.get_default_dtype()" if kind == "Bernoulli" else ""
            marked += f", obs_mask=torch.tensor({self._nested(shape, lambda: str(self.flip(0.5)))})"
            self.site(name, f"dist.{kind}({argument})", plates, obs=f"torch.tensor({known}{dtype})", extra=marked)
        else:
            self.site(name, f"dist.{kind}({argument})", plates, extra=marked)
        kind = "one_hot" if kind == "OneHotCategorical" else "discrete"
        self.variables.append(Variable(name, kind, plates, size, is_float=marked == "x" or argument[:1] == "!"))
        if "Bernoulli(" in self.body[-1]:
            self.variables[-1] = Variable(name, kind, plates, size, is_float=True)

    def chain(self) -> None:
        """A hidden Markov model of three steps, with or without a plate: of the first order or the second, and with a
        second discrete site at each step or not.
        """
        plates = tuple(p for p in self.axes if p.size <= 2)[: self.pick(0, 1)]
        order, size = self.pick(1, 1, 1, 2), self.pick(2, 2, 3)
        leaf = self.flip(0.25) and size == 2
        if size ** ((3 + 3 * leaf) * math.prod(p.size for p in plates)) > 256:
            plates = ()
        self.elements = self.MAX_ELEMENTS
        found = self.candidates("simplex", size=size)
        rows = [v.name for v in found if v.shape == (size,)] if order == 1 else []
        table = self.simplexes([size] * order, size, zeros=self.flip(0.5))
        means = [v.name for v in self.variables if v.kind == "real" and v.shape == (size,)]
        self.body.append(f"table = {self.pick(*rows, table)}")
        self.body.append(f"means = {self.pick(*means) if means else self.tensor([size], -2, 2)}")
        self.body.append(f"state = before = {self.chance.randrange(size)}")
        shape = Variable("", "", plates).shape
        self.body.append(f"for t in pyro.markov(range(3){', history=2' if order == 2 else ''}):")
        indent = "    "
        if plates:
            mask = f", poutine.mask(mask=torch.tensor({self._nested(shape, lambda: str(self.pick(1, 2, 3)))}) > t)"
            self.body.append(f"    with {', '.join(p.name for p in plates)}{mask if self.flip(0.3) else ''}:")
            indent = "        "
        data = self.observations([3, *shape], -2, 2)
        index = "state" if order == 1 else "before, state"
        step = [
            f'before, state = state, pyro.sample(f"h{{t}}", dist.Categorical(Vindex(table)[{index}]))',
            f'pyro.sample(f"y{{t}}", dist.Normal({self.pick("", "0.5 * ")}means[state], 1.0), obs={data}[t])',
        ]
        if leaf:
            step[1:] = [
                f'leaf = pyro.sample(f"l{{t}}", dist.Bernoulli({self.tensor([2], 0.1, 0.9)}[state]))',
                f'pyro.sample(f"y{{t}}", dist.Normal(means[leaf.long()], 1.0), obs={data}[t])',
            ]
        self.body += [indent + line for line in step]

    def loop(self) -> None:
        """A sequential plate, with a discrete site and an observed one in each round."""
        found = self.candidates("real")
        means = [v.name for v in found if v.shape == (2,)]
        self.elements += 2
        data = self.observations([2], -2, 2)
        self.body.append('for i in pyro.plate("s", 2):')
        self.body.append(f'    r = pyro.sample(f"r{{i}}", dist.Bernoulli({self.probability((), 1)}))')
        mean = f"{self.pick(*means)}[r.long()]" if means else f"({self.number(-1, 1)} + r)"
        self.body.append(f'    pyro.sample(f"y{{i}}_", dist.Normal({mean}, 1.0), obs={data}[i])')

    # Expressions.

    def candidates(self, *kinds: str, size: int | None = None) -> list[Variable]:
        return [v for v in self.variables if v.kind in kinds and (size is None or v.size == size)]

    def read(self, variable: Variable, plates: Sequence[Axis]) -> str | None:
        """A variable, seen from within some plates: as it is, or through an index."""
        name = variable.name
        foreign = [p for p in variable.plates if p not in plates]
        if not foreign:
            return name
        event = variable.kind in ("simplex", "vector", "matrix")
        if len(variable.plates) == 1 and foreign[0].dim == -1:
            index = self.index(foreign[0].size, plates)
            forms = [f"{name}[{index}]"] * 3
            if not event:
                forms += [f"Vindex({name})[..., {index}]", f"{name}[..., {index}]"]
            if variable.kind == "real":
                forms += [f"{name}.sum(-1)", f"{name}.sum(0)", f"{name}.mean()"]
            return self.pick(*forms)
        if len(variable.plates) == 1 and foreign[0].dim == -2:
            index = self.index(foreign[0].size, plates)
            forms = [f"{name}[{index}, 0]", f"{name}.squeeze(1)[{index}]", f"{name}[:, 0][{index}]"]
            return self.pick(*forms)
        if len(foreign) == 2 and (foreign[0].dim, foreign[1].dim) == (-2, -1):
            first, second = self.index(foreign[0].size, plates), self.index(foreign[1].size, plates)
            number = self.chance.randrange(foreign[1].size)
            forms = [
                f"{name}[{first}, {second}]",
                f"Vindex({name})[{first}, {second}]",
                f"{name}[:, {number}][{first}]",
            ]
            if not event:
                forms.append(f"{name}[{first}][..., {number}]")
            return self.pick(*forms)
        return None

    def index(self, size: int, plates: Sequence[Axis]) -> str:
        """An index below ``size`` that broadcasts over plates: a number, a constant tensor, or discrete latents."""
        found = [v for v in self.candidates("discrete") if v.size <= size]
        if found and self.flip(0.75):
            text = self.whole(self.pick(*found), plates)
            if text is not None:
                return text
        shape = Variable("", "", tuple(plates)).shape
        if shape and self.flip(0.6):
            return f"torch.tensor({self._nested(shape, lambda: str(self.chance.randrange(size)))})"
        return str(self.chance.randrange(size))

    def value(self, z: Variable, plates: Sequence[Axis]) -> str | None:
        """A discrete latent, seen from within some plates, with its own dtype."""
        if z.kind == "one_hot":
            return None if any(p not in plates for p in z.plates) else f"{z.name}[..., {self.chance.randrange(z.size)}]"
        foreign = [p for p in z.plates if p not in plates]
        if not foreign:
            return z.name
        if len(z.plates) > 1:
            return None
        size = foreign[0].size
        numbers = [str(self.chance.randrange(size)) for _ in range(2)]
        tail = ", 0" * (-1 - foreign[0].dim)
        forms = [f"{z.name}[{numbers[0]}{tail}]"] * 2
        shape = Variable("", "", tuple(plates)).shape
        if shape:
            forms += [
                f"{z.name}[torch.tensor({self._nested(shape, lambda: str(self.chance.randrange(size)))}){tail}]"
            ] * 3
        if z.size == 2 and size > 1:
            i, j = self.chance.sample(range(size), 2)
            forms.append(f"({z.name}[{i}{tail}] * {z.name}[{j}{tail}])")
            if z.is_float:
                forms.append(f"(1 - {z.name}[{i}{tail}])")
        return self.pick(*forms)

    def whole(self, z: Variable, plates: Sequence[Axis]) -> str | None:
        """The same as an integer."""
        text = self.value(z, plates)
        return f"{text}.long()" if text is not None and z.is_float else text

    def condition(self, plates: Sequence[Axis]) -> str | None:
        """A comparison of discrete latents."""
        found = [(z, self.value(z, plates)) for z in self.candidates("discrete", "one_hot")]
        found = [(z, text) for z, text in found if text is not None]
        if not found:
            return None
        z, text = self.pick(*found)
        forms = [f"{text} > 0", f"{text} == {self.chance.randrange(z.size)}", f"{text} != 1", f"{text} < 1"]
        if len(found) > 1:
            forms += [f"{found[0][1]} == {found[1][1]}", f"({found[0][1]} > 0) & ({found[1][1]} == 0)"]
        return self.pick(*forms)

    def gate(self, plates: Sequence[Axis]) -> str | None:
        """A number from discrete latents: 0 or 1, a sum of them, an entry of a table."""
        found = [(z, self.value(z, plates)) for z in self.candidates("discrete")]
        found = [(z, text) for z, text in found if text is not None]
        if not found:
            return None
        z, text = self.pick(*found)
        whole = f"{text}.long()" if z.is_float else text
        forms = [text, text, f"{self.tensor([z.size], -2, 2)}[{whole}]"]
        foreign = [p for p in z.plates if p not in plates]
        if foreign and len(z.plates) == 1:
            forms += [
                f"{z.name}.sum()",
                f"{z.name}.sum()",
                f"{z.name}.sum({foreign[0].dim})" if foreign[0].dim == -1 else text,
            ]
        if z.size == 2:
            forms.append(f"(1 - {text})")
        if len(found) > 1:
            forms += [
                f"({found[0][1]} + {found[1][1]})",
                f"({found[0][1]} * {found[1][1]})",
                f"({found[0][1]} - 2.0 * {found[1][1]})",
            ]
        comparison = self.condition(plates)
        if comparison:
            forms.append(f"({comparison}).to(torch.get_default_dtype())")
        return self.pick(*forms)

    def location(self, plates: Sequence[Axis], depth: int) -> str:
        """A real number, linear in each continuous latent; never an integer, for torch would round the scale too."""
        text = self._location(plates, depth)
        return text if "v" in text.replace("Vindex", "") or not re.search(r"z\d", text) else f"1.0 * {text}"

    def _location(self, plates: Sequence[Axis], depth: int) -> str:
        if depth == 0 or self.flip(0.1):
            return self.pick(self.number(-1, 1), "0.0", self.number(-1, 1))
        leaves = self.reals(plates)
        gate, pairs, hots = self.gate(plates), self.pairs(plates), self.of_one_hot(plates)
        if pairs and self.flip(0.5):
            return pairs
        forms = [*leaves * 3, *hots * 2]
        if leaves:
            forms += self.linear(leaves, gate, plates)
        if gate:
            forms += [gate, gate, f"({self.number(-1, 1)} + {self.number(-2, 2)} * {gate})"]
        return self.pick(*forms) if forms else self.number(-1, 1)

    def reals(self, plates: Sequence[Axis]) -> list[str]:
        """Numbers that are continuous latents, or linear in a vector of them."""
        leaves = [text for v in self.candidates("real") if (text := self.read(v, plates)) is not None]
        for v in self.candidates("vector"):
            if (text := self.read(v, plates)) is not None:
                leaves.append(f"({text} * {self.tensor([v.size], -1, 1)}).sum(-1)")
                leaves.append(f"{text}[..., {self.chance.randrange(v.size)}]")
                if not v.plates and len(plates) == 1 and plates[0].dim == -1:
                    leaves += [f"{self.tensor([plates[0].size, v.size], -1, 1)} @ {text}"] * 3
        return leaves

    def linear(self, leaves: list[str], gate: str | None, plates: Sequence[Axis]) -> list[str]:
        """Expressions that are linear in each of the leaves."""
        leaf, other, constant = self.pick(*leaves), self.pick(*leaves), self.number(-2, 2)
        whole = self.pick("1", "2", "torch.tensor(2)", "torch.tensor(1)", "torch.tensor(True)")
        forms = [f"{constant} * {leaf}", f"({leaf} + {constant})", f"({constant} - {leaf})", f"({leaf} - {other})"]
        forms += [f"({leaf} + {other})", f"{leaf} / 2", f"-{leaf}"]
        forms.append(f"({whole} {'*' if 'True' in whole else self.pick('*', '+', '-')} {leaf} + 0.5)")
        names = {name for name in re.findall(r"\bv\d", leaf)}
        others = [text for text in leaves if not names & set(re.findall(r"\bv\d", text))]
        if others:
            forms += [f"{leaf} * {self.pick(*others)}"] * 4
        shape = Variable("", "", tuple(plates)).shape
        if shape:
            forms.append(f"{self.tensor(shape, -2, 2)} * {leaf}")
            forms.append(f"torch.tensor({self._nested(shape, lambda: str(self.chance.randint(-2, 2)))}) * {leaf}")
            forms.append(f"torch.tensor({self._nested(shape, lambda: str(self.flip(0.5)))}) * {leaf}")
        if gate:
            forms += [f"{gate} * {leaf}"] * 2 + [f"({leaf} + {gate})"] * 2
        comparison = self.condition(plates)
        if comparison:
            forms += [f"torch.where({comparison}, {leaf}, {self.pick(other, f'torch.tensor({constant})')})"] * 2
        return forms

    def of_one_hot(self, plates: Sequence[Axis]) -> list[str]:
        """Numbers from one-hot values: an entry, a weighted sum, a choice among latents."""
        forms = []
        for v in self.candidates("one_hot"):
            if all(p in plates for p in v.plates):
                means = [m.name for m in self.candidates("real") if m.shape == (v.size,)]
                forms += [f"({v.name} * {self.tensor([v.size], -2, 2)}).sum(-1)", f"{v.name}[..., 0]"]
                forms += [f"{v.name} @ {mean}" for mean in means if self.default == self.data_dtype]
        for v in self.candidates("discrete"):
            means = [m.name for m in self.candidates("real") if m.shape == (v.size,)]
            if means and all(p in plates for p in v.plates):
                whole = f"{v.name}.long()" if v.is_float else v.name
                forms.append(f"F.one_hot({whole}, {v.size}).to({means[0]}.dtype) @ {means[0]}")
        return forms

    def pairs(self, plates: Sequence[Axis]) -> str | None:
        """A table read at pairs of elements of one discrete latent, as in a stochastic block model."""
        if len(plates) != 2 or {p.dim for p in plates} != {-1, -2}:
            return None
        shape = Variable("", "", tuple(plates)).shape
        for z in self.candidates("discrete"):
            if z.shape == (shape[0],) == (shape[1],) and z.plates[0].size > 1:
                whole = f"{z.name}.long()" if z.is_float else z.name
                tables = [v.name for v in self.candidates("real") if v.shape == (z.size, z.size)]
                table = self.pick(*tables) if tables else self.tensor([z.size, z.size], -2, 2)
                form = self.pick("{z}.unsqueeze(-1), {z}", "{z}[:, None], {z}[None, :]", "{z}[:, None], {z}[None]")
                return f"{table}[{form.format(z=whole)}]"
        return None

    def deviation(self, plates: Sequence[Axis], chance: float) -> str:
        """A standard deviation."""
        leaves = [text for v in self.candidates("positive") if (text := self.read(v, plates)) is not None]
        if leaves and self.flip(chance):
            leaf = self.pick(*leaves)
            return self.pick(
                f"{leaf}.rsqrt()", f"{leaf}.rsqrt()", f"({self.number(0.3, 3)} * {leaf}).rsqrt()", f"{leaf} ** -0.5"
            )
        comparison = self.condition(plates)
        if comparison and self.flip(0.3):
            return (
                f"torch.where({comparison}, torch.tensor({self.number(0.5, 2)}), torch.tensor({self.number(0.5, 2)}))"
            )
        return self.number(0.5, 2)

    def rate(self, plates: Sequence[Axis], chance: float) -> str:
        """A positive number that a Gamma is conjugate to."""
        leaves = [text for v in self.candidates("positive") if (text := self.read(v, plates)) is not None]
        found = [(z, self.value(z, plates)) for z in self.candidates("discrete")]
        tables = [f"{self.tensor([z.size], 0.3, 3)}[{t}{'.long()' if z.is_float else ''}]" for z, t in found if t]
        if leaves and self.flip(chance):
            leaf, other = self.pick(*leaves), self.pick(*leaves)
            forms = [leaf, leaf, f"{self.number(0.3, 3)} * {leaf}", f"{self.pick('2', 'torch.tensor(2)')} * {leaf}"]
            if leaf.split("[")[0] != other.split("[")[0]:
                forms.append(f"{leaf} * {other}")
            forms += [f"{table} * {leaf}" for table in tables]
            comparison = self.condition(plates)
            if comparison:
                forms += [f"torch.where({comparison}, {leaf}, {other})"] * 2
            return self.pick(*forms)
        return self.pick(*tables) if tables and self.flip(0.6) else self.number(0.3, 3)

    def probability(self, plates: Sequence[Axis], depth: int) -> str:
        """A number between 0 and 1 that a Beta is conjugate to."""
        leaves = [text for v in self.candidates("probability") if (text := self.read(v, plates)) is not None]
        found = [(z, self.value(z, plates)) for z in self.candidates("discrete")]
        tables = [f"{self.tensor([z.size], 0.05, 0.95)}[{t}{'.long()' if z.is_float else ''}]" for z, t in found if t]
        gates = [t for z, t in found if t and z.size == 2 and z.is_float]
        forms = [*tables * 2, *[f"({self.number(0.1, 0.3)} + {self.number(0.2, 0.6)} * {t})" for t in gates]]
        if self.default == "torch.float64":  # zeros: in float32, Pyro's own clamp is not far enough from -inf
            forms += [f"({self.number(0.2, 0.9)} * {t})" for t in gates]
        forms += (
            leaves * 3
            + [f"(1 - {leaf})" for leaf in leaves]
            + ([f"{t} * {leaf}" for t in gates for leaf in leaves[:1]] if self.default == "torch.float64" else [])
        )
        comparison = self.condition(plates)
        if comparison and leaves:
            forms += [f"torch.where({comparison}, {self.pick(*leaves)}, {self.pick(*leaves)})"] * 2
        if comparison:
            low = "0.0" if self.default == "torch.float64" and self.flip(0.5) else self.number(0.1, 0.4)
            forms.append(f"torch.where({comparison}, torch.tensor({self.number(0.5, 0.9)}), torch.tensor({low}))")
        return self.pick(*forms) if forms and depth and self.flip(0.85) else self.number(0.1, 0.9)

    def simplex(self, plates: Sequence[Axis], size: int, depth: int) -> str:
        """Probabilities that a Dirichlet is conjugate to."""
        leaves = [t for v in self.candidates("simplex", size=size) if (t := self.read(v, plates)) is not None]
        forms = leaves * 3
        for z in self.candidates("discrete"):
            if (text := self.whole(z, plates)) is not None:
                zeros = self.flip(0.25)
                forms.append(f"{self.simplexes([z.size], size, zeros)}[{text}]")
                forms.append(f"Vindex({self.simplexes([z.size, 2], size)})[{text}, {self.chance.randrange(2)}]")
                forms.append(f"{self.simplexes([z.size, 2], size)}[{text}][..., {self.chance.randrange(2)}, :]")
        two = [v for v in self.candidates("probability") if not [p for p in v.plates if p not in plates]]
        if size == 2 and two:
            forms.append(f"torch.stack([1 - {two[0].name}, {two[0].name}], -1)")
        return self.pick(*forms) if forms and depth and self.flip(0.85) else self.simplexes([], size, self.flip(0.1))

    # Observed sites.

    def observations(self, shape: Sequence[int], low: float, high: float) -> str:
        """Real data, by name or in place."""
        return self._datum(self.tensor(shape, low, high, self.data_dtype))

    def _datum(self, text: str) -> str:
        if self.closure:
            return text
        self.data.append(text)
        return f"data{len(self.data) - 1}"

    def counts(self, shape: Sequence[int], high: int) -> str:
        """Counts, as integers or floats."""
        dtype = self.pick(self.data_dtype, self.data_dtype, "torch.long")
        return self._datum(
            f"torch.tensor({self._nested(shape, lambda: str(self.chance.randint(0, high)))}, dtype={dtype})"
        )

    def likelihood(self) -> None:
        """An observed site, in all or some of the data's plates."""
        plates = tuple(self.axes) if self.flip(0.75) else self.some_plates()
        shape = list(Variable("", "", plates).shape)
        name = f"x{self.observed}"
        self.observed += 1
        extra = ""
        options = ["normal"] * 4
        kinds = {v.kind for v in self.variables}
        if "positive" in kinds:
            options += ["poisson", "exponential", "gamma"]
        if kinds & {"probability", "discrete"}:
            options += ["bernoulli", "binomial", "poisson", "categorical"]
        if "simplex" in kinds:
            options += ["categorical", "multinomial", "one_hot"]
        if kinds & {"vector", "matrix"}:
            options += ["vector"] * 3
        kind = self.pick(*options)
        size = next((v.size for v in self.variables if v.kind == ("simplex" if kind != "vector" else "matrix")), 2)
        if kind == "normal":
            fn, obs = (
                f"dist.Normal({self.location(plates, 1)}, {self.deviation(plates, 0.6)})",
                self.observations(shape, -2, 2),
            )
            if shape and self.elements <= 3 and self.flip(0.07):
                extra = f", obs_mask=torch.tensor({self._nested(shape, lambda: str(self.flip(0.6)))})"
        elif kind == "poisson":
            fn, obs = f"dist.Poisson({self.rate(plates, 0.9)})", self.counts(shape, 4)
        elif kind == "exponential":
            fn, obs = f"dist.Exponential({self.rate(plates, 0.9)})", self.observations(shape, 0.2, 3)
        elif kind == "gamma":
            fn, obs = f"dist.Gamma({self.number(0.5, 3)}, {self.rate(plates, 0.9)})", self.observations(shape, 0.2, 3)
        elif kind == "bernoulli":
            fn, obs = f"dist.Bernoulli({self.probability(plates, 1)})", self.counts(shape, 1)
        elif kind == "binomial":
            fn, obs = f"dist.Binomial(4, {self.probability(plates, 1)})", self.counts(shape, 4)
        elif kind == "categorical":
            fn, obs = f"dist.Categorical({self.simplex(plates, size, 1)})", self._labels(shape, size)
        elif kind == "one_hot":
            rows = self._nested(shape, lambda: str([float(i == 0) for i in self.chance.sample(range(size), size)]))
            fn, obs = f"dist.OneHotCategorical({self.simplex(plates, size, 1)})", self._datum(f"torch.tensor({rows})")
        elif kind == "multinomial":
            rows = self._nested(shape, lambda: str(self._split(4, size)))
            fn = f"dist.Multinomial(4, probs={self.simplex(plates, size, 1)})"
            obs = self._datum(f"torch.tensor({rows}, dtype={self.data_dtype})")
        else:
            fn, obs = self._vector(plates, size, shape)
        self.site(name, fn, plates, obs=obs, extra=extra)

    def _labels(self, shape: Sequence[int], size: int) -> str:
        return self._datum(f"torch.tensor({self._nested(shape, lambda: str(self.chance.randrange(size)))})")

    def _split(self, total: int, size: int) -> list[int]:
        counts = [0] * size
        for _ in range(total):
            counts[self.chance.randrange(size)] += 1
        return counts

    def _vector(self, plates: Sequence[Axis], size: int, shape: list[int]) -> tuple[str, str]:
        """A multivariate normal, or a normal with an event dimension."""
        matrices = [t for v in self.candidates("matrix", size=size) if (t := self.read(v, plates)) is not None]
        if not matrices:
            size = next((v.size for v in self.variables if v.kind == "vector"), 2)
        locations = [t for v in self.candidates("vector", size=size) if (t := self.read(v, plates)) is not None]
        location = self.pick(*locations) if locations and self.flip(0.8) else self.tensor([size], -1, 1)
        obs = self.observations([*shape, size], -2, 2)
        if matrices:
            return f"dist.MultivariateNormal({location}, precision_matrix={self.pick(*matrices)})", obs
        if self.flip(0.5):
            return f"dist.MultivariateNormal({location}, {self.positive_definite(size)})", obs
        deviation = self.deviation(plates, 0.6)
        spread = f"({deviation}).unsqueeze(-1)" if not deviation[0].isdigit() else deviation
        return f"dist.Normal({location}, {spread}).to_event(1)", obs

    # Programs.

    def write(self) -> RandomProgram:
        """The whole program."""
        latents = [self.continuous] * self.pick(0, 1, 1, 2, 2) + [self.discrete] * self.pick(0, 1, 1, 1, 2, 2)
        if self.flip(0.3):
            self.chance.shuffle(latents)
        if self.flip(0.12):
            latents.insert(0, self.chain)
        elif self.flip(0.08):
            latents.insert(0, self.loop)
        if self.flip(0.3) or not latents:
            latents.append(self.continuous)
        for latent in latents:
            latent()
            if self.flip(0.1):
                self.likelihood()
        for _ in range(self.pick(1, 1, 2)):
            self.likelihood()
        names = ", ".join(f"data{i}" for i in range(len(self.data)))
        lines = "\n".join(f"    {line}" for line in self.body)
        tuple_ = ", ".join(self.data) + ("," if len(self.data) == 1 else "")
        source = f"data = ({tuple_})\n\n\ndef model({names}):\n{lines}\n"
        return RandomProgram(source, getattr(torch, self.default.removeprefix("torch.")))


def program(seed: int) -> RandomProgram:
    """The random program of a seed."""
    return Writer(seed).write()


#: Makes the program of a seed.
Maker = Callable[[int], RandomProgram]
#: So many seeds are a test.
CHUNK = 10


@functools.cache
def outcome(make: Maker, seed: int) -> Outcome:
    """What becomes of the program of a seed."""
    return check(make(seed))


def assert_right(make: Maker, seeds: range) -> None:
    """Every program is answered rightly, or refused with the library's own error."""
    name, wrong = make.__name__, [seed for seed in seeds if outcome(make, seed).faults]
    told = "\n\n".join("\n".join([f"{name}({s}):\n{make(s)}", *outcome(make, s).faults]) for s in wrong)
    assert not wrong, f"{len(wrong)} of {len(seeds)} programs are answered wrongly, seeds {wrong}:\n\n{told}"


def chunks(first: int, count: int) -> list[range]:
    """The seeds by tens."""
    return [range(start, start + CHUNK) for start in range(first, first + count, CHUNK)]
