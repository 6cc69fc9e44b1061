"""anomics: anomalous cells, samples and genes in omics counts, with a variational autoencoder.

The pipeline on one page. config.yaml explains every setting; each rule file opens with what it
reads and writes. `make run` (or `snakemake --cores 2`) runs it.
"""

from snakemake.utils import min_version

min_version("9.0")


configfile: workflow.source_path("config.yaml")


include: "workflow/rules/common.smk"
include: "workflow/rules/preprocess.smk"
include: "workflow/rules/library_size.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/prune.smk"
include: "workflow/rules/anomaly.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        RESULTS,
        f"{RUN}/run.json",


onstart:
    check_before_work()


onsuccess:
    print(closing_words(RUN, SUMMARIES))


onerror:
    print(last_words(RUN, STARTED), file=sys.stderr)
