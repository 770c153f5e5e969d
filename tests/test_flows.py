"""Flows: determinants against autograd, densities against quadrature, and posteriors beside the Gaussian ones."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from shared_models import Killed
from sklearn.datasets import load_digits, make_moons
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pyro_latent.checkpoint import write_checkpoint
from pyro_latent.criticism import importance_sampling
from pyro_latent.errors import CheckpointError, DataError, ModelError
from pyro_latent.gradient.flows import (
    ElementwiseAffine,
    FlowDensity,
    FlowFit,
    FlowGuide,
    FlowPosterior,
    make_flow,
    push,
)
from pyro_latent.gradient.flows.density import FlowTraining
from pyro_latent.models import normal_gamma, two_modes

KINDS = (
    "planar",
    "radial",
    "affine_coupling",
    "affine_autoregressive",
    "spline",
    "spline_coupling",
    "spline_autoregressive",
)
CONDITIONAL = ("planar", "radial", "affine_coupling", "affine_autoregressive", "spline_autoregressive")
INVERTIBLE = ("affine_coupling", "spline", "spline_coupling", "spline_autoregressive")


def log_abs_det(f: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """log |det J_f| at each point, by autograd."""
    jacobians = [torch.autograd.functional.jacobian(lambda z: f(z[None])[0], z) for z in points]
    return torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])


# ---------------------------------------------------------------------------------------------------------------- flows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 3])
def test_the_determinants_of_the_layers_multiply_to_that_of_the_flow(kind: str, dim: int) -> None:
    flow, z = make_flow(kind, dim, length=3, hidden=(8,)).double(), torch.randn(6, dim, dtype=torch.float64)
    x, terms = push(flow, z)
    torch.testing.assert_close(terms.sum(-1), log_abs_det(flow, z), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(terms.sum(-1), flow.log_abs_det_jacobian(z, flow(z)))
    torch.testing.assert_close(x, flow(z))


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_a_conditional_flow_has_the_determinant_of_its_context(kind: str) -> None:
    flow = make_flow(kind, 3, length=2, hidden=(8,), context_dim=2).double()
    contexts, points = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for context, point in zip(contexts, points, strict=True):
        conditioned, z = flow.condition(context[None]), point[None]
        _, terms = push(conditioned, z)
        torch.testing.assert_close(terms.sum(-1), log_abs_det(conditioned, z), rtol=1e-8, atol=1e-8)
    both = [flow.condition(c[None])(points[:1]) for c in contexts]
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("kind", INVERTIBLE)
def test_the_inverse_undoes_the_flow(kind: str) -> None:
    flow, z = make_flow(kind, 3, length=3).double(), torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(flow.inv(flow(z).clone()), z, rtol=1e-7, atol=1e-7)


def test_the_affine_layer_is_the_affine_map() -> None:
    layer = ElementwiseAffine(torch.tensor([1.0, -2.0]).double(), 0.5)
    z = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(layer(z), z * 0.5 + torch.tensor([1.0, -2.0]))
    torch.testing.assert_close(layer.inv(layer(z).clone()), z)
    torch.testing.assert_close(layer.log_abs_det_jacobian(z, layer(z)), torch.full((4,), 2 * math.log(0.5)).double())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("cubic", {}, r"Expected kind to be one of \['affine_autoregressive', .*got 'cubic'"),
        ("planar", {"dim": 0}, "Expected dim to be an integer of at least 1; got 0"),
        ("planar", {"length": 1.5}, "Expected length to be an integer of at least 1; got 1.5"),
        ("spline_coupling", {"dim": 1}, "Expected dim of at least 2 for 'spline_coupling'.*Use 'spline'"),
        ("spline", {"context_dim": 2}, "Expected kind to be one of .*got 'spline'"),
    ],
)
def test_a_flow_that_cannot_be_made_is_named(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_flow(kind, **{"dim": 2, **options})


# -------------------------------------------------------------------------------------------------------------- density


def moons(count: int, seed: int) -> Tensor:
    """Two interleaved half circles, in other units than the base's."""
    points, _ = make_moons(count, noise=0.08, random_state=seed)
    return torch.from_numpy(points) * torch.tensor([10.0, 0.1]) + torch.tensor([500.0, -3.0])


@pytest.mark.parametrize("kind", ["affine_coupling", "spline_coupling", "planar", "spline_autoregressive"])
def test_a_density_integrates_to_one(kind: str) -> None:
    density = FlowDensity(2, kind, length=2, hidden=(8,)).double()
    density.shift, density.spread = torch.tensor([5.0, -1.0]).double(), torch.tensor([2.0, 0.3]).double()
    half = 6.5
    axis = torch.linspace(-half, half, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis) * density.spread + density.shift
    cell = (2 * half / 400) ** 2 * density.spread.prod()
    with torch.no_grad():
        assert (density.log_prob(points).exp().sum() * cell).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_maximum_likelihood_on_two_moons_beats_every_small_mixture_of_gaussians() -> None:
    train, held_out, test = moons(1500, 0), moons(500, 1), moons(1000, 2)
    density = FlowDensity(2, "affine_coupling", length=6, hidden=(32,))
    fit = density.fit(train, held_out=held_out, max_steps=500, batch_size=256, learning_rate=1e-2)
    flow = density.log_prob(test).detach()
    assert fit.held_out.max() == pytest.approx(density.log_prob(held_out).mean().item(), rel=1e-9)
    for components in (1, 2, 3):
        mixture = torch.from_numpy(GaussianMixture(components, random_state=0).fit(train.numpy()).score_samples(test))
        gap = flow - mixture
        assert gap.mean() > 4 * gap.std() / math.sqrt(len(gap))


def test_draws_of_a_fitted_density_have_its_moments() -> None:
    density = FlowDensity(2, "affine_coupling", length=2, hidden=(8,))
    data = moons(400, 0)
    density.fit(data, max_steps=60)
    draws = density.sample(4000)
    weights = (density.log_prob(draws) - density.log_prob(draws)).exp()
    assert draws.dtype == torch.float64 and bool((weights == 1).all())
    error = draws.std(0) / math.sqrt(4000)
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis) * density.spread + density.shift
    with torch.no_grad():
        probability = density.log_prob(points).softmax(0)
    assert bool(((probability @ points - draws.mean(0)).abs() < 4 * error + 1e-3 * density.spread).all())


def test_the_pyro_model_of_a_density_has_its_likelihood() -> None:
    data = moons(30, 0)
    density = FlowDensity(2, "affine_coupling").double()
    loss = Trace_ELBO().loss(density, lambda data: None, data)
    assert -loss == pytest.approx(density.log_prob(data).sum().item(), rel=1e-10)


def test_a_fit_keeps_the_parameters_that_score_the_held_out_points_best() -> None:
    """Few points and a high rate: the flow bends around them, and the last parameters are not the best."""
    held_out, density = moons(100, 1), FlowDensity(2, "affine_coupling", length=4)
    fit = density.fit(moons(20, 0), held_out=held_out, max_steps=150, learning_rate=2e-2, check_every=10)
    assert fit.held_out[-1] < fit.held_out.max() - 0.1
    assert density.log_prob(held_out).mean().item() == pytest.approx(fit.held_out.max().item(), rel=1e-12)


def test_a_step_is_on_a_batch_drawn_with_replacement() -> None:
    data, density = moons(50, 0), FlowDensity(2, "affine_coupling")
    start = copy.deepcopy(density)
    torch.manual_seed(3)
    fit = density.fit(data, max_steps=1, batch_size=7)
    torch.manual_seed(3)
    start.double().load_state_dict({**start.state_dict(), "shift": data.mean(0), "spread": data.std(0, correction=0)})
    expected = start.log_prob(data[torch.randint(50, (7,))]).mean().item()
    assert fit.log_likelihood[0].item() == pytest.approx(expected, rel=1e-12)


def test_the_terms_of_a_density_add_up_to_it() -> None:
    density, x = FlowDensity(2, "spline_coupling", length=3).double(), moons(20, 0)
    density.spread = torch.tensor([2.0, 0.3]).double()
    assert density.terms(x).shape == (20, 7)  # three splines, two reversals, units and noise
    torch.testing.assert_close(density.terms(x).sum(-1), density.log_prob(x))
    elementwise = FlowDensity(2, T.ComposeTransform([T.SigmoidTransform(), T.AffineTransform(0.0, 2.0)])).double()
    torch.testing.assert_close(elementwise.terms(x / 500).sum(-1), elementwise.log_prob(x / 500))


class Breaking(ElementwiseAffine):
    """An affine layer whose log-determinant is no number from one call on; it notes its parameters at each."""

    def __init__(self, call: int) -> None:
        super().__init__(torch.zeros(2), 1.0)
        self.call, self.seen = call, list[Tensor]()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append(self.loc.detach().clone())
        found = super().log_abs_det_jacobian(x, y)
        return found * math.nan if len(self.seen) > self.call else found


@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_fit_that_breaks_goes_back_before_that_step_and_names_the_term(step: int) -> None:
    """The last step is 11: at 12 there are the parameters that it led to."""
    layer = Breaking(step)
    density = FlowDensity(2, ComposeTransformModule([ElementwiseAffine(torch.zeros(2), 1.0), layer]))
    words = rf"got nan at step {step}, first in the log-determinant of layer 2 \(Breaking\)\. .* Lower"
    with pytest.raises(ModelError, match=words):
        density.fit(moons(100, 0), max_steps=12, check_every=5)
    assert torch.equal(layer.loc, layer.seen[step - 1])
    assert not torch.equal(layer.seen[step - 1], layer.seen[step])


@pytest.mark.parametrize("options", [{"max_steps": 30}, {"max_steps": 1}, {"max_steps": 30, "checkpoint_every": 1}])
def test_a_step_without_end_leaves_finite_parameters_here_and_in_the_file(
    options: dict[str, Any], tmp_path: Path
) -> None:
    density, path = FlowDensity(2, "affine_coupling"), tmp_path / "run.pt"
    start = copy.deepcopy(dict(density.named_parameters()))
    for _ in range(2):  # the second goes on from the file
        with pytest.raises(ModelError, match=r"Expected a finite likelihood and finite parameters; got .*step [01]"):
            density.fit(moons(100, 0), learning_rate=math.inf, checkpoint=path, **options)
        assert all(torch.equal(p, start[n].double()) for n, p in density.named_parameters())
        kept = torch.load(path, weights_only=True)["content"]["state"]["module"]
        assert all(bool(value.isfinite().all()) for value in kept.values())


def test_a_flow_is_copied_and_pickled_after_use() -> None:
    x = torch.randn(6, 2)
    for kind in KINDS:
        density, flow = FlowDensity(2, kind, length=2), make_flow(kind, 2, length=2)
        expected = density.log_prob(x), flow(x)
        for made in (copy.deepcopy((density, flow)), pickle.loads(pickle.dumps((density, flow)))):
            torch.testing.assert_close((made[0].log_prob(x), made[1](x)), expected, rtol=0, atol=0)
            with torch.no_grad():
                for parameter in made[0].parameters():
                    parameter.zero_()  # of the copy, so that the original's stay
        torch.testing.assert_close(density.log_prob(x), expected[0], rtol=0, atol=0)
    for kind in CONDITIONAL:
        conditional = make_flow(kind, 2, length=2, context_dim=3)
        context = torch.randn(6, 3)
        expected = conditional.condition(context)(x)
        for made in (copy.deepcopy(conditional), pickle.loads(pickle.dumps(conditional))):
            torch.testing.assert_close(made.condition(context)(x), expected, rtol=0, atol=0)


def tensors_outside_the_state(flow: Any) -> Iterator[str]:
    """Tensors that ``.to(device)`` leaves where they are: attributes that are neither parameters nor buffers."""
    for part in [*getattr(flow, "parts", ()), *getattr(flow, "transforms", ())]:
        part = getattr(part, "transform", part)  # a layer without parameters in a conditional flow
        yield from (f"{type(part).__name__}.{n}" for n, v in vars(part).items() if isinstance(v, Tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_flow_moves_to_another_device(kind: str) -> None:
    assert list(tensors_outside_the_state(make_flow(kind, 3))) == []
    if kind in CONDITIONAL:
        assert list(tensors_outside_the_state(make_flow(kind, 3, context_dim=2))) == []


@pytest.mark.parametrize("kind", [k for k in KINDS if "spline" not in k])  # these need values, to find their bins
def test_a_density_a_guide_and_a_posterior_stay_on_the_device_of_their_data(kind: str) -> None:
    x = torch.empty(5, 2, device="meta")
    assert FlowDensity(2, kind).to("meta").distribution.log_prob(x).is_meta
    with pyro.validation_enabled(False):
        q = FlowPosterior(x, x.exp(), make_flow(kind, 2).to("meta"))
        assert q.log_prob(q.rsample()).is_meta
        guide = FlowGuide(lambda: pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)), kind)
        guide()
        q = guide.to("meta").get_posterior()
        assert q.log_prob(q.rsample()).is_meta


def test_data_that_have_no_density_are_named() -> None:
    density = FlowDensity(2, "planar")
    with pytest.raises(
        DataError, match=r"Expected a floating tensor of shape \[\.\.\., 2\]; got torch.float32 \[5, 3\]"
    ):
        density.fit(torch.randn(5, 3))
    with pytest.raises(DataError, match="Expected finite data"):
        density.fit(torch.full((5, 2), math.nan))
    with pytest.raises(DataError, match=r"Expected points of shape \[N, 2\]; got shape \[2\]"):
        density.fit(torch.randn(2))
    for name in ("max_steps", "batch_size", "check_every", "checkpoint_every"):
        options: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match=f"Expected {name} to be an integer of at least 1; got 0. Write {name}="):
            density.fit(torch.randn(5, 2), **options)
    x = torch.randn(5, 2)
    with pytest.raises(DataError, match="Expected data of at least 2 points; got 0"):
        density.fit(x[:0])
    with pytest.raises(DataError, match="Expected held_out of at least 1 points; got 0"):
        density.fit(x, held_out=x[:0])
    with pytest.raises(DataError, match=r"Expected held_out in torch.float32 on cpu; got torch.float64 on cpu\. Write"):
        density.fit(x, held_out=x.double())
    with pytest.raises(DataError, match=r"Expected x in torch.float32 on cpu; got torch.float64 on cpu\. Write"):
        density.log_prob(x.double())
    with pytest.raises(ValueError, match="Expected num_samples to be an integer of at least 1; got 0"):
        density.sample(0)
    with pytest.raises(DataError, match=r"Expected columns that vary; got column \[1\] constant"):
        density.fit(torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
    with pytest.raises(
        ValueError, match="Expected a flow that can be inverted, to sample; got one that has no inverse"
    ):
        density.sample(3)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def fit_with_checkpoint(path: Path | None, kind: str, batch_size: int | None) -> tuple[FlowDensity, FlowFit]:
    pyro.set_rng_seed(0)
    density = FlowDensity(2, kind, length=2, hidden=(8,))
    held_out, every = (moons(50, 1) if batch_size else None), 4
    fit = density.fit(
        moons(100, 0),
        held_out=held_out,
        max_steps=12,
        batch_size=batch_size,
        check_every=3,
        learning_rate=0.05,
        checkpoint=path,
        checkpoint_every=every,
    )
    return density, fit


def die_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end where this step would begin, or behind the last one."""
    original, ending = FlowTraining._step, FlowTraining._finish

    def dying(self: FlowTraining, number: int) -> None:
        if number == step:
            raise Killed
        original(self, number)

    def dying_at_the_end(self: FlowTraining) -> FlowFit:
        if step == self.settings.max_steps:
            raise Killed
        return ending(self)

    patch.setattr(FlowTraining, "_step", dying)
    patch.setattr(FlowTraining, "_finish", dying_at_the_end)


def assert_same(found: tuple[FlowDensity, FlowFit], expected: tuple[FlowDensity, FlowFit]) -> None:
    """To the last bit."""
    for name, value in expected[0].state_dict().items():
        assert torch.equal(found[0].state_dict()[name], value), name
    assert torch.equal(found[1].log_likelihood, expected[1].log_likelihood)
    assert torch.equal(found[1].held_out, expected[1].held_out) and found[1].checked == expected[1].checked


@pytest.mark.parametrize(
    ("kind", "batch_size"), [("affine_coupling", 16), pytest.param("planar", None, marks=pytest.mark.slow)]
)
def test_a_fit_that_was_killed_anywhere_ends_where_the_unkilled_one_does(
    kind: str, batch_size: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fit_with_checkpoint(None, kind, batch_size)
    assert expected[1].log_likelihood.shape == (12,)
    for kill_at in range(13):  # before each step, in every place between two checks and two checkpoints
        path = tmp_path / f"killed-at-{kill_at}.pt"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at(kill_at, patch)
            fit_with_checkpoint(path, kind, batch_size)
        assert torch.load(path, weights_only=True)["kind"] == "FlowDensity.fit"
        assert_same(fit_with_checkpoint(path, kind, batch_size), expected)
        assert_same(fit_with_checkpoint(path, kind, batch_size), expected)  # complete: no step is left
        assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_resumed_fit_takes_on_the_random_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resumed process starts with other parameters and another seed, and ends in the same place and state."""
    path, data = tmp_path / "run.pt", moons(100, 0)
    ends = []
    for seed, checkpoint in ((0, None), (0, path), (1, path)):
        torch.manual_seed(seed)
        density = FlowDensity(2, "affine_coupling", length=2, hidden=(8,))
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            if checkpoint is not None and not checkpoint.exists():
                die_at(7, patch)
            density.fit(data, max_steps=12, batch_size=10, checkpoint=checkpoint, checkpoint_every=5)
            ends.append((density.state_dict(), torch.rand(3)))
    (whole, drawn), (resumed, drawn_again) = ends
    assert torch.equal(drawn, drawn_again)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flow": "planar"}, "the same flow"),
        ({"length": 3}, "the same flow"),
        ({"hidden": (9,)}, "the same parameter shapes"),
        ({"dtype": torch.float64}, "the same data"),
        ({"seed": 1}, "the same data"),
        ({"held_out": None}, "no held_out .* got one with others"),
        ({"max_steps": 30}, r"max_steps = 30 .* got one with 10\."),
        ({"learning_rate": 0.5}, r"learning_rate = 0\.5 .* got one with 0\.005\."),
        ({"batch_size": None}, r"batch_size = None .* got one with 10\."),
        ({"check_every": 5}, r"check_every = 5 .* got one with 25\."),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_fit_is_an_error(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        shape = {name: options.pop(name) for name in ("flow", "length", "hidden") if name in options}
        density = FlowDensity(2, **{"flow": "affine_coupling", "length": 2, "hidden": (8,), **shape})
        dtype, seed = options.pop("dtype", torch.float32), options.pop("seed", 0)
        given = {"held_out": moons(20, 2).to(dtype), "max_steps": 10, "batch_size": 10, **options}
        density.fit(moons(50, seed).to(dtype), checkpoint=tmp_path / "run.pt", **given)

    run()
    with pytest.raises(CheckpointError, match=f"Expected a checkpoint with {words}.*Delete the file"):
        run(**change)


def test_a_refused_checkpoint_leaves_the_density_as_it_was(tmp_path: Path) -> None:
    path, data = tmp_path / "run.pt", moons(50, 0)
    FlowDensity(2, "affine_coupling").fit(data, max_steps=2, checkpoint=path)
    density = FlowDensity(2, "affine_coupling")
    density.fit(data.float(), max_steps=3)
    before = {name: value.clone() for name, value in density.state_dict().items()}
    with pytest.raises(CheckpointError):
        density.fit(data + 100, max_steps=2, checkpoint=path)
    after = density.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, before[name]) for name, value in after.items())


def test_a_checkpoint_of_a_flow_with_another_order_of_coordinates_is_an_error(tmp_path: Path) -> None:
    """The order of a permutation is no parameter, and draws another map from the same parameters."""
    for order in ([1, 2, 0], [2, 0, 1]):
        layers = [T.affine_coupling(3, [8]), T.permute(3, torch.tensor(order)), T.affine_coupling(3, [8])]
        density = FlowDensity(3, ComposeTransformModule(layers))
        given: dict[str, Any] = {"max_steps": 3, "checkpoint": tmp_path / "run.pt"}
        if order == [1, 2, 0]:
            density.fit(torch.randn(20, 3), **given)
        else:
            torch.manual_seed(0)
            with pytest.raises(CheckpointError, match="Expected a checkpoint with the same flow"):
                density.fit(torch.randn(20, 3), **given)


def test_a_checkpoint_without_a_folder_or_of_another_driver_is_an_error(tmp_path: Path) -> None:
    density = FlowDensity(2, "planar", length=2)
    with pytest.warns(UserWarning, match=r"Expected a folder .*; got none. Make it first"):
        density.fit(moons(20, 0), max_steps=2, checkpoint=tmp_path / "nowhere" / "run.pt")
    write_checkpoint(tmp_path / "run.pt", "CAVI", {})
    with pytest.raises(CheckpointError, match=r"Expected a checkpoint of FlowDensity.fit in .*; got one of CAVI"):
        density.fit(moons(20, 0), max_steps=2, checkpoint=tmp_path / "run.pt")


# --------------------------------------------------------------------------------------------------------------- guides


def fitted(model: Callable[..., Any], guide: Any, x: Tensor, steps: int) -> Any:
    """The guide after SVI with sixteen particles a step, its rate falling to a tenth."""
    adam = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(model, guide, adam, Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1))
    for _ in range(steps):
        svi.step(x)
    return guide


@pytest.mark.parametrize(
    ("model", "evidence", "least"),
    [
        pytest.param(two_modes.model, two_modes.log_evidence, 0.3, id="two modes"),
        pytest.param(two_modes.banana_model, two_modes.banana_log_evidence, 0.8, id="banana", marks=pytest.mark.slow),
    ],
)
def test_a_flow_beats_mean_field_where_the_posterior_is_no_gaussian(model: Any, evidence: Any, least: float) -> None:
    x = torch.tensor([4.0], dtype=torch.float64)
    mean_field = fitted(model, AutoNormal(model), x, 300)
    flow = fitted(model, FlowGuide(model, "affine_coupling", hidden=(16,)), x, 300)
    found = [importance_sampling(model, guide, x, num_samples=20_000) for guide in (mean_field, flow)]
    error = math.sqrt(sum(f.log_weights.var().item() / f.num_samples for f in found))
    assert found[1].elbo - found[0].elbo > max(least, 4 * error)
    assert found[1].elbo < evidence(x).item() + 4 * error


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_flow_guide_is_that_of_its_draws(kind: str) -> None:
    """Importance sampling with any q, also untrained and on constrained sites, finds the exact evidence."""
    x = torch.tensor([1.3, -0.2, 2.5, 0.8, 1.1], dtype=torch.float64)
    start = {"precision": x.new_tensor(0.8), "mean": x.new_tensor(0.8)}
    guide = FlowGuide(normal_gamma.model, kind, length=2, init_loc_fn=lambda s: start[s["name"]], init_scale=0.9)
    found = importance_sampling(normal_gamma.model, guide, x, num_samples=20_000)
    assert abs(found.log_evidence - normal_gamma.log_evidence(x).item()) < 4 * found.standard_error < 0.4
    assert all(p.dtype == torch.float64 for p in guide.parameters())


def test_quantiles_of_a_flow_guide_are_those_of_its_draws() -> None:
    x = torch.tensor([1.3, -0.2, 2.5], dtype=torch.float64)
    guide = FlowGuide(normal_gamma.model, "affine_coupling")
    levels = guide.quantiles([0.1, 0.5, 0.9], x, num_samples=20_000)
    draws = Predictive(normal_gamma.model, guide=guide, num_samples=20_000, parallel=True, return_sites=["precision"])(
        x
    )
    for level, found in zip((0.1, 0.5, 0.9), levels["precision"], strict=True):
        share = (draws["precision"] < found).double().mean().item()
        assert abs(share - level) < 4 * math.sqrt(2 * level * (1 - level) / 20_000)
    assert guide.median(x)["mean"].shape == ()


def test_the_quantiles_of_a_flow_guide_leave_the_random_state_alone() -> None:
    x, guide = torch.tensor([1.3, -0.2, 2.5], dtype=torch.float64), FlowGuide(normal_gamma.model)
    guide(x)
    state = torch.get_rng_state()
    first, second = guide.median(x), guide.median(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(second[name], value) for name, value in first.items())


class Network(PyroModule):
    """A model with weights: what Pyro notes of its first run is part of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(self.layer(x), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_guide_is_copied_and_pickled_after_use(kind: str) -> None:
    """The original keeps its model, and a copy of it; a copy trains by itself."""
    x, model = torch.tensor([0.3, -1.0]), Network()
    guide = FlowGuide(model, kind, length=2)
    fitted_once = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    fitted_once.step(x)
    expected = guide.median(x)["z"]
    pickled, copied = pickle.loads(pickle.dumps(guide)), copy.deepcopy(guide)
    for made in (pickled, copied, guide):
        torch.testing.assert_close(made.median(x)["z"], expected, rtol=0, atol=0)
    fitted_once.step(x)
    assert not torch.equal(guide.median(x)["z"], expected) and torch.equal(copied.median(x)["z"], expected)
    assert copied.model is guide.model
    unused = copy.deepcopy(FlowGuide(model, kind))
    assert unused(x)["z"].shape == (2,)


def test_a_flow_guide_of_one_latent_asks_for_an_elementwise_flow() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor(0.3)
    with pytest.raises(ValueError, match="Expected dim of at least 2 for 'affine_coupling'"):
        FlowGuide(model)(x)
    pyro.clear_param_store()
    found = importance_sampling(model, FlowGuide(model, "spline", init_scale=1.0), x, num_samples=20_000)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).item()
    assert abs(found.log_evidence - exact) < 4 * found.standard_error
    with pytest.raises(ValueError, match="Expected flow to be one of"):
        FlowGuide(model, "cubic")


# ----------------------------------------------------------------------------------------------------------- posteriors


def test_a_posterior_without_layers_is_its_gaussian() -> None:
    loc, scale = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.1
    flow = torch.distributions.ComposeTransform([])
    value = torch.randn(5, 3, dtype=torch.float64)
    expected = dist.Normal(loc, scale).log_prob(value).sum(-1)
    torch.testing.assert_close(FlowPosterior(loc, scale, flow).log_prob(value), expected)


@pytest.mark.parametrize("kind", ["planar", "affine_coupling", "spline_autoregressive"])
@pytest.mark.parametrize("context_dim", [None, 2])
def test_a_posterior_has_the_density_of_its_base_over_the_determinant(kind: str, context_dim: int | None) -> None:
    loc, scale = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.1
    context = None if context_dim is None else torch.randn(4, 2, dtype=torch.float64)
    q = FlowPosterior(loc, scale, make_flow(kind, 3, length=2, context_dim=context_dim).double(), context)
    torch.manual_seed(5)
    log_prob = q.log_prob(q.rsample())  # at once: a flow without an inverse knows its last draw only
    torch.manual_seed(5)
    z = dist.Normal(loc, scale).rsample()
    for n in range(4):
        part = make_like(q, n, context)
        expected = dist.Normal(loc[n], scale[n]).log_prob(z[n]).sum() - log_abs_det(part, z[n : n + 1])[0]
        assert log_prob[n].item() == pytest.approx(expected.item(), abs=1e-6)
    assert q.batch_shape == (4,) and q.event_shape == (3,)


def make_like(q: FlowPosterior, n: int, context: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The flow at the n-th context, as a function of one row."""
    return lambda row: q.flow(row.expand(4, -1))[n : n + 1] if context is not None else q.flow(row)


def test_a_posterior_expands_over_particles() -> None:
    loc, scale = torch.zeros(4, 2), torch.ones(4, 2)
    q = FlowPosterior(loc, scale, make_flow("affine_coupling", 2)).expand([7, 4])
    draws = q.rsample()
    assert draws.shape == (7, 4, 2) and q.log_prob(draws).shape == (7, 4)


def test_a_posterior_that_cannot_score_or_be_made_is_named() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="Expected the last draw of this distribution; got another value"):
        FlowPosterior(one, one, make_flow("planar", 2)).log_prob(one)
    with pytest.raises(ValueError, match=r"Expected loc and scale of one shape \[\.\.\., D\]; got \[2\] and \[3\]"):
        FlowPosterior(one, torch.ones(3), make_flow("planar", 2))
    with pytest.raises(ValueError, match="Expected a context for a conditional flow; got none"):
        FlowPosterior(one, one, make_flow("planar", 2, context_dim=3))
    with pytest.raises(ValueError, match=r"Expected no context for a flow without one; got \[2\]"):
        FlowPosterior(one, one, make_flow("planar", 2), one)


class Autoencoder(PyroModule):
    """A small Bernoulli autoencoder whose posterior is a Gaussian, or a Gaussian through a flow."""

    def __init__(self, flow: Any, latent: int = 2, hidden: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = torch.nn.Sequential(
            torch.nn.Linear(latent, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 64)
        )
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(64, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 2 * latent)
        )
        self.flow = flow

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        pyro.module("flow", self.flow)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", FlowPosterior(loc, log_scale.exp(), self.flow))


def trained(flow: Any, images: Tensor, steps: int) -> Autoencoder:
    """An autoencoder after some steps of Adam; networks, batches and noise start from the same seeds each time."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = Autoencoder(flow)
    pyro.set_rng_seed(1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO())
    for _ in range(steps):
        svi.step(images[torch.randint(len(images), (128,))])
    return vae


@torch.no_grad()
def bound(vae: Autoencoder, x: Tensor, particles: int = 100) -> Tensor:
    """The evidence lower bound of each image, in nats, ``[N]``."""
    loc, log_scale = vae.encoder(x).chunk(2, -1)
    q = FlowPosterior(loc, log_scale.exp(), vae.flow).expand([particles, len(x)])
    z = q.rsample()
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_likelihood = dist.Bernoulli(logits=vae.decoder(z)).log_prob(x).sum(-1)
    return (log_likelihood + log_prior - q.log_prob(z)).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["planar", "affine_coupling"])
def test_a_flow_as_an_autoencoders_posterior_is_no_worse_than_the_gaussian(kind: str) -> None:
    digits = torch.from_numpy((load_digits().data > 7).astype(np.float32))
    images, held_out = digits[:1400], digits[1400:]
    gaussian = bound(trained(ComposeTransformModule([]), images, 1500), held_out)
    flow = bound(trained(make_flow(kind, 2, length=4, hidden=(16,)), images, 1500), held_out)
    gap = flow - gaussian
    print(f"{kind}: {flow.mean():.3f} - {gaussian.mean():.3f} = {gap.mean():.3f} nats")
    assert gap.mean() > -2 * gap.std() / math.sqrt(len(gap))
