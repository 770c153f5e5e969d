"""``race``: the clock, the checkpoints and the score of each method, from the same start, on the same device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyro_latent import CAVI, AutoConjugate, plotting
from pyro_latent.criticism import Lap, Race, Runner, race, score, start_like, svi_grid
from pyro_latent.criticism.race import on_device
from pyro_latent.errors import DataError, ModelError
from pyro_latent.models import gmm, lda, normal_gamma

MODEL = normal_gamma.model


def cavi(blocks: Any = None) -> Callable[[], CAVI]:
    return lambda: CAVI(MODEL, AutoConjugate(MODEL, blocks=blocks))


def grid(rates: list[float], **options: Any) -> dict[str, Any]:
    return svi_grid(MODEL, lambda: AutoNormal(MODEL, **options), rates, loss=Trace_ELBO, name="AutoNormal", over=60)


def test_the_exact_posterior_wins_and_its_last_score_is_the_evidence(x: Tensor) -> None:
    found = race(MODEL, {"exact": cavi([("mean", "precision")]), **grid([0.01])}, x, max_steps=60)
    truth = normal_gamma.log_evidence(x).item()
    assert found.best == found["exact"].score.elbo == pytest.approx(truth, rel=1e-11)
    assert found["exact"].settled and found["exact"].laps[-1].step == 2
    assert found["AutoNormal, rate 0.01"].score.elbo < truth
    assert found["exact"].seconds_within(1e-6, truth) == found["exact"].laps[0].seconds
    assert found["AutoNormal, rate 0.01"].seconds_within(1e-6, truth) == float("inf")
    assert "never" in str(found) and "exact" in str(found)


def test_seconds_within_a_gap_count_from_where_a_run_stays_there() -> None:
    laps = [Lap(step, float(step), elbo, 0.0) for step, elbo in enumerate([-9.0, -1.0, -5.0, -1.5, -0.5])]
    runner = Runner("SVI", laps, _score(), False)
    assert runner.seconds_within(1.0, -0.4) == 4.0
    assert runner.seconds_within(2.0, -0.4) == 3.0
    assert runner.seconds_within(20.0, -0.4) == 0.0
    assert runner.seconds_within(0.05, -0.4) == float("inf")


def _score() -> Any:
    """A score that nobody looks at."""
    return None


@pytest.mark.parametrize("what", ["driver", "guide"])
def test_a_run_does_not_go_on_from_the_throwaway_one(x: Tensor, what: str) -> None:
    driver, guide = cavi()(), AutoConjugate(MODEL)
    makes = {"driver": lambda: driver, "guide": lambda: CAVI(MODEL, guide)}
    with pytest.raises(TypeError, match=f"for 'CAVI' each time; got the same {what} twice"):
        race(MODEL, {"CAVI": makes[what]}, x, max_steps=3)


def test_tensors_move_wherever_they_are() -> None:
    corpus = lda.as_corpus(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
    (moved,), found = on_device(((corpus,), {"a": [torch.ones(1)]}), "meta")
    assert {moved.doc.device.type, moved.count.device.type, found["a"][0].device.type} == {"meta"}
    assert (moved.num_words, moved.total_documents, corpus.count.device.type) == (2, 2, "cpu")


def test_checkpoints_are_a_third_apart_and_the_clock_only_rises(x: Tensor) -> None:
    laps = race(MODEL, grid([0.05]), x, max_steps=40)["AutoNormal, rate 0.05"].laps
    assert [lap.step for lap in laps] == [1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 40]
    seconds = [lap.seconds for lap in laps]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert all(lap.error > 0 for lap in laps)


def test_a_method_goes_the_way_that_it_goes_alone(x: Tensor) -> None:
    """The same steps from the same seed, whatever ran before, and whatever is scored on the way."""
    methods = grid([0.05, 0.01])
    together = race(MODEL, methods, x, max_steps=25, seed=5)
    alone = race(MODEL, {"AutoNormal, rate 0.01": methods["AutoNormal, rate 0.01"]}, x, max_steps=25, seed=5)
    name = "AutoNormal, rate 0.01"
    assert [lap.elbo for lap in together[name].laps] == [lap.elbo for lap in alone[name].laps]
    pyro.clear_param_store()
    torch.manual_seed(5)
    driver = methods[name]()
    for _ in range(25):
        driver.step(x)
    assert together[name].score == score(MODEL, driver.guide, x, seed=5)


def test_the_clock_runs_inside_step_only(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(CAVI):
        def step(self, *args: Any, **kwargs: Any) -> float:
            clock[0] += 0.05
            return super().step(*args, **kwargs)

    def make() -> Slow:
        clock[0] += 0.3
        return Slow(MODEL, AutoConjugate(MODEL))

    run = race(MODEL, {"slow": make}, x, max_steps=3, tol=0.0, warmup=0)["slow"]
    assert run.seconds == pytest.approx(0.15)


def test_the_throwaway_run_is_as_long_as_it_is_told(x: Tensor) -> None:
    made: list[Any] = []

    class Counted(CAVI):
        count = 0

        def step(self, *args: Any, **kwargs: Any) -> float:
            self.count += 1
            return super().step(*args, **kwargs)

    def make() -> Counted:
        made.append(Counted(MODEL, AutoConjugate(MODEL)))
        return made[-1]

    for warmup in (0, 4):
        race(MODEL, {"CAVI": make}, x, max_steps=2, tol=-1.0, warmup=warmup)
    assert [driver.count for driver in made] == [0, 2, 4, 2]


def test_the_store_and_the_random_state_are_as_before(x: Tensor) -> None:
    pyro.param("mine", torch.tensor(2.0))
    before = torch.get_rng_state()
    race(
        MODEL,
        {"hand": lambda: SVI(MODEL, normal_gamma.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())},
        x,
        max_steps=5,
    )
    assert list(pyro.get_param_store()) == ["mine"] and torch.equal(torch.get_rng_state(), before)


def test_autoguides_start_where_coordinate_ascent_is_after_a_sweep(x: Tensor) -> None:
    init = start_like(lambda: AutoConjugate(MODEL), x)
    guide = AutoNormal(MODEL, init_loc_fn=init)
    guide(x)
    other = AutoConjugate(MODEL)
    CAVI(MODEL, other).step(x)
    for site, value in other.median().items():
        torch.testing.assert_close(guide.median()[site].to(value), value, rtol=1e-6, atol=0.0)


def test_mixtures_are_scored_with_their_components_summed_out(old_faithful: Tensor) -> None:
    clusters = gmm.initial_responsibilities(old_faithful, 2)

    def make() -> CAVI:
        return CAVI(gmm.model, AutoConjugate(gmm.model, blocks=[("mean", "precision")], init={"component": clusters}))

    svi = svi_grid(gmm.model, lambda: gmm.guide, [0.01], loss=lambda: TraceEnum_ELBO(max_plate_nesting=1))
    found = race(gmm.model, {"CAVI": make, **svi}, old_faithful, 2, max_steps=30)
    assert found["CAVI"].score.summed == ("component",)
    assert found["CAVI"].score.elbo == pytest.approx(-1178.856, abs=0.05)
    assert found["CAVI"].seconds_within(1.0, found.best) < float("inf")


def test_budgets_in_seconds_end_a_run(x: Tensor) -> None:
    assert race(MODEL, grid([0.01]), x, max_seconds=1e-9)["AutoNormal, rate 0.01"].laps[-1].step == 1


def test_the_best_rate_of_each_method_is_chosen(x: Tensor) -> None:
    found = race(MODEL, {"CAVI": cavi(), **grid([1e-5, 0.05])}, x, max_steps=60)
    assert {group: r.name for group, r in found.chosen().items()} == {
        "CAVI": "CAVI",
        "AutoNormal": "AutoNormal, rate 0.05",
    }


def test_tensors_inside_arguments_move_too() -> None:
    moved = on_device(((torch.zeros(2), 3), {"d": [torch.ones(1)]}), "meta")
    assert moved[0][0].device.type == "meta" and moved[1]["d"][0].device.type == "meta" and moved[0][1] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error(x: Tensor) -> None:
    with pytest.raises(DataError, match="a CUDA device for device='cuda'; got none here"):
        race(MODEL, {"CAVI": cavi()}, x, device="cuda")


@pytest.mark.gpu
def test_a_race_runs_on_the_gpu_and_ends_where_it_ends_on_the_cpu(x: Tensor) -> None:
    methods = {"CAVI": cavi(), **grid([0.05], init_loc_fn=start_like(lambda: AutoConjugate(MODEL), x))}
    here, there = race(MODEL, methods, x, max_steps=40), race(MODEL, methods, x, max_steps=40, device="cuda")
    assert there.device == torch.cuda.get_device_name()
    for name in methods:
        error = 5 * (here[name].score.elbo_error + there[name].score.elbo_error)
        assert there[name].score.elbo == pytest.approx(here[name].score.elbo, abs=error + 0.5 * (name != "CAVI"))


def test_what_is_no_method_is_an_error(x: Tensor) -> None:
    driver = CAVI(MODEL, AutoConjugate(MODEL))
    with pytest.raises(TypeError, match="a function that makes a CAVI or an SVI for 'm'; got CAVI"):
        race(MODEL, {"m": driver}, x)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="for 'm'; got AutoConjugate"):
        race(MODEL, {"m": lambda: AutoConjugate(MODEL)}, x)
    for guide in (AutoConjugate(MODEL), AutoNormal(MODEL)):
        with pytest.raises(TypeError, match=f"a CAVI or an SVI for 'm'; got {type(guide).__name__}"):
            race(MODEL, {"m": guide}, x)
    with pytest.raises(ValueError, match="at least one method; got none"):
        race(MODEL, {}, x)
    with pytest.raises(ValueError, match="max_steps to be an integer of at least 1; got 0"):
        race(MODEL, {"CAVI": cavi()}, x, max_steps=0)
    points = {"m": lambda: SVI(MODEL, AutoDelta(MODEL), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())}
    with pytest.raises(ModelError, match="a density; got a point"):
        race(MODEL, points, x, max_steps=2)


# ------------------------------------------------------------------------------------------------------------ examples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal-gamma", "mixture", "lda", "vae"])
def test_the_example_races_each_model_of_the_documents(tmp_path: Path, name: str) -> None:
    from examples.race import main

    found = main(["--model", name, "--steps", "60", "--out", str(tmp_path)])[name]
    assert (tmp_path / f"race-{name}.png").stat().st_size > 10_000
    first = {run.laps[0].elbo for run in found.runners.values()}
    assert all(run.score.elbo > min(first) for run in found.runners.values())
    if name in ("normal-gamma", "mixture"):
        assert found.best - next(iter(found.runners.values())).score.elbo < 0.02


@pytest.mark.slow
def test_the_example_finds_mean_field_too_narrow(tmp_path: Path) -> None:
    from examples.compare_posteriors import main

    found = main(["--steps", "200", "--draws", "200", "--simulations", "40", "--out", str(tmp_path)])
    assert float(found.differences["mean field"]["slope"].sd) < 0.5
    assert "overconfident" in (tmp_path / "calibration.txt").read_text()
    for name in ("posteriors.html", "densities.png", "forest.png"):
        assert (tmp_path / name).stat().st_size > 10_000


# ------------------------------------------------------------------------------------------------------------ pictures


def test_the_picture_has_a_line_for_each_run_at_its_clock_and_gap(x: Tensor, tmp_path: Path) -> None:
    found: Race = race(MODEL, {"CAVI": cavi(), **grid([1e-5, 0.05])}, x, max_steps=30)
    figure = plotting.plot_race(found)
    axes = figure.axes[0]
    lines: Any = axes.lines
    for line, run in zip(lines, found.runners.values(), strict=False):
        assert list(line.get_xdata()) == [lap.seconds for lap in run.laps]
        assert list(line.get_ydata()) == [max(found.best - lap.elbo, found.floor) for lap in run.laps]
    legend = axes.get_legend()
    assert legend is not None
    texts = [t.get_text() for t in legend.get_texts()]
    assert texts == ["AutoNormal, rate", "1e-05", "0.05 (best)", "CAVI"]
    shown = {t.get_text(): h for t, h in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert [shown[n].get_color() for n in ("CAVI", "1e-05", "0.05 (best)")] == [line.get_color() for line in lines[:3]]
    assert sum(lines[1].get_color()) > sum(lines[2].get_color())  # a higher rate is darker
    figure.savefig(tmp_path / "race.png")


def test_ellipses_are_level_lines_of_the_components(old_faithful: Tensor) -> None:
    covariance = torch.tensor([[0.5, 3.0], [3.0, 40.0]], dtype=torch.float64)
    figure = plotting.plot_mixture(
        old_faithful, {"fit": (torch.tensor([[3.0, 70.0]]), covariance[None])}, deviations=2.0
    )
    (outline,) = figure.axes[0].patches
    angles = torch.linspace(0.0, 6.28, 50, dtype=torch.float64)
    circle = torch.stack([angles.cos(), angles.sin()], -1)
    points = torch.as_tensor(outline.get_patch_transform().transform(circle.numpy())) - torch.tensor([3.0, 70.0])
    distance = (points @ torch.linalg.inv(covariance) * points).sum(-1).sqrt()
    torch.testing.assert_close(distance, torch.full_like(distance, 2.0), rtol=1e-9, atol=0.0)


def test_topics_show_their_likeliest_words_in_order() -> None:
    topics = torch.tensor([[5.0, 1.0, 3.0], [0.0, 4.0, 1.0]])
    panels: Any = plotting.plot_topics(topics, ["cat", "dog", "eel"], top=2).axes
    first, second = panels
    assert [t.get_text() for t in first.get_yticklabels()] == ["cat", "eel"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["dog", "eel"]
    assert first.patches[0].get_width() == pytest.approx(5 / 9)
    assert [axes.get_title(loc="left") for axes in panels] == ["topic 0", "topic 1"]
    named: Any = plotting.plot_topics(topics, ["cat", "dog", "eel"], titles=["pets", "fish"]).axes
    assert [axes.get_title(loc="left") for axes in named] == ["pets", "fish"]
    with pytest.raises(ValueError, match=r"\[K, 2\], one column a word; got \[2, 3\]"):
        plotting.plot_topics(topics, ["cat", "dog"])


def test_a_path_is_drawn_over_the_contours_of_its_density() -> None:
    path = [[2.0, 2.0], [1.0, 2.0], [1.0, 1.0], [0.5, 1.0]]
    axes: Any = plotting.plot_path(path, lambda a, b: -(a**2 + b**2) / 2).axes[0]
    assert axes.lines[0].get_xydata().tolist() == path
    assert "3 updates" in axes.get_title(loc="left")
    with pytest.raises(ValueError, match=r"a path of shape \[T, 2\]; got \[3\]"):
        plotting.plot_path([1.0, 2.0, 3.0], lambda a, b: a)


def test_pictures_leave_matplotlibs_state_as_it_is(old_faithful: Tensor) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plotting.plot_mixture(old_faithful, {"fit": (torch.zeros(1, 2), torch.eye(2)[None])})
    assert dict(matplotlib.rcParams) == before
