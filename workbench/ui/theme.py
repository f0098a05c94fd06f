"""One look for every tab: `launch(theme=make_theme(), css=CSS, head=HEAD)`.

Classes, for `gr.HTML` values and `elem_classes` alike:

wb-card    a raised panel
wb-grid    equal columns that wrap; `--wb-min` is the least width, `wb-even` with `--wb-across: N` keeps N columns (on a
           phone `--wb-small`, 2)
wb-media   a frame for one picture, clip or sound: all of a row are equal in size; `wb-tiny` on a picture of few pixels
           shows them as squares
wb-table   a table that scrolls inside itself (put it in a `wb-scroll`)
wb-note    one quiet sentence
wb-empty   what a tab shows before there is anything: it teaches
wb-bad     one sentence of what went wrong
wb-warn    one that asks for care
wb-pill    a small mark beside a number
wb-key     the legend of a drawing; wb-t0 … wb-t7 are its tones
wb-bar     how far something has come: `<i style="width:40%">` inside

What HEAD brings to life, wherever such nodes appear:

data-wb-copy="TEXT"   a click copies the text; data-wb-link="?run=…" the whole address
data-wb-run="NAME"    the comparison on the page, by which its address is
wb-sync               around `<canvas class="wb-clip" data-src data-type data-rate>` or `<video class="wb-clip"
                      data-rate>` with a `wb-player` bar: clips of one clock; around `<audio data-wb-volume>` with an
                      `<input data-wb="match">`: one sounds at a time, equally loud; `data-wb="stay"`: at one place
"""

from __future__ import annotations

import gradio as gr

from workbench.ui.widgets.html import TEMPLATES

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
FIXED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def make_theme() -> gr.themes.Base:
    """Calm, in light and dark, from the typefaces that the system has."""
    blue = gr.themes.Color(
        "#f0f7fd", "#dcecf9", "#bcdaf2", "#8fc1e9", "#5fb1f0", "#2f8fd6", "#0b6fb8", "#095c99", "#0a4c7d", "#0b3f67",
        "#082a45",
    )  # fmt: skip
    base = gr.themes.Base(
        primary_hue=blue, secondary_hue=blue, neutral_hue="zinc", font=SYSTEM, font_mono=FIXED, radius_size="md"
    )
    colours = {
        "body_background_fill": ("#fcfcfb", "#15171a"),
        "body_text_color": ("#1b1d21", "#e9eaec"),
        "body_text_color_subdued": ("#5d636d", "#a0a6b0"),
        "background_fill_primary": ("#ffffff", "#1c1f23"),
        "background_fill_secondary": ("#f5f5f3", "#24272c"),
        "block_background_fill": ("#ffffff", "#1c1f23"),
        "block_border_color": ("#e4e5e3", "#31353b"),
        "border_color_primary": ("#e4e5e3", "#31353b"),
        "block_title_text_color": ("#1b1d21", "#e9eaec"),
        "block_label_text_color": ("#5d636d", "#a0a6b0"),
        "block_label_background_fill": ("#ffffff", "#1c1f23"),
        "block_info_text_color": ("#5d636d", "#a0a6b0"),
        "input_background_fill": ("#ffffff", "#15171a"),
        "input_border_color": ("#d5d7d4", "#3a3f46"),
        "input_placeholder_color": ("#747a84", "#8b919b"),
        "button_primary_background_fill": ("#0b6fb8", "#2275b4"),
        "button_primary_background_fill_hover": ("#095c99", "#2f8fd6"),
        "button_primary_text_color": ("#ffffff", "#ffffff"),
        "button_secondary_background_fill": ("#f0f0ed", "#2a2e34"),
        "button_secondary_background_fill_hover": ("#e6e6e2", "#353a41"),
        "button_secondary_text_color": ("#1b1d21", "#e9eaec"),
        "checkbox_label_background_fill": ("#f5f5f3", "#24272c"),
        "link_text_color": ("#0b6fb8", "#5fb1f0"),
    }
    settings = {"block_shadow": "none", "button_primary_shadow": "none", "block_title_text_weight": "500"}
    settings |= {"input_border_width": "1px", "input_padding": "6px 10px", "block_padding": "10px 12px"}
    settings |= {"block_label_shadow": "none", "input_shadow": "none", "block_title_text_size": "*text_sm"}
    pairs = {key: light for key, (light, _) in colours.items()} | {
        f"{key}_dark": dark for key, (_, dark) in colours.items()
    }
    return base.set(**pairs, **settings)


CSS = (TEMPLATES / "theme.css").read_text(encoding="utf-8")
SCRIPTS = ("theme.js", "address.js", "watch.js", "closeup.js")
HEAD = "".join(f"<script>\n{(TEMPLATES / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)
