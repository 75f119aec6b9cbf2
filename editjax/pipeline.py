"""Jobs on Apache Beam: the same function as in `workers.results`, by as many workers as its runner has.

Comes in: a function and its jobs, the name of a runner, Beam's own options. Nothing comes back: a worker may
be on another machine, so the function leaves its result where the caller finds it, and may be called again
for a job it has done.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from editjax.errors import EditjaxError, TryAgainError, UsageError, first_line

RUNNERS = {
    "direct": "FnApiRunner",  # what Beam's DirectRunner ends with, once it has failed to download Prism
    "flink": "FlinkRunner",
    "dataflow": "DataflowRunner",
    "spark": "SparkRunner",
}
"""Beam's name of each runner."""

Job = TypeVar("Job")


def start(runner: str, words: Sequence[str]) -> Any:
    """A pipeline without anything in it, for a runner and a command line of Beam's options.

    Raises UsageError without Beam or what the runner needs, and for a bad or unknown option.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UsageError("--runner needs Apache Beam: pip install 'editjax[beam]'") from None

    def refuse_unknown(parser: Any) -> None:  # Beam would go on without them
        if unknown := parser.parse_known_args(words)[1]:
            raise UsageError(f"Beam's options after --: {unknown[0].partition('=')[0]} is none of them")

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(words))
            options.get_all_options(add_extra_args_fn=refuse_unknown)  # there, its whole parser is at hand
    except SystemExit:
        reason = said.getvalue().strip().rpartition("\n")[2].partition("error: ")[2]
        raise UsageError(f"Beam's options after --: {reason}") from None
    try:
        return beam.Pipeline(runner=RUNNERS[runner], options=options)
    except (ImportError, ValueError) as error:  # a package of the runner's, an option that it must have
        raise UsageError(f"--runner {runner}: {first_line(error)}") from None


def run_each(function: Callable[[Job], Any], jobs: Sequence[Job], pipeline: Any, advice: str) -> None:
    """Call the function for every job, each at least once, and return when all are done.

    `pipeline` comes from `start`. Raises TryAgainError with `advice` when Beam gives up.
    """
    import apache_beam as beam

    if not jobs:
        return
    try:
        with pipeline:
            _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | "Prepare" >> beam.Map(function)
    except EditjaxError:
        raise
    except Exception as error:  # each runner has its own, some with a traceback for a message
        reason = (str(error).strip() or type(error).__name__).rpartition("\n")[2]
        raise TryAgainError(f"the pipeline on Beam failed ({reason}); {advice}") from error
