"""Memory of training and of the exact likelihood by length: 15, 30 and 60 minutes at hop 256, one example.

The edit is a third of the recording, with a jump every 200 steps, all of them in the loss. `loss` is the
whole training loss from mel to number, `sequence` the exact negative log-likelihood from what the encoder
left; forward alone, and with the gradient. Megabytes are what XLA allocates beside arguments and results, so
nothing but the compiler runs; a softmax over all frames at all steps is beside them, as 4 bytes a logit.
`--run` also runs the longest loss of the tiny model, forward and then with the gradient, and reports the
most memory the process ever held. Agreement first: the losses by chunks of steps equal those at once.
"""

import functools
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from planted_batch import planted
from report import finish, growth_exponent, options, require_agreement

from editjax import losses
from editjax.config import load_config
from editjax.data import Batch
from editjax.losses import LossSettings, pointer_loss
from editjax.models import decoder_attention, encoder, pointer
from editjax.models.pointer import PointerSettings, decoder_call
from editjax.models.style import Asked

CONFIGS = Path(__file__).parent.parent / "configs"
LENGTHS = 77_584, 155_168, 310_336
RUN_FRAMES = 200
TOLERANCE = 1e-5


def main() -> None:
    """Prove that chunks change nothing, then compile every size at every length."""
    chosen = options(__doc__, run="also run the longest loss of the tiny model (minutes, some GB)")
    names, lengths = (("tiny",), (1376, 2752)) if chosen.quick else (("tiny", "base"), LENGTHS)
    rows, ratios = [], {}
    prove_chunks(load_config(CONFIGS / "pointer_tiny.py").model)
    for name in names:
        settings = load_config(CONFIGS / f"pointer_{name}.py").model
        found = [row for n_frames in lengths for row in rows_of(name, settings, n_frames)]
        for part in ("loss", "sequence"):
            of_part = [row for row in found if row["part"] == part]
            for way in ("forward", "forward + backward"):
                exponent = growth_exponent(lengths, [row[f"{way} MB"] for row in of_part])
                ratios[f"growth exponent, {name}, {part}, {way}"] = exponent
        ratios[f"flat softmax / sequence, {name}, forward"] = found[-1]["flat MB"] / found[-1]["forward MB"]
        rows += found
    if chosen.run:
        rows += run(load_config(CONFIGS / "pointer_tiny.py").model, lengths[-1])
    finish("memory", rows, ratios, ("jax", "flax"), chosen.out)


def rows_of(name: str, settings: PointerSettings, n_frames: int) -> list[dict[str, Any]]:
    """The memory of the loss and of the likelihood at one length."""
    weights = weights_of(n_frames)
    params = jax.eval_shape(lambda: pointer.init(settings, jax.random.key(0)))
    shapes = jax.eval_shape(lambda batch: batch, batch_of(settings, n_frames))
    n_steps = shapes.pointers_BN.shape[1]
    keys = jax.eval_shape(functools.partial(keys_of, settings), params, shapes)
    cases = {
        "loss": (functools.partial(loss, settings, weights), (params, shapes), 0),
        "sequence": (functools.partial(sequence, settings, weights), ((params, keys), shapes), 0),
    }
    rows = []
    for part, (function, args, argnum) in cases.items():
        backward = jax.value_and_grad(function, argnum, allow_int=True)
        ways = {"forward MB": function, "forward + backward MB": backward}
        sizes = {way: temporary_mb(f, *args) for way, f in ways.items()}
        flat = {"flat MB": 4e-6 * n_steps * n_frames}
        rows.append({"config": name, "part": part, "frames": n_frames, "steps": n_steps, **sizes, **flat})
    return rows


def batch_of(settings: PointerSettings, n_frames: int) -> Batch:
    return planted(n_frames, 1, RUN_FRAMES, 2 * RUN_FRAMES, settings.n_mels)


def weights_of(n_frames: int) -> LossSettings:
    return LossSettings(max_jumps=n_frames // 3 // RUN_FRAMES + 1)


def temporary_mb(function: Any, *args: Any) -> float:
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes / 1e6


def loss(settings: PointerSettings, weights: LossSettings, params: Any, batch: Batch) -> jax.Array:
    return pointer_loss(params, batch, settings, weights, jax.random.key(0))[0]


def keys_of(settings: PointerSettings, params: Any, batch: Batch) -> pointer.Keys:
    asked = Asked(batch.target_B, jnp.zeros((1, settings.style_width)))
    inputs = batch.mel_BTF, batch.frames_B, batch.phase_BT3
    encoded = encoder.encode(settings, params["encoder"], *inputs, asked)
    return decoder_call(settings, params, "keys", encoded)


def sequence(settings: PointerSettings, weights: LossSettings, known: Any, batch: Batch) -> jax.Array:
    """Nats of the edit; `known` are the parameters and the keys."""
    t = losses.targets(batch.pointers_BN, batch.steps_B, batch.target_B, batch.mel_BTF.shape[1])
    nll = losses.sequence_nll(settings, *known, t, batch.steps_B, weights.max_jumps)
    return (nll.mode_B + nll.bar_B + nll.beat_B + nll.frame_B).sum()


def prove_chunks(settings: PointerSettings) -> None:
    """The loss by chunks of steps against that of all steps at once."""
    n_frames, known = 2064, decoder_attention.STEP_CHUNK
    batch, weights = batch_of(settings, n_frames), weights_of(n_frames)
    params = jax.jit(pointer.init, static_argnums=0)(settings, jax.random.key(0))
    found = []
    for size in (known, 256):
        decoder_attention.STEP_CHUNK = size
        found.append(float(jax.jit(functools.partial(loss, settings, weights))(params, batch)))
    decoder_attention.STEP_CHUNK = known
    require_agreement("loss in chunks", abs(found[1] / found[0] - 1), TOLERANCE)


def run(settings: PointerSettings, n_frames: int) -> list[dict[str, Any]]:
    """Seconds of the longest loss and the process's peak of resident memory after it."""
    params = jax.jit(pointer.init, static_argnums=0)(settings, jax.random.key(0))
    batch = jax.device_put(batch_of(settings, n_frames))
    function = functools.partial(loss, settings, weights_of(n_frames))
    rows = []
    for way, f in {"forward": function, "forward + backward": jax.value_and_grad(function)}.items():
        compiled = jax.jit(f).lower(params, batch).compile()
        began = time.perf_counter()
        found = jax.block_until_ready(compiled(params, batch))
        taken = time.perf_counter() - began
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        what = {
            "config": "tiny",
            "part": f"loss, {way}, run",
            "frames": n_frames,
            "steps": int(batch.steps_B[0]),
        }
        rows.append({**what, "s": taken, "peak resident MB": peak_mb})
    return rows


if __name__ == "__main__":
    main()
