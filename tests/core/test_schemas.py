"""Published JSON Schemas: the committed ones are those of the types, and what is written conforms to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.core.analysis.test_results import ablation, cliff, transfer
from tests.core.validation.conftest import made_up_report
from tests.support.agents import save_tiny_agent
from tests.support.comparison import made_up_comparison
from tests.support.fake_engine import made_up_manifest
from tests.support.tiny_llava import tiny_adapter
from toprl_export import schemas
from toprl_export.evaluation.cells import KeptCell
from toprl_export.fields import to_json
from toprl_export.pruning.plan import make_plan
from toprl_export.validation.gates import GateLimits

DIRECTORY = Path(__file__).parents[2] / "docs" / "schemas"
VARIANTS = Path(schemas.__file__).parent / "analysis" / "variants.yaml"
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def conforms(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """As much of JSON Schema as the published ones use."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(conforms(value, one, root) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kind = schema.get("type")
    if kind == "null" or value is None:
        return kind == "null" and value is None
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if kind == "object":
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", [])) <= set(value) and all(
            conforms(item, known[name], root) if name in known else others is True or conforms_other(item, others, root)
            for name, item in value.items()
        )
    if kind == "array":
        kinds = schema.get("prefixItems") or [schema["items"]] * len(value)
        return len(kinds) == len(value) and all(conforms(one, of, root) for one, of in zip(value, kinds, strict=True))
    return True


def conforms_other(value: Any, others: Any, root: dict[str, Any]) -> bool:
    return others is not False and conforms(value, others, root)


def published(name: str) -> dict[str, Any]:
    return json.loads((DIRECTORY / f"{name}.schema.json").read_text())


def test_the_committed_schemas_are_those_of_the_types(tmp_path: Path):
    schemas.main(tmp_path)
    made, committed = ({path.name: path.read_text() for path in place.iterdir()} for place in (tmp_path, DIRECTORY))
    assert made == committed, "write them again: python -m toprl_export.schemas docs/schemas"


@pytest.mark.parametrize(("name", "schema"), list(schemas.schemas()))
def test_every_schema_says_which_format_and_version_it_is_of(name: str, schema: dict[str, Any]):
    properties = schema["properties"]
    assert f"{properties['format']['const'].removeprefix('toprl-export/')}.schema.json" == name
    assert isinstance(properties["version"]["const"], int)
    assert schema["required"][:2] == ["format", "version"] and schema["additionalProperties"] is False


def written(tmp_path: Path) -> dict[str, Any]:
    agent = save_tiny_agent(tmp_path / "agent", tiny_adapter()) / "agent.json"
    return {
        "agent": json.loads(agent.read_text()),
        "analysis-ablation": to_json(ablation()),
        "analysis-cliff": to_json(cliff()),
        "analysis-transfer": to_json(transfer(None)),
        "bundle": made_up_manifest().to_json(),
        "cell": to_json(KeptCell({"what": "x"}, {"right": [1, 0]})),
        "comparison": to_json(made_up_comparison()),
        "plan": make_plan(576, 8, (0, 2, 5), "actor", (192,)).to_json(),
        "report": to_json(made_up_report(GateLimits())),
        "variants": yaml.safe_load(VARIANTS.read_text()),
    }


def test_files_conform_and_damaged_ones_do_not(tmp_path: Path):
    for name, payload in written(tmp_path).items():
        schema, content = published(name), json.loads(json.dumps(payload))
        assert conforms(content, schema, schema), name
        for damaged in ({**content, "surplus": 1}, {**content, "version": 99}, {"format": content["format"]}):
            assert not conforms(damaged, schema, schema), name
