"""Scores → clips: thresholds, hysteresis, shortest clips, wanted shares, and the curve over thresholds."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scorer_cases import TINY

from editjax.bundle import find_bundle, read_config
from editjax.edits import Source, to_pointers
from editjax.errors import DataError, NoInputError, UsageError
from editjax.mel import FrameGrid
from editjax.metrics import auroc, average_precision
from editjax.score import (
    KeepSettings,
    Scores,
    best,
    calibrated,
    keep_mask,
    read_scores,
    retention_curve,
    scored_edit,
    write_scores,
)
from editjax.scorer import Calibration, calibrate, calibration_of, combined, figures_of, weights_of

FPS = 43.0
PLAIN = KeepSettings(hysteresis=0.0, min_clip_s=0.0, min_cut_s=0.0, smooth_s=0.0)


def steps(*parts: tuple[int, float]) -> np.ndarray:
    return np.concatenate([np.full(length, level, np.float32) for length, level in parts])


def test_what_scores_below_the_threshold_is_kept():
    np.testing.assert_array_equal(
        keep_mask(np.array([0.0, 1.0, -1.0, 0.5]), replace(PLAIN, threshold=0.4), FPS),
        [True, False, True, False],
    )


def test_a_clip_needs_a_sure_frame_and_lasts_until_it_is_surely_over():
    settings = replace(PLAIN, threshold=0.0, hysteresis=1.0)
    score_T = steps((5, 3.0), (5, 0.5), (5, -2.0), (5, 0.9), (5, 3.0), (5, 0.5), (5, 3.0))
    expected = np.zeros(35, bool)
    expected[5:20] = True
    np.testing.assert_array_equal(keep_mask(score_T, settings, FPS), expected)


def test_short_clips_are_cut_and_short_cuts_not_made():
    settings = replace(PLAIN, min_clip_s=10 / FPS, min_cut_s=5 / FPS)
    score_T = steps((20, -1.0), (4, 1.0), (20, -1.0), (6, 1.0), (9, -1.0), (20, 1.0), (10, -1.0))
    expected = np.r_[np.ones(44, bool), np.zeros(35, bool), np.ones(10, bool)]
    np.testing.assert_array_equal(keep_mask(score_T, settings, FPS), expected)


@pytest.mark.parametrize("wanted", [0.1, 0.4, 0.9, 1.0])
def test_a_share_is_kept_as_nearly_as_clips_allow(wanted):
    score_T = np.random.default_rng(0).standard_normal(6000).cumsum() / 30
    kept = keep_mask(score_T, KeepSettings(keep_ratio=wanted), FPS).mean()
    assert abs(kept - wanted) < 0.02


def test_the_edit_plays_what_is_kept_in_order():
    grid, source = FrameGrid(22050), Source("", "", 22050, 1, 100 * 512)
    score_T = steps((30, -1.0), (40, 2.0), (30, -1.5))
    edit_list = scored_edit(score_T, grid, source, PLAIN, FPS, {"model": "m"})
    np.testing.assert_array_equal(to_pointers(edit_list, grid), np.r_[0:30, 70:100])
    assert edit_list.editor["name"] == "scorer" and edit_list.editor["model"] == "m"
    assert [segment.score for segment in edit_list.segments] == [-1.0, -1.5]


def test_the_curve_finds_a_planted_threshold():
    kept = [np.arange(500) % 100 < 40 for _ in range(3)]
    rng = np.random.default_rng(0)
    scores = [np.where(k, 0.0, 2.0) + 0.1 * rng.standard_normal(500) for k in kept]
    curve = retention_curve(scores, kept, PLAIN, FPS)
    assert best(curve).kept_iou > 0.99 and 0.2 < best(curve).threshold < 1.8
    assert all(a.keep_ratio <= b.keep_ratio for a, b in pairwise(curve))
    threshold = calibrated(curve, 0.4)
    assert (
        abs(np.mean([keep_mask(s, replace(PLAIN, threshold=threshold), FPS).mean() for s in scores]) - 0.4)
        < 0.02
    )


def test_calibration_weighs_what_tells_and_keeps_as_much_as_the_pairs():
    rng = np.random.default_rng(0)
    kept = [np.arange(2000) % 500 < 150 for _ in range(4)]
    scores = [rng.standard_normal((2000, 2, len(TINY.scores))).astype(np.float32) for _ in kept]
    for score_TQN, kept_T in zip(scores, kept, strict=True):
        score_TQN[:, 1, 2] += np.where(kept_T, 0.0, 3.0)
    calibration, curve = calibrate(TINY, scores, kept, FPS)
    weight_QN = np.abs(calibration.weight_QN)
    assert weight_QN[1, 2] > 5 * np.delete(weight_QN.ravel(), weight_QN.argmax()).max()
    masks = [
        keep_mask(combined(s, calibration.weight_QN), KeepSettings(threshold=calibration.threshold), FPS)
        for s in scores
    ]
    assert abs(np.mean([mask.mean() for mask in masks]) - 0.3) < 0.03
    assert best(curve).kept_iou > 0.9
    on_kept = np.concatenate(
        [combined(s, calibration.weight_QN)[k] for s, k in zip(scores, kept, strict=True)]
    )
    assert abs(on_kept.std() - 1.0) < 1e-3


def test_no_anomaly_is_a_reason_to_keep():
    """A score that is lower where it was cut gets no weight, rather than a negative one."""
    rng = np.random.default_rng(0)
    kept = [np.arange(2000) % 500 < 150 for _ in range(2)]
    scores = [rng.standard_normal((2000, 2, len(TINY.scores))).astype(np.float32) for _ in kept]
    for score_TQN, kept_T in zip(scores, kept, strict=True):
        score_TQN[:, 1, 2] += np.where(kept_T, 0.0, 2.0)
        score_TQN[:, 0, 3] -= np.where(kept_T, 0.0, 2.0)
    weight_QN = calibrate(TINY, scores, kept, FPS)[0].weight_QN
    assert weight_QN.min() == weight_QN[0, 3] == 0.0 and weight_QN[1, 2] == weight_QN.max() > 0.5


def test_no_score_outweighs_all_others():
    score_TQN = np.array([1.0, 10.0, 400.0, -400.0], np.float32)[:, None, None]
    np.testing.assert_array_equal(combined(score_TQN, np.array([[0.5]])), [0.5, 5.0, 5.0, -5.0])


def test_the_bundled_scorer_keeps_nothing_for_its_anomalies():
    training = read_config(find_bundle("scorer"))["training"]
    weights = [value for name, value in training["scores"].items() if name.startswith("weight_")]
    assert len(weights) == 24 and min(weights) >= 0.0


def test_a_calibration_survives_as_figures():
    calibration = Calibration(np.arange(10, dtype=np.float32).reshape(2, 5), 0.7, 0.3)
    again = calibration_of(TINY, figures_of(TINY, calibration))
    assert again is not None and again.threshold == 0.7 and again.keep_ratio == 0.3
    np.testing.assert_array_equal(again.weight_QN, calibration.weight_QN)
    assert calibration_of(TINY, {"score": 1.0}) is None


def test_unknown_scores_are_refused():
    with pytest.raises(UsageError, match="discriminator"):
        weights_of(TINY, {"discriminator": 1.0})


@pytest.mark.parametrize(
    "change", [{"keep_ratio": 0.0}, {"keep_ratio": 1.1}, {"threshold": np.nan}, {"min_clip_s": -1.0}]
)
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(UsageError):
        replace(PLAIN, **change)


def test_ranks_give_the_area_and_the_precision_of_scikit_learn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(0)
    for levels in (3, 1000):
        score_N = rng.integers(levels, size=400).astype(float)
        positive_N = rng.random(400) < 0.2 + 0.5 * score_N / levels
        assert auroc(score_N, positive_N) == pytest.approx(roc_auc_score(positive_N, score_N), abs=1e-12)
        expected = average_precision_score(positive_N, score_N)
        assert average_precision(score_N, positive_N) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(auroc(score_N, positive_N & False)) and np.isnan(
        average_precision(score_N, positive_N & False)
    )


def test_scores_survive_their_file(tmp_path: Path):
    scores = Scores(np.arange(5, dtype=np.float32), "a" * 64, "scorer", "b" * 64)
    write_scores(scores, tmp_path / "s.npz")
    again = read_scores(tmp_path / "s.npz")
    np.testing.assert_array_equal(again.score_T, scores.score_T)
    assert again[1:] == scores[1:]


@pytest.mark.parametrize("content", [b"", b"no", b"PK\x03\x04junk"])
def test_files_without_scores_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match="holds no scores"):
        read_scores(tmp_path / "s.npz")
    with pytest.raises(NoInputError):
        read_scores(tmp_path / "none.npz")


SCORES = Scores(np.arange(5, dtype=np.float32), "a" * 64, "scorer", "b" * 64)


@pytest.mark.parametrize(
    "changes",
    [
        {"score_T": np.zeros(0, np.float32)},
        {"score_T": np.zeros((5, 1), np.float32)},
        {"score_T": np.array([0.0, np.nan], np.float32)},
        {"score_T": np.array([1e300])},
        {"score_T": np.array(["1", "2"])},
        {"score_T": np.array([1.0, None])},
        {"sha256": np.arange(2000)},
        {"model": np.array(["a", "b"])},
    ],
)
def test_scores_that_cannot_be_used_are_refused(tmp_path: Path, changes: dict):
    np.savez(tmp_path / "s.npz", **(SCORES._asdict() | changes))
    with pytest.raises(DataError, match=r"s\.npz: .*holds no scores.*editjax score") as caught:
        read_scores(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def test_one_array_is_no_scores(tmp_path: Path):
    with (tmp_path / "s.npz").open("wb") as file:
        np.save(file, SCORES.score_T)
    with pytest.raises(DataError, match=r"one array without a name.*holds no scores"):
        read_scores(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", mel=SCORES.score_T)
    with pytest.raises(DataError, match=r"holds no array score_T, but mel.*holds no scores"):
        read_scores(tmp_path / "s.npz")


def test_any_damage_to_scores_is_one_line(tmp_path: Path):
    write_scores(SCORES, tmp_path / "s.npz")
    whole, path = (tmp_path / "s.npz").read_bytes(), tmp_path / "broken.npz"
    encrypted = bytearray(whole)
    for entry in (b"PK\x03\x04", b"PK\x01\x02"):
        encrypted[encrypted.index(entry) + (6 if entry[2] == 3 else 8)] |= 1
    rng = np.random.default_rng(0)
    broken = [bytes(encrypted), *(whole[:length] for length in rng.integers(0, len(whole), 40))]
    for at in rng.integers(0, len(whole), 200):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        broken.append(bytes(changed))
    refused = []
    for blob in broken:
        path.write_bytes(blob)
        try:
            read_scores(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused.append(blob)
    assert bytes(encrypted) in refused and len(refused) > 100  # others changed what nothing depends on
