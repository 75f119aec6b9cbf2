"""What a codec's layers begin as: cosine transforms of blocks, one stage after another, and their inverses.

Each stage of the encoder makes bands of `ratio` values of a channel (DCT-II; Ahmed, Natarajan and Rao 1974),
and the lowest of all bands that there are channels for go on; the decoder begins as the inverse. So a fresh
codec already gives back what lies below a frequency, dimension / hop of the highest. Signals are kept small,
where rectifiers are nearly straight. The other channels begin at random, and are heard by nobody yet.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SMALL = 0.1
"""By how much signals are made smaller on their way: ELU(−0.1) is −0.095."""


class Bands(NamedTuple):
    """What a stage makes of its channels: of each band the channel and the row of the transform."""

    channel_A: np.ndarray
    row_A: np.ndarray


def begun(encoder: Any, decoder: Any, ratios: tuple[int, ...]) -> tuple[Any, Any]:
    """The parameters of both sides, with channels that begin as transforms."""
    channels, filters = encoder["enter"]["kernel"].shape[1:]
    dimension = encoder["leave"]["kernel"].shape[2]
    rank_A = np.zeros(min(channels, filters), int)
    encoder, decoder = dict(encoder), dict(decoder)
    quiet = encoder["enter"] | {"kernel": SMALL * encoder["enter"]["kernel"]}
    encoder["enter"] = _through(quiet, len(rank_A), SMALL)
    decoder["leave"] = _through(decoder["leave"], len(rank_A), 1.0 / SMALL)
    for at, ratio in enumerate(reversed(ratios)):
        here, there = f"stage_{at}", f"stage_{len(ratios) - 1 - at}"
        encoder[here] = _passing(encoder[here], len(rank_A))
        decoder[there] = _passing(decoder[there], len(rank_A))
        bands, ranks = bands_of(rank_A, ratio, encoder[here]["down"]["kernel"].shape[2])
        cosine_KR = cosines(ratio)[bands.row_A]
        of, to = np.arange(len(ranks))[:, None], np.arange(ratio)[None]
        down, up = encoder[here]["down"], decoder[there]["up"]
        quiet_KCD = down["kernel"].at[:, :, : len(ranks)].set(0.0)
        kernel_KCD = quiet_KCD.at[ratio + to, bands.channel_A[:, None], of].set(cosine_KR / np.sqrt(ratio))
        told = dimension if at == len(ratios) - 1 else len(ranks)  # the rest is not in the latents
        quiet_CKD = up["kernel"].at[:, :, : len(rank_A)].set(0.0)
        kernel_CKD = quiet_CKD.at[of[:told], to, bands.channel_A[:told, None]].set(
            cosine_KR[:told] * np.sqrt(ratio)
        )
        encoder[here]["down"] = down | {"kernel": kernel_KCD}
        decoder[there]["up"] = up | {"kernel": kernel_CKD}
        rank_A = ranks
    kept = min(len(rank_A), dimension)
    encoder["leave"] = _through(encoder["leave"], kept, 1.0 / SMALL)
    decoder["enter"] = _through(decoder["enter"], kept, SMALL)
    return encoder, decoder


def bands_of(rank_A: np.ndarray, ratio: int, most: int) -> tuple[Bands, np.ndarray]:
    """The lowest bands of channels that are themselves bands of these ranks, and the new ranks, ascending.

    What is above the middle of its band turns round at every second rank, as frequencies fold.
    """
    channel_N, row_N = (a.ravel() for a in np.indices((len(rank_A), ratio)))
    folded_N = np.where(rank_A[channel_N] % 2, ratio - 1 - row_N, row_N)
    rank_N = rank_A[channel_N] * ratio + folded_N
    lowest_A = np.argsort(rank_N, kind="stable")[:most]
    return Bands(channel_N[lowest_A], row_N[lowest_A]), rank_N[lowest_A]


def cosines(size: int) -> np.ndarray:
    """The orthonormal DCT-II, a row a frequency."""
    at_R, of_K = np.arange(size) + 0.5, np.arange(size)
    table_KR = np.sqrt(2.0 / size) * np.cos(np.pi * of_K[:, None] * at_R[None] / size)
    table_KR[0] /= np.sqrt(2.0)
    return table_KR.astype(np.float32)


def _through(own: Any, channels: int, gain: float) -> Any:
    """A convolution whose first channels are those that it is given, at its last tap."""
    at = np.arange(channels)
    quiet_KCD = own["kernel"].at[:, :, :channels].set(0.0)
    return own | {"kernel": quiet_KCD.at[-1, at, at].set(jnp.float32(gain))}


def _passing(stage: Any, channels: int) -> Any:
    """A stage whose residual layers leave the first channels as they are."""
    return {
        name: part
        if not name.startswith("residual")
        else part
        | {
            "shortcut": _through(part["shortcut"], channels, 1.0),
            "widen": part["widen"] | {"kernel": part["widen"]["kernel"].at[:, :, :channels].set(0.0)},
        }
        for name, part in stage.items()
    }
