"""What a file from elsewhere may not do: lead out of itself, or take more than a file can hold.

The bounds are far above what counts reach (measured on real files: text unpacks to 4 to 30 times
its size, tables of cells to 10), and deflate's own limit is 1032. They are there so that a damaged
or hostile file ends in a line, not in the machine's memory.
"""

import gzip
import io
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import h5py

from job import InputError

# Bytes that any file may take, however small it is, and how many more a byte of it may stand for:
# in memory, in a matrix that is read in blocks, and in text that is unpacked.
ROOM, IN_MEMORY, IN_BLOCKS = 2**28, 100, 1000
UNPACKED_ROOM, UNPACKED = 2**24, 500
# Each value of text is an object of its own in memory.
TEXT = 64
# A chunk's place takes at least so many bytes in the file; chunks that hold nothing are not there.
CHUNKS, BYTES_A_CHUNK = 10_000, 8
MEND = "it is damaged, or made to exhaust the machine: fetch it again from where you trust it"


class Room:
    """What may be read of a file, by its size."""

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        self._left = ROOM + IN_MEMORY * size

    def hold(self, *parts) -> None:
        """All of ``parts``, datasets or groups of HDF5 or zarr, is to be held in memory.

        Raises InputError where they declare more than the file can stand for.
        """
        for dataset in (found for part in parts for found in _datasets(part)):
            self._check_chunks(dataset)
            n = math.prod(dataset.shape or ())
            self._left -= n * (_itemsize(dataset) + (TEXT if _is_text(dataset) else 0))
            if self._left < 0:
                raise self._refusal(dataset)

    def pass_through(self, *parts) -> None:
        """All of ``parts`` is to be read in blocks. Raises InputError as :meth:`hold` does."""
        for dataset in (found for part in parts for found in _datasets(part)):
            self._check_chunks(dataset)
            n = math.prod(dataset.shape or ())
            if n * _itemsize(dataset) > ROOM + IN_BLOCKS * self.size:
                raise self._refusal(dataset)

    def _check_chunks(self, dataset) -> None:
        """A chunk is unpacked as a whole."""
        chunk, shape = dataset.chunks, dataset.shape
        if not chunk:
            return
        size = math.prod(chunk) * _itemsize(dataset)
        n = math.prod(-(-length // max(1, c)) for length, c in zip(shape, chunk, strict=True))
        if size > ROOM + IN_MEMORY * self.size or n > CHUNKS + self.size // BYTES_A_CHUNK:
            raise self._refusal(dataset)

    def _refusal(self, dataset) -> InputError:
        chunks = f" in chunks of {_listed(dataset.chunks)}" if dataset.chunks else ""
        return InputError(
            f"{self.path}: {dataset.name} declares {_listed(dataset.shape)} values{chunks}, more "
            f"than {self.size} bytes can hold; {MEND}"
        )


def _listed(numbers) -> str:
    return " x ".join(map(str, numbers))


def _datasets(part) -> Iterator:
    """A dataset, or all that lie in a group."""
    if hasattr(part, "shape"):
        yield part
    elif part is not None:
        for name in part:
            yield from _datasets(part[name])


def _itemsize(dataset) -> int:
    return dataset.dtype.itemsize


def _is_text(dataset) -> bool:
    return dataset.dtype.kind not in "biufc"


def open_hdf5(path: Path) -> tuple[h5py.File, Room]:
    """An HDF5 file that leads nowhere else, to read; what is in it is found without recursion.

    Raises InputError for links and data in other files, and for a group that has two names: through
    such a group a few bytes make a tree without end.
    """
    file = h5py.File(path, "r")
    groups, seen = [file], {_address(file)}
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _leads_out(path, where, f"a link to the file {link.filename!r}")
            kind = group.get(name, getclass=True)
            if kind is h5py.Dataset:
                item = group[name]
                if item.external or item.is_virtual:
                    raise _leads_out(path, where, "data that lie in another file")
            elif kind is h5py.Group:
                item = group[name]
                address = _address(item)
                if address in seen or isinstance(link, h5py.SoftLink):
                    raise InputError(
                        f"{path}: {where} is a second name of a group; write the file anew, with "
                        "each group once"
                    )
                seen.add(address)
                groups.append(item)
    return file, Room(path, path.stat().st_size)


def _address(group: h5py.Group):
    return h5py.h5o.get_info(group.id).addr


def _leads_out(path: Path, where: str, what: str) -> InputError:
    return InputError(
        f"{path}: {where} is {what}; a file of counts must hold all of itself: write it anew "
        "without such links"
    )


def check_there(path: Path) -> None:
    """Raise InputError unless there is a file or a folder, and not a pipe without end."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file; correct the path in the sample table")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: is a pipe or a device; give a file")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all that lies in a folder; 0 where there is nothing."""
    if path.is_dir():
        return sum(
            size_of(Path(place, name)) for place, _, names in os.walk(path) for name in names
        )
    return path.stat().st_size if path.is_file() else 0


def check_folder(folder: Path) -> None:
    """Raise InputError for what is neither a file nor a folder, or a link that leads elsewhere."""
    root = folder.resolve()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                check_member(path, root)
                mode = path.stat().st_mode if name in files else mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise InputError(f"{path}: is neither a file nor a folder; remove it")


def check_member(path: Path, root: Path) -> None:
    """Raise InputError if a link leads out of the resolved folder ``root`` that it lies in."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise InputError(f"{path}: is a link that leads out of its folder; copy the file there")


class _Unpacked(io.RawIOBase):
    """What a gz file holds, as long as it is not far more than the file itself."""

    def __init__(self, path: Path):
        self._path, self._size = path, 0
        self._packed = path.open("rb")
        self._file = gzip.GzipFile(fileobj=self._packed)

    def readable(self) -> bool:
        return True

    def readinto(self, into) -> int:
        n = self._file.readinto(into)
        self._size += n
        if self._size > UNPACKED_ROOM + UNPACKED * self._packed.tell():
            raise InputError(
                f"{self._path}: unpacks to more than {UNPACKED} times its size, as no counts do; "
                f"{MEND}"
            )
        return n

    def close(self) -> None:
        self._packed.close()
        super().close()


def open_bytes(path: Path) -> io.BufferedIOBase:
    """A file's bytes, unpacked where it is a gz; reading raises InputError if they do not end."""
    if path.suffix == ".gz":
        return io.BufferedReader(_Unpacked(path), 2**20)
    return path.open("rb")


def check_unpacked(path: Path) -> None:
    """Raise InputError if a gz does not end, at 100 times the speed of a parser of its text."""
    with open_bytes(path) as file:
        while file.read(2**20):
            pass
