"""An analysis on disk: ``NAME.json`` that can be read back, ``NAME.csv``, ``NAME.md`` and the picture ``NAME.png``."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal, Self

from toprl_export.errors import UserError
from toprl_export.evaluation.estimates import Estimate
from toprl_export.evaluation.machine import installed_versions
from toprl_export.fields import read_file, read_header, to_json
from toprl_export.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from toprl_export.models.adapter import LVLMAdapter

SUFFIXES = (".csv", ".md", ".png", ".json")


@dataclass(frozen=True)
class Provenance:
    """What an analysis was made with.

    Attributes:
        model: its name or path.
        model_fingerprint: its weights.
        visual_tokens: n.
        decoder_layers: L.
        device: where it ran.
        seed: of questions and bootstrap.
        command: the command line, or "python" when called from code.
        date: when it was made, in UTC, such as 2026-11-20.
        versions: package versions by name.
    """

    model: str
    model_fingerprint: str
    visual_tokens: int
    decoder_layers: int
    device: str
    seed: int
    command: str
    date: str
    versions: dict[str, str]

    @classmethod
    def today(cls, adapter: LVLMAdapter, seed: int, command: str) -> Provenance:
        """That of what is made now, with the packages installed."""
        return cls(
            model=adapter.model_id,
            model_fingerprint=adapter.fingerprint,
            visual_tokens=adapter.visual_tokens,
            decoder_layers=adapter.shape.layers,
            device=str(adapter.device),
            seed=seed,
            command=command,
            date=datetime.now(UTC).date().isoformat(),
            versions=installed_versions(),
        )

    def markdown(self) -> str:
        """What a reader needs to repeat it."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"Model `{self.model}` (weights `{self.model_fingerprint[:12]}…`, {self.visual_tokens} visual tokens, "
            f"{self.decoder_layers} decoder layers) on {self.device}; seed {self.seed}; {self.date}; {versions}.\n\n"
            f"```\n{self.command}\n```\n"
        )


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

    @abstractmethod
    def picture(self) -> bytes:
        """The PNG file."""

    def write(self, directory: Path) -> None:
        """Write the four files, each whole or not at all.

        Raises:
            UserError: they cannot be written there, or something else is in their place.
        """
        self.check_place(directory)
        table, text, picture = csv_text(self.records()), self.markdown(), self.picture()
        # The JSON file comes first: by it `check_place` knows the others, should this be interrupted.
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
    def check_place(cls, directory: Path) -> None:
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
            read_header(cls, directory / f"{cls.name}.json")
        except UserError as error:
            raise UserError(
                f"{found[0]} is not from an earlier analysis of ours, so it is left alone: choose another --output-dir"
            ) from error


def csv_text(rows: Sequence[dict[str, object]]) -> str:
    """Records of the same fields as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def figure_fields(name: str, estimate: Estimate | None) -> dict[str, object]:
    """A figure as CSV fields: NAME, NAME_low, NAME_high; empty where there is none."""
    if estimate is None:
        return {name: "", f"{name}_low": "", f"{name}_high": ""}
    low, high = estimate.ci95
    return {name: f"{estimate.value:.6g}", f"{name}_low": f"{low:.6g}", f"{name}_high": f"{high:.6g}"}


def percent(estimate: Estimate) -> str:
    """``97.5% [96.0%, 98.4%]``."""
    low, high = estimate.ci95
    return f"{estimate.value:.1%} [{low:.1%}, {high:.1%}]"


def points(estimate: Estimate) -> str:
    """A difference in percentage points, ``+1.2 [-0.3, +2.7]``."""
    low, high = (100 * end for end in estimate.ci95)
    return f"{100 * estimate.value:+.1f} [{low:+.1f}, {high:+.1f}]"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
