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
