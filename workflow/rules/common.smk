"""What all rules share: the checked config, the sample table, paths, the hashes of a script's code."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from hashlib import sha256
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import strip_wildcard_constraints
from snakemake.settings.types import DeploymentMethod


def source(path):
    """A file beside the rules, by its path from the workflow folder; works for remote use too."""
    # Snakemake's path is a subclass of str, which Python's bytecode cache cannot store.
    return str(workflow.source_path(f"../{path}"))


def load_script(name):
    """Import workflow/scripts/<name>.py into the Snakefile's own process."""
    spec = importlib.util.spec_from_file_location(name, source(f"scripts/{name}.py"))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@cache
def read_source(path):
    """Text of a file under workflow, or None where there is no such file."""
    try:
        return Path(source(path)).read_text(encoding="utf-8")
    except (OSError, WorkflowError):
        return None


@cache
def code(script, *extra):
    """The hash of a script, of each module file it imports, and of extra files it reads, by path.

    Snakemake does not see an edit in an imported module. This stands in the rule's params, so an
    edit reruns exactly the rules that depend on it, and a touch or a git checkout reruns none.
    """
    scripts = import_closure(script, lambda path: read_source(f"scripts/{path}"))
    files = [*(f"scripts/{path}" for path in sorted(scripts)), *extra]
    # From GitHub a file comes without its last line feed.
    texts = {f"workflow/{file}": read_source(file).rstrip("\n") for file in files}
    return {file: sha256(text.encode()).hexdigest()[:16] for file, text in texts.items()}


def config_files():
    """The files that the config was read from, and what the user calls them."""
    # Snakemake reads a copy of the config that lies beside the Snakefile.
    names = {os.path.normpath(source("../config.yaml")): "config.yaml"}
    return {str(path): names.get(str(path), str(path)) for path in workflow.configfiles}


def fetched(path):
    """A sample's file as an input: a URL is left to Snakemake's storage plugin for its scheme."""
    plugin = configuration.storage_plugin(path)
    # A plugin is loaded where it is first asked for, so local files need none.
    return getattr(storage, plugin)(path) if plugin else path


def logs(rule, name=""):
    """Log file of a rule; one a job where a name with wildcards is given."""
    return f"{RUN}/logs/{rule}/{name}.log" if name else f"{RUN}/logs/{rule}.log"


def times(rule, name=""):
    """Benchmark file (wall time, memory) of a rule."""
    return f"{RUN}/benchmarks/{rule}/{name}.jsonl" if name else f"{RUN}/benchmarks/{rule}.jsonl"


def in_report(path, caption, category, title):
    """A result in Snakemake's own report, which sorts categories by name, so they are numbered.

    ``caption``: a file, by its path from the file of the rule that has the result.
    """
    return report(
        path,
        caption=caption,
        category=f"{CATEGORIES.index(category) + 1} {category}",
        labels={"result": title},
    )


def figure_files(name, category, title):
    """The files of a figure; the PNG goes into Snakemake's report, under category and title."""
    shown = in_report(f"{RUN}/figures/{name}.png", f"../report/{name}.rst", category, title)
    others = {"pdf": "pdf", "svg": "svg", "table": "tsv", "alt": "txt"}
    return {kind: f"{RUN}/figures/{name}.{end}" for kind, end in others.items()} | {"png": shown}


def files_of_rules():
    """All that the rules so far can write under the run's folder, benchmarks too, from there.

    A superset, for no rule is run for every fit. What other settings have left there is not in it.
    """
    patterns = [path for rule in workflow.rules for path in (*rule.output, rule.benchmark) if path]
    files = [
        file
        for pattern in patterns
        for file in expand(
            strip_wildcard_constraints(str(pattern)),
            sample=SAMPLES,
            fit=dict.fromkeys([FIT, *TRAINED]),
        )
        if pattern.match(file)
    ]
    return [inside for file in files if (inside := file.partition(f"{RUN}/")[2])]


def seed_of(fit):
    """The seed in the name of a fit."""
    return int(fit.removeprefix("seed").split("-")[0])


def held_out_of(fit):
    """The table of cells that a fit must not be trained on, where it has one."""
    return f"{RUN}/check/group.parquet" if fit in HELD_OUT else []


def scored_by(fits, name):
    """A file of each model that scores cells: one, or one a fold."""
    return expand(f"{RUN}/{name}", fit=fits)


def settings_of(fit):
    """config ``train`` with what the name of a fit changes."""
    changed = {"beta": BETAS[fit]} if fit in BETAS else {}
    if fit in CANDIDATES:
        changed["likelihood"] = CANDIDATES[fit]
    return config["train"] | changed


@cache
def partitions():
    """The partitions of the Slurm cluster that the run submits to; none elsewhere."""
    plugin = workflow.executor_plugin
    return slurm_limits.ask_partitions() if plugin and plugin.name == "slurm" else []


def gpus(wildcards):
    """GPUs that a job asks for; the profile grants one, so that one such job runs at a time.

    With device: auto none on a machine or Slurm cluster without, where jobs can run side by side.
    Another cluster may have one wherever the job comes to run.
    """
    if config["device"] != "auto":
        return int(config["device"] == "cuda")
    if partitions():
        return int(any(partition.gpu for partition in partitions()))
    return int(workflow.non_local_exec or workflow.remote_exec or HAS_GPU)


def asked_for(resource, amount, attempt):
    """``amount``, twice as much at each retry, up to what the largest node of a cluster has."""
    largest = max((getattr(p, resource) for p in partitions()), default=math.inf)
    return int(min(amount * 2 ** (attempt - 1), largest))


def memory(wildcards, input, attempt):
    """MB that a job asks for, from the size of what it reads.

    Measured on 10^4 to 10^6 cells (benchmarks/speed/scale.py): up to 700 MB, and 5.3 times the
    compressed counts. What is not needed holds counts in memory (config ``memory``).
    """
    return asked_for("mem_mb", MEMORY_BASE + MEMORY_PER_MB * input.size_mb, attempt)


def minutes(wildcards, input, attempt):
    """Minutes that a job asks for: many times what it took where it was measured."""
    return asked_for("runtime", MINUTES_BASE + MINUTES_PER_MB * input.size_mb, attempt)


def check_before_work():
    """Stop before the first job with all that can be known to end one later."""
    if workflow.touch:
        return
    jobs = list(workflow.dag.needrun_jobs())
    faults = [*faults_of_folder(), *faults_of_requests(jobs), *faults_of_inputs(jobs)]
    if faults:
        raise WorkflowError("\n".join(faults))


def faults_of_requests(jobs):
    """Jobs that ask for more than their Slurm partition has."""
    if not partitions():
        return []
    asked = [(job.rule.name, dict(job.resources)) for job in jobs]
    asked = [(rule, resources | {"threads": resources["_cores"]}) for rule, resources in asked]
    return slurm_limits.too_large(asked, partitions())


def faults_of_folder():
    """A folder of results that cannot be written to."""
    folder = next(path for path in (Path(RUN), *Path(RUN).parents) if path.exists())
    if os.access(folder, os.W_OK | os.X_OK):
        return []
    return [f"{folder}: may not be written to; give yourself permission, or run in another folder"]


def faults_of_inputs(jobs):
    """What is wrong in the samples' files, if any is to be read; prints what to be warned of."""
    # In a workflow that has this one as a module, rules may bear other names.
    importing, selecting = rules.import_counts.rule, rules.select_features.rule
    due = [job for job in jobs if job.rule in (importing, selecting)]
    planned = [job for job in workflow.dag.jobs if job.rule == importing]
    if not due or not planned:
        return []
    # An example's file may be made again before it is read.
    rows = [SAMPLES[job.wildcards.sample] for job in planned]
    rows = [row for row in rows if row["path"] not in MADE_HERE]
    found = look_into(
        python_of(due[0]),
        rows=rows,
        config=config,
        n_folds=len(FOLDS),
        are_all=len(rows) == len(SAMPLES),
        cores=workflow.cores or 1,
    )
    for warning in found["warnings"][:MOST_WARNINGS]:
        print(f"warning: {warning}", file=sys.stderr)
    if (more := len(found["warnings"]) - MOST_WARNINGS) > 0:
        print(f"warning: {more} more; the report will list them", file=sys.stderr)
    return found["faults"]


def look_into(python, **asked):
    """What check_inputs.py finds in the samples' files; nothing where no file is here yet."""
    if not any(os.path.exists(row["path"]) for row in asked["rows"]):
        return NOTHING
    code("check_inputs.py")  # brings the modules that it imports, where the workflow is remote
    checking = subprocess.run(
        [python, source("scripts/check_inputs.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    if checking.returncode:
        print(checking.stderr, CHECK_FAILED, sep="\n", file=sys.stderr)
        return NOTHING
    return json.loads(checking.stdout)


def python_of(job):
    """The Python that runs the job: of its conda environment, or this one."""
    if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method:
        return str(Path(job.conda_env.address, "bin", "python"))
    return sys.executable


MEMORY_BASE, MEMORY_PER_MB = 2000, 6
MINUTES_BASE, MINUTES_PER_MB = 30, 0.2
STARTED = time.time()
MOST_WARNINGS = 10
NOTHING = {"faults": [], "warnings": []}
CHECK_FAILED = (
    "the check of the inputs failed, a fault of anomics, please report it; the run goes on"
)
CATEGORIES = ("Results", "Quality control", "Library size", "Model", "Anomalies")
HAS_GPU = shutil.which("nvidia-smi") is not None
import_closure = load_script("import_closure").import_closure
configuration = load_script("configuration")
slurm_limits = load_script("slurm_limits")
EXAMPLE = "results/example_input/pbmc68k.h5ad"
BULK_EXAMPLE = [f"results/example_input/bulk_{of}.tsv" for of in ("controls", "patients")]
MADE_HERE = {EXAMPLE, *BULK_EXAMPLE}
terminal = load_script("terminal")
# Not so in the process of a job, nor in a workflow that has this one as a module: these print as
# they please; a job's config was looked into before, and a module's has settings that are not ours.
IS_OWN_RUN = workflow.is_main_process and workflow.modifier.is_main_snakefile()
if IS_OWN_RUN:
    terminal.follow_run(workflow.output_settings)
try:
    config, SAMPLES = configuration.check_run(
        config,
        source("schemas/config.schema.yaml"),
        MADE_HERE,
        bundled={
            f"workflow/example/{name}.tsv": source(f"example/{name}.tsv")
            for name in ("samples", "bulk")
        },
        files=config_files() if IS_OWN_RUN else {},
    )
except configuration.ConfigurationError as error:
    found = NOTHING
    # With --sdm conda the packages are in an environment that is not there yet.
    if error.config and importlib.util.find_spec("anndata"):
        asked = {"rows": error.rows, "config": error.config, "n_folds": 0, "are_all": False}
        found = look_into(sys.executable, **asked)
    raise WorkflowError("\n".join([*error.faults, *found["faults"]])) from None

# The file of each sample, by its name.
SOURCES = {sample: fetched(row["path"]) for sample, row in SAMPLES.items()}
RUN = f"results/{config['run']}"
# A fit is one trained model: FIT is the one that is reported, the others stand beside it and change
# what their name says. With likelihood: auto, FIT is the best of its candidates.
FIT = f"seed{config['seed']}"
SEEDS = [config["seed"] + i for i in range(config["stability"]["n_seeds"])]
OTHER_SEEDS = [f"seed{seed}" for seed in SEEDS[1:]]
BETAS = {f"{FIT}-beta{beta:g}": beta for beta in config["rate_distortion"]["betas"]}
BETAS = {fit: beta for fit, beta in BETAS.items() if beta != config["train"]["beta"]}
IS_AUTO = config["train"]["likelihood"] == "auto"
CANDIDATES = {f"{FIT}-{name}": name for name in ("nb", "zinb", "poisson")} if IS_AUTO else {}
# Without a query, each fold of the reference is scored by a fit that has not seen it.
N_FOLDS = config["anomaly"]["folds"] if configuration.is_cross_fitted(SAMPLES) else 0
FOLDS = {f"{FIT}-fold{fold}": fold for fold in range(1, N_FOLDS + 1)}
SCORED_BY = [*FOLDS] or [FIT]
SCORED_FOLDS = [FOLDS.get(fit) for fit in SCORED_BY]
DETECTION = {key: value for key, value in config["anomaly"].items() if key != "folds"}
# To learn whether a cell type would be found that the model lacks, one group of the reference is
# left out of a second training. Folds hold out cells, not groups.
IS_CHECKED = config["check"]["injected"]
IS_BULK = config["observations"] == "samples"  # a sample is neither a doublet nor of a cell type
HAS_GROUP = IS_CHECKED and config["check"]["held_out_group"] and not FOLDS and not IS_BULK
HELD_OUT = [f"{FIT}-group"] if HAS_GROUP else []
TRAINED = [*OTHER_SEEDS, *BETAS, *(CANDIDATES or [FIT]), *FOLDS, *HELD_OUT]


# On a cluster each job has its own GPU; the one that profiles/default grants is this machine's.
resource_scopes:
    gpu="local",


wildcard_constraints:
    sample=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    fit=r"seed\d+(-[a-z]+[0-9.e+-]*)?",
