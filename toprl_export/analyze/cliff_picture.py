"""The picture of the information cliff: a panel for perception and one for reasoning, a curve a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toprl_export.evaluation.figures import COLOURS, MARKERS, SMALL, new_figure, png_bytes, quiet_axes, whiskers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toprl_export.analyze.cliff import Cliff

SPREAD = 0.3
"""How much of the space between two layers the curves share, so that whiskers do not cover each other."""


def draw_cliff(cliff: Cliff) -> bytes:
    """PNG bytes."""
    levels = [level for level in ("perception", "reasoning") if any(curve.level == level for curve in cliff.curves)]
    depth = cliff.provenance.decoder_layers
    width = max(5.2 if len(levels) > 1 else 6.6, min(9.0, 0.3 * depth + 2.4))
    figure = new_figure(width * len(levels), 4.6, "Information cliff: all visual tokens removed before one layer")
    panels = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
    for axes, level in zip(panels, levels, strict=True):
        _draw_level(axes, cliff, level)
    panels[0].set_ylabel("accuracy retained, % of unpruned", fontsize=9)
    return png_bytes(figure)


def _draw_level(axes: Axes, cliff: Cliff, level: str) -> None:
    quiet_axes(axes)
    axes.axhline(100, color="#888888", linewidth=0.8)
    depth = cliff.provenance.decoder_layers
    # Numbered over both panels, so that no two tasks look alike.
    curves = [(at, curve) for at, curve in enumerate(cliff.curves) if curve.level == level]
    for place, (at, curve) in enumerate(curves):
        shift = SPREAD * ((place + 0.5) / len(curves) - 0.5)
        values, reach = whiskers([point.retention for point in curve.points])
        axes.errorbar(
            [point.layer + shift for point in curve.points],
            values,
            yerr=reach,
            color=COLOURS[at % len(COLOURS)],
            marker=MARKERS[at % len(MARKERS)],
            linestyle="-" if at < len(COLOURS) else "--",
            markersize=4.5,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2,
            label=f"{curve.task} (n = {curve.questions:,})",
        )
    ticks = [*range(0, depth, max(1, depth // 16)), depth]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), "none"])
    axes.set_ylim(bottom=-3)
    axes.set_title(level, fontsize=10)
    axes.set_xlabel("removed before decoder layer (counted from 0); whiskers: 95% intervals", fontsize=9)
    axes.legend(fontsize=SMALL, loc="lower right", framealpha=0.95)
