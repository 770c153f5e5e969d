"""EM for networks: every weight of a module is a parameter, Q never falls, and the module holds what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_latent import CAVI, EM, AutoConjugate, CheckpointError, ModelError

F64 = torch.float64
Model = Callable[[Tensor, Tensor], Any]
Linear: Any = PyroModule[nn.Linear]


def data(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """Two curves of two covariates, which the sign of the first tells apart more or less."""
    x = torch.randn(80, 2, dtype=F64)
    first = torch.rand(80, dtype=F64) < torch.sigmoid(3 * x[:, 0])
    y = torch.where(first, 2 * torch.tanh(2 * x[:, 1]) + 1, -x[:, 1]) + 0.1 * torch.randn(80, dtype=F64)
    return x.to(dtype), y.to(dtype)


def network(dtype: torch.dtype = F64, hidden: int = 4, seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2)).to(dtype)


def choose(out: Tensor, y: Tensor, logits: Tensor | None = None) -> None:
    """Each observation is near one of the columns of the output, ``[N, 2]``."""
    scale = pyro.param("scale", torch.ones(2, dtype=y.dtype), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        prior = torch.zeros(2, dtype=y.dtype) if logits is None else logits
        z = pyro.sample("z", dist.Categorical(logits=prior), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(out[torch.arange(len(y)), z], scale[z]), obs=y)


def by_module(net: nn.Module, update: bool = False, read: Callable[[Any, Tensor], Tensor] | None = None) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("net", net, update_module_params=update)
        choose(net(x) if read is None else read(net, x), y)

    return model


def experts(net: nn.Module, gate: nn.Module) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("net", net)
        pyro.module("gate", gate)
        choose(net(x), y, gate(x))

    return model


class Layers(PyroModule):
    """A network of Pyro's own layers."""

    def __init__(self) -> None:
        super().__init__()
        first, _, last = network()
        self.first, self.last = Linear(2, 4).double(), Linear(4, 2).double()
        self.first.load_state_dict(first.state_dict())
        self.last.load_state_dict(last.state_dict())

    def forward(self, x: Tensor, y: Tensor) -> None:
        choose(self.last(torch.tanh(self.first(x))), y)


class Holder(PyroModule):
    """A network of torch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, y: Tensor) -> None:
        choose(self.net(x), y)


def converted() -> Holder:
    holder = Holder()
    to_pyro_module_(holder)
    return holder


WAYS: dict[str, Callable[[], Model]] = {
    "pyro.module": lambda: by_module(network()),
    "update_module_params": lambda: by_module(network(), update=True),
    "PyroModule[nn.Linear]": Layers,
    "nn.Module in a PyroModule": Holder,
    "to_pyro_module_": converted,
}


def exact(model: Model, *args: Any) -> float:
    """The exact log likelihood, as Pyro computes it at the weights that the modules hold."""
    return -float(TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda *args: None, *args))


def entries() -> dict[str, Any]:
    return dict(pyro.get_param_store()._params)


@pytest.mark.parametrize("way", WAYS)
def test_the_module_and_pyros_store_hold_what_was_found_as_after_svi(way: str) -> None:
    x, y = data()
    model: Any = WAYS[way]()
    weights = list(model.parameters()) if isinstance(model, nn.Module) else list(model.__closure__[0].cell_contents)
    before = torch.get_rng_state()
    result = EM(model, m_step="gradient").run(x, y, max_steps=6)
    assert torch.equal(torch.get_rng_state(), before)
    assert bool((result.elbo.diff() > 0).all())
    assert exact(model, x, y) == pytest.approx(result.elbo[-1].item(), rel=1e-10)
    found = entries()
    if isinstance(model, nn.Module):
        assert [id(w) for w in model.parameters()] == [id(w) for w in weights]
        assert {id(w) for w in weights} <= {id(t) for t in found.values()}
    pyro.clear_param_store()
    model = WAYS[way]()
    SVI(model, lambda *args: None, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1)).step(x, y)
    assert {n: (type(t), t.shape, t.requires_grad) for n, t in entries().items()} == {
        n: (type(t), t.shape, t.requires_grad) for n, t in found.items()
    }


def test_every_way_takes_the_same_steps() -> None:
    x, y = data()
    rises = []
    for make in WAYS.values():
        pyro.clear_param_store()
        rises.append(EM(make(), m_step="gradient").run(x, y, max_steps=3).elbo)
    for rise in rises[1:]:
        torch.testing.assert_close(rise, rises[0], rtol=1e-9, atol=0)


@pytest.mark.slow
def test_the_likelihood_is_flat_where_em_ends_and_svi_ends_there_too() -> None:
    """Linear experts under a linear gate: the same place, by steps on Q and by steps on the exact likelihood."""
    x, y = data()
    torch.manual_seed(3)
    first, second = [(nn.Linear(2, 2).double(), nn.Linear(2, 2).double()) for _ in range(2)]
    for ours, theirs in zip(first, second, strict=True):
        theirs.load_state_dict(ours.state_dict())
    model = experts(*first)
    level = EM(model, m_step="gradient").run(x, y, max_steps=400, tol=1e-12).elbo[-1].item()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda *args: None, x, y)
    slopes = torch.autograd.grad(loss, [p for net in first for p in net.parameters()])
    assert max(g.abs().max().item() for g in slopes) / len(y) < 1e-4
    pyro.clear_param_store()
    svi = SVI(experts(*second), lambda *args: None, pyro.optim.Adam({"lr": 0.02}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(800):
        svi.step(x, y)
    assert exact(experts(*second), x, y) == pytest.approx(level, abs=0.05)
    torch.testing.assert_close(second[0].weight, first[0].weight, rtol=0, atol=0.02)


class Shifted(dist.TorchDistribution):
    """A distribution of the user's own that holds a module."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real

    def __init__(self, net: Any, count: int) -> None:
        self.net = net
        super().__init__(torch.Size([count]), torch.Size())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return Shifted(self.net, torch.Size(batch_shape).numel())

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.net.bias[0] + torch.randn(*sample_shape, *self.batch_shape, dtype=F64)

    def log_prob(self, value: Tensor) -> Tensor:
        found: Tensor = dist.Normal(self.net.bias[0], 1.0).log_prob(value)
        return found


def test_weights_inside_a_distribution_of_the_users_own_are_parameters() -> None:
    net = nn.Linear(1, 1).double()
    y = torch.linspace(-1.0, 4.0, 50, dtype=F64)

    def model() -> None:
        pyro.module("net", net)
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.sample("b", dist.Normal(a + 0.0 * net.weight[0, 0] + net.bias[0], 1.0), obs=y[0])
        with pyro.plate("data", 50):
            pyro.sample("y", Shifted(net, 50), obs=y)

    pyro.clear_param_store()
    em = EM(model, m_step="gradient")
    em.run(max_steps=200, tol=1e-12)
    # y ~ N(w, 1), and b ~ N(w, 2) with a integrated out
    best = (y.sum() + y[0] / 2) / (50 + 0.5)
    assert float(net.bias) == pytest.approx(float(best), abs=1e-4)


def test_one_linear_layer_has_its_maximum_in_closed_form() -> None:
    x, y = data()
    layer = Linear(2, 1).double()

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(y)):
                noise = pyro.sample("noise", dist.Gamma(torch.tensor(2.0, dtype=F64), 1.0))
                pyro.sample("y", dist.Normal(self.layer(x).squeeze(-1), noise.rsqrt()), obs=y)

    EM(Regression()).run(x, y, max_steps=300, tol=1e-13)
    residual = y - layer(x).squeeze(-1).detach()
    weight = (2.0 + 0.5) / (1.0 + 0.5 * residual**2)  # E noise: least squares with these weights stands still
    design = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    torch.testing.assert_close(
        (design * (weight * residual)[:, None]).mean(0), torch.zeros(3, dtype=F64), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(("optimizer", "rate"), [(torch.optim.Adam, 5.0), (torch.optim.SGD, 0.5)])
def test_an_optimizer_that_overshoots_never_lowers_q_and_is_slowed_down(
    optimizer: Any, rate: float, dtype: torch.dtype
) -> None:
    x, y = data(dtype)
    model = experts(network(dtype), nn.Linear(2, 2).to(dtype))
    em = EM(model, m_step="gradient", gradient_steps=5, optimizer=lambda leaves: optimizer(leaves, rate))
    rounding = 1e-4 if dtype == torch.float32 else 1e-9
    levels, shares = [], []
    for _ in range(8):
        em.e_step(x, y)
        q = em.q_function(x, y)
        levels.append(-em.step(x, y))
        assert em.q_function(x, y) >= q - rounding
        shares.append(em._em.to_state()["optimizer"][2])
    assert bool((torch.tensor(levels).diff() >= -rounding).all())
    assert min(shares) < 1


def test_a_run_whose_steps_are_taken_back_has_not_converged() -> None:
    x, y = data()
    model = experts(network(), nn.Linear(2, 2).double())
    em = EM(model, m_step="gradient", gradient_steps=1, optimizer=lambda leaves: torch.optim.SGD(leaves, 1e6))
    result = em.run(x, y, max_steps=3, tol=1.0)
    assert not result.converged and result.num_steps == 3


def test_adam_keeps_its_moments_from_step_to_step() -> None:
    """Where no step is taken back and q cannot move, many M-steps of one step are one M-step of many."""
    x, y = data()
    ends = []
    for count, steps in ((1, 12), (12, 1)):
        pyro.clear_param_store()
        net = nn.Linear(2, 1).double()
        nn.init.constant_(net.weight, 0.5)
        nn.init.zeros_(net.bias)

        def model(x: Tensor, y: Tensor, net: nn.Module = net) -> None:
            pyro.module("net", net)
            with pyro.plate("data", len(y)):
                z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=F64)), infer={"enumerate": "parallel"})
                pyro.sample("y", dist.Normal(net(x).squeeze(-1) + 0.0 * z, 3.0), obs=y)

        em = EM(model, m_step="gradient", gradient_steps=count, optimizer=lambda leaves: torch.optim.Adam(leaves, 1e-3))
        em.run(x, y, max_steps=steps, tol=0.0)
        ends.append(net.weight.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=0)


def test_a_resumed_run_ends_bit_for_bit_where_it_would_have(tmp_path: Path) -> None:
    x, y = data()
    path = tmp_path / "run.pt"

    def driver(rate: float = 1e-2) -> tuple[nn.Module, EM]:
        pyro.clear_param_store()
        net = network()
        gate = nn.Linear(2, 2).double()
        made = EM(experts(net, gate), m_step="gradient", optimizer=lambda leaves: torch.optim.Adam(leaves, rate))
        return net, made

    whole, em = driver()
    rise = em.run(x, y, max_steps=9, tol=0.0).elbo
    _, em = driver()
    em.run(x, y, max_steps=4, tol=0.0, checkpoint=path)
    again, em = driver()
    for weight in again.parameters():
        weight.data.normal_()  # a new process starts anywhere
    assert torch.equal(em.run(x, y, max_steps=9, tol=0.0, checkpoint=path).elbo, rise)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"optimizer = Adam .* lr: 0\.1"):
        driver(0.1)[1].run(x, y, max_steps=9, checkpoint=path)
    with pytest.raises(CheckpointError, match="another density of site"):
        driver()[1].run(x + 1e-3, y, max_steps=9, checkpoint=path)


@pytest.mark.slow
def test_restarts_keep_the_best_and_the_module_has_it() -> None:
    x, y = data()
    net, gate = network(), nn.Linear(2, 2).double()
    model = experts(net, gate)
    em = EM(model, m_step="gradient", restarts=3, optimizer=lambda leaves: torch.optim.Adam(leaves, 1e-2))
    result = em.run(x, y, max_steps=5)
    assert result.elbo[-1].item() == result.restarts.max().item() == pytest.approx(exact(model, x, y), rel=1e-10)
    assert em.run(x, y, max_steps=5).elbo[-1] > result.elbo[-1]


def test_a_hidden_markov_model_has_the_likelihood_of_the_forward_algorithm() -> None:
    from examples import neural_hmm

    x, y, _ = neural_hmm.make_series(num_series=6, length=5)
    net = neural_hmm.make_network(num_hidden=5)
    em, rise = neural_hmm.fit(net, x, y, max_steps=4)
    assert bool((rise.diff() > 0).all())
    theta = em.guide.params()
    means = neural_hmm.means_of(net, x).detach()
    log_emission = dist.Normal(means, theta["scale"]).log_prob(y)
    alpha = theta["initial"].log()[:, None] + log_emission[:, :, 0]
    for t in range(1, x.shape[1]):
        alpha = torch.logsumexp(alpha[:, None] + theta["transition"].log()[:, :, None], 0) + log_emission[:, :, t]
    assert rise[-1].item() == pytest.approx(alpha.logsumexp(0).sum().item(), rel=1e-9)


def test_networks_around_a_continuous_latent_have_its_exact_marginal() -> None:
    x, y = data()
    net, other = network(), network(seed=2)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("net", net)
        pyro.module("other", other)
        slope = pyro.param("slope", torch.tensor(0.7, dtype=F64))
        scale = pyro.param("scale", torch.tensor(0.5, dtype=F64), constraint=constraints.positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(other(x)[:, 0], 1.0))
            pyro.sample("y", dist.Normal(net(x)[:, 0] + slope * z, scale), obs=y)

    em = EM(model, m_step="gradient")
    rise = em.run(x, y, max_steps=6).elbo
    assert bool((rise.diff() > 0).all())
    em.e_step(x, y)
    theta = em.guide.params()
    mean = net(x)[:, 0] + theta["slope"] * other(x)[:, 0]
    marginal = dist.Normal(mean, (theta["slope"] ** 2 + theta["scale"] ** 2).sqrt()).log_prob(y).sum().item()
    assert em.free_energy(x, y) == pytest.approx(marginal, rel=1e-10)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(x)))
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "recurrent": (lambda: nn.GRU(2, 2), lambda net, x: net(x)[0]),
    "embedding": (lambda: nn.Embedding(2, 2), lambda net, x: net((x[:, 0] > 0).long())),
    "attention": (lambda: nn.MultiheadAttention(2, 1), lambda net, x: net(x, x, x)[0]),
    "layer norm": (lambda: nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2)), lambda net, x: net(x)),
    "tied": (Tied, lambda net, x: net(x)),
    "batch norm, fitted": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval(),
        lambda net, x: net(x),
    ),
    "batch norm without memory": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)),
        lambda net, x: net(x),
    ),
    "dropout, fitted": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval(), lambda net, x: net(x)),
    "a weight of its own": (lambda: nn.Linear(2, 2), lambda net, x: x @ net.weight.T + net.bias.exp()),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_layers_of_torch_are_read_as_torch_computes_them(kind: str) -> None:
    x, y = data()
    make, read = NETWORKS[kind]
    torch.manual_seed(0)
    net = make().double()
    model = by_module(net, read=read)
    rise = EM(model, m_step="gradient").run(x, y, max_steps=3).elbo
    assert bool((rise.diff() > 0).all())
    assert exact(model, x, y) == pytest.approx(rise[-1].item(), rel=1e-8 if kind == "recurrent" else 1e-5)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Dropout(0.5), r"compute the same from the same weights; got dropout.*module\.eval\(\)"),
        (nn.RReLU(), r"got rrelu, which draws random numbers"),
        (nn.BatchNorm1d(2), r"leave the module as it is; got batch_norm.*module\.eval\(\).*track_running_stats=False"),
    ],
    ids=["dropout", "rrelu", "batch norm"],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_layers_that_are_no_functions_of_their_weights_are_refused(layer: nn.Module, words: str, place: str) -> None:
    linear = nn.Linear(2, 2)
    net = nn.Sequential(*([layer, linear] if place == "first" else [linear, layer])).double()
    with pytest.raises(ModelError, match=words):
        EM(by_module(net), m_step="gradient").run(*data())


def test_a_parameter_that_a_distribution_reads_is_one_too() -> None:
    _, y = data()

    class Located(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor([-1.0, 1.0], dtype=F64))

        def forward(self, y: Tensor) -> None:
            loc = self.loc
            mean = pyro.sample("mean", dist.Normal(loc, 1.0).to_event(1))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mean[0] - mean[1], 1.0), obs=y)

    model = Located()
    before = model.loc.detach().clone()
    result = EM(model).run(y, max_steps=50)
    assert not torch.equal(model.loc.detach(), before) and bool((result.elbo.diff() >= -1e-9).all())


def test_frozen_weights_are_constants_and_unused_ones_are_named() -> None:
    x, y = data()
    net, gate = network().requires_grad_(False).eval(), nn.Linear(2, 2).double()
    before = [p.clone() for p in net.parameters()]
    EM(experts(net, gate), m_step="gradient").run(x, y, max_steps=3)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert set(entries()) == {"gate$$$weight", "gate$$$bias", "scale"}
    spare = nn.Linear(2, 2).double()
    pyro.clear_param_store()

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("spare", spare)
        choose(gate(x), y)

    with pytest.raises(ModelError, match=r"reach a density; got \['spare\$\$\$weight', 'spare\$\$\$bias'\]"):
        EM(model, m_step="gradient").run(x, y)


def test_the_weights_of_another_module_in_the_store_are_an_error_or_taken_over() -> None:
    x, y = data()
    old = network(seed=1)
    level = EM(by_module(old), m_step="gradient").run(x, y, max_steps=5).elbo[-1]
    new = network(seed=2)
    with pytest.raises(ModelError, match=r"of another module as 'net\$\$\$0\.weight'.*clear_param_store.*update_mod"):
        EM(by_module(new), m_step="gradient").run(x, y, max_steps=2)
    assert EM(by_module(new, update=True), m_step="gradient").run(x, y, max_steps=2).elbo[0] > level
    assert new[0].weight is old[0].weight


def test_module_local_parameters_are_fitted() -> None:
    x = 1 + 2 * torch.randn(50, dtype=F64)

    class Scaled(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale: Any = pyro.nn.PyroParam(torch.tensor(1.0, dtype=F64), constraints.positive)

        def forward(self, x: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0, dtype=F64), 10.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(mu, self.scale), obs=x)

    with pyro.settings.context(module_local_params=True):
        model = Scaled()
        EM(model).run(x)
        assert model.scale.item() == pytest.approx(x.std().item(), rel=0.02)


class Shift(PyroModule):
    """A parameter of the module, a mean that all share, and effects that lie in one block with it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Any = PyroParam(torch.tensor(1.0, dtype=F64), constraints.positive)

    def forward(self, y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(y.new_tensor(0.0), 5.0))
        with pyro.plate("data", len(y)):
            effect = pyro.sample("effect", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(effect, self.scale), obs=y)


def test_after_a_run_the_data_of_the_fit_is_no_new_data() -> None:
    """The run has changed the module; the block of the mean and of the effects can be read of the fit's data alone."""
    model, y = Shift(), torch.linspace(-3, 5, 9, dtype=F64)
    guide = AutoConjugate(model, blocks="auto")
    CAVI(model, guide).run(y)
    assert float(model.scale) != 1.0 and guide.elbo(y) == guide.elbo()
    assert set(guide.posterior(y, joint=True)) == {("mean", "effect")}
