"""Rendering: untouched outside the fades, no clicks inside them, bounded memory."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax import crossfade
from editjax.audio import ArrayReader, Reader, Writer
from editjax.edit_list import EditList, Segment, Source
from editjax.edits import duration_samples, identity
from editjax.errors import DataError, UsageError
from editjax.render import (
    RenderSettings,
    faded_spans,
    join_instants,
    largest_join_step_ratio,
    place_joins,
    preview_joins,
    render,
    render_blocks,
    write_removed,
)

RATE_HZ = 8_000
REACH = 80  # samples in 10 ms
TYPES = ["int16", "int32", "float32", "float64"]


def edit_of(reader: Reader, *spans: tuple[int, int], **fields) -> EditList:
    info = reader.info
    source = Source("", "", info.sample_rate_hz, info.channels, reader.frames)
    return EditList(source, tuple(Segment(*span, *span, **fields) for span in spans), {"name": "test"})


def noise(frames: int, channels: int = 2, dtype: str = "int16", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return (0.2 * rng.standard_normal((frames, channels))).astype(dtype)
    top = np.iinfo(dtype).max
    return rng.integers(-top - 1, top, (frames, channels), dtype=dtype)


def tone(frequency_hz: float, seconds: float = 2.0, rate_hz: int = RATE_HZ, phase: float = 0.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz + phase)


def to_int16(samples_S: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(samples_S, -1, 1) * 32_767).astype(np.int16)


def strictest_step_ratio(rendered_S: np.ndarray, source_S: np.ndarray, edit_list: EditList) -> float:
    """The words of the rule in numpy: steps within ±20 ms of a join against the 50 ms kept beside it."""
    reach, side = (int(s * edit_list.source.sample_rate) for s in (0.02, 0.05))
    at, worst = 0, 0.0
    for before, after in pairwise(edit_list.segments):
        at += before.stop - before.start
        sides = [
            source_S[max(before.stop - side, 0) : before.stop],
            source_S[after.start :][:side],
        ]
        limit = max(np.abs(np.diff(s.astype(float))).max(initial=0) for s in sides)
        step = np.abs(np.diff(rendered_S[max(at - reach, 0) : at + reach].astype(float))).max()
        worst = max(worst, step / limit if step else 0.0)
    return worst


@st.composite
def edit_lists(draw, reader: Reader, longest: int = 4_000) -> EditList:
    """Cuts, loops, reorders, contiguous and tiny segments."""
    spans: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(1, 8))):
        contiguous = spans and spans[-1][1] < reader.frames and draw(st.integers(0, 3)) == 0
        start = spans[-1][1] if contiguous else draw(st.integers(0, reader.frames - 1))
        length = draw(st.integers(1, 30) | st.integers(1, longest))
        spans.append((start, min(start + length, reader.frames)))
    return edit_of(reader, *spans)


# Nothing is touched outside the fades


@pytest.mark.parametrize(("container", "subtype"), [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"),
    ("WAV", "PCM_U8"),
    ("FLAC", "PCM_S8"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "PCM_24"), ("W64", "PCM_16"),
    ("RF64", "FLOAT"), ("CAF", "PCM_32"), ("AU", "PCM_16"),
])  # fmt: skip
@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (44_100, 2), (96_000, 6)])
def test_the_identity_edit_is_bit_exact_from_file_to_file(tmp_path, container, subtype, rate_hz, channels):
    dtype = {"FLOAT": "float32", "DOUBLE": "float64", "PCM_24": "int32", "PCM_32": "int32"}.get(
        subtype, "int16"
    )
    kind = {"sample_rate_hz": rate_hz, "channels": channels, "container": container, "subtype": subtype}
    with Writer(tmp_path / "in", **kind) as writer:
        writer.write(noise(5_001, channels, dtype))
    with Reader(tmp_path / "in") as reader:
        edit_list = identity(Source("", "", rate_hz, channels, reader.frames))
        with Writer(tmp_path / "out", **kind) as writer:
            render(place_joins(edit_list, reader, RenderSettings()), reader, writer)
        with Reader(tmp_path / "out") as copied:
            assert copied.info[1:] == reader.info[1:]
            assert np.array_equal(copied.read(0, copied.frames), reader.read(0, reader.frames))


@settings(max_examples=150, deadline=None)
@given(
    st.data(),
    st.sampled_from(TYPES),
    st.integers(1, 3),
    st.sampled_from([0.0, 1.0, 10.0, 30.0]),
    st.booleans(),
)
def test_random_edits_are_bit_exact_outside_the_fades(data, dtype, channels, crossfade_ms, place):
    reader = ArrayReader(noise(9_000, channels, dtype), RATE_HZ)
    edit_list = data.draw(edit_lists(reader))
    wanted = RenderSettings(crossfade_ms=crossfade_ms)
    edit_list = place_joins(edit_list, reader, wanted) if place else edit_list
    rendered_SC = render(edit_list, reader, None, wanted)
    plain_SC = np.concatenate([reader.read(s.start, s.stop) for s in edit_list.segments])
    assert rendered_SC.dtype == reader.dtype
    assert len(rendered_SC) == len(plain_SC) == duration_samples(edit_list)
    faded_S = np.zeros(len(plain_SC), bool)
    spans = faded_spans(edit_list, reader, wanted)
    for start, stop in spans:
        assert not faded_S[start:stop].any(), "fades overlap"
        faded_S[start:stop] = True
    assert np.array_equal(rendered_SC[~faded_S], plain_SC[~faded_S])
    instants = [0, *join_instants(edit_list), len(plain_SC)]
    reach = 2 * max(crossfade_ms, RenderSettings().fade_edges_ms) * RATE_HZ / 1000 + 1
    assert all(min(abs(i - edge) for i in instants) <= reach for span in spans for edge in span)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4_999), max_size=6), st.sampled_from(TYPES))
def test_contiguous_segments_have_no_join(cuts, dtype):
    samples_SC = noise(5_000, 2, dtype)
    edges = sorted({0, *cuts, 5_000})
    reader = ArrayReader(samples_SC, RATE_HZ)
    edit_list = edit_of(reader, *pairwise(edges))
    assert np.array_equal(render(edit_list, reader), samples_SC)
    assert place_joins(edit_list, reader, RenderSettings()).segments == edit_list.segments
    assert join_instants(edit_list) == faded_spans(edit_list, reader) == []


def test_crossfades_stay_within_ten_milliseconds_where_the_material_allows():
    reader = ArrayReader(noise(9_000), RATE_HZ)
    edit_list = edit_of(reader, (1_000, 3_000), (5_000, 7_000))
    assert faded_spans(edit_list, reader) == [(0, 24), (1_960, 2_040), (3_976, 4_000)]


def test_fades_at_the_edges_only_inside_the_recording():
    reader = ArrayReader(noise(9_000), RATE_HZ)
    assert faded_spans(edit_of(reader, (0, 9_000)), reader) == []
    assert faded_spans(edit_of(reader, (0, 8_999)), reader) == [(8_975, 8_999)]
    rendered_SC = render(edit_of(reader, (1, 9_000)), reader)
    assert abs(rendered_SC[0]).max() < 200 and np.array_equal(rendered_SC[24:], reader.read(25, 9_000))
    plain_SC = render(edit_of(reader, (1, 9_000)), reader, None, RenderSettings(fade_edges_ms=0.0))
    assert np.array_equal(plain_SC, reader.read(1, 9_000))


@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3"])
def test_file_and_memory_render_alike(tmp_path, container):
    subtype = {"FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}[container]
    samples_SC = np.stack([to_int16(tone(220, 4.0, 44_100)), to_int16(tone(330, 4.0, 44_100))], 1)
    with Writer(
        tmp_path / "in", sample_rate_hz=44_100, channels=2, container=container, subtype=subtype
    ) as writer:
        writer.write(samples_SC)
    with Reader(tmp_path / "in") as reader:
        memory = ArrayReader(np.concatenate(list(reader.blocks())), 44_100)
        edit_list = edit_of(reader, (100_000, 170_000), (30_000, 60_000), (30_000, 80_000))
        expected_SC = render(place_joins(edit_list, memory, RenderSettings()), memory)
        placed = place_joins(edit_list, reader, RenderSettings())
        with Writer(
            tmp_path / "out", sample_rate_hz=44_100, channels=2, container="WAV", subtype="FLOAT"
        ) as writer:
            render(placed, reader, writer)
        with Reader(tmp_path / "out") as out:
            found_SC = out.read(0, out.frames)
    scale = 1.0 if expected_SC.dtype == np.float32 else 2**-15
    np.testing.assert_array_equal(found_SC, (expected_SC * np.float32(scale)).astype(np.float32))


# Joins do not click


def signal(kind: str, seconds: float, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Material that joins badly, (S,), in [-1, 1]."""
    n = int(seconds * rate_hz)
    t_S = np.arange(n) / rate_hz
    match kind:
        case "tone":
            return rng.uniform(0.05, 0.9) * np.sin(2 * np.pi * rng.uniform(20, 2_000) * t_S)
        case "bass":
            return 0.9 * np.sin(2 * np.pi * rng.uniform(18, 60) * t_S)
        case "noise":
            return rng.uniform(0.001, 0.3) * rng.standard_normal(n)
        case "rumble":
            rumble_S = np.convolve(rng.standard_normal(n), np.hanning(rate_hz // 100), "same")
            return 0.5 * rumble_S / np.abs(rumble_S).max()
        case "tone and silence":
            return 0.8 * np.sin(2 * np.pi * rng.uniform(30, 800) * t_S) * (np.sin(2 * np.pi * 1.3 * t_S) > 0)
        case "quiet":
            return 3 / 32_768 * rng.standard_normal(n)
        case "offset":
            return 0.3 + 0.01 * rng.standard_normal(n)
        case "overdriven":
            return np.clip(1.5 * np.sin(2 * np.pi * 200 * t_S) + 0.3 * rng.standard_normal(n), -1, 1)
        case "ticks":
            ticks_S = np.zeros(n)
            ticks_S[rng.integers(0, n, 50)] = rng.uniform(-1, 1, 50)
            return ticks_S
    return notes(n, rate_hz, rng)


def notes(n: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Decaying harmonic notes at random times over a little hiss."""
    music_S = 1e-3 * rng.standard_normal(n)
    for _ in range(4 * n // rate_hz):
        at, pitch_hz = int(rng.integers(0, n)), 55 * 2 ** (rng.integers(0, 48) / 12)
        t_S = np.arange(min(n - at, rate_hz)) / rate_hz
        for harmonic in range(1, 7):
            partial_S = np.sin(2 * np.pi * pitch_hz * harmonic * t_S + rng.uniform(0, 6)) / harmonic**1.5
            music_S[at : at + len(t_S)] += 0.15 * partial_S * np.exp(-4 * t_S) * np.minimum(1, 400 * t_S)
    return np.clip(music_S, -1, 1)


KINDS = [
    "tone",
    "bass",
    "noise",
    "rumble",
    "tone and silence",
    "quiet",
    "offset",
    "overdriven",
    "ticks",
    "notes",
]


@pytest.mark.parametrize("place", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1 << 20), floats=st.booleans())
def test_no_join_steps_further_than_its_surroundings(kind, place, seed, floats):
    rng, rate_hz = np.random.default_rng(seed), 44_100
    samples_S = signal(kind, 4.0, rate_hz, rng)
    samples_S = samples_S.astype(np.float32) if floats else to_int16(samples_S)
    reader = ArrayReader(samples_S, rate_hz)
    starts = rng.integers(0, len(samples_S) - rate_hz, 10)
    edit_list = edit_of(reader, *((int(s), int(s + rng.integers(rate_hz // 8, rate_hz))) for s in starts))
    edit_list = place_joins(edit_list, reader, RenderSettings()) if place else edit_list
    rendered_SC = render(edit_list, reader)
    assert strictest_step_ratio(rendered_SC[:, 0], samples_S, edit_list) <= 1.1
    assert largest_join_step_ratio(rendered_SC, edit_list, reader) <= 1.1


@pytest.mark.parametrize("frequency_hz", [25, 40, 60, 110, 440])
def test_opposed_phases_and_silence_join_smoothly(frequency_hz):
    rate_hz = 44_100
    up_S = tone(frequency_hz, 1.0, rate_hz, np.pi / 2)
    source_S = to_int16(np.concatenate([up_S, np.zeros(rate_hz), -up_S]))
    reader = ArrayReader(source_S, rate_hz)
    for spans in (((0, 30_000), (2 * rate_hz + 30_000, 3 * rate_hz)), ((0, 30_000), (60_000, 80_000)),
                  ((60_000, 80_000), (30_000, 40_000))):  # fmt: skip
        edit_list = edit_of(reader, *spans)
        assert strictest_step_ratio(render(edit_list, reader)[:, 0], source_S, edit_list) <= 1.1


def test_the_step_ratio_finds_a_hard_splice():
    source_S = to_int16(tone(100, 2.0, 44_100))
    reader = ArrayReader(source_S, 44_100)
    edit_list = edit_of(reader, (0, 20_000), (40_055, 80_000))
    spliced_SC = np.concatenate([reader.read(s.start, s.stop) for s in edit_list.segments])
    assert largest_join_step_ratio(spliced_SC, edit_list, reader) > 5
    assert strictest_step_ratio(spliced_SC[:, 0], source_S, edit_list) > 5
    assert largest_join_step_ratio(render(edit_list, reader), edit_list, reader) <= 1.1
    assert largest_join_step_ratio(source_S[:, None], edit_of(reader, (0, len(source_S))), reader) == 0


def test_something_loud_beyond_the_cut_is_not_heard():
    samples_S = np.zeros(3 * RATE_HZ, np.int16)
    samples_S[RATE_HZ : 2 * RATE_HZ] = noise(RATE_HZ, 1)[:, 0]
    reader = ArrayReader(samples_S, RATE_HZ)
    edit_list = edit_of(reader, (0, RATE_HZ), (2 * RATE_HZ, 3 * RATE_HZ))
    assert not render(edit_list, reader).any()


# The law of the fade


@settings(deadline=None)
@given(st.floats(-1, 1), st.integers(1, 2_000))
def test_gains_keep_the_power_of_correlated_material(correlation, length):
    out_S, in_S = crossfade.crossfade_gains(length, correlation)
    r = max(correlation, 0.0)
    np.testing.assert_allclose(out_S**2 + in_S**2 + 2 * r * out_S * in_S, 1, atol=1e-12)
    np.testing.assert_allclose(out_S, in_S[::-1], atol=1e-12)
    assert (np.diff(in_S) > 0).all()


def test_gains_reduce_to_equal_power_and_equal_gain():
    out_S, in_S = crossfade.crossfade_gains(99, 0.0)
    np.testing.assert_allclose(out_S**2 + in_S**2, 1)
    out_S, in_S = crossfade.crossfade_gains(99, 1.0)
    np.testing.assert_allclose(out_S + in_S, 1)


@pytest.mark.parametrize("kind", ["noise", "tone"])
def test_the_level_is_steady_through_a_join(kind):
    rng, rate_hz = np.random.default_rng(3), 44_100
    source_S = 0.2 * rng.standard_normal(4 * rate_hz) if kind == "noise" else tone(333, 4.0, rate_hz)
    reader = ArrayReader(source_S, rate_hz)
    spans = [(int(a), int(a) + 4_000) for a in rng.integers(5_000, 3 * rate_hz, 200)]
    edit_list = place_joins(edit_of(reader, *spans), reader, RenderSettings())
    rendered_S = render(edit_list, reader)[:, 0]
    joins_SJ = np.stack([rendered_S[at - 110 : at + 110] for at in join_instants(edit_list)])
    change_db = 10 * np.log10(np.mean(joins_SJ**2) / np.mean(source_S**2))
    assert abs(change_db) < 0.4


# Placing joins


@pytest.mark.parametrize("frequency_hz", [150, 440, 1_000])
def test_joins_move_to_where_the_phases_match(frequency_hz):
    rate_hz = 44_100
    source_S = tone(frequency_hz, 3.0, rate_hz)
    reader = ArrayReader(source_S, rate_hz)
    edit_list = edit_of(reader, (0, 40_000), (70_123, 90_001), (20_011, 60_000))
    placed = place_joins(edit_list, reader, RenderSettings())
    for before, after in pairwise(placed.segments):
        cycles = (after.start - before.stop) * frequency_hz / rate_hz
        assert abs(cycles - round(cycles)) < 0.6 * frequency_hz / rate_hz + 1e-9
    for old, new in zip(edit_list.segments, placed.segments, strict=True):
        assert abs(new.start - old.start) <= 176 and abs(new.stop - old.stop) <= 176
        assert (new.nominal_start, new.nominal_stop) == (old.start, old.stop)
    report = placed.editor["joins"]
    assert report["moved"] == 2 and 0 < report["largest_move_samples"] <= 176
    assert report["length_change_samples"] == duration_samples(placed) - duration_samples(edit_list)
    assert placed.editor["name"] == "test" and "joins" not in edit_list.editor


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([0.0, 1.0, 4.0, 50.0]), st.sampled_from(["noise", "zeros"]))
def test_placing_never_empties_a_segment_nor_closes_a_cut(data, snap_ms, kind):
    samples_SC = noise(6_000, 1) if kind == "noise" else np.zeros((6_000, 1), np.int16)
    reader = ArrayReader(samples_SC, RATE_HZ)
    edit_list = data.draw(edit_lists(reader, longest=900))
    placed = place_joins(edit_list, reader, RenderSettings(snap_ms=snap_ms))
    old, new = edit_list.segments, placed.segments
    for before, after in zip(old, new, strict=True):
        assert 0 <= after.start < after.stop <= 6_000
        assert max(abs(after.start - before.start), abs(after.stop - before.stop)) <= snap_ms * RATE_HZ / 1000
        assert after._replace(start=0, stop=0) == before._replace(start=0, stop=0)
    assert (new[0].start, new[-1].stop) == (old[0].start, old[-1].stop)
    gaps = [[b.start - a.stop for a, b in pairwise(s)] for s in (old, new)]
    assert [np.sign(gap) for gap in gaps[0]] == [np.sign(gap) for gap in gaps[1]]
    if kind == "zeros":
        assert new == old, "nothing to match: nothing moves"


def test_many_joins_do_not_drift():
    reader = ArrayReader(0.3 * np.random.default_rng(0).standard_normal(20 * RATE_HZ), RATE_HZ)
    spans = [(int(a), int(a) + 1_500) for a in np.random.default_rng(1).integers(0, 18 * RATE_HZ, 150)]
    placed = place_joins(edit_of(reader, *spans), reader, RenderSettings())
    assert placed.editor["joins"]["moved"] > 100
    assert abs(placed.editor["joins"]["length_change_samples"]) < 0.02 * RATE_HZ


# Fades, gains and missing handles


def test_gains_are_applied_rounded_and_saturated():
    reader = ArrayReader(np.full((4_000, 1), 10_001, np.int16), RATE_HZ)
    for gain_db, expected in ((20 * np.log10(0.5), 5_000), (-200.0, 0), (20.0, 32_767)):
        rendered_SC = render(edit_of(reader, (0, 4_000), gain_db=gain_db), reader)
        assert rendered_SC.dtype == np.int16 and (rendered_SC == expected).all()
    deep = ArrayReader(np.full((4_000, 1), 1_000 << 8, np.int32), RATE_HZ)
    deep.info = deep.info._replace(subtype="PCM_24")
    assert (render(edit_of(deep, (0, 4_000), gain_db=-1.0), deep) == 891 << 8).all()


def test_a_change_of_gain_between_contiguous_segments_is_a_ramp():
    reader = ArrayReader(np.full((4_000, 1), 10_000, np.int16), RATE_HZ)
    quiet, loud = (
        edit_of(reader, (0, 2_000), gain_db=-12.0).segments,
        edit_of(reader, (2_000, 4_000)).segments,
    )
    rendered_S = render(edit_of(reader)._replace(segments=quiet + loud), reader)[:, 0]
    assert (np.diff(rendered_S) >= 0).all() and rendered_S[0] == 2_512 and rendered_S[-1] == 10_000
    assert np.abs(np.diff(rendered_S)).max() < 200


def test_fades_of_the_segments_are_honoured():
    reader = ArrayReader(np.full((8_000, 1), 10_000, np.int16), RATE_HZ)
    first, second = edit_of(reader, (0, 3_000), (4_000, 8_000)).segments
    alone_S = render(edit_of(reader)._replace(segments=(first._replace(fade_in=500, fade_out=700),)), reader)[
        :, 0
    ]
    assert (np.diff(alone_S[:500]) >= 0).all() and alone_S[0] == 0
    assert (np.diff(alone_S[-700:]) <= 0).all() and alone_S[-1] == 0
    assert (alone_S[500:-700] == 10_000).all()
    pair = (first._replace(fade_out=700), second._replace(fade_in=500))
    assert faded_spans(edit_of(reader)._replace(segments=pair), reader) == [(2_300, 3_500)]
    assert (np.abs(render(edit_of(reader)._replace(segments=pair), reader) - 10_000) <= 1).all()
    for apart in ((pair[0], second), (first, pair[1])):
        rendered_S = render(edit_of(reader)._replace(segments=apart), reader)[:, 0]
        assert rendered_S[2_999:3_001].max() < 100 and rendered_S[2_000] == rendered_S[4_000] == 10_000
        assert (
            place_joins(edit_of(reader)._replace(segments=apart), reader, RenderSettings()).segments == apart
        )


def test_without_handles_the_whole_file_still_loops_without_a_click():
    source_S = to_int16(tone(97, 1.0, 44_100, 0.7))
    reader = ArrayReader(source_S, 44_100)
    edit_list = edit_of(reader, (0, 44_100), (0, 44_100), (0, 44_100))
    rendered_S = render(edit_list, reader)[:, 0]
    assert len(rendered_S) == 3 * 44_100
    assert strictest_step_ratio(rendered_S, source_S, edit_list) <= 1.1
    placed = place_joins(edit_list, reader, RenderSettings())
    rendered_SC = render(placed, reader)
    assert largest_join_step_ratio(rendered_SC, placed, reader) <= 1.1


@pytest.mark.parametrize("length", [1, 2, 3, 10, 79])
def test_segments_shorter_than_the_crossfade_render(length):
    reader = ArrayReader(noise(5_000), RATE_HZ)
    edit_list = edit_of(reader, *((start, start + length) for start in range(0, 4_900, 777)))
    for settings_ in (RenderSettings(), RenderSettings(crossfade_ms=200.0, snap_ms=50.0)):
        placed = place_joins(edit_list, reader, settings_)
        assert len(render(placed, reader, None, settings_)) == duration_samples(placed)


def test_an_empty_edit_renders_nothing():
    reader = ArrayReader(noise(100, 3), RATE_HZ)
    assert render(edit_of(reader), reader).shape == (0, 3)
    assert join_instants(edit_of(reader)) == faded_spans(edit_of(reader), reader) == []
    assert place_joins(edit_of(reader), reader, RenderSettings()).segments == ()


# Memory


class LongReader(ArrayReader):
    """Ten hours of a sawtooth made as they are read."""

    frames = 10 * 3600 * RATE_HZ  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(np.zeros((1, 1), np.int16), RATE_HZ)
        self.largest_read = 0

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        assert 0 <= start_sample <= stop_sample <= self.frames
        self.largest_read = max(self.largest_read, stop_sample - start_sample)
        return (np.arange(start_sample, stop_sample) % 3_001).astype(np.int16)[:, None]


def test_ten_hours_render_in_bounded_memory():
    reader = LongReader()
    hour = 3600 * RATE_HZ
    edit_list = edit_of(reader, (0, 4 * hour), (5 * hour, 10 * hour), (hour, hour + 999))
    edit_list = place_joins(edit_list, reader, RenderSettings())
    tracemalloc.start()
    written = sum(len(samples_SC) for samples_SC in render_blocks(edit_list, reader))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written == duration_samples(edit_list) > 9 * hour
    assert peak < 20e6 and reader.largest_read <= 1 << 18


# Around the edit


def write_wav(path: Path, samples_SC: np.ndarray) -> Path:
    channels = samples_SC.shape[1]
    with Writer(path, sample_rate_hz=RATE_HZ, channels=channels, container="WAV", subtype="PCM_16") as writer:
        writer.write(samples_SC)
    return path


def test_previews_hold_what_is_heard_around_each_join(tmp_path):
    with Reader(write_wav(tmp_path / "in.wav", noise(12 * RATE_HZ))) as reader:
        edit_list = edit_of(reader, (0, 30_000), (50_000, 60_000), (60_000, 70_000), (1_000, 90_000))
        rendered_SC = render(edit_list, reader)
        paths = preview_joins(edit_list, reader, tmp_path)
        assert [p.name for p in paths] == ["join_001_at_3.75s.wav", "join_002_at_6.25s.wav"]
        for path, at in zip(paths, join_instants(edit_list), strict=True):
            with Reader(path) as preview:
                found_SC = preview.read(0, preview.frames)
            wanted_SC = rendered_SC[at - 2 * RATE_HZ : at + 2 * RATE_HZ]
            assert np.array_equal(found_SC[24:-24], wanted_SC[24:-24])


def test_what_was_removed_can_be_heard(tmp_path):
    with Reader(write_wav(tmp_path / "in.wav", noise(3 * RATE_HZ))) as reader:
        edit_list = edit_of(reader, (8_000, 12_000), (10_000, 20_000), (0, 2_000))
        path = tmp_path / "removed.wav"
        with Writer(path, sample_rate_hz=RATE_HZ, channels=2, container="WAV", subtype="PCM_16") as writer:
            write_removed(edit_list, reader, writer)
        with Reader(path) as removed:
            found_SC = removed.read(0, removed.frames)
        assert len(found_SC) == 6_000 + 4_000
        assert np.array_equal(found_SC[24:5_900], reader.read(2_024, 7_900))
        assert np.array_equal(found_SC[6_100:], reader.read(20_100, 24_000))


@pytest.mark.parametrize(("change", "words"), [
    ({"frames": 99}, "made for 99"), ({"sample_rate": 44_100}, "44100 Hz"), ({"channels": 1}, "in 1;"),
])  # fmt: skip
def test_an_edit_list_for_another_recording_is_refused(change, words):
    reader = ArrayReader(noise(1_000), RATE_HZ)
    edit_list = edit_of(reader, (0, 50))
    other = edit_list._replace(source=edit_list.source._replace(**change))
    for use in (lambda: render(other, reader), lambda: place_joins(other, reader, RenderSettings())):
        with pytest.raises(DataError) as error:
            use()
        assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("span", [(-1, 5), (5, 5), (6, 5), (0, 1_001)])
def test_segments_outside_the_recording_are_refused(span):
    reader = ArrayReader(noise(1_000), RATE_HZ)
    with pytest.raises(DataError, match=f"plays samples {span[0]} to {span[1]} of 1000"):
        render(edit_of(reader, span), reader)
    with pytest.raises(DataError, match="fades for more than 120 s"):
        render(edit_of(reader, (0, 1_000), fade_in=10_000_000), reader)


@pytest.mark.parametrize("field", ["crossfade_ms", "snap_ms", "fade_edges_ms"])
@pytest.mark.parametrize("value", [-1.0, 1_001.0, float("nan")])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(UsageError, match=field):
        RenderSettings(**{field: value})
