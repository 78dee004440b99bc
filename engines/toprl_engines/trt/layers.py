"""Which layers a network and a built engine have, and what they are for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from toprl_export.build_report import LayerEntry

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
