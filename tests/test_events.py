"""What the frames of a recording are: from edit lists to frames, to batches, to what the model learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_style import ROWS, SMALL, batch_of

from editjax.data import DataSettings, batches
from editjax.events import FAULT, KINDS, UNKNOWN, in_frames, kinds_of
from editjax.losses import LossSettings, kind_loss, pointer_loss
from editjax.mel import MelSettings
from editjax.models.pointer import init
from editjax.prepare import prepare
from editjax.simulate import SimulateSettings, simulate_folder

HEARING = replace(SMALL, kinds=True)
GRID = MelSettings().grid(22_050)


def test_events_become_frames_and_faults_events_of_their_own() -> None:
    take = {"start": 512 * 10, "stop": 512 * 100, "kind": "spoiled", "faults": [[512 * 99, "dropout"]]}
    assert in_frames([take], GRID) == [[10, 100, "spoiled"], [94, 100, FAULT]]


def test_the_later_kind_counts_where_two_share_a_frame() -> None:
    kind_T = kinds_of([[0, 3, "spoiled"], [2, 5, "silence"], [3, 4, "whistle"], [1, 2, FAULT]], 7)
    assert [KINDS[k] if k != UNKNOWN else "" for k in kind_T] == [
        "spoiled", FAULT, "spoiled", "silence", "silence", "", "",
    ]  # fmt: skip


def test_the_loss_counts_known_landmarks_alone() -> None:
    kind_BT = jnp.array([[3, 3, 5, 3, UNKNOWN, UNKNOWN, 2]])
    logits_BLK = 20.0 * jax.nn.one_hot(jnp.array([[3, 5, 0, 1]]), len(KINDS))
    nll, right = kind_loss(logits_BLK, kind_BT)
    assert right == pytest.approx(2 / 3) and nll == pytest.approx(20 / 3, rel=1e-3)
    nll, right = kind_loss(logits_BLK, jnp.full_like(kind_BT, UNKNOWN))
    assert nll == 0 and right == 0


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


def test_a_model_learns_what_it_hears() -> None:
    params = init(HEARING, jax.random.key(0))
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
