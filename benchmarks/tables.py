"""`benchmarks/README.md` and its plots from the committed results: python benchmarks/tables.py

A result is `results/BENCH.json`, or `results/BENCH.MACHINE.json` for a second machine; each names its device.
The words above a table are the first paragraph of that benchmark's docstring. A benchmark without an entry in
`PLOTS` gets tables alone.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
README = HERE / "README.md"
INCHES = (7.0, 3.6)
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")  # Okabe and Ito 2008
HEAD = """# Benchmarks

Made by `python benchmarks/tables.py` from `benchmarks/results/*.json` and tested against them: change neither
by hand.

`python benchmarks/NAME.py --out benchmarks/results/NAME.json` runs one and writes its result
(`NAME.MACHINE.json` for a second machine); `--quick` is a smoke test of a minute at most. Each proves first
that its peers compute the same thing. On a CPU one core is pinned and CPU seconds are counted, the cases
taking turns, so that only ratios mean something; `edit` is wall clock on all cores. Peers that are not
installed are left out: `pip install torch==2.13.0` adds PyTorch's. `quality-SET` is `quality.py
--recordings DIR --set SET --model MODEL` (`docs/recordings.csv` says which recordings), `traversal` takes
`--shards SHARDS`. Nothing here has run on a GPU or a TPU yet.
"""


class Plot(NamedTuple):
    """What is drawn of a result: y over x, a line for each `series`; bars named by `series` without an x.

    Of the rows only those that have all of `of`.
    """

    y: str
    series: tuple[str, ...]
    x: str = ""
    of: tuple[tuple[str, str], ...] = ()


PLOTS = {
    "attention": Plot("s", ("case",), "frames", of=(("pass", "forward"),)),
    "codec": Plot("cpu_s", ("case",), "audio_s"),
    "data": Plot("ms_per_example", ("case", "frames")),
    "decode": Plot("µs / pointer", ("model", "minutes"), "draft"),
    "edit": Plot("warm s", ("editor",), "minutes"),
    "encode": Plot("encode s", (), "minutes"),
    "griffin_lim": Plot("cpu_s", ("case",), "audio_s"),
    "mel": Plot("cpu_ms", ("case",), "audio_s"),
    "memory": Plot("forward + backward MB", ("config", "part"), "frames"),
    "pointer_loss": Plot("MB", ("case",), "frames"),
    "train_step": Plot("step_s", ("size", "case", "frames")),
}

OF_A_SET = (
    "kept_iou",
    "boundary_f1_half_second",
    "boundary_f1_3_frames",
    "order_agreement",
    "loop_recall",
    "length_error",
    "style_obeyed",
)
"""Figures that are shown of further held-out sets; their files have them all."""


def main() -> None:
    """Write the README and the plots."""
    (HERE / "plots").mkdir(exist_ok=True)
    for path in result_paths():
        if bench_of(path) in PLOTS:
            draw(read(path), PLOTS[bench_of(path)], plot_path(path))
    README.write_text(readme(), encoding="utf-8")


def result_paths() -> list[Path]:
    return sorted((HERE / "results").glob("*.json"))


def bench_of(path: Path) -> str:
    """The benchmark that a result is of, by its file's name."""
    return path.name.split(".")[0]


def plot_path(path: Path) -> Path:
    return HERE / "plots" / f"{path.stem}.svg"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def readme() -> str:
    """The whole text."""
    parts, last = [HEAD], ""
    for path in result_paths():
        if bench_of(path) != last:
            last = bench_of(path)
            program = HERE / f"{last.partition('-')[0]}.py"  # quality-long is another set of quality.py
            parts.append(f"## {last}\n\n{first_paragraph(program)}\n")
        parts.append("\n".join(section(path)))
    return "\n".join(parts)


def first_paragraph(program: Path) -> str:
    """The first paragraph of a program's docstring, read without running it."""
    docstring = ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def section(path: Path) -> Iterator[str]:
    """Lines of one result: where it ran, the plot, the table, the ratios."""
    result = read(path)
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    yield f"{result['device']}; {versions}.\n"
    if bench_of(path) in PLOTS:
        plot = PLOTS[bench_of(path)]
        yield f"![{plot.y} of {bench_of(path)}](plots/{path.stem}.svg)\n"
    rows = result["rows"]
    if bench_of(path).startswith("quality-"):
        rows = [row for row in rows if row["figure"] in OF_A_SET]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    yield from table(columns, [[row.get(key, "") for key in columns] for row in rows])
    yield ""
    if result["ratios"]:
        yield from table(["ratio", ""], [[name, value] for name, value in result["ratios"].items()])
        yield ""


def table(columns: list[str], rows: list[list[Any]]) -> Iterator[str]:
    for cells in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(shown(cell) for cell in cells) + " |"


def shown(cell: Any) -> str:
    """A cell without the noise of floats: 10.0 is 10, 1e6 is 1,000,000."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell == round(cell) and abs(cell) < 1e15 else f"{cell:.4g}"
    return "" if cell is None else str(cell).replace("|", "\\|")


def draw(result: dict[str, Any], plot: Plot, path: Path) -> None:
    """One SVG of lines with logarithmic axes, or of bars."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "editjax", "svg.fonttype": "none", "font.size": 9})
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if plot.y in row and (not plot.x or plot.x in row)]
    rows = [row for row in rows if all(row[key] == value for key, value in plot.of)]
    assert rows, f"{path.stem}: no row has what is drawn; measure it again"
    names = [", ".join(str(row[key]) for key in plot.series if key in row) for row in rows]
    figure = Figure(INCHES, layout="constrained")
    axes = figure.subplots()
    if plot.x:
        for colour, name in zip(COLOURS * len(names), dict.fromkeys(names), strict=False):
            points = sorted(
                (row[plot.x], row[plot.y]) for row, own in zip(rows, names, strict=True) if own == name
            )
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
        axes.set(xlabel=plot.x, ylabel=plot.y, xscale="symlog", yscale="log")
        if plot.series:
            axes.legend(title=", ".join(plot.series), fontsize=8)
    else:
        axes.barh(names, [row[plot.y] for row in rows], color=COLOURS[0])
        axes.invert_yaxis()
        axes.set(xlabel=plot.y)
    axes.set_title(result["device"], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
