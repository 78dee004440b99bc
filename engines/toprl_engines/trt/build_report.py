"""``build_report.json``: what TensorRT made of every graph of a bundle."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toprl_export.fields import fields_to_json, read_fields, read_header
from toprl_export.files import write_json_atomic

REPORT_NAME = "build_report.json"
KINDS = ("attention native", "attention plugin", "top-k", "gather", "other")
"""What a layer is for, as far as the report tells them apart."""


@dataclass(frozen=True)
class InputRange:
    """One input's part of the optimization profile: its sizes, or its values where shapes inside the graph follow from
    those.

    Attributes:
        name: of the input.
        values: whether the profile is of values, not of sizes.
        min, opt, max: in the order of the input's axes or elements; kernels are chosen for ``opt``.
    """

    name: str
    values: bool
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


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
        profile: its optimization profile, input by input; without those of fixed sizes.
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
        flags: the builder's settings, by TensorRT's names.
        workspace_bytes: the limit that was set; None for TensorRT's own.
        timing_cache: whether one of an earlier build was there to be used.
        graphs: by name.
    """

    format: Literal["toprl-export/trt-build"] = field(default="toprl-export/trt-build", kw_only=True)
    version: Literal[2] = field(default=2, kw_only=True)
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


_KINDS_OF_TYPES = {
    "ATTENTION_INPUT": "attention native",
    "PLUGIN_V3": "attention plugin",
    "TOPK": "top-k",
    "GATHER": "gather",
}
"""From TensorRT's layer types to our kinds. An attention has a layer at either border; the first stands for it."""
_KINDS_OF_KERNELS = (
    (re.compile(r"plugin|custom_layer", re.IGNORECASE), "attention plugin"),
    (re.compile(r"_mha_|fmha|flash_fwd", re.IGNORECASE), "attention native"),
    (re.compile(r"topk|bott(?![a-z])", re.IGNORECASE), "top-k"),
    (re.compile(r"gath", re.IGNORECASE), "gather"),
)
"""Signs in the name, type or kernel of a built layer, the first that fits winning: kernels are named after the
operations that they join, such as ``__myl_ConcBott`` (``Bott`` is a top-k of the smallest)."""
_LISTED = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*),.*?(?:, TacticName: (?P<tactic>.*?))?"
    r"(?:, StreamId: \d+)?(?:, Metadata: ?(?P<metadata>.*))?$"
)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def network_layers(network: Any) -> tuple[LayerEntry, ...]:
    """The layers of a parsed network whose kind is not "other"."""
    found = (network.get_layer(index) for index in range(network.num_layers))
    named = [(layer.name, layer.type.name) for layer in found]
    return tuple(LayerEntry(name, kind, _KINDS_OF_TYPES[kind]) for name, kind in named if kind in _KINDS_OF_TYPES)


def listed_layers(listing: str) -> tuple[LayerEntry, ...]:
    """The layers in the listing that TensorRT's log gives of a built engine; none where it gives none."""
    return tuple(_parsed(listing))


def inspected_layers(information: str) -> tuple[LayerEntry, ...]:
    """The layers in what TensorRT's engine inspector says in JSON."""
    layers = json.loads(information).get("Layers", [])
    return tuple(_entry(layer) for layer in layers if isinstance(layer, Mapping))


def _parsed(listing: str) -> Iterator[LayerEntry]:
    for line in listing.splitlines():
        match = _LISTED.match(line.strip())
        if match:
            name, kind, tactic, metadata = match.group("name", "type", "tactic", "metadata")
            yield _entry({"Name": name, "LayerType": kind, "TacticName": tactic, "Metadata": metadata})


def _entry(layer: Mapping[str, Any]) -> LayerEntry:
    name, kind, tactic, metadata = (
        str(layer.get(key) or "") for key in ("Name", "LayerType", "TacticName", "Metadata")
    )
    signs = f"{name} {kind} {tactic}"
    found = next((meaning for sign, meaning in _KINDS_OF_KERNELS if sign.search(signs)), "other")
    return LayerEntry(name, kind, found, tactic, tuple(dict.fromkeys(_ONNX_NODE.findall(metadata))))
