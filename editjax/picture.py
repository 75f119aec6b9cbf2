"""Pictures: what an edit does to a recording, how two recordings align, how editors score.

In come an overview of the samples and an `EditList`, pointers, or figures; out goes a PNG, or an SVG or PDF
where the file name says so. Colours are Okabe and Ito's (2008), told apart by the colour-blind.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from editjax.edits import UNALIGNED, EditList, duration_samples, structure_of, summary
from editjax.errors import UsageError
from editjax.files import atomic_path
from editjax.formats import to_float
from editjax.operations import operations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "pdf")
OVERVIEW_BINS = 1600  # one for each pixel of the picture's width
INCHES = (16.0, 6.0)
DOTS_PER_INCH = 100
LEFT, RIGHT = 0.045, 0.98  # the clock of an edit spans this share of the picture
COLOUR_OF_KIND = {"COPY": "#0072B2", "CUT": "#B5B5B5", "LOOP": "#E69F00", "REORDER": "#009E73"}
NAME_OF_KIND = {"COPY": "kept", "CUT": "cut", "LOOP": "looped", "REORDER": "reordered"}
EDITOR_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
INK = "#222222"
FAINT = "#8A8A8A"
TICKS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
MOST_TICKS = 14


def check_suffix(path: str | Path) -> str:
    """The kind of picture that a file's name asks for; raises UsageError for one that is not drawn."""
    kind = Path(path).suffix.lower().lstrip(".") or KINDS[0]
    if kind not in KINDS:
        raise UsageError(f"{path}: pictures are written as {', '.join(KINDS)}; choose one of these")
    return kind


class _Span(NamedTuple):
    """A stretch of one kind of operation: source seconds [start, stop) heard from output second `at`."""

    kind: str
    start_s: float
    stop_s: float
    at_s: float


def overview(reader: Any, bins: int = OVERVIEW_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest sample of all channels in each of `bins` equal stretches, float32 (bins,) each.

    `reader` is an `audio.Reader` or `ArrayReader`; it is read once in blocks. Full scale is ±1; a recording
    shorter than `bins` samples gives one bin a sample.
    """
    bins = max(1, min(bins, reader.frames))
    lowest, highest = np.full(bins, np.inf, np.float32), np.full(bins, -np.inf, np.float32)
    position = 0
    for samples_SC in reader.blocks():
        samples_SC = to_float(samples_SC).reshape(len(samples_SC), -1)
        if not len(samples_SC):
            continue
        bin_S = (position + np.arange(len(samples_SC))) * bins // reader.frames
        edges = np.flatnonzero(np.diff(bin_S, prepend=-1))
        rows = bin_S[edges]
        lowest[rows] = np.minimum(lowest[rows], np.minimum.reduceat(samples_SC.min(axis=1), edges))
        highest[rows] = np.maximum(highest[rows], np.maximum.reduceat(samples_SC.max(axis=1), edges))
        position += len(samples_SC)
    empty = ~np.isfinite(lowest)
    lowest[empty] = highest[empty] = 0.0
    return lowest, highest


def draw_edit(
    path: str | Path,
    peaks_min: np.ndarray,
    peaks_max: np.ndarray,
    edit_list: EditList,
    overwrite: bool = False,
) -> None:
    """Draws the recording above, the edit below on the same clock, and between them what went where.

    `peaks_min` and `peaks_max` (bins,) are the `overview` of the source. The source's waveform is coloured by
    what became of it, the edit's by what it is: kept, looped (heard before), reordered (from before the
    furthest point reached). Raises CannotCreateError if the file exists and `overwrite` is off.
    """
    spans = _spans(edit_list)
    input_s = edit_list.source.frames / edit_list.source.sample_rate
    output_s = duration_samples(edit_list) / edit_list.source.sample_rate
    figure = new_figure(*INCHES)
    source_axes, flow_axes, output_axes = figure.subplots(3, 1, sharex=True, height_ratios=(5, 2.2, 4))
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.86, bottom=0.075, hspace=0.0)
    _draw_source(source_axes, peaks_min, peaks_max, spans, input_s)
    _draw_flow(flow_axes, spans)
    _draw_output(output_axes, peaks_min, peaks_max, spans, input_s, output_s)
    _draw_heading(figure, edit_list)
    _draw_legend(figure, spans)
    _clock(output_axes, max(input_s, output_s, 1e-3))
    save(figure, path, overwrite)


def draw_alignment(
    path: str | Path,
    pointers_N: np.ndarray,
    n_frames: int,
    frames_per_second: float,
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draws where in the raw recording (upwards) each edited frame (rightwards) comes from.

    `pointers_N` are raw frames; UNALIGNED ones are drawn as grey bands. What the edit plays is marked at the
    right.
    """
    pointers_N = np.asarray(pointers_N)
    figure = new_figure(*INCHES)
    axes, margin = figure.subplots(1, 2, sharey=True, width_ratios=(40, 1))
    figure.subplots_adjust(left=0.078, right=0.985, top=0.88, bottom=0.115, wspace=0.012)
    last_s = None
    for run in _runs(pointers_N):
        times_s = np.array([run.start, run.stop]) / frames_per_second
        if pointers_N[run.start] == UNALIGNED:
            axes.axvspan(*times_s, color=COLOUR_OF_KIND["CUT"], alpha=0.5, linewidth=0)
            last_s = None
        elif pointers_N[run.start] >= 0:
            raw_s = pointers_N[run.start] / frames_per_second + times_s - times_s[0]
            if last_s is not None:
                axes.plot(times_s[[0, 0]], [last_s, raw_s[0]], color=FAINT, linewidth=0.8, linestyle=":")
            axes.plot(times_s, raw_s, color=COLOUR_OF_KIND["COPY"], linewidth=2.5, solid_capstyle="butt")
            last_s = raw_s[1]
    _draw_coverage(margin, structure_of(pointers_N, n_frames), frames_per_second)
    axes.set_xlabel("time in the edited recording", fontsize=12, color=INK)
    axes.set_ylabel("time in the raw recording", fontsize=12, color=INK)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    share = float(np.mean(pointers_N >= 0)) if pointers_N.size else 0.0
    figure.text(0.078, 0.93, plain_text(title), fontsize=15, fontweight="bold", color=INK)
    figure.text(0.985, 0.93, f"{share:.1%} aligned".replace("%", " %"), fontsize=12, color=INK, ha="right")
    _clock(axes, max(pointers_N.size / frames_per_second, 1e-3))
    _clock(axes, max(n_frames / frames_per_second, 1e-3), vertical=True)
    save(figure, path, overwrite)


def draw_scores(
    path: str | Path,
    scores: Mapping[str, Mapping[str, float]],
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draws the scores of several editors as bars, a group a metric: `scores[editor][metric]` in [0, 1].

    The first editor's bars are the strongest in colour: name the model first, the baselines after. NaN and
    missing figures are left out. Raises UsageError without any figure.
    """
    metrics = list(dict.fromkeys(metric for figures in scores.values() for metric in figures))
    if not metrics:
        raise UsageError(f"{path}: there are no scores to draw")
    bar = 0.8 / len(scores)
    figure = new_figure(INCHES[0], 1.3 + 0.32 * len(metrics) * (len(scores) + 0.6))
    axes = figure.subplots()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.17, right=0.97, top=1 - 0.75 / height, bottom=0.35 / height)
    for row, (editor, figures) in enumerate(scores.items()):
        places = np.arange(len(metrics)) - 0.4 + bar * (row + 0.5)
        values = np.array([figures.get(metric, np.nan) for metric in metrics], float)
        colour = EDITOR_COLOURS[row % len(EDITOR_COLOURS)]
        axes.barh(places, np.nan_to_num(values), bar * 0.88, color=colour, label=plain_text(editor))
        for place, value in zip(places, values, strict=True):
            text = "–" if np.isnan(value) else f"{value:.3f}"
            axes.text(max(0.0, np.nan_to_num(value)) + 0.006, place, text, va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(metrics)), [plain_text(metric) for metric in metrics], fontsize=11)
    axes.set_xlim(0, max(1.06, np.nanmax([v for f in scores.values() for v in f.values()]) * 1.06))
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    figure.legend(
        loc="upper right", ncols=len(scores), frameon=False, fontsize=11, bbox_to_anchor=(0.975, 1.0)
    )
    figure.text(0.012, 1 - 0.4 / height, plain_text(title), fontsize=15, fontweight="bold", color=INK)
    save(figure, path, overwrite)


def draw_anomaly(
    path: str | Path,
    score_T: np.ndarray,
    kept_T: np.ndarray,
    threshold: float,
    frames_per_second: float,
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draws anomaly scores (T,) against time, with the threshold; what is kept (T,) is coloured as kept."""
    figure = new_figure(INCHES[0], 4.0)
    axes = figure.subplots()
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.86, bottom=0.11)
    time_T = np.arange(len(score_T)) / frames_per_second
    low, high = (
        (float(level) for level in np.percentile(score_T, (0.5, 99.5))) if len(score_T) else (0.0, 1.0)
    )
    low, high = min(low, threshold) - 0.5, max(high, threshold) + 0.5
    for mask_T, kind in ((kept_T, "COPY"), (~kept_T, "CUT")):
        axes.fill_between(time_T, low, np.where(mask_T, score_T, np.nan), color=COLOUR_OF_KIND[kind], lw=0)
        axes.plot([], [], color=COLOUR_OF_KIND[kind], lw=6, label=NAME_OF_KIND[kind])
    axes.axhline(threshold, color=INK, linewidth=1.0, linestyle="--", label=f"threshold {threshold:.2f}")
    axes.set_ylim(low, high)
    axes.set_ylabel("anomaly (standard deviations)", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    _clock(axes, max(len(score_T) / frames_per_second, 1e-3))
    figure.legend(loc="upper right", ncols=3, frameon=False, fontsize=11, bbox_to_anchor=(0.985, 1.0))
    figure.text(0.012, 0.92, plain_text(title), fontsize=14, fontweight="bold", color=INK)
    save(figure, path, overwrite)


def draw_windows(
    path: str | Path,
    names: Sequence[str],
    waves: Sequence[tuple[np.ndarray, np.ndarray]],
    lengths_s: Sequence[float],
    remix: Any,
    overwrite: bool = False,
) -> None:
    """Draws two recordings, one below the other, and of a `remix.Remix` the windows in each.

    `waves` are their `overview`s. A window's bar is as long as what it covers before it is compressed; that
    of the piece that is heard is full, the others are pale.
    """
    figure = new_figure(*INCHES)
    figure.subplots_adjust(left=0.02, right=RIGHT, top=0.94, bottom=0.06, hspace=0.35)
    sides = zip(figure.subplots(2, 1), names, waves, lengths_s, ("input", "target"), strict=True)
    for axes, name, (low, high), length_s, side in sides:
        edges_s, reach = np.linspace(0.0, length_s, len(low) + 1), max(1e-6, float(np.abs([low, high]).max()))
        _draw_wave(axes, edges_s, low, high, np.ones(len(low), bool), COLOUR_OF_KIND["CUT"])
        for at, pair in enumerate(remix.pairs):
            start_s, ratio = getattr(pair, f"start_{side}_s"), getattr(pair, f"ratio_{side}")
            heard = remix.heard in (0, at + 1)
            place = -reach * (1.3 + 0.5 * at)
            colour, alpha = EDITOR_COLOURS[at % len(EDITOR_COLOURS)], 1.0 if heard else 0.35
            axes.barh(place, remix.window_s * ratio, 0.4 * reach, start_s, color=colour, alpha=alpha)
            said = f"{at + 1}: {ratio:.2f}×, tonality {pair.tonality_strength:.2f}"
            axes.text(start_s, place, f" {said}", va="center", fontsize=11, color="white" if heard else INK)
        axes.set_ylim(-reach * (1.7 + 0.5 * len(remix.pairs)), 1.05 * reach)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(plain_text(name), loc="left", fontsize=13, fontweight="bold", color=INK)
        _clock(axes, max([length_s, *(_ends_s(remix, side))]))
    save(figure, path, overwrite)


def _ends_s(remix: Any, side: str) -> list[float]:
    """Where windows end, which is beyond the end of a recording that was repeated."""
    return [getattr(p, f"start_{side}_s") + remix.window_s * getattr(p, f"ratio_{side}") for p in remix.pairs]


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path, overwrite: bool) -> None:
    """Writes a picture, whole or not at all, in the kind that its name asks for."""
    kind = check_suffix(path)
    with atomic_path(path, overwrite) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box, not refused
        figure.savefig(temporary, format=kind)


def _spans(edit_list: EditList) -> list[_Span]:
    """The operations that play or cut, in seconds; the nominal edges, which differ by a pixel's
    thousandth."""
    rate = edit_list.source.sample_rate
    return [
        _Span(step.kind, step.start / rate, step.stop / rate, step.at / rate)
        for step in operations(edit_list)
        if step.kind in COLOUR_OF_KIND
    ]


def _runs(pointers_N: np.ndarray) -> list[slice]:
    """Maximal runs of pointers that advance by one or stay the same sentinel."""
    steps = np.diff(pointers_N)
    joined = np.where(pointers_N[1:] < 0, steps == 0, (steps == 1) & (pointers_N[:-1] >= 0))
    edges = [0, *(np.flatnonzero(~joined) + 1).tolist(), pointers_N.size]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def _draw_source(
    axes: Axes, low: np.ndarray, high: np.ndarray, spans: Sequence[_Span], input_s: float
) -> None:
    """The whole waveform, each bin in the colour of what becomes of it: a loop outdoes what is kept once."""
    edges_s = np.linspace(0, input_s, low.size + 1)
    centres_s = (edges_s[:-1] + edges_s[1:]) / 2
    kind_of_bin = np.full(low.size, "CUT", dtype="U7")
    for kind in ("COPY", "REORDER", "LOOP"):
        for span in spans:
            if span.kind == kind:
                first, last = np.searchsorted(centres_s, (span.start_s, span.stop_s))
                kind_of_bin[first:last] = kind
    _frame(axes, "raw", low, high)
    reach = axes.get_ylim()[1]
    for kind, colour in COLOUR_OF_KIND.items():
        here = kind_of_bin == kind
        _draw_wave(axes, edges_s, low, high, here, colour)
        if kind != "CUT":
            shade = np.where(here, reach, np.nan)
            axes.stairs(shade, edges_s, baseline=-shade, fill=True, color=colour, alpha=0.11, linewidth=0)


def _draw_flow(axes: Axes, spans: Sequence[_Span]) -> None:
    """A ribbon from where each stretch lies in the source to where it lies in the edit."""
    from matplotlib.collections import PolyCollection

    for kind in ("COPY", "REORDER", "LOOP"):
        ribbons = [
            [(span.start_s, 1), (span.stop_s, 1), (span.at_s + span.stop_s - span.start_s, 0), (span.at_s, 0)]
            for span in spans
            if span.kind == kind
        ]
        colour = COLOUR_OF_KIND[kind]
        axes.add_collection(
            PolyCollection(ribbons, facecolors=colour, edgecolors=colour, alpha=0.28, linewidths=0.4)
        )
    axes.set_ylim(0, 1)
    axes.set_axis_off()


def _draw_output(
    axes: Axes, low: np.ndarray, high: np.ndarray, spans: Sequence[_Span], input_s: float, output_s: float
) -> None:
    """The edit's waveform, put together from the source's bins, with a line at every join."""
    bins = max(1, round(low.size * output_s / max(input_s, 1e-9)))
    edges_s = np.linspace(0, output_s, bins + 1)
    centres_s = (edges_s[:-1] + edges_s[1:]) / 2
    plays = [span for span in spans if span.kind != "CUT"]
    if plays:
        row_of_bin = np.searchsorted([span.at_s for span in plays], centres_s, side="right") - 1
        heard_s = centres_s + np.array([span.start_s - span.at_s for span in plays])[row_of_bin]
        source_bin = np.clip((heard_s / input_s * low.size).astype(int), 0, low.size - 1)
        for kind in ("COPY", "REORDER", "LOOP"):
            here = np.array([span.kind == kind for span in plays])[row_of_bin]
            _draw_wave(axes, edges_s, low[source_bin], high[source_bin], here, COLOUR_OF_KIND[kind])
        joins_s = [span.at_s for before, span in pairwise(plays) if span.start_s != before.stop_s]
        alpha = 0.6 * min(1.0, 60 / len(plays))
        axes.vlines(joins_s, 0, 1, INK, linewidth=0.7, alpha=alpha, transform=axes.get_xaxis_transform())
    axes.axvspan(0, output_s, color="#F7F7F7", linewidth=0, zorder=0)
    _frame(axes, "edit", low, high)


def _draw_coverage(axes: Axes, structure_T: np.ndarray, frames_per_second: float) -> None:
    """A column over the raw recording: kept and looped frames in their colours."""
    edges = [0, *(np.flatnonzero(np.diff(structure_T)) + 1).tolist(), structure_T.size]
    for start, stop in pairwise(edges):
        if stop > start and structure_T[start]:
            colour = COLOUR_OF_KIND["COPY" if structure_T[start] == 1 else "LOOP"]
            axes.axhspan(start / frames_per_second, stop / frames_per_second, color=colour, linewidth=0)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#EEEEEE")


def _draw_wave(
    axes: Axes, edges_s: np.ndarray, low: np.ndarray, high: np.ndarray, here: np.ndarray, colour: str
) -> None:
    """The bins `here` as steps, at least a hair thick so that silence is seen."""
    hair = 0.004 * max(1e-6, float(np.abs([low, high]).max()))
    bottom = np.where(here, np.minimum(low, -hair), np.nan)
    top = np.where(here, np.maximum(high, hair), np.nan)
    axes.stairs(top, edges_s, baseline=bottom, fill=True, color=colour, linewidth=0)


def _frame(axes: Axes, name: str, low: np.ndarray, high: np.ndarray) -> None:
    reach = 1.08 * max(1e-6, float(np.abs([low, high]).max()))
    axes.set_ylim(-reach, reach)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=13, color=INK, labelpad=8)
    axes.tick_params(bottom=False)


def _draw_heading(figure: Figure, edit_list: EditList) -> None:
    figures = summary(edit_list)
    name = Path(edit_list.source.path).name
    figure.text(LEFT, 0.945, plain_text(name), fontsize=15, fontweight="bold", color=INK)
    change = (figures.output_s / figures.input_s - 1) * 100 if figures.input_s else 0.0
    cuts = f"{figures.cuts} cut" + "s" * (figures.cuts != 1)
    line = f"{_time(figures.input_s)} → {_time(figures.output_s)}  ({change:+.0f} %),  {cuts}".replace(
        "-", "−"
    )
    figure.text(LEFT, 0.893, line, fontsize=12, color=INK)


def _draw_legend(figure: Figure, spans: Sequence[_Span]) -> None:
    """The kinds that occur, with how long each lasts."""
    from matplotlib.patches import Patch

    handles = []
    for kind, name in NAME_OF_KIND.items():
        total_s = sum(span.stop_s - span.start_s for span in spans if span.kind == kind)
        if total_s:
            handles.append(Patch(color=COLOUR_OF_KIND[kind], label=f"{name} {_time(total_s)}"))
    if handles:
        figure.legend(
            handles=handles,
            loc="upper right",
            ncols=4,
            frameon=False,
            fontsize=13,
            bbox_to_anchor=(0.99, 0.99),
        )


def plain_text(text: str) -> str:
    """Text whose dollar signs are not taken for formulas."""
    return text.replace("$", r"\$")


def _clock(axes: Axes, length_s: float, vertical: bool = False) -> None:
    """Ticks at whole, easily counted times from 0 to the end, labelled m:ss."""
    step_s = next((step for step in TICKS_S if length_s / step <= MOST_TICKS), length_s / MOST_TICKS)
    ticks_s = np.arange(0, length_s * (1 + 1e-9), step_s)
    labels = [_time(tick, precise=step_s < 1) for tick in ticks_s]
    if vertical:
        axes.set_ylim(0, length_s)
        axes.set_yticks(ticks_s, labels, fontsize=11, color=INK)
    else:
        axes.set_xlim(0, length_s)
        axes.tick_params(bottom=True, color=FAINT)
        axes.set_xticks(ticks_s, labels, fontsize=11, color=INK)


def _time(seconds: float, precise: bool = False) -> str:
    """m:ss, h:mm:ss from an hour on, with tenths where asked for or under ten seconds."""
    if precise or 0 < seconds < 9.95:
        tenths = round(seconds * 10)
        return f"{tenths // 600}:{tenths // 10 % 60:02d}.{tenths % 10}"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
