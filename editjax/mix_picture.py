"""A picture of a mix: its spectrum beside the plain sum's and the goal's, and what was set for every stem."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from editjax.picture import EDITOR_COLOURS, FAINT, INK, new_figure, plain_text, save
from editjax.sheet import Sheet

BANDS = ("low_db", "low_mid_db", "high_mid_db", "high_db")


def draw_mix(
    path: str | Path,
    sheet: Sheet,
    centre_F: np.ndarray,
    levels: Sequence[tuple[str, np.ndarray]],
    title: str,
    overwrite: bool = False,
) -> None:
    """Draws named levels (F,) in dB at the frequencies, and each stem's gain, bands and place."""
    figure = new_figure(16.0, 4.0 + 0.42 * len(sheet.names))
    spectrum, table = figure.subplots(2, 1, height_ratios=(3.2, 0.6 + 0.42 * len(sheet.names)))
    figure.subplots_adjust(left=0.17, right=0.985, top=0.92, bottom=0.05, hspace=0.28)
    for (name, level_F), colour in zip(levels, EDITOR_COLOURS, strict=False):
        spectrum.plot(centre_F, level_F - level_F.max(), color=colour, label=name, linewidth=2)
    spectrum.set_xscale("log")
    spectrum.set_xticks([50, 100, 200, 500, 1000, 2000, 5000, 10_000])
    spectrum.set_xticklabels(["50", "100", "200", "500", "1k", "2k", "5k", "10k Hz"], color=INK)
    spectrum.set_ylim(-60, 3)
    spectrum.set_ylabel("dB", color=INK)
    spectrum.legend(frameon=False, ncols=4, fontsize=11, loc="lower left")
    spectrum.spines[["top", "right"]].set_visible(False)
    _draw_settings(table, sheet)
    figure.text(0.012, 0.955, plain_text(title), fontsize=14, fontweight="bold", color=INK)
    save(figure, path, overwrite)


def _draw_settings(axes, sheet: Sheet) -> None:
    """A row a stem, bars of dB."""
    columns = ("gain_db", *BANDS)
    for row, (name, strip) in enumerate(zip(sheet.names, sheet.strips, strict=True)):
        for column, setting in enumerate(columns):
            value = float(getattr(strip, setting))
            axes.barh(-row, value / 15.0, left=column, height=0.6, color=EDITOR_COLOURS[column % 2])
            axes.text(column + 0.42, -row, f"{value:+.1f}", ha="right", va="center", fontsize=9, color=INK)
        rest = f"cut {strip.low_cut_hz:.0f} Hz, pan {strip.pan:+.2f}, width {strip.width:.2f}"
        if strip.ratio > 1.0:
            rest += f", {strip.ratio:.0f}:1 above {strip.threshold_db:.1f} dB"
        axes.text(len(columns) - 0.4, -row, rest, va="center", fontsize=9, color=INK)
        axes.text(-0.55, -row, plain_text(name), ha="right", va="center", fontsize=10, color=INK)
    for column, setting in enumerate(columns):
        axes.text(
            column, 0.8, setting.replace("_db", "").replace("_", " "), ha="center", fontsize=10, color=INK
        )
        axes.axvline(column, color=FAINT, linewidth=0.6)
    axes.set_xlim(-0.5, len(columns) + 1.6)
    axes.set_ylim(-len(sheet.names) + 0.4, 1.2)
    axes.set_axis_off()
