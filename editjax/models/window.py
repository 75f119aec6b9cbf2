"""The creative agent: two recordings' codec latents → several new pieces made of windows of both.

    selector → windows of input and target, compressed → tonality reduced → extractors of rhythm, harmony and
    timbre → what to take of each → composer

All pairs of windows go through one shared agent in one batch. Fresh, the windows are the documents': the
first, the middle and the last, uncompressed; the reducers change nothing, and a piece is the mean of its two
windows with a little of what the untrained composer adds.

The owner's documents count 50 latent frames a second (1200, 800 and 400 frames), which `documents` sets;
the 24 kHz codec has 75, and durations are what is kept.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import scipy.fft

from editjax.attention import KINDS
from editjax.config import LARGEST_SIZE, refuse_sizes
from editjax.models.layers import Norm
from editjax.models.reconstruct import Layer
from editjax.models.resample import compressed
from editjax.models.selector import Selector, Windows

EXTRACTORS = {"rhythm": (3, 5), "harmony": (7, 9), "timbre": (15, 21)}
"""Kernels of the two convolutions of each part, in frames."""
SIDES = ("input", "target")
REDUCER_KERNEL = 7
GROUPS = 2 * len(EXTRACTORS)
CHOICE_WIDTH = 256
SLOPE = 0.2
QUIET = 0.1
"""How loud the untrained composer is."""
SILENT = 1e-6
LARGEST_GRID = 1 << 19
"""Of ratios × coarse frames², which the selector's tables have."""


@dataclass(frozen=True)
class WindowSettings:
    """Architecture of the creative agent, and the durations it was made for.

    Of `total_s` of each recording `pairs` windows of `window_s` are taken, after compression by 1 to
    `most_ratio`. Starts are compared `lag_s` apart, at `ratios` ratios. The composer joins `stride` frames to
    one token and sees `window` tokens on either side. Without `compress` all ratios are 1, without `tonality`
    nothing is reduced.
    """

    sample_rate_hz: int = 24_000
    frames_per_second: float = 75.0
    total_s: float = 24.0
    window_s: float = 16.0
    most_ratio: float = 1.5
    pairs: int = 3
    channels: int = 128
    compress: bool = True
    tonality: bool = True
    lag_s: float = 0.32
    ratios: int = 11
    match_width: int = 32
    selector_width: int = 256
    part_width: int = 64
    width: int = 384
    heads: int = 6
    composer_layers: int = 4
    stride: int = 4
    window: int = 64
    expansion: int = 4
    dropout: float = 0.1
    attention: str = "block"
    dtype: str = "float32"

    def __post_init__(self):
        positive = "frames_per_second", "total_s", "window_s", "lag_s"
        if small := [name for name in positive if not getattr(self, name) > 0]:
            raise ValueError(f"{small[0]} {getattr(self, small[0])}: give more than 0")
        refuse_sizes(
            self, "sample_rate_hz", "pairs", "channels", "match_width", "selector_width", "part_width",
            "width", "heads", "stride", "expansion",
        )  # fmt: skip
        if not 1 < self.most_ratio <= 4 or self.ratios < 2:
            raise ValueError(f"ratios to {self.most_ratio}, {self.ratios} of them: up to 4, and 2 at least")
        if not 0 < self.lag_frames <= self.window_frames < self.frames:
            raise ValueError(
                f"windows of {self.window_s} s of {self.total_s} s, {self.lag_s} s apart: too few"
            )
        if self.frames > LARGEST_SIZE or self.ratios * (self.frames // self.lag_frames) ** 2 > LARGEST_GRID:
            raise ValueError(
                f"{self.total_s} s compared every {self.lag_s} s at {self.ratios} ratios: too much at once"
            )
        if self.compress and self.window_frames * self.most_ratio > self.frames:
            raise ValueError(
                f"windows of {self.window_s} s, compressed by {self.most_ratio}, need over {self.total_s} s"
            )
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"{self.heads} heads of a width of {self.width}: a head's width must be even")
        if self.attention not in KINDS:
            raise ValueError(f"attention {self.attention!r}: choose one of {', '.join(KINDS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: give a share from 0 to below 1")

    @property
    def frames(self) -> int:
        """Latent frames of each recording."""
        return round(self.total_s * self.frames_per_second)

    @property
    def window_frames(self) -> int:
        """Latent frames of each window, and of each piece."""
        return round(self.window_s * self.frames_per_second)

    @property
    def lag_frames(self) -> int:
        """Latent frames between the starts that are compared."""
        return round(self.lag_s * self.frames_per_second)


def documents(**changes: Any) -> WindowSettings:
    """The documents' numbers: 1200 frames, windows of 800, starts up to 400."""
    return WindowSettings(**{"frames_per_second": 50.0, **changes})


class Composed(NamedTuple):
    """New pieces, the windows they are made of before their tonality was reduced, (B, P, W, D) each, and
    where those were.

    `share_BPWG` says what a piece took of rhythm, harmony and timbre of the input, then of the target; it
    sums to 1.
    """

    piece_BPWD: Any
    input_BPWD: Any
    target_BPWD: Any
    share_BPWG: Any
    windows: Windows


class Separable(nn.Module):
    """A convolution along each channel, then one across channels.

    Along channels by spectra: of 21 frames on a CPU that takes a fifth of the time of shifted products, and a
    tenth of that of XLA's convolution.
    """

    width: int
    kernel: int
    fresh: Any = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_NWD):
        init = nn.initializers.normal(self.kernel**-0.5)
        kernel_KD = self.param("along", init, (self.kernel, x_NWD.shape[-1]))
        before, n_frames = self.kernel // 2, x_NWD.shape[1]
        n_fft = scipy.fft.next_fast_len(n_frames + self.kernel - 1, real=True)
        padded = jnp.pad(x_NWD.astype(jnp.float32), ((0, 0), (before, 0), (0, 0)))
        spectrum_NFD = jnp.fft.rfft(padded, n_fft, axis=1)
        response_FD = jnp.conj(jnp.fft.rfft(kernel_KD, n_fft, axis=0))
        along = jnp.fft.irfft(spectrum_NFD * response_FD[None], n_fft, axis=1)[:, :n_frames]
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=self.fresh, name="across")(along)


class Reducer(nn.Module):
    """Latents, and by a strength in [0, 1] what a filter adds to them: nothing, when fresh."""

    @nn.compact
    def __call__(self, x_NWD, strength_N11):
        filtered = Separable(x_NWD.shape[-1], REDUCER_KERNEL, nn.initializers.zeros, name="filter")(x_NWD)
        return x_NWD + strength_N11 * filtered


class Extractor(nn.Module):
    """Rhythm, harmony and timbre of latents, side by side: (N, W, 3 · part width)."""

    settings: Any

    @nn.compact
    def __call__(self, x_NWD):
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)
        parts, x_NWD = [], x_NWD.astype(dtype)
        for name, (first, second) in EXTRACTORS.items():
            h = nn.leaky_relu(Separable(s.channels, first, dtype=dtype, name=f"{name}_first")(x_NWD), SLOPE)
            h = Separable(s.part_width, second, dtype=dtype, name=f"{name}_second")(h)
            parts.append(
                Norm(dtype, name=f"{name}_norm")(
                    h + nn.Dense(s.part_width, dtype=dtype, name=f"{name}_skip")(x_NWD)
                )
            )
        return nn.leaky_relu(jnp.concatenate(parts, -1), SLOPE)


class Choice(nn.Module):
    """How much of each of the six parts to take, (N, W, 6), which sum to 1; all alike when fresh."""

    settings: Any

    @nn.compact
    def __call__(self, parts_NWE):
        dtype = jnp.dtype(self.settings.dtype)
        h = nn.gelu(nn.Dense(CHOICE_WIDTH, dtype=dtype, name="hidden")(parts_NWE))
        logits = nn.Dense(GROUPS, dtype=dtype, kernel_init=nn.initializers.zeros, name="out")(h)
        return jax.nn.softmax(logits.astype(jnp.float32))


class Entry(nn.Module):
    """Parts (N, W, E) of `stride` frames and a strength (N, 1, 1) → a token: (N, ⌈W / stride⌉, width)."""

    settings: Any

    @nn.compact
    def __call__(self, parts_NWE, strength_N11):
        s, (count, n_frames, width) = self.settings, parts_NWE.shape
        dtype = jnp.dtype(s.dtype)
        padded = jnp.pad(parts_NWE, ((0, 0), (0, -n_frames % s.stride), (0, 0)))
        joined = padded.reshape(count, -1, s.stride * width)
        tokens = nn.Dense(s.width, dtype=dtype, name="parts")(joined)
        return tokens + nn.Dense(s.width, dtype=dtype, name="strength")(strength_N11.astype(dtype))


class Exit(nn.Module):
    """Tokens → what is added to each frame, (N, W, channels) float32."""

    settings: Any

    @nn.compact
    def __call__(self, x_NUD, n_frames: int):
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)
        fresh = nn.initializers.variance_scaling(QUIET**2, "fan_in", "truncated_normal")
        out = nn.Dense(s.stride * s.channels, dtype=dtype, kernel_init=fresh, name="out")
        added = out(Norm(dtype, name="norm")(x_NUD)).astype(jnp.float32)
        return added.reshape(len(added), -1, s.channels)[:, :n_frames]


def init(settings: WindowSettings, key) -> Any:
    """Fresh parameters, a nested dict; the composer's layers are stacked along a leading axis."""
    s = settings
    keys = iter(jax.random.split(key, 9))
    whole, window = jnp.zeros((1, s.frames, s.channels)), jnp.zeros((1, 8, s.channels))
    parts, strength = jnp.zeros((1, 8, GROUPS * s.part_width)), jnp.zeros((1, 1, 1))
    tokens, count = jnp.zeros((1, 8, s.width), jnp.dtype(s.dtype)), jnp.full((1,), 8, jnp.int32)

    def fresh(module: nn.Module, *arguments: Any) -> Any:
        return module.init(next(keys), *arguments)["params"]

    layer_keys = jax.random.split(next(keys), s.composer_layers)
    return {
        "selector": fresh(Selector(s), whole, whole),
        "reducer": {side: fresh(Reducer(), window, strength) for side in SIDES},
        "extractor": {side: fresh(Extractor(s), window) for side in SIDES},
        "choice": fresh(Choice(s), parts),
        "entry": fresh(Entry(s), parts, strength),
        "composer": jax.vmap(lambda one: Layer(s).init(one, tokens, count)["params"])(layer_keys),
        "exit": fresh(Exit(s), tokens, 8),
    }


def select(settings: WindowSettings, params: Any, input_BTD, target_BTD) -> Windows:
    """Which windows of two recordings' latents (B, T, D) belong together.

    Raises ValueError unless T is `settings.frames`.
    """
    for latents in (input_BTD, target_BTD):
        if latents.shape[1] != settings.frames:
            raise ValueError(
                f"latents of {latents.shape[1]} frames: the agent was made for {settings.frames}"
            )
    return _of(Selector(settings), params["selector"], input_BTD, target_BTD)


def apply(settings: WindowSettings, params: Any, input_BTD, target_BTD, key=None) -> Composed:
    """New pieces of two recordings' latents (B, T, D), all pairs in one batch.

    A key is for training: the composer's channels are dropped by it.
    """
    windows = select(settings, params, input_BTD, target_BTD)
    return compose(settings, params, input_BTD, target_BTD, windows, key)


def cut_out(settings: WindowSettings, input_BTD, target_BTD, windows: Windows):
    """The windows of both recordings, compressed, (B, P, W, D) each."""
    chosen = (
        (input_BTD, windows.start_input_BP, windows.ratio_input_BP),
        (target_BTD, windows.start_target_BP, windows.ratio_target_BP),
    )
    size = settings.window_frames, settings.most_ratio
    return [compressed(x_BTD.astype(jnp.float32), start, ratio, *size) for x_BTD, start, ratio in chosen]


def compose(settings: WindowSettings, params: Any, input_BTD, target_BTD, windows: Windows, key=None):
    """New pieces of windows that somebody chose, `Composed`."""
    s, (batch, pairs) = settings, windows.start_input_BP.shape
    strength_N11 = windows.tonality_strength_BP.reshape(-1, 1, 1)
    cut = [x_BPWD.reshape(-1, *x_BPWD.shape[2:]) for x_BPWD in cut_out(s, input_BTD, target_BTD, windows)]
    heard, parts = [], []
    for side, x_NWD in zip(SIDES, cut, strict=True):
        reduced = _of(Reducer(), params["reducer"][side], x_NWD, strength_N11)
        heard.append(reduced if s.tonality else x_NWD)
    square_N11 = sum((x_NWD**2).mean((1, 2), keepdims=True) for x_NWD in heard) / len(heard)
    level_N11 = jnp.sqrt(square_N11 + SILENT**2)
    for side, x_NWD in zip(SIDES, heard, strict=True):
        parts.append(_of(Extractor(s), params["extractor"][side], x_NWD / level_N11))
    parts_NWE = jnp.concatenate(parts, -1)
    share_NWG = _of(Choice(s), params["choice"], parts_NWE)
    added_NWD = _added(s, params, parts_NWE, share_NWG, strength_N11, key)
    half = GROUPS // 2
    of_input, of_target = (x.sum(-1, keepdims=True) for x in (share_NWG[..., :half], share_NWG[..., half:]))
    piece_NWD = of_input * heard[0] + of_target * heard[1] + level_N11 * added_NWD
    arrays = piece_NWD, *cut, share_NWG
    piece, first, second, share = (x.reshape(batch, pairs, *x.shape[1:]) for x in arrays)
    return Composed(piece, first, second, share, windows)


def _added(settings: WindowSettings, params: Any, parts_NWE, share_NWG, strength_N11, key):
    """What the composer adds to every frame, in units of the windows' level."""
    s = settings
    chosen_NWE = parts_NWE * jnp.repeat(share_NWG * GROUPS, s.part_width, axis=-1).astype(parts_NWE.dtype)
    x_NUD = _of(Entry(s), params["entry"], chosen_NWE, strength_N11)
    tokens_N = jnp.full((x_NUD.shape[0],), x_NUD.shape[1], jnp.int32)
    keys = None if key is None else jax.random.split(key, s.composer_layers)

    def layer(x_NUD, given):
        one, layer_key = given
        return _of(Layer(s), one, x_NUD, tokens_N, layer_key), None

    x_NUD, _ = jax.lax.scan(layer, x_NUD, (params["composer"], keys))
    return _of(Exit(s), params["exit"], x_NUD, parts_NWE.shape[1])


def _of(module: nn.Module, params: Any, *arguments: Any) -> Any:
    return module.apply({"params": params}, *arguments)


def metadata(windows: Windows) -> dict[str, Any]:
    """The mean over examples of what was chosen for each pair, by the documents' names; starts in frames."""
    means = {name.removesuffix("_BP"): x_BP.mean(0) for name, x_BP in windows._asdict().items()}
    pairs = windows.start_input_BP.shape[1]
    return {f"pair{at}_{name}_mean": x_P[at] for at in range(pairs) for name, x_P in means.items()}
