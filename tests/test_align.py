"""Alignment against planted answers: what was cut, looped, moved or processed is found again."""

import errno
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax.align import Alignment, align, align_files
from editjax.align.explain import Span, cheapest_path, typical_gain
from editjax.align.resemble import ResembleSettings, contours_of, resembling
from editjax.align.search import Search, SearchSettings, coarse_of, coarse_peaks, decimated
from editjax.align.signals import SignalSettings, measure, signals_of, slice_padded, spooled
from editjax.align.tone import toned
from editjax.audio import ArrayReader, Reader
from editjax.editor import listen
from editjax.edits import UNALIGNED, EditLabel, beat_labels, read_edits, to_pointers, write_edits
from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError
from editjax.mel import FrameGrid, mel_spectrogram

RATE_HZ = 22050
FRAME = 512
GRID = FrameGrid(RATE_HZ)


def music(seconds: float, seed: int = 0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Notes with overtones over breath, which never repeat: float32 (S,)."""
    rng = np.random.default_rng(seed)
    clock_S = np.arange(round(seconds * rate_hz)) / rate_hz
    sum_S = 0.3 * scipy.signal.lfilter([0.1], [1, -0.9], rng.standard_normal(clock_S.size))
    for start_s in np.arange(0, seconds, 0.31):
        note = slice(round(start_s * rate_hz), round((start_s + 0.6) * rate_hz))
        pitch_hz, phases = 110 * 2 ** rng.uniform(0, 2.5), rng.uniform(0, 6.28, 6)
        decay_S = np.exp(-5 * (clock_S[note] - start_s))
        for harmonic in range(1, 6):
            angle_S = 2 * np.pi * harmonic * pitch_hz * clock_S[note] + phases[harmonic]
            sum_S[note] += decay_S * np.sin(angle_S) / harmonic
    return (0.2 * sum_S).astype(np.float32)


def drum_loop(seconds: float) -> np.ndarray:
    """One second of drums, again and again, equal to the sample."""
    rng = np.random.default_rng(3)
    hits_S = [rng.standard_normal(RATE_HZ // 6) * np.exp(-np.arange(RATE_HZ // 6) / 900) for _ in range(6)]
    return np.tile(np.concatenate(hits_S) * 0.1, round(seconds)).astype(np.float32)


def spliced(raw_S: np.ndarray, pieces_s: list[tuple[float, float]], fade: int = 0) -> np.ndarray:
    """Pieces of a recording in seconds, one after the other, crossfaded over 2 · fade samples."""
    pieces = [(round(start * RATE_HZ), round(stop * RATE_HZ)) for start, stop in pieces_s]
    edit_S = np.concatenate([raw_S[start:stop] for start, stop in pieces])
    turn_S = (np.arange(2 * fade) + 0.5) / max(1, 2 * fade) * np.pi / 2
    at = 0
    for (start, stop), (following, _) in pairwise(pieces):
        at += stop - start
        leaving_S, entering_S = raw_S[stop - fade : stop + fade], raw_S[following - fade : following + fade]
        edit_S[at - fade : at + fade] = np.cos(turn_S) * leaving_S + np.sin(turn_S) * entering_S
    return edit_S.astype(np.float32)


def true_pointers(pieces_s: list[tuple[float, float]]) -> np.ndarray:
    """What `spliced` plays, as fractional raw frames (N,)."""
    pieces = [(round(start * RATE_HZ), round(stop * RATE_HZ)) for start, stop in pieces_s]
    source_S = np.concatenate([np.arange(start, stop) for start, stop in pieces])
    return source_S[::FRAME] / FRAME


def aligned(raw_S: np.ndarray, edit_S: np.ndarray, rate_hz: int = RATE_HZ) -> Alignment:
    return align(ArrayReader(raw_S, RATE_HZ), ArrayReader(edit_S.astype(np.float32), rate_hz))


def right(alignment: Alignment, pieces_s: list[tuple[float, float]]) -> float:
    """The part of the frames that is within one frame of the truth."""
    true_N = true_pointers(pieces_s)
    found_N = alignment.pointers_N[: len(true_N)]
    return float(((found_N >= 0) & (np.abs(found_N - true_N) <= 1)).mean())


RAW_S = music(40)
EDITS = {
    "one short cut": [(2.0, 6.1), (6.9, 11.0)],
    "a cut longer than the edit": [(0.5, 3.7), (35.2, 38.9)],
    "a loop": [(4.0, 8.0), (4.0, 8.0), (4.0, 9.5)],
    "reordered": [(20.3, 24.9), (3.1, 6.4), (30.0, 33.3), (0.0, 2.0)],
    "short pieces": [(9.0, 9.4), (1.0, 1.35), (30.0, 30.3), (17.2, 17.6), (5.0, 5.5)],
}


@pytest.mark.parametrize("pieces_s", EDITS.values(), ids=EDITS.keys())
def test_planted_edits_are_found_to_the_sample(pieces_s: list[tuple[float, float]]) -> None:
    alignment = aligned(RAW_S, spliced(RAW_S, pieces_s))
    assert right(alignment, pieces_s) == 1.0
    found_s = [(s.start / RATE_HZ, s.stop / RATE_HZ) for s in alignment.edit_list.segments]
    np.testing.assert_allclose(found_s, pieces_s, atol=1e-3)
    assert alignment.alignment_ratio == 1.0
    assert alignment.confidence_N.min() > 0.5 and np.median(alignment.confidence_N) > 0.999


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_pieces_in_any_order_are_found(data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.floats(0.0, 34.0), min_size=2, max_size=5))
    lengths = data.draw(st.lists(st.floats(0.6, 5.0), min_size=len(starts), max_size=len(starts)))
    pieces_s = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    assert right(aligned(RAW_S, spliced(RAW_S, pieces_s)), pieces_s) >= 0.99


PROCESSES = {
    "quieter": lambda edit_S: 0.3 * edit_S,
    "inverted": lambda edit_S: -edit_S,
    "tilted": lambda edit_S: scipy.signal.lfilter([1.0, -0.6], [1.0, -0.2], edit_S),
    "noise at -40 dB": lambda edit_S: (
        edit_S + 0.01 * edit_S.std() * np.random.default_rng(1).standard_normal(edit_S.size)
    ),
    "Vorbis": lambda edit_S: coded(edit_S, "OGG", "VORBIS"),
    "MP3": lambda edit_S: coded(edit_S, "MP3", "MPEG_LAYER_III"),
    "8 bits": lambda edit_S: np.round(edit_S * 127) / 127,
    "saturated": lambda edit_S: np.tanh(3 * edit_S),
}


def coded(samples_S: np.ndarray, container: str, subtype: str) -> np.ndarray:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE_HZ, 1, format=container, subtype=subtype) as encoder:
        for start in range(0, len(samples_S), 8192):
            encoder.write(samples_S[start : start + 8192])
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0][: len(samples_S)]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
def test_processed_edits_are_found(process) -> None:
    pieces_s = [(20.3, 24.9), (3.1, 6.4), (3.1, 6.4), (30.0, 33.3), (0.5, 2.5)]
    alignment = aligned(RAW_S, process(spliced(RAW_S, pieces_s, fade=110)))
    assert right(alignment, pieces_s) >= 0.98
    assert alignment.alignment_ratio > 0.98


def test_gain_and_polarity_are_noted() -> None:
    half = aligned(RAW_S, 0.5 * spliced(RAW_S, [(5.0, 9.0)])).edit_list.segments[0]
    assert half.gain_db == pytest.approx(-6.02, abs=0.01)
    assert half.reason == ""
    inverted = aligned(RAW_S, -spliced(RAW_S, [(5.0, 9.0)])).edit_list.segments[0]
    assert (inverted.gain_db, inverted.reason) == (0.0, "polarity inverted")


def test_identity_is_one_segment() -> None:
    alignment = aligned(RAW_S, RAW_S)
    np.testing.assert_array_equal(alignment.pointers_N, np.arange(GRID.frames_in(len(RAW_S))))
    (segment,) = alignment.edit_list.segments
    assert (segment.start, segment.stop) == (0, len(RAW_S))
    assert (segment.nominal_start, segment.nominal_stop) == (0, len(RAW_S))
    assert (segment.fade_in, segment.fade_out, segment.gain_db) == (0, 0, 0.0)


def test_the_edit_list_rebuilds_the_edit_and_its_pointers(tmp_path: Path) -> None:
    edit_S = spliced(RAW_S, [(20.3, 24.9), (3.1, 6.4), (3.1, 6.4)])
    foreign_S = music(1.5, seed=77)
    edit_S = np.concatenate([edit_S[:50_000], foreign_S, edit_S[50_000:]])
    alignment = aligned(RAW_S, edit_S)
    np.testing.assert_array_equal(to_pointers(alignment.edit_list, GRID), alignment.pointers_N)
    write_edits(alignment.edit_list, tmp_path / "x.edits.json")
    np.testing.assert_array_equal(
        to_pointers(read_edits(tmp_path / "x.edits.json"), GRID), alignment.pointers_N
    )
    for run in alignment.runs:
        inner = slice(run.start + 30, run.stop - 30)
        np.testing.assert_array_equal(
            edit_S[inner], RAW_S[inner.start + run.offset : inner.stop + run.offset]
        )


def test_what_exists_nowhere_is_unaligned() -> None:
    edit_S = spliced(RAW_S, [(20.0, 24.0), (3.0, 7.0)])
    cut = 4 * RATE_HZ
    with_insert_S = np.concatenate([edit_S[:cut], music(2.0, seed=9), edit_S[cut:]])
    pointers_N = aligned(RAW_S, with_insert_S).pointers_N
    foreign = np.flatnonzero(pointers_N == UNALIGNED)
    assert abs(foreign[0] * FRAME - cut) <= FRAME
    assert abs((foreign[-1] + 1) * FRAME - (cut + 2 * RATE_HZ)) <= FRAME
    np.testing.assert_array_equal(foreign, np.arange(foreign[0], foreign[-1] + 1))


def test_an_insert_within_a_run_is_not_bridged() -> None:
    edit_S = spliced(RAW_S, [(10.0, 18.0)])
    edit_S[3 * RATE_HZ : 3 * RATE_HZ + RATE_HZ // 2] = music(0.5, seed=5)
    pointers_N = aligned(RAW_S, edit_S).pointers_N
    covered = (pointers_N == UNALIGNED).sum() * FRAME / RATE_HZ
    assert covered == pytest.approx(0.5, abs=0.05)


def test_a_foreign_edit_is_all_unaligned() -> None:
    alignment = aligned(RAW_S, music(6.0, seed=1234))
    assert (alignment.pointers_N == UNALIGNED).all()
    assert alignment.edit_list.segments == ()
    assert alignment.alignment_ratio == 0.0


def test_an_ambiguous_repeat_is_one_long_run() -> None:
    raw_S = drum_loop(20)
    alignment = aligned(raw_S, raw_S[3 * RATE_HZ + 77 : 12 * RATE_HZ])
    assert len(alignment.runs) == 1
    assert (alignment.runs[0].offset - 77) % RATE_HZ == 0
    assert alignment.alignment_ratio == 1.0


def test_near_repeats_are_told_apart() -> None:
    raw_S = drum_loop(20) + 0.003 * np.random.default_rng(0).standard_normal(20 * RATE_HZ).astype(np.float32)
    pieces_s = [(3.0, 7.0), (13.0, 16.0), (4.0, 6.0)]
    assert right(aligned(raw_S, spliced(raw_S, pieces_s)), pieces_s) == 1.0


@pytest.mark.parametrize("rate_hz", [16000, 44100, 48000])
def test_the_edit_may_have_another_rate(rate_hz: int) -> None:
    pieces_s = [(20.3, 24.9), (3.1, 6.4), (3.1, 6.4)]
    edit_S = soxr.resample(spliced(RAW_S, pieces_s), RATE_HZ, rate_hz)
    alignment = aligned(RAW_S, edit_S, rate_hz)
    assert len(alignment.pointers_N) == FrameGrid(rate_hz).frames_in(len(edit_S))
    assert right(alignment, pieces_s) >= 0.995


def test_channels_may_differ() -> None:
    raw_SC = np.stack([RAW_S, 0.5 * music(40, seed=8)], axis=1)
    edit_S = spliced(raw_SC.mean(axis=1), [(20.0, 24.0), (3.0, 7.0)])
    alignment = align(ArrayReader(raw_SC, RATE_HZ), ArrayReader(edit_S, RATE_HZ))
    assert right(alignment, [(20.0, 24.0), (3.0, 7.0)]) == 1.0


def test_clock_drift_does_not_shatter_the_edit() -> None:
    slow_S = soxr.resample(RAW_S, 1_000_000, 1_000_040, quality="VHQ")[: 30 * RATE_HZ]
    alignment = aligned(RAW_S, slow_S)
    true_N = np.arange(len(alignment.pointers_N)) / 1.00004
    assert (np.abs(alignment.pointers_N - true_N) <= 1).sum() >= len(true_N) - 2
    assert len(alignment.edit_list.segments) <= 3


def test_fades_at_the_ends_are_measured() -> None:
    edit_S = spliced(RAW_S, [(10.0, 18.0)])
    rise, fall = RATE_HZ, 2 * RATE_HZ
    edit_S[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)
    edit_S[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32)
    alignment = aligned(RAW_S, edit_S)
    (segment,) = alignment.edit_list.segments
    assert right(alignment, [(10.0, 18.0)]) == 1.0
    assert segment.fade_in == pytest.approx(rise, rel=0.1)
    assert segment.fade_out == pytest.approx(fall, rel=0.1)


def test_a_long_crossfade_is_a_transition() -> None:
    fade = RATE_HZ // 4
    alignment = aligned(RAW_S, spliced(RAW_S, [(10.0, 14.0), (25.0, 29.0)], fade=fade))
    before, after = alignment.edit_list.segments
    assert before.fade_out == pytest.approx(fade, rel=0.15)
    assert after.fade_in == pytest.approx(fade, rel=0.15)
    assert before.stop / RATE_HZ == pytest.approx(14.0, abs=0.02)
    beats = np.arange(0, GRID.frames_in(len(RAW_S)), 5)
    labels = beat_labels(alignment.edit_list, beats, GRID.frames_in(len(RAW_S)), grid=GRID)
    assert EditLabel.TRANSITION in labels[GRID.frame_of_seconds(13.7) // 5 : GRID.frame_of_seconds(14.1) // 5]


def test_short_crossfades_leave_no_gap() -> None:
    pieces_s = [(20.3, 24.9), (3.1, 6.4), (30.0, 33.3)]
    for half_ms in (5, 25):
        alignment = aligned(RAW_S, spliced(RAW_S, pieces_s, fade=half_ms * RATE_HZ // 1000))
        assert alignment.alignment_ratio == 1.0
        assert right(alignment, pieces_s) >= 0.995
        assert not any(segment.fade_in or segment.fade_out for segment in alignment.edit_list.segments)


def test_silence_of_the_raw_is_found_and_added_silence_is_not() -> None:
    raw_S = RAW_S.copy()
    raw_S[15 * RATE_HZ : 18 * RATE_HZ] = 0
    pieces_s = [(3.0, 6.0), (15.5, 16.7), (25.0, 28.0)]
    alignment = aligned(raw_S, spliced(raw_S, pieces_s))
    rows = alignment.pointers_N[int(3.1 * 43) : int(4.1 * 43)]
    assert alignment.alignment_ratio == 1.0
    assert not raw_S[rows.min() * FRAME : rows.max() * FRAME].any()
    padded = aligned(RAW_S, np.concatenate([spliced(RAW_S, [(3.0, 6.0)]), np.zeros(2 * RATE_HZ, np.float32)]))
    assert padded.alignment_ratio == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("process", [PROCESSES["quieter"], PROCESSES["8 bits"]], ids=["quieter", "8 bits"])
def test_silence_goes_with_the_sound_before_it(process) -> None:
    raw_S = RAW_S.copy()
    for start_s, stop_s in ((0.0, 0.5), (10.0, 12.0), (20.0, 22.0)):
        silent = slice(round(start_s * RATE_HZ), round(stop_s * RATE_HZ))
        raw_S[silent] = 1e-6 * np.random.default_rng(2).standard_normal(silent.stop - silent.start)
    pieces_s = [(8.0, 12.0), (0.2, 3.0), (8.0, 12.0), (21.5, 24.0)]
    alignment = aligned(raw_S, process(spliced(raw_S, pieces_s)))
    assert right(alignment, pieces_s) >= 0.995
    assert alignment.alignment_ratio == 1.0
    assert min(run.likeness for run in alignment.runs) > 0.9


def test_what_only_sounds_alike_is_an_effect() -> None:
    pieces_s = [(20.0, 25.0), (3.0, 8.0)]
    room_S = np.random.default_rng(0).standard_normal(RATE_HZ) * np.exp(-np.arange(RATE_HZ) / (0.2 * RATE_HZ))
    room_S[0] = 0.3 * np.linalg.norm(room_S)
    edit_S = scipy.signal.oaconvolve(spliced(RAW_S, pieces_s), room_S)[: 10 * RATE_HZ] / np.linalg.norm(
        room_S
    )
    alignment = aligned(RAW_S, edit_S)
    assert any(run.kind == "alike" for run in alignment.runs)
    assert alignment.edit_list.editor["effects"]
    true_N = true_pointers(pieces_s)
    found = alignment.pointers_N >= 0
    assert found.mean() > 0.8
    assert (np.abs(alignment.pointers_N - true_N)[found] <= 1).mean() > 0.95


@pytest.mark.parametrize("length", [1, 20, 400, 3000])
def test_tiny_tracks_align_with_themselves_or_not_at_all(length: int) -> None:
    pointers_N = aligned(RAW_S[:length], RAW_S[:length]).pointers_N
    assert len(pointers_N) == GRID.frames_in(length)
    assert set(pointers_N.tolist()) <= {UNALIGNED, *range(len(pointers_N))}
    if length >= 3000:
        np.testing.assert_array_equal(pointers_N, np.arange(len(pointers_N)))


def test_silent_tracks_do_not_fail() -> None:
    silence_S = np.zeros(2 * RATE_HZ, np.float32)
    for raw_S, edit_S in ((silence_S, RAW_S[:RATE_HZ]), (RAW_S, silence_S), (silence_S, silence_S)):
        assert aligned(raw_S, edit_S).pointers_N.shape[0] == GRID.frames_in(len(edit_S))


def test_an_edit_longer_than_its_raw_is_found() -> None:
    raw_S = RAW_S[: 2 * RATE_HZ]
    edit_S = np.concatenate([np.zeros(RATE_HZ, np.float32), raw_S, np.zeros(RATE_HZ, np.float32)])
    alignment = aligned(raw_S, edit_S)
    (run,) = alignment.runs
    assert (run.start, run.stop, run.offset) == (RATE_HZ, 3 * RATE_HZ, -RATE_HZ)


def test_files_are_written_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "räw.wav", RAW_S, RATE_HZ, subtype="PCM_24")
    soundfile.write(
        tmp_path / "cut.wav", spliced(RAW_S, [(20.3, 24.9), (3.1, 6.4)]), RATE_HZ, subtype="PCM_24"
    )
    out = tmp_path / "out"
    alignment = align_files(tmp_path / "räw.wav", tmp_path / "cut.wav", out)
    names = {"cut_pointers.npy", "cut_labels.npy", "cut_info.json", "cut.edits.json", "cut_alignment.png"}
    assert {path.name for path in out.iterdir()} == names
    pointers_N = np.load(out / "cut_pointers.npy")
    assert pointers_N.dtype == np.int32
    np.testing.assert_array_equal(pointers_N, alignment.pointers_N)
    info = json.loads((out / "cut_info.json").read_text(encoding="utf-8"))
    assert info["alignment_ratio"] == 1.0 and len(info["runs"]) == 2
    labels = np.load(out / "cut_labels.npy")
    expected = beat_labels(alignment.edit_list, np.array(info["beat_frames"]), info["raw_frames"], grid=GRID)
    np.testing.assert_array_equal(labels, expected)
    assert {EditLabel.CUT, EditLabel.KEEP} <= set(labels.tolist())
    assert read_edits(out / "cut.edits.json").source.frames == len(RAW_S)
    with pytest.raises(CannotCreateError, match=r"cut_pointers\.npy"):
        align_files(tmp_path / "räw.wav", tmp_path / "cut.wav", out)
    with pytest.raises(NoInputError, match=r"none\.wav"):
        align_files(tmp_path / "none.wav", tmp_path / "cut.wav", tmp_path / "other")


def test_every_edit_list_names_its_recording_alike(tmp_path: Path, monkeypatch) -> None:
    soundfile.write(tmp_path / "raw.wav", RAW_S[: 4 * RATE_HZ], RATE_HZ)
    monkeypatch.chdir(tmp_path)
    found = align_files("raw.wav", "raw.wav", "out").edit_list.source
    with Reader("raw.wav") as reader:
        assert found == listen(reader).source == read_edits("out/raw.edits.json").source
    assert found.path == str(tmp_path / "raw.wav") and found.sha256


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "raw.wav", RAW_S[:RATE_HZ], RATE_HZ, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    spoilt_S = RAW_S[:RATE_HZ].copy()
    spoilt_S[999] = np.nan
    soundfile.write(tmp_path / "nan.wav", spoilt_S, RATE_HZ, subtype="FLOAT")
    for name in ("text.wav", "nan.wav"):
        for pair in ((name, "raw.wav"), ("raw.wav", name)):
            with pytest.raises(DataError, match=name):
                align_files(*(tmp_path / file for file in pair), tmp_path / "new" / "out")
    with pytest.raises(CannotCreateError, match=r"raw\.wav/out: cannot be created \(Not a directory\)"):
        align_files(tmp_path / "raw.wav", tmp_path / "raw.wav", tmp_path / "raw.wav" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"raw.wav", "text.wav", "nan.wav"}


def test_all_files_appear_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "raw.wav", RAW_S[:RATE_HZ], RATE_HZ, subtype="FLOAT")
    paths = tmp_path / "raw.wav", tmp_path / "raw.wav", tmp_path / "new" / "out"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("editjax.align.report.draw_alignment", fail)
        with pytest.raises(InputOutputError, match="No space left"):
            align_files(*paths)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.wav"]
    align_files(*paths)
    assert len(list(paths[2].iterdir())) == 5
    with pytest.raises(CannotCreateError, match="exists already"):
        align_files(*paths)
    align_files(*paths, overwrite=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_path_is_the_cheapest(data: st.DataObject) -> None:
    n_windows, switch = 5, data.draw(st.integers(0, 4)) / 2
    spans, costs = [], []
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, n_windows - 1))
        stop = data.draw(st.integers(first + 1, n_windows))
        spans.append(Span(first, stop, 0))
        costs.append(
            np.array(data.draw(st.lists(st.integers(0, 8), min_size=stop - first, max_size=stop - first)))
        )
    stray_W = np.array(data.draw(st.lists(st.integers(0, 8), min_size=n_windows, max_size=n_windows)))

    def price(path: tuple[int, ...]) -> float:
        total, last = 0.0, None
        for window, k in enumerate(path):
            inside = k == -1 or spans[k].first <= window < spans[k].stop
            total += (
                np.inf if not inside else stray_W[window] if k == -1 else costs[k][window - spans[k].first]
            )
            total += switch * (k != last)
            last = k
        return total

    choices = np.array(np.meshgrid(*[range(-1, len(spans))] * n_windows)).reshape(n_windows, -1).T
    found = cheapest_path(spans, costs, stray_W.astype(float), switch)
    assert price(tuple(found.tolist())) == min(price(tuple(path)) for path in choices.tolist())


def test_coarse_peaks_hold_the_place_of_a_chunk() -> None:
    signals = signals_of(ArrayReader(RAW_S, RATE_HZ), ArrayReader(RAW_S[100_001:], RATE_HZ), SignalSettings())
    coarse = coarse_of(signals, 6000.0)
    peaks = coarse_peaks(coarse, [0, 30_000], RATE_HZ, SearchSettings())
    for start, found in zip((100_001, 130_001), peaks, strict=True):
        assert abs(found[0] - start) <= coarse.factor


@pytest.mark.parametrize("factor", [2, 7])
def test_decimation_keeps_the_clock(factor: int) -> None:
    wave_S = np.sin(2 * np.pi * 200 * np.arange(30_000) / RATE_HZ).astype(np.float32)
    slow_S = np.concatenate(list(decimated(wave_S, factor, block_samples=4096)))
    assert len(slow_S) == -(-len(wave_S) // factor)
    np.testing.assert_allclose(slow_S[50:-50], wave_S[::factor][50:-50], atol=4e-3)


def test_the_tone_of_an_edit_is_taken_out() -> None:
    edit_S = scipy.signal.lfilter([1.0, -0.6], [1.0, -0.2], spliced(RAW_S, [(20.0, 25.0), (3.0, 8.0)]))
    measuring = SignalSettings()
    signals = signals_of(
        ArrayReader(RAW_S, RATE_HZ), ArrayReader(edit_S.astype(np.float32), RATE_HZ), measuring
    )
    changed = toned(signals, Search(signals, measuring, SearchSettings()).sketch(), measuring)
    assert changed is not None
    before, after = (measure(s, 20 * RATE_HZ, 0, 400).residual_W for s in (signals, changed))
    assert np.median(after) < 0.02 * np.median(before)
    assert toned(changed, Search(changed, measuring, SearchSettings()).sketch(), measuring) is None


def test_the_gain_of_a_diagonal_ignores_what_does_not_fit() -> None:
    edit_S = np.concatenate([0.5 * RAW_S[:40_000], music(1.0, seed=4)])
    signals = signals_of(ArrayReader(RAW_S, RATE_HZ), ArrayReader(edit_S, RATE_HZ), SignalSettings())
    assert typical_gain(measure(signals, 0, 0, len(signals.energy_W))) == pytest.approx(0.5, rel=1e-3)


def test_nothing_foreign_resembles_the_raw() -> None:
    raw_TF, foreign_NF, own_NF = (
        contours_of(mel_spectrogram(x)) for x in (RAW_S, music(8, seed=55), RAW_S[200_000:330_000])
    )
    whole = ResembleSettings()
    assert resembling(foreign_NF, raw_TF, slice(0, len(foreign_NF)), whole) == []
    ((span, likeness),) = resembling(own_NF, raw_TF, slice(0, len(own_NF)), whole)
    assert span.offset == round(200_000 / FRAME) and likeness > 0.9
    assert span.stop - span.first > 0.95 * len(own_NF)


def test_slices_beyond_the_ends_are_silent() -> None:
    samples_S = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(slice_padded(samples_S, -2, 3), [0, 0, 0, 1, 2])
    np.testing.assert_array_equal(slice_padded(samples_S, 3, 7), [3, 4, 0, 0])
    np.testing.assert_array_equal(slice_padded(samples_S, -3, -1), [0, 0])
    np.testing.assert_array_equal(slice_padded(samples_S, 9, 11), [0, 0])
    np.testing.assert_array_equal(spooled([samples_S[:2], samples_S[2:]]), samples_S)
    assert spooled([]).shape == (0,)
