"""The picture of each analysis, drawn from its result; ``draw`` chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from toprl_export.analysis.ablate import Ablation
from toprl_export.analysis.cliff import Cliff
from toprl_export.analysis.results import AnalysisResult
from toprl_export.analysis.sensitivity import Sensitivity, SensitivityMap
from toprl_export.analysis.transfer import Transfer, TransferEntry
from toprl_export.evaluation.figures import (
    COLOURS,
    HEAT,
    MARKERS,
    SMALL_FONT,
    error_bars,
    new_figure,
    png_bytes,
    style_axes,
    text_colour_on,
)
from toprl_export.evaluation.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_SPREAD: Final = 0.3
"""How much of the space between two layers the curves share, so that their error bars do not cover each other."""
MAP_COLUMNS: Final = 2
CELL_INCHES: Final = (0.52, 0.36)
"""Width and height of a heat map's cell."""
FRAME_COLOUR: Final = "#D55E00"
TASK_COLOURS: Final = (*COLOURS[:-1], "#7F7F7F")
"""Black is the average's."""


def draw(result: AnalysisResult) -> bytes:
    """The picture of any analysis, as PNG bytes."""
    return _DRAWN_BY[type(result)](result)


def draw_cliff(cliff: Cliff) -> bytes:
    """A panel for perception and one for reasoning, a curve for each task; PNG bytes."""
    levels = [level for level in ("perception", "reasoning") if any(curve.level == level for curve in cliff.curves)]
    depth = cliff.provenance.decoder_layers
    width = max(5.2 if len(levels) > 1 else 6.6, min(9.0, 0.3 * depth + 2.4))
    figure = new_figure(width * len(levels), 4.6, "Information cliff: all visual tokens removed before one layer")
    panels = figure.subplots(1, len(levels), squeeze=False, sharey=True)[0]
    for axes, level in zip(panels, levels, strict=True):
        _draw_curves(axes, cliff, level)
    panels[0].set_ylabel("accuracy retained, % of unpruned", fontsize=9)
    return png_bytes(figure)


def _draw_curves(axes: Axes, cliff: Cliff, level: str) -> None:
    style_axes(axes)
    axes.axhline(100, color="#888888", linewidth=0.8)
    depth = cliff.provenance.decoder_layers
    # Numbered over both panels, so that no two tasks look alike.
    curves = [(at, curve) for at, curve in enumerate(cliff.curves) if curve.level == level]
    for place, (at, curve) in enumerate(curves):
        shift = CURVE_SPREAD * ((place + 0.5) / len(curves) - 0.5)
        values, reach = error_bars([point.retention for point in curve.points])
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
    axes.legend(fontsize=SMALL_FONT, loc="lower right", framealpha=0.95)


def draw_sensitivity(found: Sensitivity) -> bytes:
    """A heat map for each task, layers from top to bottom, tokens kept from left to right; PNG bytes."""
    columns = min(MAP_COLUMNS, len(found.maps))
    rows = -(-len(found.maps) // columns)
    width = columns * (CELL_INCHES[0] * len(found.ratios) + 0.9) + 0.9
    height = rows * (CELL_INCHES[1] * len(found.layers) + 0.95) + 0.6
    title = "Accuracy retained after one cut by FastV's score, % of unpruned (small: half-width of the 95% interval)"
    figure = new_figure(max(width, 7.5), height, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    images = [_draw_map(axes, found, one) for axes, one in zip(grid.flat, found.maps, strict=False)]
    for axes in grid.flat[len(found.maps) :]:
        axes.set_visible(False)
    bar = figure.colorbar(images[0], ax=grid, shrink=0.6, pad=0.01)
    bar.set_label("accuracy retained, %", fontsize=9)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    return png_bytes(figure)


def _draw_map(axes: Axes, found: Sensitivity, one: SensitivityMap) -> Any:
    shape = (len(found.layers), len(found.ratios))
    values = np.array([100 * cell.retention.value for cell in one.cells]).reshape(shape)
    reach = np.array([50 * (cell.retention.ci95[1] - cell.retention.ci95[0]) for cell in one.cells]).reshape(shape)
    image = axes.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(shape):
        value = float(values[row, column])
        colour = text_colour_on(value / 100)
        axes.text(column, row - 0.12, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=SMALL_FONT)
        axes.text(
            column, row + 0.27, f"±{reach[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=5.5
        )
    axes.set_xticks(range(shape[1]), [f"{100 * ratio:g}" for ratio in found.ratios])
    axes.set_yticks(range(shape[0]), [str(layer) for layer in found.layers])
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    axes.set_xlabel(f"visual tokens kept, % of {found.provenance.visual_tokens}", fontsize=SMALL_FONT)
    axes.set_ylabel("cut before layer", fontsize=SMALL_FONT)
    axes.set_title(f"{one.task} ({one.level}, n = {one.questions:,})", fontsize=9)
    return image


def draw_transfer(found: Transfer) -> bytes:
    """A matrix, rows the agents, columns the tasks, the diagonal framed; PNG bytes."""
    size = len(found.columns)
    title = f"Cross-task transfer at {found.budget_kept} of {found.provenance.visual_tokens} visual tokens kept"
    figure = new_figure(1.3 * size + 3.6, 0.78 * size + 1.9, title)
    axes = figure.subplots()
    # Where the diagonal has no correct answer there is no ratio; the entry then counts as no worse.
    shares = np.array(
        [[_share(column.entries[row]) for column in found.columns] for row in range(len(found.trained_for))]
    )
    # The colour scale starts at a half, or lower where an agent is worse than that.
    floor = min(0.5, float(shares.min()))
    image = axes.imshow(np.minimum(shares, 1), cmap=HEAT, vmin=floor, vmax=1, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        entry = found.columns[column].entries[row]
        colour = text_colour_on((min(float(shares[row, column]), 1.0) - floor) / (1 - floor))
        axes.text(
            column, row - 0.2, f"{entry.accuracy.value:.1%}", ha="center", va="center", color=colour, weight="bold",
            fontsize=9,
        )  # fmt: skip
        axes.text(column, row + 0.16, _relative(entry), ha="center", va="center", color=colour, fontsize=6.5)
        if entry.trained_for == found.columns[column].task:
            _frame(axes, row, column)
    _label_matrix(axes, found)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("accuracy relative to the diagonal (above it: 1)", fontsize=9)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    return png_bytes(figure)


def _share(entry: TransferEntry) -> float:
    return 1.0 if entry.relative is None else entry.relative.value


def _relative(entry: TransferEntry) -> str:
    low, high = (100 * end for end in entry.difference.ci95)
    return f"{100 * entry.difference.value:+.1f} points\n[{low:+.1f}, {high:+.1f}]"


def _frame(axes: Axes, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=FRAME_COLOUR, linewidth=2.2)
    )


def _label_matrix(axes: Axes, found: Transfer) -> None:
    levels = [column.level for column in found.columns]
    for at in range(1, len(levels)):
        if levels[at] != levels[at - 1]:
            axes.axhline(at - 0.5, color="white", linewidth=3)
            axes.axvline(at - 0.5, color="white", linewidth=3)
    questions = [f"{column.task}\n{column.level}\nn = {column.questions:,}" for column in found.columns]
    trained = [f"{name}\n({counted(len(found.seeds[name]), 'seed')})" for name in found.trained_for]
    axes.set_xticks(range(len(questions)), questions)
    axes.set_yticks(range(len(trained)), trained)
    axes.tick_params(labelsize=SMALL_FONT, length=0)
    axes.set_xlabel(
        "questions of the task; bold: accuracy, small: difference to the framed agent trained for it [95% interval]",
        fontsize=SMALL_FONT,
    )
    axes.set_ylabel("agent trained for", fontsize=9)


def draw_ablation(found: Ablation) -> bytes:
    """How far each variant's accuracy is from the recipe's, averaged and on each task; PNG bytes."""
    rows = found.rows[1:]
    title = (
        f"Ablation of {found.recipe} at {found.budget_kept} of {found.provenance.visual_tokens} visual tokens kept, "
        f"{counted(len(found.seeds), 'seed')}"
    )
    figure = new_figure(9.0, 0.34 * max(len(rows), 1) + 2.6, title)
    axes = figure.subplots()
    style_axes(axes)
    axes.axvline(0, color="#555555", linewidth=1)
    places = list(range(len(rows)))
    for at, task in enumerate(found.tasks):
        shift = 0.5 * ((at + 0.5) / len(found.tasks) - 0.5)
        axes.plot(
            [100 * row.entries[at].difference.value for row in rows],
            [place + shift for place in places],
            color=TASK_COLOURS[at % len(TASK_COLOURS)],
            marker=MARKERS[at % len(MARKERS)],
            linestyle="none",
            markersize=4.5,
            label=f"{task.task} (n = {task.questions:,})",
        )
    values, reach = error_bars([row.difference for row in rows])
    axes.errorbar(
        values, places, xerr=reach, color="black", marker="|", markersize=11, linestyle="none", elinewidth=1.6,
        capsize=3, label="average, 95% interval over questions", zorder=3,
    )  # fmt: skip
    _label_variants(axes, found)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=SMALL_FONT, loc="outside lower center", ncol=3)
    return png_bytes(figure)


def _label_variants(axes: Axes, found: Ablation) -> None:
    rows = found.rows[1:]
    axes.set_yticks(range(len(rows)), [f"{row.group}: {row.text}" for row in rows])
    # The first variant at the top.
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for at in range(1, len(rows)):
        if rows[at].group != rows[at - 1].group:
            axes.axhline(at - 0.5, color="#999999", linewidth=0.8)
    axes.set_xlabel(
        "accuracy minus that of the recipe as it is, percentage points\n"
        f"(which retains {found.rows[0].retention.value:.1%} of the unpruned accuracy on average)",
        fontsize=9,
    )


_DRAWN_BY: Final[Mapping[type[AnalysisResult], Callable[[Any], bytes]]] = {
    Cliff: draw_cliff,
    Sensitivity: draw_sensitivity,
    Transfer: draw_transfer,
    Ablation: draw_ablation,
}
