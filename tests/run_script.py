"""Run one script of workflow/scripts as Snakemake would, without Snakemake."""

import runpy
from pathlib import Path
from types import SimpleNamespace

SCRIPTS = Path(__file__).resolve().parent.parent / "workflow" / "scripts"
# What a script reads of the config itself and not of its params.
CONFIG = {"memory": "auto"}


class Named(dict):
    """Snakemake's input, output and params: names as attributes, and the first by number."""

    __getattr__ = dict.__getitem__

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def run_script(rule: str, folder: Path, input: dict, output: dict, params: dict, **wildcards):
    """The output paths (under ``folder``), by name. A user's error ends in SystemExit.

    An output may be a list of files.
    """
    outputs = Named(
        {
            name: str(folder / file) if isinstance(file, str) else [str(folder / f) for f in file]
            for name, file in output.items()
        }
    )
    given = SimpleNamespace(
        rule=rule,
        input=Named(input),
        output=outputs,
        params=Named(params),
        wildcards=SimpleNamespace(**wildcards),
        log=[str(folder / f"{rule}.log")],
        threads=1,
        resources=SimpleNamespace(mem_mb=4000),
        config=CONFIG,
        scriptdir=str(SCRIPTS),
    )
    # Snakemake writes a line before the script that sets this global.
    runpy.run_path(str(SCRIPTS / f"{rule}.py"), {"snakemake": given}, run_name="__main__")
    return {
        name: Path(path) if isinstance(path, str) else [Path(p) for p in path]
        for name, path in outputs.items()
    }
