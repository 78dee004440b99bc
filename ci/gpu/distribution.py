"""Stands in for installing the project where pip has nothing to install from: the entry points of ``pyproject.toml``
in a directory that goes on ``PYTHONPATH``, so that trainers and engines are found by name."""

from __future__ import annotations

import tomllib
from pathlib import Path


def write_distribution(pyproject: Path, directory: Path) -> Path:
    """Write ``NAME-VERSION.dist-info`` with metadata and entry points.

    Args:
        pyproject: the project's own file.
        directory: to be put on ``PYTHONPATH``; it exists.

    Returns:
        the ``dist-info`` directory.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    sections = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = []
    for section, points in sections.items():
        lines += [f"[{section}]", *(f"{point} = {target}" for point, target in points.items()), ""]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
