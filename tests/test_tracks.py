"""Tracks of one session: heard as their sum, edited alike, adding up to the edited sum."""

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax.audio import ArrayReader, Reader, Writer
from editjax.edit_list import EditList, Segment
from editjax.edits import duration_samples, source_of
from editjax.errors import DataError, UsageError
from editjax.formats import to_float
from editjax.mel import mel_of
from editjax.render import RenderSettings, faded_spans, place_joins, render, render_tracks
from editjax.tracks import Mix

RATE_HZ = 8_000
HALF_STEP = {"int16": 2.0**-16, "int32": 2.0**-32, "float32": 1e-6, "float64": 1e-6}


def material(frames: int, channels: int, dtype: str, seed: int, level: float = 0.2) -> np.ndarray:
    """Tones and noise, so that pieces of it are more or less correlated."""
    rng = np.random.default_rng(seed)
    tone_S = np.sin(2 * np.pi * rng.uniform(20, 900) * np.arange(frames) / RATE_HZ + rng.uniform(0, 6))
    samples_SC = level * (tone_S[:, None] + 0.3 * rng.standard_normal((frames, channels)))
    if dtype.startswith("float"):
        return samples_SC.astype(dtype)
    return np.rint(samples_SC * np.iinfo(dtype).max).astype(dtype)


def mix_of(*tracks: np.ndarray, rate_hz: int = RATE_HZ) -> Mix:
    return Mix([ArrayReader(track, rate_hz) for track in tracks], Path("stems"))


def edit_of(reader: Reader, *segments: Segment) -> EditList:
    return EditList(source_of(reader), segments, {})


def plain(start: int, stop: int, **fields) -> Segment:
    return Segment(start, stop, start, stop, **fields)


def summed(tracks: list[np.ndarray], channels: int) -> np.ndarray:
    """Rendered tracks added up, mono ones to all channels, float64 (S, C)."""
    return sum(np.broadcast_to(to_float(t, np.float64), (len(t), channels)) for t in tracks)


# The sum


class Crumbs(ArrayReader):
    """Blocks of odd lengths, as a salvaged file gives them."""

    def blocks(self, block_samples: int = 0) -> Iterator[np.ndarray]:
        edges = [0, 1, 1, 700, 5_001, self.frames]
        for start, stop in pairwise(edges):
            yield self.read(start, stop)


def test_the_sum_is_as_long_as_the_longest_and_mono_is_on_every_channel():
    long_SC, short_S = material(6_000, 2, "int16", 0), material(4_000, 1, "float32", 1)
    wanted_SC = to_float(long_SC, np.float64)
    wanted_SC[:4_000] += short_S
    for mix in (
        mix_of(long_SC, short_S),
        Mix([ArrayReader(short_S, RATE_HZ), Crumbs(long_SC, RATE_HZ)], Path()),
    ):
        assert (mix.frames, mix.info.channels, mix.dtype) == (6_000, 2, np.float64)
        np.testing.assert_array_equal(mix.read(0, 6_000), wanted_SC)
        np.testing.assert_array_equal(mix.read(3_990, 4_010), wanted_SC[3_990:4_010])
        blocks = list(mix.blocks(1_024))
        assert {len(block_SC) for block_SC in blocks[:-1]} == {1_024}
        np.testing.assert_array_equal(np.concatenate(blocks), wanted_SC)


def test_a_sum_beyond_full_scale_is_not_clipped():
    loud_SC = np.full((3_000, 2), 32_000, np.int16)
    assert mix_of(loud_SC, loud_SC, loud_SC).read(0, 3_000).min() == 96_000 / 32_768


def test_the_mel_of_parts_is_the_mel_of_the_whole():
    whole_SC = material(30_000, 2, "int16", 2)
    part_SC = material(30_000, 2, "int16", 3)
    mel_TF, frames = mel_of(mix_of(part_SC, whole_SC - part_SC))
    assert frames == 30_000
    np.testing.assert_array_equal(mel_TF, mel_of(ArrayReader(whole_SC, RATE_HZ))[0])


def test_a_track_that_does_not_fit_the_others_is_named(tmp_path):
    def track(name: str, rate_hz: int, channels: int) -> Reader:
        kind = {"sample_rate_hz": rate_hz, "channels": channels, "container": "WAV", "subtype": "PCM_16"}
        with Writer(tmp_path / name, **kind) as writer:
            writer.write(np.zeros((99, channels), np.int16))
        return Reader(tmp_path / name)

    fitting = [track("a.wav", 8_000, 2), track("b.wav", 8_000, 1), track("c.wav", 8_000, 2)]
    for odd, word in ((track("odd.wav", 9_000, 2), "9000"), (track("wide.wav", 8_000, 6), "channels is 6")):
        for readers in ([odd, *fitting], [*fitting, odd]):
            with pytest.raises(DataError) as error:
                Mix(readers, tmp_path)
            assert str(odd.info.path) in str(error.value) and word in str(error.value)
    with pytest.raises(UsageError, match="no tracks"):
        Mix([], tmp_path)


def test_a_damaged_track_is_named():
    with pytest.raises(DataError, match="sample 5 of channel 1"):
        list(mix_of(np.zeros(9), np.array([0.0, 0, 0, 0, 0, np.nan])).blocks())


# The tracks


@st.composite
def sessions(draw) -> tuple[list[np.ndarray], list[Segment], RenderSettings]:
    """Tracks of all types, lengths and channels; cuts, loops, reorders with and without fades and gains."""
    stereo = draw(st.booleans())
    tracks = [
        material(
            9_000 if number == 0 else draw(st.integers(1, 9_000)),
            draw(st.integers(1, 2)) if stereo else 1,
            draw(st.sampled_from(sorted(HALF_STEP))),
            draw(st.integers(0, 99)),
        )
        for number in range(draw(st.integers(1, 4)))
    ]
    segments = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 8_990))
        length = min(draw(st.integers(1, 30) | st.integers(1, 4_000)), 9_000 - start)
        fades = {name: draw(st.sampled_from([0, 0, length // 2])) for name in ("fade_in", "fade_out")}
        segments.append(
            plain(start, start + length, gain_db=draw(st.sampled_from([0.0, 0.0, -5.0])), **fades)
        )
    return tracks, segments, RenderSettings(draw(st.sampled_from([0.0, 10.0, 30.0])))


@settings(max_examples=150)
@given(sessions())
def test_rendered_tracks_add_up_to_the_rendered_sum(session):
    tracks, segments, wanted = session
    mix = mix_of(*tracks)
    edit_list = place_joins(edit_of(mix, *segments), mix, wanted)
    rendered = render_tracks(edit_list, mix, [None] * len(tracks), wanted)
    assert all(r.dtype == t.dtype and r.shape[1] == t.shape[1] for r, t in zip(rendered, tracks, strict=True))
    assert {len(track_SC) for track_SC in rendered} == {duration_samples(edit_list)}
    tolerance = sum(HALF_STEP[track.dtype.name] for track in tracks)
    difference = summed(rendered, mix.info.channels) - render(edit_list, mix, None, wanted)
    assert np.abs(difference).max() <= tolerance * (1 + 1e-9)


def test_what_was_not_faded_is_every_tracks_own_bit_for_bit():
    tracks = [material(9_000, 2, "int16", 4), material(7_000, 1, "float32", 5)]
    mix = mix_of(*tracks)
    edit_list = place_joins(edit_of(mix, plain(500, 4_000), plain(5_000, 9_000)), mix, RenderSettings())
    untouched_S = np.ones(duration_samples(edit_list), bool)
    for start, stop in faded_spans(edit_list, mix):
        untouched_S[start:stop] = False
    for track, rendered_SC in zip(tracks, render_tracks(edit_list, mix, [None, None]), strict=True):
        silent_SC = np.zeros((9_000 - len(track), track.shape[1]), track.dtype)
        whole_SC = np.concatenate([track, silent_SC])
        plain_SC = np.concatenate([whole_SC[s.start : s.stop] for s in edit_list.segments])
        np.testing.assert_array_equal(rendered_SC[untouched_S], plain_SC[untouched_S])


def test_fades_chosen_track_by_track_would_not_add_up():
    tone_S, noise_S = material(9_000, 1, "float64", 6), 0.2 * np.random.default_rng(7).standard_normal(9_000)
    mix = mix_of(tone_S, noise_S)
    edit_list = place_joins(edit_of(mix, plain(0, 3_000), plain(4_000, 8_000)), mix, RenderSettings())
    together = render_tracks(edit_list, mix, [None, None])
    alone = [
        render(edit_list._replace(source=source_of(track)), track)
        for track in map(ArrayReader, (tone_S, noise_S), [RATE_HZ] * 2)
    ]
    rendered_SC = render(edit_list, mix)
    assert np.abs(summed(together, 1) - rendered_SC).max() < 1e-12
    assert np.abs(summed(alone, 1) - rendered_SC).max() > 1e-3


WHOLES = {f"music {seed}": material(9_000, 2, "int16", seed) for seed in range(5)} | {
    "two silences": np.repeat(np.array([[0, 0], [60, 60]], np.int16), 4_500, axis=0)
}


@pytest.mark.parametrize("whole_SC", WHOLES.values(), ids=WHOLES)
def test_whole_numbers_split_into_tracks_are_joined_as_the_whole_is(whole_SC):
    part_SC = material(9_000, 2, "int16", 50)
    whole, mix = ArrayReader(whole_SC, RATE_HZ), mix_of(part_SC, whole_SC - part_SC)
    segments = (plain(10, 3_000), plain(5_000, 6_000), plain(2_000, 8_999), plain(0, 700))
    placed = [place_joins(edit_of(reader, *segments), reader, RenderSettings()) for reader in (whole, mix)]
    assert placed[0].segments == placed[1].segments
    assert faded_spans(placed[0], whole) == faded_spans(placed[1], mix)
    rendered = render_tracks(placed[1], mix, [None, None])
    difference_SC = summed(rendered, 2) - to_float(render(placed[0], whole), np.float64)
    assert np.abs(difference_SC).max() <= 3 * HALF_STEP["int16"]


def test_a_track_near_full_scale_is_not_clipped_where_another_fade_does_as_well():
    rng = np.random.default_rng(8)
    loud_S = np.full(9_000, 30_000, np.int16)
    others_S = (-30_000 / 32_768 + 0.1 * rng.standard_normal(9_000)).astype(np.float32)
    mix = mix_of(loud_S, others_S)
    edit_list = edit_of(mix, plain(0, 3_000), plain(5_000, 9_000))
    rendered = render_tracks(edit_list, mix, [None, None])
    assert rendered[0].max() == 30_000
    assert np.abs(summed(rendered, 1) - render(edit_list, mix)).max() <= HALF_STEP["int16"] + 1e-6


class LongReader(ArrayReader):
    """Twelve minutes of a sawtooth made as they are read."""

    frames = 12 * 60 * RATE_HZ  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(np.zeros((1, 1), np.int16), RATE_HZ)

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        assert 0 <= start_sample <= stop_sample <= self.frames
        return (np.arange(start_sample, stop_sample) % 3_001).astype(np.int16)[:, None]


class Counted:
    """A writer that counts."""

    frames = 0

    def write(self, samples_SC: np.ndarray) -> None:
        self.frames += len(samples_SC)


def test_long_tracks_are_heard_and_rendered_in_bounded_memory():
    mix = Mix([LongReader() for _ in range(4)], Path("stems"))
    minute = 60 * RATE_HZ
    edit_list = EditList(source_of(mix), (plain(0, 4 * minute), plain(5 * minute, 12 * minute)), {})
    writers = [Counted() for _ in mix.tracks]
    tracemalloc.start()
    heard = sum(len(block_SC) for block_SC in mix.blocks())
    render_tracks(place_joins(edit_list, mix, RenderSettings()), mix, writers)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert heard == 12 * minute and {writer.frames for writer in writers} == {duration_samples(edit_list)}
    assert peak < 20e6 < 8 * mix.frames
