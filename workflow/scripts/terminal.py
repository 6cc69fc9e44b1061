"""What one sees while the pipeline runs, and its last words.

Snakemake prints a block of ten lines for a job and keeps a copy in .snakemake/log. Here its handler
for the terminal is replaced by one that prints a line for a job that is done, with the time it
took, and under it, on a terminal only, what runs now. The Snakefile imports this, so it needs
nothing beyond what Snakemake itself brings.
"""

import json
import logging
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent

# What Snakemake tells of itself. A sentence that another version words otherwise is shown.
CHATTER = (
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Using shell:",
    "Conda environments: ignored",
    "Group jobs: inactive",
    "Select jobs to execute",
    "Shutting down,",
    "Exiting because a job execution failed",
    "Elapsed time:",
)
SILENT = {
    *(LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO, LogEvent.GROUP_INFO, LogEvent.SHELLCMD),
    *(LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.PROGRESS, LogEvent.RULEGRAPH),
}
CLEAR = "\r\033[K"  # the line that the cursor is in
# As Snakemake shows what the checks in common.smk raise.
OWN_ERROR = re.compile(
    r'WorkflowError in file ".*/common\.smk", line \d+:\n(?P<fault>.*?)(\n  File ".*)?', re.DOTALL
)
# How a job ended: by itself, with its reason in its log (job.py); by SIGKILL, with none.
TOLD = re.compile(r"returned non-zero exit status (1|143)\.")
KILLED = re.compile(r"died with <Signals.SIGKILL|returned non-zero exit status 137\.")


class RunLog(logging.Handler):
    """One line a job, in place of ``snakemake``, Snakemake's handler for the terminal.

    What is neither a job nor chatter goes on to that handler, and so do its filters (``--quiet``)
    and its colours.
    """

    def __init__(self, snakemake: logging.StreamHandler):
        super().__init__()
        self.snakemake, self.stream = snakemake, snakemake.stream
        self.is_live = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.running: dict[int, tuple[str, float]] = {}  # job: its name, when it began
        self.done = self.total = 0
        self.has_failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.line_of(record)
            if self.is_live:
                self.stream.write(CLEAR)
            if line is None:
                self.snakemake.handle(record)
            elif line and self.snakemake.filter(record):
                self.stream.write(self.snakemake.decorate(record, line) + "\n")
            if self.is_live and self.running:
                # The cursor goes back, so that whatever else is printed begins at the margin.
                self.stream.write(self.status() + "\r")
            self.stream.flush()
        except Exception:
            self.handleError(record)

    def line_of(self, record: logging.LogRecord) -> str | None:
        """What to print, "" for nothing; None where Snakemake's own words are best."""
        event = getattr(record, "event", None)
        if event == LogEvent.RUN_INFO:
            self.total = record.stats["total"] - record.stats.get("all", 0)
            return f"{counted(self.total, 'job')} to run"
        if event == LogEvent.JOB_INFO and record.rule_name != "all":
            name = " ".join([record.rule_name, *map(str, record.wildcards.values())])
            self.running[record.jobid] = printable(name), time.monotonic()
        if event == LogEvent.JOB_FINISHED:
            return self.finished(record.job_id)
        if event == LogEvent.JOB_ERROR:
            return self.failed(record)
        if event == LogEvent.ERROR:
            self.has_failed = True
            return error_line(record.getMessage())
        if event in SILENT or (event is None and self.is_chatter(record.getMessage())):
            return ""
        return None

    def is_chatter(self, text: str) -> bool:
        """Whether a reader can do without; the path of the whole log is for after a failure."""
        return text.startswith(CHATTER) or (text.startswith("Complete log") and not self.has_failed)

    def finished(self, job: int) -> str:
        """A line for a job that is done."""
        name, began = self.running.pop(job, ("", 0.0))
        if not name:
            return ""
        self.done += 1
        width = len(str(self.total))
        return (
            f"[{self.done:{width}}/{self.total}] {duration(time.monotonic() - began):>10}  {name}"
        )

    def failed(self, record: logging.LogRecord) -> str | None:
        """A line for a job that failed; Snakemake's block where that tells more (on a cluster)."""
        self.has_failed = True
        name, began = self.running.pop(record.jobid, (record.rule_name, time.monotonic()))
        if record.rule_msg or self.snakemake.formatter.show_failed_logs:
            return None
        width = 2 * len(str(self.total)) + 3
        took = duration(time.monotonic() - began)
        return f"{'failed':{width}} {took:>10}  {name}: see {', '.join(record.log)}"

    def status(self) -> str:
        """What runs now, no wider than the terminal."""
        names = ", ".join(name for name, _ in self.running.values())
        columns = os.get_terminal_size(self.stream.fileno()).columns or 80
        return textwrap.shorten(f"running: {names}", max(columns - 1, 20), placeholder=" ...")


def error_line(text: str) -> str | None:
    """What to say of an error: of a fault in config or samples no more than where and what it is.

    Nothing, where a job ended by itself: its log says why, and the last words repeat it.
    """
    if "At least one job did not complete successfully." in text or TOLD.search(text):
        return ""
    if KILLED.search(text):
        return "A job was killed (SIGKILL), as happens where memory runs out."
    ours = OWN_ERROR.fullmatch(text)
    return ours["fault"] if ours else None


def follow_run(settings) -> None:
    """Print a line a job from here on; not for ``-n``, ``-p``, ``--verbose`` or a logger plugin.

    ``settings``: Snakemake's output settings. With NO_COLOR its lines have no colour either.
    """
    logger = logging.getLogger("snakemake.logging")
    for handler in [h for h in logger.handlers if h.name == "DefaultStreamHandler"]:
        handler.nocolor |= bool(os.environ.get("NO_COLOR"))
        if not (
            settings.dryrun or settings.verbose or settings.debug_dag or settings.printshellcmds
        ):
            logger.removeHandler(handler)
            logger.addHandler(RunLog(handler))


def duration(seconds: float) -> str:
    """Seconds as 8 s, 3 min 20 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(n: int, name: str) -> str:
    """A number of things, in the plural but for one."""
    return f"{n} {name}{'s' * (n != 1)}"


def printable(text: str) -> str:
    """One line without control characters: names in data must not command the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def closing_words(run: str, summaries: Iterable[str], observations: str, seconds: float) -> str:
    """Five lines: what was found, how sure, what to worry about, where to look, the time it took.

    ``run``: the folder of the results; ``summaries``: what each stage says of itself.
    """

    def read(path):
        return json.loads(Path(path).read_text(encoding="utf-8"))

    found = read(f"{run}/anomaly/summary.json")
    verdict, surety = f"{found['n_anomalies']} of {found['n_query']}", "a ranking, no FDR guarantee"
    if found["is_ranking"]:
        verdict += f" {observations} stand out"
    else:
        verdict += f" query {observations} do not fit the reference"
        surety = f"false discovery rate {found['alpha']:g}, by {found['n_calibration']} unseen "
        surety += f"reference {observations}"
    if observations == "samples":
        genes = read(f"{run}/genes/summary.json")
        outliers = counted(genes["n_hits"], "outlier gene")
        verdict = f"{outliers} in {counted(genes['n_with_outliers'], 'sample')}; {verdict}"
        surety += f"; for genes {genes['alpha']:g}"
    else:
        grouped = read(f"{run}/patterns/summary.json")
        if grouped["n_patterns"]:
            patterns = counted(grouped["n_patterns"], "pattern")
            verdict += f"; {grouped['n_in_pattern']} of them in {patterns}"
    said = {}  # by what is said of any sample
    for path in map(Path, summaries):
        sample = path.name.removesuffix(".summary.json")
        for line in read(path)["warnings"]:
            said.setdefault(line.removeprefix(f"sample {sample}: "), line)
    warnings = list(said.values())
    told = f"{len(warnings)}; the first: {warnings[0]}" if warnings else "none"
    lines = [
        verdict,
        f"  how sure  {surety}",
        f"  warnings  {told}",
        f"  look at   {run}/report.html, with tables, figures and annotated.h5ad beside it",
        f"  it took   {duration(seconds)}",
    ]
    return "\n".join(["", *map(wrapped, lines)])


def wrapped(line: str) -> str:
    """A line broken between words where standard output is a terminal."""
    if not sys.stdout.isatty():
        return printable(line)
    width = max(shutil.get_terminal_size().columns, 40)
    return textwrap.fill(printable(line), width, subsequent_indent=" " * 12, break_on_hyphens=False)


def last_words(run: str, since: float) -> str:
    """The error lines of each job that failed after ``since`` (s), and what to do."""
    lines = []
    for path in sorted(Path(run, "logs").rglob("*.log")):
        text = path.read_text(encoding="utf-8") if path.stat().st_mtime >= since else ""
        errors = [line.split(" ERROR ", 1)[1] for line in text.splitlines() if " ERROR " in line]
        if "\nTraceback " in text:
            errors = [f"{path}: {errors[-1]}; it is a fault of anomics, please report this file"]
        lines += errors
    if not any("the same command" in line for line in lines):
        lines.append("What is done stays done: mend it, and the same command goes on from here.")
    return "\n".join(["", *map(printable, lines)])
