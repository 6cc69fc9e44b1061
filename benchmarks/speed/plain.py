"""What an analyst would write with scanpy and scvi-tools: the steps of the pipeline in one script.

::

    python plain.py COUNTS.h5ad OUT.h5ad --threads 2

``obs["role"]`` says which cells are reference and which query. Default settings of both libraries,
SCVI's default training with it. Run by ``pipeline.py``, in an environment that has scvi-tools.
"""

import argparse
import logging
import time
import warnings

import anndata as ad
import matplotlib as mpl
import numpy as np
import scanpy as sc
import scipy.sparse as sp
import scvi
import torch
from scipy.stats import false_discovery_control
from sklearn.neighbors import NearestNeighbors

N_TOP, ALPHA = 2000, 0.1


def select(cells: ad.AnnData) -> ad.AnnData:
    """QC and variable genes; the counts of the model's genes."""
    cells.X = sp.csr_matrix(cells.X)
    cells.var["mito"] = cells.var_names.str.upper().str.startswith("MT-")
    sc.pp.calculate_qc_metrics(cells, qc_vars=["mito"], inplace=True, percent_top=None)
    sc.pp.filter_cells(cells, min_genes=50)
    cells = cells[cells.obs["pct_counts_mito"] <= 20].copy()
    sc.pp.filter_genes(cells, min_cells=5)
    sc.pp.highly_variable_genes(cells, n_top_genes=N_TOP, flavor="seurat_v3")
    return cells


def main() -> None:
    """Read, select, train, embed, map, score, draw, write; prints the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts")
    parser.add_argument("out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    mpl.use("Agg")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    scvi.settings.seed = 1
    clock = [time.perf_counter()]

    def tick(what: str) -> None:
        clock.append(time.perf_counter())
        print(f"{what}\t{clock[-1] - clock[-2]:.1f}", flush=True)

    cells = select(ad.read_h5ad(options.counts))
    in_model = cells[:, cells.var["highly_variable"]].copy()
    is_query = (in_model.obs["role"] == "query").to_numpy()
    # Of the reference a third calibrates, as in the pipeline.
    rng = np.random.default_rng(1)
    held = ~is_query & (rng.random(len(is_query)) < 1 / 3)
    fitted = in_model[~is_query & ~held].copy()
    tick("read, filter, select")
    scvi.model.SCVI.setup_anndata(fitted)
    model = scvi.model.SCVI(fitted)
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False)
    tick("train")
    latent = model.get_latent_representation(in_model)
    cells.obsm["X_scVI"] = latent
    tick("embed")
    sc.pp.neighbors(cells, use_rep="X_scVI")
    sc.tl.umap(cells)
    tick("map")
    rates = model.get_normalized_expression(in_model, library_size="latent", return_numpy=True)
    x = in_model.X.toarray()
    error = np.square(np.log1p(x) - np.log1p(rates)).mean(1)
    near = NearestNeighbors(n_neighbors=15).fit(latent[~is_query & ~held])
    far = near.kneighbors(latent)[0].mean(1)
    score = sum((s - s[held].mean()) / s[held].std() for s in (error, far))
    p = (1 + (score[held][None] >= score[is_query][:, None]).sum(1)) / (held.sum() + 1)
    cells.obs["score"] = score
    cells.obs["is_anomaly"] = False
    cells.obs.loc[is_query, "is_anomaly"] = false_discovery_control(p) <= ALPHA
    tick("score")
    if cells.obs["is_anomaly"].sum() > 1:
        log = cells.copy()
        sc.pp.normalize_total(log)
        sc.pp.log1p(log)
        log.obs["group"] = np.where(log.obs["is_anomaly"], "anomaly", "other")
        sc.tl.rank_genes_groups(log, "group", groups=["anomaly"], method="wilcoxon")
    tick("genes")
    with mpl.rc_context({"savefig.dpi": 300}):
        sc.pl.umap(cells, color=["role", "score", "is_anomaly"], show=False)
        mpl.pyplot.savefig(f"{options.out}.umap.png")
        sc.pl.violin(cells, ["total_counts", "pct_counts_mito"], groupby="role", show=False)
        mpl.pyplot.savefig(f"{options.out}.qc.png")
    tick("draw")
    cells.write_h5ad(options.out)
    tick("write")


if __name__ == "__main__":
    main()
