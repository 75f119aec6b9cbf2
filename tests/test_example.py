"""The bundled model edits the example: better than keeping everything, without clicks, as its list says."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

import editjax
from editjax.audio import Reader
from editjax.edits import duration_samples, pointers_by_time, read_edits
from editjax.mel import FrameGrid
from editjax.metrics import kept_iou
from editjax.render import RenderSettings, largest_join_step_ratio

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def done() -> editjax.EditResult:
    """The example, edited."""
    return editjax.edit(EXAMPLES / "session.flac")


def test_the_bundled_model_edits_the_example_better_than_keeping_everything(done):
    session = EXAMPLES / "session.flac"
    wanted = read_edits(EXAMPLES / "session_wanted.edits.json")
    grid = FrameGrid(wanted.source.sample_rate)
    n_frames = grid.frames_in(wanted.source.frames)
    truth_N, edit_N = (pointers_by_time(e, grid) for e in (wanted, done.edit_list))
    everything = len(set(truth_N)) / n_frames
    assert kept_iou(edit_N, truth_N, n_frames) > everything + 0.25
    assert len(done.samples_SC) == duration_samples(done.edit_list)
    with Reader(session) as reader:
        assert largest_join_step_ratio(done.samples_SC, done.edit_list, reader, RenderSettings()) <= 1.1


def test_its_parts_as_tracks_are_edited_as_the_whole_is(tmp_path):
    """A low band, a third of the rest, and what is left: integers that add up to the session exactly.

    Cuts in the midst of takes make joins in loud music.
    """
    cut = ("20,21.3", "24,26.7", "36,37.1", "62,62.9")
    done = editjax.edit(EXAMPLES / "session.flac", cut=cut)
    whole_SC, rate_hz = soundfile.read(EXAMPLES / "session.flac", dtype="int16", always_2d=True)
    ones_W = np.ones(32, int)
    low_SC = np.stack([np.convolve(channel_S, ones_W, "same") // 32 for channel_S in whole_SC.T], axis=1)
    third_SC = (whole_SC - low_SC) // 3
    parts = {"low.wav": low_SC, "third.flac": third_SC, "rest.wav": whole_SC - low_SC - third_SC}
    assert max(np.abs(part_SC).max() for part_SC in parts.values()) < 2**15
    for name, part_SC in parts.items():
        soundfile.write(tmp_path / name, part_SC.astype(np.int16), rate_hz, "PCM_16")
    tracks = editjax.edit_tracks([tmp_path / name for name in parts], out=tmp_path / "edited", cut=cut)
    assert tracks.edit_list.segments == done.edit_list.segments and len(done.edit_list.segments) > 5
    sum_SC = sum(soundfile.read(path, dtype="int16", always_2d=True)[0].astype(int) for path in tracks.paths)
    step = 0.5 * (len(parts) + 1)  # each rounds inside the crossfades, and so does the edit of the whole
    assert np.abs(sum_SC - done.samples_SC).max() <= step
    assert np.count_nonzero(sum_SC != done.samples_SC) < 0.01 * sum_SC.size
