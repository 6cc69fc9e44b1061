"""The VAE, trained on the training cells of the reference.

INPUTS
    results/<run>/preprocess/counts.h5ad
    results/<run>/library_size/library_size.parquet
OUTPUTS
    results/<run>/train/<fit>/model.safetensors, model.json   the weights of the best held-out ELBO
    results/<run>/train/<fit>/history.parquet, kl.parquet, summary.json

A killed training leaves train/<fit>/checkpoint.safetensors and resumes from it. It is no output, so
that Snakemake does not delete it with the half-made files of a failed job.
"""


rule train_vae:
    input:
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
    output:
        weights=f"{RUN}/train/{{fit}}/model.safetensors",
        description=f"{RUN}/train/{{fit}}/model.json",
        history=f"{RUN}/train/{{fit}}/history.parquet",
        kl=f"{RUN}/train/{{fit}}/kl.parquet",
        summary=f"{RUN}/train/{{fit}}/summary.json",
    log:
        logs("train_vae", "{fit}"),
    benchmark:
        times("train_vae", "{fit}")
    conda:
        "../../envs/anomics.yaml"
    # More threads are set in the profile (set-threads: train_vae=4); the number changes the last
    # digits, so the default is one that every machine has.
    threads: 1
    resources:
        gpu=GPU,
    params:
        settings=config["train"],
        seed=lambda wildcards: int(wildcards.fit.removeprefix("seed")),
        device=config["device"],
        checkpoint=f"{RUN}/train/{{fit}}/checkpoint.safetensors",
        code=code("train_vae.py"),
    script:
        "../scripts/train_vae.py"
