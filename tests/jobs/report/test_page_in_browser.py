"""The page in a real browser: it opens a file, asks nobody for anything, draws every plot, and takes hostile rows for text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysift.jobs.report.page.formats import shown
from raysift.jobs.report.page.page import render
from raysift.report.blocks import (
    Bar,
    Bars,
    Block,
    Counts,
    Facts,
    Funnel,
    Heatmap,
    Histogram,
    Line,
    Lines,
    Map,
    Mark,
    Point,
    Rows,
    Stage,
    Table,
    Texts,
    WhatIf,
    as_json,
)

from .chromium import NEEDED, SIZES, opens_soundly, plots, wider
from .page_record import record

pytestmark = NEEDED
PAGE = 10


def block_of(kind: str) -> dict[str, Any]:
    """The first block of its kind in the calm record."""
    return next(
        block for section in record(hostile=False)["sections"] for block in section["blocks"] if block["kind"] == kind
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[dict[str, Any], str], Path]:
    folder = tmp_path_factory.mktemp("page")

    def save(content: dict[str, Any], name: str) -> Path:
        file = folder / name
        if not file.exists():
            file.write_text(render(content), encoding="utf-8")
        return file

    return save


@pytest.fixture(scope="module")
def hostile(saved) -> Path:
    return saved(record(), "hostile.html")


@pytest.fixture(scope="module")
def calm(saved) -> Path:
    return saved(record(hostile=False), "calm.html")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size[0]))
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_a_complaint_or_a_request(browser, hostile, size, scheme, record_property):
    opens_soundly(browser, hostile, size, prefers_color_scheme=scheme)
    record_property(
        "milliseconds_to_the_plots", browser.run("return performance.getEntriesByName('raysift-drawn')[0].startTime")
    )


def test_every_plot_is_drawn_with_marks_and_a_name(browser, hostile):
    browser.open(hostile)
    found = plots(browser)
    drawn = [
        b
        for s in record()["sections"]
        for b in s["blocks"]
        if b["kind"] in ("bars", "histogram", "lines", "heatmap", "map")
    ]
    stages = [
        stage for s in record()["sections"] for b in s["blocks"] if b["kind"] == "funnel" for stage in b["stages"]
    ]
    assert len(found) == len(drawn) + len(stages) + 2, "and two of the slider"
    assert [plot for plot in found if plot["left"] or not plot["marks"] or not plot["label"]] == []


def odd_blocks() -> list[Block]:
    """What a small, a strange or a very large run may give."""
    many = tuple(f"group {i}" for i in range(60))
    one, nothing = Histogram(label="x", edges=(0.5, 0.5), series=(Counts(name="pool", counts=(3,)),)), (None, None)
    return [
        one,
        Histogram(label="x", edges=(0.0, 1.0), series=(Counts(name="pool", counts=(0,)),)),
        Histogram(
            label="x",
            edges=(-1e12, 0.0, 1e12),
            series=(Counts(name="pool", counts=(10**9, 1)),),
            marks=(Mark(value=5e12, label="out"),),
        ),
        Bars(label="x", groups=("a", "b"), series=(Bar(name="pool", values=nothing),)),
        Bars(
            label="x",
            groups=("a", "b"),
            series=(Bar(name="pool", values=(0.0, None), low=nothing, high=nothing),),
            lift=nothing,
        ),
        Bars(
            label="x",
            groups=("a", "b"),
            series=(Bar(name="one", values=(-3.5, -1e-9)), Bar(name="two", values=(-3e7, 2e7))),
        ),
        Bars(label="x", groups=many, series=(Bar(name="one", values=tuple(range(60))),)),
        Lines(x="x", y="y", series=()),
        Lines(x="x", y="y", series=(Line(name="one", points=((1.0, None),)),)),
        Lines(
            x="x",
            y="y",
            log_x=True,
            series=(Line(name="one", points=((0.0, 1.0), (5.0, 1.0))),),
            marks=(Mark(value=5.0, label="here"),),
        ),
        Lines(
            x="x",
            y="y",
            series=tuple(Line(name=name, points=((i, i % 7),), dots=True) for i, name in enumerate(many[:12])),
        ),
        Heatmap(label="x", columns=(), rows=(), values=()),
        Heatmap(label="x", columns=("a",), rows=("b",), values=((None,),)),
        Heatmap(label="x", columns=("a",), rows=("b",), values=((0.0,),), diverging=True),
        Heatmap(label="x", columns=many, rows=many[:2], values=(tuple(range(60)),) * 2),
        Map(x=(0.0, 1.0), y=(0.0, 1.0), density=((0,),), points=(), explained=(0.0, 0.0), how=""),
        Map(
            x=(0.0, 0.0),
            y=(0.0, 0.0),
            density=((4,),),
            points=(Point(x=0.0, y=0.0, id="a"),),
            explained=(1.0, 0.0),
            how="One point.",
        ),
        WhatIf(shares=(), groups=(), counts=(), pool=(), lengths=(), budget=0.1),
        WhatIf(shares=(0.5, 1.0), groups=("a",), counts=((0,), (1,)), pool=(0,), lengths=nothing, budget=0.1),
        Funnel(stages=(Stage(stage="none", does="", rows_in=0, kept=0),)),
        Rows(items=()),
        Table(columns=(), rows=()),
        Facts(items=()),
        Texts(items=()),
    ]


@pytest.mark.parametrize("size", SIZES[:2], ids=lambda size: str(size[0]))
def test_blocks_of_strange_data_do_not_break_the_page(browser, saved, size):
    content = record(rows=1, hostile=False)
    content["sections"] = [{"key": "odd", "title": "Odd", "lead": "", "blocks": as_json(odd_blocks())}]
    browser.open(saved(content, "odd.html"), size)
    assert browser.logs() == []
    assert browser.run("return document.getElementById('failed').hidden"), browser.text("#failed")
    assert browser.all("svg.room") == []
    assert browser.texts(".plot .muted") == ["Nothing to draw."] * 7
    assert "NaN" not in browser.run("return [...document.querySelectorAll('svg')].map((svg) => svg.outerHTML).join()")
    assert browser.run("return document.documentElement.scrollWidth - innerWidth") == 0


@pytest.mark.parametrize("size", SIZES[:2], ids=lambda size: str(size[0]))
def test_nothing_moves_while_the_page_opens(browser, calm, size):
    browser.open(calm, size)
    shift = """const done = arguments[0]; let sum = 0;
        const seen = new PerformanceObserver((list) => { for (const entry of list.getEntries()) sum += entry.value; });
        seen.observe({type: "layout-shift", buffered: true});
        requestAnimationFrame(() => setTimeout(() => done(sum), 200));"""
    assert browser.driver.execute_async_script(shift) < 0.1


def test_hostile_rows_stay_text(browser, hostile):
    browser.open(hostile)
    while browser.run("return !document.querySelector('.foot button').hidden"):
        browser.click(".foot button")
    assert len(browser.all(".cards > .card")) == 120
    assert browser.run("return window.broken") is None
    assert (
        browser.all(
            "main img, main script, iframe, object, embed, form, base, meta[http-equiv=refresh], main style, main svg[onload]"
        )
        == []
    )
    assert browser.run("return document.querySelectorAll('script').length") == 5
    assert browser.run("return location.href") == hostile.as_uri()
    assert any("<script>window.broken = 1; alert(1)</script>" in text for text in browser.texts(".said"))
    assert browser.logs() == []


def test_code_that_gets_into_the_page_does_not_run(browser, calm):
    """What the policy is for: even a defect in escaping would run nothing."""
    browser.open(calm)
    browser.run(
        "const code = document.createElement('script'); try { code.text = 'window.broken = 1' } catch {} document.body.append(code)"
    )
    browser.run(
        "const image = document.createElement('img'); image.src = 'https://example.org/x.png'; document.body.append(image)"
    )
    browser.wait("return true")
    assert browser.run("return window.broken") is None
    assert any("Content Security Policy" in line for line in browser.logs())


@pytest.mark.parametrize("size", SIZES[1:], ids=lambda size: str(size[0]))
@pytest.mark.parametrize("name", ["hostile", "calm"])
def test_nothing_is_wider_than_a_phone(browser, name, size, request):
    browser.open(request.getfixturevalue(name), size)
    browser.click(".cards .tools button", "Compare")
    for details in browser.all(".as-table summary"):
        browser.run("arguments[0].click()", details)
    assert wider(browser) == (0, [])


def test_search_chips_source_and_order_choose_the_rows(browser, calm):
    browser.open(calm)
    items = block_of("rows")["items"]
    ids = "return [...document.querySelectorAll('.cards > .card')].map((card) => card.dataset.id)"
    assert browser.run(ids) == [row["id"] for row in items[:PAGE]]
    browser.click(".chips button", "rejected: duplicate")
    duplicates = [row["id"] for row in items if "rejected: duplicate" in row["chips"]]
    assert browser.run(ids) == duplicates[:PAGE]
    assert browser.text(".status") == f"{PAGE} of {len(duplicates)} rows, found among 120"
    browser.click(".chips button", "rejected: duplicate")
    [search] = browser.all("input[type=search]")
    search.send_keys(items[33]["id"][:12].upper())
    browser.wait("return document.querySelectorAll('.cards > .card').length === 1")
    assert browser.run(ids) == [items[33]["id"]]
    search.clear()
    browser.run("arguments[0].dispatchEvent(new Event('input'))", search)
    browser.wait(f"return document.querySelectorAll('.cards > .card').length === {PAGE}")
    choose = "const [select, value] = arguments; select.value = value; select.dispatchEvent(new Event('change'))"
    source, order = browser.all(".controls select")
    browser.run(choose, source, "dolly")
    assert browser.run(ids) == [row["id"] for row in items if row["source"] == "dolly"][:PAGE]
    browser.run(choose, source, "")
    browser.run(choose, order, "lowest")
    scored = sorted((row for row in items if row["score"] is not None), key=lambda row: row["score"])
    assert browser.run(ids) == [row["id"] for row in scored[:PAGE]]


@pytest.mark.parametrize(
    ("selector", "words", "chip"),
    [(".alert button", "Show rows", "top"), (".reasons button", "duplicate", "rejected: duplicate")],
)
def test_an_alert_and_a_reason_show_their_rows(browser, calm, selector, words, chip):
    browser.open(calm)
    browser.click(selector, words)
    assert set(browser.texts(".cards > .card .tag.main")) == {chip}
    assert browser.text(".chips button[aria-pressed=true]").startswith(chip)
    browser.wait(
        "const top = document.getElementById('rows').getBoundingClientRect().top; return top >= 0 && top < innerHeight / 2"
    )


def test_the_slider_redraws_the_mix_and_the_length(browser, calm):
    from selenium.webdriver.common.keys import Keys

    browser.open(calm)
    block = block_of("what_if")
    at = block["shares"].index(block["budget"])

    def told(i: int) -> str:
        rows, characters = sum(block["counts"][i]), round(block["lengths"][i])
        return (
            f"{shown(block['shares'][i], 'percent')} of the pool: {rows:,} rows, {characters:,} characters on average"
        )

    assert browser.text(".slider output") == told(at)
    bars = "return document.querySelector('.block-what_if .plot svg').outerHTML"
    before = browser.run(bars)
    [slider] = browser.all(".slider input")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.text(".slider output") == told(at + 1)
    assert browser.run("return arguments[0].getAttribute('aria-valuetext')", slider) == told(at + 1)
    assert browser.run(bars) != before
    slider.send_keys(Keys.HOME)
    assert browser.text(".slider output") == told(0)
    browser.click(".block-what_if .tools button")
    assert browser.text(".slider output") == told(at)
    assert browser.run(bars) == before


def test_two_rows_stand_side_by_side(browser, calm):
    from selenium.webdriver.common.keys import Keys

    browser.open(calm)
    items = block_of("rows")["items"]
    for place in (0, 6, 7):
        browser.click(f".cards > .card:nth-child({place + 1}) .tools button", "Compare")
    assert [card.get_attribute("data-id") for card in browser.all(".card.picked")] == [
        items[6]["id"],
        items[7]["id"],
    ], "the two last ones"
    browser.click("#tray button.main")
    assert browser.run("return document.getElementById('side-by-side').open")
    assert browser.texts(".pair .card > .id") == [items[6]["id"], items[7]["id"]]
    table = browser.run(
        "return [...document.querySelectorAll('.differences tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert ["score", shown(items[6]["score"], "number"), shown(items[7]["score"], "number")] in table
    browser.press(Keys.ESCAPE)
    assert not browser.run("return document.getElementById('side-by-side').open")
    browser.click("#tray button", "Clear")
    assert browser.all(".card.picked") == []


def test_the_theme_switch_changes_colours_and_is_remembered(browser, calm):
    browser.open(calm, prefers_color_scheme="light")
    ground = "return getComputedStyle(document.body).backgroundColor"
    bright = browser.run(ground)
    seen = []
    for _ in range(3):
        browser.click("#theme")
        seen.append((browser.text("#theme"), browser.run(ground) == bright))
    assert seen == [("Theme: light", True), ("Theme: dark", False), ("Theme: automatic", True)]
    browser.click("#theme"), browser.click("#theme")
    browser.open(calm, prefers_color_scheme="light")
    assert browser.text("#theme") == "Theme: dark"
    browser.click("#theme")
    browser.open(calm, prefers_color_scheme="dark")
    assert browser.run(ground) != bright


def test_all_controls_are_reached_in_order_and_seen_by_keyboard(browser, calm):
    from selenium.webdriver.common.keys import Keys

    browser.open(calm)
    stops = []
    look = """const at = document.activeElement, style = getComputedStyle(at), before = window.before; window.before = at;
        return {what: at.id || at.className || at.type || at.tagName,
                name: (at.ariaLabel || at.labels?.[0]?.textContent || at.textContent).trim(),
                outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0,
                after: !before || Boolean(before.compareDocumentPosition(at) & Node.DOCUMENT_POSITION_FOLLOWING)}"""
    for _ in range(70):
        browser.press(Keys.TAB)
        stops.append(browser.run(look))
    assert stops[0]["name"] == "Skip to the content"
    assert [stop for stop in stops if not (stop["name"] and stop["outlined"] and stop["after"])] == []
    names = [stop["name"] for stop in stops]
    for name in (
        "Theme: automatic",
        "Verdict",
        "Show rows",
        "Share of the pool to take",
        "Show as table",
        "Rows, log scale",
        "Search",
        "Order",
    ):
        assert any(each.startswith(name) for each in names), (name, names)


def test_a_chip_is_switched_and_a_table_is_opened_by_keyboard(browser, calm):
    from selenium.webdriver.common.keys import Keys

    browser.open(calm)
    browser.all(".chips button")[0].send_keys(Keys.SPACE)
    assert set(browser.texts(".cards > .card .tag.main")) == {"top"}
    browser.all(".as-table summary")[0].send_keys(Keys.ENTER)
    browser.wait("return document.querySelector('.as-table table')")
    histogram = block_of("histogram")
    assert len(browser.all(".as-table tbody tr")) == len(histogram["series"][0]["counts"])


def test_a_point_of_the_map_shows_its_row(browser, saved):
    content = record(hostile=False)
    row = block_of("rows")["items"][17]
    for block in (block for section in content["sections"] for block in section["blocks"] if block["kind"] == "map"):
        block["points"] = [{"x": 0.0, "y": 0.0, "id": row["id"], "rank": 0}]
    browser.open(saved(content, "map.html"))
    browser.click(".block-map .plot svg")
    browser.wait("return document.querySelectorAll('.cards > .card').length === 1")
    assert browser.run("return document.activeElement.dataset.id") == row["id"]


def test_the_histogram_has_three_views(browser, calm):
    browser.open(calm)
    drawn = []
    for view in ("rows", "share", "log"):
        browser.click(f".views button[data-view={view}]")
        drawn.append(browser.run("return document.querySelector('.block-histogram .plot svg').outerHTML"))
        assert browser.run("return document.querySelector('.views button[aria-pressed=true]').dataset.view") == view
    assert len(set(drawn)) == 3


def test_an_id_and_its_command_are_copied(browser, calm):
    browser.open(calm)
    browser.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    first = block_of("rows")["items"][0]["id"]
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    places = {
        "Copy id": first,
        "Copy explain command": f"raysift explain runs/less-tulu {first}",
        "Copy": "raysift less --config run.yaml --run runs/again",
    }
    for words, copied in places.items():
        browser.click("button.copy" if words == "Copy" else ".cards > .card:first-child .tools button", words)
        browser.wait("return [...document.querySelectorAll('button')].some((each) => each.textContent === 'Copied')")
        assert browser.driver.execute_async_script(read) == copied


def test_both_languages_write_a_value_in_the_same_way(browser, saved):
    values = (
        0.0,
        1.0,
        -1.0,
        0.123456,
        -0.0123456,
        0.00098765,
        0.0000123,
        0.0444,
        7.26,
        42.0,
        59.7,
        61.2,
        3599.0,
        3601.0,
        123456.789,
        9.87654e9,
        1e15,
    )
    kinds = ("number", "percent", "seconds", "bytes", "count")
    content = record(rows=1, hostile=False)
    blocks = [
        Bars(
            title=kind,
            label=kind,
            type=kind,
            groups=tuple(map(str, range(len(values)))),
            series=(Bar(name="x", values=values),),
        )
        for kind in kinds
    ]
    content["sections"] = [{"key": "values", "title": "Values", "lead": "", "blocks": as_json(blocks)}]
    browser.open(saved(content, "values.html"))
    for i, kind in enumerate(kinds):
        browser.run("arguments[0].click()", browser.all(".as-table summary")[i])
        browser.wait(f"return document.querySelectorAll('.as-table table').length === {i + 1}")
        assert browser.texts(f".block-bars:nth-of-type({i + 1}) td.num") == [shown(value, kind) for value in values], (
            kind
        )


def test_sections_are_followed_in_the_navigation(browser, calm):
    browser.open(calm)
    browser.click(".sections a", "Cost")
    browser.wait("return document.querySelector('.sections [aria-current]').textContent === 'Cost'")
    keys = [section["key"] for section in record(hostile=False)["sections"]]
    assert [link.get_attribute("href").split("#")[1] for link in browser.all(".sections a")] == keys


def test_print_shows_all_on_white(browser, calm):
    browser.open(calm, prefers_color_scheme="dark")
    browser.command("Emulation.setEmulatedMedia", media="print")
    controls = "['.sections', '.controls', '.chips', '.tools', '#theme']"
    hidden = f"return {controls}.filter((each) => document.querySelector(each).checkVisibility())"
    assert browser.run(hidden) == []
    assert browser.run("return getComputedStyle(document.querySelector('h1')).color") == "rgb(28, 31, 35)"
    browser.command("Emulation.setEmulatedMedia", media="")
