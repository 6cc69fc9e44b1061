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
NO_SHARED_FILES = ("--shared-fs-usage", "none", "--default-storage-provider", "s3")
NO_SHARED_FILES += ("--default-storage-prefix", "s3://counts/run")


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


def write_samples(copy: WorkflowCopy, healthy: str, sha256: str) -> None:
    rows = f"healthy {healthy} reference {sha256}", "patient data/patient.h5ad query "
    copy.write_samples(*rows, header="sample path role sha256")


def test_a_file_by_http_is_fetched_once_and_another_one_is_refused(copy):
    file = away(copy)
    sha256 = checksum(file)
    with served(file.parent) as (address, asked):
        url = f"{address}/healthy.h5ad?download=1"
        write_samples(copy, url, "0" * 64)
        code, output = copy.run(TARGET)
        assert code == 1
        assert f"healthy: the SHA-256 of {url} is {sha256}, and not {'0' * 64} as in" in output
        assert "Traceback" not in output
        asked.clear()

        write_samples(copy, url, sha256)
        code, output = copy.run(TARGET)
        assert code == 0, output
        assert anndata.read_h5ad(copy.folder / TARGET).n_obs == 160
        summary = summary_of(copy)
        assert (summary["path"], summary["format"], summary["sha256"]) == (url, "h5ad", sha256)

        code, output = copy.run(TARGET)
        assert code == 0 and "Nothing to be done" in output, output
        assert sum(line.startswith("GET") for line in asked) == 1
        os.utime(file)
        code, output = copy.run(TARGET, "-n")
        assert "import_counts" in output, "a later version of the file"


def test_a_file_in_a_bucket_is_fetched(copy, monkeypatch):
    file = away(copy)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"access_key": "a", "secret_key": "b", "endpoint_url": endpoint}
        for name, value in keys.items():
            monkeypatch.setenv(f"SNAKEMAKE_STORAGE_S3_{name.upper()}", value)
        client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket="counts")
        client.upload_file(file, "counts", "deep/healthy.h5ad")
        write_samples(copy, "s3://counts/deep/healthy.h5ad", checksum(file))
        code, output = copy.run(TARGET)
        assert code == 0, output
        # All of it where jobs share no file system: results live in the bucket, too.
        client.upload_file(copy.folder / "data" / "patient.h5ad", "counts", "run/data/patient.h5ad")
        code, output = copy.run("-n", *NO_SHARED_FILES)
        assert code == 0, output
        assert "input: s3://counts/deep/healthy.h5ad (retrieve from storage)" in output
    finally:
        server.stop()
    assert anndata.read_h5ad(copy.folder / TARGET).n_obs == 160
    assert summary_of(copy)["sha256"] == checksum(file)


def test_a_file_that_the_server_does_not_have_is_named(copy):
    with served(copy.folder) as (address, _):
        write_samples(copy, f"{address}/none.h5ad", "")
        code, output = copy.run(TARGET)
    assert code == 1 and f"{address}/none.h5ad" in output
