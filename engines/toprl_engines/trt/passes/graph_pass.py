"""What a pass is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx

from toprl_engines.graph.check import GraphError

DOMAIN, OPERATOR = "toprl", "FlashAttention"
"""The one attention operator of canonical graphs."""


@dataclass(frozen=True)
class GraphPass:
    """One rewrite of a model, in place.

    Attributes:
        name: for messages.
        requires: what must hold before; returns what is wrong, or None.
        apply: the rewrite.
        ensures: what holds afterwards; returns what is wrong, or None.
    """

    name: str
    requires: Callable[[onnx.ModelProto], str | None]
    apply: Callable[[onnx.ModelProto], None]
    ensures: Callable[[onnx.ModelProto], str | None]


def run_passes(model: onnx.ModelProto, passes: Iterable[GraphPass]) -> None:
    """Run ``passes`` in order, in place.

    Raises:
        GraphError: a pass met a graph that it is not for, or did not do what it promises.
    """
    for one in passes:
        _demand(one.requires(model), f"{one.name} needs another graph")
        one.apply(model)
        _demand(one.ensures(model), f"{one.name} failed")


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of `toprl::FlashAttention`."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def _demand(wrong: str | None, what: str) -> None:
    if wrong is not None:
        raise GraphError(f"pass {what}: {wrong}")
