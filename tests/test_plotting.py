"""Pictures: their lines are the numbers they say, they take what a user has, and refuse the rest in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from pyro_latent import CAVI, EM, AutoConjugate, CAVIResult, plotting
from pyro_latent.criticism import Comparison, Race, Weights, compare
from pyro_latent.criticism.race import Lap, Runner
from pyro_latent.models import gmm, normal_gamma

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
DATA = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fitted() -> tuple[AutoConjugate, CAVIResult]:
    """The Normal-Gamma with its two sites as factors of their own."""
    guide = AutoConjugate(normal_gamma.model)
    return guide, CAVI(normal_gamma.model, guide).run(DATA, tol=1e-12)


@pytest.fixture(scope="module")
def clusters() -> AutoConjugate:
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")])
    CAVI(gmm.model, guide).run(POINTS.double(), 2, max_steps=5)
    return guide


# ------------------------------------------------------------------------------------------------------ axes and looks


def empty_axes(count: int) -> Any:
    axes = Figure().subplots(1, count, squeeze=False)[0]
    return axes[0] if count == 1 else axes


def short_race(seed: int) -> Race:
    """A race whose two methods fall towards 0, one of them with noise."""
    noise = np.random.default_rng(seed).random(5)
    ends = {"CAVI": -np.arange(5.0)[::-1], "SVI, rate 0.1": -np.arange(5.0)[::-1] - noise}
    score = Weights(torch.zeros(60, dtype=torch.float64) + torch.arange(60) / 1e4)
    laps = {n: [Lap(i, 0.1 * (i + 1), float(e), 1e-3) for i, e in enumerate(end)] for n, end in ends.items()}
    return Race({n: Runner(n, own, score, False) for n, own in laps.items()}, "cpu")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(normal_gamma.model, {"cavi": AutoConjugate(normal_gamma.model)}, DATA, num_samples=200)


Draw = Callable[..., Any]


@pytest.fixture(scope="module")
def pictures(fitted: tuple[AutoConjugate, CAVIResult], comparison: Comparison) -> dict[str, tuple[Draw, int]]:
    """Each function of ``plotting`` that draws, and its number of panels."""
    guide, result = fitted
    means = torch.zeros(1, 2), torch.eye(2)[None]
    return {
        "plot_bounds": (lambda **k: plotting.plot_bounds(comparison, **k), 1),
        "plot_densities": (lambda **k: plotting.plot_densities(comparison, **k), 2),
        "plot_elbo": (lambda **k: plotting.plot_elbo(result, **k), 1),
        "plot_mixture": (lambda **k: plotting.plot_mixture(POINTS, {"fit": means}, **k), 1),
        "plot_path": (lambda **k: plotting.plot_path([[1.0, 1.0], [0.0, 1.0]], lambda a, b: -(a**2) - b**2, **k), 1),
        "plot_posterior": (lambda **k: plotting.plot_posterior(guide, "mean", **k), 1),
        "plot_race": (lambda **k: plotting.plot_race(short_race(0), **k), 1),
        "plot_topics": (lambda **k: plotting.plot_topics([[1.0, 2.0], [2.0, 1.0]], ["a", "b"], **k), 2),
    }


def test_every_picture_is_drawn_on_axes_given_or_on_its_own(pictures: dict[str, tuple[Draw, int]]) -> None:
    assert set(pictures) == {name for name in plotting.__all__ if name.startswith("plot_")}
    for draw, panels in pictures.values():
        axes = empty_axes(panels)
        given = axes if panels == 1 else axes[0]
        assert draw(ax=axes) is given.figure and all(a.has_data() for a in np.ravel(axes))
        own = draw()
        assert isinstance(own, Figure) and own is not given.figure
        drawn = [len(a.lines) + len(a.patches) + len(a.collections) for a in np.ravel(axes)]
        assert drawn == [len(a.lines) + len(a.patches) + len(a.collections) for a in own.axes]
        assert panels > 1 or own.axes[0].get_xlabel()


def test_what_is_no_axes_or_too_few_is_named(pictures: dict[str, tuple[Draw, int]]) -> None:
    with pytest.raises(TypeError, match="Expected ax to be matplotlib Axes; got Figure"):
        pictures["plot_elbo"][0](ax=Figure())
    with pytest.raises(ValueError, match=r"Expected 2 Axes for ax, one for each panel; got 1\. Write figure, ax"):
        pictures["plot_topics"][0](ax=empty_axes(1))


def test_a_method_looks_the_same_in_all_pictures_and_no_two_alike_in_one() -> None:
    methods = ["CAVI", "SVI, AutoNormal", "NUTS", "EM", "exact", "linear response", "Laplace", "SVI", "mean field"]
    alone = {name: plotting.looks([name])[name] for name in methods}
    assert plotting.looks(methods) == alone == plotting.looks(methods[::-1])
    many = plotting.looks([*methods, "CAVI, joint blocks", "first", "second", "third", "a blemish"])
    assert len({str(look) for look in many.values()}) == len(many)
    assert plotting.looks(["a flow", "NUTS"])["a flow"].color != alone["CAVI"].color  # which no other method has first
    assert many["CAVI, joint blocks"].color == many["CAVI"].color
    assert plotting.looks(["EM, restarts"])["EM, restarts"] == alone["EM"] != plotting.looks(["blemish"])["blemish"]


# ----------------------------------------------------------------------------------------------------------- densities


def test_lines_are_the_densities_of_the_factors(fitted: tuple[AutoConjugate, CAVIResult]) -> None:
    guide, _ = fitted
    q = guide.posterior()
    line: Any
    (line,) = plotting.plot_posterior(guide, "mean").axes[0].lines
    x, y = line.get_data()
    np.testing.assert_allclose(y, scipy.stats.norm(float(q["mean"].mean), float(q["mean"].stddev)).pdf(x), rtol=1e-9)
    assert scipy.integrate.trapezoid(y, x) == pytest.approx(1, abs=2e-3)
    a, rate = float(q["precision"].concentration), float(q["precision"].rate)
    other: Any = plotting.plot_posterior({"CAVI": guide}, "precision").axes[0].lines[0]
    x, y = other.get_data()
    np.testing.assert_allclose(y, scipy.stats.gamma(a, scale=1 / rate).pdf(x), rtol=1e-9)


def test_an_element_of_a_vector_has_its_marginal(clusters: AutoConjugate) -> None:
    q = clusters.posterior()
    weight: Any = plotting.plot_posterior(clusters, "weights", 1).axes[0].lines[0]
    x, y = weight.get_data()
    one, zero = q["weights"].concentration.flip(0).tolist()
    np.testing.assert_allclose(y, scipy.stats.beta(one, zero).pdf(x), rtol=1e-9)
    axes: Any = plotting.plot_posterior(clusters, "mean").axes[0]
    legend: Any = axes.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == [f"mean[{k}, {d}]" for k in (0, 1) for d in (0, 1)]
    for line, (k, d) in zip(axes.lines, np.ndindex(2, 2), strict=True):
        law = q["mean"]
        scale = float((law.scale_tril @ law.scale_tril.mT)[k, d, d].sqrt())
        x, y = line.get_data()
        np.testing.assert_allclose(y, scipy.stats.t(float(law.df[k]), float(law.loc[k, d]), scale).pdf(x), rtol=1e-9)


def test_a_discrete_site_has_its_mass(clusters: AutoConjugate) -> None:
    axes: Any = plotting.plot_posterior(clusters, "component", 3).axes[0]
    x, y = axes.lines[0].get_data()
    assert list(x) == [0, 1] and axes.get_ylabel() == "probability"
    np.testing.assert_allclose(y, clusters.posterior()["component"].probs[3], rtol=1e-12)


def test_known_posteriors_and_draws_stand_beside_a_guide(fitted: tuple[AutoConjugate, CAVIResult]) -> None:
    exact = normal_gamma.posterior(DATA).mean_marginal()
    draws = dist.Normal(0.0, 1.0).icdf(torch.linspace(0.001, 0.999, 500))
    axes: Any = plotting.plot_posterior({"CAVI": fitted[0], "exact": exact, "NUTS": draws}, "mean").axes[0]
    assert [line.get_label() for line in axes.lines] == ["CAVI", "exact", "NUTS"]
    x, y = axes.lines[1].get_data()
    np.testing.assert_allclose(y, exact.log_prob(torch.as_tensor(x)).exp(), rtol=1e-9)
    assert float(scipy.integrate.trapezoid(*axes.lines[2].get_data()[::-1])) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("site", "index", "words"),
    [
        (
            "precision",
            None,
            r"have densities of their own; got 'precision', a Wishart of event shape \[2, 2\]",
        ),
        ("component", None, r"at most 12 lines for site 'component'; got 50\. Name an element: .*index=0"),
        ("mean", 4, r"index of an element of site 'mean', of shape \[2, 2\]; got 4\. Write index=\(0, 0\)"),
        ("means", None, "Expected a site among .*mean.*; got 'means'"),
    ],
)
def test_what_is_not_one_dimensional_is_named(clusters: AutoConjugate, site: str, index: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.plot_posterior(clusters, site, index)
    with pytest.raises(TypeError, match=r"Expected a guide with posterior\(\).*of 'SVI'; got str"):
        plotting.plot_posterior({"SVI": "a name"}, site)


# -------------------------------------------------------------------------------------------------------------- traces


def test_a_trace_is_the_elbo_of_each_sweep(fitted: tuple[AutoConjugate, CAVIResult]) -> None:
    _, result = fitted
    axes: Any = plotting.plot_elbo(result).axes[0]
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, result.num_steps + 1))
    np.testing.assert_array_equal(line.get_ydata(), result.elbo)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sweep", "ELBO (nats)")


def test_several_seeds_are_a_median_and_a_band_from_the_least_to_the_greatest() -> None:
    runs = [[-5.0, -3.0, -2.0], torch.tensor([-6.0, -2.5]), np.array([-4.0, -3.5, -1.0])]
    axes: Any = plotting.plot_elbo({"SVI": runs, "CAVI": [-3.0, -1.0]}).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [-5.0, -3.0, -2.0]
    assert axes.lines[1].get_ydata().tolist() == [-3.0, -1.0]
    (band,) = axes.collections
    ends = {(x, y) for x, y in band.get_paths()[0].vertices.tolist()}
    assert ends == {(1, -6), (2, -3.5), (3, -2.5), (1, -4), (2, -2.5), (3, -1)}
    assert "medians of 3 seeds" in axes.get_title(loc="left")


@pytest.mark.parametrize(
    ("result", "error", "words"),
    [
        (
            AutoConjugate(normal_gamma.model),
            TypeError,
            "ELBO after each step; got AutoConjugate. Give what CAVI",
        ),
        ("-3", TypeError, "to draw with the ELBO after each step; got str"),
        ([], ValueError, "Expected at least one step to draw; got none. Run the fit first"),
        ({"SVI": {"loss": 1}}, TypeError, "of 'SVI' with the ELBO after each step; got dict"),
    ],
)
def test_what_has_no_trace_is_named(result: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plotting.plot_elbo(result)


def test_several_races_are_medians_with_bands() -> None:
    races = [short_race(seed) for seed in range(3)]
    axes: Any = plotting.plot_race(races).axes[0]
    assert "medians of 3 seeds, least to greatest" in axes.get_xlabel()
    clock, gaps = axes.lines[1].get_data()
    ends = [race.best - race["SVI, rate 0.1"].laps[-1].elbo for race in races]
    assert gaps[-1] == pytest.approx(np.median(ends)) and clock[-1] == pytest.approx(0.5)
    other = replace(races[0], runners={"CAVI": races[0]["CAVI"]})
    with pytest.raises(ValueError, match="Expected races of the same methods"):
        plotting.plot_race([*races, other])
    with pytest.raises(TypeError, match=r"Expected a Race, or a list of them.*; got list"):
        plotting.plot_race([])


# ------------------------------------------------------------------------------------------------------------- mixtures


def test_more_fits_than_colours_are_told_apart_by_their_dashes() -> None:
    fits = {f"fit {i}": (torch.zeros(1, 2), torch.eye(2)[None]) for i in range(12)}
    axes: Any = plotting.plot_mixture(POINTS, fits).axes[0]
    looks = {(outline.get_edgecolor(), str(outline.get_linestyle())) for outline in axes.patches}
    assert len(axes.patches) == 12 == len(looks)
    legend: Any = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(fits)
    assert legend.get_window_extent().x0 > axes.get_window_extent().x1  # beside the data, not on them


def test_variances_draw_the_ellipses_of_their_diagonal_matrices() -> None:
    means, variances = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 1.0], [1.0, 9.0]])
    axes = plotting.plot_mixture(POINTS, {"rows": (means, variances), "full": (means, torch.diag_embed(variances))})
    rows, full = np.split(np.array([p.get_extents().bounds for p in axes.axes[0].patches]), 2)
    np.testing.assert_allclose(rows, full)


def outlines(figure: Figure) -> np.ndarray[Any, Any]:
    """Where the ellipses of a picture lie: their extents, ``[..., 4]``."""
    return np.array([patch.get_extents().bounds for patch in figure.axes[0].patches])


def test_an_ellipse_holds_the_share_that_the_title_says() -> None:
    covariance = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    axes: Any = plotting.plot_mixture(POINTS, (torch.zeros(1, 2), covariance[None]), deviations=1.5).axes[0]
    draws = dist.MultivariateNormal(torch.zeros(2), covariance).sample((20_000,)).numpy()
    path = axes.patches[0].get_patch_transform().transform_path(axes.patches[0].get_path())
    share = path.contains_points(draws).mean()
    assert share == pytest.approx(0.675, abs=0.01)
    assert axes.get_title(loc="left") == "Components (1.5 s.d., 68% of each)"


def test_estimators_and_guides_draw_their_means_and_covariances(clusters: AutoConjugate) -> None:
    from sklearn.mixture import GaussianMixture

    x = POINTS.double().numpy()
    for kind in ("full", "tied", "diag", "spherical"):
        fit = GaussianMixture(2, covariance_type=kind, random_state=0).fit(x)
        full = [np.linalg.inv(p) for p in _precisions(fit, kind)]
        np.testing.assert_allclose(
            outlines(plotting.plot_mixture(x, fit)),
            outlines(plotting.plot_mixture(x, (fit.means_, np.array(full)))),
            rtol=1e-9,
        )
    q = clusters.posterior()
    arrays = q["mean"].mean, q["precision"].mean.inverse()
    np.testing.assert_allclose(
        outlines(plotting.plot_mixture(POINTS, clusters)), outlines(plotting.plot_mixture(POINTS, arrays)), rtol=1e-9
    )


@pytest.mark.parametrize("covariance", ["tied", "spherical"])
def test_a_precision_that_is_shared_is_drawn_of_each_component(covariance: gmm.Covariance) -> None:
    """Of two components in two columns, where the shape alone does not tell a matrix from rows of variances."""
    guide = AutoConjugate(gmm.model, blocks=[("mean", "precision")], init=0)
    CAVI(gmm.model, guide).run(POINTS, 2, covariance=covariance)
    q = guide.posterior()
    precision = q["precision"].mean
    each = precision.expand(2, 2, 2) if covariance == "tied" else precision[:, None, None] * torch.eye(2)
    found, expected = (plotting.plot_mixture(POINTS, fit) for fit in (guide, (q["mean"].mean, each.inverse())))
    np.testing.assert_allclose(outlines(found), outlines(expected), rtol=1e-5)


def _precisions(fit: Any, kind: str) -> Any:
    """Scikit-learn's precisions as matrices ``[K, D, D]``."""
    eye = np.eye(2)
    return {
        "full": lambda: fit.precisions_,
        "tied": lambda: [fit.precisions_] * 2,
        "diag": lambda: [row * eye for row in fit.precisions_],
        "spherical": lambda: [p * eye for p in fit.precisions_],
    }[kind]()


def test_what_has_no_components_or_two_readings_is_named(fitted: tuple[AutoConjugate, CAVIResult]) -> None:
    with pytest.raises(TypeError, match=r"Expected a fitted estimator with means_ .*of 'fit'; got int. Call fit first"):
        plotting.plot_mixture(POINTS, {"fit": 3})

    def model(x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(level, 1.0).expand([50, 2]).to_event(2), obs=x)

    other = AutoConjugate(model)
    other(POINTS)
    with pytest.raises(ValueError, match=r"Expected a guide with sites or parameters mean.*got \['level'\]"):
        plotting.plot_mixture(POINTS, other)
    with pyro.get_param_store().scope():
        em = EM(gmm.ml_model)
        em.run(POINTS, 2, covariance="tied", max_steps=2)
        with pytest.raises(ValueError, match=r"one matrix for all, or variances of each. Write a pair"):
            plotting.plot_mixture(POINTS, em.guide)


@pytest.mark.parametrize("wrong", [torch.eye(2), torch.full((2, 2, 2), torch.nan), -torch.eye(2).expand(2, 2, 2)])
def test_covariances_without_an_ellipse_are_named(wrong: Tensor) -> None:
    """One matrix for all, read as variances, has zeros; others are not finite, or negative."""
    with pytest.raises(ValueError, match=r"Expected covariances of 'fit' that are positive definite"):
        plotting.plot_mixture(POINTS, {"fit": (torch.zeros(2, 2), wrong)})


@pytest.mark.parametrize("labels", ["min", ("min",), "ab"])
def test_labels_that_are_not_two_are_named(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected two labels; got .*Write labels=\("):
        plotting.plot_mixture(POINTS, {"fit": (torch.zeros(1, 2), torch.eye(2)[None])}, labels=labels)


@pytest.mark.parametrize("covariances", [torch.eye(2)[None], torch.ones(3, 2), torch.eye(2)])
def test_covariances_that_do_not_suit_the_means_are_named(covariances: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected means \[K, D\].* of 'fit'; got \[5, 2\] and .*Give one matrix"):
        plotting.plot_mixture(POINTS, {"fit": (torch.zeros(5, 2), covariances)})


# --------------------------------------------------------------------------------------------------------------- topics


def test_no_two_texts_of_topics_with_long_words_overlap() -> None:
    words = [f"internationalization{i}" for i in range(8)]
    figure = plotting.plot_topics(np.random.default_rng(0).random((9, 8)), words)
    assert figure.get_supxlabel() == "probability of the word in the topic"
    shown = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text() and t.get_visible()]
    shown = [t for t in shown if t.axes is None or t.axes.axison]
    boxes = [t.get_window_extent() for t in shown if not _off_the_axis(t)]
    assert len(boxes) > 9 * 8
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.9, 0.8).overlaps(b)]
    assert overlaps == []


def _off_the_axis(text: Text) -> bool:
    """A label of a tick beyond the ends of its axis, which is not drawn."""
    if text.axes is None or text not in text.axes.get_xticklabels():
        return False
    low, high = text.axes.get_xlim()
    return not low <= float(text.get_position()[0]) <= high


@pytest.mark.parametrize(
    ("topics", "options", "words"),
    [
        ([[-0.1, 1.1]], {}, r"Expected word weights that are not negative.*got -0\.1 at the least.*log_weights\.exp"),
        ([[0.0, 0.0]], {}, "and 0 as the least sum"),
        (np.zeros((0, 2)), {}, r"one column a word; got \[0, 2\]. Give at least one topic"),
        ([[0.5, 0.5]], {"columns": 0}, "Expected columns to be an integer of at least 1; got 0"),
        ([[0.5, 0.5]], {"top": 0}, "Expected top to be an integer of at least 1; got 0"),
        ([[0.5, 0.5]], {"titles": ["one", "two"]}, "Expected 1 titles, one for each topic; got 2"),
    ],
)
def test_topics_that_cannot_be_drawn_are_named(topics: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plotting.plot_topics(topics, ["cat", "dog"], **options)


def test_an_estimator_of_topics_knows_its_words() -> None:
    class Fitted:
        components_, vocabulary_ = torch.tensor([[5.0, 1.0, 3.0]]), ("cat", "dog", "eel")

    (panel,) = plotting.plot_topics(Fitted(), top=2).axes
    assert [t.get_text() for t in panel.get_yticklabels()] == ["cat", "eel"]
    with pytest.raises(TypeError, match="Expected the words of the topics; got none, and list does not know them"):
        plotting.plot_topics([[0.5, 0.5]])


# ----------------------------------------------------------------------------------------------- densities of draws


def test_densities_have_their_units(comparison: Comparison) -> None:
    axes: Any = plotting.plot_densities(comparison, units={"mean": "min"}).axes
    labels = {a.get_title(loc="left"): a.get_xlabel() for a in axes}
    assert labels["mean"] == "min" and labels["precision"] == ""
