"""Our words on cells become words on samples; the names of files stay."""

from bulk_words import of_unit


def test_our_words_are_said_of_samples_and_files_keep_their_names():
    said = "Cells of a sample, one cell each; all are in anomaly/cells.tsv. Samples, subsample"
    assert of_unit(said, "cells") == said
    assert of_unit(said, "samples") == (
        "Samples of a group, one sample each; all are in anomaly/cells.tsv. Groups, subsample"
    )
