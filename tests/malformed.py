"""Malformed inputs without end: a good file of each kind, and one to three things done to it.

``mutate(kind, number, folder)`` writes input ``number`` of a kind, the same each time. What is done
knows the format where that is cheap: objects and attributes of HDF5, the JSON of zarr, the tokens
of text, the members of a folder; and for every format it is bytes too. A config or sample table is
another one for each input, and often nothing is done to it.
"""

import gzip
import json
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import yaml
from hypothesis import strategies as st

import generated
from conftest import ROOT
from count_files import COUNTS, WRITERS

# The good files of each kind, written once. Config and table are drawn, other ones for each input.
SEEDS = {
    "10x_h5": ("v2.h5", "v3.h5"),
    "10x_mtx": ("mtx_v3", "mtx_v2", "mtx_v2_genome"),
    "h5ad": ("csr.h5ad", "csc_int64.h5ad", "dense_float.h5ad", "many.h5ad", "old.h5ad"),
    "zarr": ("csr.zarr", "dense.zarr"),
    "loom": ("store.loom",),
    "csv": ("table.csv", "table.csv.gz", "from_r.csv"),
    "tsv": ("table.tsv", "table.txt.gz"),
    "config": (),
    "sample_table": (),
}
FORMATS = tuple(SEEDS)[:7]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
CONFIGS = generated.studies(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
TABLES = generated.tables("counts.h5ad")
STUDIES = {
    "config": st.tuples(generated.texts(CONFIGS), TABLES),
    "sample_table": st.tuples(CONFIGS.map(yaml.safe_dump), TABLES),
}
HOSTILE = (
    *("", " ", "\0", "a\0b", "a\nb", "\r\n", "\t", "..", ".", "../../x", "/", "a/b", "/etc/passwd"),
    *("=cmd()", "+1", "-1", "@x", "'", '"', '"""', "`id`", "$(id)", "; ls", "{sample}", "{{x}}"),
    *(
        "<script>alert(1)</script>",
        "\x1b[31mred",
        "\x1b]0;x\x07",
        "\u202e",
        "\ud7ff",
        "é",
        "N" * 10**6,
    ),
    *("nan", "inf", "-inf", "1e400", "0x10", "1_000", "9" * 30, "-0", "1.5", "None", "true", "NA"),
    *(
        "\ufeff",
        "%s%n",
        "%(x)s",
        "$\\frac",
        "csr_matrix",
        "array",
        "categorical",
        "null",
        "X",
        "raw",
    ),
    *("https://x/y.h5ad", "s3://b/k", "file:///etc/passwd", "/dev/zero", "obs:role", "reference"),
)
NUMBERS = (0, 1, 2, -1, 3, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1)


def write_old_h5ad(path: Path) -> Path:
    """The layout from before anndata 0.7."""
    names = {"obs": ["AAAC-1", "AAAG-1"], "var": ["CD3E", "LYZ"], "raw.var": ["CD3E", "LYZ"]}
    with h5py.File(path, "w") as file:
        file["X"] = np.array([[1, 0], [2, 3]], dtype=np.float32)
        file["raw.X"] = file["X"][:]
        for name, values in names.items():
            file[name] = np.array([(value,) for value in values], dtype=[("index", "S8")])
    return path


def write_many_h5ad(path: Path) -> Path:
    """Compressed, in chunks, with layers and obs of every kind."""
    import anndata
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.5, (30, 20)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "role": pd.Categorical(rng.choice(["query", "reference"], 30)),
            "age": rng.normal(size=30),
            "n": pd.array([None, *range(29)], dtype="Int64"),
            "ok": pd.array([None, *[True] * 29], dtype="boolean"),
            "text": [f"t{i}" for i in range(30)],
        },
        index=[f"c{i}" for i in range(30)],
    )
    var = pd.DataFrame({"feature_types": "Gene Expression"}, index=[f"g{i}" for i in range(20)])
    cells = anndata.AnnData(counts, obs, var, layers={"counts": counts}, uns={"a": {"b": [1, 2]}})
    cells.raw = cells
    cells.write_h5ad(path, compression="gzip")
    return path


def write_seed(name: str, folder: Path) -> Path:
    """A good file of that name."""
    path = folder / name
    if name in ("many.h5ad", "old.h5ad"):
        {"many.h5ad": write_many_h5ad, "old.h5ad": write_old_h5ad}[name](path)
    else:
        WRITERS[name](path, COUNTS)
    return path


def mutate(kind: str, number: int, seeds: Path, folder: Path) -> Path:
    """Malformed input ``number`` of a kind, under ``folder``, which is emptied before."""
    rng = np.random.default_rng([tuple(SEEDS).index(kind), number])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not SEEDS[kind]:
        return draw_study(kind, number, rng, folder)
    good = seeds / SEEDS[kind][rng.integers(len(SEEDS[kind]))]
    path = folder / good.name
    (shutil.copytree if good.is_dir() else shutil.copyfile)(good, path)
    for _ in range(rng.integers(1, 4)):
        if path.is_dir():
            mutate_folder(path, rng)
        elif rng.random() < 0.6 and h5py.is_hdf5(path) and is_whole(path):
            mutate_hdf5(path, rng)
        else:
            mutate_file(path, rng)
    return path


def draw_study(kind: str, number: int, rng, folder: Path) -> Path:
    """A config and its sample table, each value right by itself; some then mutated."""
    config, samples = generated.drawn(STUDIES[kind], number)
    (folder / "my.yaml").write_text(config, encoding="utf-8")
    (folder / "samples.tsv").write_text(generated.table_text(samples), encoding="utf-8")
    (folder / "counts.h5ad").touch()
    (folder / "genes.txt").write_text("CD3E\n")
    path = folder / {"config": "my.yaml", "sample_table": "samples.tsv"}[kind]
    if rng.random() < 0.4:
        mutate_file(path, rng)
    return path


def is_whole(path: Path) -> bool:
    """Whether only h5py has written the file: what bytes have broken is not opened to write."""
    return not path.with_name(".bytes").exists()


def pick(rng, values):
    return values[rng.integers(len(values))]


# Bytes


def mutate_bytes(data: bytes, rng) -> bytes:
    """Some bytes changed, lost, doubled or put elsewhere."""
    data = bytearray(data)
    if not data:
        return bytes(rng.bytes(rng.integers(1, 20)))
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data) + 1))
        length = int(min(rng.integers(1, 2 ** rng.integers(1, 10)), len(data)))
        match rng.integers(7):
            case 0:
                data[at : at + 1] = rng.bytes(1)
            case 1:
                if at < len(data):
                    data[at] ^= 1 << rng.integers(8)
            case 2:
                width = int(pick(rng, (1, 2, 4, 8)))
                number = pick(rng, NUMBERS) & (256**width - 1)
                data[at : at + width] = number.to_bytes(width, "little")
            case 3:
                data[at : at + length] = bytes([pick(rng, (0, 255))]) * length
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case _:
                if rng.random() < 0.3:
                    del data[at:]
        if not data:
            break
    return bytes(data)


def mutate_file(path: Path, rng) -> None:
    """A file's bytes or, in text, its tokens; of what is zipped the inside, or the outside."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.7:
        try:
            inside = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            inside = b""
        path.write_bytes(gzip.compress(mutate_text(inside, rng), 1, mtime=0))
        return
    is_text = path.suffix in (".csv", ".tsv", ".mtx", ".yaml", ".json") or path.name[0] == "."
    if is_text and rng.random() < 0.8:
        path.write_bytes(mutate_text(data, rng))
        return
    path.write_bytes(mutate_bytes(data, rng))
    path.with_name(".bytes").touch()


def mutate_text(data: bytes, rng) -> bytes:
    """A line or a token changed, lost or doubled; now and then a great many of them."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    separator = pick(rng, (b"\t", b",", b" ", b":", b"\n", b'"', b"[", b"{", b"\r"))
    tokens = data.split(separator)
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(len(tokens)))
        odd = pick(rng, HOSTILE).encode("utf-8", "surrogatepass")
        odd = pick(rng, (odd, str(pick(rng, NUMBERS)).encode(), rng.bytes(rng.integers(1, 8))))
        match rng.integers(8):
            case 0 | 1 | 2:
                tokens[at] = odd
            case 3:
                tokens.insert(at, odd)
            case 4:
                del tokens[at]
            case 5:
                tokens[at:at] = tokens[at : at + 3]
            case 6:
                tokens[at] = (tokens[at][:999] + odd[:99]) * pick(rng, (2, 50, 999))
            case _:
                i, j = sorted(rng.integers(len(tokens), size=2))
                tokens[i], tokens[j] = tokens[j], tokens[i]
        if not tokens:
            return b""
    return separator.join(tokens)


# Folders


def mutate_folder(folder: Path, rng) -> None:
    """A file of it changed, lost, doubled, or put in the place of something else."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    path = pick(rng, files)
    match rng.integers(10):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.symlink_to(pick(rng, ("/etc/passwd", "/dev/zero", path.name, "..", folder.parent)))
        case 2:
            path.unlink()
            path.mkdir()
        case 3:
            other = pick(rng, files)
            shutil.copyfile(other, path) if other != path else None
        case 4:
            path.unlink()
            os.mkfifo(path)
        case _:
            if path.name.startswith((".z", "zarr.json")) and rng.random() < 0.8:
                mutate_json(path, rng)
            else:
                mutate_file(path, rng)
                path.with_name(".bytes").unlink(missing_ok=True)


def mutate_json(path: Path, rng) -> None:
    """A value of a JSON file replaced, lost or given another name."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        mutate_file(path, rng)
        return
    holders = []

    def walk(item):
        if isinstance(item, dict | list) and item:
            holders.append(item)
            for inner in item.values() if isinstance(item, dict) else item:
                walk(inner)

    walk(content)
    if not holders:
        return
    holder = pick(rng, holders)
    key = pick(rng, list(holder) if isinstance(holder, dict) else range(len(holder)))
    codecs = [{"id": "pickle"}, {"id": "json2"}, {"name": "numcodecs.pickle"}, {"id": "msgpack2"}]
    odd = (pick(rng, NUMBERS), pick(rng, HOSTILE), None, [], {}, True, 1.5, [[1]], codecs)
    odd += ("|O", "<f8", "<U1000000000", [10**12], [10**9, 10**9], "object", "string", "bytes")
    match rng.integers(4):
        case 0 | 1:
            holder[key] = pick(rng, odd)
        case 2:
            del holder[key]
        case _ if isinstance(holder, dict):
            holder[str(pick(rng, HOSTILE))] = holder.pop(key)
        case _:
            holder.append(pick(rng, odd))
    path.write_text(json.dumps(content))


# HDF5


def mutate_hdf5(path: Path, rng) -> None:
    """An object or an attribute of the file replaced, lost, or a link to something else."""
    with h5py.File(path, "r+") as file:
        places = ["/"]
        file.visit(lambda name: places.append(name))
        name = pick(rng, places)
        item = file.get(name)
        change = pick(rng, (_attribute, _value, _value, _dataset, _dataset, _link))
        # What h5py does not write needs no reader.
        with suppress(ValueError, TypeError, OSError, RuntimeError, KeyError, OverflowError):
            change(file, name, item, rng)


def _odd_value(rng):
    return pick(
        rng,
        (
            lambda: pick(rng, NUMBERS),
            lambda: pick(rng, HOSTILE).replace("\0", ""),
            lambda: np.array([pick(rng, NUMBERS), pick(rng, NUMBERS)], dtype=np.int64),
            lambda: np.array([], dtype=np.int32),
            lambda: np.array([2**40, 2**40]),
            lambda: h5py.Empty("f"),
            lambda: np.array([b"a", b"\xff\xfe", b""]),
            lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
            lambda: np.array(["a", "b\n", "é"], dtype=h5py.string_dtype()),
            lambda: 1.5,
            lambda: np.nan,
            lambda: True,
            lambda: np.zeros((2, 2, 2)),
            lambda: np.float16(3),
            lambda: np.complex128(1j),
        ),
    )()


def _attribute(file, name, item, rng) -> None:
    keys = list(item.attrs)
    key = pick(rng, [*keys, "encoding-type", "shape", "_index", "column-order"])
    if rng.random() < 0.2 and key in item.attrs:
        del item.attrs[key]
    else:
        item.attrs[key] = _odd_value(rng)


def _value(file, name, item, rng) -> None:
    """Some values of a dataset."""
    if not isinstance(item, h5py.Dataset):
        return _dataset(file, name, item, rng)
    if item.size and item.size > 10**6:
        return
    values = item[()]
    flat = np.ravel(values)
    if not flat.size:
        return
    at = rng.integers(flat.size, size=rng.integers(1, 3))
    if flat.dtype.kind in "iuf":
        flat = flat.copy()
        flat[at] = np.array(pick(rng, (*NUMBERS, 0.5, np.nan, np.inf))).astype(flat.dtype)
    else:
        flat = flat.astype(object)
        flat[at[0]] = pick(rng, HOSTILE).replace("\0", "").encode()
    attrs = dict(item.attrs)
    del file[name]
    if flat.dtype == object and item.dtype.kind == "S" if item else False:
        flat = flat.astype("S")
    file[name] = flat.reshape(np.shape(values))
    file[name].attrs.update(attrs)


def _dataset(file, name, item, rng) -> None:
    """Another dataset or a group in its place, with its attributes."""
    if name == "/":
        return
    attrs = dict(item.attrs) if item is not None else {}
    shape = getattr(item, "shape", None) or (3,)
    dtype = getattr(item, "dtype", np.dtype("i4"))
    huge = {"shape": (2 ** int(rng.integers(20, 60)), *shape[1:]), "dtype": dtype}

    def bomb():
        made = file.create_dataset(
            name, (2**26,), "i1", chunks=(2**26,), compression="gzip", compression_opts=1
        )
        made[:] = 0

    ways = (
        lambda: file.create_dataset(name, data=_odd_value(rng)),
        lambda: file.create_group(name),
        lambda: file.create_dataset(name, **huge, chunks=True),
        lambda: file.create_dataset(
            name, **huge, chunks=tuple(min(n, 2**29) for n in huge["shape"])
        ),
        lambda: file.create_dataset(name, **huge),
        lambda: file.create_dataset(name, huge["shape"], h5py.string_dtype()),
        lambda: file.create_dataset(name, shape, h5py.ref_dtype),
        lambda: file.create_dataset(name, shape, h5py.vlen_dtype(np.int32)),
        lambda: file.create_dataset(name, shape, np.dtype("V16")),
        lambda: file.create_dataset(name, (*shape[:-1], shape[-1] + 1), dtype),
        lambda: file.create_dataset(name, (*shape[:-1], max(0, shape[-1] - 1)), dtype),
        lambda: file.create_dataset(name, shape, dtype, external=[("/etc/passwd", 0, 2**20)]),
        lambda: file.create_virtual_dataset(name, _virtual(shape)),
    )
    way = bomb if rng.random() < 0.01 else pick(rng, ways)
    del file[name]
    way()
    for key, value in attrs.items():
        file[name].attrs[key] = value


def _virtual(shape) -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape=shape, dtype="i4")
    layout[...] = h5py.VirtualSource("other.h5", "x", shape=shape)
    return layout


def _link(file, name, item, rng) -> None:
    """Something else under its name, or its name gone."""
    if name == "/":
        return
    places = ["/"]
    file.visit(lambda place: places.append(place))
    target = pick(rng, places)
    new = f"{name.rpartition('/')[0]}/{pick(rng, HOSTILE)}"
    match rng.integers(6):
        case 0:
            del file[name]
        case 1:
            del file[name]
            file[name] = h5py.SoftLink(f"/{target}")
        case 2:
            other = file[target]
            del file[name]
            file[name] = other
        case 3:
            del file[name]
            file[name] = h5py.ExternalLink(pick(rng, ("/etc/passwd", "other.h5", "")), "/x")
        case 4:
            file.move(name, new)
        case _:
            deep = file
            for _ in range(int(pick(rng, (3, 300)))):
                deep = deep.create_group("d")
            del file[name]
            file[name] = file.get("d", deep)
