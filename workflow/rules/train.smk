"""The VAE, trained on the training cells of the reference; which likelihood, which beta.

INPUTS
    results/<run>/preprocess/model_counts.h5ad
    results/<run>/library_size/library_size.parquet
OUTPUTS
    results/<run>/train/<fit>/model.safetensors, model.json   the weights of the best held-out ELBO
    results/<run>/train/<fit>/history.parquet, kl.parquet, validation.parquet, summary.json
    results/<run>/likelihood/comparison.tsv, summary.json     with train.likelihood: auto
    results/<run>/rate_distortion/curve.tsv, summary.json     with rate_distortion.betas

A fit is named after its seed and what it changes: seed1, seed1-zinb, seed1-beta0.5; seed1-fold2 has
not seen that fold, seed1-group not the cells of check/group.parquet.
A killed training leaves train/<fit>/checkpoint.safetensors and resumes from it. It is no output, so
that Snakemake does not delete it with the half-made files of a failed job.
"""

BESIDE_THE_MODEL = ["history.parquet", "kl.parquet", "validation.parquet", "summary.json"]


rule train_vae:
    input:
        counts=f"{RUN}/preprocess/model_counts.h5ad",
        library_size=f"{RUN}/library_size/library_size.parquet",
        # With likelihood: auto, what is no candidate itself waits for the choice.
        choice=lambda wildcards: (
            f"{RUN}/likelihood/summary.json" if IS_AUTO and wildcards.fit not in CANDIDATES else []
        ),
        held=lambda wildcards: held_out_of(wildcards.fit),
    output:
        weights=f"{RUN}/train/{{fit}}/model.safetensors",
        description=f"{RUN}/train/{{fit}}/model.json",
        history=f"{RUN}/train/{{fit}}/history.parquet",
        kl=f"{RUN}/train/{{fit}}/kl.parquet",
        validation=f"{RUN}/train/{{fit}}/validation.parquet",
        summary=f"{RUN}/train/{{fit}}/summary.json",
    log:
        logs("train_vae", "{fit}"),
    benchmark:
        times("train_vae", "{fit}")
    wildcard_constraints:
        fit="|".join(map(re.escape, TRAINED)),
    conda:
        "../../envs/anomics.yaml"
    # More threads are set in the profile (set-threads: train_vae=4); the number changes the last
    # digits, so the default is one that every machine has.
    threads: 1
    resources:
        gpu=gpus,
        mem_mb=memory,
        runtime=minutes,
    params:
        settings=lambda wildcards: settings_of(wildcards.fit),
        seed=lambda wildcards: seed_of(wildcards.fit),
        fold=lambda wildcards: FOLDS.get(wildcards.fit),
        device=config["device"],
        checkpoint=f"{RUN}/train/{{fit}}/checkpoint.safetensors",
        code=code("train_vae.py"),
    script:
        "../scripts/train_vae.py"


if IS_AUTO:

    rule choose_likelihood:
        input:
            weights=expand(f"{RUN}/train/{{fit}}/model.safetensors", fit=CANDIDATES),
            descriptions=expand(f"{RUN}/train/{{fit}}/model.json", fit=CANDIDATES),
            rest=expand(f"{RUN}/train/{{fit}}/{{name}}", fit=CANDIDATES, name=BESIDE_THE_MODEL),
            counts=f"{RUN}/preprocess/model_counts.h5ad",
            library_size=f"{RUN}/library_size/library_size.parquet",
        output:
            fit=expand(
                f"{RUN}/train/{FIT}/{{name}}",
                name=["model.safetensors", "model.json", *BESIDE_THE_MODEL],
            ),
            comparison=f"{RUN}/likelihood/comparison.tsv",
            choice=f"{RUN}/likelihood/summary.json",
        log:
            logs("choose_likelihood"),
        benchmark:
            times("choose_likelihood")
        conda:
            "../../envs/anomics.yaml"
        threads: 1
        resources:
            gpu=gpus,
            mem_mb=memory,
            runtime=minutes,
        params:
            likelihoods=list(CANDIDATES.values()),
            samples=config["evidence"]["samples"],
            device=config["device"],
            code=code("choose_likelihood.py"),
        script:
            "../scripts/choose_likelihood.py"


if BETAS:

    rule trace_rate_distortion:
        input:
            summaries=expand(f"{RUN}/train/{{fit}}/summary.json", fit=[FIT, *BETAS]),
            validations=expand(f"{RUN}/train/{{fit}}/validation.parquet", fit=[FIT, *BETAS]),
        output:
            curve=f"{RUN}/rate_distortion/curve.tsv",
            summary=f"{RUN}/rate_distortion/summary.json",
        log:
            logs("trace_rate_distortion"),
        benchmark:
            times("trace_rate_distortion")
        conda:
            "../../envs/anomics.yaml"
        resources:
            mem_mb=memory,
            runtime=minutes,
        params:
            beta=config["train"]["beta"],
            code=code("trace_rate_distortion.py"),
        script:
            "../scripts/trace_rate_distortion.py"
