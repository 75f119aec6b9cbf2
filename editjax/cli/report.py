"""What an edit did, for people (minutes and seconds) and for programs (one JSON object a line)."""

import json
import sys
from pathlib import Path
from typing import Any

from editjax.edits import EditList, Summary, summary
from editjax.operations import Operation, operations, operations_tree

MAX_ROWS = 40
DOUBT = "the network found no end to this edit: such a recording is unlike what it was trained on"
OPS_HEADING = (
    f"  {'at s':>10}  {'operation':<10} {'from s':>10} {'to s':>10}"
    f"  {'at':>10} {'from':>10} {'to':>10}  in samples"
)
NAMES = {"COPY": "keep", "REORDER": "move", "LOOP": "loop", "CUT": "cut"}


def clock(seconds: float) -> str:
    """Seconds as `0:07.3` or `1:02:03.4`, with a minus sign where negative."""
    tenths = round(abs(seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    sign = "−" if seconds < 0 and tenths else ""
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{sign}{head}:{rest // 10:02d}.{rest % 10}"


def for_people(edit_list: EditList, source: Path, output: Path | None, as_ops: bool = False) -> str:
    """A heading, the figures, and a row for each span that was kept, moved, looped or cut.

    With `as_ops` instead a table of all operations, their times in seconds and in samples.
    """
    figures = summary(edit_list)
    if as_ops:
        rows = [OPS_HEADING, *(_operation_row(step, edit_list) for step in operations(edit_list))]
    else:
        rows = [_row(step, edit_list) for step in operations(edit_list) if step.kind in NAMES]
        hidden = len(rows) - MAX_ROWS
        if hidden > 0:
            rows[MAX_ROWS:] = [f"  … and {hidden} more; the edit list has them all"]
    heading = f"{source} → {output}" if output else f"{source} (dry run, nothing written)"
    if edit_list.source.tracks:
        heading += f", {len(edit_list.source.tracks)} tracks"
    doubt = [] if edit_list.editor.get("stopped", True) else [DOUBT]
    return "\n".join([heading, *(f"  {line}" for line in [*_figures(figures), *doubt]), *rows])


def for_programs(
    edit_list: EditList,
    source: Path,
    files: dict[str, Any],
    timings_s: dict[str, float],
    as_ops: bool = False,
) -> str:
    """The same as one line of JSON; `files` are the outputs, absent on a dry run.

    With `as_ops` it holds the operations in place of the segments, and `operations.read_edit` reads it.
    """
    figures = summary(edit_list)
    difference_s = figures.output_s - figures.input_s
    segments = {"segments": [segment._asdict() for segment in edit_list.segments], "editor": edit_list.editor}
    tree = {
        "input": str(source),
        **files,
        **figures._asdict(),
        "difference_s": difference_s,
        "difference_percent": 100 * difference_s / figures.input_s,
        **(operations_tree(edit_list) if as_ops else segments),
        "timings_s": {stage: round(seconds, 4) for stage, seconds in timings_s.items()},
    }
    return json.dumps(tree, ensure_ascii=False)


def say(text: str) -> None:
    """Prints at once, so that a batch can be followed; characters a terminal cannot show are replaced."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _figures(figures: Summary) -> list[str]:
    difference_s = figures.output_s - figures.input_s
    percent = f"{100 * difference_s / figures.input_s:+.1f}".replace("-", "−")
    change = clock(difference_s) if difference_s < 0 else f"+{clock(difference_s)}"
    kept = f"kept {clock(figures.kept_s)}, cut {clock(figures.cut_s)}, looped {clock(figures.looped_s)}"
    return [
        f"{clock(figures.input_s)} → {clock(figures.output_s)} ({change}, {percent} %): {kept}",
        _spread(
            "clip", figures.clips, figures.smallest_clip_s, figures.largest_clip_s, figures.median_clip_s
        ),
        _spread("cut", figures.cuts, figures.smallest_cut_s, figures.largest_cut_s, figures.median_cut_s),
    ]


def _spread(name: str, count: int, smallest_s: float, largest_s: float, median_s: float) -> str:
    if count < 2:
        return f"{count} {name}" + (f" of {clock(largest_s)}" if count else "s")
    return f"{count} {name}s of {clock(smallest_s)} to {clock(largest_s)}, median {clock(median_s)}"


def _operation_row(step: Operation, edit_list: EditList) -> str:
    rate = edit_list.source.sample_rate
    at, start, stop = (f"{samples / rate:10.3f}" for samples in (step.at, step.start, step.stop))
    fades = f"fades {step.fade_out}, {step.fade_in}" if step.kind == "TRANSITION" else ""
    gain = f"gain {step.gain_db:+g} dB" if step.gain_db else ""
    why = "  ".join(text for text in (fades, gain, _said(step.score, step.reason)) if text)
    row = f"  {at}  {step.kind:<10} {start} {stop}  {step.at:>10} {step.start:>10} {step.stop:>10}  {why}"
    return row.rstrip()


def _row(operation: Operation, edit_list: EditList) -> str:
    rate = edit_list.source.sample_rate
    start_s, stop_s = operation.start / rate, operation.stop / rate
    name = NAMES[operation.kind]
    row = f"  {name:<4} {clock(start_s):>9} – {clock(stop_s):>9}  {clock(stop_s - start_s):>9}"
    return f"{row}  {_said(operation.score, operation.reason)}".rstrip()


def _said(score: float | None, reason: str) -> str:
    return "  ".join(text for text in ("" if score is None else f"score {score:.2f}", reason) if text)
