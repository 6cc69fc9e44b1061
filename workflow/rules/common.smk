"""What all rules share: the checked config, the sample table, paths, the hashes of a script's code."""

import importlib.util
import math
import re
import shutil
import sys
import time
from functools import cache
from hashlib import sha256
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import strip_wildcard_constraints


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


def check_requests():
    """Stop before the first job where one asks for more than its Slurm partition has."""
    if not partitions():
        return
    jobs = [(job.rule.name, dict(job.resources)) for job in workflow.dag.needrun_jobs()]
    faults = slurm_limits.too_large(
        [(rule, asked | {"threads": asked["_cores"]}) for rule, asked in jobs], partitions()
    )
    if faults:
        raise WorkflowError("\n".join(faults))


MEMORY_BASE, MEMORY_PER_MB = 2000, 6
MINUTES_BASE, MINUTES_PER_MB = 30, 0.2
STARTED = time.time()
CATEGORIES = ("Results", "Quality control", "Library size", "Model", "Anomalies")
HAS_GPU = shutil.which("nvidia-smi") is not None
import_closure = load_script("import_closure").import_closure
configuration = load_script("configuration")
slurm_limits = load_script("slurm_limits")
terminal = load_script("terminal")
# A job on a cluster, and a workflow that has this one as a module, print as they please.
if workflow.is_main_process and workflow.modifier.is_main_snakefile():
    terminal.follow_run(workflow.output_settings)
try:
    config = configuration.check_config(config, source("schemas/config.schema.yaml"))
    EXAMPLE = "results/example_input/pbmc68k.h5ad"
    BULK_EXAMPLE = [f"results/example_input/bulk_{of}.tsv" for of in ("controls", "patients")]
    SAMPLES = configuration.read_samples(
        config["samples"],
        made_here={EXAMPLE, *BULK_EXAMPLE},
        bundled={
            f"workflow/example/{name}.tsv": source(f"example/{name}.tsv")
            for name in ("samples", "bulk")
        },
    )
    configuration.check_covariates(config, SAMPLES)
    configuration.check_files(config)
    configuration.check_cross_fitting(config, SAMPLES)
except configuration.ConfigurationError as error:
    raise WorkflowError(str(error)) from None

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
