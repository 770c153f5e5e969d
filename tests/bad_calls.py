"""Calls of the public interface with arguments of every kind: a target makes one call of arguments that it asks for,
and each is the good one that it names or, at times, something else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse as sp
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import _PYRO_STACK
from shared_models import batch_mixture, gaussian, regression
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate, Gibbs, RobbinsMonro, check_updates, to_arviz
from pyro_latent.checkpoint import random_state
from pyro_latent.criticism import calibrate, compare, evidence, importance_sampling, naive_monte_carlo, pareto_k, score
from pyro_latent.gradient.flows import FlowDensity, FlowGuide
from pyro_latent.gradient.monte_carlo_em import MonteCarloEM
from pyro_latent.models import gmm, normal_gamma, vae
from pyro_latent.models.lda import LDA, as_corpus

pd = pytest.importorskip("pandas")

Make = Callable[[], Any]


def _data(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 1


#: Data that a model may be given, in and out of its place.
DATA: dict[str, Make] = {
    "float64 [6]": lambda: _data(6),
    "float64 [8]": lambda: _data(8),
    "float64 [6, 2]": lambda: _data(6, 2),
    "float64 [2, 3, 2]": lambda: _data(2, 3, 2),
    "float64 []": lambda: _data(),
    "float64 [0]": lambda: _data(0),
    "float64 [0, 2]": lambda: _data(0, 2),
    "float64 [6, 0]": lambda: _data(6, 0),
    "float64 [1]": lambda: _data(1),
    "float32 [6]": lambda: _data(6).float(),
    "float32 [6, 2]": lambda: _data(6, 2).float(),
    "float16 [6]": lambda: _data(6).half(),
    "bfloat16 [6, 2]": lambda: _data(6, 2).bfloat16(),
    "complex [6]": lambda: _data(6) + 1j,
    "complex [6, 2]": lambda: _data(6, 2) + 1j,
    "int64 [6]": lambda: torch.arange(6),
    "int64 [6, 2]": lambda: torch.arange(12).reshape(6, 2),
    "bool [6]": lambda: torch.arange(6) > 2,
    "one NaN": lambda: torch.cat([_data(5), torch.tensor([math.nan]).double()]),
    "one NaN [6, 2]": lambda: torch.cat([_data(5, 2), torch.full((1, 2), math.nan).double()]),
    "infinity": lambda: torch.cat([_data(5), torch.tensor([math.inf]).double()]),
    "all NaN": lambda: torch.full((6,), math.nan, dtype=torch.float64),
    "negative [6, 2]": lambda: -_data(6, 2).abs(),
    "constant": lambda: torch.full((6,), 3.0, dtype=torch.float64),
    "huge": lambda: 1e200 * _data(6),
    "tiny": lambda: 1e-200 * _data(6, 2),
    "meta": lambda: torch.empty(6, device="meta"),
    "meta [6, 2]": lambda: torch.empty(6, 2, device="meta", dtype=torch.float64),
    "sparse": lambda: torch.eye(6, dtype=torch.float64).to_sparse(),
    "sparse rows": lambda: torch.eye(6, dtype=torch.float64)[:, :2].to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([_data(2), _data(3)]),
    "quantized": lambda: torch.quantize_per_tensor(_data(6).float(), 0.1, 0, torch.qint8),
    "needs gradients": lambda: _data(6).requires_grad_(),
    "strided": lambda: _data(12)[::2],
    "expanded": lambda: _data(1).expand(6),
    "parameter": lambda: torch.nn.Parameter(_data(6)),
    "NumPy": lambda: _data(6).numpy(),
    "NumPy [6, 2]": lambda: _data(6, 2).numpy(),
    "NumPy of objects": lambda: np.array([1, "a", None], dtype=object),
    "NumPy scalar": lambda: np.float64(1.5),
    "series": lambda: pd.Series(_data(6).numpy()),
    "frame": lambda: pd.DataFrame(_data(6, 2).numpy(), columns=["a", "b"]),
    "frame of counts": lambda: pd.DataFrame({"a": [1, 0], "b": [2, 1], "c": [0, 3]}),
    "SciPy": lambda: sp.csr_matrix(np.eye(6)),
    "SciPy array": lambda: sp.coo_array(np.arange(6).reshape(2, 3)),
    "list": lambda: [1.0, 2.0, 3.0],
    "list of lists": lambda: [[1, 2], [0, 1]],
    "ragged": lambda: [[1], [2, 3]],
    "words": lambda: [["a", "b"], ["b"]],
    "text": lambda: "abc",
    "bytes": lambda: b"abc",
    "dict": lambda: {"x": 1},
    "set": lambda: {1, 2},
    "iterator": lambda: iter([1, 2]),
    "empty list": list,
    "empty tuple": tuple,
}
#: Values of settings, good ones of some among them.
SETTINGS: dict[str, Make] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "1": lambda: 1,
    "2": lambda: 2,
    "3": lambda: 3,
    "-1": lambda: -1,
    "2**70": lambda: 2**70,
    "0.5": lambda: 0.5,
    "1.0": lambda: 1.0,
    "1e-3": lambda: 1e-3,
    "-0.5": lambda: -0.5,
    "NaN": lambda: math.nan,
    "inf": lambda: math.inf,
    "complex": lambda: 1j,
    "Fraction": lambda: Fraction(1, 2),
    "NumPy int": lambda: np.int64(2),
    "NumPy float": lambda: np.float32(0.5),
    "a": lambda: "a",
    "mu": lambda: "mu",
    "empty text": lambda: "",
    "list of text": lambda: ["mu", "nobody"],
    "nested list": lambda: [[1], ["mu"]],
    "tuple": lambda: (1, 2),
    "dict": lambda: {"mu": 1.0},
    "dict of None": lambda: {"mu": None, "nobody": 3},
    "dict of arrays": lambda: {"mu": np.zeros(3), "x": np.eye(2)},
    "dict of distributions": lambda: {"mu": dist.Normal(0.0, 1.0), 3: dist.Gamma(-1.0, 1.0, validate_args=False)},
    "function": lambda: len,
    "function of nothing": lambda: lambda: None,
    "function of all": lambda: lambda *args, **kwargs: None,
    "class": lambda: Arguments,
    "object": object,
    "path": lambda: Path("/nowhere/at/all"),
    "distribution": lambda: dist.Normal(0.0, 1.0),
    "generator": lambda: torch.Generator().manual_seed(0),
    "dtype": lambda: torch.float64,
    "half": lambda: torch.float16,
    "device": lambda: torch.device("cpu"),
    "meta device": lambda: "meta",
}
_BOTH = DATA | SETTINGS


class Arguments:
    """What a target asks for: the good value, or, at times, one of another kind; what was given is remembered."""

    def __init__(self, seed: int, odds: float = 0.35) -> None:
        self._random = random.Random(seed)
        self._odds = odds
        self.given: list[str] = []
        self.guide: AutoConjugate | None = None
        #: The guide's state, the parameter store and the random states before the call.
        self.before: dict[str, Any] = {}
        self.store: dict[str, Any] = {}
        self.random: dict[str, Any] = {}

    def settled(self) -> None:
        """What a call that fails must leave alone is as it is now: calls before it have gone well."""
        self.before, self.store, self.random = _state(self.guide), _store(), _random()

    def data(self, good: Any) -> Any:
        """Something in the place of data."""
        return self._one(good, DATA if self._random.random() < 0.8 else SETTINGS)

    def setting(self, good: Any) -> Any:
        """Something in the place of a setting."""
        return self._one(good, SETTINGS if self._random.random() < 0.8 else DATA)

    def choice(self, options: list[Any]) -> Any:
        """One of several good values."""
        return self._random.choice(options)

    def _one(self, good: Any, others: dict[str, Make]) -> Any:
        if self._random.random() > self._odds:
            return good
        name = self._random.choice(list(others))
        self.given.append(name)
        return others[name]()


# Models.


def mixture(x: Tensor) -> None:
    batch_mixture(x, k=2, width=3.0)


def linear(x: Tensor) -> None:
    regression(x, x[:, 0], width=3.0)


def with_param(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def rows(x: Tensor, size: int = 6) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("data", size, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


_LINE, _PLANE = _data(6), _data(6, 2)
_COUNTS = torch.tensor([[3, 0, 1], [0, 2, 2], [1, 1, 0]])


def _guide(a: Arguments, model: Any = gaussian, data: Any = _LINE) -> AutoConjugate:
    """A guide, fitted or new, that a call leaves alone if it fails."""
    a.guide = AutoConjugate(model)
    if a.choice([True, False]):
        CAVI(model, a.guide).run(data, max_steps=1)
    a.settled()
    return a.guide


def _callback(a: Arguments) -> Any:
    """A callback, by which steps that went well are seen; but no distribution, which raises an error of its own."""

    def good(step: int, elbo: float) -> None:
        a.settled()

    found = a.setting(good)
    return good if found is None or isinstance(found, dist.Distribution) else found


# Targets.


def new_guide(a: Arguments) -> None:
    model, data = a.choice([(gaussian, _LINE), (mixture, _LINE), (linear, _PLANE), (with_param, _LINE)])
    guide = AutoConjugate(
        a.setting(model),
        blocks=a.setting(None),
        init=a.setting(None),
        restarts=a.setting(1),
        point=a.setting(()),
        mean_field=a.setting(()),
    )
    CAVI(guide.model, guide).run(data, max_steps=2)


def starts(a: Arguments) -> None:
    model, names = a.choice([(gaussian, ["mu", "tau"]), (mixture, ["mean", "z", "weights"])])
    AutoConjugate(model, init={a.choice(names): a.choice([a.data, a.setting])(1.0)}).elbo(_LINE)


def guide_call(a: Arguments) -> None:
    model, data = a.choice([(gaussian, _LINE), (mixture, _LINE), (linear, _PLANE), (with_param, _LINE)])
    guide = _guide(a, model, data)
    method = a.choice(["__call__", "posterior", "median", "elbo", "elbo_terms", "explain"])
    getattr(guide, method)(a.data(data))


def quantiles(a: Arguments) -> None:
    _guide(a).quantiles(a.setting([0.1, 0.9]), a.data(_LINE))


def guide_state(a: Arguments) -> None:
    _guide(a).load_state_dict(a.setting(AutoConjugate(gaussian).state_dict()))


def cavi(a: Arguments) -> None:
    guide = _guide(a)
    CAVI(
        a.setting(gaussian),
        a.setting(guide),
        order=a.setting(None),
        local_steps=a.setting(None),
        local_tol=a.setting(None),
        step_size=a.setting(None),
        memoised=a.setting(False),
        structured=a.setting(0),
    ).run(_LINE, max_steps=2)


def cavi_step(a: Arguments) -> None:
    model, data = a.choice([(gaussian, _LINE), (mixture, _LINE), (linear, _PLANE), (with_param, _LINE)])
    CAVI(model, _guide(a, model, data)).step(a.data(data))


def cavi_run(a: Arguments) -> None:
    CAVI(gaussian, _guide(a)).run(
        a.data(_LINE),
        max_steps=a.choice([a.setting, a.data])(2),
        tol=a.setting(1e-8),
        callback=_callback(a),
        checkpoint_every=a.setting(10),
    )


def cavi_batches(a: Arguments) -> None:
    cavi = CAVI(rows, AutoConjugate(rows), step_size=a.setting(RobbinsMonro()))
    batches = [a.data(_LINE[:3]), a.data((_LINE[3:],)), a.data({"x": _LINE[:3]})]
    cavi.run_batches(a.data(batches), epochs=a.setting(1), tol=a.setting(1e-8), callback=_callback(a))


def cavi_pieces(a: Arguments) -> None:
    cavi = CAVI(rows, AutoConjugate(rows), memoised=True)
    cavi.step_piece(a.setting("first"), a.data(_LINE[:3]))
    a.settled()
    cavi.step_piece(a.setting("second"), a.data(_LINE[3:]), a.setting(6))


def cavi_files(a: Arguments) -> None:
    cavi = CAVI(gaussian, _guide(a))
    getattr(cavi, a.choice(["save", "load"]))(a.setting("/nowhere/at/all"))


def robbins_monro(a: Arguments) -> None:
    RobbinsMonro(a.setting(1.0), a.setting(0.7))(a.setting(0))


def gibbs(a: Arguments) -> None:
    model, data = a.choice([(gaussian, _LINE), (mixture, _LINE), (linear, _PLANE), (with_param, _LINE)])
    sampler = Gibbs(
        a.setting(model),
        a.setting(2),
        a.setting(1),
        a.setting(2),
        blocks=a.setting(()),
        mean_field=a.setting(()),
        init=a.setting(None),
        save_params=a.setting(None),
    )
    sampler.run(a.data(data))
    sampler.diagnostics()


def em(a: Arguments) -> None:
    em = EM(
        with_param,
        a.setting(None),
        m_step=a.setting("closed_form"),
        optimizer=a.setting(None),
        gradient_steps=a.setting(2),
        init=a.setting(None),
        restarts=a.setting(1),
    )
    em.run(a.data(_LINE), max_steps=a.setting(2))


def em_reads(a: Arguments) -> None:
    em = EM(with_param)
    getattr(em, a.choice(["e_step", "q_function", "free_energy", "log_likelihood", "evaluate_loss"]))(a.data(_LINE))


def monte_carlo_em(a: Arguments) -> None:
    em = MonteCarloEM(with_param, num_samples=a.setting(1), burn_in=a.setting(1), warmup=a.setting(1))
    em.run(a.data(_LINE), max_steps=a.setting(1))


def written_updates(a: Arguments) -> None:
    model = normal_gamma.model
    check_updates(model, a.setting(AutoConjugate(model)), a.data(_LINE), tol=a.setting(None))


def arviz(a: Arguments) -> None:
    to_arviz(
        a.setting(gaussian),
        a.setting(_guide(a)),
        a.data(_LINE),
        num_samples=a.setting(5),
        prior_samples=a.setting(0),
        seed=a.setting(0),
        coords=a.setting(None),
        dims=a.setting(None),
    )


def comparison(a: Arguments) -> None:
    compare(
        gaussian,
        a.setting({"cavi": a.setting(AutoConjugate(gaussian))}),
        a.data(_LINE),
        reference=a.setting(None),
        num_samples=a.setting(20),
        max_steps=a.setting(2),
        seed=a.setting(0),
    )


def weights(a: Arguments) -> None:
    function = a.choice([score, evidence, importance_sampling])
    function(a.setting(gaussian), a.setting(_guide(a)), a.data(_LINE), num_samples=a.setting(20))


def prior_weights(a: Arguments) -> None:
    naive_monte_carlo(
        a.setting(gaussian),
        a.data(_LINE),
        num_samples=a.setting(20),
        batch_size=a.setting(None),
        vectorized=a.setting(None),
    )


def tails(a: Arguments) -> None:
    pareto_k(a.data(_data(50)), rounding=a.setting(0.0))


def calibration(a: Arguments) -> None:
    calibrate(gaussian, a.data(_LINE), num_simulations=a.setting(2), num_samples=a.setting(5), sites=a.setting(None))


def normal_gammas(a: Arguments) -> None:
    function = a.choice([normal_gamma.posterior, normal_gamma.log_evidence])
    function(a.data(_LINE), prior_loc=a.setting(0.0), prior_rate=a.setting(1.0), prior_concentration=a.setting(1.0))


def mixtures(a: Arguments) -> None:
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")])
    CAVI(gmm.model, guide).run(
        a.data(_PLANE), a.setting(2), covariance=a.setting("full"), mean_prior=a.setting(None), max_steps=2
    )


def mixture_parts(a: Arguments) -> None:
    function = a.choice([gmm.default_priors, gmm.initial_responsibilities, gmm.ml_start, gmm.ml_model])
    function(a.data(_PLANE), a.setting(2))


def topics(a: Arguments) -> None:
    lda = LDA(
        a.setting(2),
        doc_topic_prior=a.setting(None),
        learning_method=a.setting("batch"),
        max_iter=a.setting(2),
        tol=a.setting(1e-3),
        random_state=a.setting(0),
        dtype=a.setting(None),
    )
    lda.fit(a.data(_COUNTS), vocabulary=a.setting(None))


def topics_read(a: Arguments) -> None:
    lda = LDA(2, max_iter=1, random_state=0).fit(_COUNTS)
    method = a.choice(["transform", "score", "perplexity", "coherence", "partial_fit"])
    getattr(lda, method)(a.data(_COUNTS))


def corpora(a: Arguments) -> None:
    as_corpus(
        a.data(_COUNTS),
        vocabulary=a.choice([a.data, a.setting])(None),
        num_words=a.setting(None),
        unknown=a.setting("error"),
        dtype=a.setting(None),
        device=a.setting(None),
    )


_IMAGES = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))


def autoencoders(a: Arguments) -> None:
    made = vae.VAE(
        a.setting((4,)),
        a.setting(2),
        hidden=a.setting((4,)),
        likelihood=a.setting("bernoulli"),
        network=a.setting("mlp"),
        weight_prior=a.setting(None),
    )
    a.settled()
    vae.fit(
        made,
        a.data((_IMAGES > 0.5).float()),
        epochs=a.setting(1),
        batch_size=a.setting(3),
        learning_rate=a.setting(1e-3),
        kl_weight=a.setting(1.0),
        estimator=a.setting("B"),
    )


def flow_densities(a: Arguments) -> None:
    density = FlowDensity(a.setting(2), a.setting("affine_coupling"), length=a.setting(1), hidden=a.setting((4,)))
    a.settled()
    density.fit(
        a.data(_PLANE),
        max_steps=a.setting(1),
        learning_rate=a.setting(1e-3),
        batch_size=a.setting(None),
        held_out=a.data(None),
    )
    a.settled()
    getattr(density, a.choice(["log_prob", "sample"]))(a.choice([a.data, a.setting])(3))


def flow_guides(a: Arguments) -> None:
    guide = FlowGuide(a.setting(linear), a.setting("affine_coupling"), length=a.setting(1), init_scale=a.setting(0.5))
    a.settled()
    guide(a.data(_PLANE))


def foreign_guides(a: Arguments) -> None:
    guide = AutoNormal(gaussian)
    guide(_LINE)  # which makes its parameters
    a.settled()
    to_arviz(gaussian, a.setting(guide), a.data(_LINE), num_samples=a.setting(3))


TARGETS = [
    new_guide,
    starts,
    guide_call,
    quantiles,
    guide_state,
    cavi,
    cavi_step,
    cavi_run,
    cavi_batches,
    cavi_pieces,
    cavi_files,
    robbins_monro,
    gibbs,
    em,
    em_reads,
    monte_carlo_em,
    written_updates,
    arviz,
    comparison,
    weights,
    prior_weights,
    tails,
    calibration,
    normal_gammas,
    mixtures,
    mixture_parts,
    topics,
    topics_read,
    corpora,
    autoencoders,
    flow_densities,
    flow_guides,
    foreign_guides,
]


# What is around a call.


def _store() -> dict[str, Any]:
    store = pyro.get_param_store()
    return {name: store._params[name].detach().clone() for name in store}


def _random() -> dict[str, Any]:
    state = random_state()
    return {"torch": state["cpu"], "others": torch.as_tensor(hash(str(state["numpy"]) + str(state["python"])))}


def _state(guide: AutoConjugate | None) -> dict[str, Any]:
    return {} if guide is None else {n: t.clone() for n, t in guide.state_dict().items() if isinstance(t, Tensor)}


def _alike(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(t, after[n]) for n, t in before.items())


@contextmanager
def surroundings_kept(a: Arguments) -> Iterator[None]:
    """Whatever the call does, the default dtype, the gradient mode and Pyro's handlers are as before; and, if it fails,
    the parameter store, the guide and the random states.
    """
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    a.settled()
    try:
        yield
    except Exception:
        assert _alike(a.random, _random()), "the random state changed"
        assert _alike(a.store, _store()), "the parameter store changed"
        assert a.guide is None or _alike(a.before, _state(a.guide)), "the guide changed"
        raise
    finally:
        assert torch.get_default_dtype() == dtype
        assert torch.is_grad_enabled() == grad
        assert not _PYRO_STACK
