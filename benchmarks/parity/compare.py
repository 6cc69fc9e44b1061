"""Compare two implementations cell by cell on the test cells of a split.

::

    python compare.py OURS.npz PEER.npz

Both as ``anomics_side.py`` and ``scvi_peer.py`` write them. Prints the mean difference of log p(x)
in nats a cell, and its standard error over the cells: a hard cell is hard for both, so the paired
error is far smaller than that of either mean.
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """One line: both means, their difference, its standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ours", type=Path)
    parser.add_argument("peer", type=Path)
    options = parser.parse_args()
    with np.load(options.ours) as ours, np.load(options.peer) as peer:
        if not np.array_equal(ours["cell"], peer["cell"]):
            parser.error("the two files are not of the same test cells in the same order")
        difference = ours["log_p"] - peer["log_p"]
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        print(
            f"{options.ours.stem}: {ours['log_p'].mean():.2f} against {peer['log_p'].mean():.2f}, "
            f"difference {difference.mean():+.2f} +- {error:.2f} nats a cell"
        )


if __name__ == "__main__":
    main()
