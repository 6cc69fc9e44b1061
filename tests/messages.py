"""Every message that ends a run, with what provokes it: docs/messages.md, by ``make docs``.

The cases stand in the test files; an ellipsis in a message stands for what differs from run to run.
"""

import re
from collections.abc import Iterator
from pathlib import Path


def is_said(message: str, line: str) -> bool:
    """Whether ``line`` is the message, with anything for each ellipsis."""
    return bool(re.fullmatch(".*".join(map(re.escape, message.split("…"))), line))


def cases() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A heading, and under it each wrong input with its message."""
    import test_annotate_counts
    import test_bad_input
    import test_check_inputs
    import test_checksums
    import test_compute_library_size
    import test_configuration
    import test_count_checks
    import test_count_formats
    import test_damaged_files
    import test_design
    import test_held_cells
    import test_job
    import test_join_samples
    import test_make_example
    import test_own_process
    import test_reproduce
    import test_select_features
    import test_slurm_limits
    import test_train_vae
    import test_untrusted_files

    kinds = {
        "The config": (
            *(test_configuration.CONFIG_FAULTS, test_configuration.NEEDED),
            *(test_configuration.GENE_LISTS, test_configuration.REPEATED),
        ),
        "A config file from elsewhere, given to `make run`": (test_configuration.STRANGE,),
        "The sample table": (
            *(test_configuration.TABLE_FAULTS, test_configuration.TABLE_FILES),
            *(test_configuration.LOCKED, test_configuration.PLUGINS),
        ),
        "Config and sample table together": (test_configuration.RUN_FAULTS,),
        "The folder and the cluster of the run": (
            test_bad_input.READ_ONLY,
            test_slurm_limits.FAULTS,
        ),
        "The samples' files, before the first job": (test_check_inputs.FAULTS,),
        "Warnings about the samples' files": (test_check_inputs.WARNINGS,),
        "The form of a file of counts": (test_count_checks.FAULTS, test_checksums.FAULTS),
        "What to read of a file of counts": (test_count_formats.CHOICES,),
        "Files that are damaged or hostile": (
            *(test_untrusted_files.CASES, test_own_process.FAULTS),
        ),
        "While the run goes on": (
            *(test_bad_input.CASES, test_join_samples.FAULTS, test_select_features.FAULTS),
            *(test_compute_library_size.FAULTS, test_design.FAULTS, test_train_vae.FAULTS),
            test_make_example.FAULTS,
        ),
        "What the machine lacks, and signals": (test_job.FAULTS, test_job.SIGNALLED),
        "Results that are damaged, or not of one run": (
            *(test_damaged_files.FAULTS, test_held_cells.FAULTS, test_annotate_counts.FAULTS),
        ),
        "When a run is had again by `make reproduce`": (test_reproduce.FAULTS,),
    }
    for heading, registries in kinds.items():
        named = (case for registry in registries for case in registry.items())
        yield heading, [(name, message) for name, (_, message) in named]


HEAD = """<!-- Made by `make docs` from the cases of the tests. -->

# Messages

Every message that ends a run, and the warnings before the first job, each with an input that brings
it about, as the tests provoke it; `…` stands for what differs from run to run. What to do about the
frequent ones, and the warnings in the report: [troubleshooting](troubleshooting.md).
"""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "messages.md"


def page() -> str:
    """All of them as Markdown."""
    lines = [HEAD]
    for heading, messages in cases():
        lines += [f"## {heading}", "", "| given | said |", "|---|---|"]
        lines += [f"| {name} | `{message}` |" for name, message in messages]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
