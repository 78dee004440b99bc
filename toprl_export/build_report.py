"""``build_report.json``: what TensorRT made of every graph of a bundle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toprl_export.fields import fields_to_json, read_fields, read_header
from toprl_export.files import write_json_atomic

REPORT_NAME = "build_report.json"
KINDS = ("attention native", "attention plugin", "top-k", "gather", "other")
"""What a layer is for, as far as a reader of the report asks."""


@dataclass(frozen=True)
class InputRange:
    """What one input may be: its sizes, or its values where shapes inside the graph follow from those.

    Attributes:
        name: of the input.
        values: whether the numbers are values, not sizes.
        least, usual, most: in the order of the input's axes or elements; kernels are chosen for the usual ones.
    """

    name: str
    values: bool
    least: tuple[int, ...]
    usual: tuple[int, ...]
    most: tuple[int, ...]


@dataclass(frozen=True)
class LayerEntry:
    """One layer.

    Attributes:
        name: as TensorRT has it.
        type: as TensorRT has it.
        kind: one of `KINDS`.
        tactic: the kernel; empty where TensorRT names none.
        nodes: nodes of the ONNX graph that a built layer computes or takes part in; empty where TensorRT names none.
    """

    name: str
    type: str
    kind: str
    tactic: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphBuild:
    """One graph.

    Attributes:
        profile: its inputs' ranges.
        network: layers as parsed, before TensorRT fuses them, but for those of the kind "other".
        network_layers: how many there are of all kinds.
        engine: layers as built, each a kernel or a call of one; empty where TensorRT did not list them.
        seconds: that building took.
        plan_bytes: size of the plan.
        activation_bytes: device memory that running takes beside weights and caches; None where it is not known.
        warnings: lines of TensorRT's log.
    """

    profile: tuple[InputRange, ...]
    network: tuple[LayerEntry, ...]
    network_layers: int
    engine: tuple[LayerEntry, ...]
    seconds: float
    plan_bytes: int
    activation_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """Layers of the network by kind, in the order of `KINDS`."""
        return {**_count(self.network), "other": self.network_layers - len(self.network)}

    @property
    def engine_kinds(self) -> dict[str, int]:
        """Layers of the engine by kind, in the order of `KINDS`."""
        return _count(self.engine)


@dataclass(frozen=True)
class BuildReport:
    """One build.

    Attributes:
        binding: "tensorrt" or "tensorrt_rtx", and its version.
        precision: of the weights.
        attention: "plugin" or "native".
        flags: what the builder was told, by TensorRT's names.
        workspace_bytes: the limit that was set; None for TensorRT's own.
        timing_cache: whether one of an earlier build was there to be used.
        graphs: by name.
    """

    format: Literal["toprl-export/trt-build"] = field(default="toprl-export/trt-build", kw_only=True)
    version: Literal[1] = field(default=1, kw_only=True)
    binding: str
    precision: str
    attention: str
    flags: tuple[str, ...]
    workspace_bytes: int | None
    timing_cache: bool
    graphs: dict[str, GraphBuild]

    def to_json(self) -> dict[str, Any]:
        """The content of ``build_report.json``: the fields, and the layers counted by kind for those who read it."""
        content = fields_to_json(self)
        for name, graph in self.graphs.items():
            content["graphs"][name] |= {"network_kinds": graph.kinds, "engine_kinds": graph.engine_kinds}
        return content


def write_build_report(directory: Path, report: BuildReport) -> None:
    """Write ``build_report.json`` into ``directory``."""
    write_json_atomic(directory / REPORT_NAME, report.to_json())


def read_build_report(path: Path) -> BuildReport:
    """Read a ``build_report.json``.

    Raises:
        UserError: it is missing, of another format or version, or a field is wrong.
    """
    payload = read_header(BuildReport, path)
    for graph in _objects(payload.get("graphs")):
        for counted in ("network_kinds", "engine_kinds"):
            graph.pop(counted, None)
    return read_fields(BuildReport, payload, path, "build again")


def _objects(graphs: object) -> list[dict[str, Any]]:
    """The graphs of a file not yet checked, those that are objects."""
    return [graph for graph in graphs.values() if isinstance(graph, dict)] if isinstance(graphs, dict) else []


def _count(layers: tuple[LayerEntry, ...]) -> dict[str, int]:
    found = Counter(layer.kind for layer in layers)
    return {kind: found[kind] for kind in KINDS}
