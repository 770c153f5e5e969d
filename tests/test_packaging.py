"""What is installed is what is written: the package list, the pins, and the wheel against the source tree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pyro_latent
import pyro_latent.models

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
SOURCES = {"pyro_latent": ROOT / "pyro_latent", "pyro_latent/models": ROOT / "models"}


def installed_paths() -> Iterator[str]:
    """Every module of the source tree, by its path in an installation."""
    for prefix, directory in SOURCES.items():
        for path in directory.rglob("*.py"):
            yield f"{prefix}/{path.relative_to(directory).as_posix()}"


def data_paths() -> Iterator[str]:
    """Every other file of the packages, by its path in an installation, but for what Python and numba cache."""
    for prefix, directory in SOURCES.items():
        for path in directory.rglob("*"):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                yield f"{prefix}/{path.relative_to(directory).as_posix()}"


def pins() -> dict[str, str]:
    """Version by package in the constraints file; any line that is no exact pin is an error."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)", line)
        assert match, f"expected name==version; got {line!r}"
        found[canonicalize_name(match[1])] = match[2]
    return found


def test_a_release_has_one_number_everywhere() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[\d.]*)\] - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert PROJECT["version"] == pyro_latent.__version__ == released[0]


def test_package_list_names_every_package_directory() -> None:
    packages = {str(Path(path).parent).replace("/", ".") for path in installed_paths()}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages


def test_every_package_directory_has_an_init() -> None:
    modules = set(installed_paths())
    missing = {f"{Path(path).parent}/__init__.py" for path in modules} - modules
    assert not missing


def test_package_data_are_the_files_that_are_no_modules() -> None:
    """A file that no pattern names would be in a clone, and missing from what is installed."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    found = set(data_paths())
    named = {p for p in found if any(Path(p).match(x) for x in patterns.get(str(Path(p).parent).replace("/", "."), ()))}
    assert named == found
    assert "pyro_latent/models/datasets/old_faithful.csv" in found


def test_the_tests_import_this_source_tree() -> None:
    assert pyro_latent.__file__ and Path(pyro_latent.__file__).parent == ROOT / "pyro_latent"
    assert pyro_latent.models.__file__ and Path(pyro_latent.models.__file__).parent == ROOT / "models"


def test_every_requirement_is_pinned_within_its_range() -> None:
    extras = PROJECT["optional-dependencies"].values()
    wanted = [Requirement(text) for group in (PROJECT["dependencies"], *extras) for text in group]
    pinned = pins()
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            assert name in pinned and requirement.specifier.contains(pinned[name]), f"no pin in range for {requirement}"


def test_pins_leave_the_build_of_torch_to_the_machine() -> None:
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    assert not [name for name in pinned if re.match(r"nvidia|cuda|triton", name)]


def copied(folder: Path) -> Path:
    """The source tree in a folder, without what was built or installed."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "demo-output")
    shutil.copytree(ROOT, source, ignore=ignored)
    return source


@pytest.mark.slow
def test_wheel_holds_every_module_the_data_and_the_type_marker(tmp_path: Path) -> None:
    source = copied(tmp_path)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {*installed_paths(), *data_paths()}
    assert {"pyro_latent/py.typed", "pyro_latent/models/gmm/bayesian.py"} < names


@pytest.mark.slow
def test_a_strict_editable_install_is_a_tree_in_which_type_checkers_find_models(tmp_path: Path) -> None:
    source = copied(tmp_path)
    build = "from setuptools import build_meta; build_meta.build_editable('..', {'editable_mode': 'strict'})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (tree,) = (source / "build").glob("__editable__*")
    assert (tree / "pyro_latent/py.typed").exists() and (tree / "pyro_latent/models/datasets/__init__.py").exists()
