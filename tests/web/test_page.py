"""The page that enlarges pictures in a browser (web/), in the Chromium of the system, against the
command line.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import repmamba
from repmamba.scene.engine import upscale_file

CHECKOUT = Path(__file__).resolve().parents[2]
WEB = CHECKOUT / "web"
COLORADO = CHECKOUT / "examples" / "colorado.tif"
INTERSECTION = CHECKOUT / "examples" / "intersection.png"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
TIMEOUT = 300_000  # ms, on a busy machine
TILE, HALO = 32, 8  # small, so that small pictures have several tiles
NORTH_UP = Affine(0.5, 0, 480000.25, 0, -0.5, 4300000.75)


class Served(NamedTuple):
    """A page at its address, and all requests that were made."""

    page: Page
    address: str
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip("this system has no Chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def dist() -> Path:
    """The page as `make web` builds it."""
    if not (WEB / "dist" / "index.html").is_file():
        pytest.skip("the page is not built: make web")
    return WEB / "dist"


@pytest.fixture(scope="module")
def weights(tiny_weights: Callable[..., Path]) -> dict[int, Path]:
    return {scale: tiny_weights(scale) for scale in (4, 3)}


@pytest.fixture(scope="module")
def built(dist: Path, weights: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built page with small models, whose sessions open quickly."""
    folder = tmp_path_factory.mktemp("page") / "dist"
    shutil.copytree(dist, folder)
    models = []
    for scale, path in weights.items():
        file = f"small{scale}.onnx"
        repmamba.export(path, folder / file)
        models.append(
            {"file": file, "name": "small", "scale": scale, "tile": TILE, "halo": HALO}
            | {"terms": "free", "denoises": scale == 3}
        )
    (folder / "models.json").write_text(json.dumps(models))
    return folder


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Serves a folder and returns its address."""
    if shutil.which("node") is None:
        pytest.skip("this system has no Node.js")
    servers = []

    def start(folder: Path, *options: str) -> str:
        command = ["node", WEB / "serve.mjs", "0", folder, *options]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert server.stdout is not None
        return server.stdout.readline().strip()

    yield start
    for server in servers:
        server.kill()
        server.wait()


def opened(browser: Browser, address: str, width: int = 1280) -> Served:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(TIMEOUT)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.locator("#file:enabled").wait_for()
    return Served(page, address, requests)


@pytest.fixture(scope="module")
def shared(browser: Browser, built: Path, serve: Callable[..., str]) -> Iterator[Served]:
    """One page for all pictures, as one visitor enlarges several."""
    served = opened(browser, serve(built))
    yield served
    served.page.close()


@pytest.fixture
def served(browser: Browser, built: Path, serve: Callable[..., str]) -> Iterator[Served]:
    served = opened(browser, serve(built))
    yield served
    served.page.close()


def choose(page: Page, file: Path) -> None:
    """Choose a file, and wait for its result or its error."""
    page.set_input_files("#file", file)
    finished = page.locator("#comparison:visible, #failure:not(:empty)")
    finished.first.wait_for()


def download(page: Page, folder: Path) -> Path:
    assert not page.inner_text("#failure")
    with page.expect_download() as waiting:
        page.click("#download")
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def scene(rng: np.random.Generator, bands: int, dtype: str, shape: tuple[int, int]) -> Any:
    """Smooth hills with some noise."""
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    hills = np.stack([np.sin(rows / (5 + b)) * np.cos(cols / (7 - b)) for b in range(bands)])
    unit = 0.5 + 0.35 * hills + 0.03 * rng.standard_normal(hills.shape)
    largest = 255 if dtype == "uint8" else 9000
    return (unit.clip(0, 1) * largest).astype(dtype)


def write(path: Path, raw: Any, mask: Any = None, **profile: Any) -> Path:
    count, height, width = raw.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            *(path, "w"),
            driver="GTiff" if path.suffix == ".tif" else path.suffix[1:].upper(),
            count=count,
            height=height,
            width=width,
            dtype=raw.dtype,
            **profile,
        ) as target,
    ):
        target.write(raw)
        if mask is not None:
            target.write_mask(mask)
    return path


def jpeg(path: Path, raw: Any) -> Path:
    """A JPEG file with whole colours; a browser and GDAL upsample halved ones differently."""
    Image.fromarray(np.moveaxis(raw, 0, -1)).save(path, quality=95, subsampling=0)
    return path


def files(folder: Path) -> dict[str, Path]:
    """Files of each kind that the page takes, by what is special in them."""
    rng = np.random.default_rng(0)
    place = {"crs": "EPSG:32613", "transform": NORTH_UP}
    rgb8, rgb16 = (scene(rng, 3, dtype, (45, 70)) for dtype in ("uint8", "uint16"))
    grey16 = scene(rng, 1, "uint16", (33, 41))
    holes = np.full(rgb8.shape[1:], 255, np.uint8)
    holes[10:20, 25:50] = holes[40:, :3] = 0
    clear = np.where(rng.random((45, 70)) < 0.1, 0, 200).astype("uint8")[None]
    rgba8 = np.concatenate([rgb8, clear])
    outliers, filled, flat = rgb16.copy(), rgb16.copy(), np.full_like(grey16, 700)
    outliers[:, 5, 5:7] = 65535
    filled[:, :9, :9] = 65535
    flat[0, 3:9, 4] = [702, 705, 711, 698, 690, 703]
    tail = rng.integers(100, 130, grey16.shape).astype("uint16")
    tail[0, 20, :12] = np.linspace(2000, 8000, 12)
    turned = Affine.translation(10, 20) @ Affine.rotation(30) @ Affine.scale(2)
    deflate = {"compress": "deflate", "predictor": 2}
    tiled = {"tiled": True, "blockxsize": 32, "blockysize": 32}
    # GDAL sets RasterPixelIsPoint from the tag.
    points = write(folder / "points.tif", rgb8, **place)
    with rasterio.open(points, "r+") as target:
        target.update_tags(AREA_OR_POINT="Point")
    return {
        "rgb8 png": write(folder / "rgb8.png", rgb8),
        "grey8 png": write(folder / "grey8.png", rgb8[:1]),
        "rgba png": write(folder / "rgba.png", rgba8),
        "rgb16 png": write(folder / "rgb16.png", rgb16),
        "grey16 png": write(folder / "grey16.png", grey16),
        "one tile": write(folder / "small.png", rgb8[:, :7, :9]),
        "jpeg": jpeg(folder / "photo.jpeg", rgb8),
        "grey jpeg": write(folder / "grey.jpeg", rgb8[:1], quality=95),
        "rgb8 tif": write(folder / "rgb8.tif", rgb8, photometric="rgb", compress="lzw"),
        "mask": write(folder / "mask.tif", rgb8, holes, photometric="rgb", **place),
        "alpha": write(folder / "a.tif", rgba8, photometric="rgb", ALPHA="YES", **place),
        "grey and alpha": write(folder / "ga.tif", rgba8[2:], ALPHA="YES", **place),
        "rgb16": write(folder / "t.tif", rgb16, photometric="rgb", **place, **deflate, **tiled),
        "planar": write(folder / "p.tif", rgb16, photometric="rgb", interleave="band", **place),
        "big-endian": write(folder / "be.tif", grey16, ENDIANNESS="BIG", **place),
        "points": points,
        "turned": write(folder / "turned.tif", rgb8, photometric="rgb", transform=turned),
        "bigtiff": write(folder / "big.tif", rgb8, photometric="rgb", BIGTIFF="YES", **place),
        "outliers": write(folder / "outliers.tif", outliers, photometric="rgb", **place),
        "fill": write(folder / "fill.tif", filled, photometric="rgb", **place),
        "flat": write(folder / "flat.tif", flat, **place),
        "tail": write(folder / "tail.tif", tail, **place),
    }


@pytest.fixture(scope="module")
def of_each_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return files(tmp_path_factory.mktemp("files"))


KINDS = (
    *("rgb8 png", "grey8 png", "rgba png", "rgb16 png", "grey16 png", "one tile", "jpeg"),
    *("grey jpeg", "rgb8 tif", "mask", "alpha", "grey and alpha", "rgb16", "planar", "big-endian"),
    *("points", "turned", "bigtiff", "outliers", "fill", "flat", "tail"),
)


def assert_same(found: Path, expected: Path) -> None:
    """Pixels within a grey level, and the same place, bands, types and missing pixels."""
    with rasterio.open(found) as ours, rasterio.open(expected) as theirs:
        assert ours.shape == theirs.shape
        assert ours.dtypes == theirs.dtypes
        assert ours.colorinterp == theirs.colorinterp
        assert ours.crs == theirs.crs
        np.testing.assert_allclose(ours.transform, theirs.transform, rtol=1e-12)
        assert ours.tags().get("AREA_OR_POINT") == theirs.tags().get("AREA_OR_POINT")
        np.testing.assert_array_equal(ours.dataset_mask(), theirs.dataset_mask())
        difference = np.abs(ours.read().astype(int) - theirs.read().astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_gives_the_pixels_and_the_place_of_the_command_line(
    kind: str,
    of_each_kind: dict[str, Path],
    weights: dict[int, Path],
    shared: Served,
    tmp_path: Path,
) -> None:
    source = of_each_kind[kind]
    choose(shared.page, source)
    found = download(shared.page, tmp_path)
    expected = tmp_path / f"expected{found.suffix}"
    upscale_file(source, expected, weights[4], tile=TILE, halo=HALO)
    assert found.name == f"{source.stem}_x4{found.suffix}"
    assert_same(found, expected)
    assert all(url.startswith((shared.address, "blob:")) for url in shared.requests)


def test_another_model_can_be_chosen_and_one_that_denoises_is_not_made_consistent(
    of_each_kind: dict[str, Path], weights: dict[int, Path], served: Served, tmp_path: Path
) -> None:
    served.page.select_option("#scale", label="3 times")
    choose(served.page, of_each_kind["rgb16"])
    found = download(served.page, tmp_path)
    assert "consistent" not in served.page.inner_text("#facts")
    how = {"tile": TILE, "halo": HALO, "consistent": False}
    upscale_file(of_each_kind["rgb16"], tmp_path / "x3.tif", weights[3], **how)
    assert found.name == "t_x3.tif"
    assert_same(found, tmp_path / "x3.tif")


def test_without_isolation_one_thread_computes_the_same(
    browser: Browser,
    built: Path,
    serve: Callable[..., str],
    of_each_kind: dict[str, Path],
    weights: dict[int, Path],
    tmp_path: Path,
) -> None:
    page = opened(browser, serve(built, "without-threads")).page
    choose(page, of_each_kind["mask"])
    expect(page.get_by_role("status")).to_contain_text("CPU, 1 thread)")
    upscale_file(of_each_kind["mask"], tmp_path / "x4.tif", weights[4], tile=TILE, halo=HALO)
    assert_same(download(page, tmp_path), tmp_path / "x4.tif")
    page.close()


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Files that the page does not take, and what it says of them."""
    folder = tmp_path_factory.mktemp("refused")
    rng = np.random.default_rng(0)
    rgb = scene(rng, 3, "uint8", (20, 30))
    (folder / "notes.png").write_text("no picture at all")
    for name in ("cut.png", "cut.tif", "cut.jpeg"):
        whole = write(folder / f"whole{name[3:]}", rgb).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "head.jpeg").write_bytes(b"\xff\xd8\xff\xe0")
    edge = (30_000).to_bytes(4, "big")
    head = write(folder / "small.png", rgb).read_bytes()
    (folder / "l.png").write_bytes(head[:16] + edge + edge + head[24:])
    frame = b"\xff\xc0\x00\x11\x08" + edge[2:] + edge[2:] + b"\x03" + bytes(9)
    (folder / "l.jpeg").write_bytes(b"\xff\xd8" + frame)
    sparse = folder / "sparse.tif"
    shape = {"count": 1, "height": 30_000, "width": 30_000, "dtype": "uint8"}
    with rasterio.open(sparse, "w", driver="GTiff", sparse_ok=True, tiled=True, **shape):
        pass
    palette = write(folder / "palette.tif", rgb[:1], photometric="palette")
    with rasterio.open(palette, "r+") as target:
        target.write_colormap(1, {number: (number, 0, 0, 255) for number in range(256)})
    return {
        "no picture": (folder / "notes.png", "is not a PNG, JPEG or TIFF file"),
        "half a PNG": (folder / "cut.png", "is damaged or incomplete"),
        "half a TIFF": (folder / "cut.tif", "is damaged or incomplete"),
        "a JPEG's head": (folder / "head.jpeg", "is damaged or incomplete"),
        "palette": (palette, "has a palette, .*repmamba upscale palette.tif"),
        "nodata": (write(folder / "n.tif", rgb, nodata=0), "declares nodata, .*repmamba upscale"),
        "seven bands": (write(folder / "7.tif", np.tile(rgb, (3, 1, 1))[:7]), "has 7 bands"),
        "float": (write(folder / "f.tif", rgb.astype("float32")), "signed, fractions"),
        "signed": (write(folder / "s.tif", rgb.astype("int16")), "signed, fractions"),
        "32 bits": (write(folder / "32.tif", rgb[:1].astype("uint32")), "has 32 bits per band"),
        **{
            f"large {path.suffix}": (
                path,
                "would make more than 100 megapixels, .*repmamba upscale",
            )
            for path in (folder / "l.png", folder / "l.jpeg", sparse)
        },
    }


REFUSED = (
    *("no picture", "half a PNG", "half a TIFF", "a JPEG's head", "palette", "nodata"),
    *("seven bands", "float", "signed", "32 bits", "large .png", "large .jpeg", "large .tif"),
)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_the_page_cannot_enlarge_gets_one_clear_line(
    kind: str, refused: dict[str, tuple[Path, str]], shared: Served
) -> None:
    path, said = refused[kind]
    choose(shared.page, path)
    text = shared.page.get_by_role("alert").inner_text()
    assert re.search(said, text), text
    assert text.startswith(path.name)
    assert "\n" not in text
    expect(shared.page.locator("#comparison")).to_be_hidden()


def test_a_wrong_file_does_not_load_the_network_again(
    of_each_kind: dict[str, Path], refused: dict[str, tuple[Path, str]], served: Served
) -> None:
    for path in (of_each_kind["one tile"], refused["palette"][0], of_each_kind["one tile"]):
        choose(served.page, path)
    assert [url for url in served.requests if url.endswith(".onnx")] == [
        f"{served.address}small4.onnx"
    ]


def test_a_run_can_be_cancelled_and_another_one_started(
    of_each_kind: dict[str, Path], served: Served, tmp_path: Path
) -> None:
    page = served.page
    page.set_input_files("#file", COLORADO)
    cancel = page.get_by_role("button", name="Cancel")
    expect(cancel).to_be_focused()
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.get_by_role("button", name="Enlarge again")).to_be_focused()
    expect(page.get_by_role("progressbar")).to_be_hidden()
    assert not page.locator("#comparison").is_visible()
    choose(page, of_each_kind["one tile"])
    assert download(page, tmp_path).name == "small_x4.png"


def test_a_file_can_be_dropped(served: Served) -> None:
    page = served.page
    content = list(INTERSECTION.read_bytes())
    transfer = page.evaluate_handle(
        """content => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], "dropped.png"));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("status")).to_contain_text("dropped.png")


def test_the_comparison_works_with_the_keyboard(
    of_each_kind: dict[str, Path], served: Served
) -> None:
    page = served.page
    choose(page, of_each_kind["mask"])
    canvas = page.locator("#canvas")

    def changes(action: Callable[[], None]) -> None:
        before = canvas.screenshot()
        action()
        page.wait_for_timeout(300)
        assert canvas.screenshot() != before

    line = page.get_by_role("slider", name="Line between before and after")
    line.focus()
    changes(lambda: page.keyboard.press("PageUp"))
    assert line.input_value() == "60"
    page.get_by_role("radio", name="Input").focus()
    changes(lambda: page.keyboard.press("ArrowRight"))
    expect(page.get_by_role("radio", name="Bicubic")).to_be_checked()
    canvas.focus()
    for key in ("+", "ArrowLeft", "ArrowDown", "-"):
        changes(partial(page.keyboard.press, key))
    for name in ("Zoom in", "Zoom out", "1:1", "Fit"):
        button = page.get_by_role("button", name=name, exact=True)
        button.focus()
        changes(lambda: page.keyboard.press("Enter"))
    page.keyboard.press("Tab")
    expect(page.locator("#download")).to_be_focused()


def test_the_page_passes_the_checks_for_accessibility(
    of_each_kind: dict[str, Path], served: Served
) -> None:
    page = served.page
    axe = (WEB / "node_modules" / "axe-core" / "axe.min.js").read_text()
    for choice in (None, of_each_kind["mask"]):
        if choice is not None:
            choose(page, choice)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.evaluate(axe)
            found = page.evaluate("() => axe.run()")["violations"]
            assert found == [], json.dumps(found, indent=1)[:3000]


def test_the_page_fits_a_narrow_window(
    browser: Browser, built: Path, serve: Callable[..., str], of_each_kind: dict[str, Path]
) -> None:
    page = opened(browser, serve(built), width=360).page
    choose(page, of_each_kind["mask"])
    width = "() => document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    page.close()


def test_the_server_goes_on_after_a_request_for_no_file(
    built: Path, serve: Callable[..., str]
) -> None:
    (built / "folder").mkdir()
    address = serve(built)
    for path, status in (("%E0", 404), ("folder", 404), ("..%2f..%2fa", 404), ("page.js", 200)):
        assert httpx.get(f"{address}{path}").status_code == status


def test_the_built_page_lists_its_licences(dist: Path) -> None:
    text = (dist / "LICENSES.txt").read_text()
    attribution = CHECKOUT / "src" / "repmamba" / "inference" / "weights" / "ATTRIBUTION.md"
    assert (dist / "ATTRIBUTION.md").read_text() == attribution.read_text()
    for package in ("onnxruntime-web", "geotiff", "fast-png", "fflate", "pako"):
        assert f"\n{package} " in text


def test_the_lock_file_names_no_registry() -> None:
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert all("resolved" not in package for package in packages.values())
    assert all("integrity" in package for name, package in packages.items() if name)


@pytest.mark.long
@pytest.mark.parametrize("example", [COLORADO, INTERSECTION], ids=lambda path: path.name)
def test_the_packaged_weights_give_the_pixels_of_the_command_line(
    example: Path, dist: Path, browser: Browser, serve: Callable[..., str], tmp_path: Path
) -> None:
    page = opened(browser, serve(dist)).page
    choose(page, example)
    found = download(page, tmp_path)
    expected = tmp_path / f"expected{found.suffix}"
    upscale_file(example, expected, "x4")
    assert_same(found, expected)
    page.close()
