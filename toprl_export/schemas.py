"""The JSON Schemas of all versioned files of the core, made from the types that read them.

``python -m toprl_export.schemas docs/schemas`` writes them again; a test compares the committed ones with the types.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toprl_export.agent import AgentRecord
from toprl_export.analysis.ablate import Ablation
from toprl_export.analysis.cliff import Cliff
from toprl_export.analysis.sensitivity import Sensitivity
from toprl_export.analysis.transfer import Transfer
from toprl_export.analysis.variants import VariantsFile
from toprl_export.comparison.recompute import Answers
from toprl_export.comparison.result import Comparison
from toprl_export.comparison.tuning import Tuning
from toprl_export.evaluation.cells import KeptCell
from toprl_export.fields import json_schema
from toprl_export.files import write_json_atomic
from toprl_export.manifest import Manifest
from toprl_export.pruning.plan import PruningPlan
from toprl_export.validation.report import Report

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PUBLISHED: tuple[type[Any], ...] = (
    Ablation,
    AgentRecord,
    Answers,
    Cliff,
    Comparison,
    KeptCell,
    Manifest,
    PruningPlan,
    Report,
    Sensitivity,
    Transfer,
    Tuning,
    VariantsFile,
)
_DIGEST = {"description": "SHA-256 over all other fields, as canonical JSON.", "type": "string"}


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """File name and schema of every versioned file, such as ``report.schema.json``."""
    for kind in PUBLISHED:
        schema = json_schema(kind)
        if kind is Manifest:  # it vouches for itself, so the digest over its fields is none of them
            schema["properties"]["content_sha256"] = _DIGEST
            schema["required"].append("content_sha256")
        for described in (schema, *schema.get("$defs", {}).values()):
            _tidy(described)
        name = schema["properties"]["format"]["const"].removeprefix("toprl-export/")
        yield f"{name}.schema.json", {"$schema": DIALECT, **schema}


def _tidy(schema: dict[str, Any]) -> None:
    """Leave of a docstring what it says at once, and demand what tells one kind of file from another."""
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].partition("\n\n")[0].split())
    properties = schema.get("properties", {})
    for described in properties.values():
        described.pop("title", None)  # only its name again
    stated = [name for name in ("format", "version") if "const" in properties.get(name, {})]
    for name in stated:
        properties[name].pop("default", None)
    if stated:
        schema["required"] = [*stated, *(name for name in schema["required"] if name not in stated)]


def main(directory: Path) -> None:
    """Write all schemas into ``directory``."""
    for name, schema in schemas():
        write_json_atomic(directory / name, schema)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
