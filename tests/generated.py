"""Strategies of configs and sample tables whose values are each allowed.

Together they may contradict each other. ``texts`` writes a config in the ways that there are.
"""

import json
from collections.abc import Iterator

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from configuration import FORMATS
from count_checks import CONTROL

COLUMNS = ("batch", "donor", "condition", "age", "größe")
MOST_SETTINGS = 12


def words(**limits) -> st.SearchStrategy[str]:
    """Text of one line without blanks around it, as a person may type it."""
    characters = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp"))
    text = st.text(characters, min_size=1, max_size=12, **limits)
    return text.filter(lambda t: t == t.strip() and not CONTROL.search(t))


# The config


def _values(rule: dict) -> st.SearchStrategy:
    """Values that a rule of the schema allows, the ends of its range often."""
    if "enum" in rule or "const" in rule:
        return st.sampled_from(rule.get("enum") or [rule["const"]])
    if "anyOf" in rule:
        return st.one_of(map(_values, rule["anyOf"]))
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    low = rule.get("minimum", rule.get("exclusiveMinimum", 0))
    high = rule.get("maximum", rule.get("exclusiveMaximum", max(low, 1) * 1000))
    ends = [rule[key] for key in ("minimum", "maximum") if key in rule]
    numbers = {
        "integer": st.integers(int(low) + ("exclusiveMinimum" in rule), int(high)),
        "number": st.floats(
            low,
            high,
            exclude_min="exclusiveMinimum" in rule,
            exclude_max="exclusiveMaximum" in rule,
        ),
    }
    others = {
        "string": st.sampled_from([*COLUMNS, "genes.txt"]) | words(),
        "boolean": st.booleans(),
        "null": st.none(),
        "array": st.lists(_values(rule["items"]), max_size=4, unique=True)
        if "items" in rule
        else st.nothing(),
    }
    edges = st.sampled_from(ends) if ends and set(kinds) & set(numbers) else st.nothing()
    return st.one_of(*((numbers | others)[kind] for kind in kinds), edges)


def _settings(schema: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple, dict]]:
    """Every setting of the schema: its keys, and its rule."""
    for key, rule in schema["properties"].items():
        if rule.get("type") == "object":
            yield from _settings(rule, (*above, key))
        elif key not in ("run", "samples"):
            yield (*above, key), rule


def _nested(flat: dict[tuple, object]) -> dict:
    config: dict = {}
    for (*sections, key), value in flat.items():
        home = config
        for section in sections:
            home = home.setdefault(section, {})
        home[key] = value
    return config


def configs(schema: dict) -> st.SearchStrategy[dict]:
    """A few settings, so that two of them are seldom in the way of all others."""
    rules = dict(_settings(schema))
    chosen = st.lists(st.sampled_from(list(rules)), max_size=MOST_SETTINGS, unique=True)
    flat = chosen.flatmap(lambda keys: st.fixed_dictionaries({k: _values(rules[k]) for k in keys}))
    return flat.map(_nested)


def _as_yaml(config: dict) -> st.SearchStrategy[str]:
    ways = st.tuples(st.booleans(), st.sampled_from([None, False, True]))
    return ways.map(
        lambda way: yaml.safe_dump(config, allow_unicode=way[0], default_flow_style=way[1])
    )


# Lines at the end of a config in the block style. Most of them are still a config.
ENDINGS = (
    "# größer\n",
    "---\nrun: other\n",
    "--- {}\n",
    "...\n",
    "seed: 5\nseed: 6\n",
    "train: {n_latent: 3}\ntrain: {n_layers: 0}\n",
    "prune: &p {fine_tune_learning_rate: 0.5}\nrefine: *p\n",
    "check: &c {injected: false}\nreport: {<<: *c, umap_neighbors: 3}\n",
    "evidence: {<<: [{samples: 3}, {cells: 20}]}\n",
    "train: {covariates: &l [batch], continuous_covariates: *l}\n",
    "train: {covariates: [batch, donor]}\n",
    "rate_distortion: &r {betas: [*r]}\n",
    "report: &a [&b [*a, *b]]\n",
    f"0x{'f' * 5000}: 1\n",
    "5: x\n",
    "null: 1\n",
    "true: {a: b}\n",
    "1.5: [1]\n",
    "2024-01-02: 2024-01-02\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "seed: !!int '7'\n",
    "seed: 0x10\n",
    "seed: 1:30\n",
    "seed: 0b11\n",
    "seed: 1_000\n",
    "seed: 2.0e+3\n",
    f"seed: 0x{'f' * 5000}\n",
    f"train: {{max_steps: 0x{'f' * 5000}}}\n",
    f"train: {{max_steps: {'9' * 400}}}\n",
    f"rate_distortion: {{betas: [{'9' * 400}]}}\n",
    f"rate_distortion: {{betas: {[0.01 * i for i in range(1, 400)]}}}\n",
    f"rate_distortion: {{betas: {list(range(1, 9000))}}}\n",
    f"train: {{covariates: {[f'c{i}' for i in range(2000)]}}}\n",
    "rate_distortion: {betas: [1.0, 1, 0.5]}\n",
    "stability: {n_seeds: 1000}\n",
    f"run: {'r' * 300}\n",
    f"samples: {'s' * 300}\n",
    "samples: .\n",
    "samples: !!binary aGVsbG8=\n",
    "memory: !!set {auto}\n",
    "train: !!omap [n_latent: 3]\n",
    "train: [n_latent, 3]\n",
    "preprocess: {select_features: {gene_list: genes.txt}}\n",
    f"preprocess: {{select_features: {{gene_list: {'g' * 5000}}}}}\n",
    'preprocess: {select_features: {gene_list: "a\\0b"}}\n',
    'library_size: {method: column, column: "\\ud800"}\n',
    "library_size: {method: column, column: 🧬}\n",
    f"observations: {'[' * 400}{']' * 400}\n",
    "\tseed: 3\n",
    "seed:\t3\n",
)


def studies(schema: dict) -> st.SearchStrategy[dict]:
    """Configs whose sample table is samples.tsv."""
    return configs(schema).map({"run": "small", "samples": "samples.tsv"}.__or__)


def texts(named: st.SearchStrategy[dict]) -> st.SearchStrategy[str]:
    """Configs as they may be written, in YAML or JSON, and with odd lines at the end."""
    ends = st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=2).map("".join)
    return st.one_of(
        named.flatmap(_as_yaml),
        named.map(lambda config: json.dumps(config, indent="\t")),
        st.tuples(named.map(lambda c: yaml.safe_dump(c, sort_keys=False)), ends).map("".join),
    )


# The sample table


def rows(*paths: str) -> st.SearchStrategy[dict[str, str]]:
    """What stands in a row besides the sample's name."""
    values = st.one_of(st.just(""), st.sampled_from(["one", "two", "obs:lane"]), words())
    role = st.sampled_from(["reference", "reference", "query", "obs:role"])
    return st.fixed_dictionaries(
        {
            "path": st.sampled_from(paths),
            "role": role | words().map("obs:{}".format),
            "format": st.sampled_from(["", *FORMATS]),
            "batch": values,
            "note": values,
        }
    )


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True)


def tables(*paths: str) -> st.SearchStrategy[dict[str, dict[str, str]]]:
    """Sample tables: what :func:`configuration.read_samples` returns of them."""
    names = NAMES.filter(lambda name: name.lower() != "counts")
    return (
        st.dictionaries(names, rows(*paths), min_size=1, max_size=6)
        .filter(lambda samples: len({name.lower() for name in samples}) == len(samples))
        .map(lambda samples: {name: {"sample": name, **row} for name, row in samples.items()})
    )


def table_text(samples: dict[str, dict[str, str]]) -> str:
    """As a spreadsheet writes it: quoted where a field holds a quote."""

    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if '"' in cell else cell

    columns = [*next(iter(samples.values()))]
    lines = [columns, *([row[name] for name in columns] for row in samples.values())]
    return "".join("\t".join(map(quoted, line)) + "\n" for line in lines)


def drawn(strategy: st.SearchStrategy, number: int):
    """Value ``number`` of a strategy, the same each time."""
    found = []

    # The first that hypothesis draws is always the simplest.
    @seed(number)
    @settings(
        max_examples=2,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def take(value) -> None:
        found.append(value)

    take()
    return found[-1]
