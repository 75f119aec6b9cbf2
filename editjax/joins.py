"""Where joins lie: each is moved by a few milliseconds to where the two pieces run in phase.

Comes in: an edit list and its recording. Goes out: the edit list with `start` and `stop` at inner joins
moved, the nominal fields untouched, and a note of what was moved in `editor["joins"]`.
Method: the normalised cross-correlation of the outgoing and the incoming piece around the join, as in WSOLA
(Verhelst and Roelands, ICASSP 1993).
"""

from typing import NamedTuple

import numpy as np

from editjax.audio import Reader
from editjax.crossfade import RenderSettings
from editjax.edit_list import EditList, Segment
from editjax.errors import DataError
from editjax.formats import to_float

DRIFT_WEIGHT = 0.02
"""The correlation a join gives up to keep the edit's length, per `snap_ms` that the length is off."""


LONGEST_FADE_S = 120.0
"""Fades are held in memory; a longer one is refused."""


class _Search(NamedTuple):
    """How far a join may move and how much sound around it is compared, in samples."""

    reach: int
    window: int


class _Move(NamedTuple):
    """How far the outgoing piece's stop and the incoming piece's start move, in samples."""

    stop: int
    start: int


def place_joins(edit_list: EditList, reader: Reader, settings: RenderSettings) -> EditList:
    """Moves each inner join by at most `snap_ms` on either side to the best-matching phase.

    Contiguous segments and joins with fades of their own stay. The edit's length becomes Σ(stop − start) of
    the moved segments; `editor["joins"]` reports the number of joins moved, the largest move and the change
    of length, in samples. No segment becomes empty and no cut closes. Raises DataError when the edit list
    does not fit the recording.
    """
    check_fits(edit_list, reader)
    reach, window = (
        round(ms * reader.info.sample_rate_hz / 1000) for ms in (settings.snap_ms, settings.crossfade_ms)
    )
    search = _Search(reach, max(window, 1))
    segments, lengthened, moves = list(edit_list.segments), 0, []
    for index in range(len(segments) - 1 if search.reach else 0):
        before, after = segments[index : index + 2]
        if before.stop == after.start or before.fade_out or after.fade_in:
            continue
        lengths = tuple(s.stop - s.start for s in edit_list.segments[index : index + 2])
        move = _best_move(before, after, lengths, reader, search, lengthened)
        segments[index : index + 2] = (
            before._replace(stop=before.stop + move.stop), after._replace(start=after.start + move.start)
        )  # fmt: skip
        lengthened += move.stop - move.start
        moves.append(max(abs(move.stop), abs(move.start)))
    report = {
        "moved": sum(move > 0 for move in moves),
        "largest_move_samples": max(moves, default=0),
        "length_change_samples": lengthened,
    }
    return edit_list._replace(segments=tuple(segments), editor={**edit_list.editor, "joins": report})


def check_fits(edit_list: EditList, reader: Reader) -> None:
    """Raises DataError when an edit list was made for another recording or plays what is not there."""
    source, info = edit_list.source, reader.info
    made_for = (source.frames, source.sample_rate, source.channels)
    if made_for != (reader.frames, info.sample_rate_hz, info.channels):
        raise DataError(
            f"{info.path}: holds {reader.frames} samples at {info.sample_rate_hz} Hz in {info.channels} "
            f"channel(s), but the edit list was made for {made_for[0]} at {made_for[1]} Hz in {made_for[2]}; "
            "give the recording it was made for"
        )
    for number, segment in enumerate(edit_list.segments):
        if not 0 <= segment.start < segment.stop <= reader.frames:
            raise DataError(
                f"{info.path}: segment {number} of the edit list plays samples {segment.start} to "
                f"{segment.stop} of {reader.frames}; correct the edit list"
            )
        if max(segment.fade_in, segment.fade_out) > LONGEST_FADE_S * info.sample_rate_hz:
            raise DataError(
                f"{info.path}: segment {number} of the edit list fades for more than {LONGEST_FADE_S:.0f} s; "
                "shorten the fade"
            )


def _best_move(
    before: Segment,
    after: Segment,
    lengths: tuple[int, ...],
    reader: Reader,
    search: _Search,
    lengthened: int,
) -> _Move:
    """The move with the best correlation, less a little for leaving the edit longer or shorter."""
    reach = search.reach
    lags, moves = _possible_moves(before, after, lengths, reader.frames, reach)
    match_L = _match_by_lag(before.stop, after.start, reader, search)[lags + 2 * reach]
    cost_L = DRIFT_WEIGHT * np.abs(lengthened - lags) / reach
    chosen = int(np.argmax(match_L - cost_L))
    return moves[chosen]


def _possible_moves(
    before: Segment, after: Segment, lengths: tuple[int, ...], frames: int, reach: int
) -> tuple[np.ndarray, list[_Move]]:
    """The lags (start's move − stop's move) that can be had, and for each the move shared most evenly.

    Either end may give up less than half of its segment, so that no segment becomes empty.
    """
    stop_low, stop_high = -min(reach, (lengths[0] - 1) // 2), min(reach, frames - before.stop)
    start_low, start_high = -min(reach, after.start), min(reach, (lengths[1] - 1) // 2)
    gap = after.start - before.stop
    lags, moves = [], []
    for lag in range(start_low - stop_high, start_high - stop_low + 1):
        if (gap + lag) * gap <= 0:  # the cut would close, or a step back become one forward
            continue
        low, high = max(start_low, stop_low + lag), min(start_high, stop_high + lag)
        start = min(max((lag + 1) // 2, low), high)
        lags.append(lag)
        moves.append(_Move(start - lag, start))
    return np.array(lags, int), moves


def _match_by_lag(stop: int, start: int, reader: Reader, search: _Search) -> np.ndarray:
    """Normalised correlation around the join, (4 reach + 1,), for lags from −2 reach to 2 reach."""
    window, span = search.window, 2 * search.reach
    out_SC = _around(reader, stop - window, stop + window)
    in_SC = _around(reader, start - window - span, start + window + span)
    n = 1 << (len(in_SC) - 1).bit_length()
    spectrum_FC = np.fft.rfft(in_SC, n, axis=0) * np.fft.rfft(out_SC, n, axis=0).conj()
    products_L = np.fft.irfft(spectrum_FC, n, axis=0)[: 2 * span + 1].sum(axis=1)
    sums_S = np.concatenate([[0.0], np.cumsum((in_SC**2).sum(axis=1))])
    energy_L = sums_S[2 * window :] - sums_S[: -2 * window]
    power_L = energy_L * (out_SC**2).sum()
    silent_L = power_L <= 1e-18 * max(sums_S[-1] ** 2, 1e-30)
    return np.where(silent_L, 0.0, products_L / np.sqrt(np.where(silent_L, 1.0, power_L)))


def _around(reader: Reader, start: int, stop: int) -> np.ndarray:
    """Source samples as float64 (S, C) without their mean; silence beyond the recording's ends."""
    first, last = max(start, 0), min(stop, reader.frames)
    samples_SC = to_float(reader.read(first, last), np.float64)
    return np.pad(samples_SC - samples_SC.mean(axis=0), ((first - start, stop - last), (0, 0)))
