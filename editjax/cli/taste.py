"""`editjax taste`: pages of two mixes, and votes → what is liked, for `editjax mix --taste`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from editjax.cli.options import parse
from editjax.errors import DataError, UsageError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

    from editjax.taste import Taste


@dataclass(frozen=True)
class TasteOptions:
    """Learns from votes what is liked of mixes: levels of bands, width, crest.

    The votes are those in PAGE/votes.json, and those that --votes names; of several listeners too.
    """

    pages: Positional[Annotated[tuple[Path, ...], arg(metavar="PAGE")]]
    """Folders that `editjax compare` made."""
    out: Annotated[Path, arg(aliases=["-o"], metavar="TASTE.json")]
    """The taste, for `editjax mix --taste`."""
    votes: UseAppendAction[tuple[Annotated[Path, arg(metavar="FILE")], ...]] = ()
    """Votes that lie elsewhere, of one of the pages; may be given again."""
    overwrite: bool = False
    """Replace a taste that is there."""


def run(arguments: Sequence[str]) -> int:
    """Learns, and says how well what was left out is predicted."""
    options = parse(TasteOptions, arguments, "editjax taste", spread="pages")
    if not options.pages:
        raise UsageError("name a page that editjax compare made")
    from editjax import taste as tastes

    with Outputs(options.overwrite, options.votes) as outputs:
        new = outputs.add(options.out)
        apart_NK, wins_N, pages_N = _votes(options.pages, options.votes)
        found = tastes.fit(apart_NK, wins_N, pages_N)
        tastes.write(found, new, sorted(set(pages_N)), overwrite=True)
    print(_told(found, options.out))
    return 0


def _votes(pages: Sequence[Path], others: Sequence[Path]) -> tuple["np.ndarray", "np.ndarray", list[str]]:
    """Features of A less B of all votes (N, K), how much of a win for A (N,), and the pages they are of."""
    import numpy as np

    from editjax.listening import CHOICES, VOTES_FILE, read_trials, read_votes

    known: dict[str, list[np.ndarray]] = {}
    for page in pages:
        name, trials = read_trials(page)
        if name in known:
            raise UsageError(f"{page}: is named twice")
        known[name] = trials
    files = [page / VOTES_FILE for page in pages if (page / VOTES_FILE).exists()] + list(others)
    if not files:
        raise DataError(f"{pages[0]}: no votes; save {VOTES_FILE} there, or name it with --votes")
    apart, wins, of = [], [], []
    for file in files:
        name, choices = read_votes(file)
        if name not in known:
            raise DataError(f"{file}: votes on another page than those that are named")
        for trial, choice in choices.items():
            if not 1 <= trial <= len(known[name]):
                raise DataError(f"{file}: trial {trial}, but the page has {len(known[name])}")
            apart.append(known[name][trial - 1])
            wins.append(CHOICES[choice])
            of.append(name)
    if not apart:
        raise DataError(f"{files[0]}: holds no votes; vote on the page, and save them again")
    return np.stack(apart), np.array(wins), of


def _told(taste: "Taste", out: Path) -> str:
    """What was learned, and how sure it is."""
    import math

    from editjax.taste import NAMES

    figures, rows = taste.figures, []
    for prefix, name in (("", "seen"), ("left_out_", "left out"), ("left_out_page_", "page left out")):
        if f"{prefix}log_loss" in figures:
            right = figures.get(f"{prefix}accuracy")
            shown = "   –" if right is None else f"{right:4.0%}"
            rows.append(f"{name:<15}{shown}{figures[f'{prefix}log_loss']:10.3f}")
    weights = " · ".join(f"{name} {w:+.2f}" for name, w in zip(NAMES, taste.weights_K, strict=True))
    return "\n".join(
        [
            f"{figures['votes']:.0f} votes, {figures['ties']:.0f} of them no difference",
            "votes      accuracy  log loss",
            *rows,
            f"{'chance':<15} 50%{math.log(2):10.3f}",
            weights,
            f"taste written: {out}",
        ]
    )
