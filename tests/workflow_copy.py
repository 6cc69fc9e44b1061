"""A copy of the workflow in a folder of its own, with small data, for tests that run Snakemake.

A test module that needs the finished run imports from here and says ``pytest_plugins =
["workflow_copy"]``. The import comes before the plugin, hence PYTEST_DONT_REWRITE.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from scipy import sparse

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "config.yaml", "workflow", "profiles", "envs")
RUN = "small"
TAG = "<script>alert(1)</script>"
HEADER = "sample path role"
OPTIONS = ("--configfile", "my.yaml", "--cores", "2", "--nocolor")
SAMPLES = ("healthy data/healthy.h5ad reference", "patient data/patient.h5ad query")

# Enough to go through every stage, small enough to take seconds; a step takes a few milliseconds.
SETTINGS = {
    "run": RUN,
    "samples": "samples.tsv",
    "device": "cpu",
    "preprocess": {
        "filter_cells": {"min_counts": 20, "min_genes": 5},
        "select_features": {"n_features": 40},
        "split": {"validation": 0.15, "calibration": 0.3},
    },
    "train": {
        "n_latent": 4,
        "n_hidden": 16,
        "batch_size": 32,
        "weight_decay": 100,
        "kl_warmup_steps": 100,
        "max_steps": 800,
        "patience": 60,
        "checkpoint_seconds": 0,
    },
    "prune": {"fine_tune_steps": 50},
    "anomaly": {"alpha": 0.2, "program_genes": 10},
    "report": {"umap_neighbors": 8},
}
# All that a run may have besides: three likelihoods, two more betas, two seeds, a covariate.
EVERYTHING = {
    "train": SETTINGS["train"]
    | {
        "likelihood": "auto",
        "prior": "mixture",
        "prior_components": 3,
        "covariates": ["lane"],
        "learning_rate": 0.005,
        "weight_decay": 10,
        "kl_warmup_steps": 50,
        "max_steps": 200,
    },
    "rate_distortion": {"betas": [0.5, 2]},
    "stability": {"n_seeds": 2},
    "refine": {"for_scores": True, "steps": 5},
}


def small_counts(n_cells: int, seed: int, first: int = 0, n_odd: int = 0) -> anndata.AnnData:
    """Two types of cells; the last ``n_odd`` cells show ten genes that no other cell does.

    Negative binomial counts (theta 4) of 60 genes, about 300 a cell. Cells are numbered from
    ``first`` on, and lie on two lanes. One gene is named by an HTML tag.
    """
    rng = np.random.default_rng(seed)
    shares = np.random.default_rng(0).gamma(2.0, 1.0, 60)
    shares[50:] = 0.02
    mean = np.tile(shares, (n_cells, 1))
    mean[::2, :10] *= 4
    mean[n_cells - n_odd :, 50:] = 10.0
    mean *= 300 * rng.lognormal(0, 0.2, (n_cells, 1)) / mean.sum(axis=1, keepdims=True)
    counts = rng.negative_binomial(4, 4 / (4 + mean)).astype(np.float32)
    genes = [f"GENE{g}" for g in range(60)]
    genes[55] = TAG
    cells = [f"CELL{first + i}" for i in range(n_cells)]
    obs = pd.DataFrame({"lane": np.tile(["L1", "L1", "L2", "L2"], n_cells)[:n_cells]}, index=cells)
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))


class WorkflowCopy:
    """The workflow and two samples in ``folder``: 160 reference and 60 query cells.

    The cells CELL130 to CELL159 are in both samples by name. Of the query, CELL130 is nearly empty
    and the last twenty, CELL170 to CELL189, are odd.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = folder / "results" / RUN
        self.extra: dict[str, str] = {}  # environment variables besides

    @classmethod
    def make(cls, folder: Path, **sections) -> "WorkflowCopy":
        """Copy the checkout into ``folder``; write data, sample table and my.yaml there."""
        (folder / "data").mkdir(parents=True)
        for part in PARTS:
            if (ROOT / part).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / part, folder / part, ignore=ignored)
            else:
                shutil.copy2(ROOT / part, folder / part)
        patient = small_counts(60, seed=2, first=130, n_odd=20)
        patient.X[0] = sparse.csr_matrix(np.eye(1, 60, dtype=np.float32))
        patient.write_h5ad(folder / "data" / "patient.h5ad")
        small_counts(160, seed=1).write_h5ad(folder / "data" / "healthy.h5ad")
        made = cls(folder)
        made.write_samples(*SAMPLES)
        made.write_config(**sections)
        return made

    def twin(self, folder: Path) -> "WorkflowCopy":
        """The same folder, with all results and their dates, elsewhere."""
        shutil.copytree(self.folder, folder)
        return WorkflowCopy(folder)

    def write_samples(self, *rows: str, header: str = HEADER) -> None:
        """samples.tsv; blanks in the arguments become tabs."""
        lines = [row.replace(" ", "\t") for row in (header, *rows)]
        (self.folder / "samples.tsv").write_text("\n".join(lines) + "\n")

    def write_config(self, **sections) -> None:
        """my.yaml: SETTINGS with whole sections replaced."""
        (self.folder / "my.yaml").write_text(yaml.safe_dump({**SETTINGS, **sections}))

    @property
    def environment(self) -> dict[str, str]:
        """No GPU, so that ``device: cuda`` is an error everywhere."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **self.extra}

    def start(self, *arguments: str) -> subprocess.Popen:
        """Begin ``snakemake <arguments>``, with all it prints in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *OPTIONS, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and all that a user would see."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output


# These name times, and so no two are the same.
RECORDS = {"run.json", "ro-crate-metadata.json"}


def results_of(run: WorkflowCopy) -> dict[str, bytes]:
    """All files of a run, hidden ones too, but for logs and times."""
    files = {path.relative_to(run.results).as_posix(): path for path in run.results.rglob("*")}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if path.is_file() and not name.startswith(("logs/", "benchmarks/"))
    }


def differing(run: WorkflowCopy, undisturbed: WorkflowCopy) -> list[str]:
    """Results of the same names but other bytes, records aside."""
    one, other = results_of(run), results_of(undisturbed)
    assert set(one) == set(other)
    return [name for name in other if one[name] != other[name] and name not in RECORDS]


def kill_with_children(process: subprocess.Popen) -> None:
    """SIGKILL to Snakemake and its jobs at once, as a power cut would."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate()


def made_once(tmp_path_factory, name: str, make: Callable[[Path], WorkflowCopy]) -> WorkflowCopy:
    """A complete run: the first process that asks for it runs it, and those beside it wait."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder that all of them share
        folder = folder.parent
    folder /= name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            copy = make(folder.with_suffix(".new"))
            code, output = copy.run()
            assert code == 0, output
            copy.folder.rename(folder)
    return WorkflowCopy(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> WorkflowCopy:
    """A complete run. Tests read it only, and change a twin of it."""
    return made_once(tmp_path_factory, "finished", WorkflowCopy.make)


@pytest.fixture(scope="session")
def everything(finished, tmp_path_factory) -> WorkflowCopy:
    """The finished run gone on with every option on. Tests read it only."""

    def make(folder: Path) -> WorkflowCopy:
        copy = finished.twin(folder)
        copy.write_config(**EVERYTHING)
        return copy

    return made_once(tmp_path_factory, "everything", make)
