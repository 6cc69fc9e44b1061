"""Counts in: every sample read, filtered, joined; genes selected; reference cells split.

INPUTS
    the files of the sample table (config: samples)
OUTPUTS
    results/<run>/import/<sample>.h5ad, .summary.json         raw counts, unique names, metadata
    results/<run>/preprocess/<sample>.h5ad, .qc.parquet,
        .dropped.tsv, .summary.json                           kept cells; why each other one went
    results/<run>/preprocess/counts.h5ad                      one matrix; obs.split, var.selected
    results/<run>/preprocess/model_counts.h5ad                the model's genes, to be read in pieces
    results/<run>/preprocess/splits.tsv, summary.json
"""


rule make_example:
    output:
        EXAMPLE,
    log:
        "results/example_input/make_example.log",
    benchmark:
        "results/example_input/make_example.jsonl"
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        seed=1,
        code=code("make_example.py"),
    script:
        "../scripts/make_example.py"


rule make_bulk_example:
    output:
        controls=BULK_EXAMPLE[0],
        patients=BULK_EXAMPLE[1],
        outliers="results/example_input/bulk_outliers.tsv",
    log:
        "results/example_input/make_bulk_example.log",
    benchmark:
        "results/example_input/make_bulk_example.jsonl"
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        seed=1,
        code=code("make_bulk_example.py"),
    script:
        "../scripts/make_bulk_example.py"


rule import_counts:
    input:
        counts=lambda wildcards: SOURCES[wildcards.sample],
        # Snakemake does not see a change inside a folder.
        inside=lambda wildcards: configuration.files_inside(SAMPLES[wildcards.sample]["path"]),
    output:
        counts=f"{RUN}/import/{{sample}}.h5ad",
        summary=f"{RUN}/import/{{sample}}.summary.json",
    log:
        logs("import_counts", "{sample}"),
    benchmark:
        times("import_counts", "{sample}")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        row=lambda wildcards: SAMPLES[wildcards.sample],
        # Of a string that is no function's Snakemake would replace what is in braces.
        feature_type=lambda wildcards: config["import"]["feature_type"],
        code=code("import_counts.py"),
    script:
        "../scripts/import_counts.py"


rule filter_cells:
    input:
        counts=f"{RUN}/import/{{sample}}.h5ad",
    output:
        counts=f"{RUN}/preprocess/{{sample}}.h5ad",
        qc=f"{RUN}/preprocess/{{sample}}.qc.parquet",
        dropped=f"{RUN}/preprocess/{{sample}}.dropped.tsv",
        summary=f"{RUN}/preprocess/{{sample}}.summary.json",
    log:
        logs("filter_cells", "{sample}"),
    benchmark:
        times("filter_cells", "{sample}")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        limits=config["preprocess"]["filter_cells"],
        code=code("filter_cells.py"),
    script:
        "../scripts/filter_cells.py"


rule select_features:
    input:
        counts=expand(f"{RUN}/preprocess/{{sample}}.h5ad", sample=SAMPLES),
        gene_list=config["preprocess"]["select_features"]["gene_list"] or [],
    output:
        counts=f"{RUN}/preprocess/counts.h5ad",
        model_counts=f"{RUN}/preprocess/model_counts.h5ad",
        splits=f"{RUN}/preprocess/splits.tsv",
        summary=f"{RUN}/preprocess/summary.json",
    log:
        logs("select_features"),
    benchmark:
        times("select_features")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        settings=config["preprocess"]["select_features"],
        split=config["preprocess"]["split"],
        n_folds=len(FOLDS),
        observations=config["observations"],
        seed=config["seed"],
        code=code("select_features.py"),
    script:
        "../scripts/select_features.py"
