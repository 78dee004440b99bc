"""An analysis on disk: ``NAME.json``, which can be read back, ``NAME.csv``, ``NAME.md`` and ``NAME.png``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from toprl_export.errors import UserError
from toprl_export.evaluation.machine import Provenance
from toprl_export.evaluation.tables import csv_text
from toprl_export.files import read_json_versioned, write_bytes_atomic, write_json_atomic, write_text_atomic
from toprl_export.typed import from_json, to_json

VERSION = 1
SUFFIXES = (".csv", ".md", ".png", ".json")


@dataclass(frozen=True)
class AnalysisResult(ABC):
    """What an analysis found; each kind is a subclass with its figures.

    Attributes:
        name: of its files.
        provenance: what it was made with.
    """

    name: ClassVar[str]
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

    @classmethod
    def format(cls) -> str:
        """What its JSON file says that it is."""
        return f"toprl-export/analysis-{cls.name}"

    def to_json(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {"format": self.format(), "version": VERSION, **to_json(self)}

    def write(self, directory: Path, picture: bytes) -> None:
        """Write the four files, each whole or not at all.

        Args:
            directory: where they go.
            picture: the PNG file's content, see `toprl_export.analyze.pictures.draw`.

        Raises:
            UserError: they cannot be written there, or something else is in their place.
        """
        self.check_directory(directory)
        table, text = csv_text(self.records()), self.markdown()
        # The JSON file comes first: by it `check_directory` knows the others, should this be interrupted.
        write_json_atomic(directory / f"{self.name}.json", self.to_json())
        write_text_atomic(directory / f"{self.name}.csv", table)
        write_text_atomic(directory / f"{self.name}.md", text)
        write_bytes_atomic(directory / f"{self.name}.png", picture)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read back what `write` wrote.

        Raises:
            UserError: the file is missing, damaged, or of another kind or version.
        """
        path = directory / f"{cls.name}.json"
        payload = read_json_versioned(path, cls.format(), VERSION)
        del payload["format"], payload["version"]
        return from_json(cls, payload, str(path))

    @classmethod
    def check_directory(cls, directory: Path) -> None:
        """Refuse a directory in which other files have the names of this analysis; an earlier one is replaced.

        Raises:
            UserError: it is a file, or holds such files.
        """
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory} is a file, expected a directory: choose another --output-dir")
        found = [path for suffix in SUFFIXES if (path := directory / f"{cls.name}{suffix}").exists()]
        if not found:
            return
        try:
            read_json_versioned(directory / f"{cls.name}.json", cls.format(), VERSION)
        except UserError as error:
            raise UserError(
                f"{found[0]} is not from an earlier analysis, so it is left alone: choose another --output-dir"
            ) from error
