"""The PyTorch peer of the benchmarks is our model: the same loss, gradients and edits from our parameters."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
import pytest

from editjax.data import IGNORE, Batch
from editjax.decode import decode, encode, read_keys
from editjax.edits import PAD, STOP, UNALIGNED
from editjax.events import KINDS, UNKNOWN
from editjax.losses import LossSettings, pointer_loss
from editjax.models import pointer
from editjax.models.pointer import PointerSettings
from editjax.models.style import Asked, prior

torch = pytest.importorskip("torch", reason="PyTorch is an optional peer of the benchmarks")

SETTINGS = PointerSettings(
    landmark_layers=2, frame_layers=2, decoder_layers=2, width=64, look_back=2, kinds=True
)
# Fewer jumps than there are; a style is free in some of its dimensions.
WEIGHTS = LossSettings(structure=2.0, smoothness=0.5, max_jumps=8, free_nats=0.2)
KEY = jax.random.key(1)
TOLERANCE = 1e-4
FRAMES_B = np.array([700, 520], np.int32)


@pytest.fixture(scope="module")
def twin() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        return importlib.import_module("torch_twin")


@pytest.fixture(scope="module")
def params() -> dict:
    fresh = jax.device_get(jax.jit(pointer.init, static_argnums=0)(SETTINGS, jax.random.key(0)))
    noise = np.random.default_rng(1)  # zeros would hide what reads the wrong place
    noisy = jax.tree.map(lambda a: (a + 0.05 * noise.standard_normal(a.shape)).astype(np.float32), fresh)
    noisy["style"]["posterior"]["style"]["kernel"] *= 0.1  # or the style would cost more than all else
    return noisy


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two examples with padding, frames that are not aligned, loops, and one with a wanted length."""
    rng = np.random.default_rng(0)
    pointers_BN = np.full((2, 400), PAD, np.int32)
    structure_BT = np.full((2, 700), IGNORE, np.int32)
    for row, frames in enumerate(FRAMES_B):
        runs = [np.arange(start, start + 30) for start in rng.integers(0, frames - 40, 10 + row)]
        played = np.concatenate(runs)
        played[20:24] = UNALIGNED
        pointers_BN[row, : len(played)], pointers_BN[row, len(played)] = played, STOP
        structure_BT[row, :frames] = rng.integers(0, 3, frames)
    return Batch(
        mel_BTF=rng.random((2, 700, 128), np.float32),
        frames_B=FRAMES_B,
        phase_BT3=rng.random((2, 700, 3), np.float32),
        pointers_BN=pointers_BN,
        steps_B=(pointers_BN != PAD).sum(1).astype(np.int32),
        structure_BT=structure_BT,
        kind_BT=np.where(
            structure_BT == IGNORE, UNKNOWN, rng.integers(UNKNOWN, len(KINDS), structure_BT.shape)
        ),
        target_B=np.array([0, 200], np.float32),
        style_B=np.array([1, 4], np.int32),
        ids_B=np.arange(2, dtype=np.int32),
        stems_BIMF=np.zeros((2, 0, 88, 128), np.float32),
        present_BI=np.zeros((2, 0), bool),
        edited_BTF=np.zeros((2, 0, 128), np.float32),
        label_BT=np.zeros((2, 0), np.int32),
        beat_BT=np.zeros((2, 0), np.int32),
    )


@pytest.fixture(scope="module")
def chance(twin: ModuleType) -> NamedTuple:
    """One style is drawn for its name, the other for its edit, one of these heard without its recording."""
    drawn = importlib.import_module("torch_style").chance_of(KEY, 2, SETTINGS, WEIGHTS)
    assert {*drawn.named_B.tolist()} == {*drawn.alone_B.tolist()} == {True, False}
    return drawn


def test_loss_and_gradients_are_ours(
    twin: ModuleType, params: dict, batch: Batch, chance: NamedTuple
) -> None:
    ours = jax.jit(jax.value_and_grad(pointer_loss, has_aux=True), static_argnums=(2, 3))
    (loss, metrics), gradient = jax.device_get(ours(params, batch, SETTINGS, WEIGHTS, KEY))
    wanted = twin.converted(gradient)
    largest = max(float(g.abs().max()) for g in wanted.values())
    for kind in ("dense", "block"):
        theirs = twin.twin_of(SETTINGS, params, kind)
        their_loss, parts = theirs(twin.tensors(batch), WEIGHTS, chance)
        their_loss.backward()
        assert float(their_loss.detach()) == pytest.approx(float(loss), abs=TOLERANCE)
        for name, part in parts.items():
            assert float(part.detach()) == pytest.approx(float(metrics[name]), abs=TOLERANCE), name
        for name, parameter in theirs.named_parameters():
            assert parameter.grad is not None, name
            scale = max(float(wanted[name].abs().max()), 1e-3 * largest)  # that of a bias of keys is zero
            assert float((parameter.grad - wanted[name]).abs().max()) <= TOLERANCE * scale, name


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_sees_what_dense_sees(
    twin: ModuleType, params: dict, batch: Batch, chance: NamedTuple
) -> None:
    tensors = twin.tensors(batch)
    with torch.no_grad():
        dense, flex = (
            twin.twin_of(SETTINGS, params, kind)(tensors, WEIGHTS, chance)[0] for kind in ("dense", "flex")
        )
    assert float(flex) == pytest.approx(float(dense), abs=TOLERANCE)


def test_every_parameter_has_its_place(twin: ModuleType, params: dict) -> None:
    without = {**params, "decoder": {k: v for k, v in params["decoder"].items() if k != "trust"}}
    for wrong in (without, {**params, "tempo": np.zeros(3, np.float32)}):
        with pytest.raises(RuntimeError, match=r"trust|tempo"):
            twin.twin_of(SETTINGS, wrong, "block")


def test_greedy_steps_are_those_of_our_decoder(twin: ModuleType, params: dict, batch: Batch) -> None:
    jumpy = {**params["decoder"]["mode"], "bias": np.array([-2.0, 0.0, -9.0], np.float32)}
    params = {**params, "decoder": {**params["decoder"], "mode": jumpy}}
    mel, phase = batch.mel_BTF[:1], batch.phase_BT3[:1]
    final_BZ = np.array(prior(SETTINGS, np.zeros(1, np.int32)).mean_BZ)
    asked = Asked(np.zeros(1, np.float32), final_BZ)
    _, keys = encode(SETTINGS, params, mel, FRAMES_B[:1], phase, asked)
    out = decode(SETTINGS, params, keys, asked.target_B, 1000, np.float32(0), KEY)
    wanted_N = np.asarray(out.pointers_BN[0, : int(out.steps_B[0])])
    theirs = twin.twin_of(SETTINGS, params, "block")
    with torch.inference_mode():
        frames_B, asked = torch.from_numpy(FRAMES_B[:1]).long(), Asked(*map(torch.from_numpy, asked))
        encoded = theirs.encoder(torch.from_numpy(mel), frames_B, torch.from_numpy(phase), asked)
    np.testing.assert_array_equal(twin.greedy(theirs, encoded, 1000), wanted_N)
    assert (np.diff(wanted_N) != 1).any(), "an edit without a jump shows little"
    margins, elsewhere = [], wanted_N.copy()
    np.testing.assert_array_equal(twin.choices(theirs, encoded, len(wanted_N), wanted_N, margins), wanted_N)
    assert len(margins) == len(wanted_N) and min(margins) > 0
    elsewhere[8:] = np.arange(300, 292 + len(wanted_N)) % FRAMES_B[0]
    chosen_N = twin.choices(theirs, encoded, len(elsewhere), elsewhere)
    np.testing.assert_array_equal(chosen_N[:9], wanted_N[:9], "what is told is not what is chosen")
    assert (chosen_N[9:] != wanted_N[9:]).any(), "but it goes on from there"


def test_nor_do_they_leave_out_what_is_surely_kept(twin: ModuleType, params: dict, batch: Batch) -> None:
    """Two stretches are surely kept, and the decoder advances where something is kept, else it stops."""
    kept_T = np.isin(np.arange(700) // 10, [*range(20, 36), *range(48, 63)])
    odds_T = np.where(kept_T, 9.0, -9.0)
    structure_BTS = np.stack([-odds_T, odds_T, np.full(700, -30.0)], -1)[None].astype(np.float32)
    mode = {"kernel": np.zeros((SETTINGS.width, 3), np.float32), "bias": np.array([0, -9, 0], np.float32)}
    stopping = {"mode": mode, "trust": np.array([5, 1, 3, 9], np.float32)}
    params = {**params, "decoder": {**params["decoder"], **stopping}}
    mel, phase, frames_B = batch.mel_BTF[:1], batch.phase_BT3[:1], FRAMES_B[:1]
    asked = Asked(np.zeros(1, np.float32), np.array(prior(SETTINGS, np.zeros(1, np.int32)).mean_BZ))
    encoded, _ = encode(SETTINGS, params, mel, frames_B, phase, asked)
    keys = read_keys(SETTINGS, params, encoded._replace(structure_BTS=structure_BTS))
    out = decode(SETTINGS, params, keys, asked.target_B, 1000, np.float32(0), KEY)
    wanted_N = np.asarray(out.pointers_BN[0, : int(out.steps_B[0])])
    assert np.mean(np.isin(np.flatnonzero(kept_T), wanted_N)) > 0.9
    theirs = twin.twin_of(SETTINGS, params, "block")
    with torch.inference_mode():
        frames_B, asked = torch.from_numpy(frames_B).long(), Asked(*map(torch.from_numpy, asked))
        encoded = theirs.encoder(torch.from_numpy(mel), frames_B, torch.from_numpy(phase), asked)
    encoded = encoded._replace(structure_BTS=torch.from_numpy(structure_BTS))
    np.testing.assert_array_equal(twin.greedy(theirs, encoded, 1000), wanted_N)
