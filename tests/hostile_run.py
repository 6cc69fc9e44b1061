"""A small whole run whose data bear hostile names wherever data can have a name.

A test module imports from here and says ``pytest_plugins = ["hostile_run"]``. The import comes
before the plugin, hence PYTEST_DONT_REWRITE.
"""

from itertools import cycle
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from workflow_copy import EVERYTHING, SETTINGS, WorkflowCopy, small_counts

# Markup, templates, shells, formulas, quotes, and what turns the direction of writing.
NAMES = (
    "--></style></textarea></title><svg onload=alert(3)>",
    "]]><script>alert(4)</script>",
    "\"' onfocus=alert(5) autofocus='",
    "&lt;b&gt;&#60;&notit;",
    "javascript:alert(6)",
    "[mark](javascript:alert(7))![down](x.png)`*_#|~",
    "$(touch touched); `touch touched` | touch touched & \\",
    "%s%n{0}{fit}{sample}<results>",
    r"$\frac{1}{0}$ \$_^~",
    '=HYPERLINK("http://example.org/","x")',
    "+1",
    "@SUM(1)",
    "\uff1d1+1",
    "'quoted",
    '"',
    'a "b", c; d',
    "\u200f\u061cright \u200eleft\u200b",
    "\u05d0\u05d1\u05d2 \U0001f9ec e\u0301 \ufdfa",
    "not a character \ufdd0\U0001ffff",
    "NA",
    "1e5",
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "{{7*7}}{% raw %}${7*7}#{7*7}",
    "=cmd|' /C calc'!A0",
    "'=1+1",
    "+cmd()",
    "-2+3",
    '"=1+1"',
    "L" * 300,
)
GENES = (*(f"GENE{g}" for g in range(60 - len(NAMES))), *NAMES)
MARK, SCRIPT, FORMULA = NAMES[-10], NAMES[-9], NAMES[-6]
TYPES = (MARK, SCRIPT, "=1+1", "@SUM(1)")
FOLDER = 'data/it\'s "q"; $(touch touched) `touch touched` > 100%s uml\u00e4ut &'
PATHS = {"H-1_x.y": f"{FOLDER}/=healthy.h5ad", "query": f"{FOLDER}/-patient.zarr"}
GENE_LIST = "data/=genes & \" onerror=alert(8) '[x](y).txt"
LANE = "=lane <img src=x onerror=alert(9)> {fit}"
SIZE = "{sample} <results> =1+1"
OWN = "=1+1 <script>"
ROWS = [
    ["sample", "path", "role", "batch", "condition", "=note <img src=x onerror=alert(10)>"],
    ["H-1_x.y", PATHS["H-1_x.y"], "reference", MARK, FORMULA, SCRIPT],
    ["query", PATHS["query"], "query", FORMULA, "-2+3", MARK],
]


def hostile_counts(n_cells: int, seed: int, first: int, n_odd: int = 0) -> anndata.AnnData:
    """:func:`small_counts` with other names of genes, cells, columns and labels.

    The last ten genes, which the odd cells alone show, are named by what does most harm.
    """
    adata = small_counts(n_cells, seed=seed, first=first, n_odd=n_odd)
    adata.var_names = GENES
    adata.obs_names = [f"{name}{first + i}" for i, name in zip(range(n_cells), cycle(NAMES))]
    lanes = adata.obs.pop("lane").map({"L1": FORMULA, "L2": SCRIPT})
    # In labels, what controls a terminal or is no text is a blank.
    types = [f"{TYPES[i % 4]}\u2028\ufeff\uffff\x1b" for i in range(n_cells)]
    adata.obs = adata.obs.assign(
        **{LANE: lanes, "cell_type": pd.Categorical(types), OWN: pd.Categorical(lanes)},
        **{SIZE: np.asarray(adata.X.sum(axis=1)).ravel()},
    )
    return adata


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> WorkflowCopy:
    """The complete run. Tests read it only."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("hostile") / "here")
    (copy.folder / FOLDER).mkdir()
    for name in ("healthy", "patient"):
        (copy.folder / "data" / f"{name}.h5ad").unlink()
    healthy, patient = (copy.folder / path for path in PATHS.values())
    hostile_counts(160, seed=1, first=0).write_h5ad(healthy)
    hostile_counts(60, seed=2, first=130, n_odd=20).write_zarr(patient)
    (copy.folder / GENE_LIST).write_text("\n".join(["GENE1", *NAMES]), encoding="utf-8")
    table = pd.DataFrame(ROWS[1:], columns=ROWS[0])
    table.to_csv(copy.folder / "samples.tsv", sep="\t", index=False)
    copy.write_config(
        preprocess=SETTINGS["preprocess"]
        | {"select_features": {"n_features": 40, "gene_list": GENE_LIST}},
        library_size={"method": "column", "column": SIZE},
        train=EVERYTHING["train"] | {"covariates": [LANE], "likelihood": "nb"},
        **{"import": {"feature_type": "{sample} <results> =1+1"}},
    )
    copy.before = files_in(copy.folder)
    code, copy.output = copy.run()
    assert code == 0, copy.output
    return copy


def files_in(folder: Path) -> set[str]:
    """All files beside the results and Snakemake's own."""
    files = (path.relative_to(folder) for path in folder.rglob("*"))
    return {str(f) for f in files if f.parts[0] not in ("results", ".snakemake", "__pycache__")}
