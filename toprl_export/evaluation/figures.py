"""What plots share: font sizes, colours that colour-blind readers tell apart, PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from toprl_export.evaluation.estimates import Estimate

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette (2008) without its yellow, which is too pale for lines."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
HEAT: Final = "cividis"
"""A colour map of even lightness steps, made for colour-blind readers (Nuñez et al. 2018)."""
SMALL_FONT: Final = 8
DPI: Final = 160


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    figure.suptitle(title, fontsize=11)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def style_axes(axes: Axes) -> None:
    """Small tick labels, a light grid behind the data, no frame above and to the right."""
    axes.tick_params(labelsize=SMALL_FONT)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def error_bars(estimates: list[Estimate]) -> tuple[list[float], list[list[float]]]:
    """Values in per cent, and how far their intervals reach below and above them, as matplotlib's ``yerr`` takes it."""
    values = [100 * one.value for one in estimates]
    below = [max(0.0, 100 * (one.value - one.ci95[0])) for one in estimates]
    above = [max(0.0, 100 * (one.ci95[1] - one.value)) for one in estimates]
    return values, [below, above]


def text_colour_on(shade: float) -> str:
    """Black or white, whichever reads better on the colour map's colour for ``shade`` (0 dark to 1 light)."""
    return "black" if shade > 0.55 else "white"
