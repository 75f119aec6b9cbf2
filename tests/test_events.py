"""What the frames of a recording are: from edit lists to frames, to batches, to what the model learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_style import ROWS, SMALL, batch_of

from editjax.data import DataSettings, batches
from editjax.events import FAULT, KINDS, UNKNOWN, events_of, in_frames, kinds_of, named_after
from editjax.losses import LossSettings, kind_loss, pointer_loss
from editjax.mel import MelSettings
from editjax.models.pointer import init
from editjax.network import PointerNetwork
from editjax.prepare import prepare
from editjax.simulate import SimulateSettings, simulate_folder

HEARING = replace(SMALL, kinds=True)
GRID = MelSettings().grid(22_050)


def test_events_become_frames_and_faults_events_of_their_own() -> None:
    take = {"start": 512 * 10, "stop": 512 * 100, "kind": "spoiled", "faults": [[512 * 99, "dropout"]]}
    assert in_frames([take], GRID, 512 * 200) == [[10, 100, "spoiled"], [94, 100, FAULT]]


def test_events_beyond_the_recording_are_left_out() -> None:
    spans = [(-512, 512), (512 * 9, 10**9), (10**9, 10**9 + 512), (1024, 512)]
    events = [{"start": start, "stop": stop, "kind": "talk"} for start, stop in spans]
    assert in_frames(events, GRID, 512 * 20) == [[0, 1, "talk"], [9, 20, "talk"]]


def test_the_later_kind_counts_where_two_share_a_frame() -> None:
    kind_T = kinds_of([[0, 3, "spoiled"], [2, 5, "silence"], [3, 4, "whistle"], [1, 2, FAULT]], 7)
    assert [KINDS[k] if k != UNKNOWN else "" for k in kind_T] == [
        "spoiled", FAULT, "spoiled", "silence", "silence", "", "",
    ]  # fmt: skip


def test_the_loss_counts_known_landmarks_alone() -> None:
    kind_BT = jnp.array([[3, 3, 5, 3, UNKNOWN, UNKNOWN, 2]])
    logits_BLK = 20.0 * jax.nn.one_hot(jnp.array([[3, 5, 0, 1]]), len(KINDS))
    nll, right = kind_loss(logits_BLK, kind_BT, 2)
    assert right == pytest.approx(2 / 3) and nll == pytest.approx(20 / 3, rel=1e-3)
    nll, right = kind_loss(logits_BLK, jnp.full_like(kind_BT, UNKNOWN), 2)
    assert nll == 0 and right == 0


def test_a_landmark_keeps_its_length_however_the_recording_ends() -> None:
    """41 frames in landmarks of 8: not six of seven."""
    kind_BT = jnp.arange(41)[None] // 8 % 2
    logits_BLK = 20.0 * jax.nn.one_hot(jnp.arange(6)[None] % 2, len(KINDS))
    assert kind_loss(logits_BLK, kind_BT, 8)[1] == 1.0


def test_simulated_sessions_say_what_their_frames_are(tmp_path) -> None:
    settings = SimulateSettings(min_length_s=40.0, max_length_s=50.0)
    simulate_folder(tmp_path / "pairs", 2, 3, settings)
    prepare(tmp_path / "pairs", tmp_path / "shards", workers=1)
    reading = DataSettings(batch_frames=8192, buckets=((8192, 4096),), augment=None, threads=1)
    batch = next(batches(tmp_path / "shards", reading))
    inside_T = batch.kind_BT[0, : batch.frames_B[0]]
    assert (inside_T != UNKNOWN).mean() > 0.99 and (batch.kind_BT[0, batch.frames_B[0] :] == UNKNOWN).all()
    kept = KINDS.index("take") == inside_T
    assert (kept == (batch.structure_BT[0, : batch.frames_B[0]] > 0)).mean() > 0.97
    assert KINDS.index(FAULT) in inside_T


def fresh(settings):
    return jax.jit(init, static_argnums=0)(settings, jax.random.key(0))


@pytest.mark.slow
def test_a_model_learns_what_it_hears() -> None:
    params = fresh(HEARING)
    batch = batch_of(ROWS)
    batch = batch._replace(kind_BT=np.where(batch.structure_BT > 0, KINDS.index("take"), KINDS.index("talk")))

    def loss(p):
        return pointer_loss(p, batch, HEARING, LossSettings(), jax.random.key(1))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, before), gradient = step(params)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["encoder"]["kinds"]))
    for _ in range(8):
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient)
        (_, after), gradient = step(params)
    assert after["kind"] < 0.5 * before["kind"]


def test_what_was_heard_is_said_in_samples_and_back() -> None:
    kind_T = np.array([7, 7, UNKNOWN, 4, 4, 4, 7, 0], np.int8)
    events = events_of(kind_T, GRID, 512 * 7 + 100)
    assert [event["kind"] for event in events] == ["take", "talk", "take", "silence"]
    assert events[0]["start"] == 0 and events[-1]["stop"] == 512 * 7 + 100
    np.testing.assert_array_equal(kinds_of(in_frames(events, GRID, 512 * 7 + 100), 8), kind_T)
    assert events_of(np.full(4, UNKNOWN, np.int8), GRID, 2048) == []


def test_a_cut_is_named_after_what_fills_it() -> None:
    events = [
        {"start": 0, "stop": 100, "kind": "talk"},
        {"start": 100, "stop": 130, "kind": "silence"},
        {"start": 130, "stop": 300, "kind": "false_start"},
    ]
    assert named_after(events, 0, 300) == "false start, talk"
    assert named_after(events, 100, 130) == "silence"
    foreign = [*events, 3, {"start": "0", "stop": 300, "kind": "noise"}, {"kind": "noise"}]
    assert named_after(foreign, 0, 300) == "false start, talk"
    for nothing in (None, 3, {}, "talk", []):
        assert named_after(nothing, 0, 300) == ""


def test_a_model_that_hears_kinds_says_so_for_every_frame() -> None:
    """Its own landmarks decide, smoothed; one that does not says nothing."""
    params = fresh(HEARING)
    params["encoder"]["kinds"]["kind"]["bias"] = 9.0 * jax.nn.one_hot(KINDS.index("talk"), len(KINDS))
    mel_TF = np.random.default_rng(0).uniform(0.3, 0.7, (203, HEARING.n_mels)).astype(np.float32)
    edited = PointerNetwork(HEARING, params).edit_pointers(mel_TF)
    np.testing.assert_array_equal(edited.kind_T, np.full(203, KINDS.index("talk")))
    deaf = PointerNetwork(SMALL, fresh(SMALL)).edit_pointers(mel_TF)
    np.testing.assert_array_equal(deaf.kind_T, np.full(203, UNKNOWN))
