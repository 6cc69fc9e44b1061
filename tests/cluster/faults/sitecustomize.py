"""Breaks a job at its first try, as the environment says: FAULTS="rule=fault,rule=fault".

Python imports a module of this name at its start wherever PYTHONPATH leads to it. FAULTS_FOLDER
remembers which faults have happened.
"""

import os
import sys
import time
from pathlib import Path


def fail() -> None:
    os._exit(1)


def take_memory() -> None:
    """More than any job of the tests asks for, until Slurm sees it."""
    hoard = bytearray(os.urandom(1 << 20)) * 2900
    time.sleep(60)
    del hoard


def write_slowly() -> None:
    """Files stay under their temporary name for a while, as large ones on a slow disk do."""
    replace = os.replace

    def slow(source, target):
        time.sleep(60)
        replace(source, target)

    os.replace = slow


FAULTS = {"fail": fail, "memory": take_memory, "slow": write_slowly}
SCRIPT = next((part for part in sys.orig_argv if ".snakemake/scripts/" in part), "..")
RULE = SCRIPT.split(".")[-2]
for pair in filter(None, os.environ.get("FAULTS", "").split(",")):
    rule, fault = pair.split("=")
    happened = Path(os.environ["FAULTS_FOLDER"], rule)
    if rule == RULE and not happened.exists():
        happened.touch()
        FAULTS[fault]()
