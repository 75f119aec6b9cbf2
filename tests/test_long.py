"""Long recordings: where a moment lies changes nothing, pooled bars and chunks give what the whole gives.

What a model hears depends on the recording around a moment, as it should; how it counts places does not.
Exactly, for `landmark_frames` that divide a bar: attention and decoder see differences of positions alone, so
that both commute with shifts by whole bars; layers at frame rate with shifts by two bars, `listen_halo` from
the edges; the search for matches, whose cells are eight steps, with shifts by sixteen bars. Training crops
start anywhere, so that every phase of these grids is learned.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pointer_cases import TINY, params, recording, with_loops
from test_match import directions

from editjax import decode as decoding
from editjax import losses, network
from editjax.attention import Window
from editjax.beam import beam_search
from editjax.edits import PAD, STOP
from editjax.models import decoder_attention, encoder, layers, match, pointer
from editjax.models.encoder import ALIGN_FRAMES, Encoded
from editjax.models.layers import WindowAttention, in_chunks, turned, turns
from editjax.models.pointer import PointerSettings, Step, decoder_call
from editjax.models.scales import TARGET_FEATURES, bar_globals
from editjax.models.style import Asked
from editjax.network import PointerNetwork

assert params  # the fixture
BAR, FAR = TINY.frames_per_bar, 300_000
SMALL = PointerSettings(
    n_mels=32, width=16, frame_width=8, landmark_layers=1, landmark_window=6, frame_window=5, matches=1
)


def keys_of(settings, params, frames, length=None, seed=0):
    mel, phase = (np.pad(a, [(0, (length or frames) - frames), (0, 0)]) for a in recording(frames, seed))
    asked = Asked(jnp.zeros(1), jnp.zeros((1, settings.style_width)))
    frames_B = jnp.array([frames])
    return with_loops(decoding.encode(settings, params, mel[None], frames_B, phase[None], asked)[1], True)


def decoded(settings, params, keys, draft):
    ready = settings, params, keys, jnp.zeros(1), 60, 0.0, jax.random.key(0)
    return decoding.decode(*ready, draft=draft)


def forced_log_p(settings, params, keys, pointers_BN):
    """Log-probability of sequences that end in STOP or are cut off, by teacher forcing."""
    steps_B = (pointers_BN != PAD).sum(1)
    t = losses.targets(pointers_BN, steps_B, jnp.zeros(1), keys.frames_BTD.shape[1])
    nll = losses.sequence_nll(settings, params, keys, t, steps_B, pointers_BN.shape[1])
    return -(nll.mode_B + nll.bar_B + nll.beat_B + nll.frame_B)


def test_a_token_of_one_bar_is_that_bar():
    bars_BVD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 4)), jnp.float32)
    count_B = jnp.array([9, 5])
    for limit in (9, 100):
        tokens, position, valid = bar_globals(bars_BVD, count_B, 1, limit)
        np.testing.assert_array_equal(tokens[0], bars_BVD[0])
        np.testing.assert_array_equal(tokens[1, :5], bars_BVD[1, :5])
        np.testing.assert_array_equal(position, np.tile(np.arange(9) + 0.5, (2, 1)))
        np.testing.assert_array_equal(valid.sum(1), count_B)


def test_beyond_the_limit_neighbouring_bars_share_a_token():
    bars_BVD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 4)), jnp.float32)
    tokens, position, valid = bar_globals(bars_BVD, jnp.array([9, 4]), 1, 4)
    np.testing.assert_allclose(tokens[0, :3], bars_BVD[0].reshape(3, 3, 4).mean(1), atol=1e-6)
    np.testing.assert_array_equal(position[0], [1.5, 4.5, 7.5, 10.5])
    np.testing.assert_array_equal(valid, [[True, True, True, False], [True] * 4])
    np.testing.assert_array_equal(tokens[1], bars_BVD[1, :4])  # four bars of its own, whatever the padding


def test_many_frames_in_bfloat16_are_counted_and_summed_in_full():
    ones_BLD = jnp.ones((1, 1200, 1), jnp.bfloat16)
    tokens, _, _ = bar_globals(ones_BLD, jnp.array([1200]), 43, 2)
    assert tokens.dtype == jnp.bfloat16
    np.testing.assert_array_equal(tokens, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("length", [75, 110])
def test_up_to_the_limit_pooling_changes_no_bit(params, length):
    """Five bars, with room for more tokens and for just as many, though the padding has seven bars."""
    outs = []
    for limit in (256, 5):
        settings = replace(TINY, max_globals=limit)
        keys = keys_of(settings, params, 75, length)
        out = decoded(settings, params, keys, draft=0)
        outs.append((out.pointers_BN, out.log_p_BN))
    np.testing.assert_array_equal(outs[0][0], outs[1][0])
    if length == 75:
        np.testing.assert_array_equal(outs[0][1], outs[1][1])
    else:  # seven tokens or five: other shapes, so another order of sums
        np.testing.assert_allclose(outs[0][1], outs[1][1], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_teacher_forcing_decoding_and_beam_agree_on_pooled_bars(params, seed):
    settings = replace(TINY, max_globals=3)
    keys = keys_of(settings, params, 150, seed=seed)
    assert keys.bars[0][0].shape[2] == 3 < keys.bar_keys_BVD.shape[1] == 10
    plain = decoded(settings, params, keys, draft=0)
    drafted = decoded(settings, params, keys, draft=12)
    beam = beam_search(settings, params, keys, jnp.zeros(1), 60, 1, draft=5)
    np.testing.assert_array_equal(drafted.pointers_BN, plain.pointers_BN)
    np.testing.assert_array_equal(beam.pointers_WN, plain.pointers_BN)
    assert len(set(np.asarray(plain.pointers_BN[0]) // BAR)) > 3, "hardly a bar was visited"
    forced = jax.jit(forced_log_p, static_argnums=0)(settings, params, keys, plain.pointers_BN)
    np.testing.assert_allclose(plain.log_p_BN.sum(1), forced, atol=2e-3)
    np.testing.assert_allclose(beam.log_p_W, forced, atol=2e-3)


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_chunks_change_neither_values_nor_gradients(size):
    x_BND, y_BN = jnp.arange(22.0).reshape(2, 11, 1), jnp.linspace(0.1, 1.0, 22).reshape(2, 11)

    def total(x_BND, w):
        return in_chunks(lambda x, y: jnp.sin(w * x) * y[..., None], size, x_BND, y_BN)

    def weighed(x_BND, w):
        return (total(x_BND, w) * jnp.cos(x_BND)).sum()

    def plain(x_BND, w):
        return (jnp.sin(w * x_BND) * y_BN[..., None] * jnp.cos(x_BND)).sum()

    np.testing.assert_allclose(total(x_BND, 0.3), jnp.sin(0.3 * x_BND) * y_BN[..., None], atol=1e-6)
    gradients = (jax.grad(f, (0, 1))(x_BND, 0.3) for f in (weighed, plain))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_loss_of_a_long_recording_is_computed_the_same(params, monkeypatch):
    """Steps and landmarks in chunks that divide neither, stages computed anew: values and gradients."""
    pointers = jnp.array([[*range(10, 40), *range(60, 90), *range(20, 30), STOP]])
    settings = replace(TINY, max_globals=4)
    mel, phase = (a[None] for a in recording(150))
    asked = Asked(jnp.zeros(1), jnp.zeros((1, settings.style_width)))

    def nll(params):
        frames_B = jnp.array([150])
        encoded = encoder.encode(settings, params["encoder"], mel, frames_B, phase, asked)
        keys = decoder_call(settings, params, "keys", encoded)
        return -forced_log_p(settings, params, keys, pointers).sum()

    whole = jax.jit(jax.value_and_grad(nll))(params)
    monkeypatch.setattr(decoder_attention, "STEP_CHUNK", 16)
    monkeypatch.setattr(match, "LANDMARK_CHUNK", 7)
    monkeypatch.setattr(layers, "LONG", 100)
    parts = jax.jit(jax.value_and_grad(lambda params: nll(params)))(params)
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-6)
    for one, other in zip(jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1.0, float(jnp.abs(other).max())))


def test_far_positions_turn_as_near_ones():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 40, 2, 64)), jnp.float32) for _ in range(2))
    products = []
    for first in (0, 26_000, FAR + 7):
        q_turned, k_turned = (turned(a, turns(first + jnp.arange(40)[None], 64)) for a in (q, k))
        products.append(jnp.einsum("bnhk,bshk->bhns", q_turned, k_turned) / 8.0)
    assert float(jnp.abs(products[0]).max()) > 2.0
    for far in products[1:]:
        np.testing.assert_allclose(far, products[0], atol=5e-4)


def test_attention_sees_differences_of_positions_alone():
    """A stretch of frames with its tokens, at the start and 100 bars of another recording later."""
    rng, shift = np.random.default_rng(1), 100 * 43
    attention = WindowAttention(32, 2, Window(6, 6))
    x, before, g = (jnp.asarray(rng.normal(size=(1, n, 32)), jnp.float32) for n in (60, shift, 3))
    position, valid = jnp.array([[21.5, 64.5, 107.5]]), jnp.ones((1, 3), bool)
    fresh = attention.init(jax.random.key(0), x, jnp.array([60]), g, position, valid)
    apply = jax.jit(attention.apply)
    near = apply(fresh, x, jnp.array([60]), g, position, valid)
    longer = jnp.concatenate([before, x], axis=1)
    far = apply(fresh, longer, jnp.array([shift + 60]), g, position + shift, valid)
    np.testing.assert_allclose(far[:, shift + 6 :], near[:, 6:], atol=2e-4)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_frames_of_a_crop_are_those_of_the_whole(start):
    """At any multiple of two bars, as far from the crop's own edges as the layers see."""
    params = fresh_small()["encoder"]
    halo = encoder.listen_halo()
    total, size = 2 * halo + 6 * ALIGN_FRAMES, 2 * halo + 2 * ALIGN_FRAMES
    rng = np.random.default_rng(5)
    mel = rng.uniform(0.3, 0.7, (1, total, 32)).astype(np.float32)
    phase = rng.uniform(size=(1, total, 3)).astype(np.float32)
    landmarks = rng.normal(size=(1, total // 8, 16)).astype(np.float32)
    asked = rng.normal(size=(1, TARGET_FEATURES + SMALL.style_width)).astype(np.float32)
    window = slice(start * ALIGN_FRAMES, start * ALIGN_FRAMES + size)
    whole, crop = (
        [
            *listen(SMALL, params, mel[:, part], np.array([length]), phase[:, part]),
            *settle(SMALL, params, x[:, part], landmarks[:, coarse], np.array([length]), asked),
        ]
        for x in [rng.normal(size=(1, total, 8)).astype(np.float32)]
        for part, coarse, length in (
            (slice(None), slice(None), total),
            (window, slice(window.start // 8, window.stop // 8), size),
        )
    )
    for one, other, rate in zip(whole, crop, (1, 8, 8, 1, 1, 43, 172, 1), strict=True):
        inner = slice((window.start + halo) // rate, (window.stop - halo) // rate)
        mine = slice(halo // rate, halo // rate + inner.stop - inner.start)
        np.testing.assert_allclose(other[:, mine], one[:, inner], atol=2e-5)


listen, settle = (jax.jit(f, static_argnums=0) for f in (encoder.listen, encoder.settle))


def test_matches_of_a_crop_are_those_of_the_whole():
    """Sixteen bars later; what comes before is like nothing."""
    u_MG = np.concatenate([directions(150), directions(60, 1), directions(150)])
    shift = 16 * 172 // match.STEP_FRAMES
    later_MG = np.concatenate([np.zeros((shift, 32), np.float32), u_MG])
    find = jax.jit(match.find_matches, static_argnums=2)
    near, far = (find(u[None], jnp.array([len(u)]), 1) for u in (u_MG, later_MG))
    alike = np.asarray(near.score_BMK[0] > 0.5)
    assert alike.sum() > 200
    np.testing.assert_array_equal(far.place_BMK[0, shift:][alike] - shift, near.place_BMK[0][alike])
    np.testing.assert_allclose(far.score_BMK[0, shift:][alike], near.score_BMK[0][alike], atol=1e-5)


def test_the_decoder_does_not_know_where_a_crop_lies(params):
    """Nothing is kept outside the crop, and its bars are unseen: then every logit is that of the crop."""
    bars, first, count = 26, 7, 12
    rng = np.random.default_rng(2)
    part = {size: slice(first * BAR // size, (first + count) * BAR // size) for size in (1, 4, 8, 16)}

    def rows(n, width):
        return jnp.asarray(rng.normal(size=(1, n, width)), jnp.float32)

    t, frame_T = bars * BAR, np.arange(bars * BAR) - first * BAR
    kept_T = ((frame_T >= 20) & (frame_T < 170)).astype(np.float32)
    structure = jnp.asarray(np.outer(4.0 - 8.0 * kept_T, [1.0, -1.0, -2.0])[None], jnp.float32)
    style, announced = rows(1, TINY.style_width)[0], jnp.zeros((1, t))
    levels = rows(t, 16), rows(t // 8, 32), rows(t // 4, 32), rows(bars, 32), structure, announced
    cut = [level[:, part[size]] for level, size in zip(levels, (1, 8, 4, 16, 1, 1), strict=True)]

    @jax.jit
    def logits(levels, valid_BG, shift):
        encoded = Encoded(*levels, jnp.zeros(1), style, jnp.array([levels[0].shape[1]]))
        keys = decoder_call(TINY, params, "keys", encoded)._replace(bars_valid_BG=valid_BG)
        at_BN = shift + jnp.array([[*range(12, 30), *range(40, 66), *range(20, 31)]])
        run_BN = jnp.array([[*range(18), *range(26), *range(11)]])
        step = Step(at_BN, run_BN, jnp.arange(55)[None], jnp.zeros(1), jnp.zeros((1, 55, 2)))
        h_BND = decoder_call(TINY, params, "states", keys, step, jnp.array([55]))
        played_BNV = jnp.zeros((1, 55, valid_BG.shape[1]))
        to_BN = jnp.zeros_like(at_BN) + shift + 3 * BAR
        return (
            decoder_call(TINY, params, "mode_logits", h_BND, at_BN, keys),
            decoder_call(TINY, params, "bar_logits", h_BND, at_BN, step.began_BN, played_BNV, keys),
            decoder_call(TINY, params, "beat_logits", h_BND, to_BN // BAR, at_BN, keys),
            decoder_call(TINY, params, "frame_logits", h_BND, to_BN // 4, at_BN, keys),
        )

    mode, bar, *others = logits(cut, jnp.ones((1, count), bool), 0)
    seen_BG = jnp.zeros((1, bars), bool).at[:, part[16]].set(True)
    far_mode, far_bar, *far_others = logits(levels, seen_BG, first * BAR)
    assert float(jnp.std(mode[..., 0])) > 0.05, "hardly a state differs"
    pairs = (far_mode, mode), (far_bar[..., part[16]], bar), *zip(far_others, others, strict=True)
    for far, near in pairs:
        np.testing.assert_allclose(far, near, atol=2e-4)


def test_far_steps_are_as_near_ones(params):
    """Caches know no absolute step: stepping from step 1,000 on and from 300,000 on says the same."""
    keys = keys_of(TINY, params, 75)

    @jax.jit
    def states(first):
        caches, told = decoding.empty_caches(TINY, 1), []
        for taken, at in enumerate((5, 30, 11, 52, 40, 3)):
            state_B4 = jnp.stack([first + 4 * taken, *jnp.array([at, 0, 0])])[None]
            step = decoding.drafts_of(state_B4, jnp.zeros((1, 75), jnp.int32), jnp.zeros(1), 5)
            turned = pointer.run_turns(TINY, step)
            h_BSD, longer = decoder_call(TINY, params, "step", keys, step, turned, caches)
            caches = decoding.caches_up_to(longer, jnp.array([4]), TINY.decoder_window)
            told.append(h_BSD)
        return jnp.concatenate(told, axis=1)

    np.testing.assert_allclose(states(FAR + 1000), states(1000), atol=2e-3)


@pytest.mark.slow
def test_a_quarter_of_an_hour_in_chunks_is_edited_as_the_whole(monkeypatch):
    """The branch for long recordings with its own chunks, and with more bars than tokens."""
    settings = replace(SMALL, max_globals=64)
    fresh = fresh_small()
    fresh["decoder"]["mode"]["bias"] = np.array([6.0, 3.0, 0.0], np.float32)
    model = PointerNetwork(settings, fresh)
    frames = round(15 * 60 * 22050 / 512)
    rng = np.random.default_rng(0)
    mel_TF = rng.uniform(0.3, 0.7, (frames, 32)).astype(np.float32)
    phase_T3 = rng.uniform(size=(frames, 3)).astype(np.float32)
    asked = model._asked(1, None, "final")
    edits, encodings = [], []
    for longest in (network.WHOLE_FRAMES, 1 << 20):
        assert longest == 1 << 20 or network.padded_length(frames) > longest
        monkeypatch.setattr(network, "WHOLE_FRAMES", longest)
        encodings.append(model._encoded([mel_TF], [phase_T3], asked)[0])
        edits.append(model.edit_pointers(mel_TF, phase_T3))
    chunked, whole = encodings
    for name, one, other in zip(whole._fields, whole, chunked, strict=True):
        if other.ndim > 1:
            valid = one.shape[1] * frames // network.padded_length(frames)
            one, other = one[:, :valid], other[:, :valid]
        np.testing.assert_allclose(other, one, atol=5e-5, err_msg=name)
    assert len(edits[1].pointers_N) > 1000 and (np.diff(edits[1].pointers_N) != 1).sum() > 1
    np.testing.assert_array_equal(edits[0].pointers_N, edits[1].pointers_N)


def fresh_small():
    return jax.jit(lambda: pointer.init(SMALL, jax.random.key(3)))()
