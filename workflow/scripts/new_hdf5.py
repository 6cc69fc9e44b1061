"""A new HDF5 file on a disk that may fill up, which HDF5 by itself does not survive."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


class _Disk(io.FileIO):
    """A file whose writes never fail: the first error is kept, and what follows goes to memory.

    HDF5 2.0 crashes, now or when it is closed, if a write fails or does not read back.
    """

    error: OSError | None = None

    def __init__(self, path: Path):
        super().__init__(path, "w+b")
        self.unwritten: list[tuple[int, bytes]] = []  # position, bytes; in the order of writing

    def write(self, data) -> int:
        rest = memoryview(data).cast("B")
        size, at = len(rest), self.tell()
        while self.error is None and len(rest):
            try:
                written = super().write(rest)
            except OSError as error:
                self.error = error
            else:
                rest, at = rest[written:], at + written
        if len(rest):
            self.unwritten.append((at, bytes(rest)))
            self.seek(at + len(rest))
        return size

    def readinto(self, into) -> int:
        if self.error is None:
            return super().readinto(into)
        into, first = memoryview(into).cast("B"), self.tell()
        into[:] = bytes(len(into))  # beyond the end of the file there is only what is in memory
        super().readinto(into)
        for at, piece in self.unwritten:
            start, end = max(at, first), min(at + len(piece), first + len(into))
            if start < end:
                into[start - first : end - first] = piece[start - at : end - at]
        self.seek(first + len(into))
        return len(into)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


class NewFile(h5py.File):
    """An HDF5 file to be filled."""

    def __init__(self, disk: _Disk):
        super().__init__(disk, "w")
        self.disk = disk

    def check(self) -> None:
        """Raise the OSError of a write that failed, to be called before much more is written."""
        if self.disk.error:
            raise self.disk.error


@contextmanager
def new_hdf5(path: Path) -> Iterator[NewFile]:
    """Create a file; raises the OSError of the first write that failed, after it is closed."""
    with _Disk(path) as disk:
        with NewFile(disk) as file:
            yield file
        if disk.error:
            raise disk.error
