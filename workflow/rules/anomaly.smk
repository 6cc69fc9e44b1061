"""Which query cells do not fit what the model learned, how sure that is, and why.

INPUTS
    results/<run>/prune/<fit>/model.safetensors, model.json
    results/<run>/embed/<fit>/latent.parquet
    results/<run>/preprocess/counts.h5ad
    results/<run>/library_size/library_size.parquet
OUTPUTS
    results/<run>/anomaly/cells.parquet                       the verdict on every cell, all channels
    results/<run>/anomaly/channels.tsv, trimmed.tsv,
        summary.json                                          what each kind of evidence is worth
    results/<run>/anomaly/cells.tsv                           the verdict on every query cell, with reasons
    results/<run>/genes/genes.tsv, genes.parquet              outlier genes of flagged cells or samples
    results/<run>/genes/genes_all.parquet, outliers.tsv,
        density.tsv, top.parquet, summary.json                every test; outlier genes a cell; for the
                                                              figure: where tests lie, leading genes
    results/<run>/doublets/cells.parquet, summary.json        how probably a cell is a doublet, of what
    results/<run>/patterns/patterns.tsv, markers.tsv,
        cells.parquet, sizes.tsv, groups.tsv,
        residuals.parquet, summary.json                       flagged cells that are odd alike
    results/<run>/check/group.parquet, group.json             cells held out of a second training
    results/<run>/check/check.tsv, check.parquet,
        summary.json                                          what is found of injected anomalies
    results/<run>/correlation/pairs.parquet, samples.tsv,
        summary.json                                          samples before and after the model, of bulk
    results/<run>/stability/pairs.tsv, cells.tsv, summary.json  other seeds, with stability.n_seeds
    results/<run>/stability/<fit>/                            the verdict of each other seed

Without a query each fold of the reference is scored by a fit of its own (seed1-fold2).
"""

# Made only where the config asks for it: [path] or none.
DOUBLETS = [] if IS_BULK else [f"{RUN}/doublets/cells.parquet"]


rule detect_anomalies:
    input:
        weights=scored_by(SCORED_BY, "prune/{fit}/model.safetensors"),
        descriptions=scored_by(SCORED_BY, "prune/{fit}/model.json"),
        latents=scored_by(SCORED_BY, "embed/{fit}/latent.parquet"),
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
    output:
        cells=f"{RUN}/anomaly/cells.parquet",
        trimmed=f"{RUN}/anomaly/trimmed.tsv",
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
        mem_mb=memory,
        runtime=minutes,
    params:
        settings=DETECTION,
        folds=SCORED_FOLDS,
        seed=config["seed"],
        observations=config["observations"],
        code=code("detect_anomalies.py"),
    script:
        "../scripts/detect_anomalies.py"


if OTHER_SEEDS:

    use rule detect_anomalies as detect_anomalies_again with:
        input:
            weights=[f"{RUN}/prune/{{fit}}/model.safetensors"],
            descriptions=[f"{RUN}/prune/{{fit}}/model.json"],
            latents=[f"{RUN}/embed/{{fit}}/latent.parquet"],
            counts=f"{RUN}/preprocess/counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            cells=f"{RUN}/stability/{{fit}}/cells.parquet",
            trimmed=f"{RUN}/stability/{{fit}}/trimmed.tsv",
            channels=f"{RUN}/stability/{{fit}}/channels.tsv",
            summary=f"{RUN}/stability/{{fit}}/summary.json",
        log:
            logs("detect_anomalies_again", "{fit}"),
        benchmark:
            times("detect_anomalies_again", "{fit}")
        wildcard_constraints:
            fit="|".join(map(re.escape, OTHER_SEEDS)),
        params:
            settings=DETECTION,
            folds=[None],
            seed=lambda wildcards: seed_of(wildcards.fit),
            observations=config["observations"],
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
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            seeds=SEEDS,
            seed=config["seed"],
            code=code("measure_stability.py"),
        script:
            "../scripts/measure_stability.py"


if not IS_BULK:

    rule score_doublets:
        input:
            weights=scored_by(SCORED_BY, "prune/{fit}/model.safetensors"),
            descriptions=scored_by(SCORED_BY, "prune/{fit}/model.json"),
            latents=scored_by(SCORED_BY, "embed/{fit}/latent.parquet"),
            counts=f"{RUN}/preprocess/counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            cells=f"{RUN}/doublets/cells.parquet",
            summary=f"{RUN}/doublets/summary.json",
        log:
            logs("score_doublets"),
        benchmark:
            times("score_doublets")
        conda:
            "../../envs/anomics.yaml"
        threads: 1
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            settings=config["doublets"],
            folds=SCORED_FOLDS,
            seed=config["seed"],
            code=code("score_doublets.py"),
        script:
            "../scripts/score_doublets.py"


if HELD_OUT:

    rule choose_held_group:
        input:
            description=f"{RUN}/prune/{FIT}/model.json",
            latent=f"{RUN}/embed/{FIT}/latent.parquet",
            counts=f"{RUN}/preprocess/counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            group=f"{RUN}/check/group.parquet",
            summary=f"{RUN}/check/group.json",
        log:
            logs("choose_held_group"),
        benchmark:
            times("choose_held_group")
        conda:
            "../../envs/anomics.yaml"
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            seed=config["seed"],
            code=code("choose_held_group.py"),
        script:
            "../scripts/choose_held_group.py"


if IS_CHECKED:

    rule check_injected:
        input:
            fit_weights=f"{RUN}/prune/{SCORED_BY[0]}/model.safetensors",
            fit_description=f"{RUN}/prune/{SCORED_BY[0]}/model.json",
            fit_latent=f"{RUN}/embed/{SCORED_BY[0]}/latent.parquet",
            group=[f"{RUN}/check/group.parquet" for _ in HELD_OUT],
            group_summary=[f"{RUN}/check/group.json" for _ in HELD_OUT],
            group_weights=scored_by(HELD_OUT, "prune/{fit}/model.safetensors"),
            group_description=scored_by(HELD_OUT, "prune/{fit}/model.json"),
            group_latent=scored_by(HELD_OUT, "embed/{fit}/latent.parquet"),
            counts=f"{RUN}/preprocess/counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            draws=f"{RUN}/check/check.parquet",
            table=f"{RUN}/check/check.tsv",
            summary=f"{RUN}/check/summary.json",
        log:
            logs("check_injected"),
        benchmark:
            times("check_injected")
        conda:
            "../../envs/anomics.yaml"
        threads: 1
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            settings=DETECTION,
            observations=config["observations"],
            fold=SCORED_FOLDS[0],
            seed=config["seed"],
            code=code("check_injected.py"),
        script:
            "../scripts/check_injected.py"


rule score_genes:
    input:
        weights=scored_by(SCORED_BY, "prune/{fit}/model.safetensors"),
        descriptions=scored_by(SCORED_BY, "prune/{fit}/model.json"),
        latents=scored_by(SCORED_BY, "embed/{fit}/latent.parquet"),
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
        cells=f"{RUN}/anomaly/cells.parquet",
    output:
        genes_tsv=f"{RUN}/genes/genes.tsv",
        genes=f"{RUN}/genes/genes.parquet",
        full=f"{RUN}/genes/genes_all.parquet",
        outliers=f"{RUN}/genes/outliers.tsv",
        density=f"{RUN}/genes/density.tsv",
        top=f"{RUN}/genes/top.parquet",
        summary=f"{RUN}/genes/summary.json",
    log:
        logs("score_genes"),
    benchmark:
        times("score_genes")
    conda:
        "../../envs/anomics.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        settings=config["genes"],
        observations=config["observations"],
        folds=SCORED_FOLDS,
        seed=config["seed"],
        code=code("score_genes.py"),
    script:
        "../scripts/score_genes.py"


rule explain_anomalies:
    input:
        weights=scored_by(SCORED_BY[:1], "prune/{fit}/model.safetensors"),
        descriptions=scored_by(SCORED_BY[:1], "prune/{fit}/model.json"),
        latents=scored_by(SCORED_BY[:1], "embed/{fit}/latent.parquet"),
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
        cells=f"{RUN}/anomaly/cells.parquet",
        genes=f"{RUN}/genes/genes.parquet",
        doublets=DOUBLETS,
    output:
        cells_tsv=f"{RUN}/anomaly/cells.tsv",
        cells=f"{RUN}/patterns/cells.parquet",
        patterns=f"{RUN}/patterns/patterns.tsv",
        markers=f"{RUN}/patterns/markers.tsv",
        residuals=f"{RUN}/patterns/residuals.parquet",
        sizes=f"{RUN}/patterns/sizes.tsv",
        groups=f"{RUN}/patterns/groups.tsv",
        summary=f"{RUN}/patterns/summary.json",
    log:
        logs("explain_anomalies"),
    benchmark:
        times("explain_anomalies")
    conda:
        "../../envs/anomics.yaml"
    threads: 1
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        folds=SCORED_FOLDS[:1],
        seed=config["seed"],
        code=code("explain_anomalies.py"),
    script:
        "../scripts/explain_anomalies.py"


if IS_BULK:

    rule correlate_samples:
        input:
            weights=scored_by(SCORED_BY, "prune/{fit}/model.safetensors"),
            descriptions=scored_by(SCORED_BY, "prune/{fit}/model.json"),
            latents=scored_by(SCORED_BY, "embed/{fit}/latent.parquet"),
            counts=f"{RUN}/preprocess/counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            pairs=f"{RUN}/correlation/pairs.parquet",
            samples=f"{RUN}/correlation/samples.tsv",
            summary=f"{RUN}/correlation/summary.json",
        log:
            logs("correlate_samples"),
        benchmark:
            times("correlate_samples")
        conda:
            "../../envs/anomics.yaml"
        threads: 1
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            folds=SCORED_FOLDS,
            code=code("correlate_samples.py"),
        script:
            "../scripts/correlate_samples.py"
