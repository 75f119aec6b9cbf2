"""`editjax evaluate`: models and pairs with known edits → their scores, beside editors that need no model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from editjax.cli.options import named, parse
from editjax.errors import UsageError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    from editjax.evaluate import Evaluation
    from editjax.scoreboard import Board

MAX_ROWS = 20


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores models' edits against the true ones, and prints the table.

    Pairs are NAME_raw.* with NAME.edits.json, or with NAME_edit.* (then the true edit is found by alignment).
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A name that `editjax models` lists, or the folder of an exported model: of any family that edits."""
    data: Annotated[Path, arg(metavar="PAIRS")]
    """Folder or CSV of pairs the model was not trained on, such as `editjax simulate` makes."""
    out: Annotated[Path | None, named("FILE.json", "-o")] = None
    """Write every edit's figures, their means with 95 % intervals, and what the pairs are like."""
    plot: Annotated[Path | None, named("FILE.png")] = None
    """Picture of the scores."""
    beside: Annotated[str, named("MODEL,MODEL")] = ""
    """Score these models too, such as scorer,labels."""
    styles: Annotated[str, named("STYLE,STYLE")] = ""
    """Score edits of these styles only."""
    limit: Annotated[int, named("N")] = 0
    """Score the first N recordings only."""
    target_lengths: Annotated[str, named("TIMES,TIMES")] = ""
    """Also ask for these multiples of each edit's natural length, such as 0.5,0.75,1.25,1.5."""
    overwrite: bool = False
    """Replace outputs that exist."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print errors only."""


def run(arguments: Sequence[str]) -> int:
    """Evaluates; a model that cannot be read and outputs that cannot be written are refused first."""
    options = parse(EvaluateOptions, arguments, "editjax evaluate")
    from editjax.beats import BeatSettings
    from editjax.contest import contestant, editors_of
    from editjax.evaluate import EvaluateSettings, evaluate
    from editjax.picture import check_suffix
    from editjax.scoreboard import boards

    if options.plot:
        check_suffix(options.plot)
    lengths = _lengths(options.target_lengths)
    first = contestant(options.model, lengths)
    if lengths and first.examine is None:
        raise UsageError(f"{options.model}: only pointer networks are asked for lengths; no --target-lengths")
    editors = editors_of([first, *map(contestant, _words(options.beside))])
    settings = EvaluateSettings(tuple(_words(options.styles)), options.limit, BeatSettings(mel=first.mel))
    with Outputs(options.overwrite, []) as outputs:
        paths = {path: outputs.add(path) for path in (options.out, options.plot) if path}
        evaluation = evaluate(
            options.data,
            editors,
            settings,
            first.examine,
            quiet=options.quiet,
        )
        by_style = boards(evaluation.rows)
        if options.out:
            paths[options.out].write_text(_report(options, evaluation, by_style), encoding="utf-8")
        if options.plot:
            _draw(paths[options.plot], options, by_style)
    if not options.quiet:
        print(_told(evaluation, by_style), flush=True)
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _lengths(text: str) -> list[float]:
    """Multiples of a length. Raises UsageError for what is none."""
    try:
        lengths = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        lengths = [0.0]
    if not all(0 < times < 100 for times in lengths):
        raise UsageError(f"--target-lengths {text}: give numbers above 0, such as 0.5,1.5")
    return lengths


def _report(options: EvaluateOptions, evaluation: "Evaluation", by_style: dict[str, "Board"]) -> str:
    from editjax.bundle import find_bundle, read_config
    from editjax.evaluate import audit
    from editjax.scoreboard import for_programs

    models = [options.model, *_words(options.beside)]
    sha256 = {model: read_config(find_bundle(model))["sha256"] for model in models}
    tree = {
        "model": options.model,
        "model_sha256": sha256.pop(options.model),
        "beside_sha256": sha256,
        "data": str(options.data),
        "audit": audit(evaluation.facts),
        **for_programs(evaluation.rows, by_style),
        "skipped": list(evaluation.skipped),
    }
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _draw(path: Path, options: EvaluateOptions, by_style: dict[str, "Board"]) -> None:
    from editjax.picture import draw_scores
    from editjax.scoreboard import for_picture

    style, editors = next(iter(by_style.items()))
    draw_scores(path, for_picture(editors), f"{Path(options.model).name}, style {style}", overwrite=True)


def _told(evaluation: "Evaluation", by_style: dict[str, "Board"]) -> str:
    from editjax.evaluate import audit
    from editjax.scoreboard import for_people

    facts = audit(evaluation.facts)
    lines = [
        f"{facts['edits']} edits of {facts['recordings']} recordings, {facts['seconds'] / 60:.1f} minutes; "
        f"the median edit keeps {facts['median_keep_ratio']:.0%} of its recording"
    ]
    if facts["spoiled_share_of_cut"] is not None:
        lines.append(f"{facts['spoiled_share_of_cut']:.0%} of what is to be cut are spoiled takes")
    skipped = evaluation.skipped
    lines += [f"skipped {row['pair']}: {row['reason']}" for row in skipped[:MAX_ROWS]]
    if len(skipped) > MAX_ROWS:
        lines.append(f"… and {len(skipped) - MAX_ROWS} more skipped")
    return "\n".join([*lines, for_people(by_style)])
