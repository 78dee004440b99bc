"""The picture of cross-task transfer: a matrix, rows the agents, columns the tasks, the diagonal framed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from toprl_export.evaluation.figures import HEAT, SMALL, counted, ink_on, new_figure, png_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toprl_export.analyze.transfer import Transfer, TransferEntry

FRAME = "#D55E00"


def draw_transfer(found: Transfer) -> bytes:
    """PNG bytes."""
    size = len(found.columns)
    title = f"Cross-task transfer at {found.budget_kept} of {found.provenance.visual_tokens} visual tokens kept"
    figure = new_figure(1.3 * size + 3.6, 0.78 * size + 1.9, title)
    axes = figure.subplots()
    # Where the diagonal has nothing right there is no ratio; the entry then counts as no worse.
    shares = np.array(
        [[_share(column.entries[row]) for column in found.columns] for row in range(len(found.trained_for))]
    )
    floor = min(0.5, float(shares.min()))
    image = axes.imshow(np.minimum(shares, 1), cmap=HEAT, vmin=floor, vmax=1, aspect="auto")
    for row, column in np.ndindex(shares.shape):
        entry = found.columns[column].entries[row]
        ink = ink_on((min(float(shares[row, column]), 1.0) - floor) / (1 - floor))
        axes.text(
            column, row - 0.2, f"{entry.accuracy.value:.1%}", ha="center", va="center", color=ink, weight="bold",
            fontsize=9,
        )  # fmt: skip
        axes.text(column, row + 0.16, _relative(entry), ha="center", va="center", color=ink, fontsize=6.5)
        if entry.trained_for == found.columns[column].task:
            _frame(axes, row, column)
    _label(axes, found)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("accuracy relative to the diagonal (above it: 1)", fontsize=9)
    bar.ax.tick_params(labelsize=SMALL)
    return png_bytes(figure)


def _share(entry: TransferEntry) -> float:
    return 1.0 if entry.relative is None else entry.relative.value


def _relative(entry: TransferEntry) -> str:
    low, high = (100 * end for end in entry.difference.ci95)
    return f"{100 * entry.difference.value:+.1f} points\n[{low:+.1f}, {high:+.1f}]"


def _frame(axes: Axes, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=FRAME, linewidth=2.2))


def _label(axes: Axes, found: Transfer) -> None:
    levels = [column.level for column in found.columns]
    for at in range(1, len(levels)):
        if levels[at] != levels[at - 1]:
            axes.axhline(at - 0.5, color="white", linewidth=3)
            axes.axvline(at - 0.5, color="white", linewidth=3)
    asked = [f"{column.task}\n{column.level}\nn = {column.questions:,}" for column in found.columns]
    trained = [f"{name}\n({counted(len(found.seeds[name]), 'seed')})" for name in found.trained_for]
    axes.set_xticks(range(len(asked)), asked)
    axes.set_yticks(range(len(trained)), trained)
    axes.tick_params(labelsize=SMALL, length=0)
    axes.set_xlabel(
        "questions of the task; bold: accuracy, small: difference to the framed agent trained for it [95% interval]",
        fontsize=SMALL,
    )
    axes.set_ylabel("agent trained for", fontsize=9)
