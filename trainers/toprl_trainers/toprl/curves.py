"""Training curves as CSV and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from toprl_trainers.toprl.state import column_names


def curves_csv(curves: Sequence[Sequence[float]], stages: int) -> str:
    """One line an update, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column_names(stages))
    writer.writerows([int(row[0]), *(f"{value:.6g}" for value in row[1:])] for row in curves)
    return text.getvalue()


def curves_png(curves: Sequence[Sequence[float]], stages: int, title: str) -> bytes:
    """Six small plots over the updates: reward, quality, tokens kept, entropy, explained variance, KL."""
    from matplotlib.figure import Figure

    names = column_names(stages)
    columns = dict(zip(names, zip(*curves, strict=True), strict=True))
    kept = [name for name in names if name.startswith("kept_stage_")]
    panels = [["reward"], ["quality"], kept, ["entropy"], ["explained_variance"], ["kl"]]
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in panel:
            axes.plot(columns["update"], columns[name], linewidth=1, label=name.replace("_", " "))
        axes.set_title("tokens kept" if panel is kept else panel[0].replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=8)
        if panel is kept:
            axes.legend(fontsize=7)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()
