"""Samples that lie elsewhere: fetched, imported, not fetched again, and told of where they fail."""

import functools
import http.server
import json
import os
import threading
from contextlib import contextmanager

import anndata
import boto3
import pytest
from moto.server import ThreadedMotoServer

from checksums import checksum
from workflow_copy import RUN, WorkflowCopy

TARGET = f"results/{RUN}/import/healthy.h5ad"
HEADER = "sample path role sha256"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP; keeps what it was asked for."""

    def log_message(self, format, *arguments):
        self.server.asked.append(self.requestline)


@contextmanager
def served(folder):
    """The folder at a local port: its address, and the requests so far."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked
        server.shutdown()


@pytest.fixture
def copy(tmp_path) -> WorkflowCopy:
    return WorkflowCopy.make(tmp_path / "here")


def away(copy: WorkflowCopy):
    """The healthy sample's file, moved out of the folder of the run."""
    folder = copy.folder.parent / "away"
    folder.mkdir()
    return (copy.folder / "data" / "healthy.h5ad").rename(folder / "healthy.h5ad")


def summary_of(copy: WorkflowCopy) -> dict:
    return json.loads((copy.folder / TARGET).with_suffix(".summary.json").read_text())


def test_http(copy):
    file = away(copy)
    sha256 = checksum(file)
    with served(file.parent) as (address, asked):
        url = f"{address}/healthy.h5ad?download=1"
        copy.write_samples(
            f"healthy {url} reference {sha256}", "patient data/patient.h5ad query ", header=HEADER
        )
        code, output = copy.run(TARGET)
        assert code == 0, output
        assert anndata.read_h5ad(copy.folder / TARGET).n_obs == 160
        summary = summary_of(copy)
        assert (summary["path"], summary["format"], summary["sha256"]) == (url, "h5ad", sha256)
        code, output = copy.run(TARGET)
        assert code == 0 and "Nothing to be done" in output, output
        assert sum(line.startswith("GET") for line in asked) == 1
        print([*copy.folder.glob(".snakemake/storage/**/*")])
