"""What is said of cells, said of the samples of bulk counts."""

import re

# What the rows of the counts, and of the sample table, are called where the first are samples.
BULK_WORDS = {"cell": "sample", "sample": "group"}


def of_unit(words: str, unit: str) -> str:
    """Our own words, said of cells, for a run on ``unit``: cells, or samples of bulk counts."""
    if unit == "cells":
        return words

    def in_bulk(found: re.Match) -> str:
        said = BULK_WORDS[found[1].lower()]
        return said.capitalize() if found[1][0].isupper() else said

    # The names of files stay.
    return re.sub(r"(?<![/\w])(cell|sample)(?=s?\b(?!\.\w))", in_bulk, words, flags=re.IGNORECASE)
