"""Genes that tell of a cell's state of health, by the form of their names."""

import re

# Barnyard references put the genome's name before the gene's: GRCh38_MT-ND1, mm10___mt-Nd1.
GENOME = r"^(?:[A-Z0-9.]+_+)?"
GENE_SETS = {
    # R's make.names turns MT-ND1 into MT.ND1.
    "pct_mito": re.compile(GENOME + r"MT[-.]", re.IGNORECASE),
    # Not the S6 kinases (RPS6KA1) nor the binding protein RPS19BP1.
    "pct_ribo": re.compile(GENOME + r"RP(?:[SL](?!6K|19BP)\d|LP\d|SA$)", re.IGNORECASE),
    # Haemoglobin subunits of man, mouse (Hba-a1, Hbb-bs) and rat, whole names only: HBP1, HBEGF
    # and HBS1L are other proteins.
    "pct_hb": re.compile(GENOME + r"HB(?:[AB](?:\d|-\w+)?|D|E\d|G\d|M|Q\d[AB]?|Z)$", re.IGNORECASE),
}
