"""Every message of the code that ends a run: its constant parts, as they stand in the source."""

import ast
import re
from collections.abc import Iterator

from conftest import ROOT

# What is called with a message, or with a list of them.
ENDS = (
    *("InputError", "ConfigurationError", "CannotReproduceError", "WorkflowError"),
    *("FloatingPointError", "_stop"),
)
FAULTS = ("fault", "faults")  # what messages are given to, or put into
RETURNED = ("configuration.py", "check_inputs.py", "common.smk")  # where functions return faults


def raised_messages() -> Iterator[tuple[str, str]]:
    """File and text of each message, with an ellipsis for each part that differs."""
    scripts = ROOT / "workflow" / "scripts"
    for path in (*sorted(scripts.rglob("*.py")), ROOT / "workflow" / "rules" / "common.smk"):
        # Snakemake's own words stand at the end of the file.
        source = re.split(r"^\w+:$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[0]
        for text in messages_in(source, path.name in RETURNED):
            yield path.name, text


def messages_in(source: str, are_returned: bool) -> list[str]:
    """The messages of a module; ``are_returned``: lists that its functions return are some too."""
    nodes = ast.walk(ast.parse(source))
    given = (expression for node in nodes for expression in _given(node, are_returned))
    found = (text for expression in given for text in _texts(expression))
    return list(dict.fromkeys(text for text in found if re.search(r"[a-z]{2}", text)))


def _given(node: ast.AST, are_returned: bool) -> list[ast.expr]:
    """What a statement or a call makes a message."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=args) if name in ENDS:
            return args
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=args):
            return args if name in FAULTS else []
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))], value=value)
            | ast.AugAssign(target=ast.Name(id=name), value=value)
        ):
            return [value] if name in FAULTS else []
        case ast.Return(value=ast.List() | ast.ListComp() as value):
            return [value] if are_returned else []
    return []


def _texts(node: ast.expr) -> list[str]:
    """Each text that an expression can be, or that a list can hold."""
    match node:
        case ast.List(elts=elements):
            return [text for element in elements for text in _texts(element)]
        case ast.ListComp(elt=element):
            return _texts(element)
    return [re.sub("…+", "…", " ".join(_text(node).split()))]


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return "…"
