"""Several processes with a shard each reach what one process with all of the data does, and fail together.

The processes are those of :mod:`distributed_worker`, started here as ``torchrun`` would.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import torch.distributed as td
from distributed_worker import (
    APART,
    BATCHED,
    BATCHES,
    CASES,
    CLUSTERS,
    SHORT,
    WAYS,
    Weighted,
    batches,
    counts,
    fit,
    lda_of,
    listed,
    maximum,
    params,
    start_of,
    sweeps,
)

from pyro_latent import CAVI, EM, ArgumentError, AutoConjugate
from pyro_latent.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(not td.is_gloo_available(), reason="needs torch.distributed with gloo")
SIZE = 4


def run(folder: Path, size: int, *scenario: str) -> list[Any]:
    """What each process found."""
    script = Path(__file__).with_name("distributed_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment |= {"GLOO_SOCKET_IFNAME": "lo"}  # whatever names and networks the machine has
    subprocess.run([sys.executable, str(script), str(size), str(folder), *scenario], env=environment, check=True)
    files = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(file) if file.exists() else None for file in files]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Any]:
    return run(folder, SIZE)


def assert_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-10) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert found["state"]
    for name, value in found["state"].items():
        torch.testing.assert_close(value, expected["state"][name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "size"), [("mixture", 1), *itertools.product(CASES, [2, SIZE])])
def test_shards_give_what_all_of_the_data_does(name: str, size: int, found: list[Any]) -> None:
    """The same natural parameters of the globals and the same ELBO, and to the last bit the same in all processes, of
    which one of four has no data.
    """
    case = CASES[name]
    expected = sweeps(case, start_of(name), case.data)
    first = found[0][f"{name}, {size}"]
    for own in (found[rank][f"{name}, {size}"] for rank in range(size)):
        assert own["loss"] == first["loss"]
        assert own["last"] == pytest.approx(expected["last"], rel=1e-10)  # of the last sweep, as it says itself
        assert all(torch.equal(own["state"][n], tensor) for n, tensor in first["state"].items())
        assert_same(own, expected)


@pytest.mark.parametrize(("name", "size", "way"), BATCHES)
def test_minibatches_and_pieces_are_those_of_all_processes_in_one(
    name: str, size: int, way: str, found: list[Any]
) -> None:
    """Two passes reach the globals and the ELBOs of one process whose batches are theirs together, and to the last bit
    the same in all processes."""
    expected = batches(BATCHED[name], start_of(name), way)
    first = found[0][f"{name}, {size}, {way}"]
    for own in (found[rank][f"{name}, {size}, {way}"] for rank in range(size)):
        assert torch.equal(own["elbo"], first["elbo"])
        assert all(torch.equal(own["state"][n], tensor) for n, tensor in first["state"].items())
        torch.testing.assert_close(own["elbo"], expected["elbo"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(own["state"], expected["state"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("data", "DataError", "Expected finite data at site 'x'"),
        ("lengths", "DataError", "Expected as many batches in all processes; got 2 in each of 1 passes"),
        ("passes", "DataError", "2 in each of 2 passes"),
        ("no length", "DataError", "an unknown number in each"),
        ("short", "DataError", "Expected 2 batches, as the loader says that it has; got 1"),
        ("long", "DataError", "Expected 2 batches, as the loader says that it has; got more"),
        ("loader", "ProcessError", "no such disk"),
        ("arguments", "ArgumentTypeError", "to be the model's arguments"),
        ("size", "ModelError", "Expected the same size of plate 'data' in all processes; got 90.0"),
        ("pieces", "DataError", "Expected pieces that are all of the data, 90, at most"),
        ("file", "ArgumentError", "each process has pieces of its own"),
        ("whole", "ModelError", "Expected one plate of which each process has a part"),
    ],
)
def test_batches_that_one_process_has_otherwise_are_an_error_in_all(
    what: str, kind: str, words: str, found: list[Any]
) -> None:
    for own in found:
        name, message = own["batch errors"][what]
        assert name == kind
        assert words in message


def test_minibatches_go_on_from_a_file(found: list[Any]) -> None:
    """As a run that was not cut does, and the same in all processes; those that a sampler deals out, too."""
    for own in (one["of minibatches"] for one in found):
        assert len(own["cut"]["elbo"]) == 3
        for name in ("elbo", "state"):
            torch.testing.assert_close(own["resumed minibatches"][name], own["minibatches"][name], rtol=0, atol=0)
            torch.testing.assert_close(own["dealt"][name], found[0]["of minibatches"]["dealt"][name], rtol=0, atol=0)
        assert own["loss"] == pytest.approx(own["alone"], rel=1e-10)


@pytest.mark.parametrize("size", [1, 2, SIZE])
def test_em_on_shards_ends_where_em_does(size: int, found: list[Any]) -> None:
    pyro.clear_param_store()
    em = EM(maximum)
    result = em.run(APART, len(APART), max_steps=15, tol=0)
    expected = {"loss": -float(result.elbo[-1]), "state": params()}
    assert_same(found[0][f"EM, {size}"], expected, 1e-9)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("data", "DataError", "Expected finite data at site 'x'"),
        ("prior", "ModelError", "another density of site 'mean'"),
        ("components", "ModelError", "another density of site 'mean'"),
        ("dtype", "ModelError", "another density"),
        ("settings", "ModelError", "got order = "),
        ("prior without data", "ModelError", "another density of site 'mean'"),
        ("data beside none", "DataError", "Expected finite data at site 'x'"),
    ],
)
def test_what_one_process_does_wrong_is_an_error_in_all(what: str, kind: str, words: str, found: list[Any]) -> None:
    for own in found:
        name, message = own["errors"][what]
        assert name == kind
        assert words in message
        assert f"It came up in process {SIZE - 1} of {SIZE}." in message


def test_a_process_without_data_says_so_and_where_none_has_any_it_is_an_error(found: list[Any]) -> None:
    for rank, own in enumerate(found):
        name, message = own["errors"]["no data"]
        assert name == "DataError"
        assert f"Expected data in at least one of {SIZE} processes" in message
        assert any(f"got none in process {rank} of" in words for words in own["told"]) == (rank in (0, 1))


def test_data_that_are_no_arrays_are_lent_whole(found: list[Any]) -> None:
    """A list, with its length as another argument: the evidence is that of all data."""
    rows = list(CLUSTERS)
    evidence = float(CAVI(listed, AutoConjugate(listed)).run(rows, len(rows), len(rows)).elbo[-1])
    assert [own["listed"] for own in found] == pytest.approx([evidence] * SIZE, rel=1e-12)


def test_shards_that_are_not_all_of_the_data_are_refused(found: list[Any]) -> None:
    for own in found:
        name, message = own["errors"]["size"]
        assert name == "DataError"
        assert "90 in all; got 89" in message


def test_what_the_first_process_cannot_read_is_an_error_in_all(found: list[Any]) -> None:
    """Not only in that one, whose file the others would wait for."""
    for own in found:
        name, message = own["errors"]["data and a file"]
        assert name == "DataError"
        assert "Expected finite data at site 'x'" in message
        assert f"It came up in process 0 of {SIZE}." in message


def test_what_is_refused_leaves_every_guide_as_it_was(found: list[Any]) -> None:
    for own in found:
        assert not own["changed"]


def test_a_run_goes_on_with_as_many_processes_or_fewer(found: list[Any], folder: Path) -> None:
    """The file is written by one process and read by all, or by one that is alone; what one callback ends, ends in
    all.
    """
    whole = fit(CASES["mixture"], APART)
    alone = fit(CASES["mixture"], APART, checkpoint=folder / "alone.pt")[1].elbo
    assert torch.equal(alone[:3], found[0]["cut"])
    assert float(alone[-1]) == pytest.approx(float(whole[1].elbo[-1]), rel=1e-9)
    for own in found:
        assert len(own["cut"]) == 3
        assert torch.equal(own["resumed"]["elbo"][:3], own["cut"])
        assert float(own["resumed"]["elbo"][-1]) == pytest.approx(float(whole[1].elbo[-1]), rel=1e-9)
        assert own["loss"] == pytest.approx(-float(whole[1].elbo[-1]), rel=1e-9)
    for own in found[:2]:
        torch.testing.assert_close(own["resumed by two"]["state"], own["resumed"]["state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, SIZE])
def test_topics_of_shards_are_those_of_all_documents(size: int, found: list[Any]) -> None:
    """The same random starts, topics, priors and ELBO, and to the last bit the same topics in all processes."""
    expected = lda_of(counts())
    for rank in range(size):
        own = found[rank][f"LDA, {size}"]
        assert torch.equal(own["topics"], found[0][f"LDA, {size}"]["topics"])
        torch.testing.assert_close(own["topics"], expected["topics"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(own["priors"], expected["priors"], rtol=1e-10, atol=1e-10)
        assert own["bound"] == pytest.approx(expected["bound"], rel=1e-10)
    gamma = torch.cat([found[rank][f"LDA, {size}"]["gamma"] for rank in range(size)])
    torch.testing.assert_close(gamma, expected["gamma"], rtol=1e-10, atol=1e-10)


def test_topics_go_on_with_another_number_of_processes(found: list[Any]) -> None:
    """The file of a fit by four, cut after seven passes, leads two to where one process ends."""
    expected = lda_of(counts())
    for own in (one["LDA resumed"] for one in found[:2]):
        torch.testing.assert_close(own["topics"], expected["topics"], rtol=1e-10, atol=1e-10)
        assert own["bound"] == pytest.approx(expected["bound"], rel=1e-10)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("empty", "DataError", "at least one token"),
        ("words", "DataError", "Expected the same words in all processes"),
        ("settings", "ArgumentError", "Expected the same mean_change_tol in all processes"),
        ("file", "CheckpointError", "Expected a checkpoint with the same data"),
        ("online", "ArgumentError", 'Expected learning_method="batch"'),
    ],
)
def test_documents_that_one_process_has_otherwise_are_an_error_in_all(
    what: str, kind: str, words: str, found: list[Any]
) -> None:
    for own in found:
        name, message = own["LDA errors"][what]
        assert name == kind
        assert words in message


@pytest.mark.parametrize("way", ["sweeps", *WAYS])
def test_a_step_is_one_all_reduce(way: str, found: list[Any]) -> None:
    """What processes have to ask each other goes with the sum; where something is wrong, they ask, and go on after."""
    each = [own["late"] if way == "sweeps" else own["late batches"][way] for own in found]
    for late in each:
        assert late["count"] == 3
        assert late["error"][0] == "DataError"
        assert f"It came up in process {SIZE - 1} of {SIZE}." in late["error"][1]
        assert late["same"]
        assert late["losses"] == each[0]["losses"]
        if way != "minibatches":
            assert all(b <= a + 1e-9 * abs(a) for a, b in itertools.pairwise(late["losses"]))


def test_what_is_changed_between_steps_is_seen_in_all_processes_or_is_an_error_in_all(found: list[Any]) -> None:
    """A scale that a callback raises, and a parameter in Pyro's store, lead where they lead in one process."""
    model, size = Weighted(), len(CLUSTERS)
    evidence = float(CAVI(model, AutoConjugate(model)).run(CLUSTERS, size).elbo[-1])
    pyro.clear_param_store()
    alone = EM(maximum)
    alone.step(CLUSTERS, size)
    alone.guide.write_params()
    for name, values in ("mean", [3.0, 0.0, 1.0]), ("weights", [0.5, 0.3, 0.2]):
        pyro.get_param_store()[name] = torch.tensor(values, dtype=torch.float64)
    alone.step(CLUSTERS, size)
    params_then, optimum = alone.guide.params(), float(alone.run(CLUSTERS, size).elbo[-1])
    for own in found:
        changed = own["moved"]
        for way in ("sweep", *WAYS):
            (name, message), same, loss = changed[f"a prior, {way}"]
            assert name == ("DataError" if way == "pieces" else "ModelError")
            words = "the data of piece 'own'" if way == "pieces" else "another density of site 'mean' in"
            assert words in message
            assert f" process {SIZE - 1} " in message
            assert same
            assert loss == found[0]["moved"][f"a prior, {way}"][2]
        assert changed["a scale"] == (5, pytest.approx(evidence, rel=1e-12))
        torch.testing.assert_close(changed["parameters"], params_then, rtol=1e-10, atol=1e-10)
        assert changed["a parameter in a run"] == (True, pytest.approx(optimum, rel=1e-6))
        for what, kind, words in (
            ("a piece's scale", "DataError", "with its masks and scales"),
            ("a parameter", "ModelError", f"none, in process {SIZE - 1} than in process 0"),
        ):
            name, message = changed[what]
            assert name == kind
            assert words in message


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_process_that_is_gone_ends_the_others(how: str, tmp_path: Path) -> None:
    """Within the timeout, with its number, and with the last checkpoint whole."""
    first, second, _ = run(tmp_path, 3, how)
    for own in (first, second):
        assert own["error"][0] == "ProcessError"
        assert own["seconds"] < SHORT + 20
    assert "2" in first["error"][1]
    assert read_checkpoint(tmp_path / f"{how}.pt", "CAVI")["step"] == 3


def test_a_group_that_is_none_is_refused() -> None:
    guide = AutoConjugate(maximum)
    with pytest.raises(ArgumentError, match=r"Expected torch.distributed to have been started"):
        CAVI(maximum, guide, process_group=True)
