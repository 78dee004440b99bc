"""Packaging: exact pins, what the wheel holds, and scripts that name no package registry."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS_OF_CI = ("demo", "dev")
SOURCES = {
    "toprl_export": ROOT / "toprl_export",
    "toprl_trainers": ROOT / "trainers" / "toprl_trainers",
    "toprl_engines": ROOT / "engines" / "toprl_engines",
    "toprl_flash_attention": ROOT / "engines" / "flash_attention" / "toprl_flash_attention",
}
OPTIMUM = ROOT / "integrations" / "optimum"
"""A part of the namespace package `optimum`, which must not be a package of its own."""


def pins() -> dict[str, str]:
    lines = (ROOT / "ci" / "constraints.txt").read_text().splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    for line in requirements:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), f"{line} is not an exact pin of a plain name"
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in requirements)}


def needed(distribution: str, extra: str = "") -> set[str]:
    """The names that the installed ``distribution[extra]`` asks for here."""
    requirements = [Requirement(line) for line in metadata.requires(distribution) or []]
    return {
        canonicalize_name(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    }


def test_everything_ci_installs_is_pinned_transitively():
    pinned = pins()
    waiting = set().union(*(needed("toprl-export", extra) for extra in EXTRAS_OF_CI))
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= needed(name) - reached
    assert len(reached) > 40
    assert reached <= set(pinned)


def test_pins_are_inside_the_projects_ranges():
    pinned = pins()
    for extra in ("", *EXTRAS_OF_CI):
        lines = PROJECT["optional-dependencies"].get(extra, PROJECT["dependencies"])
        for requirement in map(Requirement, lines):
            if requirement.name != PROJECT["name"]:
                assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


def test_every_extra_of_the_issue_exists():
    assert {"train", "onnx", "gpu", "trt", "dev", "demo"} <= set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_source_and_data_file_of_the_packages(wheel_names: set[str]):
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".py", ".safetensors", ".json", ".yaml")
    }
    assert {f"{package}/__init__.py" for package in SOURCES} <= expected
    assert expected <= wheel_names


def test_every_package_of_the_wheel_is_typed(wheel_names: set[str]):
    assert {f"{package}/py.typed" for package in SOURCES} <= wheel_names


def test_wheel_holds_our_command_where_optimum_looks_for_it(wheel_names: set[str]):
    ours = {name for name in wheel_names if name.startswith("optimum/")}
    assert ours == {"optimum/commands/register/register_toprl.py"}
    assert ours == {f"optimum/{path.relative_to(OPTIMUM).as_posix()}" for path in OPTIMUM.rglob("*.py")}


def test_wheel_holds_nothing_else(wheel_names: set[str]):
    packages = {name.split("/")[0] for name in wheel_names}
    assert packages == {*SOURCES, "optimum", f"toprl_export-{PROJECT['version']}.dist-info"}


def test_entry_points_name_existing_files():
    points = [*PROJECT["scripts"].values(), *(v for group in PROJECT["entry-points"].values() for v in group.values())]
    assert len(points) >= 3
    for point in points:
        package, _, rest = point.partition(":")[0].partition(".")
        assert (SOURCES[package] / (rest.replace(".", "/") + ".py")).is_file(), point


@pytest.mark.parametrize("script", sorted((ROOT / "ci").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_bash_and_name_no_address(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "://" not in script.read_text()
