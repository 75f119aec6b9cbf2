"""The mel on the accelerator: the jitted twin of `editjax.mel.mel_spectrogram`, equal to it within 1e-4.

The worst of 45 real recordings differs by 7e-5 (jax 0.12, CPU). Where bins lie more than 110 dB below a pure
tone of full scale, the FFTs' float32 rounding is what is left to compare: 3e-4.
Frames are made 128 at a time under `lax.map`, so that memory is the samples, the mel and one chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp

from editjax.mel import CHUNK_FRAMES, POWER_FLOOR, MelSettings, hann_window, mel_filterbank


@partial(jax.jit, static_argnames="settings")
def mel_spectrogram_jax(samples_BS: jax.Array, settings: MelSettings) -> jax.Array:
    """Mel (B, T, F) float32 in [0, 1] of mono samples (B, S) in [-1, 1] at the mel rate.

    T = 1 + S // hop, the last frames seeing silence after the end; no samples give no frames.
    Compiles once for every shape and settings.
    """
    batch, n_samples = samples_BS.shape
    n_frames = 1 + n_samples // settings.hop if n_samples else 0
    n_chunks = -(-n_frames // CHUNK_FRAMES)
    if not n_chunks:
        return jnp.zeros((batch, 0, settings.n_mels), jnp.float32)
    reach = (n_chunks * CHUNK_FRAMES - 1) * settings.hop + settings.n_fft
    before = settings.n_fft // 2
    after = max(0, reach - before - n_samples)
    padded_BS = jnp.pad(samples_BS.astype(jnp.float32), ((0, 0), (before, after)))
    first_C = jnp.arange(n_chunks) * (CHUNK_FRAMES * settings.hop)
    mel_CBTF = jax.lax.map(lambda first: _mel_of_chunk(padded_BS, first, settings), first_C)
    mel_BTF = jnp.moveaxis(mel_CBTF, 0, 1).reshape(batch, n_chunks * CHUNK_FRAMES, settings.n_mels)
    return mel_BTF[:, :n_frames]


def _mel_of_chunk(padded_BS: jax.Array, first_sample: jax.Array, settings: MelSettings) -> jax.Array:
    """The CHUNK_FRAMES frames that begin at `first_sample`: (B, CHUNK_FRAMES, F)."""
    span = (CHUNK_FRAMES - 1) * settings.hop + settings.n_fft
    chunk_BS = jax.lax.dynamic_slice_in_dim(padded_BS, first_sample, span, axis=1)
    sample_TW = jnp.arange(CHUNK_FRAMES)[:, None] * settings.hop + jnp.arange(settings.n_fft)[None]
    windowed_BTW = chunk_BS[:, sample_TW] * jnp.asarray(hann_window(settings.n_fft))[None, None]
    spectrum_BTK = jnp.fft.rfft(windowed_BTW)
    power_BTK = jnp.square(spectrum_BTK.real) + jnp.square(spectrum_BTK.imag)
    filters_KF = jnp.asarray(mel_filterbank(settings))
    power_BTF = jnp.einsum("btk,kf->btf", power_BTK, filters_KF, precision=jax.lax.Precision.HIGHEST)
    decibels_BTF = 10.0 * jnp.log10(jnp.maximum(power_BTF, POWER_FLOOR))
    return jnp.clip((decibels_BTF - settings.floor_db) / (settings.ceiling_db - settings.floor_db), 0.0, 1.0)
