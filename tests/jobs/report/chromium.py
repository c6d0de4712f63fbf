"""A page in headless Chromium, as tests of reports open it, and what must hold of every page."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BROWSER or not DRIVER, reason="no chromium with chromedriver here; `make browser` brings them"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("selenium") is None, reason="selenium is not installed; `make test-slow` brings it"
    ),
]
SIZES = [(1280, 900), (390, 844), (320, 640)]


class Browser:
    """A page in Chromium, and what it logged and asked for since it was opened."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.requests: list[str] = []

    def open(self, page: Path, size: tuple[int, int] = SIZES[0], **media: str) -> None:
        width, height = size
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.command(
            "Emulation.setEmulatedMedia",
            features=[{"name": name.replace("_", "-"), "value": value} for name, value in media.items()],
        )
        self.driver.get("about:blank")
        self.logs(), self._asked()
        self.driver.get(page.as_uri())
        self.wait(
            "return performance.getEntriesByName('raysift-drawn').length || !document.getElementById('failed').hidden"
        )
        self.requests = self._asked()

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60, 0.05).until(lambda driver: driver.execute_script(script))

    def click(self, selector: str, containing: str = "") -> None:
        """A real click where the element is, so that what lies over it would take it."""
        [element, *_] = [each for each in self.all(selector) if containing in each.text]
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector)

    def text(self, selector: str) -> str:
        return self.texts(selector)[0]

    def logs(self) -> list[str]:
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def _asked(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def wider(browser: Browser) -> tuple[int, list[str]]:
    """By how many pixels the page is wider than the window, and what sticks out."""
    over, named = browser.run(
        """const inside = (element) => { for (let up = element.parentElement; up; up = up.parentElement) {
               if (["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX)) return true; } return false; };
           const wide = (each) => each.getBoundingClientRect().right > innerWidth + 1 && !inside(each);
           const all = [...document.querySelectorAll("body *")];
           const named = (each) => `${each.tagName}.${each.className}`;
           return [document.documentElement.scrollWidth - innerWidth, all.filter(wide).map(named)]"""
    )
    return over, named


def opens_soundly(browser: Browser, page: Path, size: tuple[int, int], **media: str) -> None:
    """The page opens without a message, without a request, with every plot drawn, and no wider than the window."""
    browser.open(page, size, **media)
    assert browser.logs() == []
    assert [url for url in browser.requests if not url.startswith("data:,")] == [page.as_uri()]
    assert browser.run("return performance.getEntriesByType('resource').map((each) => each.name)") == []
    assert browser.run("return document.getElementById('failed').hidden")
    assert [plot for plot in plots(browser) if plot["left"] or not plot["marks"] or not plot["label"]] == []
    assert wider(browser) == (0, [])


def plots(browser: Browser) -> list[dict[str, Any]]:
    """Of each plot: what is not drawn yet, how many marks it has, and its name."""
    found: list[dict[str, Any]] = browser.run(
        """return [...document.querySelectorAll(".plot")].map((plot) => ({
            place: plot.closest("[data-block]")?.dataset.block,
            left: plot.querySelectorAll("svg.room").length,
            marks: plot.querySelectorAll("svg rect, svg path, svg circle, svg line").length,
            label: plot.querySelector("svg[role=img]")?.getAttribute("aria-label"),
        }))"""
    )
    return found
