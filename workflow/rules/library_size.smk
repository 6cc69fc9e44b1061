"""The library size of every cell, the log offset of the model.

INPUTS
    results/<run>/preprocess/<sample>.h5ad                    all genes of the kept cells
    results/<run>/preprocess/counts.h5ad                      which cells, and their names
OUTPUTS
    results/<run>/library_size/library_size.parquet           cell_id, role, library_size, ...
    results/<run>/library_size/samples.tsv, summary.json      quantiles a sample
"""


rule compute_library_size:
    input:
        samples=expand(f"{RUN}/preprocess/{{sample}}.h5ad", sample=SAMPLES),
        counts=f"{RUN}/preprocess/counts.h5ad",
    output:
        library_size=f"{RUN}/library_size/library_size.parquet",
        samples=f"{RUN}/library_size/samples.tsv",
        summary=f"{RUN}/library_size/summary.json",
    log:
        logs("compute_library_size"),
    benchmark:
        times("compute_library_size")
    conda:
        "../../envs/anomics.yaml"
    resources:
        mem_mb=memory,
        runtime=minutes,
    params:
        method=config["library_size"]["method"],
        # Of a string that is no function's Snakemake would replace what is in braces.
        column=lambda wildcards: config["library_size"]["column"],
        code=code("compute_library_size.py"),
    script:
        "../scripts/compute_library_size.py"
