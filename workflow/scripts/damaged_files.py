"""Whether a file that the pipeline wrote is whole: asked after a job failed on its input.

Files are written at once and under their final name only when complete, so this is a disk that
loses data, a copy that broke off, or an editor.
"""

import json
from collections.abc import Iterable
from pathlib import Path

ROWS = 1_000_000


def _read_hdf5(path: Path) -> None:
    import h5py

    def read(name: str, item) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            for start in range(0, item.shape[0], ROWS):
                item[start : start + ROWS]

    with h5py.File(path) as file:
        file.visititems(read)


def _read_parquet(path: Path) -> None:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    for _ in file.iter_batches():
        pass


def _read_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _read_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        file.keys()


READERS = {
    ".h5ad": _read_hdf5,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".safetensors": _read_safetensors,
}


def first_damaged(paths: Iterable[str | Path]) -> str:
    """What is wrong with the first file that cannot be read to its end, in a line; or nothing."""
    for path in map(Path, paths):
        try:
            READERS.get(path.suffix, Path.stat)(path)
        except Exception as error:  # whatever a reader says of half a file
            reason = " ".join(str(error).split())[:200]
            return f"{path}: is damaged ({reason}); delete it and run the same command again"
    return ""
