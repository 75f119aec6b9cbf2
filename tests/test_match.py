"""Matching against a dense reference, on planted repeats, and through padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.mesh import MeshSettings, make_mesh
from editjax.models.match import (
    APART_STEPS,
    CELL_STEPS,
    DIAGONAL_STEPS,
    STEP_FRAMES,
    STRIDE,
    find_matches,
    fingerprints,
    shapes,
)
from editjax.models.scales import landmark_matches

COUNT = 3
find = jax.jit(find_matches, static_argnums=2)


def directions(steps: int, seed: int = 0) -> np.ndarray:
    """Unit vectors that change slowly, as fingerprints do: (M, 32)."""
    rng = np.random.default_rng(seed)
    u_MG = rng.standard_normal((steps, 32))
    u_MG[1:] += 0.7 * u_MG[:-1]
    return (u_MG / np.linalg.norm(u_MG, axis=1, keepdims=True)).astype(np.float32)


def reference(u_MG: np.ndarray, row: int, later: bool) -> list[tuple[int, float]]:
    """The best cells on one side of an even step, each with its best place: all pairs, in float64."""
    n_steps, half = len(u_MG), DIAGONAL_STEPS // 2
    padded = np.pad(u_MG.astype(np.float64), ((half, half), (0, 0)))
    similarity = padded @ padded.T
    steps = range(0, DIAGONAL_STEPS, STRIDE)
    score_M = [np.mean([similarity[row + k, column + k] for k in steps]) for column in range(n_steps)]
    cells = []
    for first in range(0, n_steps, CELL_STEPS):
        stop = min(first + CELL_STEPS, n_steps)
        inside = first >= row + APART_STEPS if later else first + CELL_STEPS - 1 <= row - APART_STEPS
        if inside:
            place = first + int(np.argmax(score_M[first:stop]))
            cells.append((place, score_M[place]))
    return sorted(cells, key=lambda cell: -cell[1])[:COUNT]


@pytest.mark.parametrize("settings", [MeshSettings(), MeshSettings(seq=4), MeshSettings(data=2, seq=2)])
@pytest.mark.parametrize("steps", [320, 301])
def test_devices_find_together_what_one_finds(settings, steps):
    u_BMG = np.stack([directions(steps, seed) for seed in range(4)])
    arguments = u_BMG, jnp.array([steps, 41, 200, 0]), COUNT
    alone = find(*arguments)
    with jax.set_mesh(make_mesh(settings)):
        jax.tree.map(np.testing.assert_array_equal, find(*arguments), alone)


def test_more_examples_are_no_larger_program():
    """Compiling takes as long for one as for a hundred."""
    found = [
        str(jax.make_jaxpr(find_matches, static_argnums=2)(np.zeros((n, 64, 32)), np.zeros(n, int), COUNT))
        for n in (2, 8)
    ]
    assert len(found[0].splitlines()) == len(found[1].splitlines())


@pytest.mark.parametrize("row", [0, 40, 100, 298])
def test_the_best_places_are_those_of_all_pairs(row):
    u_MG = directions(301)
    found = find(u_MG[None], jnp.array([301]), COUNT)
    for side, later in ((slice(0, COUNT), True), (slice(COUNT, 2 * COUNT), False)):
        expected = reference(u_MG, row, later)
        valid = np.asarray(found.valid_BMK[0, row, side])
        assert valid.sum() == len(expected)
        places = np.asarray(found.place_BMK[0, row, side])[valid]
        scores = np.asarray(found.score_BMK[0, row, side])[valid]
        np.testing.assert_array_equal(places, [place for place, _ in expected])
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-5)


def test_a_repeat_is_found_from_both_ends_at_every_step():
    once = directions(120)
    u_MG = np.concatenate([once, directions(50, 1), once])
    found = find(u_MG[None], jnp.array([len(u_MG)]), COUNT)
    inner = np.arange(10, 110)
    np.testing.assert_array_equal(found.place_BMK[0, inner, 0], inner + 170)
    np.testing.assert_array_equal(found.place_BMK[0, inner + 170, COUNT], inner)
    np.testing.assert_allclose(found.here_BMK[0, inner, 0], 1.0, atol=1e-5)


@pytest.mark.parametrize("steps", [17, 150, 299])
def test_padding_changes_nothing(steps):
    u_MG = directions(steps)
    alone = find(u_MG[None], jnp.array([steps]), COUNT)
    padded = np.zeros((2, 600, 32), np.float32)
    padded[1, :steps] = u_MG
    together = find(padded, jnp.array([600, steps]), COUNT)
    assert not np.asarray(together.valid_BMK[1, steps:]).any()
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], two[1, :steps], atol=1e-6)


@pytest.mark.parametrize("landmark_frames", [2, 4, 8])
def test_landmarks_read_the_same_places_whatever_the_padding(landmark_frames):
    steps = 60
    frames = steps * STEP_FRAMES - 5  # the last step ends beyond the recording
    landmarks = -(-frames // landmark_frames)
    u_MG = directions(steps)
    u_MG[-3:] = u_MG[7:10]
    shape_LG = directions(landmarks, 1)
    results = []
    for padded in (steps, 2 * steps):
        u_BMG = np.zeros((1, padded, 32), np.float32)
        u_BMG[0, :steps] = u_MG
        n_landmarks = (
            -(-frames // landmark_frames) if padded == steps else padded * STEP_FRAMES // landmark_frames
        )
        found = find(u_BMG, jnp.array([steps]), COUNT)
        shape_BLG = jnp.zeros((1, n_landmarks, 32)).at[:, :landmarks].set(shape_LG)
        matches = landmark_matches(found, shape_BLG, jnp.array([landmarks]), landmark_frames, 3)
        results.append([np.asarray(a)[:, :landmarks] for a in matches])
        places, _, valid = results[-1]
        assert places[valid].max() < landmarks
    for alone, together in zip(*results, strict=True):
        np.testing.assert_allclose(alone, together, atol=1e-6)


def test_fingerprints_do_not_hear_a_timbre_that_all_share():
    rng = np.random.default_rng(0)
    mel_BTF = rng.uniform(0.3, 0.7, (1, 50 * STEP_FRAMES, 64)).astype(np.float32)
    timbre_F = np.linspace(-0.3, 0.3, 64).astype(np.float32)
    frames_B = jnp.array([50 * STEP_FRAMES])
    one, other = (fingerprints(shapes(x, frames_B, STEP_FRAMES)) for x in (mel_BTF + timbre_F, mel_BTF))
    np.testing.assert_allclose(one, other, atol=1e-5)
