"""Metrics against planted answers, slow references and their stated conventions."""

import json
import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax import metrics
from editjax.edits import PAD, STOP, UNALIGNED, kept_mask_frames

T = 1000
TRUE_N = np.r_[100:300, 500:700, 600:700]  # two runs, the end of the second looped


def quadratic_lcs(left, right):
    rows = np.zeros((len(left) + 1, len(right) + 1), int)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            rows[i + 1, j + 1] = rows[i, j] + 1 if a == b else max(rows[i, j + 1], rows[i + 1, j])
    return rows[-1, -1]


def best_matching(left, right, tolerance):
    """Largest one-to-one matching by trying every subset of the shorter list, largest first."""
    if len(left) > len(right):
        left, right = right, left
    for size in range(len(left), 0, -1):
        for chosen in combinations(sorted(left), size):
            for partners in combinations(sorted(right), size):
                if all(abs(a - b) <= tolerance for a, b in zip(chosen, partners, strict=True)):
                    return size
    return 0


def test_every_playing_counts_in_the_played_iou():
    assert metrics.played_iou(TRUE_N, TRUE_N, T) == 1.0
    once = np.r_[100:300, 500:700]
    assert metrics.kept_iou(once, TRUE_N, T) == 1.0
    assert metrics.played_iou(once, TRUE_N, T) == pytest.approx(400 / 500)
    assert metrics.played_iou(np.r_[0:50], TRUE_N, T) == 0.0
    assert metrics.played_iou([STOP], [STOP, PAD], T) == 1.0


def test_joins_are_named_by_both_ends():
    assert metrics.joins_of(TRUE_N).tolist() == [[-1, 100], [299, 500], [699, 600]]
    assert metrics.joins_of(np.r_[0:5, UNALIGNED, 5:9, STOP, 3]).tolist() == []
    assert metrics.joins_of(np.array([STOP])).shape == (0, 2)


def test_joins_are_matched_in_order_and_by_both_ends():
    late = np.r_[103:300, 500:702, 594:700]
    found, error = metrics.join_scores(late, TRUE_N, 5)
    assert (found, error) == (2 / 3, 1.5)  # the last leads 6 frames off
    assert metrics.join_scores(late, TRUE_N, 6) == (1.0, 3.0)
    swapped = np.r_[500:700, 100:300]
    assert metrics.join_scores(swapped, np.r_[100:300, 500:700], 5).found == 0.0
    assert metrics.join_scores(np.r_[100:300, 500:520, 100:300], np.r_[100:300, 500:520], 5).found == 1.0
    found, error = metrics.join_scores(np.r_[0:9], np.r_[0:9], 5)
    assert math.isnan(found) and math.isnan(error)


def test_of_two_ways_to_match_a_join_the_nearer_counts():
    twice = np.array([10, 8, 11, 8])  # −1 → 10, 10 → 8, 8 → 11, 11 → 8
    assert metrics.join_scores(twice, np.array([10, 8]), 5) == (1.0, 0.0)


def test_the_true_edit_scores_full_marks():
    scores = metrics.edit_scores(TRUE_N, TRUE_N, T)
    assert scores.kept_iou == scores.order_agreement == scores.loop_recall == scores.pointer_accuracy == 1.0
    assert scores.boundary_3_frames == scores.boundary_half_second == (1.0, 1.0, 1.0)
    assert scores.length_error == scores.length_mae_frames == 0.0
    assert scores.keep_ratio == scores.true_keep_ratio == pytest.approx(0.4)


def test_every_score_is_a_plain_number_that_json_can_hold():
    json.dumps(metrics.edit_scores(np.arange(T), TRUE_N, T)._asdict())
    for scores in (metrics.edit_scores(TRUE_N[:50], TRUE_N, T), metrics.edit_scores(TRUE_N, TRUE_N[:50], T)):
        flat = [value for score in scores for value in (score if isinstance(score, tuple) else (score,))]
        assert {type(value) for value in flat} == {float}


def test_sentinels_change_no_metric():
    noisy_N = np.r_[PAD, TRUE_N, STOP, 7, 8, 9, PAD]
    assert metrics.edit_scores(noisy_N, TRUE_N, T) == metrics.edit_scores(TRUE_N, noisy_N, T)
    assert metrics.edit_scores(noisy_N, TRUE_N, T) == metrics.edit_scores(TRUE_N, TRUE_N, T)


def test_keep_everything_scores_what_it_keeps_rightly():
    everything_N = np.arange(T)
    scores = metrics.edit_scores(everything_N, TRUE_N, T)
    assert scores.kept_iou == pytest.approx(0.4)
    assert scores.boundary_half_second == (0.0, 0.0, 0.0)
    assert scores.order_agreement == pytest.approx(0.4)
    assert scores.loop_recall == 0.0
    assert scores.length_error == pytest.approx(0.5 / 0.5)
    assert scores.length_mae_frames == 500


def test_iou_counts_frames_once_however_often_they_play():
    assert metrics.kept_iou(np.r_[0:10, 0:10, 0:10], np.r_[5:15], T) == pytest.approx(5 / 15)


def test_conventions_for_empty_edits():
    none_N = np.zeros(0, int)
    assert metrics.kept_iou(none_N, none_N, T) == 1.0
    assert metrics.order_agreement(none_N, none_N) == 1.0
    assert np.isnan(metrics.order_in_common(none_N, none_N))
    assert metrics.boundary_scores(np.arange(T), np.arange(T), T, 3) == (1.0, 1.0, 1.0)
    assert metrics.boundary_scores(np.arange(T), TRUE_N, T, 3) == (0.0, 0.0, 0.0)
    assert metrics.boundary_scores(TRUE_N, np.arange(T), T, 3) == (0.0, 0.0, 0.0)
    assert metrics.length_error(none_N, none_N) == 0.0
    assert metrics.length_error(np.arange(3), none_N) == 1.0
    assert math.isnan(metrics.loop_recall(TRUE_N, np.arange(T), T))
    assert math.isnan(metrics.pointer_accuracy(TRUE_N, np.full(4, UNALIGNED)))
    assert math.isnan(metrics.stop_precision(np.zeros(3, bool), np.ones(3, bool)))
    assert math.isnan(metrics.cut_share(np.ones(T, bool), []))
    assert math.isnan(metrics.spans_found(np.ones(T, bool), []))


def test_boundaries_are_the_ends_of_runs_but_not_of_the_recording():
    starts, stops = metrics.boundaries(np.r_[0:300, 500:700, 600:T], T)
    assert starts.tolist() == [500, 600]
    assert stops.tolist() == [300, 700]


def test_an_unaligned_insert_is_a_boundary():
    starts, stops = metrics.boundaries(np.r_[100:200, UNALIGNED, UNALIGNED, 200:300], T)
    assert starts.tolist() == [100, 200]
    assert stops.tolist() == [200, 300]


@pytest.mark.parametrize(("shift", "hits"), [(3, 1.0), (4, 0.0)])
def test_tolerance_is_inclusive_and_strict_beyond(shift, hits):
    assert metrics.boundary_scores(TRUE_N + shift, TRUE_N, T, 3).f1 == hits


def test_starts_never_match_stops():
    swapped_N = np.r_[300:500, 700:800]  # starts where the true edit stops
    true_N = np.r_[100:300, 500:700]
    assert metrics.boundary_scores(swapped_N, true_N, T, 3).recall == 0.0


def test_one_boundary_matches_one_only():
    predicted_N = np.r_[99:299, 101:301]
    scores = metrics.boundary_scores(predicted_N, np.arange(100, 300), T, 3)
    assert scores == (0.5, 1.0, pytest.approx(2 / 3))


@given(st.lists(st.integers(0, 30), max_size=5), st.lists(st.integers(0, 30), max_size=5), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_matching_is_the_largest_one_to_one(left, right, tolerance):
    found = metrics._matches(np.sort(left), np.sort(right), tolerance)
    assert found == best_matching(left, right, tolerance)


@given(st.lists(st.integers(0, 12), max_size=40), st.lists(st.integers(0, 12), max_size=40))
@settings(max_examples=300, deadline=None)
def test_lcs_equals_the_quadratic_programme(left, right):
    assert metrics.longest_common_subsequence(np.array(left, int), np.array(right, int)) == quadratic_lcs(
        left, right
    )


def test_lcs_of_ten_thousand_pointers_takes_under_a_second():
    rng = np.random.default_rng(0)
    left = rng.permutation(10_000)
    right = np.concatenate([rng.permutation(5_000), np.arange(5_000)])
    started = time.process_time()
    metrics.longest_common_subsequence(left, right)
    assert time.process_time() - started < 1.0


def test_order_agreement_sees_swapped_halves_where_iou_does_not():
    swapped_N = np.r_[500:800, 100:300]
    ordered_N = np.r_[100:300, 500:800]
    assert metrics.kept_iou(swapped_N, ordered_N, T) == 1.0
    assert metrics.order_agreement(swapped_N, ordered_N) == pytest.approx(0.6)
    assert metrics.order_in_common(swapped_N, ordered_N) == pytest.approx(0.6)


def test_order_in_common_is_the_order_alone():
    assert metrics.order_in_common(np.arange(T), TRUE_N[:200]) == 1.0
    assert metrics.order_in_common(np.r_[10:20, 0:10, 0:10], np.r_[0:20, 0:10]) == pytest.approx(20 / 30)
    assert np.isnan(metrics.order_in_common(np.arange(5), np.arange(5, 9)))


def test_loop_recall_counts_repeats_frame_by_frame():
    true_N = np.r_[0:100, 50:100, 50:100]  # 100 repeated playings
    assert metrics.loop_recall(np.r_[0:100, 50:100], true_N, T) == pytest.approx(0.5)
    assert metrics.loop_recall(np.r_[0:100, 0:50], true_N, T) == 0.0


def test_pointer_accuracy_counts_missing_frames_as_wrong_and_skips_unaligned():
    true_N = np.array([10, 11, UNALIGNED, 20, 21])
    assert metrics.pointer_accuracy(np.array([10, 11, 12, 13]), true_N) == pytest.approx(2 / 4)
    assert metrics.pointer_accuracy(np.array([10, 13, 12, 15, 27]), true_N, within_frames=5) == pytest.approx(
        3 / 4
    )


def test_the_plus_one_baseline_is_nearly_right_and_never_edits():
    baseline_N = metrics.plus_one_baseline(TRUE_N)
    assert metrics.pointer_accuracy(baseline_N, TRUE_N) == pytest.approx(1 - 3 / TRUE_N.size)
    assert metrics.plus_one_baseline(np.array([5, UNALIGNED, UNALIGNED, 9])).tolist() == [0, 6, 7, 8]


def test_stop_precision_is_the_share_of_true_among_predicted():
    assert metrics.stop_precision(np.array([0, 1, 1, 0]), np.array([1, 1, 0, 0])) == 0.5


def test_cut_share_by_kind_says_how_much_of_each_was_cut():
    kept_T = kept_mask_frames(np.r_[0:50, 150:200], T)
    events = [("spoiled", 0, 100), ("talk", 100, 150), ("spoiled", 50, 150), ("take", 160, 170)]
    shares = metrics.cut_share_by_kind(kept_T, events)
    assert shares == pytest.approx({"spoiled": 100 / 150, "talk": 1.0, "take": 0.0})
    assert metrics.spans_found(kept_T, [(0, 100), (0, 90), (160, 170)]) == pytest.approx(1 / 3)
