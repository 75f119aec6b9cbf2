"""The bundled model edits the example: better than keeping everything, without clicks, as its list says."""

from pathlib import Path

from editjax import editor
from editjax.audio import Reader
from editjax.edits import duration_samples, pointers_by_time, read_edits
from editjax.mel import FrameGrid
from editjax.metrics import kept_iou
from editjax.render import RenderSettings, largest_join_step_ratio

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_bundled_model_edits_the_example_better_than_keeping_everything():
    session = EXAMPLES / "session.flac"
    done = editor.edit(session)
    wanted = read_edits(EXAMPLES / "session_wanted.edits.json")
    grid = FrameGrid(wanted.source.sample_rate)
    n_frames = grid.frames_in(wanted.source.frames)
    truth_N, edit_N = (pointers_by_time(e, grid) for e in (wanted, done.edit_list))
    everything = len(set(truth_N)) / n_frames
    assert kept_iou(edit_N, truth_N, n_frames) > everything + 0.25
    assert len(done.samples_SC) == duration_samples(done.edit_list)
    with Reader(session) as reader:
        assert largest_join_step_ratio(done.samples_SC, done.edit_list, reader, RenderSettings()) <= 1.1
