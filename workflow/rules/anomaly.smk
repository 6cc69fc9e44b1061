"""Which query cells do not fit what the model learned, how sure that is, and their genes.

INPUTS
    results/<run>/prune/<fit>/model.safetensors, model.json
    results/<run>/embed/<fit>/latent.parquet
    results/<run>/preprocess/counts.h5ad
    results/<run>/library_size/library_size.parquet
OUTPUTS
    results/<run>/anomaly/cells.tsv                           the verdict on every query cell
    results/<run>/anomaly/cells.parquet                       the same with all channels
    results/<run>/anomaly/genes.tsv, genes.parquet            the genes that make a flagged cell odd
    results/<run>/anomaly/channels.tsv, summary.json          what each kind of evidence is worth
    results/<run>/stability/pairs.tsv, cells.tsv, summary.json  other seeds, with stability.n_seeds
    results/<run>/stability/<fit>/                            the verdict of each other seed
"""


rule detect_anomalies:
    input:
        weights=f"{RUN}/prune/{FIT}/model.safetensors",
        description=f"{RUN}/prune/{FIT}/model.json",
        latent=f"{RUN}/embed/{FIT}/latent.parquet",
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
    output:
        cells_tsv=f"{RUN}/anomaly/cells.tsv",
        cells=f"{RUN}/anomaly/cells.parquet",
        genes_tsv=f"{RUN}/anomaly/genes.tsv",
        genes=f"{RUN}/anomaly/genes.parquet",
        channels=f"{RUN}/anomaly/channels.tsv",
        summary=f"{RUN}/anomaly/summary.json",
    log:
        logs("detect_anomalies"),
    benchmark:
        times("detect_anomalies")
    conda:
        "../../envs/anomics.yaml"
    threads: 1
    resources:
        gpu=GPU,
    params:
        settings=config["anomaly"],
        seed=config["seed"],
        device=config["device"],
        code=code("detect_anomalies.py"),
    script:
        "../scripts/detect_anomalies.py"


if OTHER_SEEDS:

    use rule detect_anomalies as detect_anomalies_again with:
        input:
            weights=f"{RUN}/prune/{{fit}}/model.safetensors",
            description=f"{RUN}/prune/{{fit}}/model.json",
            latent=f"{RUN}/embed/{{fit}}/latent.parquet",
            counts=f"{RUN}/preprocess/counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            cells_tsv=f"{RUN}/stability/{{fit}}/cells.tsv",
            cells=f"{RUN}/stability/{{fit}}/cells.parquet",
            genes_tsv=f"{RUN}/stability/{{fit}}/genes.tsv",
            genes=f"{RUN}/stability/{{fit}}/genes.parquet",
            channels=f"{RUN}/stability/{{fit}}/channels.tsv",
            summary=f"{RUN}/stability/{{fit}}/summary.json",
        log:
            logs("detect_anomalies_again", "{fit}"),
        benchmark:
            times("detect_anomalies_again", "{fit}")
        params:
            settings=config["anomaly"],
            seed=lambda wildcards: seed_of(wildcards.fit),
            device=config["device"],
            code=code("detect_anomalies.py"),

    rule measure_stability:
        input:
            latents=expand(f"{RUN}/embed/{{fit}}/latent.parquet", fit=[FIT, *OTHER_SEEDS]),
            cells=[
                f"{RUN}/anomaly/cells.parquet",
                *expand(f"{RUN}/stability/{{fit}}/cells.parquet", fit=OTHER_SEEDS),
            ],
        output:
            pairs=f"{RUN}/stability/pairs.tsv",
            cells=f"{RUN}/stability/cells.tsv",
            summary=f"{RUN}/stability/summary.json",
        log:
            logs("measure_stability"),
        benchmark:
            times("measure_stability")
        conda:
            "../../envs/anomics.yaml"
        params:
            seeds=SEEDS,
            seed=config["seed"],
            code=code("measure_stability.py"),
        script:
            "../scripts/measure_stability.py"
