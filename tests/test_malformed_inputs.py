"""No malformed input breaks a reader: some here, 10,000 of each kind by ``make fuzz``."""

import os
import re
import subprocess
import sys

import pytest

import malformed
from conftest import ROOT

INPUTS = 40


@pytest.fixture(scope="module")
def fuzzed() -> dict[str, tuple[int, int, int]]:
    """For each kind of input how many were refused, were read and broke a reader; what was said.

    In a process of its own, for its workers may not take more than 2 GiB.
    """
    path = os.pathsep.join([str(ROOT / "workflow" / "scripts")])
    finished = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzzing.py"), str(INPUTS)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    print(finished.stdout, finished.stderr)
    line = rf"^(\w+): {INPUTS} inputs: (\d+) refused, (\d+) read, (\d+) faults"
    found = re.findall(line, finished.stdout, re.MULTILINE)
    return {kind: tuple(map(int, numbers)) for kind, *numbers in found}


@pytest.mark.parametrize("kind", malformed.SEEDS)
def test_malformed_inputs_are_read_or_refused_in_one_line(kind, fuzzed):
    refused, read, faults = fuzzed[kind]
    assert faults == 0
    assert refused > 0 and refused + read == INPUTS


@pytest.mark.parametrize("kind", ["config", "sample_table"])
def test_what_contradicts_is_reached_behind_what_is_malformed(kind, fuzzed):
    """A good part is right value by value, and so goes through all checks."""
    assert fuzzed[kind][1] >= INPUTS / 8


@pytest.mark.parametrize("kind", malformed.SEEDS)
def test_an_input_is_the_same_each_time(kind, tmp_path):
    """So that a fault can be found again by its number."""
    (tmp_path / "seeds").mkdir()
    for name in malformed.SEEDS[kind]:
        malformed.write_seed(name, tmp_path / "seeds")

    def content(number: int) -> dict[str, bytes]:
        path = malformed.mutate(kind, number, tmp_path / "seeds", tmp_path / "one")
        inside = path.rglob("*") if path.is_dir() else [path]
        return {
            str(file): file.read_bytes()
            for file in inside
            if file.is_file() and file.resolve().is_relative_to(tmp_path)
        }

    assert all(content(number) == content(number) for number in range(10))
    assert content(0) != content(1)
