"""Taking parts away: what is held at zero is what the part enters by, and it stays there."""

import math
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

from ablate import PARTS, run, table, without

from editjax import shards
from editjax.bundle import flatten
from editjax.config import to_json
from editjax.data import DataSettings
from editjax.export import write_bundle
from editjax.family import family_of
from editjax.mel import MelSettings
from editjax.mesh import tree_path
from editjax.models import encoder
from editjax.models.match import DETAIL_CHANNELS
from editjax.models.pointer import PointerSettings, Step, decoder_call
from editjax.models.scales import MATCH_CHANNELS, landmark_matches
from editjax.models.stems import Stems
from editjax.models.style import Asked
from editjax.optim import OptimSettings
from editjax.records import Edit, Recording, encode
from editjax.step import TrainConfig

SMALL = PointerSettings(
    n_mels=32,
    width=16,
    frame_width=8,
    landmark_layers=1,
    landmark_window=6,
    frame_window=5,
    style_width=6,
    stem_width=4,
)
FAMILY = family_of(SMALL)


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda: FAMILY.init(SMALL, jax.random.key(0)))()
    return jax.tree.map(lambda a: a + 0.1, fresh)


def reduced(part, params):
    return without(FAMILY._replace(init=lambda *_: params), SMALL, PARTS[part]).init(SMALL, None)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "nothing"])
def test_a_part_holds_something_and_not_everything(part, params):
    held = [float((a == 0).mean()) for a in jax.tree.leaves(reduced(part, params))]
    assert max(held) > 0 and sum(share == 1.0 for share in held) <= 4


def test_nothing_taken_away_leaves_the_model_as_it_is(params):
    jax.tree.map(np.testing.assert_array_equal, reduced("nothing", params), params)


def test_what_is_held_gets_no_gradient(params):
    def loss(p, **_):
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(p)), {}

    family = without(FAMILY._replace(loss=loss), SMALL, PARTS["matches"])
    gradient = jax.grad(lambda p: family.loss(p)[0])(params)["encoder"]
    assert not gradient["entry"]["matches"]["kernel"].any() and gradient["entry"]["frames"]["kernel"].all()


HEARD = {
    "matches": "matches",
    "differences to matches": "differences",
    "bar tokens in the encoder": "WindowAttention/global_kv",
    "position in beat, bar, phrase": "phase",
    "bars back into frames": "Fusion/bars",
    "hints of the structure head": "hints",
    "order and coverage": "coverage",
    "what was played": "replay",
    "styles": "style",
    "the wanted length": "length",
    "stems": "stems",
    "the decoder's own past": "past",
    "far bars in the decoder": "CrossAttention/bars",
}
"""What of `said` each part tells the model; with a stroke, what goes into a layer of a module."""
FRAMES, LOUD = 172, 50.0


@jax.jit
def answer(p, said):
    """The decoder's state at its second step, and its logits there."""
    rng = np.random.default_rng(0)
    mel, phase = rng.uniform(0.3, 0.7, (1, FRAMES, 32)), rng.uniform(size=(1, FRAMES, 3))
    recording = jnp.asarray(mel, jnp.float32), jnp.array([FRAMES]), said["phase"] * jnp.asarray(phase)
    stem = jnp.asarray(rng.uniform(0.3, 0.7, (1, 1, 22, 32)), jnp.float32)
    asked = Asked(jnp.full(1, said["length"]), jnp.full((1, SMALL.style_width), said["style"]))
    is_detail_C = jnp.arange(MATCH_CHANNELS) >= MATCH_CHANNELS - DETAIL_CHANNELS

    def found(*args):
        place, features, valid = landmark_matches(*args)
        more_C = jnp.where(is_detail_C, said["differences"], said["matches"])
        return place, features + more_C[None, None, None], valid

    def louder(call, args, kwargs, context):
        within = f"{type(context.module.parent).__name__}/{context.module.name}"
        if context.method_name == "__call__" and within in said:
            args = (args[0] + said[within], *args[1:])
        return call(*args, **kwargs)

    ask = partial(decoder_call, SMALL, p)
    with pytest.MonkeyPatch.context() as patch, nn.intercept_methods(louder):
        patch.setattr(encoder, "landmark_matches", found)
        stems = Stems(said["stems"] / LOUD * stem, np.ones((1, 1), bool))  # a mel is at most one
        keys = ask("keys", encoder.encode(SMALL, p["encoder"], *recording, asked, stems))
    told = ("kept_BT", "frame_start_BT", "beat_start_BU", "bar_start_BV")
    hints = {name: getattr(keys.hints, name) + said["hints"] for name in told}
    keys = keys._replace(hints=keys.hints._replace(**hints))
    at = jnp.array([[2, 3]])
    replay = jnp.stack([jnp.full(2, said["past"]), jnp.full(2, said["replay"])])[None]
    step = Step(at, at, at, asked.target_B, replay)
    h, last, zero = ask("states", keys, step, jnp.array([2]))[:, 1:], at[:, 1:], jnp.zeros((1, 1), jnp.int32)
    played = jnp.full((1, 1, keys.bars_BVD.shape[1]), said["coverage"])
    logits = (
        ask("mode_logits", h, last, keys),
        ask("bar_logits", h, last, zero, played, keys),
        ask("beat_logits", h, zero, last, keys),
        ask("frame_logits", h, zero, last, keys),
    )
    return jnp.concatenate([a.ravel() for a in (h, *logits)])


@pytest.mark.parametrize("part", [part for part in PARTS if part != "nothing"])
def test_without_a_part_the_model_does_not_hear_of_it(part, params):
    quiet = dict.fromkeys(HEARD.values(), 0.0)
    for p, deaf in ((params, False), (reduced(part, params), True)):
        one, other = answer(p, quiet), answer(p, quiet | {HEARD[part]: LOUD})
        assert np.isfinite(other).all() and bool(jnp.abs(one - other).max() < 1e-6) is deaf


def recorded(number):
    rng = np.random.default_rng(number)
    mel, phase = rng.random((200, 32)).astype(np.float16), rng.random((200, 3)).astype(np.float16)
    pointers = np.r_[20:60, 90:150].astype(np.int32)
    edit = Edit(f"r{number}", "final", pointers, np.zeros(5, np.uint8), None, {"natural": True})
    meta = {"sources": [str(number)], "split": "train"}
    return Recording(f"r{number}", mel, phase, np.arange(0, 200, 43), (edit,), meta)


@pytest.mark.slow
def test_a_trained_model_goes_on_without_a_part(tmp_path, monkeypatch):
    """Two steps: what is held is zero after them, and all the rest near where it began."""
    params = jax.jit(lambda: family_of(SMALL).init(SMALL, jax.random.key(1)))()
    mel, part = MelSettings(n_mels=32), "styles"
    data = tmp_path / "shards"
    shards.write(data, (encode(recorded(k)) for k in range(4)), mel=to_json(mel), settings={})
    facts = {"family": "pointer", "model": to_json(SMALL), "mel": to_json(mel), "licence": ""}
    facts["training"] = {"step": 0, "checkpoint": "last", "export_command": ""}
    model = write_bundle(tmp_path / "model", flatten(params), facts)
    config = TrainConfig(
        model=SMALL,
        data=DataSettings(
            target_ask_probability=1.0,  # of what is asked of the encoder the length learns, the style not
            batch_frames=1024,
            batch_multiple=4,
            buckets=((256, 160),),
            augment=None,
            threads=1,
        ),
        optim=OptimSettings(warmup_steps=1, steps=2),
        ema_decay=0.0,
        checkpoint_every=2,
    )
    trained, figures = [], {"kept_iou": 0.5, "loop_recall": math.nan}
    monkeypatch.setattr("ablate.make_validate", lambda *_: lambda p: trained.append(p) or figures)
    done = partial(run, config, part, 0, data, data, str(model), tmp_path / "out")
    assert done() == done() == {"kept_iou": 0.5, "loop_recall": None} and len(trained) == 1

    def check(path, now, first):
        held = np.broadcast_to(PARTS[part](SMALL, tree_path(path), first.shape), first.shape)
        now, first = np.asarray(now), np.asarray(first)
        assert not now[held].any()
        np.testing.assert_allclose(now[~held], first[~held], atol=0.01)
        return np.abs(now - first)[~held].max(initial=0.0)

    moved = jax.tree_util.tree_map_with_path(check, trained[0], params)
    assert moved["encoder"]["entry"]["asked"]["kernel"] > 1e-4


def test_the_table_has_mean_and_spread():
    figures = {name: 0.5 for name in ("kept_iou", "structure_iou", "boundary_f1_half_second")}
    runs = [figures | {"order_agreement": x, "length_error": 0.1} for x in (0.2, 0.4)]
    assert "| nothing | 2 | 0.500 ± 0.000 |" in table({"nothing": runs})
    assert "| 0.300 ± 0.100 |" in table({"nothing": runs})
