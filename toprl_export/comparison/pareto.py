"""``pareto.png``: retention against tokens kept, and against measured prefill latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toprl_export.comparison.result import Comparison, MethodRow
from toprl_export.errors import require
from toprl_export.evaluation.figures import png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart; yellow is left out, for it is too pale on white.
_AGENT_COLOURS = ("#D55E00", "#0072B2", "#009E73")
_BASELINE_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#000000", "#8C7A5B")
_DASHES = ("-", "--", ":")
_MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">", "h", "p")
_GREY = "#6B6B6B"


@dataclass(frozen=True)
class Line:
    """One method's points, from the smallest budget to the largest.

    Attributes:
        name: the method's.
        kept: average tokens kept.
        latency: median prefill milliseconds; empty where not all were measured.
        retention: mean over the tasks, in %.
        low: lower end of its interval, in %.
        high: upper end.
    """

    name: str
    kept: tuple[float, ...]
    latency: tuple[float, ...]
    retention: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    width: float
    size: float
    dashes: str


def pareto_png(comparison: Comparison) -> bytes:
    """The picture: a panel for tokens, and one for latency where that was measured. Only methods that have all tasks.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    lines = method_lines(comparison)
    styles = _styles(comparison.methods)
    timed = comparison.latency is not None
    figure = Figure(figsize=(12.5 if timed else 8, 5.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    for axes in panels:
        _prepare(axes)
    # Wide lines come last: agents lie above the baselines.
    for line in sorted(lines, key=lambda one: styles[one.name].width):
        _draw(panels[0], line.kept, line, styles[line.name])
        if timed and line.latency:
            _draw(panels[1], line.latency, line, styles[line.name])
    _label_tokens(panels[0], comparison)
    panels[0].set_ylabel(f"accuracy retained, {comparison.averaged_over} (%)")
    if timed:
        _label_latency(panels[1], comparison)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    order = [line.name for line in sorted(lines, key=lambda one: -one.retention[0])]
    figure.legend(
        [handles[name] for name in order], order, loc="outside right upper", frameon=False, title="best first"
    )
    return png_bytes(figure)


def method_lines(comparison: Comparison) -> list[Line]:
    """The lines of the plot."""
    found = []
    for method in comparison.pruned:
        if method.kind == "baseline per task":
            continue  # too many lines: their figures are in the tables
        averages = [comparison.average(method.name, budget) for budget in sorted(comparison.budgets_kept)]
        points = [one for one in averages if one is not None]
        if not points:
            continue
        table = comparison.latency
        # A line of latencies with gaps would mislead: all its points, or none.
        timed = [table.find(method.name, one.budget_kept) for one in points] if table else []
        times = [one.prefill_ms for one in timed if one is not None]
        found.append(
            Line(
                name=method.name,
                kept=tuple(one.average_kept for one in points),
                latency=tuple(times) if len(times) == len(points) else (),
                retention=tuple(one.retention.value * 100 for one in points),
                low=tuple(one.retention.ci95[0] * 100 for one in points),
                high=tuple(one.retention.ci95[1] * 100 for one in points),
            )
        )
    return found


def _styles(methods: tuple[MethodRow, ...]) -> dict[str, _Style]:
    """Agents stand out by colour, width and size; baselines differ in marker, and in colour or dashes."""
    styles: dict[str, _Style] = {}
    agents = [method.name for method in methods if method.kind == "agent"]
    baselines = [method.name for method in methods if method.kind == "baseline"]
    for at, name in enumerate(agents):
        styles[name] = _Style(_AGENT_COLOURS[at % len(_AGENT_COLOURS)], "*" if at == 0 else "d", 2.6, 13, "-")
    for at, name in enumerate(baselines):
        colour = _BASELINE_COLOURS[at % len(_BASELINE_COLOURS)]
        dashes = _DASHES[at // len(_BASELINE_COLOURS) % len(_DASHES)]
        styles[name] = _Style(colour, _MARKERS[at % len(_MARKERS)], 1.3, 7.5, dashes)
    for method in methods:
        if method.kind == "oracle":
            styles[method.name] = _Style(_GREY, "x", 1.2, 6, ":")
    return styles


def _prepare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    axes.axhline(100, color=_GREY, linewidth=1, linestyle="--")
    axes.annotate(
        "unpruned",
        (1, 100),
        xycoords=("axes fraction", "data"),
        xytext=(0, 5),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=_GREY,
    )


def _draw(axes: Axes, places: tuple[float, ...], line: Line, style: _Style) -> None:
    """The line, with whiskers for the methods that stand out."""
    axes.plot(
        places,
        line.retention,
        color=style.colour,
        marker=style.marker,
        markersize=style.size,
        markeredgecolor="white" if style.marker != "x" else style.colour,
        linewidth=style.width,
        linestyle=style.dashes,
        label=line.name,
    )
    if style.width > 2:
        axes.vlines(places, line.low, line.high, color=style.colour, linewidth=1.5)


def _label_tokens(axes: Axes, comparison: Comparison) -> None:
    n = comparison.visual_tokens
    axes.plot([n], [100], color=_GREY, marker="o", markersize=7, clip_on=False)
    # Budgets usually halve from one to the next.
    axes.set_xscale("log", base=2)
    ticks = sorted({*comparison.budgets_kept, n})
    axes.set_xticks(ticks, [f"{budget}\n{budget / n:.0%}" for budget in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"visual tokens kept on average, of {n}")


def _label_latency(axes: Axes, comparison: Comparison) -> None:
    table = comparison.latency
    unpruned = table.find(comparison.reference.name, comparison.visual_tokens) if table else None
    note = f" (unpruned: {unpruned.prefill_ms:.0f} ms)" if unpruned else ""
    axes.set_xlim(left=0)
    axes.set_xlabel(f"median prefill of one question, ms{note}")
