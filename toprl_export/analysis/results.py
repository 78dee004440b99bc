"""An analysis on disk: ``NAME.json``, which can be read back, ``NAME.csv``, ``NAME.md`` and ``NAME.png``."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

from toprl_export.errors import UserError
from toprl_export.evaluation.machine import Provenance
from toprl_export.evaluation.tables import csv_text
from toprl_export.fields import read_file, read_header, to_json
from toprl_export.files import is_directory, write_bytes_atomic, write_json_atomic, write_text_atomic
from toprl_export.places import check_fillable, resolved

SUFFIXES = (".csv", ".md", ".png", ".json")


@dataclass(frozen=True)
class AnalysisResult(ABC):
    """What an analysis found; each kind is a subclass with its figures.

    Attributes:
        name: of its files.
        provenance: what it was made with.
    """

    name: ClassVar[str]
    format: str = field(kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    provenance: Provenance

    @abstractmethod
    def records(self) -> list[dict[str, object]]:
        """One flat record a figure, for the CSV file."""

    @abstractmethod
    def markdown(self) -> str:
        """Table and findings, for people."""

    @abstractmethod
    def summary(self) -> str:
        """The findings in a few lines, for the terminal."""

    def write(self, directory: Path, picture: bytes) -> None:
        """Write the four files, each whole or not at all.

        Args:
            directory: where they go.
            picture: the PNG file's content, see `toprl_export.analysis.pictures.draw`.

        Raises:
            UserError: they cannot be written there, or something else is in their place.
        """
        self.check_directory(directory)
        table, text = csv_text(self.records()), self.markdown()
        # The JSON file comes first: by it `check_directory` knows the others, should this be interrupted.
        write_json_atomic(directory / f"{self.name}.json", to_json(self))
        write_text_atomic(directory / f"{self.name}.csv", table)
        write_text_atomic(directory / f"{self.name}.md", text)
        write_bytes_atomic(directory / f"{self.name}.png", picture)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read back what `write` wrote.

        Raises:
            UserError: the file is missing, damaged, or of another kind or version.
        """
        return read_file(cls, directory / f"{cls.name}.json", "repeat the analysis")

    @classmethod
    def check_directory(cls, directory: Path) -> None:
        """Refuse a directory in which other files have the names of this analysis; an earlier one is replaced.

        Raises:
            UserError: it is a file, cannot be written, or holds such files.
        """
        if os.path.exists(resolved(directory)) and not is_directory(directory):
            raise UserError(f"{directory} is a file, expected a directory: choose another --output-dir")
        check_fillable(directory)
        found = [path for suffix in SUFFIXES if (path := directory / f"{cls.name}{suffix}").exists()]
        if not found:
            return
        try:
            read_header(cls, directory / f"{cls.name}.json")
        except UserError as error:
            raise UserError(
                f"{found[0]} is not from an earlier analysis, so it is left alone: choose another --output-dir"
            ) from error
