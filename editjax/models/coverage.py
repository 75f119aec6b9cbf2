"""What has been played: shares of bars, which the bar logits and the end of an edit read."""

import jax
import jax.numpy as jnp


def played_before(pointers_BN, jump_BN, n_jumps: int, n_bars: int, frames_per_bar: int):
    """Frames played of every bar before each of the first `n_jumps` jumps, over the bar's, (B, J, V)."""
    nothing_JV = jnp.zeros((n_jumps, n_bars))

    def of_one(pointers_N, jump_N):
        stretch_N = jnp.cumsum(jump_N, dtype=jnp.int32)
        place = stretch_N, jnp.maximum(pointers_N, 0) // frames_per_bar
        return nothing_JV.at[place].add((pointers_N >= 0).astype(jnp.float32), mode="drop")

    counts_BJV = jax.vmap(of_one)(pointers_BN, jump_BN)  # as in losses._first_played
    return jnp.cumsum(counts_BJV, axis=1) / float(frames_per_bar)


def was_played(frame_BJ, played_BJV, n_frames_B, frames_per_bar: int):
    """Whether more than half of the bar's length from a frame on, or of what is left, may have been played.

    `played_BJV` are shares of bars (`played_before`); which part of a bar it was is not known, so the answer
    is of the most it can have been. (B, J) bool.
    """
    bar_BJ = frame_BJ // frames_per_bar
    padded_BJV = jnp.pad(played_BJV, ((0, 0), (0, 0), (0, 1)))  # nothing follows the last bar
    here_BJ, next_BJ = (
        jnp.take_along_axis(padded_BJV, bar[..., None], axis=2)[..., 0] for bar in (bar_BJ, bar_BJ + 1)
    )
    return _mostly_played(frame_BJ, here_BJ, next_BJ, n_frames_B, frames_per_bar)


def left_out(sure_start_BV, played_BV, n_frames_B, frames_per_bar: int):
    """Bars in which a stretch surely starts (`Hints.sure_start_BV`) that was not played, (B, V) bool."""
    next_BV = jnp.pad(played_BV[:, 1:], ((0, 0), (0, 1)))
    was_BV = _mostly_played(sure_start_BV, played_BV, next_BV, n_frames_B, frames_per_bar)
    return (sure_start_BV >= 0) & ~was_BV


def _mostly_played(frame_BJ, here_BJ, next_BJ, n_frames_B, frames_per_bar: int):
    """As `was_played`, from the shares of the bar that a frame lies in and of the next."""
    offset_BJ = (frame_BJ % frames_per_bar) / frames_per_bar
    most_BJ = jnp.minimum(here_BJ, 1.0 - offset_BJ) + jnp.minimum(next_BJ, offset_BJ)
    left_BJ = jnp.minimum((n_frames_B[:, None] - frame_BJ) / frames_per_bar, 1.0)
    return most_BJ > 0.5 * left_BJ
