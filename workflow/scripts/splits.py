"""Part the reference cells into train, validation and calibration; query cells are query.

The split is decided by names alone: a cell's place depends on the seed, its sample, its name and
who else is there, never on its counts, on the order of the cells or of the sample table.
"""

from hashlib import blake2b

import numpy as np
import pandas as pd

from cohort import check_cohort
from job import InputError

# Fewer leave a stage nothing to work on; of 10 reference cells 20 % and 20 % leave as many.
MIN_CELLS = {"train": 6, "validation": 2, "calibration": 2}
# Below these a stage says little: a model fitted to noise, early stopping on noise, p-values that
# cannot go under 1/(20 + 1), about 5 %.
FEW_CELLS = {"train": 50, "validation": 10, "calibration": 20}
# Whole donors seldom add up to the asked fractions. Of so many seeded draws the first is taken that
# comes within this share of cells of the best one, so that the seed, not the size of the donors,
# decides who calibrates.
N_DRAWS, TOLERANCE = 500, 0.02


def split_cells(
    obs: pd.DataFrame, settings: dict, seed: int, unit: str = "cells"
) -> tuple[np.ndarray, str, list[str]]:
    """The split of each cell, where there is a query.

    Parameters
    ----------
    obs: a row a cell; sample, cell (its name in the sample), role, and where given batch, donor.
    settings: validation and calibration (fractions of the reference cells), by (auto, cell or
        donor), min_donors (auto splits by donor from so many reference donors on).
    seed: of the draw. unit: what a row is, cells or samples.

    Returns
    -------
    split: (cells,) of train, validation, calibration, query.
    by: "donor" or "cell", what was split.
    warnings: one line each.

    Raises
    ------
    InputError: no reference or no query cells; by donor without usable donors; a split, or a cohort
        of bulk samples, too small.
    """
    reference = _reference(obs)
    warnings = _warnings_of_size(reference, unit)
    by = _unit(obs[reference], settings)
    fractions = (settings["validation"], settings["calibration"])
    part = _split_by_donor if by == "donor" else _split_by_cell
    split = np.full(len(obs), "query", dtype=object)
    split[reference] = part(obs[reference], *fractions, seed)
    sizes = {name: int((split == name).sum()) for name in MIN_CELLS}
    return split, by, warnings + _warnings(obs, reference, by) + _judge(sizes, by, unit)


def _reference(obs: pd.DataFrame) -> np.ndarray:
    """Which cells are reference; InputError where all are, or none."""
    reference = obs["role"].to_numpy() == "reference"
    if not reference.any():
        raise InputError(
            "sample table: no reference cells are left; give role reference to trusted normal "
            "cells, or role query to every sample to rank all cells among themselves"
        )
    if reference.all():
        raise InputError(
            "sample table: no query cells are left; give role query to the cells to be scored "
            "(role may be obs:COLUMN where one file holds both), or role reference to every sample "
            "to rank all cells among themselves"
        )
    return reference


def check_before_filtering(
    obs: pd.DataFrame, settings: dict, n_folds: int, unit: str = "cells"
) -> list[str]:
    """Refuse what :func:`split_cells` or :func:`fold_cells` would, whichever cells are dropped.

    ``obs``: role, and where given donor and batch, of all cells before any is filtered out. Returns
    the warnings; raises InputError.
    """
    reference = np.ones(len(obs), dtype=bool) if n_folds else _reference(obs)
    warnings = _warnings_of_size(reference, unit)
    by = _unit(obs[reference], settings, *([n_folds, f"the {n_folds} folds"] if n_folds else []))
    n = int(reference.sum())
    if n_folds:
        n_validation = len(_systematic(n, settings["validation"]))
        sizes = {"train": n - n_validation, "validation": n_validation}
        # The first fold holds out most of each.
        sizes = {name: size - -(-size // n_folds) for name, size in sizes.items()}
    else:
        validation, calibration = settings["validation"], settings["calibration"]
        n_held = len(_systematic(n, validation + calibration))
        n_validation = len(_systematic(n_held, validation / (validation + calibration)))
        sizes = {"train": n - n_held, "validation": n_validation}
        sizes["calibration"] = n_held - n_validation
    warnings += _warnings_of_role(obs) if n_folds else _warnings(obs, reference, by)
    # Of whole donors the shares follow from who is left.
    return warnings + (_judge(sizes, by, unit) if by == "cell" else [])


def fold_cells(
    obs: pd.DataFrame, settings: dict, n_folds: int, seed: int, unit: str = "cells"
) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Without a query: train or validation, and the fold of each cell, 1 to ``n_folds``.

    The model of a fold is trained on the training and stopped by the validation cells of all other
    folds. Whole donors go to one fold where the settings ask for it and there are enough.

    Returns
    -------
    split: (cells,) of train, validation. fold: (cells,) int. by: "donor" or "cell". warnings: one
    line each.

    Raises
    ------
    InputError: too few cells for so many folds, or too small a cohort of bulk samples.
    """
    warnings = _warnings_of_size(np.ones(len(obs), dtype=bool), unit) + _warnings_of_role(obs)
    by = _unit(obs, settings, n_folds, f"the {n_folds} folds")
    share = settings["validation"]
    split = np.full(len(obs), "train", dtype=object)
    names = zip(labels(obs, "sample"), labels(obs, "cell"), strict=True)
    order = np.argsort([_draw(seed, *pair) for pair in names], kind="stable")
    split[order[_systematic(len(order), share)]] = "validation"
    if by == "donor":
        donors, donor_of_cell = np.unique(labels(obs, "donor"), return_inverse=True)
        sizes = np.bincount(donor_of_cell) / len(obs)
        shuffled = np.random.default_rng(seed).permutation(len(donors))
        fold = _fill(shuffled, sizes, np.full(n_folds, 1.0 / n_folds))[0][donor_of_cell] + 1
    else:
        fold = np.empty(len(obs), dtype=int)
        # Apart from the validation cells, which are every so manieth of the same order.
        for name in ("train", "validation"):
            members = order[split[order] == name]
            fold[members] = np.arange(len(members)) % n_folds + 1
    left = [split[fold != held] for held in range(1, n_folds + 1)]
    sizes = {name: min(int((s == name).sum()) for s in left) for name in ("train", "validation")}
    return split, fold, by, warnings + _judge(sizes, by, unit)


def labels(obs: pd.DataFrame, column: str) -> np.ndarray:
    """A column as strings, "" where it is missing or the table has no such column."""
    if column not in obs:
        return np.full(len(obs), "", dtype=object)
    values = obs[column].astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy(dtype=object)


def _unit(
    reference: pd.DataFrame,
    settings: dict,
    least: int = 3,
    parts: str = "train, validation and calibration",
) -> str:
    """donor or cell; by donor needs at least so many donors, one for each of the ``parts``."""
    donors = labels(reference, "donor")
    n_donors, n_without = len(set(donors) - {""}), int((donors == "").sum())
    if settings["by"] == "donor":
        if n_without:
            raise InputError(
                f"preprocess.split.by is donor, but {n_without} of {len(reference)} reference "
                "cells have no donor; fill the column donor of the sample table or set by: cell"
            )
        if n_donors < least:
            raise InputError(
                f"preprocess.split.by is donor, but the reference has {n_donors} donor(s) and each "
                f"of {parts} needs one; set by: cell"
            )
        return "donor"
    enough = n_donors >= max(settings["min_donors"], least) and not n_without
    return "donor" if settings["by"] == "auto" and enough else "cell"


def _split_by_cell(
    cells: pd.DataFrame, validation: float, calibration: float, seed: int
) -> np.ndarray:
    """Systematic sampling of the cells, ordered by stratum (sample, batch) and then at random.

    Cell k of the ordered list is held out if round(h k) grows there, h = validation + calibration,
    and held-out cell j goes to validation in the same way. The whole and every stratum thus have
    the asked fractions within a cell or two, also when there are many small strata.
    """
    samples, names, batches = (labels(cells, c) for c in ("sample", "cell", "batch"))
    draws = [_draw(seed, sample, name) for sample, name in zip(samples, names, strict=True)]
    order = np.lexsort((draws, batches, samples))
    held = order[_systematic(len(order), validation + calibration)]
    split = np.full(len(cells), "train", dtype=object)
    split[held] = "calibration"
    split[held[_systematic(len(held), validation / (validation + calibration))]] = "validation"
    return split


def _draw(seed: int, *names: str) -> str:
    """A random key that depends on the seed and the names only."""
    return blake2b("\0".join([str(seed), *names]).encode(), digest_size=16).hexdigest()


def _systematic(n: int, fraction: float) -> np.ndarray:
    """Of 0..n-1 an evenly spaced share, floor(fraction n + 1/2) in number."""
    steps = np.floor(fraction * np.arange(n + 1) + 0.5)
    return np.flatnonzero(np.diff(steps))


def _split_by_donor(
    cells: pd.DataFrame, validation: float, calibration: float, seed: int
) -> np.ndarray:
    """Whole donors to one split each, balanced by their cells.

    Each draw is a random order of the donors: the first three open one split each, every other one
    goes where most cells are missing. The error of a draw is the largest deviation of a split's
    share of cells from the asked one.
    """
    donors, donor_of_cell = np.unique(labels(cells, "donor"), return_inverse=True)
    sizes = np.bincount(donor_of_cell) / len(cells)
    wanted = np.array([1 - validation - calibration, validation, calibration])
    rng = np.random.default_rng(seed)
    draws = [_fill(rng.permutation(len(donors)), sizes, wanted) for _ in range(N_DRAWS)]
    errors = np.array([error for _, error in draws])
    chosen = draws[int(np.argmax(errors <= errors.min() + TOLERANCE))][0]
    return np.array(["train", "validation", "calibration"], dtype=object)[chosen][donor_of_cell]


def _fill(order: np.ndarray, sizes: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, float]:
    """The split (0, 1, 2) of each donor when they are placed in this order, and its error."""
    split = np.empty(len(order), dtype=int)
    missing = wanted.copy()
    for position, donor in enumerate(order):
        split[donor] = position if position < len(wanted) else int(np.argmax(missing))
        missing[split[donor]] -= sizes[donor]
    return split, float(np.abs(missing).max())


def _judge(sizes: dict[str, int], by: str, unit: str) -> list[str]:
    """Refuse a split that leaves a stage nothing to work on; warn of one that leaves it little."""
    shares = " and ".join(f"preprocess.split.{name}" for name in sizes if name != "train")
    for name, n in sizes.items():
        if n < MIN_CELLS[name]:
            hint = " or split by cell (preprocess.split.by)" if by == "donor" else ""
            raise InputError(
                f"preprocess.split: only {n} {name} {unit} and {MIN_CELLS[name]} are needed; give "
                f"more reference {unit}, change {shares}{hint}"
            )
    few = [name for name, n in sizes.items() if n < FEW_CELLS[name]]
    if unit == "samples" or not few:  # of a cohort _warnings_of_size speaks
        return []
    found = _listed([f"{sizes[name]} {name}" for name in few])
    advised = _listed([str(FEW_CELLS[name]) for name in few])
    return [
        f"preprocess.split: only {found} cells (advised: {advised}), so only gross anomalies are "
        "found, and another seed may find others; bring more reference cells"
    ]


def _warnings_of_size(reference: np.ndarray, unit: str) -> list[str]:
    """Of a cohort, where a row is a bulk sample; InputError where it is too small."""
    n = int(reference.sum())
    return check_cohort(n, len(reference) - n) if unit == "samples" else []


def _warnings_of_role(obs: pd.DataFrame) -> list[str]:
    """Of a run in which all cells are ranked among themselves."""
    if (obs["role"] == "reference").all():
        return []
    return [
        "sample table: no sample has the role reference, so all cells are ranked among themselves, "
        "without an FDR guarantee; for one bring trusted normal cells as the reference"
    ]


def _warnings(obs: pd.DataFrame, reference: np.ndarray, by: str) -> list[str]:
    warnings = []
    batches, donors = labels(obs, "batch"), labels(obs, "donor")
    only_query = sorted(set(batches[~reference]) - set(batches[reference]) - {""})
    known, shared = set(batches) - {""}, set(batches[reference]) & set(batches[~reference]) - {""}
    if len(known) > 1 and only_query and not shared:
        warnings.append(
            f"no batch holds both reference and query (query: {_listed(only_query)}), so effects "
            "of the batch and anomalies cannot be told apart, and the false discovery rate does "
            "not hold; bring reference cells of the query's batches"
        )
    elif only_query:
        warnings.append(
            f"batch {_listed(only_query)} is in the query only, so its batch effect looks like "
            "anomalies; add reference cells of that batch"
        )
    new_donors = sorted(set(donors[~reference]) - set(donors[reference]) - {""})
    if by == "cell" and new_donors:
        warnings.append(
            f"{len(new_donors)} donor(s) of the query are not in the reference, which was split by "
            "cell, so differences between donors may look like anomalies; give reference cells of "
            "more donors and split by donor"
        )
    return warnings


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
