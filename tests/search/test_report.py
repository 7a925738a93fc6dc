"""Reports: a page can be read, in a real browser, and the text has the same numbers. What found specs tell."""

from __future__ import annotations

import contextlib
import html
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optdsl
from optdsl import cli, driver
from optdsl.check import check_text
from optdsl.search import report
from optdsl.search.evaluate.stacked import Stacked
from optdsl.search.export import export
from optdsl.search.pictures import ticks
from optdsl.search.results import held_out, measured
from optdsl.search.space import express
from optdsl.search.store import Store
from optdsl.search.summary import tables
from optdsl.search.tasks.layout import Layout
from tests.backends.interpreted import interpreted, needs_triton
from tests.search.browser import Browser, program
from tests.search.stores import ENDINGS, HELD_OUT, HOSTILE, written
from tests.support import needs_compiler

pytestmark = pytest.mark.xdist_group("browser")

EVALUATIONS = 60
SECTIONS = (
    "In short", "Held-out tasks", "The rule", "Family tree", "Course of the search", "Pareto front", "Funnel",
    "What became of proposed candidates", "Run", "Events",
)  # fmt: skip
#: How many pictures there are: plots, and intervals in tables.
PICTURES = {
    "better": (4 + 1 + 2 + 2 + 1, 4 + 6), "worse": (4 + 1 + 2 + 2 + 1, 4 + 6), "nothing": (1 + 2 + 2 + 1, 0),
    "tests": (1 + 2 + 2 + 1, 0), "search": (1 + 2 + 2, 0), "empty": (0, 0),
}  # fmt: skip

#: What a page looks like once it is laid out.
_LOOK = r"""
(() => {
  const box = e => {
    const r = e.getBoundingClientRect();
    return [r.left + scrollX, r.top + scrollY, r.width, r.height];
  };
  const inner = document.documentElement.clientWidth;
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const found = rgb(getComputedStyle(e).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const words = [...document.body.querySelectorAll("*")].filter(own).filter(e => e.tagName !== "title");
  return {
    title: document.title,
    width: [document.documentElement.scrollWidth, inner],
    sections: [...document.querySelectorAll("section")].map(s => ({
      title: s.querySelector("h2").textContent, box: box(s), words: s.innerText,
    })),
    links: [...document.querySelectorAll("nav a")].map(a => document.getElementById(a.hash.slice(1)) !== null),
    tables: [...document.querySelectorAll("table")].map(t => ({
      box: box(t), head: [...t.querySelectorAll("th")].map(c => c.textContent),
      rows: [...t.querySelectorAll("tbody tr")].map(r => [...r.children].map(c => c.textContent)),
    })),
    cut: [...document.querySelectorAll("td, th, h1, h2, h3, p, a")]
      .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
      .map(e => e.outerHTML),
    outside: [...document.body.querySelectorAll("*")].filter(e => !e.closest(".wide, pre"))
      .filter(e => box(e)[0] < -0.5 || box(e)[0] + box(e)[2] > inner + 0.5)
      .map(e => e.outerHTML.slice(0, 200)),
    pictures: [...document.querySelectorAll("svg")].map(s => ({
      box: box(s), plot: s.closest("figure") !== null, about: s.getAttribute("aria-label"),
      marks: [...s.querySelectorAll("circle, polyline, path, line")].map(e => ({
        kind: e.tagName, box: box(e), data: !e.matches(".axis, .grid"), ink: rgb(getComputedStyle(e).fill === "none"
          ? getComputedStyle(e).stroke : getComputedStyle(e).fill).slice(0, 3),
      })),
      texts: [...s.querySelectorAll("text")].map(e => ({text: e.textContent, box: box(e)})),
      back: behind(s),
    })),
    words: words.map(e => {
      const s = getComputedStyle(e), ink = rgb(e instanceof SVGElement ? s.fill : s.color).slice(0, 3);
      return {text: e.textContent.slice(0, 60), ink, back: behind(e), box: box(e)};
    }),
  };
})()
"""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {ending: written(folder / f"{ending}.db", ending, EVALUATIONS) for ending in ENDINGS}


@pytest.fixture(scope="module")
def pages(stores: dict[str, Path]) -> dict[str, Path]:
    for path in stores.values():
        assert cli.main(["search", "report", str(path), "-o", str(path.with_suffix(".html"))]) == 0
    return {ending: path.with_suffix(".html") for ending, path in stores.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = program()
    if path is None:
        pytest.skip("no Chromium to look at pages with: on Debian it is `apt-get install chromium`")
    with Browser(path, tmp_path_factory.mktemp("browser")) as found:
        yield found


# ---- tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "out"), [("better", 3), ("nothing", 5), ("tests", None)])
def test_the_funnel_says_what_became_of_each_finalist(
    stores: dict[str, Path], ending: str, out: int | None
) -> None:
    """What looked better in the search and was not is told by number, in the table and in short."""
    with Store(stores[ending], write=False) as store:
        found = {table.title: table for table in tables(store)}
        fresh, search = measured(store, "fresh"), measured(store, "search")
        ids, base = store.noted("finalists"), store.noted("base")
        origins = {i: store.candidate(i).parent for i in ids}
    ended = {int(row[0]): row[-1] for row in found["Funnel"].rows}
    (told,) = [row[1] for row in found["In short"].rows if row[0] == "refused"] or [""]

    def score(results: dict[int, Any], id: int | None, against: int) -> float:
        logs = [np.log(r.losses) - np.log(results[against][t].losses) for t, r in results[id].items()]
        return float(np.mean(logs))

    worse = {i for i in ids if score(fresh, i, base) > 0}
    assert list(ended) == ids
    if out is None:  # the tests are not finished
        assert set(ended.values()) == {""}
        assert told == ""
        return
    assert len(worse) == out
    assert {i for i, text in ended.items() if text == "out: no better than the start on fresh seeds"} == worse
    assert [i for i, text in ended.items() if text == "the winner"] == (ids[:1] if ending == "better" else [])
    looked = min(worse, key=lambda i: score(search, origins[i], 0))
    at = [np.expm1(score(search, origins[looked], 0)), np.expm1(score(fresh, looked, base))]
    assert told == (
        f"{out} of 5 finalists; one looked like {100 * at[0]:+.1f} % in the search (candidate {origins[looked]}) and "
        f"is {100 * at[1]:+.1f} % on fresh seeds"
    )


# ---- in a browser -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, dark", [(1200, False), (390, True)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_page_can_be_read(
    browser: Browser, pages: dict[str, Path], ending: str, width: int, dark: bool
) -> None:
    url = pages[ending].as_uri()
    browser.open(url, width, dark=dark)
    look = browser.run(_LOOK)
    assert browser.requests() == [url]
    assert browser.complaints() == []
    assert look["width"][0] == look["width"][1] == width  # nothing to scroll sideways to
    assert (look["cut"], look["outside"]) == ([], [])
    assert [s["title"] for s in look["sections"]] == list(SECTIONS)
    for section in look["sections"]:
        assert section["box"][2] > 300
        assert len(section["words"].split("\n", 1)[1]) > 10, section  # more than its title
    assert look["links"] == [True] * len(SECTIONS)
    assert all(t["box"][2] > 50 and t["box"][3] > 20 for t in look["tables"])
    plots = [p for p in look["pictures"] if p["plot"]]
    assert (len(plots), len(look["pictures"]) - len(plots)) == PICTURES[ending]
    for picture in look["pictures"]:
        _check_picture(picture)
    for words in look["words"]:
        assert _contrast(words["ink"], words["back"]) >= 4.5, words
        assert min(words["box"][2:]) > 1, words
    light = sum(look["words"][0]["back"]) > 3 * 128
    assert light is not dark


def _check_picture(picture: dict[str, Any]) -> None:
    left, top, width, height = picture["box"]
    assert picture["about"]
    assert min(width, height) > 15
    assert not picture["plot"] or any(mark["data"] for mark in picture["marks"])
    for part in (*picture["marks"], *picture["texts"]):
        x, y, w, h = part["box"]
        inside = (
            left - 0.5 <= x and x + w <= left + width + 0.5 and top - 0.5 <= y and y + h <= top + height + 0.5
        )
        assert inside, (part, picture["box"])
    for mark in picture["marks"]:
        assert not mark["data"] or _contrast(mark["ink"], picture["back"]) >= 2, mark
    texts = picture["texts"]
    assert not picture["plot"] or len(texts) >= 5  # two axes with their names and some numbers
    for n, one in enumerate(texts):
        assert max(one["box"][2:]) > 10, one
        for other in texts[:n]:
            apart = [
                a + size <= b or b + length <= a
                for a, b, size, length in zip(
                    one["box"][:2], other["box"][:2], one["box"][2:], other["box"][2:], strict=True
                )
            ]
            assert any(apart), (one, other)


def _contrast(one: list[float], other: list[float]) -> float:
    """The ratio of two colours' luminances as WCAG has it."""

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_names_do_nothing_on_a_page(browser: Browser, tmp_path: Path) -> None:
    path = written(tmp_path / "run.db", "better", 30, name=HOSTILE)
    with Store(path, write=False) as store:
        page = report.page(store)
    (tmp_path / "run.html").write_text(page)
    browser.open((tmp_path / "run.html").as_uri(), 1200)
    assert browser.requests() == [(tmp_path / "run.html").as_uri()]
    assert browser.complaints() == []
    look = browser.run(_LOOK)
    assert look["title"].startswith("Search from </title></pre><script>")
    assert browser.run("document.querySelectorAll('script, img').length") == 0
    assert browser.run("document.querySelector('pre').textContent.includes('fetch(')")
    # what the page says to the browser would hold even if something were not escaped, and the browser tells of it
    (tmp_path / "open.html").write_text(page.replace("</body>", f"{HOSTILE}</body>"))
    browser.open((tmp_path / "open.html").as_uri(), 1200)
    assert browser.run("document.querySelectorAll('script, img').length") == 2
    assert browser.run("document.title") == look["title"]
    assert "Content Security Policy" in " ".join(browser.complaints())
    assert [url for url in browser.requests() if "outside" in url and not _blocked(browser, url)] == []


def _blocked(browser: Browser, url: str) -> bool:
    asked = {
        e["params"]["requestId"] for e in browser.events
        if e["method"] == "Network.requestWillBeSent" and e["params"]["request"]["url"] == url
    }  # fmt: skip
    return any(
        e["params"].get("blockedReason") == "csp" and e["params"]["requestId"] in asked
        for e in browser.events
        if e["method"] == "Network.loadingFailed"
    )


# ---- the same as text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_command_prints_every_table_of_the_page(
    stores: dict[str, Path], pages: dict[str, Path], ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["search", "report", str(stores[ending])]) == 0
    text = capsys.readouterr().out
    page = pages[ending].read_text()
    rows = [
        re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]
    rows = [[html.unescape(cell).replace("\xa0", " ") for cell in row] for row in rows if row]
    lines = {re.sub(r" {2,}", " ", line).strip() for line in text.split("\n")}
    for row in rows:
        assert re.sub(r" {2,}", " ", " ".join(cell for cell in row if cell)).strip() in lines, row
    with Store(stores[ending], write=False) as store:
        made = tables(store)
        first, *more = report.verdict(store).split("\n")
    assert len(rows) == sum(len(table.rows) for table in made)
    for table in made:
        assert table.title in text
        assert not table.rows or table.title in html.unescape(page)
        assert table.note in re.sub(r"\s+", " ", text)
    words = html.unescape(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2])).replace("\xa0", " ")
    assert all(line in words and line in text for line in [first, *more])
    assert page.index(f"<h1>{html.escape(first)}</h1>") < page.index("<h2>")  # before all else


@pytest.mark.parametrize(
    "ending, wanted",
    [
        ("better", "The winner is better than every rule that it was compared with on the held-out tasks."),
        (
            "worse",
            "On the held-out tasks the winner is worse than adamw, but is better than the start, lion and sgd with "
            "momentum.",
        ),
        (
            "nothing",
            "Nothing worth shipping was found: no candidate is better than the start on fresh seeds.",
        ),
        ("tests", "The tests are not finished: there is no verdict yet."),
        ("search", "The search is not finished: nothing here is tested yet."),
        ("empty", "The search is not finished: nothing here is tested yet."),
    ],
)
def test_the_first_sentence_is_the_verdict(stores: dict[str, Path], ending: str, wanted: str) -> None:
    with Store(stores[ending], write=False) as store:
        assert report.verdict(store).split("\n")[0] == wanted


def test_a_winner_that_fails_somewhere_is_not_better(stores: dict[str, Path]) -> None:
    with Store(stores["better"], write=False) as store:
        found = list(measured(store, "held-out").items())
    winner, rivals = found[0][1], {str(id): by_task for id, by_task in found[1:]}
    assert held_out(winner, rivals).better
    some = {task: tuned for task, tuned in winner.items() if task != HELD_OUT[1]}
    tested = held_out(some, rivals)
    assert not tested.better
    assert "not shown to be better than" in tested.text
    assert f"The winner failed on {HELD_OUT[1]}." in tested.text
    tested = held_out({}, rivals)
    assert not tested.better
    assert f"The winner failed on {', '.join(HELD_OUT)}." in tested.text
    # a rival that fails is compared on what is left
    tested = held_out(winner, {**rivals, "lame": {HELD_OUT[0]: next(iter(rivals.values()))[HELD_OUT[0]]}})
    assert tested.better
    assert f"lame failed on {', '.join(HELD_OUT[1:])}, which does not count" in tested.text


def test_the_command_of_a_report_is_one(stores: dict[str, Path]) -> None:
    with Store(stores["better"], write=False) as store:
        (commands,) = (table for table in tables(store) if table.title == "Commands")
    words = commands.rows[0][1].split()
    assert words[:2] == ["optdsl", "search"]
    options = cli._parser().parse_args(words[1:])
    assert (options.starts, options.seed, options.evaluations) == (["adamw"], 7, EVALUATIONS)
    assert (options.tasks[0], options.sizes, options.arm) == ("digits_mlp/small", "small", "evolution")


def test_ticks_are_round_and_few() -> None:
    cases = [(0, 1), (-11.3, 10.9), (-45.0, 45.0), (0, 11_000), (3e-7, 8e-7), (99.9, 100.1)]
    cases += [(0.97, 0.97 + 1.07**n) for n in range(-80, 80)]
    for (low, high), most in itertools.product(cases, (6, 8)):
        found = ticks(low, high, most)
        assert most / 3 - 0.01 <= len(found) <= most, (low, high, found)
        assert all(low <= x <= high for x in found)
        steps = {f"{b - a:.6e}" for a, b in itertools.pairwise(found)}
        assert len(steps) == 1
        assert next(iter(steps))[:4] in ("1.00", "2.00", "5.00")


# ---- specs ------------------------------------------------------------------------------------------------


def test_a_found_spec_tells_its_evidence_and_lineage(stores: dict[str, Path], tmp_path: Path) -> None:
    with Store(stores["better"], write=False) as store:
        (path,) = export(store, tmp_path)
        told = report.verdict(store).split("\n")
        (lineage,) = (table for table in tables(store) if table.title == "Lineage")
    program_ = check_text(path.read_text(), path.name).require()
    doc = program_.doc
    assert doc.startswith("Found by a search from adamw.\n")
    assert all(line in re.sub(r"\s+", " ", doc) for line in told)
    assert max(map(len, path.read_text().split("\n"))) <= 110
    steps = [row for row in lineage.rows if row[1] == "child"]
    assert len(steps) >= 3
    for id, _, change, _, _, score in steps:
        assert re.search(rf"^ *{id}: {change.split()[0]}.*, {re.escape(score)}$", doc, re.MULTILINE), (
            id,
            doc,
        )


PATHS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "kernels": {},
    "triton": {},
}


@pytest.mark.parametrize(
    "path",
    [
        "loop",
        "foreach",
        pytest.param("kernels", marks=needs_compiler),
        pytest.param("triton", marks=[needs_compiler, needs_triton]),
    ],
)
def test_a_found_spec_does_the_same_on_every_backend(
    stores: dict[str, Path], tmp_path: Path, path: str
) -> None:
    """As what the search has measured does in double precision."""
    with Store(stores["better"], write=False) as store:
        (file,) = export(store, tmp_path)
        genome = store.candidate(store.noted("verdict")["winner"]).genome
    (made,) = driver.compile([file], tmp_path)
    assert {part.name.partition(".")[2] for part in made.files} >= {"py", "c", "triton.py"}
    assert made.no_kernels is None
    layout, rng, lr = Layout(((40, 33), (7,))), torch.Generator().manual_seed(5), 0.05
    start = torch.randn(1, layout.total, generator=rng)
    run = Stacked(express(genome), layout, ("lr",)).run(start.double(), {"lr": lr}, 8)
    params = [torch.nn.Parameter(x[0].clone()) for x in layout.views(start)]
    with interpreted() if path == "triton" else contextlib.nullcontext():
        optimizer = optdsl.load(file)(params, lr=lr, **PATHS[path])
        for _ in range(8):
            g = torch.randn(1, layout.total, generator=rng)
            run.step(g.double())
            for p, part in zip(params, layout.views(g), strict=True):
                p.grad = part[0].clone()
            optimizer.step()
    tables_ = optimizer._launcher.tables.values() if optimizer._launcher else []
    ran = {type(batch).__name__ for table in tables_ for batch in table.batches}
    assert ran == {"kernels": {"CpuBatch"}, "triton": {"TritonBatch"}}.get(path, set())
    found = torch.cat([p.detach().reshape(-1) for p in params]).double()
    assert (found - start[0]).abs().max() > 0.1
    torch.testing.assert_close(found, run.view()[0], rtol=1e-4, atol=1e-5)


def test_specs_of_a_search_without_a_winner_say_so(stores: dict[str, Path], tmp_path: Path) -> None:
    with Store(stores["tests"], write=False) as store:
        found = export(store, tmp_path)
    assert len(found) == 2  # those of five that were better on fresh seeds
    for path in found:
        doc = check_text(path.read_text(), path.name).require().doc
        assert "It is not tested on held-out tasks." in doc
        assert "Loss against the start, fresh seeds: -" in doc
    with Store(stores["nothing"], write=False) as store, pytest.raises(ValueError, match="nothing to export"):
        export(store, tmp_path)
