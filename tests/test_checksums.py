"""A file is told by its SHA-256, and one that is not what the sample table says is refused."""

import hashlib

import pytest

from checksums import checksum, verified_checksum
from job import InputError


def test_checksum_of_a_file_is_sha256_and_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"counts")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"counts").hexdigest()
    first = checksum(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = checksum(tmp_path)
    (tmp_path / "b").write_bytes(b"count5")
    assert len({first, second, checksum(tmp_path)}) == 3


FOUND, OTHER = (hashlib.sha256(content).hexdigest() for content in (b"counts", b"count5"))


@pytest.mark.parametrize("stated", [{}, {"sha256": ""}, {"sha256": FOUND.upper()}])
def test_a_file_is_taken_that_has_the_stated_checksum_or_where_none_is(tmp_path, stated):
    (tmp_path / "a").write_bytes(b"counts")
    row = {"sample": "A", "path": "a", **stated}
    assert verified_checksum(tmp_path / "a", row) == FOUND


FAULTS = {
    "a file of another checksum": (
        b"count5",
        f"A: the SHA-256 of https://x.org/a is {OTHER}, and not {FOUND} as in the sample table; "
        "bring the right file or correct the column sha256",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_another_file_is_refused_in_a_line_with_sample_and_both_checksums(name, tmp_path):
    content, expected = FAULTS[name]
    (tmp_path / "a").write_bytes(content)
    row = {"sample": "A", "path": "https://x.org/a", "sha256": FOUND}
    with pytest.raises(InputError) as caught:
        verified_checksum(tmp_path / "a", row)
    assert str(caught.value) == expected
