"""The files of a comparison: ``compare.md``, ``compare.csv``, ``compare.json``, ``pareto.png`` and ``cells/``."""

from __future__ import annotations

import re
from pathlib import Path

from toprl_export.analyze.results import csv_text
from toprl_export.compare.cell import CELLS_FOLDER
from toprl_export.compare.markdown import render_markdown
from toprl_export.compare.pareto import pareto_png
from toprl_export.compare.result import JSON_FILE, Comparison, read_comparison, write_comparison
from toprl_export.compare.rows import csv_rows
from toprl_export.errors import UserError
from toprl_export.files import write_bytes_atomic, write_text_atomic

MARKDOWN_FILE = "compare.md"
CSV_FILE = "compare.csv"
PICTURE_FILE = "pareto.png"
_FILES = (MARKDOWN_FILE, CSV_FILE, PICTURE_FILE, JSON_FILE)
_LEFT_BY_A_KILL = re.compile(r"\.(compare\.(md|csv|json)|pareto\.png)\.partial-[0-9a-f]+")


def check_directory(directory: Path) -> None:
    """Refuse an output directory that holds anything but an earlier comparison, finished or not.

    Raises:
        UserError: it does, or is no directory.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file, expected a directory: choose another --output-dir")
    names = sorted(path.name for path in directory.iterdir())
    others = [name for name in names if name not in (*_FILES, CELLS_FOLDER) and not _LEFT_BY_A_KILL.fullmatch(name)]
    begun = (directory / CELLS_FOLDER).is_dir()
    if not others and names and not begun:
        # Without cells only a finished comparison shows whose files these are.
        read_comparison(directory / JSON_FILE)
    if others:
        raise UserError(
            f"{directory} holds something else ({others[0]}), so it is left alone: choose another --output-dir"
        )


def write_outputs(directory: Path, comparison: Comparison) -> None:
    """Write tables and picture in the place of earlier ones, each whole or not at all, the JSON file last.

    Raises:
        UserError: they cannot be written there.
    """
    write_text_atomic(directory / MARKDOWN_FILE, render_markdown(comparison, PICTURE_FILE))
    write_text_atomic(directory / CSV_FILE, csv_text(csv_rows(comparison)))
    write_bytes_atomic(directory / PICTURE_FILE, pareto_png(comparison))
    write_comparison(directory / JSON_FILE, comparison)
