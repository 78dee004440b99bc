"""The picture of pruning sensitivity: a heat map a task, layers from top to bottom, tokens kept from left to right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from toprl_export.evaluation.figures import HEAT, SMALL, ink_on, new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toprl_export.analyze.sensitivity import Sensitivity, SensitivityMap

COLUMNS = 2
COLUMN_INCHES = 0.52
ROW_INCHES = 0.36


def draw_sensitivity(found: Sensitivity) -> bytes:
    """PNG bytes."""
    columns = min(COLUMNS, len(found.maps))
    rows = -(-len(found.maps) // columns)
    width = columns * (COLUMN_INCHES * len(found.ratios) + 0.9) + 0.9
    height = rows * (ROW_INCHES * len(found.layers) + 0.95) + 0.6
    title = "Accuracy retained after one cut by FastV's score, % of unpruned (small: half-width of the 95% interval)"
    figure = new_figure(max(width, 7.5), height, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    images = [_draw_map(axes, found, one) for axes, one in zip(grid.flat, found.maps, strict=False)]
    for axes in grid.flat[len(found.maps) :]:
        axes.set_visible(False)
    bar = figure.colorbar(images[0], ax=grid, shrink=0.6, pad=0.01)
    bar.set_label("accuracy retained, %", fontsize=9)
    bar.ax.tick_params(labelsize=SMALL)
    return png_bytes(figure)


def _draw_map(axes: Axes, found: Sensitivity, one: SensitivityMap) -> Any:
    shape = (len(found.layers), len(found.ratios))
    values = np.array([100 * cell.retention.value for cell in one.cells]).reshape(shape)
    reach = np.array([50 * (cell.retention.ci95[1] - cell.retention.ci95[0]) for cell in one.cells]).reshape(shape)
    image = axes.imshow(values, cmap=HEAT, vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(shape):
        value = float(values[row, column])
        ink = ink_on(value / 100)
        axes.text(column, row - 0.12, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=SMALL)
        axes.text(column, row + 0.27, f"±{reach[row, column]:.0f}", ha="center", va="center", color=ink, fontsize=5.5)
    axes.set_xticks(range(shape[1]), [f"{100 * ratio:g}" for ratio in found.ratios])
    axes.set_yticks(range(shape[0]), [str(layer) for layer in found.layers])
    axes.tick_params(labelsize=SMALL, length=2)
    axes.set_xlabel(f"visual tokens kept, % of {found.provenance.visual_tokens}", fontsize=SMALL)
    axes.set_ylabel("cut before layer", fontsize=SMALL)
    axes.set_title(f"{one.task} ({one.level}, n = {one.questions:,})", fontsize=9)
    return image
