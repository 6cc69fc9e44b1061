"""A line a job on a terminal, plain lines elsewhere, and what is said at the end."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

import terminal
from terminal import RunLog, closing_words, duration, error_line, last_words, printable
from workflow_copy import OPTIONS, WorkflowCopy

TARGETS = [f"results/small/import/{sample}.h5ad" for sample in ("healthy", "patient")]


class Screen(io.StringIO):
    """Takes what is written; a terminal, or not."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


class Told:
    """A RunLog that writes to a screen, and the events that Snakemake sends in a run."""

    def __init__(self, is_terminal=False, quiet=(), show_failed_logs=False):
        self.screen = Screen(is_terminal)
        formatter = DefaultFormatter(set(quiet), show_failed_logs)
        quietness = DefaultFilter(set(quiet), False, False, False, False)
        self.log = RunLog(ColorizingTextHandler(False, self.screen, formatter, quietness))
        self.log.status = lambda: f"running: {[name for name, _ in self.log.running.values()]}"

    def tell(self, event: LogEvent | None, text: str = "", level=logging.INFO, **extra) -> str:
        """What an event adds to the screen."""
        before = len(self.screen.getvalue())
        record = logging.LogRecord("snakemake.logging", level, "", 0, text, (), None)
        vars(record).update(extra, event=event)
        self.log.handle(record)
        return self.screen.getvalue()[before:]

    def start(self, job: int, rule: str, **wildcards) -> str:
        return self.tell(LogEvent.JOB_INFO, jobid=job, rule_name=rule, wildcards=wildcards)

    def finish(self, job: int) -> str:
        return self.tell(LogEvent.JOB_FINISHED, f"Finished jobid: {job}", job_id=job)

    def fail(self, job: int, rule: str, message=None) -> str:
        details = {"input": [], "output": ["x"], "log": ["a.log"], "shellcmd": None, "aux": {}}
        return self.tell(
            *(LogEvent.JOB_ERROR, f"Error in rule {rule}", logging.ERROR),
            **{"jobid": job, "rule_name": rule, "rule_msg": message, "conda_env": None, **details},
        )


def test_a_job_is_one_line_when_it_is_done(monkeypatch):
    clock = iter([10.0, 12.0, 215.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    told = Told()
    assert told.tell(LogEvent.RUN_INFO, stats={"all": 1, "a": 9, "total": 13}) == "12 jobs to run\n"
    assert told.start(3, "train_vae", fit="seed1") == ""
    assert told.start(4, "plot_qc") == ""
    assert told.finish(3) == "[ 1/12] 3 min 25 s  train_vae seed1\n"


def test_a_terminal_shows_what_runs_and_clears_it_for_the_next_line():
    told = Told(is_terminal=True)
    told.tell(LogEvent.RUN_INFO, stats={"total": 2})
    assert told.start(1, "plot_qc").endswith("\r\033[Krunning: ['plot_qc']\r")
    last = told.finish(1)
    assert last.startswith("\r\033[K") and last.endswith("  plot_qc\033[0m\n")


@pytest.mark.parametrize("variable", ["NO_COLOR", "TERM"])
def test_colours_and_the_line_of_what_runs_can_be_had_without(monkeypatch, variable):
    monkeypatch.setenv(variable, {"NO_COLOR": "1", "TERM": "dumb"}[variable])
    told = Told(is_terminal=True)
    logger = logging.getLogger("snakemake.logging")
    told.log.snakemake.name = "DefaultStreamHandler"
    monkeypatch.setattr(logger, "handlers", [told.log.snakemake])
    flags = ("dryrun", "verbose", "debug_dag", "printshellcmds")
    terminal.follow_run(SimpleNamespace(**dict.fromkeys(flags, False)))
    (told.log,) = logger.handlers
    told.log.status = lambda: "what runs"
    told.start(1, "plot_qc")
    assert told.finish(1).removeprefix("\r\033[K") == "[1/0]        0 s  plot_qc\n"
    assert ("what runs" in told.screen.getvalue()) == (variable == "NO_COLOR")


@pytest.mark.parametrize("flag", ["dryrun", "verbose", "debug_dag", "printshellcmds"])
def test_who_asks_for_more_gets_all_that_snakemake_says(monkeypatch, flag):
    logger, handler = logging.getLogger("snakemake.logging"), logging.StreamHandler()
    handler.name, handler.nocolor = "DefaultStreamHandler", False
    monkeypatch.setattr(logger, "handlers", [handler])
    flags = ("dryrun", "verbose", "debug_dag", "printshellcmds")
    terminal.follow_run(SimpleNamespace(**dict.fromkeys(flags, False) | {flag: True}))
    assert logger.handlers == [handler]


def test_a_failed_job_is_one_line_that_names_its_log_and_the_whole_log_is_named_after_it():
    told = Told()
    assert told.tell(None, "Complete log(s): /x.log") == ""
    told.start(1, "train_vae", fit="seed1")
    assert told.fail(1, "train_vae") == "failed        0 s  train_vae seed1: see a.log\n"
    assert told.tell(None, "Complete log(s): /x.log") == "Complete log(s): /x.log\n"


def test_where_snakemake_knows_more_of_a_failure_it_says_it(tmp_path):
    told = Told()
    assert "SLURM status is: 'CANCELLED'" in told.fail(1, "a", "SLURM status is: 'CANCELLED'.")
    assert "Logfile a.log" in Told(show_failed_logs=True).fail(1, "a")


def test_warnings_and_what_is_not_known_are_shown_and_chatter_is_not():
    told = Told()
    assert told.tell(None, "Select jobs to execute...") == ""
    assert told.tell(LogEvent.JOB_STARTED, "Execute 1 jobs...", jobs=[1]) == ""
    assert told.tell(None, "Trying to restart job 3.") == "Trying to restart job 3.\n"
    assert told.tell(None, "A sentence of a later version") == "A sentence of a later version\n"
    assert told.tell(None, "Careful", logging.WARNING) == "Careful\n"


def test_quiet_is_heeded():
    from snakemake.settings.enums import Quietness

    told = Told(quiet=[Quietness.PROGRESS])
    told.start(1, "a")
    assert told.finish(1) == ""
    assert Told(quiet=[Quietness.ALL]).fail(1, "a") == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("CalledProcessError in file\nCommand 'x' returned non-zero exit status 1.", ""),
        ("CalledProcessError in file\nCommand 'x' returned non-zero exit status 143.", ""),
        ("Command 'x' died with <Signals.SIGKILL: 9>.", "A job was killed (SIGKILL)"),
        ("Command 'x' returned non-zero exit status 137.", "A job was killed (SIGKILL)"),
        ("WorkflowError:\nAt least one job did not complete successfully.", ""),
        (
            'WorkflowError in file "/a/workflow/rules/common.smk", line 7:\nconfig: a: is bad\n'
            'config: b: too\n  File "/a/workflow/rules/common.smk", line 7, in <module>',
            "config: a: is bad\nconfig: b: too",
        ),
        ("MissingRuleException:\nNo rule to produce x", None),
        ('NameError in file "/a/workflow/rules/common.smk", line 7:\nno x', None),
    ],
)
def test_an_error_is_said_once_and_in_the_users_words(error, said):
    found = error_line(error)
    assert found == said or (said and found.startswith(said))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")],
)
def test_times_have_units(seconds, text):
    assert duration(seconds) == text


# ---- a real run


def test_a_run_into_a_file_prints_a_line_a_job_and_no_control_characters(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "here")
    code, output = copy.run("--", *TARGETS)
    assert code == 0, output
    assert not set("\r\033") & set(output)
    _, *lines = output[output.index("2 jobs to run") :].splitlines()
    assert {line.split(" s  ")[1] for line in lines} == {
        *("import_counts healthy", "import_counts patient")
    }
    (whole,) = (copy.folder / ".snakemake" / "log").iterdir()
    assert whole.read_text().count("Finished jobid") == 2
    code, output = copy.run("-n", "-F", "--", *TARGETS)
    assert "reason: " in output and "rule import_counts:" in output


def test_a_fault_in_the_config_is_all_that_is_printed_of_it(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "here")
    copy.write_config(seed="one")
    code, output = copy.run()
    assert code == 1
    assert output.splitlines()[-1].startswith("config: seed: ")
    assert "common.smk" not in output


def test_on_a_terminal_no_line_of_what_runs_is_left(tmp_path):
    copy = WorkflowCopy.make(tmp_path / "here")
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "snakemake", *OPTIONS, "--", *TARGETS]
    streams = {"stdout": inner, "stderr": inner}
    run = subprocess.Popen(command, cwd=copy.folder, env=copy.environment, **streams)
    os.close(inner)
    shown = b""
    while run.poll() is None or shown[-1:] != b"\n":
        try:
            shown += os.read(outer, 65536)
        except OSError:
            break
    os.close(outer)
    assert run.wait() == 0, shown.decode()
    assert b"running: import_counts" in shown
    left = [line.split(b"\033[K")[-1] for line in shown.replace(b"\r\n", b"\n").split(b"\n")]
    assert sum(line.startswith(b"[") for line in left) == 2
    assert not any(b"running" in line for line in left)


# ---- the end


def test_the_end_is_five_lines_and_the_first_warning_is_told(tmp_path):
    run = write_words(tmp_path, warnings=["Few cells; bring more.", "Another."])
    words = closing_words(run, summaries_in(run), "cells", 83)
    assert words.splitlines()[1:] == [
        "9 of 99 query cells do not fit the reference; 8 of them in 1 pattern",
        "  how sure  false discovery rate 0.1, by 137 unseen reference cells",
        "  warnings  2; the first: Few cells; bring more.",
        f"  look at   {run}/report.html, with tables, figures and annotated.h5ad beside it",
        "  it took   1 min 23 s",
    ]


def test_what_is_said_of_several_samples_is_counted_once(tmp_path):
    run = write_words(tmp_path)
    for sample in ("a", "b"):
        summary = {"warnings": [f"sample {sample}: no genes; name them"]}
        (tmp_path / "patterns" / f"{sample}.summary.json").write_text(json.dumps(summary))
    paths = sorted(map(str, tmp_path.rglob("*summary.json")))
    said = closing_words(run, paths, "cells", 3)
    assert "  warnings  1; the first: sample a: no genes; name them" in said


def test_a_ranking_claims_no_error_rate(tmp_path):
    run = write_words(tmp_path, is_ranking=True)
    first, second, third, *_ = closing_words(run, summaries_in(run), "cells", 3).splitlines()[1:]
    assert first == "9 of 99 cells stand out; 8 of them in 1 pattern"
    assert (second, third) == ("  how sure  a ranking, no FDR guarantee", "  warnings  none")


def test_of_bulk_samples_the_outlier_genes_come_first(tmp_path):
    run = write_words(tmp_path)
    verdict, surety, *_ = closing_words(run, summaries_in(run), "samples", 3).splitlines()[1:]
    told = "70 outlier genes in 1 sample; 9 of 99 query samples do not fit the reference"
    assert verdict == told
    assert surety.endswith("by 137 unseen reference samples; for genes 0.05")


def write_words(folder: Path, warnings=(), is_ranking=False) -> str:
    """The summaries that the closing words are read from."""
    anomaly = {"is_ranking": is_ranking, "n_anomalies": 9, "n_query": 99, "alpha": 0.1}
    anomaly |= {"n_calibration": 137, "warnings": []}
    patterns = {"n_patterns": 1, "n_in_pattern": 8, "warnings": list(warnings)}
    genes = {"n_hits": 70, "n_with_outliers": 1, "alpha": 0.05, "warnings": []}
    for stage, summary in (("anomaly", anomaly), ("patterns", patterns), ("genes", genes)):
        (folder / stage).mkdir()
        (folder / stage / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def summaries_in(run: str) -> list[str]:
    return sorted(map(str, Path(run).rglob("summary.json")))


def test_names_in_data_cannot_command_the_terminal(tmp_path):
    hostile = "type \033[2J\033]0;title\a\nB; bring \u202emore"
    assert printable(hostile) == "type  [2J ]0;title  B; bring  more"
    run = write_words(tmp_path, warnings=[hostile])
    assert "\033" not in closing_words(run, summaries_in(run), "cells", 1)
    told = Told()
    told.start(1, "import_counts", sample="\033[2J")
    assert "\033" not in told.finish(1)


def write_log(folder: Path, text: str) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "a.log").write_text(text)


def test_after_a_failure_the_error_line_comes_first_then_what_to_do(tmp_path):
    write_log(tmp_path, "10:00:00 INFO x\n10:00:01 ERROR s.tsv: is \033[2J empty; fill it\n")
    assert last_words(str(tmp_path), 0).splitlines() == [
        *("", "s.tsv: is  [2J empty; fill it"),
        "What is done stays done: mend it, and the same command goes on from here.",
    ]


def test_what_to_do_is_said_once(tmp_path):
    write_log(tmp_path, "10:00:01 ERROR a: is damaged; delete it and run the same command again\n")
    words = last_words(str(tmp_path), 0)
    assert words == "\na: is damaged; delete it and run the same command again"
    assert "damaged" not in last_words(str(tmp_path), 2**40)
