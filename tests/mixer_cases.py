"""Small regressors of mixes, and pictures for them that nobody heard."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from editjax.console.compared import HEARD
from editjax.console.heard import SHOWN, PictureSettings
from editjax.console.knobs import NAMES
from editjax.mixes import MixBatch
from editjax.models import mixer
from editjax.models.mixer import MixerSettings

KINDS = ("baseline", "enhanced", "ast")
PICTURE = PictureSettings(n_fft=2048, hop=2048, n_mels=24)
FRAMES = 24
KNOBS = len(NAMES)

predict = partial(jax.jit, static_argnums=0)(mixer.predict)
fill_in = partial(jax.jit, static_argnums=0)(mixer.fill_in)


def tiny(kind: str, **changes: object) -> MixerSettings:
    shape = {"width": 8, "heads": 2, "n_layers": 2, "patch": (4, 8), "patches_time": FRAMES // 4}
    return MixerSettings(**{"kind": kind, **shape, "picture": PICTURE, **changes})  # type: ignore[arg-type]


@lru_cache
def fresh(settings: MixerSettings):
    """Parameters drawn by NumPy, for compiling what JAX draws them with takes longer than a test."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: mixer.init(settings, key), jax.random.key(0))

    def draw(path, leaf):
        name, seen = path[-1].key, int(np.prod(leaf.shape[:-1]))
        scale = {"kernel": seen**-0.5, "scale": 0.1}.get(name, 0.1)
        return (scale * rng.normal(size=leaf.shape) + (name == "scale")).astype(np.float32)

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


def batch(size: int = 3, frames: int = FRAMES, seed: int = 0, labels: object = None) -> MixBatch:
    """Levels, figures and knobs drawn at random."""
    rng = np.random.default_rng(seed)
    return MixBatch(
        rng.uniform(0.0, 2.0, (size, frames, PICTURE.n_mels, 2 * SHOWN)).astype(np.float16),
        rng.normal(size=(size, HEARD)).astype(np.float32),
        rng.random((size, KNOBS)).astype(np.float32),
        np.full(size, -1, np.int32) if labels is None else np.array(labels, np.int32),
        np.arange(size, dtype=np.int32),
        np.zeros((size, 2, 0), np.float16),
    )
