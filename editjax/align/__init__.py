"""A raw recording and an edit of it → which raw frame each edited frame plays, and the edit list.

The content decides, whatever the order: cuts of any length, loops and reordered takes are found alike. The
waveform is matched first (`search`, after `tone` has taken out what an equaliser did to the whole),
`explain` chooses few long spans, `runs` finds their ends to the sample, `resemble` compares features where
no waveform matches. Frames that exist nowhere in the raw are UNALIGNED; nothing is interpolated.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.align.explain import ExplainSettings, explain
from editjax.align.resemble import ResembleSettings, contours_of, direct_offset, resembling
from editjax.align.runs import JoinSettings, Run, merged, runs_of
from editjax.align.search import Search, SearchSettings
from editjax.align.signals import Noise, Signals, SignalSettings, measure, signals_of, slice_padded
from editjax.align.silence import silent_runs
from editjax.align.tone import toned
from editjax.audio import Reader
from editjax.edits import UNALIGNED, EditList, Segment, source_of
from editjax.formats import DEFAULT_LIMITS, AudioLimits
from editjax.mel import FrameGrid, MelSettings, mel_of
from editjax.outputs import Outputs

AUDIBLE_GAIN_DB = 0.2
"""Gains nearer to 0 dB are not noted in the edit list."""
DIRECT_REACH_FRAMES = 6
"""How far from where the features lay it the direct sound is looked for."""
TONE_PASSES = 3
"""Times the tone is taken out: what was found through the first filter makes the next one sharper."""
SURE_OF_GAIN = 0.5
"""Likeness of a run from which its gain means something."""


@dataclass(frozen=True)
class AlignSettings:
    """The settings of every step, in their order."""

    mel: MelSettings = field(default_factory=MelSettings)
    signals: SignalSettings = field(default_factory=SignalSettings)
    search: SearchSettings = field(default_factory=SearchSettings)
    explain: ExplainSettings = field(default_factory=ExplainSettings)
    joins: JoinSettings = field(default_factory=JoinSettings)
    resemble: ResembleSettings = field(default_factory=ResembleSettings)


class Alignment(NamedTuple):
    """What an edit plays.

    `pointers_N` (N,) int32: for each mel frame of the edited track the nearest raw frame, or UNALIGNED.
    `confidence_N` (N,) float32: how alike the two are there, |ρ| of the waveforms or the likeness of the
    features, 0 where unaligned. `edit_list` has the same to the sample, with gains and fades.
    `alignment_ratio` is the part of the frames that is aligned. `runs` are the stretches, in samples at the
    raw's rate, and `gains_db` their gains.
    """

    pointers_N: np.ndarray
    confidence_N: np.ndarray
    edit_list: EditList
    alignment_ratio: float
    runs: tuple[Run, ...]
    gains_db: tuple[float, ...]
    raw_frames: int


def align(raw: Reader, edited: Reader, settings: AlignSettings = AlignSettings()) -> Alignment:
    """Finds what of `raw` is heard in `edited`, at any sample rate and channel count of either."""
    signals = signals_of(raw, edited, settings.signals)
    runs, noise = _wave_runs(signals, settings)
    runs = _with_alike(raw, edited, signals, runs, noise, settings)
    runs = _inside(silent_runs(signals, runs, noise), raw.frames)
    grid = settings.mel.grid(signals.rate_hz)
    n_frames = settings.mel.grid(edited.info.sample_rate_hz).frames_in(edited.frames)
    pointers_N, runs = _pointers(runs, grid, n_frames, grid.frames_in(raw.frames))
    ratio = float((pointers_N != UNALIGNED).mean()) if n_frames else 0.0
    return Alignment(
        pointers_N,
        _confidence(signals, runs, noise, grid, pointers_N),
        _edit_list(raw, runs, pointers_N, grid, ratio),
        ratio,
        tuple(runs),
        tuple(_gain_db(run) for run in runs),
        grid.frames_in(raw.frames),
    )


def align_files(
    raw_path: str | Path,
    edited_path: str | Path,
    out_dir: str | Path,
    settings: AlignSettings = AlignSettings(),
    overwrite: bool = False,
    limits: AudioLimits = DEFAULT_LIMITS,
    allow_truncated: bool = False,
) -> Alignment:
    """Aligns two files and writes the result under the edited file's name; see `write_alignment`.

    The folder is made if need be; on an error nothing is left of it. Raises NoInputError and DataError for
    files that cannot be read, CannotCreateError for outputs that exist and for a folder that cannot be made.
    """
    from editjax.align.report import Files, files_of, write_alignment

    names = files_of(Path(out_dir), Path(edited_path).stem)
    inputs = Path(raw_path), Path(edited_path)
    with (
        Reader(raw_path, limits, allow_truncated) as raw,
        Reader(edited_path, limits, allow_truncated) as edited,
        Outputs(overwrite, inputs) as outputs,
    ):
        outputs.make_folder(Path(out_dir))
        files = Files(*(outputs.add(path) for path in names))
        alignment = align(raw, edited, settings)
        write_alignment(alignment, raw, edited, files, settings)
    return alignment


def _wave_runs(signals: Signals, settings: AlignSettings) -> tuple[list[Run], Noise]:
    """Runs found by waveform, through the tone of the edit if it has one."""
    search = Search(signals, settings.signals, settings.search)
    for _ in range(TONE_PASSES):
        changed = toned(signals, search.sketch(), settings.signals)
        if changed is None:
            break
        signals = changed
        search = Search(signals, settings.signals, settings.search)
    diagonals = search.complete()
    spans = explain(signals, diagonals, search.noise, settings.explain)
    runs = runs_of(signals, spans, search.noise, settings.joins)
    half_frame = settings.mel.grid(signals.rate_hz).sample_of_frame(1) // 2
    return merged(runs, half_frame), search.noise


def _with_alike(
    raw: Reader,
    edited: Reader,
    signals: Signals,
    runs: list[Run],
    noise: Noise,
    settings: AlignSettings,
) -> list[Run]:
    """The runs and, in the audible gaps between them, those found by resemblance."""
    grid = settings.mel.grid(signals.rate_hz)
    window = signals.window_samples
    gaps = [
        (start, stop)
        for start, stop in gaps_between(runs, len(signals.edit_S))
        if grid.frames_in(stop) - grid.frames_in(start) >= settings.resemble.shortest_frames
        and not noise.drowned_W(signals.energy_W[start // window : stop // window]).all()
    ]
    if not gaps:
        return runs
    raw_TF, edit_NF = (contours_of(mel_of(reader, settings.mel)[0]) for reader in (raw, edited))
    found = list(runs)
    for start, stop in gaps:
        frames = slice(grid.frames_in(start), min(grid.frames_in(stop), len(edit_NF)))
        for span, likeness in resembling(edit_NF, raw_TF, frames, settings.resemble):
            first, last = (int(grid.sample_of_frame(frame)) for frame in (span.first, span.stop))
            last = min(last, stop)
            offset = int(grid.sample_of_frame(span.first + span.offset)) - first
            reach = DIRECT_REACH_FRAMES * int(grid.sample_of_frame(1))
            around_S = slice_padded(signals.raw_S, first + offset - reach, last + offset + reach)
            offset += direct_offset(signals.edit_S[first:last], around_S, reach) or 0
            found.append(Run(first, last, offset, 1.0, likeness, kind="alike"))
    return sorted(found)


def gaps_between(runs: list[Run], n_samples: int) -> list[tuple[int, int]]:
    """The spans of the edit [0, n_samples) that no run covers."""
    edges = [0, *(edge for run in runs for edge in (run.start, run.stop)), n_samples]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def _inside(runs: list[Run], raw_samples: int) -> list[Run]:
    """The runs without what they have beyond the ends of the raw."""
    cut = [
        run._replace(start=max(run.start, -run.offset), stop=min(run.stop, raw_samples - run.offset))
        for run in runs
    ]
    return [run for run in cut if run.stop > run.start]


def _pointers(runs: list[Run], grid: FrameGrid, n_frames: int, n_raw: int) -> tuple[np.ndarray, list[Run]]:
    """The raw frame of each edited frame, and the runs that play at least one."""
    pointers_N = np.full(n_frames, UNALIGNED, np.int32)
    playing = []
    for run in runs:
        first, stop = grid.frames_in(run.start), min(grid.frames_in(run.stop), n_frames)
        if stop <= first:
            continue
        heard = int(grid.sample_of_frame(first)) + run.offset
        nearest = int(grid.frame_of_sample(heard + int(grid.sample_of_frame(1)) // 2))
        nearest = max(0, min(nearest, n_raw - (stop - first)))
        pointers_N[first:stop] = nearest + np.arange(stop - first)
        playing.append(run)
    return pointers_N, playing


def _confidence(
    signals: Signals, runs: list[Run], noise: Noise, grid: FrameGrid, pointers_N: np.ndarray
) -> np.ndarray:
    confidence_N = np.zeros(len(pointers_N), np.float32)
    window = signals.window_samples
    for run in runs:
        first, stop = grid.frames_in(run.start), min(grid.frames_in(run.stop), len(pointers_N))
        confidence_N[first:stop] = run.likeness
        windows = slice(run.start // window, run.stop // window)
        if run.kind != "wave" or windows.start >= windows.stop:
            continue
        diagonal = measure(signals, run.offset, windows.start, windows.stop)
        told_W = ~noise.drowned_W(signals.energy_W[windows])
        likeness_W = np.where(told_W, np.sqrt(1 - diagonal.residual_W), run.likeness)
        rows = grid.sample_of_frame(np.arange(first, stop)) // window - windows.start
        confidence_N[first:stop] = likeness_W[np.clip(rows, 0, len(likeness_W) - 1)]
    return confidence_N


def _gain_db(run: Run) -> float:
    """The gain of a run, 0 where it is not known or not worth a note."""
    gain_db = 20 * float(np.log10(max(abs(run.gain), 1e-9)))
    known = run.kind == "wave" and run.likeness >= SURE_OF_GAIN
    return gain_db if known and abs(gain_db) > AUDIBLE_GAIN_DB else 0.0


def _edit_list(
    raw: Reader, runs: list[Run], pointers_N: np.ndarray, grid: FrameGrid, ratio: float
) -> EditList:
    """The runs as segments; the nominal fields are the frames of `pointers_N`."""
    source = source_of(raw)
    segments: list[Segment] = []
    unaligned, effects, at = [], [], 0
    for run in runs:
        first, stop = grid.frames_in(run.start), min(grid.frames_in(run.stop), len(pointers_N))
        if first > at:
            unaligned.append([len(segments), first - at])
        at = stop
        nominal = int(grid.sample_of_frame(int(pointers_N[first])))
        nominal_stop = min(int(grid.sample_of_frame(int(pointers_N[stop - 1]) + 1)), source.frames)
        span = (run.start + run.offset, run.stop + run.offset)
        effects += [list(span)] if run.kind == "alike" else []
        fades = (run.fade_in, run.fade_out)
        gain_db = round(_gain_db(run), 3)
        segments.append(
            Segment(*span, nominal, nominal_stop, *fades, gain_db, round(run.likeness, 4), _reason(run))
        )
    if at < len(pointers_N):
        unaligned.append([len(segments), len(pointers_N) - at])
    editor = {"name": "align", "alignment_ratio": round(ratio, 6), "effects": effects}
    return EditList(source, tuple(segments), editor | ({"unaligned": unaligned} if unaligned else {}))


def _reason(run: Run) -> str:
    if run.kind == "alike":
        return "sounds alike, but was processed"
    if run.kind == "silence":
        return "silence"
    return "polarity inverted" if run.gain < 0 else ""
