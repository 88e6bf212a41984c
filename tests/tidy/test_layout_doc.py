"""docs/LAYOUT.md and ringbuf/layout.py say the same: every field's offset, and no field reaches into the next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tierstore.ringbuf import layout

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "LAYOUT.md"
PREFIXES = ("SB_", "SH_", "R_", "S_", "C_", "A_", "B_", "P_", "M_")
# What one structure has room for; a table's last field ends there or before.
ROOM = {
    "SB_": layout.SUPERBLOCK_BYTES,
    "SH_": layout.SEGMENT_HEADER_BYTES,
    "R_": layout.RECORD_HEADER_BYTES,
    "S_": layout.SEGMENT_ENTRY_BYTES,
    "C_": layout.CONTROL_HEADER_BYTES,
    "A_": 64,
    "B_": layout.CLIENTS_HEADER_BYTES,
    "P_": layout.SLOT_PAGE_BYTES,
    "M_": layout.MESSAGE_BYTES,
}
ROW = re.compile(r"^\| `([A-Z]+_[A-Z_]+)` \| (\d+) \| (\d+) \|")


class Field(NamedTuple):
    """One row of a table."""

    name: str
    offset: int
    size: int


def prefix_of(name: str) -> str:
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")


def documented(text: str) -> list[Field]:
    """The rows of all tables, in order."""
    matches = (ROW.match(line) for line in text.splitlines())
    return [Field(match[1], int(match[2]), int(match[3])) for match in matches if match]


def declared() -> dict[str, int]:
    """Offsets by constant."""
    return {name: value for name, value in vars(layout).items() if prefix_of(name)}


FIELDS = documented(DOCUMENT.read_text(encoding="utf-8"))


def test_the_document_names_every_offset_once_and_rightly() -> None:
    names = [field.name for field in FIELDS]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"{twice}: more than one row in {DOCUMENT.name}: keep one"
    said = {field.name: field.offset for field in FIELDS}
    wrong = {name: (said.get(name), value) for name, value in declared().items() if said.get(name) != value}
    assert not wrong, f"{wrong} (in the document, in layout.py): correct the row in {DOCUMENT.name}"
    unknown = sorted(set(said) - set(declared()))
    assert not unknown, f"{unknown}: in {DOCUMENT.name} but not in layout.py: remove the rows"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_fields_do_not_overlap(prefix: str) -> None:
    fields = sorted((field for field in FIELDS if prefix_of(field.name) == prefix), key=lambda field: field.offset)
    assert fields
    for field, following in zip(fields, fields[1:], strict=False):
        assert field.offset + field.size <= following.offset, f"{field.name} reaches into {following.name}"
    assert fields[-1].offset + fields[-1].size <= ROOM[prefix], f"{fields[-1].name} reaches out of its structure"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_fields_are_aligned(field: Field) -> None:
    assert field.offset % min(field.size, 8) == 0, f"{field.name}: not aligned to its size, so no atomic access"


def test_a_wrong_row_is_seen() -> None:
    text = "| `S_WORD` | 8 | 8 | word | daemon | x |\nno row\n| `S_TAIL` | 24 | 8 | tail | daemon | x |"
    assert documented(text) == [Field("S_WORD", 8, 8), Field("S_TAIL", 24, 8)]
