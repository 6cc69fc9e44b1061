"""Every message that a test provokes, with what provokes it: docs/messages.md, by ``make docs``.

The cases stand in the test files; an ellipsis in a message stands for what differs from run to run.
"""

import re
from collections.abc import Iterator
from pathlib import Path


def is_said(message: str, line: str) -> bool:
    """Whether ``line`` is the message, with anything for each ellipsis."""
    return bool(re.fullmatch(".*".join(map(re.escape, message.split("…"))), line))


def cases() -> Iterator[tuple[str, dict[str, str]]]:
    """A heading, and under it each wrong input with its message."""
    import test_bad_input
    import test_check_inputs
    import test_configuration
    import test_untrusted_files

    kinds = {
        "The config": test_configuration.CONFIG_FAULTS,
        "The sample table": test_configuration.TABLE_FAULTS,
        "The samples' files, before the first job": test_check_inputs.FAULTS,
        "Warnings about the samples' files": test_check_inputs.WARNINGS,
        "Files that are damaged or hostile": test_untrusted_files.CASES,
        "While the run goes on": test_bad_input.CASES,
    }
    for heading, registry in kinds.items():
        yield heading, {name: message for name, (_, message) in registry.items()}


HEAD = """<!-- Made by `make docs` from the cases of the tests. -->

# Messages

What wrong input brings about, as the tests provoke it; `…` stands for what differs from run to run.
What to do about the frequent ones: [troubleshooting](troubleshooting.md).
"""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "messages.md"


def page() -> str:
    """All of them as Markdown."""
    lines = [HEAD]
    for heading, messages in cases():
        lines += [f"## {heading}", "", "| given | said |", "|---|---|"]
        lines += [
            f"| {name} | `{message.replace('|', '&#124;')}` |" for name, message in messages.items()
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
