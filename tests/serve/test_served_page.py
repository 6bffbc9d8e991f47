"""The page in a real Chromium: what a person does, and what the page then shows."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmsa
from mmsa.serve.page import load_page
from tests.conftest import need
from tests.serve.tiny_export import picture, tiny_export

TOKEN = "a-token-of-the-browser-test"


@pytest.fixture
def chromium(browser: str) -> Iterator[Any]:
    need("playwright", importlib.util.find_spec("playwright") is not None)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        yield started
        started.close()


def shown_bars(page: Any, place: str) -> dict[str, float]:
    """Class -> the share that a group of bars shows, in percent."""
    names = page.locator(f"{place} dt").all_inner_texts()
    numbers = page.locator(f"{place} .number").all_inner_texts()
    return {
        name: float(number.removesuffix(" %")) for name, number in zip(names, numbers, strict=True)
    }


def test_a_person_predicts_a_post_and_a_table(
    chromium: Any, server: Callable[..., Any], tmp_path: Path
) -> None:
    """One visit: token, a post with a picture, why, an example, the phone's width, a CSV."""
    export = tiny_export(tmp_path / "best", stand_ins=("text", "image"))
    (tmp_path / "token").write_text(TOKEN)
    running = server(export, "--token-file", tmp_path / "token")
    expected = mmsa.load(export, device="cpu")
    (tmp_path / "day.jpg").write_bytes(picture(3))
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(60_000)
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(running.url + "/")

    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not take this token.").wait_for()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.locator("#access").wait_for(state="hidden")

    page.get_by_label("Text", exact=True).fill("what a day")
    page.locator("#image").set_input_files(tmp_path / "day.jpg")
    page.locator("#preview").wait_for()
    page.locator("#text").focus()
    page.keyboard.press("Control+Enter")
    page.locator("#result .answer").wait_for()
    found = expected.predict(["what a day"] * 2 + [None], [picture(3), None, picture(3)])
    assert page.locator("#result .answer").inner_text() == found.labels[0]
    places = ("#result > dl", "#result .small:nth-of-type(1)", "#result .small:nth-of-type(2)")
    for place, row in zip(places, found.probabilities, strict=True):
        shares = shown_bars(page, place)
        assert list(shares) == list(found.label_names)
        assert list(shares.values()) == pytest.approx(100 * row, abs=0.051)
    _photograph(page, "desktop")

    page.set_viewport_size({"width": 375, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    _photograph(page, "phone")
    page.get_by_role("button", name="A bad day").click()
    page.get_by_text(re.compile("example.png")).wait_for()

    _predict_table(page, expected, tmp_path)
    page.get_by_role("button", name="Remove").click()
    page.get_by_label("Text", exact=True).fill("")
    page.get_by_role("button", name="Predict", exact=True).click()
    page.locator("#result .error").wait_for()
    assert "neither a text nor an image" in page.locator("#result .error").inner_text()
    assert faults == []
    assert {url.split("?")[0] for url in asked if not url.startswith(running.url)} <= {
        url for url in asked if url.startswith(("blob:", "data:"))
    }


def _predict_table(page: Any, expected: Any, tmp_path: Path) -> None:
    """Give the page a CSV with quotes, a missing picture and an empty row; read its download."""
    text = 'not my "day",\nwhat'
    with (tmp_path / "posts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["id", "text", "image"], ["1", text, "day.jpg"], ["2", "a", "no.jpg"], ["3", "", ""]]
            + [[str(number), "what a day", ""] for number in range(4, 40)]
        )
    (tmp_path / "latin.csv").write_bytes("text\nschön\n".encode("latin-1"))
    page.locator("#csv").set_input_files(tmp_path / "latin.csv")
    page.get_by_text("This file is not in UTF-8").wait_for()
    assert page.get_by_role("button", name="Predict all").is_disabled()
    for content, number in (
        ("text,image,notes; other\na,b;c,d\n", 1),
        ('sep=;\ntext;image\n"a;b";\nc;\n', 2),
        ("text|image\na,b|\n", 1),
        ("\ufefftext\timage\na\t\n", 1),
    ):
        for encoding in ("utf-8", "utf-16"):
            file = tmp_path / f"{len(content)}-{encoding}.csv"
            file.write_text(content, encoding=encoding)
            page.locator("#csv").set_input_files(tmp_path / "latin.csv")
            page.get_by_text("This file is not in UTF-8").wait_for()
            page.locator("#csv").set_input_files(file)
            page.get_by_text(f"{number} posts", exact=True).wait_for()
    page.locator("#csv").set_input_files(tmp_path / "posts.csv")
    page.locator("#pictures").set_input_files(tmp_path / "day.jpg")
    page.get_by_role("button", name="Predict all").click()
    page.get_by_role("link", name="Download the result").wait_for()
    assert "39 of 39 posts predicted, 2 of them" in page.locator("#many-note").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the result").click()
    content = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [row["id"] for row in rows] == [str(number) for number in range(1, 40)]
    found = expected.predict([text, "what a day"], [picture(3), None])
    assert (rows[0]["text"], rows[0]["label"]) == (text, found.labels[0])
    for row, probabilities in (
        (rows[0], found.probabilities[0]),
        (rows[38], found.probabilities[1]),
    ):
        shares = [float(row[f"p_{name}"]) for name in found.label_names]
        assert shares == pytest.approx(probabilities, abs=1e-5)
    assert rows[1]["error"] == "the picture no.jpg was not chosen"
    assert rows[2]["error"] == "the post has neither a text nor an image; give one"


def _photograph(page: Any, name: str) -> None:
    """Keep a picture of the page where MMSA_PICTURES names a directory, to look at it."""
    if directory := os.environ.get("MMSA_PICTURES"):
        page.screenshot(path=f"{directory}/{name}.png", full_page=True)


def test_the_page_asks_no_other_server() -> None:
    page = load_page()
    assert re.findall(r"https?://|//cdn|@import|url\(", page.html) == []
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].count("sha256-") == 2
    assert " style=" not in page.html  # the policy would drop it
    assert re.findall(r"\son\w+=", page.html.split("<script>")[0]) == []
