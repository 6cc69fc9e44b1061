"""anomics: anomalous cells, samples and genes in omics counts, with a variational autoencoder.

The pipeline on one page. config.yaml explains every setting; each rule file opens with what it
reads and writes. `make run` (or `snakemake --cores 2`) runs it.
"""

from snakemake.utils import min_version

min_version("9.0")


configfile: workflow.source_path("config.yaml")


report: "workflow/report/workflow.rst"


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
        TABLES,
        RESULTS,
        f"{RUN}/run.json",


onstart:
    check_before_work()


onsuccess:
    # Where only a part was made, what was found before may be no more true.
    if "write_report" in {job.rule.name for job in workflow.dag.finished_jobs}:
        took = time.time() - STARTED
        print(terminal.closing_words(RUN, SUMMARIES, config["observations"], took))


onerror:
    print(terminal.last_words(RUN, STARTED), file=sys.stderr)
