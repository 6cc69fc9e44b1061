"""Every message that ends a run is in the table, once, and names the place and the mend."""

import re

import pytest

from messages import PAGE, cases, is_said, page
from raised_messages import messages_in, raised_messages
from test_check_inputs import WARNINGS

ALL = [case for _, messages in cases() for case in messages]


@pytest.mark.parametrize(("name", "message"), ALL, ids=[name for name, _ in ALL])
def test_a_message_is_one_line_that_says_where_what_and_what_to_do(name, message):
    assert "\n" not in message
    # Of an unknown key the place alone is wrong, and its mend may be the nearest known key.
    is_key = re.match(r"config: \S+: unknown key", message)
    assert ": " in message or name in WARNINGS
    assert is_key or re.search("; |must be |may hold |must not |did you mean|it has: ", message)


# What no input brings about.
OF_NO_INPUT = {
    "the held-out ELBO is not a number at step …; lower train.learning_rate": (
        "the loss of the training cells is no number before"
    ),
}
RAISED = list(raised_messages())


@pytest.mark.parametrize(("file", "text"), RAISED, ids=[f"{f}: {t[:60]}" for f, t in RAISED])
def test_every_message_that_ends_a_run_is_in_the_table(file, text):
    # Some get their beginning where they are raised.
    pattern = ".*".join(map(re.escape, text.split("…")))
    said = [message for _, message in ALL if re.search(pattern, message)]
    assert bool(said) != (text in OF_NO_INPUT), f"no case brings about: {text}"


def test_no_two_cases_bear_a_name():
    names = [name for name, _ in ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "source",
    [
        'raise InputError(f"{path}: is torn; mend it")',
        'raise InputError(f"{path}: is {what}" + "torn; " + f"mend it")',
        'raise ConfigurationError([f"{path}: is torn; mend it"]) from None',
        'faults.append(f"{path}: is torn; mend it")',
        'faults += [f"{path}: is torn; mend it" for path in paths]',
        'faults[path] = f"{path}: is torn; mend it"',
        'def check():\n    return [f"{path}: is torn; mend it"]',
    ],
)
def test_a_message_is_found_wherever_it_is_raised(source):
    (found,) = messages_in(source, are_returned=True)
    assert is_said(found, "a.csv: is torn; mend it")


def test_what_is_no_message_of_its_own_is_not_one():
    for source in ("raise InputError(*faults)", "raise InputError(f'{a}: {b}')", "x = 'a: b; c'"):
        assert messages_in(source, are_returned=False) == []


def test_the_page_is_fresh_and_has_a_row_for_each_case():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(), "run make docs"
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(ALL) + text.count("| given | said |")
    assert all(line.count("|") == 3 for line in rows)


def test_an_ellipsis_stands_for_anything_and_nothing_else_does():
    assert is_said("a.csv: … cells; fix it", "a.csv: 12 cells; fix it")
    assert not is_said("a.csv: … cells; fix it", "a_csv: 12 cells; fix it")
    assert not is_said("a.csv: … cells", "a.csv: 12 cells; fix it")
