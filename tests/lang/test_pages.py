"""Every code has a page, and every page is true: its example gives its messages, its correction none."""

from __future__ import annotations

import re

import pytest

from optdsl.check import check_text
from optdsl.lang.diagnostics import CODES
from optdsl.lang.explain import PAGES, page
from tests.lang.update_pages import MADE, check, read, rendered


def test_every_code_has_a_page() -> None:
    assert {path.name for path in PAGES.iterdir()} == {f"{code}.md" for code in CODES}


@pytest.mark.parametrize("code", CODES)
def test_a_page(code: str) -> None:
    found = read(code)
    assert (found.code, found.title) == (code, CODES[code])
    assert 2 <= len(re.findall(r"[.:!?](?:\s|$)", re.sub(r"`[^`]*`", "x", found.prose))) <= 7, (
        "two to six sentences"
    )
    assert all(len(line) <= 110 for line in found.prose.splitlines())
    assert (found.kind == "opt") is (code not in MADE)

    checked = check(found)
    assert [message.code for message in checked.diagnostics] == [code]
    assert rendered(checked) == found.rendering, "run python tests/lang/update_pages.py"

    corrected = check_text(found.corrected, "example.opt")
    assert corrected.diagnostics == ()
    assert corrected.program is not None


def test_the_error_names_the_nearest_code() -> None:
    assert page("e0301").startswith("# E0301: an unknown name\n")
    for wrong in ("E0399", "W0301", "0301", "E301", "", "x" * 10_000, "../E0301", "\x1b[31m"):
        with pytest.raises(KeyError, match=r"[EW]\d{4}") as raised:
            page(wrong)
        assert len(str(raised.value)) < 120
