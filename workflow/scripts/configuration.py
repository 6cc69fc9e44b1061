"""What the user wrote, checked before anything runs: the config and the sample table.

The Snakefile imports this, so it needs nothing beyond what Snakemake itself brings. All faults that
can be told without opening a count file are told here, one line each.
"""

import copy
import csv
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import yaml
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

REQUIRED = ("sample", "path", "role")
FORMATS = ("10x_h5", "10x_mtx", "h5ad", "zarr", "loom", "csv", "tsv")
FOLDERS = ("10x_mtx", "zarr")
KNOWN = (*REQUIRED, "format", "matrix", "genome", "sha256", "batch", "donor", "condition")
SAMPLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LONGEST_NAME = 200  # characters of a sample's name; a file's may have 255
OBS_COLUMN = re.compile(r"obs:.+")
# What would act on a terminal or break a line; Snakemake prints paths and settings as they are.
CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
# What Snakemake replaces in a path: {wildcard} and <pathvar>. Its report has paths in
# its scripts, as they are, and </script> would end one.
REPLACED = re.compile(r"[{}<]")
SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
# Snakemake's storage plugin for each scheme of a URL.
URL = re.compile(r"(\w+)://([^/?#]*)([^?#]*)")
STORAGE = {"http": "http", "https": "http", "s3": "s3"}
NOT_TAKEN = "holds a brace or <, which Snakemake cannot take; rename it"
LARGEST_TEXT = 2**26  # bytes of a table: a million samples
# Bytes, five times what config.yaml has with all its comments. Brackets in brackets take PyYAML
# 3 s for so many, and a config is read three times.
LARGEST_CONFIG = 2**16
CONFIG_TEXT = ("text", "save it as UTF-8 YAML", LARGEST_CONFIG)
MOST_COLUMNS, MOST_ROWS = 1000, 10_000  # of a sample table
LONGEST_WORD = 100  # characters
MOST_SETTINGS = 100_000  # values and keys
LARGEST_WHOLE = 2**63 - 1
LARGEST_SEED = 2**32 - 1  # that numpy and scikit-learn take
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "object": "a section with keys under it",
    "array": "a list, as [a, b]",
    "null": "null",
}


class ConfigurationError(ValueError):
    """Faults of config or sample table, a line each; no character in it controls a terminal.

    ``config`` and ``rows``: what is right, with defaults, so that the files can be looked at too.
    """

    def __init__(self, faults: list[str], config: dict | None = None, rows: list[dict] = ()):
        self.faults = [_line(fault) for fault in faults]
        super().__init__("\n".join(self.faults))
        self.config, self.rows = config, list(rows)


def _line(text: str) -> str:
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) < 1000 else f"{text[:700]} ... {text[-200:]}"


def check_run(
    config: dict,
    schema_path: str,
    made_here: set[str],
    bundled: dict[str, str],
    files: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict, dict[str, dict[str, str]]]:
    """The config with its defaults, and the sample table, as the functions below have them.

    ``files``: where the config was read from, and what the user calls these files. Raises
    :class:`ConfigurationError` with the faults of all.
    """
    repeated = [fault for path, name in files.items() for fault in repeated_keys(path, name)]
    faults, samples, rows, table = [], None, [], config.get("samples")
    try:
        complete = check_config(config, schema_path)
    except ConfigurationError as error:
        if error.config is None:  # nothing of it can be looked at
            raise
        faults, complete = error.faults, error.config
    is_right = not faults
    faults = repeated + faults
    if isinstance(table, str) and table:
        try:
            samples = read_samples(table, made_here, bundled)
            rows = list(samples.values())
        except ConfigurationError as error:
            faults, rows = faults + error.faults, error.rows
    try:
        check_files(complete)
    except ConfigurationError as error:
        faults = faults + error.faults
        complete["preprocess"]["select_features"]["gene_list"] = None
    for check in (check_covariates, check_cross_fitting) if is_right and samples else ():
        try:
            check(complete, samples)
        except ConfigurationError as error:
            faults = faults + error.faults
    if faults:
        raise ConfigurationError(faults, complete, rows)
    return complete, samples


def nearest(word: str, known) -> str:
    """A hint at the known word that was likely meant, or nothing."""
    match = _close(str(word), [str(k) for k in known], 0.5)
    return f"; did you mean {match[0]}?" if match else ""


def _close(word: str, known, cutoff: float) -> list[str]:
    """The known word most like it, if any; of a long one none, for that takes minutes."""
    is_word = len(word) < LONGEST_WORD
    return difflib.get_close_matches(word, known, n=1, cutoff=cutoff) if is_word else []


def read_config(path: str) -> dict:
    """A config file as plain data. Raises ConfigurationError for what Snakemake would run as code.

    Given as --configfile, a file with __use_yte__ is a template whose Python Snakemake runs before
    any of this workflow is asked. So ``make run`` asks here first.
    """
    try:
        text = _read_text(path, *CONFIG_TEXT)
    except FileNotFoundError:
        raise ConfigurationError([f"{path}: there is no such file; correct the path"]) from None
    try:
        config = _parse(text)
    except RecursionError:
        raise ConfigurationError(
            [f"{path}: sections lie too deep in each other; write fewer levels"]
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())[:300]
        raise ConfigurationError([f"{path}: is not YAML ({what}); correct it there"]) from None
    if not isinstance(config, dict):
        raise ConfigurationError([f"{path}: holds no settings; write lines of the form key: value"])
    if "__use_yte__" in config:
        raise ConfigurationError(
            [
                f"{path}: __use_yte__ lets Snakemake run Python code that stands in this file; if "
                "you trust it, say so by snakemake --configfile, else remove the line and read the "
                "file before you use it"
            ]
        )
    _check_size(config)
    return config


def _parse(text: str):
    """JSON, or else YAML, as Snakemake has it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.safe_load(text)


def _read_text(path: str, what: str, mend: str, largest: int = LARGEST_TEXT) -> str:
    """A text file. Raises ConfigurationError where it is none, or too large for what it should be.

    A file that is not there is the FileNotFoundError of Python.
    """
    try:
        file = Path(path)
        if file.exists() and not file.is_file():
            raise ConfigurationError([f"{path}: is a folder, a pipe or a device; {mend}"])
        if file.stat().st_size > largest:
            raise ConfigurationError(
                [f"{path}: is larger than {largest} bytes; give the right file"]
            )
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: cannot be read as {what} ({error}); {mend}"]) from None


def _check_size(config: dict) -> None:
    """Raise ConfigurationError where aliases make a small file a tree without end, or where a
    whole number is so long that Python does not print it.
    """
    found, n = [config], 0
    while found and n < MOST_SETTINGS:
        item, n = found.pop(), n + 1
        if isinstance(item, dict):
            found.extend([*item, *item.values()])
        elif isinstance(item, list | tuple | set):
            found.extend(item)
        elif isinstance(item, int) and abs(item) > LARGEST_WHOLE:
            raise ConfigurationError(
                [f"config: holds a whole number beyond {LARGEST_WHOLE}; correct it"]
            )
    if found:
        raise ConfigurationError(
            [f"config: holds more than {MOST_SETTINGS} values; write it without YAML aliases"]
        )


def repeated_keys(path: str, name: str) -> list[str]:
    """A line for each key that a section of a YAML file, which Snakemake has read, has twice.

    YAML has the last one win, so the settings under the first are lost without a word. ``name``:
    what to call the file.
    """
    try:
        tree = yaml.compose(_read_text(path, *CONFIG_TEXT))
    except (ConfigurationError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return []  # a template, JSON with tabs, or what `make run` would have refused
    faults, seen, found = [], set(), [("", tree)]
    while found:
        section, node = found.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            found += [(section, item) for item in node.value]
            continue
        lines: dict[str, list[int]] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines.setdefault(f"{section}{key.value}", []).append(key.start_mark.line + 1)
                found.append((f"{section}{key.value}.", value))
        for key, at in lines.items():
            if len(at) > 1:
                numbers = ", ".join(map(str, at))
                fault = (
                    f"{name}: {key} stands more than once (lines {numbers}), of which only the "
                    "last would count; make one of them"
                )
                faults.append((at[0], fault))
    return [fault for _, fault in sorted(faults)]


def check_config(config: dict, schema_path: str) -> dict:
    """The config with its defaults filled in.

    Raises :class:`ConfigurationError` naming each unknown key (with the nearest known one), each
    value of a wrong type or out of range, and each pair of settings that contradict each other.
    """
    _check_size(config)
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    faults, right = [], copy.deepcopy(config)
    homes = _homes(schema)
    for error in Validator(schema).iter_errors(config):
        where = ".".join(str(part) for part in error.absolute_path)
        faults += _explain(where, error, homes)
        _leave_out(right, list(error.absolute_path))
    faults += [
        f"config: {where}: must be a finite number, not {value}; null switches a limit off"
        for where, value in _values(config)
        if isinstance(value, float) and not math.isfinite(value)
    ]
    faults += [
        f"config: {where}: holds a control character; remove it"
        for where, value in _values(config)
        if isinstance(value, str) and CONTROL.search(value)
    ]
    if faults:
        # A missing key is an error of jsonschema's for each key that is missing.
        raise ConfigurationError(sorted(set(faults)), _with_defaults(right, schema))
    complete = _with_defaults(config, schema)
    faults = _contradictions(complete)
    if faults:
        raise ConfigurationError(faults, complete)
    return complete


def _check_unique(validator, is_asked: bool, values, schema: dict) -> Iterator[ValidationError]:
    """jsonschema's own compares all with all where types differ, which takes minutes."""
    plain = [
        value
        for value in (values if isinstance(values, list) else ())
        if isinstance(value, str | int | float)
    ]
    if is_asked and len(set(plain)) < len(plain):
        yield ValidationError("not unique")


Validator = extend(Draft202012Validator, {"uniqueItems": _check_unique})


def _leave_out(config: dict, path: list) -> None:
    """Remove the setting at fault, or the section or list that it is in."""
    *sections, key = path if path and isinstance(path[-1], str) else path[:-1] or [None]
    for section in sections:
        config = config.get(section, {})
    config.pop(key, None)


def _homes(schema: dict, prefix: str = "") -> dict[str, list[str]]:
    """For each key the sections that it stands in ("" at the top)."""
    homes: dict[str, list[str]] = {}
    for key, rule in schema["properties"].items():
        homes.setdefault(key, []).append(prefix)
        if rule.get("type") == "object":
            for inner, found in _homes(rule, f"{prefix}.{key}" if prefix else key).items():
                homes.setdefault(inner, []).extend(found)
    return homes


def _values(config: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting with its dotted name."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _values(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield from _values(dict(enumerate(value)), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _explain(where: str, error, homes: dict[str, list[str]]) -> list[str]:
    """A line for each key at fault: the key, what is wrong, what to do."""
    prefix = f"{where}." if where else ""
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = [key for key in error.instance if key not in known]
        return [
            f"config: {prefix}{key}: unknown key"
            + (_belongs(homes[key]) if key in homes else nearest(key, known))
            for key in unknown
        ]
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return [f"config: {prefix}{key}: missing; add it" for key in missing]
    expected = {
        "type": lambda v: (
            "must be " + " or ".join(TYPES[name] for name in ([v] if isinstance(v, str) else v))
        ),
        "enum": lambda v: "must be one of " + ", ".join(map(str, v)),
        "pattern": lambda v: "may hold letters, digits, _ . - and must not start with a sign",
        "minLength": lambda v: "must not be empty",
        "maxLength": lambda v: f"must not be longer than {v} characters",
        "maxItems": lambda v: f"must not list more than {v}",
        "minimum": lambda v: f"must be at least {v}",
        "maximum": lambda v: f"must be at most {v}",
        "exclusiveMinimum": lambda v: f"must be larger than {v}",
        "exclusiveMaximum": lambda v: f"must be smaller than {v}",
        "anyOf": lambda v: "must be auto or a number larger than 0",
        "uniqueItems": lambda v: "must not name a thing twice",
    }[error.validator](error.validator_value)
    hint = ""
    if error.validator == "type":
        hint = _type_hint(error.instance, error.validator_value)
    if error.validator == "enum":
        hint = nearest(error.instance, error.validator_value)
    value = "null" if error.instance is None else repr(error.instance)
    return [f"config: {where}: {expected}, not {value[:80]}{hint}"]


def _belongs(homes: list[str]) -> str:
    places = [f"under {home}" if home else "at the top, not indented" for home in homes]
    return f" here; it belongs {', or '.join(places)}"


def _type_hint(value, wanted: str | list[str]) -> str:
    """What YAML most likely did to what was meant."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+[eE][+-]?[0-9]+", value):
        return "; YAML reads 1e-3 as text, write 1.0e-3"
    if isinstance(value, str) and value.lower() in ("none", "na", "off") and "null" in wanted:
        return "; write null"
    if wanted == "string" and not isinstance(value, dict | list | None):
        return "; put it in quotes"
    if wanted == "object" and value is None:
        return "; indent its keys, or remove the line"
    return ""


def _with_defaults(config: dict, schema: dict) -> dict:
    """Every key of the schema, in its order, from the config or else its default."""
    result = {}
    for key, rule in schema["properties"].items():
        value = config.get(key, rule.get("default"))
        # 2.0e+4 is a whole number to the schema, and a float to Python.
        if isinstance(value, float) and value.is_integer() and "integer" in rule.get("type", ""):
            value = int(value)
        result[key] = _with_defaults(value, rule) if rule.get("type") == "object" else value
    return result


def _contradictions(config: dict) -> list[str]:
    """Settings that are each possible and together are not."""
    faults = []
    train, split = config["train"], config["preprocess"]["split"]
    faults += _contradictions_of_model(train)
    if config["seed"] + config["stability"]["n_seeds"] - 1 > LARGEST_SEED:
        faults.append(
            f"config: stability.n_seeds: the last of {config['stability']['n_seeds']} seeds from "
            f"{config['seed']} on would exceed {LARGEST_SEED}; lower seed"
        )
    if train["kl_warmup"] != "constant" and train["kl_warmup_steps"] >= train["max_steps"]:
        faults.append(
            f"config: train.kl_warmup_steps: the warm-up ({train['kl_warmup_steps']} steps) would "
            f"end after training ({train['max_steps']}); lower it or raise train.max_steps"
        )
    betas = [f"{beta:g}" for beta in config["rate_distortion"]["betas"]]
    if len(set(betas)) < len(betas):
        faults.append(
            "config: rate_distortion.betas: two of them are the same to six digits; remove one"
        )
    if split["validation"] + split["calibration"] > 0.9:
        faults.append(
            "config: preprocess.split: validation and calibration leave less than 10 % of the "
            "reference to train on; lower one of them"
        )
    select = config["preprocess"]["select_features"]
    if train["n_latent"] > select["n_features"] and select["gene_list"] is None:
        faults.append(
            f"config: train.n_latent: {train['n_latent']} latent dimensions for "
            f"{select['n_features']} genes (preprocess.select_features.n_features); lower it or "
            "raise the other"
        )
    size = config["library_size"]
    if (size["method"] == "column") != (size["column"] is not None):
        faults.append(
            "config: library_size.column: goes with method: column, and the other way round; "
            "set both or neither"
        )
    limits = config["preprocess"]["filter_cells"]
    for what in ("counts", "genes"):
        low, high = limits[f"min_{what}"], limits[f"max_{what}"]
        if low is not None and high is not None and low > high:
            faults.append(
                f"config: preprocess.filter_cells: min_{what} {low} exceeds max_{what} {high}; "
                "no cell could pass"
            )
    return faults


def _contradictions_of_model(train: dict) -> list[str]:
    """Choices of the model that do not go together."""
    counts, theta = train["likelihood"] != "gaussian", train["likelihood"] in ("nb", "zinb", "auto")
    pairs = (
        (
            train["dispersion"] != "gene" and not theta,
            f"dispersion: {train['dispersion']}: only nb and zinb have a dispersion; set it to "
            f"gene or change train.likelihood ({train['likelihood']})",
        ),
        (
            train["gaussian_variance"] is not None and counts,
            "gaussian_variance: only likelihood: gaussian has one; set it to null",
        ),
        (
            train["library_size"] == "latent" and not counts,
            "library_size: latent: a Gaussian models counts at a common depth and has no library "
            "size; set it to observed",
        ),
        (
            train["decoder"] == "free" and not counts,
            "decoder: free: a Gaussian's mean is free by itself; set it to softmax, the default",
        ),
        (
            train["skip"] != "none" and train["n_layers"] == 0,
            f"skip: {train['skip']}: needs hidden units to skip from; raise train.n_layers",
        ),
        (
            train["encode_covariates"]
            and not train["covariates"]
            and not train["continuous_covariates"],
            "encode_covariates: there are none; list them under train.covariates",
        ),
    )
    both = set(train["covariates"]) & set(train["continuous_covariates"])
    found = [text for is_wrong, text in pairs if is_wrong]
    found += [f"covariates: {name}: stands under both kinds; remove one" for name in sorted(both)]
    return [f"config: train.{text}" for text in found]


def read_samples(
    path: str, made_here: set[str], bundled: dict[str, str]
) -> dict[str, dict[str, str]]:
    """The sample table: {sample: {column: value}}, every value a string, "" where empty.

    ``made_here``: paths that a rule of the pipeline makes, so that they need not exist yet.
    ``bundled``: where the examples' own tables are, for a pipeline that runs from another folder.
    Raises :class:`ConfigurationError` with a line for each fault.
    """
    table = path if os.path.exists(path) else bundled.get(path, path)
    try:
        lines = _read_text(table, "a text table", "save it as UTF-8 TSV").splitlines()
    except FileNotFoundError:
        raise ConfigurationError(
            [f"config: samples: there is no file {path}; give the path of the sample table"]
        ) from None
    numbered = enumerate(csv.reader(lines, delimiter="\t"), start=1)
    try:
        rows = [(number, row) for number, row in numbered if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigurationError(
            [f"{path}: cannot be read as a table ({error}); save it as UTF-8 TSV"]
        ) from None
    header = [name.strip() for name in rows[0][1]] if rows else []
    for n, most, what in ((len(header), MOST_COLUMNS, "columns"), (len(rows), MOST_ROWS, "rows")):
        if n > most:
            raise ConfigurationError(
                [f"{path}: has {n} {what}, and a sample table at most {most}; is it the table?"]
            )
    faults = _check_header(path, header)
    if faults:
        raise ConfigurationError(faults)
    samples: dict[str, dict[str, str]] = {}
    right = []
    for number, cells in rows[1:]:
        where = f"{path}: row {number}"
        if len(cells) > len(header):
            faults.append(
                f"{where}: {len(cells)} fields under {len(header)} column names; check the tabs"
            )
            continue
        row = dict(zip(header, [cell.strip() for cell in cells], strict=False))
        row = {name: row.get(name, "") for name in header}
        of_row = _check_row(where, row, samples, made_here)
        faults, right = faults + of_row, right + ([] if of_row else [row])
        samples.setdefault(row["sample"], row)
    if not samples and not faults:
        faults.append(f"{path}: no sample in it; add a row for each sample")
    faults += _check_plugins(path, samples)
    if faults:
        raise ConfigurationError(faults, rows=right)
    return samples


def _check_header(path: str, header: list[str]) -> list[str]:
    if not header:
        return [f"{path}: the table is empty; its first row names the columns"]
    if len(header) == 1 and header[0] not in REQUIRED:
        return [f"{path}: has one column, {header[0][:80]!r}; separate the columns by tabs"]
    faults, typos = [], {}
    for name in header:
        typo = _close(name.lower(), KNOWN, 0.8)
        if name not in KNOWN and typo and typo[0] not in header:
            typos[typo[0]] = name
            faults.append(f"{path}: column {name}: did you mean {typo[0]}? rename it")
    faults += [
        f"{path}: column {name} is missing; add it"
        for name in REQUIRED
        if name not in header and name not in typos
    ]
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    faults += [f"{path}: column {name} stands twice; remove one" for name in doubled]
    faults += [
        f"{path}: column {name}: a slash in a name would make a group of it in HDF5; rename it"
        for name in dict.fromkeys(header)
        if "/" in name
    ]
    faults += [
        f"{path}: column {name!r}: a name holds a control character; rename it"
        for name in header
        if CONTROL.search(name)
    ]
    if "" in header:
        faults.append(f"{path}: a column has no name; name it or remove it")
    return faults


def _check_row(where: str, row: dict, earlier: dict, made_here: set[str]) -> list[str]:
    sample, file, role = row["sample"], row["path"], row["role"]
    faults = [
        f"{where}: column {name}: holds a control character; remove it"
        for name, value in row.items()
        if CONTROL.search(value)
    ]
    if not SAMPLE_NAME.fullmatch(sample):
        faults.append(
            f"{where}: sample {sample[:80]!r}: a name may hold letters, digits, _ . - and must "
            "start with a letter or digit; rename it"
        )
    elif len(sample) > LONGEST_NAME:
        faults.append(
            f"{where}: sample {sample[:80]!r}: a name may have at most {LONGEST_NAME} characters; "
            "shorten it"
        )
    elif sample.lower() == "counts":
        faults.append(f"{where}: sample {sample!r} would shadow the joined matrix; rename it")
    elif sample in earlier:
        faults.append(f"{where}: sample {sample} stands twice; names must differ")
    elif any(sample.lower() == name.lower() for name in earlier):
        faults.append(
            f"{where}: sample {sample} differs only in case from another; rename one (some file "
            "systems cannot hold both)"
        )
    if not file:
        faults.append(f"{where}: path is empty; give the sample's file")
    elif REPLACED.search(file):
        faults.append(f"{where}: path {file} {NOT_TAKEN}")
    elif URL.match(file):
        faults += [f"{where}: sample {sample}: {fault}" for fault in _check_url(row, earlier)]
    elif file not in made_here and not os.path.exists(file):
        faults.append(f"{where}: sample {sample}: there is no file {file}; correct the path")
    elif file not in made_here and not (os.path.isfile(file) or os.path.isdir(file)):
        faults.append(f"{where}: sample {sample}: {file} is a pipe or a device; give a file")
    elif file not in made_here and not os.access(file, os.R_OK):
        faults.append(f"{where}: sample {sample}: {file} cannot be read; check its permissions")
    if role not in ("reference", "query") and not OBS_COLUMN.fullmatch(role):
        faults.append(
            f"{where}: sample {sample}: role {role[:80]!r} must be reference, query or obs:COLUMN"
            f"{nearest(role, ('reference', 'query'))}"
        )
    if row.get("format") and row["format"] not in FORMATS:
        faults.append(
            f"{where}: sample {sample}: format {row['format'][:80]!r} must be one of "
            f"{', '.join(FORMATS)}{nearest(row['format'], FORMATS)}"
        )
    if row.get("sha256") and not SHA256.fullmatch(row["sha256"]):
        faults.append(
            f"{where}: sample {sample}: sha256 {row['sha256'][:80]!r} is not 64 hex digits; paste "
            "what sha256sum prints, or leave it empty"
        )
    return faults


def _check_url(row: dict, earlier: dict) -> list[str]:
    """What can be told of a URL without asking its server."""
    url, form = row["path"], row.get("format", "")
    scheme, host, path = _split_url(url)
    if scheme not in STORAGE:
        return [f"{url}: only https://, http:// and s3:// can be fetched; give a local copy"]
    if "@" in host:
        return [
            f"the URL on {host.split('@')[-1]} holds a password, which the report would print; "
            "remove it and set SNAKEMAKE_STORAGE_HTTP_AUTH"
        ]
    if not host or not path.strip("/"):
        return [f"{url}: is no address of a file; correct the path"]
    if form in FOLDERS or (not form and path.endswith(("/", ".zarr", ".mtx", ".mtx.gz"))):
        return [
            f"{url}: a folder (zarr, 10x_mtx) cannot be fetched; give the URL of one file and its "
            "format, or a local copy"
        ]
    for other in earlier.values():
        if other["path"] != url and _split_url(other["path"])[1:] == (host, path):
            return [
                f"{url}: would be kept in the same place as the file of sample {other['sample']}: "
                "what follows a ? does not count; give a local copy of one of them"
            ]
    return []


@cache
def _split_url(path: str) -> tuple[str, str, str]:
    """Scheme, host or bucket, and path of a URL; no scheme and host for a local path."""
    return URL.match(path).groups() if URL.match(path) else ("", "", path)


def storage_plugin(path: str) -> str | None:
    """Snakemake's storage plugin that fetches a sample's file; None for a local file."""
    return STORAGE.get(_split_url(path)[0])


def _check_plugins(path: str, samples: dict[str, dict]) -> list[str]:
    """Storage plugins that the samples need and that are not installed."""
    needed = {storage_plugin(row["path"]) for row in samples.values()} - {None}
    absent = [name for name in sorted(needed) if not find_spec(f"snakemake_storage_plugin_{name}")]
    if not absent:
        return []
    names = " and ".join(f"snakemake-storage-plugin-{name}" for name in absent)
    return [
        f"{path}: a URL as path needs {names}, not installed here; pip install -r "
        "requirements-remote.txt"
    ]


def check_cross_fitting(config: dict, samples: dict[str, dict]) -> None:
    """What does not go with a run of one role. Raises ConfigurationError."""
    if is_cross_fitted(samples) and config["stability"]["n_seeds"] > 1:
        raise ConfigurationError(
            [
                "config: stability.n_seeds: all samples have one role, so each cell is scored by "
                "cross-fitting, which further seeds do not repeat; set it to 1 or give trusted "
                "normal samples the role reference and the others query"
            ]
        )


def is_cross_fitted(samples: dict[str, dict]) -> bool:
    """Whether all samples are reference, or all query, so that they are scored among themselves."""
    return {row["role"] for row in samples.values()} in ({"reference"}, {"query"})


def check_covariates(config: dict, samples: dict[str, dict]) -> None:
    """Levels of a covariate that only query samples have, as far as the table alone can tell.

    Columns inside files are checked when the model is made. Raises ConfigurationError.
    """
    if is_cross_fitted(samples):  # each is learnt from
        return
    train, faults = config["train"], []
    named = [("train.covariates", name) for name in train["covariates"]]
    if train["dispersion"] == "gene_batch":
        named.append(("train.dispersion: gene_batch", "batch"))
    if train["library_size"] == "latent":
        named.append(("train.library_size: latent", "batch"))
    for key, name in named:
        rows = list(samples.values())
        values = {row.get(name, "") for row in rows} | {row["role"] for row in rows}
        if not all(row.get(name) for row in rows) or any(v.startswith("obs:") for v in values):
            continue
        known = {row[name] for row in rows if row["role"] == "reference"}
        only_query = sorted({row[name] for row in rows} - known)
        if only_query:
            faults.append(
                f"config: {key}: {name} {', '.join(only_query[:3])} occurs in query samples only, "
                "so the model cannot know its effect; bring reference samples of it, leave out "
                f"those query samples, or remove {name} from the model"
            )
    if faults:
        raise ConfigurationError(faults)


def files_inside(path: str) -> list[str]:
    """All files of a local folder that Snakemake can take, none for a file or a URL."""
    files = (str(file) for file in Path(path).rglob("*") if file.is_file())
    return sorted(file for file in files if not REPLACED.search(file))


def check_files(config: dict) -> None:
    """Files that the config names besides the sample table. Raises ConfigurationError."""
    gene_list = config["preprocess"]["select_features"]["gene_list"]
    if not gene_list:
        return
    fault = None
    if REPLACED.search(gene_list):
        fault = f"{gene_list} {NOT_TAKEN}"
    elif not os.path.isfile(gene_list):
        fault = f"there is no file {gene_list}; correct the path or set null"
    else:
        try:
            text = _read_text(gene_list, "text", "save it as UTF-8, a gene a line")
            if not any(line.split("#", 1)[0].strip() for line in text.splitlines()):
                fault = f"{gene_list} names no gene; write one a line, or set null"
        except ConfigurationError as error:
            fault = str(error).replace(f"{gene_list}: ", f"{gene_list} ", 1)
    if fault:
        raise ConfigurationError([f"config: preprocess.select_features.gene_list: {fault}"])


if __name__ == "__main__":
    try:
        read_config(sys.argv[1])
    except ConfigurationError as error:
        sys.exit(str(error))
