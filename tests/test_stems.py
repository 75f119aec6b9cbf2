"""Stems beside the mix: any number in any order, none as before, and they can be learned from."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from pointer_cases import TINY, batch_of, padded, recording

from editjax import shards
from editjax.chunks import encode_in_chunks
from editjax.cli import main
from editjax.export import load_bundle
from editjax.losses import LossSettings, pointer_loss
from editjax.mel import STEM_FRAMES, pooled
from editjax.models import pointer
from editjax.models.encoder import ALIGN_FRAMES, encode
from editjax.models.stems import Stems, told_by_stems
from editjax.models.style import Asked
from editjax.network import PointerNetwork
from editjax.optim import OptimSettings, make_optimizer

HEARS = replace(TINY, stem_width=8)
ROWS = 5
FRAMES, LENGTH = 101, 128
ASKED = Asked(np.zeros(1, np.float32), np.zeros((1, TINY.style_width), np.float32))
ENCODE = jax.jit(encode, static_argnums=0)


@functools.cache
def fresh(settings):
    return jax.jit(lambda: pointer.init(settings, jax.random.key(0)))()


@pytest.fixture(scope="module")
def params():
    """Parameters of which none is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32), fresh(HEARS))


def stems_of(count, length=LENGTH, seed=3):
    """Tracks in steps, the padding of the last frames filled with NaN."""
    rng = np.random.default_rng(seed)
    mel_IMF = rng.uniform(0.2, 0.8, (count, length // STEM_FRAMES, TINY.n_mels)).astype(np.float32)
    mel_IMF[:, -(-FRAMES // STEM_FRAMES) :] = np.nan
    return mel_IMF


def rows_of(mel_IMF, rows=ROWS, fill=np.nan):
    """One recording with these stems, in so many rows."""
    missing = ((0, rows - len(mel_IMF)), (0, 0), (0, 0))
    return Stems(np.pad(mel_IMF, missing, constant_values=fill)[None], np.arange(rows)[None] < len(mel_IMF))


def heard(settings, params, stems=None):
    """The structure logits of one recording with these stems."""
    mel, phase = recording(FRAMES)
    inputs = padded([mel], LENGTH), np.array([FRAMES]), padded([phase], LENGTH), ASKED, stems
    return np.asarray(ENCODE(settings, params["encoder"], *inputs).structure_BTS)


@pytest.mark.slow
def test_without_stems_or_freshly_made_the_model_is_the_one_without_the_part():
    plain, with_part = fresh(TINY), fresh(HEARS)
    before = heard(TINY, plain)
    shared = {name: part for name, part in with_part["encoder"].items() if name != "stems"}
    jax.tree.map(np.testing.assert_array_equal, plain["encoder"], shared)
    for stems in (None, rows_of(stems_of(0), 0), rows_of(stems_of(3))):
        np.testing.assert_array_equal(heard(HEARS, with_part, stems), before)
    np.testing.assert_array_equal(heard(TINY, plain, rows_of(stems_of(3))), before)


def test_stems_are_heard_whatever_their_order(params):
    stems = stems_of(5)
    one = heard(HEARS, params, rows_of(stems))
    assert np.abs(one - heard(HEARS, params)).max() > 0.01
    assert np.abs(one - heard(HEARS, params, rows_of(stems[:4]))).max() > 1e-4
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        np.testing.assert_allclose(heard(HEARS, params, rows_of(stems[order])), one, atol=1e-5)


def test_a_stem_s_gain_changes_nothing(params):
    stems = 0.4 + 0.1 * stems_of(2)
    louder = stems + np.array([0.1, -0.1], np.float32)[:, None, None]
    np.testing.assert_allclose(
        heard(HEARS, params, rows_of(louder)), heard(HEARS, params, rows_of(stems)), atol=1e-4
    )


@pytest.mark.slow
def test_what_is_not_there_says_nothing_and_gets_no_gradient(params):
    """Rows that are not there hold NaN or numbers, and with none there are, it is as without stems."""
    stems, nothing = stems_of(ROWS), np.zeros(ROWS, bool)
    some = np.array([True, False, True, False, True])
    poisoned = np.where(some[:, None, None], stems, np.nan)
    alone, without = heard(HEARS, params, rows_of(stems[some])), heard(HEARS, params)
    np.testing.assert_array_equal(heard(HEARS, params, rows_of(stems[some], fill=0.5)), alone)
    np.testing.assert_allclose(heard(HEARS, params, Stems(poisoned[None], some[None])), alone, atol=1e-6)
    np.testing.assert_array_equal(heard(HEARS, params, Stems(poisoned[None], nothing[None])), without)
    batch = batch_of([3, 4, 5, 9, 10, -2], FRAMES, LENGTH)
    value = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1)), static_argnums=3)
    for present in (some, nothing):
        _, (by_params, by_mel) = value(params, poisoned[None], present[None], HEARS, batch)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(by_params))
        assert np.abs(by_mel[0][present, : FRAMES // STEM_FRAMES]).sum() > 0 or not present.any()
        assert not by_mel[0][~present].any() and not by_mel[0][:, -(-FRAMES // STEM_FRAMES) :].any()
        assert by_params["encoder"]["stems"]["out"]["kernel"].any() == present.any()


def loss_of(params, mel_BIMF, present_BI, settings, batch):
    batch = batch._replace(stems_BIMF=mel_BIMF, present_BI=present_BI)
    return pointer_loss(params, batch, settings, LossSettings(), jax.random.key(0))[0]


def test_landmarks_finer_than_steps_are_told_of_the_step_they_lie_in(params):
    """Without layers above it, landmarks are what enters them."""
    settings = replace(HEARS, landmark_frames=4, landmark_layers=0)
    encoder = params["encoder"] | {
        "landmark_layers": jax.tree.map(lambda a: a[:0], params["encoder"]["landmark_layers"])
    }
    kernel = encoder["entry"]["frames"]["kernel"]  # of the eight frames of a landmark
    frames = encoder["entry"]["frames"] | {"kernel": kernel[: len(kernel) // 2]}
    encoder |= {"entry": encoder["entry"] | {"frames": frames}}
    (mel, phase), stems = recording(FRAMES), rows_of(stems_of(3))
    inputs = padded([mel], LENGTH), np.array([FRAMES]), padded([phase], LENGTH), ASKED
    told = jax.jit(told_by_stems, static_argnums=0)(settings, encoder["stems"], stems, np.array([FRAMES]))
    with_stems, without = (ENCODE(settings, encoder, *inputs, s).landmarks_BLD for s in (stems, None))
    added_LD, told_MD = np.asarray(with_stems - without)[0], np.asarray(told)[0]
    n_landmarks = -(-FRAMES // 4)
    assert told_MD.shape == (LENGTH // STEM_FRAMES, HEARS.width) and np.abs(told_MD).max() > 0.1
    np.testing.assert_allclose(added_LD[:n_landmarks], told_MD.repeat(2, axis=0)[:n_landmarks], atol=1e-5)
    assert not added_LD[n_landmarks:].any()


def test_chunks_hear_what_the_whole_hears():
    settings = replace(HEARS, frames_per_beat=43, frames_per_bar=172)
    rng, frames, total = np.random.default_rng(5), 5100, 16 * ALIGN_FRAMES
    encoder = fresh(HEARS)["encoder"]
    out = {"kernel": rng.standard_normal((16, 32)).astype(np.float32)}
    encoder = encoder | {"stems": encoder["stems"] | {"out": out}}
    mel = rng.uniform(0.3, 0.7, (frames, 32)).astype(np.float32)
    phase = rng.uniform(size=(frames, 3)).astype(np.float32)
    stems = Stems(
        rng.uniform(0.2, 0.8, (1, 2, total // STEM_FRAMES, 32)).astype(np.float32), np.ones((1, 2)) > 0
    )
    inputs = padded([mel], total), np.array([frames]), padded([phase], total)
    whole = ENCODE(settings, encoder, *inputs, ASKED, stems)
    deaf = ENCODE(settings, encoder, *inputs, ASKED, stems._replace(present_BI=np.zeros((1, 2), bool)))
    arguments = settings, encoder, mel, phase, ASKED, total, stems
    parts = encode_in_chunks(*arguments, chunk_frames=4 * ALIGN_FRAMES)
    for name, one, other in zip(whole._fields, whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=name)
    assert np.abs(parts.structure_BTS - deaf.structure_BTS).max() > 1e-3


def test_a_network_pads_stems_and_their_number_without_a_change(params):
    network, (mel, phase) = PointerNetwork(HEARS, params), recording(300)
    stems = np.stack([pooled(part, 300) for part in np.random.default_rng(2).uniform(size=(3, 310, 32))])
    assert stems.shape == (3, 38, 32)
    rows = network.stems(stems, 1024)
    assert rows.mel_BIMF.shape == (1, 4, 128, 32) and rows.present_BI.tolist() == [[True, True, True, False]]
    edited = [network.edit_pointers(mel, phase, stems_IMF=s).keep_T for s in (stems, stems[::-1], None)]
    np.testing.assert_allclose(edited[0], edited[1], atol=1e-5)
    assert np.abs(edited[0] - edited[2]).max() > 1e-3
    assert PointerNetwork(TINY, fresh(TINY)).stems(stems, 1024) is None


def test_steps_are_means_of_frames_and_silence_where_a_stem_has_ended():
    mel_TF = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.testing.assert_array_equal(pooled(mel_TF, 19)[:, 0], [7, 23, 34])
    np.testing.assert_array_equal(pooled(mel_TF[:10], 20)[:, 0], [7, (16 + 18) / 8, 0])
    assert pooled(mel_TF, 0).shape == (0, 2)


@pytest.mark.slow
def test_an_edit_that_only_the_stems_tell_is_learned_from_them():
    """Noise of which a stem says what to cut, new at every step: nothing can be learned by heart."""
    frames, size, n_steps = 128, 8, 128 // STEM_FRAMES
    weights = LossSettings(sequence=0.0, order=0.0, length=0.0, style=0.0, smoothness=0.0)
    optimizer = make_optimizer(OptimSettings(learning_rate=1e-2, warmup_steps=5, steps=80))
    empty = jax.tree.map(
        lambda a: jnp.repeat(jnp.asarray(a), size, axis=0), batch_of([3, 4, 5, -2], frames, frames)
    )

    def batch(key, hears):
        mel_key, stem_key, cut_key = jax.random.split(key, 3)
        cut_BM = jax.random.bernoulli(cut_key, 0.5, (size, n_steps // 2)).repeat(2, axis=1)
        stems_BIMF = 0.4 + 0.05 * jax.random.normal(stem_key, (size, 3, n_steps, 32))
        talk_BM1 = 0.3 * cut_BM[..., None].astype(jnp.float32)
        return empty._replace(
            mel_BTF=0.5 + 0.1 * jax.random.normal(mel_key, (size, frames, 32)),
            structure_BT=1 - cut_BM.repeat(STEM_FRAMES, axis=1).astype(jnp.int32),
            stems_BIMF=stems_BIMF.at[:, 1].add(talk_BM1),
            present_BI=jnp.full((size, 3), hears),
        )

    @jax.jit
    def learned(params, hears):
        def step(state, key):
            def loss(p):
                return pointer_loss(p, batch(key, hears), HEARS, weights, key)[1]["structure"]

            value, gradient = jax.value_and_grad(loss)(state[0])
            updates, moments = optimizer.update(gradient, state[1], state[0])
            return (optax.apply_updates(state[0], updates), moments), value

        keys = jax.random.split(jax.random.key(7), 80)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1][-8:].mean()

    told, deaf = (float(learned(fresh(HEARS), hears)) for hears in (True, False))
    assert deaf > 0.6 > 0.2 > told, (told, deaf)


CONFIG = """
from editjax.data import DataSettings
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig

def config():
    return TrainConfig(
        model=PointerSettings(
            width=16, heads=1, frame_width=8, landmark_layers=1, landmark_window=8, frame_window=8, matches=1,
            style_width=0, stem_width=8,
        ),
        data=DataSettings(batch_frames=8192, batch_multiple=4, buckets=((2048, 2048),), threads=1),
        optim=OptimSettings(learning_rate=1e-2, warmup_steps=1, steps=4),
        validate_every=0,
        checkpoint_every=4,
    )
"""


@pytest.mark.slow
def test_from_simulated_stems_to_edited_tracks(tmp_path, monkeypatch):
    """What the network hears of the tracks is what it learned from."""
    sessions, tracks = tmp_path / "sessions", tmp_path / "sessions" / "s4_00001_stems"
    shards_dir, config, heard = tmp_path / "shards", tmp_path / "tiny.py", []
    config.write_text(CONFIG)
    lengths = "--min-length-s", "30", "--max-length-s", "35"
    commands = (
        ("simulate", sessions, "--count", "2", "--seed", "4", "--stems", *lengths),
        ("prepare", sessions, shards_dir, "--workers", "1"),
        ("train", config, "--data", shards_dir, "--out", tmp_path / "run", "--hang-after", "0"),
        ("export", tmp_path / "run", "-o", tmp_path / "model", "--which", "last"),
        (
            "edit",
            tracks,
            "--multitrack",
            "--model",
            tmp_path / "model",
            "-o",
            tmp_path / "out",
            "--keep",
            "2,9",
        ),
    )
    edit_pointers = PointerNetwork.edit_pointers

    def watched(network, *inputs, **named):
        heard.append((inputs[0], named["stems_IMF"]))
        return edit_pointers(network, *inputs, **named)

    monkeypatch.setattr(PointerNetwork, "edit_pointers", watched)
    for command in commands:
        assert main([str(word) for word in command]) == 0, command
    bundle = load_bundle(tmp_path / "model")
    assert np.abs(bundle.params["encoder"]["stems"]["out"]["kernel"]).max() > 1e-3
    ((mel_TF, stems_IMF),) = heard
    with shards.read(shards_dir) as source:
        example = source[1]
    assert len(stems_IMF) == len(list(tracks.iterdir())) == len(example.stems_IMF) > 2
    np.testing.assert_allclose(stems_IMF, example.stems_IMF, atol=1e-3)
    np.testing.assert_allclose(mel_TF, example.mel_TF, atol=1e-3)
    lengths = {path.stem: soundfile.info(path).frames for path in (tmp_path / "out").glob("*.flac")}
    assert {name.removesuffix("_edited") for name in lengths} == {path.stem for path in tracks.iterdir()}
    assert len(set(lengths.values())) == 1 and min(lengths.values()) >= 7 * 22050
