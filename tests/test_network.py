"""The callable network keeps the documents' calls: shapes, tokens, levels that agree, one or several."""

import math

import jax
import numpy as np
import pytest

from editjax.edits import PAD, STOP
from editjax.errors import UsageError
from editjax.models import pointer
from editjax.models.pointer import PointerSettings
from editjax.network import SAME_IOU, PointerNetwork, padded_length

SMALL = PointerSettings(
    n_mels=32, width=16, frame_width=8, landmark_layers=1, landmark_window=6, frame_window=5, matches=1
)


@pytest.fixture(scope="module")
def network():
    params = jax.jit(lambda: pointer.init(SMALL, jax.random.key(3)))()
    params["decoder"]["mode"]["bias"] = np.array([4.0, 0.0, -2.0], np.float32)
    return PointerNetwork(SMALL, params)


@pytest.fixture(scope="module")
def mel():
    return np.random.default_rng(0).uniform(0.3, 0.7, (300, SMALL.n_mels)).astype(np.float32)


def test_generate_ends_in_stop_then_pad(network, mel):
    pointers = network.generate([mel, mel[:60]], temperature=1.0, seed=4)
    stops = [int(np.flatnonzero(row == STOP)[0]) for row in pointers]
    assert stops[0] != stops[1] and pointers.shape == (2, max(stops) + 1)
    for row, stop, frames in zip(pointers, stops, (len(mel), 60), strict=True):
        assert (row[:stop] >= 0).all() and (row[:stop] < frames).all()
        assert (row[stop + 1 :] == PAD).all()


def test_numbers_that_mean_nothing_are_refused(network, mel):
    for asked in ({"temperature": -1.0}, {"temperature": math.nan}, {"target_length": -5.0}):
        with pytest.raises(UsageError):
            network.generate(mel, **asked)


@pytest.mark.parametrize(
    "shape", [(1, SMALL.n_mels, 300), (300,), (0, SMALL.n_mels), (1, 2, 300, SMALL.n_mels)]
)
def test_mels_in_another_layout_are_refused(network, shape):
    with pytest.raises(UsageError, match="transposed"):
        network.generate(np.zeros(shape, np.float32))


def test_a_seed_fixes_the_sampled_edit_and_another_changes_it(network, mel):
    first, again, other = (network.generate(mel, temperature=1.0, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()


def test_bars_and_beats_contain_the_pointers(network, mel):
    out = network.generate_hierarchical(mel, coarse_to_fine=True, temperature=1.0)
    played = out["pointers"] >= 0
    np.testing.assert_array_equal(out["bar_indices"][played], out["pointers"][played] // 172)
    np.testing.assert_array_equal(out["beat_indices"][played], out["pointers"][played] // 43)


def test_inference_returns_a_stop_probability_for_every_pointer(network, mel):
    pointers, stop_p = network.inference(np.stack([mel, mel]))
    assert pointers.shape == stop_p.shape and pointers.shape[0] == 2
    assert ((stop_p >= 0) & (stop_p <= 1)).all()
    np.testing.assert_array_equal(pointers[0], pointers[1])


def test_edit_pointers_reports_every_raw_frame(network, mel):
    edited = network.edit_pointers(mel)
    assert edited.keep_T.shape == (len(mel),)
    assert edited.score_N.shape == edited.pointers_N.shape
    assert (edited.score_N <= 0).all() and edited.length_frames > 0


def test_recordings_of_several_lengths_are_edited_as_alone():
    """Those whose edits stop; one that never does is cut off where the longest recording beside it says."""
    network = PointerNetwork(SMALL, jax.jit(lambda: pointer.init(SMALL, jax.random.key(1)))())
    rng = np.random.default_rng(1)
    mels = [rng.uniform(0.3, 0.7, (n, SMALL.n_mels)).astype(np.float32) for n in (300, 90, 1100, 512)]
    together = network.generate(mels)
    assert together.shape[0] == len(mels)
    for row_N, mel in zip(together, mels, strict=True):
        alone_N = network.generate(mel)[0]
        np.testing.assert_array_equal(row_N[: len(alone_N)], alone_N)
        assert (row_N[len(alone_N) :] == PAD).all() and row_N.max() < len(mel)
        assert (row_N == STOP).sum() == 1
    assert any((np.diff(row_N[row_N >= 0]) != 1).any() for row_N in together), "no edit jumps"
    with pytest.raises(UsageError):
        network.generate([])
    with pytest.raises(UsageError, match="transposed"):
        network.generate([mels[0], mels[1].T])


def test_variants_differ_and_the_likeliest_comes_first(network, mel):
    edits = network.variants(mel, count=3)
    kept = [set(edit.pointers_N.tolist()) for edit in edits]
    assert 1 < len(edits) <= 3
    for place, one in enumerate(kept):
        assert all(len(one & other) / len(one | other) < SAME_IOU for other in kept[:place])
    assert all(edit.keep_T.shape == (len(mel),) for edit in edits)


def test_standard_lengths_waste_at_most_half():
    for frames in (1, 1024, 1025, 5000, 25840):
        assert frames <= padded_length(frames) <= max(1024, 1.42 * frames)
