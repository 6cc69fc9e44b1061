"""The posterior of every cell: where the pruned model puts it, and how surely."""

import numpy as np
import torch

from job import job, write_parquet
from model_inputs import device_or_error, latent_table, read_fit
from omics_vae.inference import embed, refine
from stored_counts import ROW, counts_memory

if __name__ == "__main__":
    with job(snakemake) as log:
        params = snakemake.params
        torch.set_num_threads(snakemake.threads)
        device = device_or_error(params.device)
        model, inputs = read_fit(snakemake.input, counts_memory(snakemake))
        if params.refine:
            steps, rate = params.refine["steps"], params.refine["learning_rate"]
            found = refine(model, inputs.data, device, steps, rate, seed=params.seed).embedding
        else:
            found = embed(model, inputs.data, device)
        table = latent_table(inputs.cells.index.to_numpy(), found)
        # In the order of counts.h5ad.
        table = table.iloc[np.argsort(inputs.cells[ROW].to_numpy())]
        write_parquet(table, snakemake.output.latent)
        log.info("embed_cells: %d cells in %d dimensions", *found.mean.shape)
