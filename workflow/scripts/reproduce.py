"""Run a recorded run again in a new folder and compare every result, byte for byte.

    python workflow/scripts/reproduce.py results/my_run [--out FOLDER] [options of snakemake]

Ends with exit code 0 if all results are the same, 1 if not. ``make reproduce`` calls this.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

from checksums import checksum
from provenance import git_state, package_versions

SCRIPTS = Path(__file__).resolve().parent
SNAKEFILE = SCRIPTS.parents[1] / "Snakefile"
# The pipeline makes these itself, so the new run does too.
EXAMPLES = "results/example_input/"


class CannotReproduceError(ValueError):
    """Lines, each: where: what is wrong; what to do."""


def read_record(run: Path) -> tuple[dict, Path]:
    """The record of a results folder, or the ``run.json`` itself; the folder it was run in."""
    path = run if run.is_file() else run / "run.json"
    if not path.is_file():
        raise CannotReproduceError(f"{path}: there is no such file; give a finished results folder")
    record = json.loads(path.read_text(encoding="utf-8"))
    if "results" not in record:
        raise CannotReproduceError(
            f"{path}: names no results, as those of older versions; run the workflow once more"
        )
    # Links are left as they are: results/ may be one to another disk.
    return record, Path(os.path.abspath(path)).parents[2]


def given_inputs(record: dict) -> list[str]:
    """The files that a user brings. What comes by a URL shows in the results of its import."""
    return [p for p in record["inputs"] if not p.startswith(EXAMPLES) and "://" not in p]


def check_inputs(record: dict, made_in: Path) -> None:
    """Every input must be as it was. A relative path counts from the folder of the run."""
    faults = []
    for path in given_inputs(record):
        if not (made_in / path).exists():
            faults.append(f"{path}: is not there, from {made_in}; bring it back")
        elif checksum(made_in / path) != record["inputs"][path]:
            faults.append(f"{path}: has changed since the run; bring the former one back")
    if faults:
        raise CannotReproduceError("\n".join(faults))


def differences(record: dict) -> list[str]:
    """What is not as it was, of all that may change results and that a user may change."""
    lines = []
    now = {"python": platform.python_version(), **package_versions(record["packages"])}
    for name, then in {"python": record["python"], **record["packages"]}.items():
        if now[name] != then:
            lines.append(f"{name}: was {then}, is {now[name]}")
    here, there = git_state(str(SCRIPTS)), record["git"]
    commits = [state["commit"] if state else "unknown" for state in (there, here)]
    if commits[0] != commits[1]:
        lines.append(f"git commit: was {commits[0]}, is {commits[1]}")
    for state, had in ((there, "had"), (here, "has")):
        if state and state["is_dirty"]:
            lines.append(f"git: the workflow {had} changes that no commit holds")
    return lines


def relative_paths(record: dict) -> list[str]:
    """Inputs and sample table that are given from the folder of the run."""
    paths = (*given_inputs(record), record["config"]["samples"])
    return [path for path in paths if not os.path.isabs(path)]


def new_folder(record: dict, made_in: Path, out: Path) -> Path:
    """Where under ``out`` to run: as deep as paths lead up (``../data``), to be found there too."""
    paths = [Path(os.path.normpath(path)) for path in relative_paths(record)]
    ups = max((path.parts.count("..") for path in paths), default=0)
    folder = out.joinpath(*made_in.parts[len(made_in.parts) - ups :])
    if out.exists() and any(out.iterdir()) and not _was_stopped(record, folder):
        raise CannotReproduceError(f"{out}: is not empty; remove it or give another folder")
    return folder


def _was_stopped(record: dict, folder: Path) -> bool:
    """Whether the folder holds this very reproduction, without its end."""
    config = folder / "config.json"
    if not config.is_file() or json.loads(config.read_text("utf-8")) != record["config"]:
        return False
    return not _results(record, folder).joinpath("run.json").exists()


def _results(record: dict, folder: Path) -> Path:
    return folder / "results" / record["config"]["run"]


def lay_out(record: dict, made_in: Path, folder: Path) -> None:
    """Write config and sample table to the new folder, and link the inputs.

    Results name their inputs by the path in the sample table, so each must lie at the same path
    from the new folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record["config"]), encoding="utf-8")
    table = record["config"]["samples"]
    if os.path.isabs(table):
        _check_table(record, Path(table))
    else:
        _write_table(record["samples"].values(), _place(folder, table))
    for path in sorted({*relative_paths(record)} - {table}):
        link = _place(folder, path)
        if not link.exists():
            link.symlink_to((made_in / path).resolve())


def _place(folder: Path, path: str) -> Path:
    """The path from the folder, with a parent to put something there."""
    place = Path(os.path.normpath(folder / path))
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _write_table(rows: Iterable[dict], path: Path) -> None:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, rows[0], delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _check_table(record: dict, path: Path) -> None:
    """A sample table outside of the folder stays where it is, for the report names it."""
    rows = []
    if path.is_file():
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.reader(stream, delimiter="\t")
            header, *lines = [[cell.strip() for cell in line] for line in table if any(line)]
        rows = [dict(zip_longest(header, line, fillvalue="")) for line in lines]
    if rows != list(record["samples"].values()):
        raise CannotReproduceError(f"{path}: has changed since the run; bring the former one back")


def run_again(record: dict, folder: Path, options: list[str]) -> dict:
    """The record of the new run in ``folder``."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--directory", str(folder), "--configfile", str(folder / "config.json")]
    # The number of threads changes the last digits of a training.
    command += ["--set-threads", f"train_vae={record['threads']}", *options]
    if subprocess.run(command).returncode:
        raise CannotReproduceError(f"{folder}: the run did not end well; see above")
    return json.loads(_results(record, folder).joinpath("run.json").read_text(encoding="utf-8"))


def compare(then: dict[str, str], now: dict[str, str]) -> list[tuple[str, str]]:
    """(verdict, file) for every file of two sets of checksums, by name."""

    def verdict(file: str) -> str:
        if file not in now:
            return "missing"
        if file not in then:
            return "new"
        return "identical" if then[file] == now[file] else "differs"

    return [(verdict(file), file) for file in sorted(then | now)]


def reproduce(run: Path, out: Path | None, options: list[str]) -> int:
    """Exit code: 0 if all is as it was."""
    record, made_in = read_record(run)
    out = out or made_in / "reproduced" / record["config"]["run"]
    folder = new_folder(record, made_in, Path(os.path.abspath(out)))
    check_inputs(record, made_in)
    for line in differences(record):
        print(f"warning: {line}", file=sys.stderr)
    lay_out(record, made_in, folder)
    again = run_again(record, folder, options)
    for name in ("device", "precision", "threads", "matrix_kernels"):
        if again[name] != record[name]:
            print(f"warning: {name}: was {record[name]}, is {again[name]}", file=sys.stderr)
    verdicts = compare(record["inputs"], again["inputs"]) + compare(
        record["results"], again["results"]
    )
    n_same = sum(verdict == "identical" for verdict, _ in verdicts)
    print(f"\nidentical  {n_same} of {len(verdicts)} inputs and results")
    for verdict, file in verdicts:
        if verdict != "identical":
            print(f"{verdict:9}  {file}")
    return int(n_same < len(verdicts))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a results folder, or the run.json in it")
    parser.add_argument("--out", type=Path, help="new folder; reproduced/<run> if not given")
    given, options = parser.parse_known_args(arguments)
    try:
        return reproduce(given.run, given.out, options or ["--cores", "2"])
    except CannotReproduceError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
