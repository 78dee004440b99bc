"""Figures as text: Markdown tables, CSV, and estimates with their intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from toprl_export.evaluation.estimates import Estimate


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_text(records: Sequence[dict[str, object]]) -> str:
    """Records of the same fields as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def estimate_fields(name: str, estimate: Estimate | None) -> dict[str, object]:
    """An estimate as CSV fields: NAME, NAME_low, NAME_high; empty where there is none."""
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


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
