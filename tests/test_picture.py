"""The overview is the samples' extremes, and the pixels of a picture say what the edit does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from editjax import picture
from editjax.audio import ArrayReader
from editjax.edits import UNALIGNED, EditList, Segment, Source
from editjax.errors import CannotCreateError, UsageError

RATE_HZ = 8000
LENGTH_S = 100
BLUE, GREY, ORANGE, GREEN = (
    to_rgb(picture.COLOUR_OF_KIND[kind]) for kind in ("COPY", "CUT", "LOOP", "REORDER")
)
RAW_ROWS, EDIT_ROWS = slice(130, 240), slice(410, 530)  # where the two waveforms are drawn


def edit_of(*spans_s, name="recording.wav") -> EditList:
    source = Source(name, "", RATE_HZ, 1, LENGTH_S * RATE_HZ)
    spans = [(round(start * RATE_HZ), round(stop * RATE_HZ)) for start, stop in spans_s]
    return EditList(source, tuple(Segment(*span, *span) for span in spans), {})


@pytest.fixture(scope="module")
def peaks():
    samples_S = np.random.default_rng(0).uniform(-0.5, 0.5, LENGTH_S * RATE_HZ).astype(np.float32)
    return picture.overview(ArrayReader(samples_S, RATE_HZ))


def drawn(tmp_path, peaks, edit_list):
    path = tmp_path / "edit.png"
    picture.draw_edit(path, *peaks, edit_list)
    return imread(path)[..., :3]


def colours_at(image, rows, second, length_s=LENGTH_S):
    """The colours of the palette that a column of the picture shows at a time of the clock."""
    width = image.shape[1]
    column = round((picture.LEFT + (picture.RIGHT - picture.LEFT) * second / length_s) * width)
    pixels = image[rows, column]
    palette = {"BLUE": BLUE, "GREY": GREY, "ORANGE": ORANGE, "GREEN": GREEN}
    near = {name: (np.abs(pixels - colour).max(axis=1) < 0.03).mean() for name, colour in palette.items()}
    return {name for name, share in near.items() if share > 0.2}


def test_the_picture_is_wide_enough_to_read(tmp_path, peaks):
    assert drawn(tmp_path, peaks, edit_of((10, 20))).shape[:2] == (600, 1600)


def test_columns_are_coloured_by_what_becomes_of_them(tmp_path, peaks):
    image = drawn(tmp_path, peaks, edit_of((20, 40), (30, 40), (60, 80), (45, 50)))
    raw = {second: colours_at(image, RAW_ROWS, second) for second in (10, 25, 35, 42, 47, 55, 70, 90)}
    assert raw == {
        10: {"GREY"},
        25: {"BLUE"},
        35: {"ORANGE"},
        42: {"GREY"},
        47: {"GREEN"},
        55: {"GREY"},
        70: {"BLUE"},
        90: {"GREY"},
    }
    edit = {second: colours_at(image, EDIT_ROWS, second) for second in (10, 25, 40, 53, 70)}
    assert edit == {10: {"BLUE"}, 25: {"ORANGE"}, 40: {"BLUE"}, 53: {"GREEN"}, 70: set()}


def test_an_edit_longer_than_its_source_fits(tmp_path, peaks):
    image = drawn(tmp_path, peaks, edit_of((0, 100), (0, 100)))
    assert colours_at(image, RAW_ROWS, 150, 200) == set()
    assert colours_at(image, EDIT_ROWS, 150, 200) == {"ORANGE"}


def test_the_edit_shows_the_waveform_of_what_it_plays(tmp_path):
    low, high = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    low[600:800], high[600:800] = -1, 1  # loud from 60 to 80 s
    image = drawn(tmp_path, (low, high), edit_of((50, 60), (60, 80), (20, 30)))
    loud = {second: colours_at(image, EDIT_ROWS, second) for second in (5, 12, 28, 35)}
    assert loud == {5: set(), 12: {"BLUE"}, 28: {"BLUE"}, 35: set()}


@pytest.mark.parametrize("name", ["for $\\frac$.wav", "音楽.wav", "a_b^c.wav", "b" * 300 + ".wav"])
def test_any_name_can_be_a_title(tmp_path, peaks, name):
    drawn(tmp_path, peaks, edit_of((10, 20), name=name))


def test_an_edit_that_keeps_nothing_is_drawn(tmp_path, peaks):
    image = drawn(tmp_path, peaks, edit_of())
    assert colours_at(image, RAW_ROWS, 50) == {"GREY"}


def test_pictures_are_written_whole_or_not_at_all(tmp_path, peaks):
    path = tmp_path / "mine.png"
    path.write_text("mine")
    with pytest.raises(CannotCreateError):
        picture.draw_edit(path, *peaks, edit_of((10, 20)))
    with pytest.raises(UsageError, match="xyz"):
        picture.draw_edit(tmp_path / "a.xyz", *peaks, edit_of((10, 20)))
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "mine"
    picture.draw_edit(path, *peaks, edit_of((10, 20)), overwrite=True)
    assert path.read_bytes().startswith(b"\x89PNG")
    picture.draw_edit(tmp_path / "a.PDF", *peaks, edit_of((10, 20)))
    assert (tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")


@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 3), st.sampled_from((np.int16, np.float32)))
@settings(max_examples=60, deadline=None)
def test_the_overview_holds_the_extremes_of_its_bins(n_samples, bins, channels, dtype):
    rng = np.random.default_rng(n_samples)
    samples_SC = rng.uniform(-1, 1, (n_samples, channels)).astype(np.float32)
    if dtype == np.int16:
        samples_SC = np.round(samples_SC * 32767).astype(np.int16)
    lowest, highest = picture.overview(ArrayReader(samples_SC, RATE_HZ), bins)
    scaled_SC = samples_SC / np.float32(32768 if dtype == np.int16 else 1)
    parts = [scaled_SC[np.arange(n_samples) * len(lowest) // n_samples == i] for i in range(len(lowest))]
    assert len(lowest) == min(bins, n_samples)
    np.testing.assert_allclose(lowest, [part.min() for part in parts])
    np.testing.assert_allclose(highest, [part.max() for part in parts])


def test_the_overview_of_blocks_is_that_of_the_whole():
    class InBlocks(ArrayReader):
        def blocks(self, block_samples=777):
            return super().blocks(block_samples)

    samples_S = np.random.default_rng(1).uniform(-1, 1, 10_000).astype(np.float32)
    whole, pieces = (picture.overview(kind(samples_S, RATE_HZ), 50) for kind in (ArrayReader, InBlocks))
    np.testing.assert_array_equal(whole, pieces)


def test_an_alignment_shows_its_runs_and_gaps(tmp_path):
    pointers_N = np.concatenate([np.arange(100, 500), np.full(100, UNALIGNED), np.arange(200, 700)])
    picture.draw_alignment(tmp_path / "a.png", pointers_N, 1000, 43.0, "take $1")
    image = imread(tmp_path / "a.png")[..., :3]
    assert (np.abs(image - BLUE).max(axis=-1) < 0.03).sum() > 2000
    assert (np.abs(image - ORANGE).max(axis=-1) < 0.03).sum() > 1000  # 200 to 500 play twice
    with pytest.raises(CannotCreateError):
        picture.draw_alignment(tmp_path / "a.png", pointers_N, 1000, 43.0)


def test_scores_are_bars_as_long_as_they_are(tmp_path):
    scores = {"pointer": {"IoU": 0.8, "loop recall": float("nan")}, "keep everything": {"IoU": 0.4}}
    picture.draw_scores(tmp_path / "a.png", scores, "held-out")
    image = imread(tmp_path / "a.png")[..., :3]
    lengths = [
        (np.abs(image - to_rgb(colour)).max(axis=-1) < 0.03).sum(axis=1).max()
        for colour in picture.EDITOR_COLOURS
    ]
    legend = 40
    assert lengths[0] - legend == pytest.approx(2 * lengths[1] - legend, abs=2 * legend)
    with pytest.raises(UsageError):
        picture.draw_scores(tmp_path / "b.png", {"pointer": {}})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (4.26, "0:04.3"), (9.96, "0:10"), (83, "1:23"), (3599.6, "1:00:00"), (36_000, "10:00:00")],
)
def test_times_are_written_as_on_a_clock(seconds, text):
    assert picture._time(seconds) == text
