"""The picture of an ablation: how far each variant's accuracy is from the recipe's, averaged and on each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toprl_export.evaluation.figures import (
    COLOURS,
    MARKERS,
    SMALL,
    counted,
    new_figure,
    png_bytes,
    quiet_axes,
    whiskers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from toprl_export.analyze.ablate import Ablation

TASK_COLOURS = (*COLOURS[:-1], "#7F7F7F")
"""Black is the average's."""


def draw_ablation(found: Ablation) -> bytes:
    """PNG bytes."""
    rows = found.rows[1:]
    title = (
        f"Ablation of {found.recipe} at {found.budget_kept} of {found.provenance.visual_tokens} visual tokens kept, "
        f"{counted(len(found.seeds), 'seed')}"
    )
    figure = new_figure(9.0, 0.34 * max(len(rows), 1) + 2.6, title)
    axes = figure.subplots()
    quiet_axes(axes)
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
    values, reach = whiskers([row.difference for row in rows])
    axes.errorbar(
        values, places, xerr=reach, color="black", marker="|", markersize=11, linestyle="none", elinewidth=1.6,
        capsize=3, label="average, 95% interval over questions", zorder=3,
    )  # fmt: skip
    _label(axes, found)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=SMALL, loc="outside lower center", ncol=3)
    return png_bytes(figure)


def _label(axes: Axes, found: Ablation) -> None:
    rows = found.rows[1:]
    axes.set_yticks(range(len(rows)), [f"{row.group}: {row.text}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for at in range(1, len(rows)):
        if rows[at].group != rows[at - 1].group:
            axes.axhline(at - 0.5, color="#999999", linewidth=0.8)
    axes.set_xlabel(
        "accuracy minus that of the recipe as it is, percentage points\n"
        f"(which retains {found.rows[0].retention.value:.1%} of the unpruned accuracy on average)",
        fontsize=9,
    )
