"""The editor: paths and arrays, settings, snapping, and edits that keep their promises."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

import editjax
from editjax import decision, editor
from editjax.audio import ArrayReader, Reader
from editjax.decision import SEEDS, EditSettings, choose_several
from editjax.editor import EditResult, decide, listen
from editjax.edits import duration_samples
from editjax.errors import CannotCreateError, DataError, NoInputError, UsageError
from editjax.events import KINDS
from editjax.mel import MelSettings
from editjax.network import EditedPointers
from editjax.operations import operations
from editjax.render import faded_spans, largest_join_step_ratio

RATE_HZ = 44100
edit = partial(editor.edit, editor="silence")  # where the editor does not matter, the one without a model


def takes(channels: int = 2, seed: int = 0) -> np.ndarray:
    """Six notes of music with hissing gaps between them, int16 (S, C)."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(RATE_HZ) / RATE_HZ
    pieces = []
    for pitch_hz in (220, 247, 262, 294, 330, 349):
        note_S = sum(np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in (1, 2, 3)) * np.exp(-2 * time_s)
        gap_S = np.zeros(int(rng.uniform(0.8, 1.5) * RATE_HZ))
        pieces += [0.2 * note_S, gap_S]
    samples_S = np.concatenate(pieces)
    samples_SC = np.repeat(samples_S[:, None], channels, axis=1)
    samples_SC += 2e-4 * rng.standard_normal(samples_SC.shape)
    return np.round(samples_SC * 32767).astype(np.int16)


def test_the_public_names_are_there() -> None:
    assert (
        editjax.edit is editor.edit
        and editjax.EditResult is EditResult
        and editjax.EditSettings is EditSettings
    )
    with pytest.raises(AttributeError):
        _ = editjax.edits_that_do_not_exist


def test_samples_and_their_file_give_the_same_edit(tmp_path: Path) -> None:
    samples_SC = takes()
    soundfile.write(tmp_path / "a.wav", samples_SC, RATE_HZ)
    of_file = edit(tmp_path / "a.wav")
    of_array = edit(samples_SC, RATE_HZ)
    assert of_file.edit_list.segments == of_array.edit_list.segments
    assert of_file.samples_SC is not None and of_file.samples_SC.dtype == np.int16
    np.testing.assert_array_equal(of_file.samples_SC, of_array.samples_SC)
    assert of_file.edit_list.source.path == str(tmp_path / "a.wav") and not of_array.edit_list.source.path


def test_with_out_the_same_samples_are_streamed_to_the_file(tmp_path: Path) -> None:
    samples_SC = takes()
    done = edit(samples_SC, RATE_HZ, out=tmp_path / "e.wav")
    assert done.samples_SC is None and done.path == tmp_path / "e.wav"
    written_SC = soundfile.read(tmp_path / "e.wav", dtype="int16")[0]
    np.testing.assert_array_equal(written_SC, edit(samples_SC, RATE_HZ).samples_SC)
    with pytest.raises(CannotCreateError):
        edit(samples_SC, RATE_HZ, out=tmp_path / "e.wav")
    assert edit(samples_SC, RATE_HZ, out=tmp_path / "e.wav", overwrite=True).path


def test_the_result_adds_up() -> None:
    samples_SC = takes()
    done = edit(samples_SC, RATE_HZ)
    assert done.samples_SC is not None
    assert len(done.samples_SC) == duration_samples(done.edit_list)
    assert done.summary.output_s == pytest.approx(len(done.samples_SC) / RATE_HZ)
    assert done.summary.clips == 6 and done.summary.cut_s > 2
    assert set(done.timings_s) == {"read", "mel", "decide", "place", "render"}
    assert all(seconds >= 0 for seconds in done.timings_s.values())


def test_nothing_clicks_and_nothing_else_changes() -> None:
    samples_SC = takes()
    done, reader = edit(samples_SC, RATE_HZ), ArrayReader(samples_SC, RATE_HZ)
    assert done.samples_SC is not None
    assert largest_join_step_ratio(done.samples_SC, done.edit_list, reader) <= 1.1
    played = np.concatenate([np.arange(s.start, s.stop) for s in done.edit_list.segments])
    untouched = np.ones(len(played), bool)
    for start, stop in faded_spans(done.edit_list, reader):
        untouched[start:stop] = False
    assert untouched.mean() > 0.9
    np.testing.assert_array_equal(done.samples_SC[untouched], samples_SC[played[untouched]])


def test_gain_leaves_the_edit_unchanged() -> None:
    samples_SC = takes()
    quiet = np.round(samples_SC / 8).astype(np.int16)
    spans = [
        [(s.nominal_start, s.nominal_stop) for s in edit(x, RATE_HZ).edit_list.segments]
        for x in (samples_SC, quiet)
    ]
    assert spans[0] == spans[1]


def test_margins_widen_and_pauses_shorten() -> None:
    samples_SC = takes()

    def output_s(**changes) -> float:
        return edit(samples_SC, RATE_HZ, **changes).summary.output_s

    assert output_s(margin_s=(0.0, 0.0)) < output_s(margin_s=(0.05, 0.1)) < output_s(margin_s=(0.2, 0.2))
    assert output_s(margin_s=(0.2, 0.2), max_pause_s=0.1) < output_s(margin_s=(0.2, 0.2))
    assert edit(samples_SC, RATE_HZ, keep=("start,end",)).summary.cuts == 0


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(UsageError, match="max_pause_s"):
        edit(takes(), RATE_HZ, max_pauses=1.0)
    with pytest.raises(UsageError, match="silence"):
        EditSettings(editor="loudness")
    with pytest.raises(UsageError, match="beat"):
        EditSettings(snap="bars")
    with pytest.raises(UsageError, match="sample_rate_hz"):
        edit(takes())
    with pytest.raises(NoInputError):
        edit("no such file.wav")


def test_what_was_read_is_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", takes(), RATE_HZ)
    told: list[int] = []
    with Reader(tmp_path / "a.flac") as reader:
        heard = listen(reader, watch=told.append)
        assert sum(told) == heard.source.frames == len(takes())
        assert len(heard.mel_TF) == heard.grid.frames_in(heard.source.frames)
        again = [decide(heard, reader) for _ in range(2)]
    assert again[0] == again[1]


def drums(bpm: float, length_s: float) -> np.ndarray:
    """Hits on every beat over a held tone."""
    rng = np.random.default_rng(1)
    samples_S = 0.05 * np.sin(2 * np.pi * 200 * np.arange(int(length_s * RATE_HZ)) / RATE_HZ)
    click_S = 0.5 * rng.standard_normal(2000) * np.exp(-np.arange(2000) / 300)
    for beat_s in np.arange(0.0, length_s - 0.1, 60 / bpm):
        at = int(beat_s * RATE_HZ)
        samples_S[at : at + 2000] += click_S
    return samples_S.astype(np.float32)


def test_cuts_snap_to_the_beat() -> None:
    """At 100 BPM a beat is 0.6 s: every inner edge ends up within a frame of one."""
    samples_S = drums(100, 30)
    samples_S[int(6.1 * RATE_HZ) : int(8.45 * RATE_HZ)] *= 1e-3
    edges_s = [
        edge / RATE_HZ
        for segment in edit(samples_S, RATE_HZ, snap="beat").edit_list.segments
        for edge in (segment.nominal_start, segment.nominal_stop)
        if 0 < edge < len(samples_S)
    ]
    assert edges_s
    for edge_s in edges_s:
        assert abs(edge_s / 0.6 - round(edge_s / 0.6)) * 0.6 < 0.05


class Planted:
    """Stands in for a trained network: cuts the second half and plays the first eighth twice."""

    mel, style = MelSettings(), "final"

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def phases(self, mel_TF: np.ndarray) -> np.ndarray:
        return np.zeros((len(mel_TF), 3), np.float32)

    def point_of(self, style: str) -> np.ndarray:
        return np.zeros(4, np.float32)

    def some_style(self, style: str, seed: int) -> np.ndarray:
        return np.full(4, seed, np.float32)

    def edit_pointers(self, mel_TF, phase_T3, *, temperature, seed, style, stems_IMF) -> EditedPointers:
        self.asked.append((temperature, seed))
        assert (style == (seed if temperature else 0.0)).all()
        half, eighth = len(mel_TF) // 2, len(mel_TF) // 8
        pointers_N = np.concatenate([np.arange(half), np.arange(eighth)])
        score_N = np.full(len(pointers_N), -0.1)
        score_N[half] = np.log(0.5)
        keep_T, kind_T = np.linspace(1, 0, len(mel_TF)), np.full(len(mel_TF), KINDS.index("talk"), np.int8)
        return EditedPointers(pointers_N, score_N, keep_T, kind_T, half, True)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    network = Planted()
    monkeypatch.setattr(decision, "_network", lambda model: network)
    return network


def test_pointers_become_clips_with_score_and_reason(planted: Planted) -> None:
    target_s = 0.625 * len(takes()) / RATE_HZ
    done = edit(takes(), RATE_HZ, editor="pointer", target_s=target_s, temperature=0.5, seed=3)
    first, second = done.edit_list.segments
    assert first.nominal_start == second.nominal_start == 0 and second.stop < first.stop
    assert first.score == pytest.approx(np.exp(-0.1), abs=1e-3) and second.score == pytest.approx(0.5)
    assert first.reason == "keep 0.75" and second.reason == "keep 0.94"
    assert done.summary.looped_s > 0
    assert {step.reason for step in operations(done.edit_list) if step.kind == "CUT"} == {"talk"}
    assert planted.asked == [(0.5, 3)]
    made_by = done.edit_list.editor
    assert (made_by["name"], made_by["model"], made_by["target_s"], made_by["seed"]) == (
        "pointer",
        "final",
        target_s,
        3,
    )
    assert {"beats", "network"} <= set(done.timings_s)


def test_user_wishes_hold_for_the_network_too(planted: Planted) -> None:
    done = edit(takes(), RATE_HZ, editor="pointer", keep=("-1,end",), cut=("0,0.5",))
    spans_s = [(s.start / RATE_HZ, s.stop / RATE_HZ) for s in done.edit_list.segments]
    assert max(stop_s for _, stop_s in spans_s) == pytest.approx(len(takes()) / RATE_HZ)
    assert min(start_s for start_s, _ in spans_s) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["silence", "pointer"])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 1.5])
def test_a_wanted_length_is_met_and_nothing_is_cut_short(planted: Planted, name: str, factor: float) -> None:
    natural = edit(takes(), RATE_HZ, editor=name)
    target_s = factor * natural.summary.output_s
    done = edit(takes(), RATE_HZ, editor=name, target_s=target_s)
    assert done.summary.output_s == pytest.approx(target_s, rel=0.03)
    assert done.edit_list.segments[0].nominal_start == natural.edit_list.segments[0].nominal_start
    assert done.edit_list.segments[-1].nominal_stop == natural.edit_list.segments[-1].nominal_stop
    assert done.edit_list.editor["natural_s"] == pytest.approx(natural.summary.output_s, abs=0.02)
    assert any("for the length" in segment.reason for segment in done.edit_list.segments)


def test_a_length_is_not_bought_with_what_must_stay() -> None:
    asked = {"keep": ("2.5,4.5",), "cut": ("7,8",), "target_s": 5.0}
    spans_s = [
        (s.nominal_start / RATE_HZ, s.nominal_stop / RATE_HZ)
        for s in edit(takes(), RATE_HZ, **asked).edit_list.segments
    ]
    assert any(start_s <= 2.55 and stop_s >= 4.45 for start_s, stop_s in spans_s)
    assert not any(start_s < 7.95 and stop_s > 7.05 for start_s, stop_s in spans_s)
    with pytest.raises(DataError, match="cannot be made 1000"):
        edit(takes(), RATE_HZ, target_s=1000.0)


def test_what_only_the_network_can_do_is_refused_elsewhere() -> None:
    with pytest.raises(UsageError, match="pointer"):
        edit(takes(), RATE_HZ, editor="silence", temperature=0.5)
    with pytest.raises(UsageError, match="pointer"):
        EditSettings(editor="silence", model="final")
    for changes in ({"target_s": -1.0}, {"target_s": math.nan}, {"temperature": -1.0}):
        with pytest.raises(UsageError):
            EditSettings(editor="pointer", **changes)


def test_seeds_of_drawn_edits_are_counted_up_and_around(planted: Planted) -> None:
    settings = EditSettings(editor="pointer", temperature=0.5, seed=SEEDS - 1)
    heard = listen(ArrayReader(takes(), RATE_HZ), settings)
    assert len(choose_several(heard, settings, 3)) == 3
    assert [seed for _, seed in planted.asked] == [SEEDS - 1, 0, 1]
