"""Latent dimensions judged by evidence, the model cut to those that pay, and fine-tuned.

INPUTS
    results/<run>/train/<fit>/model.safetensors, model.json
    results/<run>/preprocess/model_counts.h5ad
    results/<run>/library_size/library_size.parquet
OUTPUTS
    results/<run>/prune/<fit>/model.safetensors, model.json   the model that all later stages use
    results/<run>/prune/<fit>/evidence.parquet, evidence.tsv  KL, ablation, verdict a dimension
    results/<run>/prune/<fit>/elbo.tsv                        held-out ELBO: trained, cut, fine-tuned
    results/<run>/prune/<fit>/history.parquet, summary.json
    results/<run>/embed/<fit>/latent.parquet, umap.parquet    posterior of every cell; a map of it
    results/<run>/evidence/cells.parquet, groups.tsv,
        summary.json                                          log p(x), amortization gap a cell
"""


rule prune_latent:
    input:
        weights=f"{RUN}/train/{{fit}}/model.safetensors",
        description=f"{RUN}/train/{{fit}}/model.json",
        counts=f"{RUN}/preprocess/model_counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
        held=lambda wildcards: held_out_of(wildcards.fit),
    output:
        weights=f"{RUN}/prune/{{fit}}/model.safetensors",
        description=f"{RUN}/prune/{{fit}}/model.json",
        evidence=f"{RUN}/prune/{{fit}}/evidence.parquet",
        evidence_tsv=f"{RUN}/prune/{{fit}}/evidence.tsv",
        elbo=f"{RUN}/prune/{{fit}}/elbo.tsv",
        history=f"{RUN}/prune/{{fit}}/history.parquet",
        summary=f"{RUN}/prune/{{fit}}/summary.json",
    log:
        logs("prune_latent", "{fit}"),
    benchmark:
        times("prune_latent", "{fit}")
    conda:
        "../../envs/anomics.yaml"
    threads: 1
    resources:
        gpu=gpus,
        mem_mb=memory,
        runtime=minutes,
    params:
        settings=config["prune"],
        training=config["train"],
        seed=lambda wildcards: seed_of(wildcards.fit),
        fold=lambda wildcards: FOLDS.get(wildcards.fit),
        device=config["device"],
        checkpoint=f"{RUN}/prune/{{fit}}/checkpoint.safetensors",
        code=code("prune_latent.py"),
    script:
        "../scripts/prune_latent.py"


rule embed_cells:
    input:
        weights=f"{RUN}/prune/{{fit}}/model.safetensors",
        description=f"{RUN}/prune/{{fit}}/model.json",
        counts=f"{RUN}/preprocess/model_counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
    output:
        latent=f"{RUN}/embed/{{fit}}/latent.parquet",
    log:
        logs("embed_cells", "{fit}"),
    benchmark:
        times("embed_cells", "{fit}")
    conda:
        "../../envs/anomics.yaml"
    threads: 1
    resources:
        gpu=gpus,
        mem_mb=memory,
        runtime=minutes,
    params:
        # Steps and rate reach the embedding only where it is refined.
        refine=config["refine"] if config["refine"]["for_scores"] else None,
        seed=lambda wildcards: seed_of(wildcards.fit),
        device=config["device"],
        code=code("embed_cells.py"),
    script:
        "../scripts/embed_cells.py"


rule compute_umap:
    input:
        latent=f"{RUN}/embed/{{fit}}/latent.parquet",
    output:
        f"{RUN}/embed/{{fit}}/umap.parquet",
    log:
        logs("compute_umap", "{fit}"),
    benchmark:
        times("compute_umap", "{fit}")
    wildcard_constraints:
        fit=re.escape(FIT),
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        seed=config["seed"],
        umap_neighbors=config["report"]["umap_neighbors"],
        code=code("compute_umap.py"),
    script:
        "../scripts/compute_umap.py"


rule measure_evidence:
    input:
        weights=f"{RUN}/prune/{FIT}/model.safetensors",
        description=f"{RUN}/prune/{FIT}/model.json",
        counts=f"{RUN}/preprocess/model_counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
    output:
        cells=f"{RUN}/evidence/cells.parquet",
        groups=f"{RUN}/evidence/groups.tsv",
        summary=f"{RUN}/evidence/summary.json",
    log:
        logs("measure_evidence"),
    benchmark:
        times("measure_evidence")
    conda:
        "../../envs/anomics.yaml"
    threads: 1
    resources:
        gpu=gpus,
        mem_mb=memory,
        runtime=minutes,
    params:
        evidence=config["evidence"],
        refine=config["refine"],
        seed=config["seed"],
        device=config["device"],
        code=code("measure_evidence.py"),
    script:
        "../scripts/measure_evidence.py"
