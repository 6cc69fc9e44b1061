"""What people see: figures from tables, the annotated matrix, the report.

INPUTS
    the tables of all stages
OUTPUTS
    results/<run>/figures/<name>.pdf .svg .png .tsv           a figure and its source data
    results/<run>/annotated.h5ad                              all cells with scores, for scanpy
    results/<run>/report.html, methods.md, references.bib
    results/<run>/run.json, ro-crate-metadata.json            what made all this; as an RO-Crate
"""

FIGURES = ["qc", "library_size", "training", "pruning", "latent", "anomalies", "patterns", "genes"]
FIGURES += ["check"] if IS_CHECKED else []
FIGURES += ["rate_distortion"] if BETAS else []
FIGURES += ["correlation"] if IS_BULK else []
# Made only where the config asks for them: [path] or none.
COMPARISON = [f"{RUN}/likelihood/comparison.tsv"] if IS_AUTO else []
CURVE = [f"{RUN}/rate_distortion/curve.tsv"] if BETAS else []
PAIRS = [f"{RUN}/stability/pairs.tsv"] if OTHER_SEEDS else []
CHECK = [f"{RUN}/check/check.tsv"] if IS_CHECKED else []
CORRELATION = [f"{RUN}/correlation/pairs.parquet"] if IS_BULK else []
GENE_LIST = [*filter(None, [config["preprocess"]["select_features"]["gene_list"]])]
# What every stage says of itself, warnings included.
SUMMARIES = [
    *expand(f"{RUN}/import/{{sample}}.summary.json", sample=SAMPLES),
    *expand(f"{RUN}/preprocess/{{sample}}.summary.json", sample=SAMPLES),
    f"{RUN}/preprocess/summary.json",
    f"{RUN}/library_size/summary.json",
    f"{RUN}/train/{FIT}/summary.json",
    f"{RUN}/prune/{FIT}/summary.json",
    f"{RUN}/evidence/summary.json",
    f"{RUN}/anomaly/summary.json",
    f"{RUN}/genes/summary.json",
    f"{RUN}/patterns/summary.json",
    *(
        f"{Path(path).parent}/summary.json"
        for path in COMPARISON + CURVE + PAIRS + CHECK + DOUBLETS + CORRELATION
    ),
]
# What the page is put together from.
PAGE = [f"report/{file}" for file in ("report.html", "report.css", "page.js", "table.js", "map.js")]
# Printed in the report: what a number may depend on.
VERSIONS = (
    "snakemake torch scanpy anndata numpy scipy numba pandas scikit-learn scikit-misc umap-learn"
).split()
# What Snakemake's report holds beside the figures, as inputs of the rule all. Not report.html: in a
# report that is one file it would be a link longer than Chromium follows.
TABLES = [
    in_report(f"{RUN}/{path}", f"workflow/report/{caption}.rst", "Results", title)
    for path, caption, title in (
        ("methods.md", "methods", "Methods paragraph"),
        ("anomaly/cells.tsv", "cells_table", "Verdict on each query cell or sample"),
        ("patterns/patterns.tsv", "patterns_table", "Patterns of anomalies"),
        ("genes/genes.tsv", "genes_table", "Outlier genes"),
    )
]
# What a run is for; all else is made on the way to it.
RESULTS = [
    f"{RUN}/report.html",
    *map(str, TABLES),
    f"{RUN}/references.bib",
    f"{RUN}/annotated.h5ad",
    f"{RUN}/prune/{FIT}/evidence.tsv",
]


rule plot_qc:
    input:
        qc=expand(f"{RUN}/preprocess/{{sample}}.qc.parquet", sample=SAMPLES),
        summaries=expand(f"{RUN}/preprocess/{{sample}}.summary.json", sample=SAMPLES),
    output:
        **figure_files("qc", "Quality control", "Cells kept and dropped"),
    log:
        logs("plot_qc"),
    benchmark:
        times("plot_qc")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_qc.py"),
    script:
        "../scripts/plot_qc.py"


rule plot_library_size:
    input:
        library_size=f"{RUN}/library_size/library_size.parquet",
    output:
        **figure_files("library_size", "Library size", "Library sizes"),
    log:
        logs("plot_library_size"),
    benchmark:
        times("plot_library_size")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_library_size.py"),
    script:
        "../scripts/plot_library_size.py"


rule plot_training:
    input:
        history=f"{RUN}/train/{FIT}/history.parquet",
        kl=f"{RUN}/train/{FIT}/kl.parquet",
        summary=f"{RUN}/train/{FIT}/summary.json",
    output:
        **figure_files("training", "Model", "Training"),
    log:
        logs("plot_training"),
    benchmark:
        times("plot_training")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_training.py"),
    script:
        "../scripts/plot_training.py"


rule plot_pruning:
    input:
        evidence=f"{RUN}/prune/{FIT}/evidence.parquet",
        elbo=f"{RUN}/prune/{FIT}/elbo.tsv",
        summary=f"{RUN}/prune/{FIT}/summary.json",
    output:
        **figure_files("pruning", "Model", "Pruning of latent dimensions"),
    log:
        logs("plot_pruning"),
    benchmark:
        times("plot_pruning")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_pruning.py"),
    script:
        "../scripts/plot_pruning.py"


rule plot_latent:
    input:
        umap=f"{RUN}/embed/{FIT}/umap.parquet",
        cells=f"{RUN}/anomaly/cells.parquet",
        counts=f"{RUN}/preprocess/counts.h5ad",
    output:
        **figure_files("latent", "Model", "Map of the latent space"),
    log:
        logs("plot_latent"),
    benchmark:
        times("plot_latent")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_latent.py"),
    script:
        "../scripts/plot_latent.py"


rule plot_anomalies:
    input:
        cells=f"{RUN}/anomaly/cells.parquet",
        summary=f"{RUN}/anomaly/summary.json",
        counts=f"{RUN}/preprocess/counts.h5ad",
    output:
        **figure_files("anomalies", "Anomalies", "Scores, p-values, anomalies a sample"),
    log:
        logs("plot_anomalies"),
    benchmark:
        times("plot_anomalies")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_anomalies.py"),
    script:
        "../scripts/plot_anomalies.py"


rule plot_patterns:
    input:
        patterns=f"{RUN}/patterns/patterns.tsv",
        markers=f"{RUN}/patterns/markers.tsv",
        sizes=f"{RUN}/patterns/sizes.tsv",
        residuals=f"{RUN}/patterns/residuals.parquet",
        cells=f"{RUN}/patterns/cells.parquet",
        splits=f"{RUN}/preprocess/splits.tsv",
    output:
        **figure_files("patterns", "Anomalies", "Patterns of flagged cells"),
    log:
        logs("plot_patterns"),
    benchmark:
        times("plot_patterns")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        observations=config["observations"],
        code=code("plot_patterns.py"),
    script:
        "../scripts/plot_patterns.py"


rule plot_genes:
    input:
        hits=f"{RUN}/genes/genes.parquet",
        density=f"{RUN}/genes/density.tsv",
        top=f"{RUN}/genes/top.parquet",
        outliers=f"{RUN}/genes/outliers.tsv",
        summary=f"{RUN}/genes/summary.json",
    output:
        **figure_files("genes", "Anomalies", "Outlier genes"),
    log:
        logs("plot_genes"),
    benchmark:
        times("plot_genes")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        code=code("plot_genes.py"),
    script:
        "../scripts/plot_genes.py"


if IS_BULK:

    rule plot_correlation:
        input:
            pairs=f"{RUN}/correlation/pairs.parquet",
            samples=f"{RUN}/correlation/samples.tsv",
            summary=f"{RUN}/correlation/summary.json",
            outliers=f"{RUN}/genes/outliers.tsv",
        output:
            **figure_files("correlation", "Model", "Samples before and after the model"),
        log:
            logs("plot_correlation"),
        benchmark:
            times("plot_correlation")
        conda:
            "../../envs/anomics.yaml"
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            code=code("plot_correlation.py"),
        script:
            "../scripts/plot_correlation.py"


if IS_CHECKED:

    rule plot_check:
        input:
            draws=f"{RUN}/check/check.parquet",
            summary=f"{RUN}/check/summary.json",
        output:
            **figure_files("check", "Anomalies", "What would be found"),
        log:
            logs("plot_check"),
        benchmark:
            times("plot_check")
        conda:
            "../../envs/anomics.yaml"
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            code=code("plot_check.py"),
        script:
            "../scripts/plot_check.py"


if BETAS:

    rule plot_rate_distortion:
        input:
            curve=f"{RUN}/rate_distortion/curve.tsv",
            summary=f"{RUN}/rate_distortion/summary.json",
        output:
            **figure_files("rate_distortion", "Model", "Rate and distortion"),
        log:
            logs("plot_rate_distortion"),
        benchmark:
            times("plot_rate_distortion")
        conda:
            "../../envs/anomics.yaml"
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            observations=config["observations"],
            code=code("plot_rate_distortion.py"),
        script:
            "../scripts/plot_rate_distortion.py"


rule annotate_counts:
    input:
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
        latent=f"{RUN}/embed/{FIT}/latent.parquet",
        umap=f"{RUN}/embed/{FIT}/umap.parquet",
        cells=f"{RUN}/anomaly/cells.parquet",
        reasons=f"{RUN}/patterns/cells.parquet",
        doublets=DOUBLETS,
    output:
        f"{RUN}/annotated.h5ad",
    log:
        logs("annotate_counts"),
    benchmark:
        times("annotate_counts")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        code=code("annotate_counts.py"),
    script:
        "../scripts/annotate_counts.py"


rule write_report:
    input:
        figures=expand(f"{RUN}/figures/{{figure}}.png", figure=FIGURES),
        texts=expand(f"{RUN}/figures/{{figure}}.txt", figure=FIGURES),
        summaries=SUMMARIES,
        splits=f"{RUN}/preprocess/splits.tsv",
        samples_library=f"{RUN}/library_size/samples.tsv",
        evidence=f"{RUN}/prune/{FIT}/evidence.parquet",
        elbo=f"{RUN}/prune/{FIT}/elbo.tsv",
        gaps=f"{RUN}/evidence/groups.tsv",
        comparison=COMPARISON,
        curve=CURVE,
        pairs=PAIRS,
        check=CHECK,
        channels=f"{RUN}/anomaly/channels.tsv",
        cells=f"{RUN}/anomaly/cells.parquet",
        reasons=f"{RUN}/anomaly/cells.tsv",
        genes=f"{RUN}/genes/genes.tsv",
        outliers=f"{RUN}/genes/outliers.tsv",
        patterns=f"{RUN}/patterns/patterns.tsv",
        markers=f"{RUN}/patterns/markers.tsv",
        groups=f"{RUN}/patterns/groups.tsv",
        counts=f"{RUN}/preprocess/counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
        umap=f"{RUN}/embed/{FIT}/umap.parquet",
    output:
        report=f"{RUN}/report.html",
        methods=f"{RUN}/methods.md",
        bibtex=f"{RUN}/references.bib",
    log:
        logs("write_report"),
    benchmark:
        times("write_report")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        config=config,
        versions=VERSIONS,
        code=code("write_report.py", *PAGE),
    script:
        "../scripts/write_report.py"


# The last rule, for it records what all others wrote and took.
rule record_run:
    input:
        results=RESULTS,
        imports=expand(f"{RUN}/import/{{sample}}.summary.json", sample=SAMPLES),
        gene_list=GENE_LIST,
        train=f"{RUN}/train/{FIT}/summary.json",
    output:
        record=f"{RUN}/run.json",
        crate=f"{RUN}/ro-crate-metadata.json",
    log:
        logs("record_run"),
    benchmark:
        times("record_run")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        config=config,
        samples=SAMPLES,
        packages=[*VERSIONS, "pyarrow", "safetensors"],
        files=files_of_rules(),
        code=code("record_run.py"),
    script:
        "../scripts/record_run.py"
