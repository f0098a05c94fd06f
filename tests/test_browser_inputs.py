"""A person gives a picture, paints a mask over it and compares: the app in a browser, with a tiny inpainter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from input_fixtures import save_pipeline, write_picture
from PIL import Image

import app as workbench_app
from pipelines import config as pipeline_config
from workbench.core.io import media
from workbench.runs.store import RunFolder, list_run_folders
from workbench.ui import theme
from workbench.ui.context import AppContext
from workbench.ui.jobs import JobQueue
from workbench.ui.widgets import input_fields

PAINT = "StableDiffusionInpaintPipeline"
WAIT = 120_000  # ms that a busy machine may take
CANVAS = 256  # pixels: a processor draws it, and gradio reads it back whenever something on the page is shown or hidden
# frames are drawn as they come until `pause` says how many ms lie between two: the canvas is drawn in every one
FRAMES = """window.pause = 0; const next = requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => window.pause ? setTimeout(() => next(draw), window.pause) : next(draw);"""


@pytest.fixture(scope="module")
def app(browser, tmp_path_factory):
    """The page, as it is served, where the only configured pipelines are a tiny inpainter and the starter pack's."""
    root = tmp_path_factory.mktemp("app")
    save_pipeline(root / "configs", PAINT)
    starter = pipeline_config.FOLDER / "starter-image.yaml"
    (root / "configs" / starter.name).write_text(starter.read_text())
    context = AppContext(root / "runs", root / "temp", JobQueue())
    context.temp.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_config, "FOLDER", root / "configs")
        patch.setattr(input_fields, "CANVAS", CANVAS)
        patch.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        page = workbench_app.build_page(context)
        _, url, _ = page.queue().launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, theme=theme.make_theme(),
            css=theme.CSS, head=theme.HEAD, allowed_paths=[str(context.temp)],
        )  # fmt: skip
        yield SimpleNamespace(url=url, runs=context.runs)
        page.close()


def test_a_person_paints_a_mask_over_a_source_and_sees_where_results_differ_from_it(app, browser, tmp_path):
    page, errors = browser.new_page(viewport={"width": 1000, "height": 800}), []
    page.set_default_timeout(WAIT)
    page.add_init_script(FRAMES)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(app.url)
    choose_pipeline(page, PAINT)
    source = write_picture(tmp_path / "source.png", 0, (32, 32))
    with page.expect_response(lambda answer: answer.url.endswith("canvas.png")):
        page.locator("#wb-input-source input[type=file]").set_input_files(source)
    paint_mask(page)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector("#wb-stage table")

    figures = page.locator("#wb-stage .wb-row").first.locator("figure")
    titles = [words.split("\n")[0] for words in figures.all_inner_texts()]
    assert titles[:3] == ["source", "mask", "base"]
    (run,) = list_run_folders(app.runs)
    check_stored_inputs(run, source)

    over = figures.nth(2).locator("img.wb-over")
    assert not over.is_visible(), "a result is shown as it is"
    figures.nth(2).hover()
    over.wait_for(state="visible")
    assert over.evaluate("e => getComputedStyle(e).mixBlendMode") == "difference"
    page.get_by_role("tab", name="Blind vote", exact=True).click()
    page.wait_for_selector(".mw-vote-media img")
    shown = page.locator("#vote-arena img")
    places = shown.evaluate_all("images => images.map(i => [i.alt, i.getBoundingClientRect().top])")
    assert [words.split(":")[0] for words, _ in places[:2]] == ["Source", "Mask"]
    assert places[0][1] < min(top for _, top in places[2:]), "what was given stands above both"
    assert errors == []
    page.close()


def choose_pipeline(page, name: str) -> None:
    page.wait_for_function("document.querySelector('#wb-stage')?.innerText.includes('Nothing compared yet')")
    box = page.get_by_label("Pipeline").first
    box.click()
    box.fill(name)
    page.get_by_role("option", name=name).click()
    page.locator("#wb-input-source input[type=file]").wait_for(state="attached")
    assert "knows the starter pack's world only" in page.locator("#wb-advice").inner_text()
    page.locator("#wb-fit").click()
    page.locator("#wb-fit").wait_for(state="hidden")


def paint_mask(page) -> None:
    """Strokes through the middle of the canvas, once the source is on it."""
    canvas = page.locator("#wb-sketch canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(600)  # until the picture is drawn: nothing in the page tells
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y - 40)
    page.mouse.down()
    for n in range(5):  # an area, not a line: a mask counts in cells of the latent
        page.mouse.move(x + 40 * (-1) ** n, y - 40 + 20 * n)
    page.mouse.up()
    page.evaluate("window.pause = 2000")


def check_stored_inputs(run: RunFolder, source) -> None:
    """The run holds the source as it was given, and a mask with some white and more black."""
    sample = next(e for e in run.events() if e.get("final"))["samples"][0]
    files = {name: next((run.path / "inputs").glob(f"{digest}*")) for name, digest in sample["inputs"].items()}
    assert files["source"].read_bytes() == source.read_bytes()
    mask = media.read_media(files["mask"]).data
    assert 0 < mask.mean() < 0.5 and Image.open(files["mask"]).size == (32, 32)
