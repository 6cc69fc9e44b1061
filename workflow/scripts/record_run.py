"""Write the record of a run, what made it, what it made and what that took, and its RO-Crate."""

import platform
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy  # noqa: F401  so that its matrix kernels are there to be named
import yaml
from rocrate.model import ContextEntity
from rocrate.model.computerlanguage import get_lang
from rocrate.rocrate import ROCrate
from threadpoolctl import threadpool_info

from checksums import checksum
from job import job, read_json, write_json
from provenance import git_state, hardware, package_versions, read_jobs, with_all_needed

# A Workflow Run Crate would have to hold the workflow; this one says which it was.
PROFILE = "https://w3id.org/ro/wfrun/process/0.6"


def describe_run(run: Path, files: Iterable[str], inputs: dict[str, str], train: dict) -> dict:
    """What the finished files tell: inputs, results, jobs, and how the model was trained.

    ``files``: all that the jobs of the run may have written under ``run``; ``inputs``: checksums
    by path; ``train``: the summary of the training, which is what threads, device and precision
    matter for.
    """
    made = sorted(file for file in files if (run / file).is_file())
    results = [file for file in made if not file.startswith("benchmarks/")]
    jobs = read_jobs(run, sorted(set(made) - set(results)))
    return {
        "inputs": dict(sorted(inputs.items())),
        "results": {file: checksum(run / file) for file in results},
        "threads": train["threads"],
        "device": train["device"],
        "precision": train["precision"],
        # Jobs of earlier calls count: their results stand.
        "started": min(job["started"] for job in jobs),
        "ended": max(job["ended"] for job in jobs),
        "jobs": jobs,
    }


def seeds_of(config: dict) -> list[int]:
    """The seed of the reported fit, and those of the fits that it is compared with."""
    return [config["seed"] + i for i in range(config["stability"]["n_seeds"])]


def matrix_kernels() -> list[str]:
    """What BLAS takes on this processor: other kernels give other last digits."""
    libraries = threadpool_info()
    return sorted(
        {
            f"{lib['internal_api']} {lib['architecture']}"
            for lib in libraries
            if "architecture" in lib
        }
    )


def make_crate(record: dict, run: Path, workflow: dict) -> dict:
    """The record as RO-Crate metadata (JSON-LD) of the folder ``run``, Process Run profile.

    ``workflow``: title, version and license of the pipeline, as far as they are known.
    """
    crate, name = ROCrate(), record["config"]["run"]

    def add(identifier: str, kind, **properties) -> ContextEntity:
        known = {key: value for key, value in properties.items() if value is not None}
        return crate.add(ContextEntity(crate, identifier, {"@type": kind, **known}))

    crate.name = f"Results of the anomics run {name}"
    crate.description = "Anomalies in omics counts, with all that led to them."
    crate.root_dataset["datePublished"] = record["ended"]
    profile = add(PROFILE, "CreativeWork", name="Process Run Crate", version="0.6")
    crate.root_dataset["conformsTo"] = [profile]
    snakemake = get_lang(crate, "snakemake", version=record["packages"].get("snakemake"))
    packages = {"python": record["python"], **record["packages"]}
    licensed = workflow.get("license") and add(
        f"https://spdx.org/licenses/{workflow['license']}", "CreativeWork", name=workflow["license"]
    )
    instrument = add(
        "#workflow",
        ["SoftwareSourceCode", "ComputationalWorkflow"],
        name=workflow.get("title", "anomics"),
        # A commit says more than a version.
        version=record["git"]["commit"] if record["git"] else workflow.get("version"),
        license=licensed,
        programmingLanguage=crate.add(snakemake),
        softwareRequirements=[
            add(f"#package/{package}", "SoftwareApplication", name=package, softwareVersion=version)
            for package, version in packages.items()
        ],
    )
    inputs = [
        add(f"#input/{quote(path)}", "CreativeWork", name=path, sha256=digest)
        for path, digest in record["inputs"].items()
    ]
    action = crate.add_action(
        instrument,
        "#run",
        object=inputs,
        properties={
            "name": f"anomics run {name}",
            "description": "run.json has the config, the sample table, the machine and all jobs",
            "startTime": record["started"],
            "endTime": record["ended"],
        },
    )
    crate.root_dataset["mentions"] = [action]
    action["result"] = [
        crate.add_file(dest_path=file, properties=_file(run / file) | {"sha256": digest})
        for file, digest in record["results"].items()
    ]
    about = {"name": "Record of the run", "about": action}
    crate.add_file(dest_path="run.json", properties=_file(run / "run.json") | about)
    return crate.metadata.generate()


def _file(path: Path) -> dict:
    return {"name": path.name, "contentSize": str(path.stat().st_size)}


def read_citation(path: Path) -> dict:
    """CITATION.cff; empty for a workflow that is used from afar, or was copied without it."""
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


if __name__ == "__main__":
    with job(snakemake) as log:
        files, params = snakemake.input, snakemake.params
        path = Path(snakemake.output.record)
        # As they were when they were imported; a URL need not be fetched again.
        paths = [row["path"] for row in params.samples.values()]
        inputs = {
            path: read_json(summary)["sha256"]
            for path, summary in zip(paths, files.imports, strict=True)
        } | {path: checksum(path) for path in files.gene_list}
        record = {
            "git": git_state(snakemake.scriptdir),
            "python": platform.python_version(),
            "packages": package_versions(with_all_needed(params.packages)),
            "hardware": hardware(),
            "matrix_kernels": matrix_kernels(),
            "config": params.config,
            "seeds": seeds_of(params.config),
            "samples": params.samples,
        } | describe_run(path.parent, params.files, inputs, read_json(files.train))
        write_json(record, path)
        citation = read_citation(Path(snakemake.scriptdir, "..", "..", "CITATION.cff"))
        write_json(make_crate(record, path.parent, citation), snakemake.output.crate)
        log.info("%d results, %d jobs", len(record["results"]), len(record["jobs"]))
