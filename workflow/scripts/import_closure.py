"""Which files of the pipeline a script runs: itself, and what it imports, and what that imports."""

import ast
import sys
from collections.abc import Callable
from functools import cache

# Left out unasked: where the pipeline is used from GitHub, to ask for a file that is not there is a
# fetch from the server, in every job.
THIRD_PARTY = {
    *("anndata", "h5py", "jinja2", "jsonschema", "markupsafe", "matplotlib", "numba", "numpy"),
    *(
        "packaging",
        "pandas",
        "PIL",
        "pyarrow",
        "rocrate",
        "safetensors",
        "scanpy",
        "scipy",
        "skmisc",
        "sklearn",
    ),
    *("threadpoolctl", "torch", "tqdm", "umap", "yaml", "zarr"),
}


@cache
def imported_modules(text: str, package: tuple[str, ...] = ()) -> frozenset[str]:
    """Dotted names that a module's text imports, anywhere in it, standard library left out.

    ``from a.b import c`` gives both ``a.b`` and ``a.b.c``: c may be a module. ``package`` is where
    the module lies, for ``from . import c``.
    """
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] not in sys.stdlib_module_names)


def import_closure(script: str, read: Callable[[str], str | None]) -> set[str]:
    """Paths, relative to the scripts folder, of ``script`` and all it imports from that folder.

    ``read`` returns the text of a path, or None where there is no such file.
    """
    found: set[str] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        found.add(path)
        for name in imported_modules(read(path) or "", tuple(path.split("/")[:-1])):
            waiting.extend(_files_run(name, read) - found)
    return found


def _files_run(name: str, read: Callable[[str], str | None]) -> set[str]:
    """What the import of a dotted name runs: ``__init__.py`` of its packages, and the module."""
    files: set[str] = set()
    parts = name.split(".")
    if parts[0] in THIRD_PARTY:
        return files
    for n in range(1, len(parts) + 1):
        module = "/".join(parts[:n])
        if read(f"{module}.py") is not None:
            return files | {f"{module}.py"}
        if read(f"{module}/__init__.py") is None:
            return files
        files.add(f"{module}/__init__.py")
    return files
