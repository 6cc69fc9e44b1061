"""SHA-256 of what users give: said in the sample table, checked, and written into the record."""

import hashlib
from pathlib import Path

from job import InputError


def checksum(path: str | Path) -> str:
    """SHA-256 of a file; of a folder, over its files' relative paths and contents, sorted."""
    path = Path(path)
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if not path.is_file():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def verified_checksum(path: str | Path, row: dict[str, str]) -> str:
    """The checksum of a sample's file. Raises InputError if its row of the table has another."""
    found, expected = checksum(path), row.get("sha256", "").lower()
    if expected and found != expected:
        raise InputError(
            f"{row['sample']}: the SHA-256 of {row['path']} is {found}, and not {expected} as in "
            "the sample table; bring the right file or correct the column sha256"
        )
    return found
