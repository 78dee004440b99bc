"""The command line's part of the engine `trt`: its own flags, and its plans, bundles and reports in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from toprl_engines.trt.binding import BINDINGS
from toprl_engines.trt.options import ATTENTIONS, TensorRTOptions

if TYPE_CHECKING:
    from toprl_engines.trt.build_report import BuildReport

DISTRIBUTIONS = ("tensorrt", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12", "tensorrt_rtx", "cuda-bindings")
"""Of TensorRT, of TensorRT for RTX, and of what plans are run with."""
MB = 1e6

_DEFAULT = TensorRTOptions()
_FIELDS = {"tensorrt_binding": "binding", "target_sm": "target_sms"}
"""From the names of flags to those of the options, where they differ."""


def _target_sms(value: Any) -> tuple[str, ...]:
    """A click type: compute capabilities separated by commas, or a list of them from a configuration file."""
    return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, value))


def _number(flag: str, meaning: str, default: int) -> click.Option:
    described = f"{meaning} (default: {default})"
    return click.Option([flag], type=click.IntRange(min=1), metavar="N", help=described)


def _switch(flag: str, meaning: str) -> click.Option:
    return click.Option([flag], is_flag=True, default=None, help=meaning)


def read_report(path: Path) -> tuple[dict[str, Any], str]:
    """A ``build_report.json`` as JSON and in words.

    Raises:
        UserError: it is missing, of another version, or a field is wrong.
    """
    from toprl_engines.trt.build_report import read_build_report

    report = read_build_report(path)
    return report.to_json(), _describe_report(path, report)


def _describe_report(path: Path, report: BuildReport) -> str:
    from toprl_engines.trt.build_report import KINDS

    workspace = "TensorRT's own limit" if report.workspace_bytes is None else f"{report.workspace_bytes / MB:.0f} MB"
    facts = {
        "report": str(path),
        "built by": report.binding,
        "precision": f"{report.precision}, attention {report.attention}",
        "flags": ", ".join(report.flags),
        "workspace": workspace,
        "timings": "reused from an earlier build" if report.timing_cache else "none reused",
    }
    rows = [
        (
            name,
            f"{graph.seconds:.1f} s",
            f"{graph.plan_bytes / MB:.2f} MB",
            "-" if graph.activation_bytes is None else f"{graph.activation_bytes / MB:.2f} MB",
            *(f"{graph.kinds[kind]} → {graph.engine_kinds[kind]}" for kind in KINDS),
        )
        for name, graph in report.graphs.items()
    ]
    warnings = [f"{name}: {line}" for name, graph in report.graphs.items() for line in graph.warnings]
    parts = [
        "\n".join(f"{name:<12}{value}" for name, value in facts.items()),
        _table(("graph", "took", "plan", "activations", *KINDS), rows),
        "layers as parsed → as built",
        *(["\n".join(warnings)] if warnings else []),
    ]
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)


class TensorRTCommandLine:
    """The engine `trt` on the command line. Every option's value is None unless it is given."""

    title = "TensorRT (--engine trt)"
    providers: tuple[str, ...] = ()
    run_options: Mapping[str, Sequence[str]] = MappingProxyType({})
    readers: Mapping[str, Callable[[Path], tuple[dict[str, Any], str]]] = MappingProxyType(
        {"toprl-export/trt-build": read_report}
    )
    build_options: Sequence[click.Option] = (
        click.Option(
            ["--attention"],
            type=click.Choice(ATTENTIONS),
            help="what computes attention: the FlashAttention plugin or TensorRT itself "
            "(default: plugin with --plugin-library, else native)",
        ),
        click.Option(
            ["--plugin-library"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="the plugin, as engines/flash_attention/build.sh builds it; --attention plugin without it takes the "
            "plugin's Python route",
        ),
        _number("--max-batch", "maximum batch size: questions at once", _DEFAULT.max_batch),
        _number("--max-text", "maximum number of text tokens in a prompt", _DEFAULT.max_text),
        _number("--max-new-tokens", "maximum length of an answer, in tokens", _DEFAULT.max_new_tokens),
        click.Option(
            ["--workspace-gib"],
            type=float,
            metavar="X",
            help="device memory for a layer's intermediate results",
        ),
        _switch("--weight-stripped", "leave weights out of the plans; loading fills them in from the bundle's graphs"),
        _switch("--refittable", "let weights be replaced in a loaded plan"),
        _switch("--version-compatible", "let later versions of TensorRT load the plans"),
        _switch("--hardware-compatible", "let all GPUs from Ampere on run the plans"),
        click.Option(
            ["--tensorrt-binding"],
            type=click.Choice(tuple(BINDINGS)),
            help="full TensorRT, or TensorRT for RTX, which builds without a GPU (default: the full one where it is "
            "installed)",
        ),
        click.Option(
            ["--target-sm"],
            type=_target_sms,
            metavar="SM[,SM]",
            help="compute capabilities that TensorRT for RTX builds for, such as 8.9 (default: all that it calls "
            "portable)",
        ),
    )

    def options(self, values: Mapping[str, Any]) -> TensorRTOptions | None:
        """The options whose flags were given; None when none was.

        Args:
            values: of `build_options`, by parameter name.

        Raises:
            UserError: a value is impossible, or two contradict each other.
        """
        names = [str(option.name) for option in self.build_options]
        # A switch that is not given is None or, where a configuration file says so, false: both leave the default.
        given = {name: values[name] for name in names if values.get(name) not in (None, False)}
        return TensorRTOptions(**{_FIELDS.get(name, name): value for name, value in given.items()}) if given else None

    def diagnose(self) -> dict[str, Any]:
        """The installed distributions of TensorRT, and the first GPU."""
        from toprl_engines.trt.compiled import find_gpu

        gpu = find_gpu()
        found = {name: version for name in DISTRIBUTIONS if (version := _installed(name))}
        return {"packages": found, "gpu": None if gpu is None else asdict(gpu)}

    def describe_diagnosis(self, found: Mapping[str, Any]) -> list[str]:
        """A line for the packages, and one for the GPU where there is one."""
        packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
        return [f"TensorRT: {packages or 'not installed'}", *([f"  on {_gpu(found['gpu'])}"] if found["gpu"] else [])]

    def describe_details(self, details: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What compiled a bundle's plans, and for which GPUs.

        Raises:
            UserError: the details are not what this engine writes.
        """
        from toprl_engines.trt.compiled import Compiled

        compiled = Compiled.from_details(dict(details))
        gpu = compiled.gpu
        switches = ("version_compatible", "hardware_compatible", "weight_stripped")
        flags = [name.replace("_", "-") for name in switches if getattr(compiled, name)]
        targets = f"the GPUs that {compiled.binding} builds for by itself"
        if compiled.target_sms:
            targets = f"compute capability {', '.join(compiled.target_sms)}"
        if compiled.hardware_compatible:
            targets = "every GPU from Ampere on"
        return [
            ("plans by", f"{compiled.binding} {compiled.binding_version}, {', '.join(flags) or 'no special flags'}"),
            ("plans on", f"{gpu.name}, driver {gpu.driver}" if gpu else "a machine without a GPU"),
            ("plans for", targets),
            ("attention", compiled.attention),
        ]

    def describe_preview(self, preview: Mapping[str, Any]) -> list[str]:
        """What `TensorRTEngine.preview` says, for `build --dry-run`."""
        gpu, library = preview["gpu"], preview["plugin_library"]
        lines = [
            f"  binding    {preview['binding']}, {f'on {_gpu(gpu)}' if gpu else 'no GPU here'}",
            f"  attention  {preview['attention']}{f' ({library})' if library else ''}",
            f"  flags      {', '.join(preview['flags'])}",
        ]
        if preview["workspace_gib"] is not None:
            lines.append(f"  workspace  {preview['workspace_gib']:g} GiB")
        for graph, ranges in preview["profiles"].items():
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
    return " … ".join(sign.join(map(str, one[case])) for case in ("min", "opt", "max"))


def _gpu(gpu: Mapping[str, str]) -> str:
    return f"{gpu['name']} (compute capability {gpu['sm']}, driver {gpu['driver']})"


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
