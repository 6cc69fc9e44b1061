"""The table of messages holds every case once, and each message names the place and the mend."""

import re

import pytest

from messages import PAGE, cases, is_said, page
from test_check_inputs import WARNINGS

ALL = [(name, message) for _, messages in cases() for name, message in messages.items()]


@pytest.mark.parametrize(("name", "message"), ALL, ids=[name for name, _ in ALL])
def test_a_message_is_one_line_that_says_where_what_and_what_to_do(name, message):
    assert "\n" not in message
    # Of an unknown key the place alone is wrong, and its mend may be the nearest known key.
    is_key = re.match(r"config: \S+: unknown key", message)
    assert ": " in message or name in WARNINGS
    assert is_key or re.search("; |must be |may hold |must not |did you mean|it has: ", message)


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
