"""Which files of the pipeline a script runs: itself, and what it imports, and what that imports."""

import ast
import sys
from collections.abc import Callable
from functools import cache


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

    ``read`` returns the text of a path, or None where there is no such file (a third-party module).
    Importing ``package.module`` runs ``package/__init__.py`` too.
    """
    found: set[str] = set()
    foreign: set[str] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        found.add(path)
        for name in imported_modules(read(path) or "", tuple(path.split("/")[:-1])):
            parts = name.split(".")
            if parts[0] in foreign:
                continue
            folders = ["/".join([*parts[:n], "__init__.py"]) for n in range(1, len(parts) + 1)]
            candidates = {*folders, "/".join(parts) + ".py"}
            ours = {c for c in candidates - found if read(c) is not None}
            if not ours and not candidates & found and len(parts) == 1:
                foreign.add(parts[0])
            waiting.extend(ours)
    return found
