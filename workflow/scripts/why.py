"""Why each job of a run would run now, in words: ``make why``, or this script with the options of
``snakemake`` (--configfile, --config, --sdm, targets).

A dry run of Snakemake (``snakemake -n``) tells one reason of a job, none of its own of a job that
comes after another, and parameters as text without their names. Here its graph is asked for all.
"""

import ast
import json
import logging
import sys
import textwrap
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

from snakemake.api import SnakemakeApi
from snakemake.cli import parse_args, parse_config
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    DeploymentSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

ABSENT = object()
NOT_RUN = "not made yet"
UNKNOWN = (
    "results without a record in .snakemake/metadata (not copied along, or of another version of\n"
    "Snakemake), of which a changed setting, script or set of files is not seen"
)


# ---- what changed between two values of a parameter


def paired(before: list, after: dict) -> Iterator[tuple[str, object, object]]:
    """Name, old and new value of each changed parameter. Snakemake records values without names:
    dictionaries are paired by their keys, other values by their type."""

    def likeness(old, new) -> int:
        if isinstance(old, dict) and isinstance(new, dict):
            return 2 + len(old.keys() & new.keys())
        return int(type(old) is type(new))

    waiting, names = dict(enumerate(before)), dict(after)
    pairs = product(waiting, names)
    for i, name in sorted(pairs, key=lambda pair: -likeness(before[pair[0]], after[pair[1]])):
        if i in waiting and name in names:
            yield name, waiting.pop(i), names.pop(name)
    yield from ((name, ABSENT, value) for name, value in names.items())
    yield from (("", value, ABSENT) for value in waiting.values())


def differences(before, after, path: tuple = ()) -> Iterator[tuple[tuple, object, object]]:
    """The keys that lead to each value that differs, in it before and after."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            inside = before.get(key, ABSENT), after.get(key, ABSENT)
            yield from differences(*inside, (*path, key))
    elif before is ABSENT or after is ABSENT or before != after:
        yield path, before, after


def sections(config: dict, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """The config and each section in it, with the keys that lead there."""
    yield path, config
    for key, value in config.items():
        if isinstance(value, dict):
            yield from sections(value, (*path, key))


def place(name: str, value, config: dict) -> tuple | None:
    """The keys of the setting that a rule was given as ``name``; None where it is none."""
    if isinstance(value, dict):
        holding = [pair for pair in sections(config) if value and value.keys() <= pair[1].keys()]
        return min(holding, key=lambda pair: len(pair[1]))[0] if holding else None
    same = [path for path, held in sections(config) if held.get(name, ABSENT) == value]
    return (*same[0], name) if len(same) == 1 else None


# ---- in words


def shown(value) -> str:
    """A value as in the config."""
    return json.dumps(value, default=str).strip('"')


def moved(before, after) -> str:
    if before is ABSENT:
        return f"added: {shown(after)}"
    if after is ABSENT:
        return f"removed: {shown(before)}"
    return f"changed from {shown(before)} to {shown(after)}"


def file_cause(path: tuple, before, after) -> str:
    """An edit, from the hashes that ``params: code`` holds of files."""
    if not path:
        return "a script or module was edited"
    if before is ABSENT:
        return f"{path[0]} is used now"
    return f"{path[0]} is used no more" if after is ABSENT else f"{path[0]} was edited"


def sample_cause(path: tuple, before, after) -> str:
    """An edit of the sample table."""
    sample, *column = path
    if not column:
        return f"the sample table was changed: {sample} is {'new' if before is ABSENT else 'gone'}"
    return f"the sample table was changed: {column[0]} of {sample}, {moved(before, after)}"


def setting_cause(keys: tuple, before, after) -> str:
    name = ".".join(map(str, keys))
    if isinstance(before, dict) or isinstance(after, dict):  # given to the rule, or not
        return f"the settings of {name} count {'now' if isinstance(after, dict) else 'no more'}"
    return f"the setting {name} was {moved(before, after)}"


def parameter_causes(before: list, after: dict, sample: str | None, config: dict) -> Iterator[str]:
    """Each changed parameter of a job in words; ``before`` holds the old values, without names."""
    for name, old, new in paired(before, after):
        if name == "files":
            continue  # of the record: they follow from settings and samples, which are told
        if name == "code":
            yield from (file_cause(*change) for change in differences(old, new))
        elif name == "row":
            yield from (sample_cause(*change) for change in differences(old, new, (sample,)))
        elif name == "samples" and isinstance(new, dict):
            yield from (sample_cause(*change) for change in differences(old, new))
        elif old is ABSENT or new is ABSENT:
            yield f"the rule's parameter {name}".rstrip() + f" was {moved(old, new)}"
        elif (keys := place(name, old if new is None else new, config)) is not None:
            yield from (setting_cause(*change) for change in differences(old, new, keys))
        else:
            yield f"its parameter {name} was {moved(old, new)}"


def listed(names: Iterable[str], most: int = 4) -> str:
    names = sorted(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---- asked of Snakemake's graph


def value_of(text: str):
    """A parameter from its record."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


class Plan:
    """The jobs that would run, and what Snakemake has recorded of the last time."""

    def __init__(self, workflow):
        self.workflow = workflow
        self.dag = workflow.dag
        self.records = workflow.persistence
        jobs = [job for level in self.dag.toposorted() for job in sorted(level, key=job_key)]
        self.all_jobs = [job for job in jobs if not job.rule.norun]
        self.jobs = [job for job in self.all_jobs if self.dag.needrun(job)]
        self.made_now = {file for job in self.jobs for file in job.output}
        self.made = {file for job in self.all_jobs for file in job.output}

    def causes(self, job) -> list[str]:
        """Why this job runs; empty if only since one runs whose results it reads."""
        recorded = [file for file in job.output if self.records.metadata(file) is not None]
        killed = [file for file in job.output if file in self.dag.forcefiles]
        if killed:
            return [f"the last run was stopped while it wrote {listed(killed)}"]
        missing = self.dag.reason(job).missing_output
        if missing and not recorded:
            return [NOT_RUN]
        found = [f"{file} is missing" for file in sorted(missing)]
        found += self.inputs(job, recorded)
        if recorded:
            found += self.parameters(job, recorded[0])
            found += self.other_files(job, recorded[0])
            found += self.environment(job, recorded[0])
        return found

    def inputs(self, job, recorded: list) -> Iterator[str]:
        """Inputs that changed. Of a job after another Snakemake asks only whether that one runs."""
        ask, limit = self.workflow.async_run, self.records.max_checksum_file_size
        newer = self.dag.reason(job).updated_input
        before = set(self.records.input(recorded[0]) if recorded else map(name_of, job.input))
        old = {file for file in job.input if name_of(file) in before}
        for file in sorted(old & (newer | (set(job.input) - self.made))):
            known = self.records.input_checksums(job, file) - {None}
            if known and ask(file.is_checksum_eligible(limit)):
                if not all(ask(file.is_same_checksum(checksum, limit)) for checksum in known):
                    yield f"the file {name_of(file)} has other content"
            elif file in newer:
                yield f"{name_of(file)} is newer than what was made of it"

    def parameters(self, job, file) -> Iterator[str]:
        if not self.records.params_changed(job):
            return
        before = Counter(self.records.params(file))
        after = Counter(map(repr, job.non_derived_params))
        old = [value_of(text) for text in (before - after).elements()]
        added = after - before
        new = {}
        for name, value in job.params.items():
            if added[repr(value)]:
                added[repr(value)] -= 1
                new[name] = value
        config = self.workflow.globals["config"]
        yield from parameter_causes(old, new, job.wildcards.get("sample"), config)

    def other_files(self, job, file) -> Iterator[str]:
        """Inputs that came or went, but for what is made now, and what that takes the place of."""
        before, after = set(self.records.input(file)), set(map(name_of, job.input))
        made = (after - before) & self.made_now
        signs = (("+ ", after - before - made), ("- ", set() if made else before - after))
        words = ", ".join(sign + listed(names) for sign, names in signs if names)
        if words:
            yield f"the set of input files changed ({words})"

    def environment(self, job, file) -> Iterator[str]:
        if any(self.records.software_stack_changed(job)):
            content = b64encode(job.conda_env.content).decode() if job.conda_env else None
            if content == self.records.conda_env(file):
                yield "--sdm was given or left out: another software environment"
            else:
                yield "the environment file (envs/) was changed"

    def words(self) -> str:
        """All causes, each with the jobs that it makes run."""
        jobs_of: dict[str, list] = {}
        following = []
        for job in self.jobs:
            causes = self.causes(job)
            following += [] if causes else [job]
            for cause in causes:
                jobs_of.setdefault(cause, []).append(job)
        if self.jobs:
            parts = [f"{len(self.jobs)} of {len(self.all_jobs)} jobs would run.\n"]
        else:
            parts = ["Nothing to be done: no change is seen in what results depend on."]
        parts += [f"{cause}:\n{named(jobs)}" for cause, jobs in jobs_of.items()]
        if following:
            parts.append(f"an earlier stage runs again:\n{named(following)}")
        if unknown := self.without_record():
            parts.append(f"{UNKNOWN}:\n{named(unknown)}")
        return "\n".join(parts)

    def without_record(self) -> list:
        """Jobs of which nobody knows how their results were made, or in an older form."""
        kept = (job for job in self.all_jobs if not self.dag.needrun(job))
        return [
            job
            for job in kept
            if not self.records.has_metadata(job) or self.records.has_outdated_metadata(job)
        ]


def name_of(file) -> str:
    """As it is recorded: a remote file by its address."""
    return file.storage_object.query if file.is_storage else str(file)


def job_key(job) -> tuple:
    return job.rule.name, list(job.wildcards)


def named(jobs: list) -> str:
    """Rules, with the samples or fits of those that have them, as indented lines."""
    wildcards: dict[str, list[str]] = {}
    for job in jobs:
        wildcards.setdefault(job.rule.name, []).extend(job.wildcards)
    names = (f"{rule} ({', '.join(of)})" if of else rule for rule, of in wildcards.items())
    dent = " " * 4
    return textwrap.fill(
        ", ".join(names), 100, initial_indent=dent, subsequent_indent=dent, break_on_hyphens=False
    )


def explain(arguments: list[str]) -> str | None:
    """The words on a run with these arguments of ``snakemake``; None after an error it printed."""
    # By Snakemake's own reading of arguments, so that the profile counts too.
    _, args = parse_args(["--dry-run", *arguments])
    # With just these two kinds of quiet the dry run ends where the graph is made.
    quiet = {Quietness.RULES, Quietness.PROGRESS}
    settings = OutputSettings(quiet=quiet, log_level_override=logging.WARNING)
    with SnakemakeApi(settings) as api:
        try:
            found = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(
                    config=parse_config(args.config), configfiles=args.configfile
                ),
                deployment_settings=DeploymentSettings(
                    deployment_method=args.software_deployment_method
                ),
                snakefile=args.snakefile,
                workdir=args.directory,
            )
            graph = found.dag(
                DAGSettings(
                    targets=args.targets,
                    force_incomplete=args.rerun_incomplete,
                    rerun_triggers=args.rerun_triggers,
                    max_checksum_file_size=args.max_checksum_file_size,
                )
            )
            graph.execute_workflow(executor="dryrun")
            # Pinned: the API hands out no graph.
            return Plan(found._workflow).words()
        except Exception as error:
            api.print_exception(error)
            return None


if __name__ == "__main__":
    words = explain(sys.argv[1:])
    sys.exit(1 if words is None else print(words))
