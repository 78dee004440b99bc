"""The flags of ``build`` that only the engine ``trt`` knows, and how its plans are described."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from toprl_engines.trt.options import ATTENTIONS, TENSORRT_BINDINGS, TensorRTOptions
from toprl_export.cli.arguments import positive_int

_FIELDS = {
    "attention": "attention",
    "plugin_library": "plugin_library",
    "max_batch": "max_batch",
    "max_text": "max_text",
    "max_new_tokens": "max_new_tokens",
    "workspace_gib": "workspace_gib",
    "weight_stripped": "weight_stripped",
    "refittable": "refittable",
    "version_compatible": "version_compatible",
    "hardware_compatible": "hardware_compatible",
    "tensorrt_binding": "binding",
    "target_sm": "target_sms",
}
"""From the names of the flags to those of the options."""


def add_tensorrt(parser: argparse.ArgumentParser) -> None:
    """Flags of `TensorRTOptions`; each is None unless it is given."""
    group = parser.add_argument_group("TensorRT", "known to --engine trt alone")
    default = TensorRTOptions()
    group.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help="who computes attention: the FlashAttention plugin or TensorRT itself "
        "(default: plugin with --plugin-library, else native)",
    )
    group.add_argument(
        "--plugin-library",
        type=Path,
        metavar="FILE",
        help="the plugin, as engines/flash_attention/build.sh builds it; --attention plugin without it takes the "
        "plugin's Python route",
    )
    for flag, meaning, value in (
        ("--max-batch", "the most questions at once", default.max_batch),
        ("--max-text", "the most text tokens of a prompt", default.max_text),
        ("--max-new-tokens", "the longest answer", default.max_new_tokens),
    ):
        group.add_argument(flag, type=positive_int, metavar="N", help=f"{meaning} (default: {value})")
    group.add_argument(
        "--workspace-gib", type=float, metavar="X", help="device memory for a layer's intermediate results"
    )
    for flag, meaning in (
        ("--weight-stripped", "leave weights out of the plans; loading fills them in from the bundle's graphs"),
        ("--refittable", "let weights be replaced in a loaded plan"),
        ("--version-compatible", "let later versions of TensorRT load the plans"),
        ("--hardware-compatible", "let all GPUs from Ampere on run the plans"),
    ):
        group.add_argument(flag, action="store_true", default=None, help=meaning)
    group.add_argument(
        "--tensorrt-binding",
        choices=TENSORRT_BINDINGS,
        help="full TensorRT, or TensorRT for RTX, which builds without a GPU (default: the full one where it is "
        "installed)",
    )
    group.add_argument(
        "--target-sm",
        type=lambda text: tuple(text.split(",")),
        metavar="SM[,SM]",
        help="compute capabilities that TensorRT for RTX builds for, such as 8.9 (default: all that it calls portable)",
    )


def tensorrt_options(args: argparse.Namespace) -> TensorRTOptions | None:
    """The options whose flags were given; None when none was.

    Raises:
        UserError: a value is impossible, or two do not go together.
    """
    given = {name: getattr(args, flag) for flag, name in _FIELDS.items() if getattr(args, flag) is not None}
    return TensorRTOptions(**given) if given else None


def plan_lines(found: Mapping[str, Any]) -> list[str]:
    """What `ConfigurableEngine.preview` of the engine ``trt`` says, for the terminal."""
    gpu, library = found["gpu"], found["plugin_library"]
    lines = [
        f"  binding    {found['binding']}, "
        + (f"on {gpu['name']} (compute capability {gpu['sm']}, driver {gpu['driver']})" if gpu else "no GPU here"),
        f"  attention  {found['attention']}{f' ({library})' if library else ''}",
        f"  flags      {', '.join(found['flags'])}",
    ]
    if found["workspace_gib"] is not None:
        lines.append(f"  workspace  {found['workspace_gib']:g} GiB")
    for graph, ranges in found["profiles"].items():
        lines += [f"  {graph}", *_aligned(ranges)]
    return lines


def _aligned(ranges: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each run of inputs that share their range, such as the caches of layers between two stages."""
    rows = []
    for shown, group in groupby(ranges, key=_range):
        names = [one["name"] for one in group]
        rows.append((names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", shown))
    width = max((len(name) for name, _ in rows), default=0)
    return [f"    {name.ljust(width)}  {shown}" for name, shown in rows]


def _range(one: Mapping[str, Any]) -> str:
    sign = "," if one["values"] else "×"
    return " … ".join(sign.join(map(str, one[case])) for case in ("least", "usual", "most"))
