"""One look for every tab: `launch(theme=theme(), css=CSS, head=HEAD)`.

Classes, for `gr.HTML` values and `elem_classes` alike:

wb-card    a raised panel                                    wb-grid   equal columns that wrap; `--wb-min` is the least width,
wb-media   a frame for one picture, clip or sound: all of a           `wb-even` with `--wb-across: N` keeps N columns (on a
                                                                       phone `--wb-small`, 2)
           row are equal in size; `wb-tiny` on a picture      wb-table  a table that scrolls inside itself (put it in a
           of few pixels shows them as squares                         `wb-scroll`)
wb-note    one quiet sentence                                wb-empty  what a tab shows before there is anything: it teaches
wb-bad     one sentence of what went wrong                   wb-warn   one that asks for care
wb-pill    a small mark beside a number                      wb-key    the legend of a drawing; wb-t0 … wb-t7 are its tones
wb-bar     how far something has come: `<i style="width:40%">` inside

What HEAD brings to life, wherever such nodes appear:

data-wb-copy="TEXT"       a click copies the text; data-wb-link="?run=…" the whole address
wb-sync                   around `<canvas class="wb-clip" data-src data-rate>` with a `wb-player` bar: clips of one frame clock;
                          around `<audio data-wb-volume>` with an `<input data-wb="match">`: one sounds at a time, equally loud
"""

from __future__ import annotations

import gradio as gr

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
FIXED = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Calm, in light and dark, from the typefaces that the system has."""
    blue = gr.themes.Color(
        "#f0f7fd", "#dcecf9", "#bcdaf2", "#8fc1e9", "#5fb1f0", "#2f8fd6", "#0b6fb8", "#095c99", "#0a4c7d", "#0b3f67", "#082a45"
    )  # fmt: skip
    base = gr.themes.Base(
        primary_hue=blue, secondary_hue=blue, neutral_hue="zinc", font=SYSTEM, font_mono=FIXED, radius_size="md"
    )
    both = {
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
    same = {"block_shadow": "none", "button_primary_shadow": "none", "block_title_text_weight": "500"}
    same |= {"input_border_width": "1px", "input_padding": "6px 10px", "block_padding": "10px 12px"}
    same |= {"block_label_shadow": "none", "input_shadow": "none", "block_title_text_size": "*text_sm"}
    pairs = {key: light for key, (light, _) in both.items()} | {f"{key}_dark": dark for key, (_, dark) in both.items()}
    return base.set(**pairs, **same)


CSS = """
:root { --wb-paper: #ffffff; --wb-ink: #1b1d21; --wb-soft: #5d636d; --wb-rule: #e4e5e3; --wb-faint: #f2f2ef;
  --wb-right: #1a7f4b; --wb-wrong: #c8372d; --wb-warn: #8a5000; --wb-warn-paper: #fff6e3; --wb-warn-rule: #eccf94;
  --wb-bad: #b3261e; --wb-bad-paper: #fdf1ef; --wb-bad-rule: #efc4bf;
  --wb-t0: #7b818b; --wb-t1: #0b6fb8; --wb-t2: #d55e00; --wb-t3: #008f6b; --wb-t4: #b3478c; --wb-t5: #8a6d00;
  --wb-t6: #5b4bc4; --wb-t7: #2b2f36; }
.dark { --wb-paper: #1c1f23; --wb-ink: #e9eaec; --wb-soft: #a0a6b0; --wb-rule: #31353b; --wb-faint: #24272c;
  --wb-right: #4cc38a; --wb-wrong: #ff7a6e; --wb-warn: #f0bd5a; --wb-warn-paper: #2b2414; --wb-warn-rule: #5c4a1f;
  --wb-bad: #ff8a7e; --wb-bad-paper: #2d1a19; --wb-bad-rule: #5e2d29;
  --wb-t0: #9aa0aa; --wb-t1: #5fb1f0; --wb-t2: #ff9a4d; --wb-t3: #35c9a0; --wb-t4: #e58cc4; --wb-t5: #d9b93c;
  --wb-t6: #a79bff; --wb-t7: #f2f2f0; }
.gradio-container { width: 100% !important; min-width: 0 !important; max-width: 1360px !important; margin: 0 auto !important; font-variant-numeric: tabular-nums; overflow-x: clip; }
.wb-t0 { --tone: var(--wb-t0); } .wb-t1 { --tone: var(--wb-t1); } .wb-t2 { --tone: var(--wb-t2); } .wb-t3 { --tone: var(--wb-t3); }
.wb-t4 { --tone: var(--wb-t4); } .wb-t5 { --tone: var(--wb-t5); } .wb-t6 { --tone: var(--wb-t6); } .wb-t7 { --tone: var(--wb-t7); }

button[role=tab][aria-selected=true] { color: var(--wb-t1) !important; }
.wb-head h1 { margin: 0; font-size: 24px; font-weight: 700; } .wb-head { padding: 4px 0 2px; }
.wb-card { padding: 14px 16px; border: 1px solid var(--wb-rule); border-radius: 10px; background: var(--wb-paper); color: var(--wb-ink); min-width: 0; overflow-wrap: anywhere; }
.wb-card h3 { margin: 0 0 6px; font-size: 15px; font-weight: 600; }
.wb-grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--wb-min, 220px)), 1fr)); }
.wb-grid.wb-even { grid-template-columns: repeat(var(--wb-across, 3), minmax(0, 1fr)); }
.wb-media { position: relative; margin: 0; min-width: 0; color: var(--wb-ink); }
.wb-media img, .wb-media canvas, .wb-media video { display: block; width: 100%; margin: 0; aspect-ratio: var(--wb-ratio, 1); object-fit: contain; border: 1px solid var(--wb-rule); border-radius: 6px; background: var(--wb-faint); }
.wb-media a, .wb-links a { padding: 0 !important; } .wb-media a { display: block; } .wb-media figcaption a { display: inline; }
.wb-media audio { display: block; width: 100%; min-width: 0; margin-top: 6px; }
.dark audio { color-scheme: dark; }
.wb-media .wb-none { display: grid; place-items: center; padding: 8px; aspect-ratio: var(--wb-ratio, 1); border: 1px dashed var(--wb-rule); border-radius: 6px; color: var(--wb-soft); font-size: 13px; text-align: center; }
.wb-media figcaption { display: flex; justify-content: space-between; gap: 8px; margin-top: 4px; font-size: 12.5px; line-height: 1.35; color: var(--wb-soft); }
.wb-media .wb-right, .wb-media.wb-right img, .wb-media.wb-right canvas { border-color: var(--wb-right); }
.wb-media.wb-wrong img, .wb-media.wb-wrong canvas { border-color: var(--wb-wrong); }
.wb-right > figcaption b { color: var(--wb-right); } .wb-wrong > figcaption b { color: var(--wb-wrong); }
.wb-tiny img, img.wb-tiny, canvas.wb-tiny { image-rendering: pixelated; }
.wb-note { margin: 0; color: var(--wb-soft); font-size: 14px; line-height: 1.5; overflow-wrap: anywhere; }
.wb-note code, .wb-card code { font-size: 12.5px; }
.wb-empty { padding: 26px 22px; border: 1px dashed var(--wb-rule); border-radius: 10px; color: var(--wb-soft); font-size: 14.5px; line-height: 1.55; }
.wb-empty b { display: block; margin-bottom: 2px; color: var(--wb-ink); font-size: 16px; font-weight: 600; }
.wb-bad, .wb-warn { padding: 10px 14px; border: 1px solid var(--wb-bad-rule); border-left-width: 4px; border-left-color: var(--wb-bad) !important; border-radius: 8px; background: var(--wb-bad-paper); color: var(--wb-ink); font-size: 14.5px; overflow-wrap: anywhere; }
.wb-bad b { color: var(--wb-bad); } .wb-warn b { color: var(--wb-warn); }
.wb-warn { border-color: var(--wb-warn-rule); border-left-color: var(--wb-warn) !important; background: var(--wb-warn-paper); }
.wb-pill { display: inline-block; padding: 0 7px; border: 1px solid var(--wb-warn-rule); border-radius: 99px; background: var(--wb-warn-paper); color: var(--wb-warn); font-size: 11.5px; line-height: 18px; white-space: nowrap; }
.wb-key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 8px; padding: 0; list-style: none; font-size: 13.5px; color: var(--wb-ink); }
.wb-dot { display: inline-block; flex: none; width: 10px; height: 10px; margin-right: 7px; border-radius: 50%; background: var(--tone, var(--wb-t0)); }
.wb-bar { height: 4px; margin: 8px 0; border-radius: 2px; background: var(--wb-faint); overflow: hidden; }
.wb-bar i { display: block; height: 100%; background: var(--tone, var(--wb-t1)); }
.wb-scroll { max-width: 100%; overflow-x: auto; border: 1px solid var(--wb-rule); border-radius: 10px; background: var(--wb-paper); }
.html-container { padding: 0 !important; }
.wb-table { width: 100%; margin: 0 !important; border: 0 !important; border-collapse: separate; border-spacing: 0; font-size: 14px; color: var(--wb-ink); }
.wb-table th, .wb-table td { padding: 9px 13px; border: 0; border-top: 1px solid var(--wb-rule); background: none; text-align: right; vertical-align: top; white-space: nowrap; font-weight: 400; }
.wb-table thead th { border-top: 0; color: var(--wb-soft); font-size: 13px; font-weight: 500; vertical-align: bottom; }
.wb-table th:first-child { position: sticky; left: 0; background: var(--wb-paper); text-align: left; font-weight: 600; white-space: normal; min-width: 118px; }
.wb-table small { display: block; color: var(--wb-soft); font-size: 12px; font-weight: 400; }
.wb-row h4 { display: flex; justify-content: space-between; gap: 12px; margin: 20px 0 8px; font-size: 14.5px; font-weight: 600; overflow-wrap: anywhere; }
.wb-row h4 small { flex: none; color: var(--wb-soft); font-size: 12.5px; font-weight: 400; }
.wb-row .wb-media { max-width: var(--wb-side, 340px); }
.wb-away { align-self: stretch; height: auto !important; border-radius: 0 !important; background: var(--wb-paper) !important; color: var(--wb-soft) !important; }
.wb-one { max-width: 620px; } .wb-slider { max-width: 502px; border: 0 !important; }
input[role=combobox] { padding-right: 26px !important; text-overflow: ellipsis; }
.wb-player { display: flex; align-items: center; gap: 10px; margin: 10px 0; color: var(--wb-soft); font-size: 13px; }
.wb-player button, .wb-copy { padding: 3px 12px; border: 1px solid var(--wb-rule); border-radius: 6px; background: var(--wb-faint); color: var(--wb-ink); font-size: 13px; cursor: pointer; }
.wb-player input[type=range] { flex: 1; min-width: 60px; accent-color: var(--wb-t1); } .wb-player input[type=checkbox] { accent-color: var(--wb-t1); }
.wb-links { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 12px; color: var(--wb-soft); font-size: 13.5px; }
.wb-links code { user-select: all; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .wb-grid.wb-even { grid-template-columns: repeat(min(var(--wb-across, 2), var(--wb-small, 2)), minmax(0, 1fr)); gap: 8px; }
  .gradio-container main { padding: 12px !important; }
  .tab-container button { padding: 0 5px !important; font-size: 13px !important; }
  .wb-media figcaption { flex-wrap: wrap; gap: 0 6px; }
  .wb-table th, .wb-table td { padding: 8px 9px; }
  .wb-row h4 { flex-wrap: wrap; gap: 0 10px; }
}
"""

HEAD = """<script>
(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const copy = async (text, node) => {
    await navigator.clipboard.writeText(text);
    const was = node.textContent; node.textContent = "Copied"; setTimeout(() => node.textContent = was, 1200);
  };
  document.addEventListener("click", (e) => {
    if (e.target.closest?.("#wb-compare") && innerWidth < 760) document.getElementById("wb-stage")?.scrollIntoView();
    const node = e.target.closest?.("[data-wb-copy],[data-wb-link]"); if (!node) return;
    e.preventDefault();
    copy(node.dataset.wbCopy ?? new URL(node.dataset.wbLink, location.href).href, node);
  });

  // Clips: the untouched files, decoded frame by frame, on one clock for all of a group.
  const frames = async (canvas) => {
    const data = await (await fetch(canvas.dataset.src)).arrayBuffer();
    const decoder = new ImageDecoder({ data, type: "image/png" });
    await decoder.tracks.ready; await decoder.completed;
    canvas.frames = [];
    for (let k = 0; k < decoder.tracks.selectedTrack.frameCount; k++) {
      const { image } = await decoder.decode({ frameIndex: k });
      canvas.frames.push(await createImageBitmap(image)); image.close();
    }
    [canvas.width, canvas.height] = [canvas.frames[0].width, canvas.frames[0].height];
  };
  const draw = (group) => {
    for (const canvas of group.clips) {
      const k = Math.floor(group.now * canvas.dataset.rate + 1e-6) % canvas.frames.length;
      canvas.getContext("2d").drawImage(canvas.frames[k], 0, 0); canvas.dataset.frame = k;
    }
    group.seek.value = group.now; group.told.textContent = group.now.toFixed(2) + " s";
  };
  const play = (group, on) => {
    group.playing = on; group.button.textContent = on ? "Pause" : "Play";
    let last = performance.now();
    const step = (at) => {
      if (!group.playing || !group.isConnected) return;
      group.now = (group.now + Math.max(0, at - last) / 1000) % group.long; last = at;
      draw(group); requestAnimationFrame(step);
    };
    if (on) requestAnimationFrame(step);
  };
  const clips = async (group) => {
    const found = all(group, "canvas.wb-clip");
    if (!window.ImageDecoder) {  // each plays by itself
      for (const c of found) { const i = new Image(); i.src = c.dataset.src; i.className = c.className; c.replaceWith(i); }
      return all(group, ".wb-player").forEach((bar) => bar.textContent = "This browser can't hold clips in step.");
    }
    await Promise.all(found.map(frames));
    Object.assign(group, { clips: found, now: 0, button: group.querySelector("[data-wb=play]"),
      seek: group.querySelector("[data-wb=seek]"), told: group.querySelector("output") });
    group.long = Math.max(...found.map((c) => c.frames.length / c.dataset.rate)); group.seek.max = group.long;
    group.button.onclick = () => play(group, !group.playing);
    group.seek.oninput = () => { play(group, false); group.now = Math.min(+group.seek.value, group.long - 1e-6); draw(group); };
    draw(group); play(group, !matchMedia("(prefers-reduced-motion: reduce)").matches);
  };

  // Sounds: one at a time, all as loud as the quietest; the files stay as they are.
  const sounds = (group) => {
    const found = all(group, "audio"), match = group.querySelector("[data-wb=match]");
    const level = () => found.forEach((a) => a.volume = match.checked ? +a.dataset.wbVolume : 1);
    match.onchange = level; level();
    found.forEach((a) => a.onplay = () => found.forEach((b) => b === a || b.pause()));
  };
  const wake = () => all(document, ".wb-sync:not([data-awake])").forEach((group) => {
    group.dataset.awake = "1";
    if (group.querySelector("canvas.wb-clip")) clips(group); else if (group.querySelector("audio")) sounds(group);
  });
  new MutationObserver(wake).observe(document.documentElement, { childList: true, subtree: true });
})();
</script>"""
