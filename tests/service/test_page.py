"""The page in the Chromium of the system: upload, and a map with a swipe, from one server."""

import io
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from .conftest import bands_of

TOKEN = "a token of the tests"
TIMEOUT = 120_000  # ms, on a busy machine
RED = (200, 40, 30)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip("this system has no Chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        page = chromium.new_page(viewport={"width": 1280, "height": 1200})
        page.set_default_timeout(TIMEOUT)
        yield page
        chromium.close()


def colour(page: Page, across: float) -> np.ndarray:
    """The colour of the map at half its height. across: 0 to 1, from the left."""
    box = page.locator("#map").bounding_box()
    at = {"x": box["x"] + across * box["width"], "y": box["y"] + box["height"] / 2}
    content = page.screenshot(clip={**at, "width": 1, "height": 1})
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))[0, 0].astype(int)


def is_among(seen: Any, colours: Any) -> bool:
    return bool((np.abs(np.asarray(colours) - seen).max(axis=1) <= 1).any())


def test_the_map_swipes_between_input_and_result(start: Callable[..., Any], page: Page) -> None:
    server = start(token=TOKEN)
    hosts, said = set(), []
    page.on("request", lambda one: hosts.add(urlsplit(one.url.removeprefix("blob:")).netloc))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    content = io.BytesIO()
    Image.new("RGB", (64, 64), RED).save(content, "PNG")
    made = bands_of(server.execute(content.getvalue()).content)
    result = np.moveaxis(made.astype(int), 0, 2).reshape(-1, 3)
    assert not is_among(RED, result)  # which drawn weights make

    page.goto(server.url)
    page.fill("#token", TOKEN)
    file = {"name": "red.png", "mimeType": "image/png", "buffer": content.getvalue()}
    page.set_input_files("#file", file)
    page.get_by_text("Options").click()
    page.select_option("#input-weights", "small")
    page.get_by_text("Options").click()
    page.click("#submit")
    expect(page.locator("#compare")).to_be_visible(timeout=TIMEOUT)
    page.locator(".leaflet-tile-loaded").first.wait_for(state="attached")
    expect(page.locator(".leaflet-tile:not(.leaflet-tile-loaded)")).to_have_count(0)
    page.wait_for_timeout(1000)  # tiles fade in
    assert is_among(colour(page, 0.45), [RED])
    assert is_among(colour(page, 0.55), result)
    page.get_by_label("Input on the left").focus()
    page.keyboard.press("Home")
    assert is_among(colour(page, 0.45), result)
    page.keyboard.press("End")
    assert is_among(colour(page, 0.55), [RED])
    page.locator("#map").focus()
    with page.expect_request(re.compile("/tiles/after/")):
        for _ in range(4):  # the first ones only shrink the tiles
            page.keyboard.press("-")
            page.wait_for_timeout(500)
    assert hosts == {f"127.0.0.1:{server.port}"}
    assert said == []
