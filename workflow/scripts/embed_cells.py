"""The posterior of every cell: where the pruned model puts it, and how surely."""

import pandas as pd
import torch

from job import job, write_parquet
from model_inputs import device_or_error, read_model_inputs
from omics_vae.inference import embed
from omics_vae.model import load_model

if __name__ == "__main__":
    with job(snakemake) as log:
        torch.set_num_threads(snakemake.threads)
        inputs = read_model_inputs(snakemake.input.counts, snakemake.input.library_size)
        model, _ = load_model(snakemake.input.weights, snakemake.input.description)
        mean, variance = embed(model, inputs.data, device_or_error(snakemake.params.device))
        table = pd.DataFrame({"cell_id": inputs.cells.index.to_numpy()})
        for name, values in (("mean", mean), ("variance", variance)):
            columns = [f"{name}_{j}" for j in range(values.shape[1])]
            table = pd.concat([table, pd.DataFrame(values, columns=columns)], axis=1)
        write_parquet(table, snakemake.output.latent)
        log.info("embed_cells: %d cells in %d dimensions", *mean.shape)
