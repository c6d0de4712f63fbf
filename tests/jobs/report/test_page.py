"""The page as a file: nothing in it can become code, its policy names its scripts, its size is bounded, its bytes repeat."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from raysift.errors import DataError
from raysift.jobs.report.page import page as pages
from raysift.jobs.report.page.formats import shown
from raysift.jobs.report.page.page import MOST_BYTES, page_within, render, write_page
from raysift.report.blocks import cut
from raysift.storage import open_location

from .page_record import HOSTILE, record


class Seen(HTMLParser):
    """All elements with their attributes, and what stands between their tags."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._open: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in self.inside:
            self._open = tag
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        if tag == self._open:
            self._open = None

    def handle_data(self, data):
        if self._open:
            self.inside[self._open][-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def html() -> str:
    return render(record())


@pytest.fixture(scope="module")
def seen(html) -> Seen:
    return Seen(html)


def payload_of(seen: Seen) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(seen.inside["script"][-2])))


def test_hostile_texts_add_no_element(seen):
    """The same elements come out of a record without hostile texts, but for the containers of the added texts."""
    ordinary = {tag for tag, _ in Seen(render(record(hostile=False))).elements}
    assert {tag for tag, _ in seen.elements} == ordinary
    assert not ordinary & {"img", "iframe", "object", "embed", "form", "base"}
    assert len(seen.inside["script"]) == 5, "early, two libraries, the data, the page's own"


def test_no_element_asks_for_anything_or_carries_code(seen):
    for tag, attributes in seen.elements:
        assert not [
            name
            for name in attributes
            if name.startswith("on") or name in ("style", "src", "srcset", "srcdoc", "action")
        ], tag
        assert tag != "a" or attributes["href"].startswith("#")
        assert tag != "link" or attributes["href"] == "data:,"
        assert tag != "meta" or attributes.get("http-equiv") in (None, "Content-Security-Policy")


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ("one long word", "control")])
def test_hostile_texts_are_shown_as_they_are(seen, name):
    assert HOSTILE[name] in seen.text
    rows = next(block for block in payload_of(seen)["blocks"].values() if block["kind"] == "rows")
    assert any(message["content"] == HOSTILE[name] for row in rows["items"] for message in row["messages"] or ())


def test_control_characters_are_shown_by_their_pictures_and_long_texts_are_cut(seen):
    assert "a␀b␇c␛d␡e \ufffd half" in seen.text
    assert cut(HOSTILE["one long word"], pages.MOST_CHARACTERS) in seen.text
    assert HOSTILE["one long word"] not in seen.text


def test_the_policy_allows_what_is_in_the_page_by_its_hash_and_nothing_else(seen):
    [policy] = [attributes["content"] for tag, attributes in seen.elements if attributes.get("http-equiv")]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    hashed = {
        kind: [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
        for kind, texts in seen.inside.items()
    }
    del hashed["script"][-2]  # the data, which is not code
    assert rules["script-src"] == hashed["script"]
    assert rules["style-src"] == hashed["style"]
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert set(rules) == {
        "default-src",
        "script-src",
        "style-src",
        "img-src",
        "base-uri",
        "form-action",
        "require-trusted-types-for",
    }
    assert [tag for tag, _ in seen.elements].index("script") > [
        attributes.get("http-equiv") for _, attributes in seen.elements
    ].index("Content-Security-Policy")


def test_libraries_are_those_that_the_table_of_versions_names():
    folder = Path(pages.__file__).parent / "vendor"
    table = (folder / "README.md").read_text()
    for file, package, home in (
        ("d3.min.js", "d3", "d3js.org"),
        ("plot.min.js", "@observablehq/plot", "@observablehq/plot"),
    ):
        version = re.search(r" v([\d.]+) Copyright", (folder / file).read_text()[:200])
        assert version and home in (folder / file).read_text()[:200]
        assert f"| `{file}` | `{package}` | {version[1]} |" in table
    for script in ("js/early.js", *pages.LIBRARIES, *pages.SCRIPTS):
        text = (Path(pages.__file__).parent / script).read_text()
        assert not re.search(r"</script|<!--", text, re.I), script
    for script in pages.SCRIPTS:
        text = (Path(pages.__file__).parent / script).read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", text
        ), script


def test_the_same_record_gives_the_same_bytes(html):
    assert render(record()) == html
    assert render(json.loads(json.dumps(record()))) == html


def test_the_first_screen_and_all_tables_read_without_scripts(seen):
    for words in (
        "8,165 of 163,296 rows",
        "3 h 23 min",
        "4.4\u00a0GB",
        "Scores follow length",
        "base model",
        "31.2\u00a0%",
        "too long",
        "Scripts are off",
    ):
        assert words.replace(" h ", "\u00a0h ").replace(" min", "\u00a0min") in seen.text


def test_without_texts_the_page_says_so():
    assert "Texts of rows were left out" in render(record(with_text=False))


def test_an_unknown_block_is_named_and_the_rest_is_drawn():
    odd = record(rows=6, hostile=False)
    odd["sections"][0]["blocks"].append({"kind": "hologram", "title": "", "note": ""})
    assert "cannot draw a block of kind hologram" in render(odd)


def test_a_typical_page_is_small():
    assert len(render(record(rows=600, characters=2000)).encode()) < 3_000_000


def rows_shown(page: bytes) -> list[str]:
    blocks = payload_of(Seen(page.decode()))["blocks"].values()
    return [row["id"] for block in blocks if block["kind"] == "rows" for row in block["items"]]


def test_a_page_over_the_limit_shows_fewer_rows_and_says_so(tmp_path, monkeypatch):
    assert MOST_BYTES == 8_000_000
    large = record(rows=400, hostile=False, characters=2000)
    whole = len(render(large).encode())
    limit = whole - 60_000
    monkeypatch.setattr(pages, "MOST_BYTES", limit)
    place = open_location(tmp_path / "report.html")
    write_page(large, place)
    page = place.read_bytes()
    assert len(page) <= limit
    shown_ids, all_rows = (
        rows_shown(page),
        next(b for s in large["sections"] for b in s["blocks"] if b["kind"] == "rows")["items"],
    )
    assert 0 < len(shown_ids) < 400
    assert f"{len(shown_ids)} of 400 example rows shown" in page.decode()
    assert shown_ids == [row["id"] for row in all_rows if row["id"] in set(shown_ids)], "in their order"
    assert {row["chips"][0] for row in all_rows if row["id"] in set(shown_ids)} == {row["chips"][0] for row in all_rows}
    assert page_within(large, limit) == page
    assert page_within(large, whole) == render(large).encode()


def test_the_last_rows_go_one_by_one_and_then_the_limit_is_an_error():
    small = record(rows=6, hostile=False)
    bare = len(render(small, 0).encode())
    assert rows_shown(page_within(small, bare)) == []
    with pytest.raises(DataError, match=r"without any example row, and .* report\.json holds the same"):
        page_within(small, bare - 1)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (1234, "count", "1,234"),
        (-1234, "count", "−1,234"),
        (None, "count", "–"),
        (2.5, "count", "2.5"),
        (0.12, "percent", "12 %"),
        (0.1234, "percent", "12.3 %"),
        (0.00456, "percent", "0.46 %"),
        (0.0, "percent", "0 %"),
        (1.0, "percent", "100 %"),
        (0.00004, "percent", "0.004 %"),
        (200, "seconds", "3 min 20 s"),
        (3.25, "seconds", "3.2 s"),
        (59.4, "seconds", "59 s"),
        (0.0064, "seconds", "6 ms"),
        (0.0, "seconds", "0 s"),
        (180, "seconds", "3 min"),
        (3700, "seconds", "1 h 1 min"),
        (360_000, "seconds", "100 h"),
        (999, "bytes", "999 B"),
        (4.4e9, "bytes", "4.4 GB"),
        (1.5e15, "bytes", "1,500 TB"),
        (0.41834, "number", "0.4183"),
        (123456.7, "number", "123,457"),
        (0.00001234, "number", "1.23e-05"),
        (-0.5, "number", "−0.5"),
        (3.0, "number", "3"),
        ("x" * 3, "number", "xxx"),
        (True, "text", "yes"),
        ({"a": 1, "b": None}, "text", "a 1, b –"),
        ([1, "b"], "text", "1, b"),
    ],
)
def test_values_are_written_as_people_write_them(value, kind, text):
    assert shown(value, kind).replace("\u00a0", " ") == text


def test_an_unknown_type_of_column_is_refused():
    with pytest.raises(ValueError, match="'money'; expected one of text"):
        shown(1, "money")
