"""The scorers' networks: every bottleneck learns, keeps time, hears no padding; scores are of the whole."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scorer_cases import TINY, WEIGHTS, batch_of, params_of, recording

from editjax.mel import MelSettings
from editjax.models.anomaly import Segments, pooled, score_recordings
from editjax.models.autoencoder import RUNNING, Between, ScorerSettings, encode, of_scale
from editjax.models.layers import SHORT, TimeConv
from editjax.models.relations import CONTEXT_CHANNELS, EARLIER, LATER, heard
from editjax.optim import OptimSettings, decayed, make_optimizer
from editjax.scorer import Scorer
from editjax.scorer_loss import _contrast, drawn_segments, scorer_loss

KINDS = {
    "plain": TINY,
    "variational": replace(TINY, bottleneck="variational"),
    "codebook": replace(TINY, bottleneck="codebook"),
    "attention": replace(TINY, bottleneck="attention"),
    "everything": replace(TINY, dual=True, classifier=True, contrastive=8),
}
score = jax.jit(score_recordings, static_argnums=0)
loss = jax.jit(jax.value_and_grad(scorer_loss, has_aux=True), static_argnums=(2, 3))


def padded(mel_TF: np.ndarray, frames: int, fill: float = 0.0) -> np.ndarray:
    around = ((0, frames - len(mel_TF)), (0, 0))
    return np.pad(mel_TF, around, constant_values=fill)[None]


def a_batch(fill: float = 0.0, frames: int = 640):
    edits = [np.r_[300:450, 520:600], np.r_[100:160, 350:500]]
    return batch_of([recording(600, 0), recording(560, 1)], edits, frames, 400, fill)


def trained(settings: ScorerSettings, batch, steps: int = 60):
    """Parameters after some steps, and the loss of each."""
    params = params_of(settings)
    optimizer = make_optimizer(OptimSettings(learning_rate=3e-3, warmup_steps=2, steps=steps))
    moving = {name: part for name, part in params.items() if name != RUNNING}
    state, running, learn = optimizer.init(moving), params[RUNNING], jax.jit(optimizer.update)
    values = []
    for step in range(steps):
        (value, metrics), gradient = loss(
            {**moving, RUNNING: running}, batch, settings, WEIGHTS, jax.random.key(step)
        )
        running = metrics.pop(RUNNING)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient[RUNNING]))
        changes, state = learn({n: g for n, g in gradient.items() if n != RUNNING}, state, moving)
        moving = optax.apply_updates(moving, changes)
        values.append(float(value))
    return {**moving, RUNNING: running}, values


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(kind):
    _, values = trained(KINDS[kind], a_batch())
    assert np.mean(values[-10:]) < np.mean(values[:10]) - 0.1


@pytest.mark.slow
def test_edited_audio_scores_below_planted_noise():
    """In every score that is learned, at every scale, on another recording with another noise."""
    settings, edit_N = KINDS["everything"], np.r_[0:200, 400:600]
    learned_from = [noisy(seed, bursts=True) for seed in range(4)]
    params, _ = trained(settings, batch_of(learned_from, [edit_N] * 4, 640, 416))
    heard_1TF, n_frames = padded(noisy(9, bursts=False), 640), np.array([600], np.int32)
    score_TQN = np.asarray(score(settings, params, heard_1TF, n_frames))[0, :600]
    above_QN = score_TQN[220:380].mean(0) - score_TQN[edit_N].mean(0)
    learned_N = np.array([name != "relative" for name in settings.scores])
    assert (above_QN[:, learned_N] > 0.2).all()


def noisy(seed: int, bursts: bool) -> np.ndarray:
    """A steady chord, and in its middle noise whose level changes, (600, 32)."""
    rng = np.random.default_rng(seed)
    chord_F = 0.3 + 0.4 * np.exp(-0.5 * ((np.arange(32) - 16) / 6) ** 2)
    mel_TF = chord_F[None] + 0.03 * rng.standard_normal((600, 32))
    level_N1 = 0.6 * (rng.random((25, 1)) < 0.5) if bursts else rng.uniform(0.0, 0.6, (25, 1))
    mel_TF[200:400] = (level_N1 + rng.uniform(0.0, 0.4, (25, 32))).repeat(8, axis=0)
    return mel_TF.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_heard(kind):
    settings = KINDS[kind]
    params = params_of(settings)
    for fill in (0.0, np.nan):
        (value, metrics), _ = loss(params, a_batch(fill), settings, WEIGHTS, jax.random.key(0))
        if not fill:
            clean = float(value), metrics
        np.testing.assert_allclose(float(value), clean[0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), metrics, clean[1])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_the_padding(kind):
    settings, mel_TF = KINDS[kind], recording(500)
    params = params_of(settings)
    short = score(settings, params, padded(mel_TF, 512), np.array([500], np.int32))[0, :500]
    long = score(settings, params, padded(mel_TF, 1024, np.nan), np.array([500], np.int32))[0, :500]
    assert short.shape == (500, 2, len(settings.scores))
    np.testing.assert_allclose(short, long, atol=2e-4)


def test_the_bottleneck_keeps_time():
    """A mean over the segment could not tell its order."""
    params, running = of_scale(params_of(TINY), 0)
    x_BSF = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 32)), jnp.float32)
    steps = jnp.array([16])
    forward, backward = (encode(TINY, params, running, x, steps).z_BMZ for x in (x_BSF, x_BSF[:, ::-1]))
    assert np.abs(np.asarray(forward - backward[:, ::-1])).max() > 0.01
    assert np.abs(np.asarray(forward.mean(1) - backward.mean(1))).max() > 0.001


def test_a_take_that_is_heard_again_is_told_by_its_context():
    mel_TF = recording(1600)
    _, context_BTC = jax.jit(heard, static_argnums=0)(TINY, mel_TF[None], np.array([1600], np.int32))
    context_TC = np.asarray(context_BTC[0])
    first, second = context_TC[100:700], context_TC[900:1500]
    assert first[:, LATER].mean() > second[:, LATER].mean() + 0.3
    assert second[:, EARLIER].mean() > first[:, EARLIER].mean() + 0.3
    relative = TINY.scores.index("relative")
    found = np.asarray(score(TINY, params_of(TINY), mel_TF[None], np.array([1600], np.int32)))[
        0, ..., relative
    ]
    assert found[100:700].mean() > found[900:1500].mean() + 0.3


def test_gain_changes_no_score():
    mel_TF, params = recording(500) * 0.5 + 0.2, params_of(TINY)
    n_frames = np.array([500], np.int32)
    quiet, loud = (score(TINY, params, padded(mel_TF + shift, 512), n_frames) for shift in (0.0, 0.1))
    np.testing.assert_allclose(quiet, loud, atol=2e-3)


@pytest.mark.parametrize("scale", [1, 4])
def test_segments_hold_nothing_but_edited_audio(scale):
    """Frames are numbered by their content; the drawn ones are consecutive in the edit."""
    pointers_N = np.r_[300:450, 520:600]
    x_BTF = jnp.arange(640, dtype=jnp.float32)[None, :, None] * jnp.ones((1, 1, 32))
    place = jnp.asarray(np.pad(pointers_N, (0, 70), constant_values=-1)[None])
    count = jnp.array([len(pointers_N)])
    drawn = drawn_segments(
        TINY, 512 // (scale * 16), x_BTF, x_BTF[..., :2], place, count, scale, jax.random.key(0)
    )
    assert drawn.x_BSF.shape == (512 // (scale * 16), 16, 32) and np.all(drawn.steps_B == 16)
    heard_S = np.asarray(drawn.x_BSF[..., 0])
    edited = pointers_N.astype(float)
    means = {round(float(edited[k : k + scale].mean()), 3) for k in range(len(edited) - scale + 1)}
    assert {round(float(v), 3) for v in heard_S.ravel()} <= means


def test_a_short_edit_gives_what_it_has():
    x_BTF = jnp.ones((1, 64, 32))
    place = jnp.asarray(np.pad(np.arange(10), (0, 54), constant_values=-1)[None])
    drawn = drawn_segments(TINY, 4, x_BTF, x_BTF, place, jnp.array([10]), 1, jax.random.key(0))
    assert np.all(drawn.steps_B == 10)
    assert not np.asarray(drawn.x_BSF[:, 10:]).any()


def test_unaligned_frames_end_a_segment():
    x_BTF = jnp.ones((1, 64, 32))
    pointers_N = np.r_[np.arange(8), [-3], np.arange(20, 27)]
    place = jnp.asarray(np.pad(pointers_N, (0, 48), constant_values=-1)[None])
    drawn = drawn_segments(TINY, 1, x_BTF, x_BTF, place, jnp.array([16]), 1, jax.random.key(0))
    assert np.all(drawn.steps_B == 8)


def test_pooling_is_the_mean_of_what_there_is():
    x_BTF = jnp.arange(7, dtype=jnp.float32)[None, :, None]
    found = pooled(x_BTF, x_BTF, jnp.array([6]), 4, 4)
    assert found.x_BSF.shape == (1, 4, 1) and int(found.steps_B[0]) == 2
    np.testing.assert_allclose(found.x_BSF[0, :, 0], [1.5, 4.5, 0.0, 0.0])


def test_views_of_one_segment_attract_each_other(monkeypatch):
    """NT-Xent is lower where partners are views of one segment than where they are those of others."""
    settings = replace(TINY, contrastive=8)
    own, running = of_scale(params_of(settings), 0)
    x_BSF = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 16, 32)), jnp.float32)
    segments = Segments(x_BSF, jnp.zeros((8, 16, CONTEXT_CHANNELS)), jnp.full(8, 16))

    def nats(*rolls):
        shifts = iter(rolls)
        monkeypatch.setattr("editjax.scorer_loss.view", lambda x, *_: jnp.roll(x, next(shifts), axis=0))
        return float(_contrast(settings, WEIGHTS, own, running, segments, jax.random.key(0)))

    assert nats(0, 0) == pytest.approx(nats(3, 3), abs=1e-5)
    assert all(nats(0, 0) < nats(0, shift) - 1.0 for shift in range(1, 8))


def test_a_codebook_costs_no_nats():
    """A distance is none: only a divergence belongs into the evidence."""
    settings = KINDS["codebook"]
    params, running = of_scale(params_of(settings), 0)
    x_BSF = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 32)), jnp.float32)
    assert not encode(settings, params, running, x_BSF, jnp.array([16])).cost_BM.any()


@pytest.mark.parametrize("segment_steps", [4, 16, 20])
def test_attention_sees_of_a_recording_as_much_as_of_a_segment(segment_steps):
    settings = replace(KINDS["attention"], segment_steps=segment_steps)
    params, _ = of_scale(params_of(settings), 0)
    x_1MD = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 4)), jnp.float32)

    def middle(x_1MD):
        between = Between(settings).apply({"params": params["between"]}, x_1MD, jnp.array([40]))
        return (between[0, 20] * jnp.arange(1.0, 5.0)).sum()

    reached_M = np.flatnonzero(np.abs(jax.grad(middle)(x_1MD)[0]).max(-1))
    assert len(reached_M) == segment_steps // settings.reduction
    assert np.ptp(reached_M) == len(reached_M) - 1
    assert max(20 - reached_M[0], reached_M[-1] - 20) == settings.window.left


@pytest.mark.parametrize("settings", [KINDS["attention"], replace(TINY, scales=(1, 3))])
def test_chunks_of_any_size_give_the_scores_of_the_whole(settings, monkeypatch):
    scorer = Scorer(settings, params_of(settings), MelSettings(n_mels=32))
    mel_TF = recording(3000)
    whole_TQN = scorer.scores(mel_TF)
    monkeypatch.setattr("editjax.scorer.CHUNK_FRAMES", 500)
    np.testing.assert_allclose(scorer.scores(mel_TF), whole_TQN, atol=2e-4)


def test_nothing_that_runs_decays():
    mask = decayed(params_of(KINDS["codebook"]))
    assert not any(jax.tree.leaves(mask[RUNNING])) and mask["scales"]["encoder"]["enter"]["kernel"]


@pytest.mark.parametrize(
    "change",
    [
        {"scales": ()},
        {"scales": (4, 1)},
        {"scales": (2, 3)},
        {"scales": (1, 4, 6)},
        {"segment_steps": 10},
        {"hidden": ()},
    ],
)
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=r"scales|segment_steps"):
        replace(ScorerSettings(), **change)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 1), (5, 1)])
@pytest.mark.parametrize("steps", [SHORT, SHORT + 2])
def test_both_ways_to_convolve_are_flax_s(kernel, stride, steps):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, steps, 6)), jnp.float32)
    ours = TimeConv(7, kernel, stride)
    params = ours.init(jax.random.key(0), x)
    before = (kernel - stride) // 2
    theirs = nn.Conv(7, (kernel,), strides=stride, padding=((before, kernel - stride - before),))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-5)
