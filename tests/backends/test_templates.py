"""Compiled templates are kept between runs, and nothing that happens to them shows in what is rendered."""

import pytest

from optdsl.backends import templates
from optdsl.backends.templates import render


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("OPTDSL_CACHE", str(folder))
    return folder


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "templates" / "page.jinja"
    path.parent.mkdir()
    path.write_text("{% for line in lines %}\n{{ line }}\n{% endfor %}\n")
    return path


def rendered(page):
    """The page as a new process renders it."""
    templates._environment.cache_clear()
    return render(page.parent, page.name, {"lines": ["a", "<b>"]})


def test_a_template_is_compiled_once(page, cache, monkeypatch):
    assert rendered(page) == "a\n<b>\n"
    (kept,) = cache.iterdir()
    before = kept.stat().st_mtime_ns
    monkeypatch.setattr("jinja2.Environment.compile", None)  # whatever compiles a template fails
    assert rendered(page) == "a\n<b>\n"
    assert kept.stat().st_mtime_ns == before


def test_a_changed_template_is_compiled_anew(page, cache):
    rendered(page)
    page.write_text("{{ lines[1] }}")
    assert rendered(page) == "<b>"
    assert rendered(page) == "<b>"


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-20], lambda data: b"x" * len(data)])
def test_a_damaged_file_is_replaced(page, cache, damage):
    rendered(page)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert rendered(page) == "a\n<b>\n"
    assert kept.read_bytes() == whole


def test_no_place_to_keep_it_is_no_mistake(page, cache):
    cache.write_text("a file, where a folder should be")
    assert rendered(page) == "a\n<b>\n"
    assert cache.is_file()


def test_another_way_to_read_templates_uses_nothing_that_was_kept(page, cache, monkeypatch):
    rendered(page)
    monkeypatch.setitem(templates._SYNTAX, "trim_blocks", False)
    assert rendered(page) == "\na\n\n<b>\n\n"
    templates._environment.cache_clear()
