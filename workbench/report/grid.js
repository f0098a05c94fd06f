"use strict";
// Draws the tables of a grid from the JSON in #content. Texts are set as texts, never as HTML.
const grid = JSON.parse(document.getElementById("content").textContent);
const at = (id) => document.getElementById(id);
const noun = at("tables").dataset.noun;
const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};
const labels = (side) => (grid.axes[side] ? grid.axes[side].labels : [""]);
const title = (side) => (grid.axes[side] ? grid.axes[side].title : "");
const number = (value, digits) => (value == null ? "–" : value.toFixed(digits).replace("-", "−"));
const rewards = grid.rewards;
let page = 0; // 0: means over all prompts; n: prompt n
let shown = []; // what the dialog moves among: [z][y][x] -> samples
let open = null;

for (const [n, name] of ["means over all prompts", ...grid.prompts.map((p, n) => `${n + 1}. ${p.text}`)].entries())
  at("page").append(make("option", { value: n, textContent: name.length > 110 ? `${name.slice(0, 109)}…` : name }));
for (const [n, reward] of rewards.entries())
  at("reward").append(make("option", { value: n, textContent: reward.name + (reward.optimised ? " (optimised)" : "") }));
at("reward").append(make("option", { value: -1, textContent: "nothing" }));
if (!rewards.length) at("reward").value = -1;
if (grid.prompts.length) page = 1;

const reward = () => rewards[Number(at("reward").value)];

function share(value, low, high) { // of the colour, so that text on it stays readable
  return value == null || !(high > low) ? 0 : 0.04 + (0.5 * (value - low)) / (high - low);
}

function cellMean(cell) {
  const r = reward();
  return r && cell.means[r.name] ? cell.means[r.name][0] : null;
}

function samplesMean(samples) {
  const r = reward();
  const values = r ? samples.map((s) => s.scores[r.name]).filter((v) => v != null) : [];
  return values.length ? values.reduce((a, b) => a + b) / values.length : null;
}

function scoreLine(sample) {
  return rewards.filter((r) => sample.scores[r.name] != null).map((r) => `${r.name} ${number(sample.scores[r.name], Math.max(r.digits, 2))}`);
}

function medium(sample, words, whole) {
  const source = (whole && sample.file) || sample.uri || sample.file;
  if (!source) return make("div", { className: "none", textContent: sample.reason || "not made" });
  const kind = sample.kind || (grid.modality === "image" ? "image/" : grid.modality === "video" ? "image/" : "audio/");
  const node = kind.startsWith("audio")
    ? make("audio", { controls: true, preload: "none", src: source })
    : kind.startsWith("video")
      ? make("video", { src: source, autoplay: true, loop: true, muted: true, playsInline: true, controls: whole })
      : make("img", { src: source, alt: words, loading: sample.uri ? "eager" : "lazy" });
  node.setAttribute("aria-label", words);
  if (source !== sample.uri && sample.uri) node.onerror = () => { node.onerror = null; node.src = sample.uri; };
  return node;
}

function shot(sample, cell, place, k) {
  const words = `${cell.name}, seed ${sample.seed}: ${grid.prompts[page - 1].text}`;
  const node = medium(sample, words, false);
  if (node.tagName === "AUDIO") return make("div", { className: "shot sound" }, node);
  if (node.className === "none") return make("div", { className: "shot" }, node);
  const button = make("button", { type: "button", className: "shot", title: scoreLine(sample).join("  ") }, node);
  button.onclick = () => zoom(place, k);
  return button;
}

function drawCell(cell, place) {
  const td = make("td");
  td.dataset.contestant = cell.name;
  if (cell.failed) { td.append(make("p", { className: "failed", textContent: `failed: ${cell.failed}` })); return td; }
  const r = reward();
  if (page === 0) {
    td.style.setProperty("--share", r ? share(cellMean(cell), r.mean_low, r.mean_high) : 0);
    for (const one of rewards) {
      const row = cell.means[one.name];
      if (!row) continue;
      const line = make("p", {}, make("span", { textContent: `${one.name} ${number(row[0], one.digits)}` }));
      if (row[1] != null) line.append(make("small", { textContent: `${number(row[1], one.digits)} to ${number(row[2], one.digits)}` }));
      if (r && one.name === r.name) line.style.fontWeight = 600;
      td.append(line);
    }
    return td;
  }
  const samples = cell.samples[page - 1];
  td.style.setProperty("--share", r ? share(samplesMean(samples), r.low, r.high) : 0);
  td.append(make("div", { className: "shots" }, ...samples.map((s, k) => shot(s, cell, place, k))));
  if (!samples.length) td.append(make("div", { className: "none", textContent: "not made" }));
  for (const one of rewards) {
    const values = samples.map((s) => s.scores[one.name]).filter((v) => v != null);
    if (!values.length) continue;
    const text = `${one.name} ${values.map((v) => number(v, Math.max(one.digits, 2))).join(" · ")}`;
    const line = make("p", { textContent: text });
    if (r && one.name === r.name) line.style.fontWeight = 600;
    td.append(line);
  }
  return td;
}

function draw() {
  const tables = at("tables");
  tables.replaceChildren();
  const prompt = grid.prompts[page - 1];
  if (prompt && prompt.inputs.some((i) => i.uri)) {
    const figures = prompt.inputs.filter((i) => i.uri).map((i) => {
      const node = i.kind.startsWith("audio") ? make("audio", { controls: true, src: i.uri }) : make("img", { src: i.uri, alt: `${i.title} of: ${prompt.text}` });
      return make("figure", {}, node, make("figcaption", { textContent: i.title }));
    });
    tables.append(make("div", { className: "given" }, ...figures));
  }
  shown = grid.cells.map((table) => table.map((row) => row.map((cell) => (page ? cell.samples[page - 1] : []))));
  for (const [z, table] of grid.cells.entries()) {
    if (grid.axes.z) tables.append(make("h2", { textContent: `${title("z")}: ${labels("z")[z]}` }));
    const corner = [title("y") && `${title("y")} ↓`, title("x") && `${title("x")} →`].filter(Boolean).join("   ");
    const head = make("tr", {}, make("th", { scope: "col", textContent: corner }), ...labels("x").map((l) => make("th", { scope: "col", textContent: l })));
    const rows = table.map((row, y) =>
      make("tr", {}, make("th", { scope: "row", textContent: labels("y")[y] }), ...row.map((cell, x) => drawCell(cell, [z, y, x]))));
    const drawn = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
    const box = make("div", { className: "scroll", tabIndex: 0 }, drawn);
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `Grid${grid.axes.z ? `, ${title("z")} ${labels("z")[z]}` : ""}`);
    tables.append(box);
  }
  const outside = page && page > grid.prompts.length - grid.left_out;
  at("told").textContent = (prompt ? prompt.text + (prompt.category ? ` (${prompt.category})` : "") : "Means over all prompts and noises.")
    + (outside ? ` The ${noun}s of this prompt are files beside this page, which has no room for more of them.` : "");
  at("page").value = page;
  at("before").disabled = page === 0;
  at("after").disabled = page === grid.prompts.length;
}

function zoom(place, k) {
  const [z, y, x] = place;
  const samples = shown[z] && shown[z][y] && shown[z][y][x];
  if (!samples || !samples.length) return;
  open = [place, Math.min(k, samples.length - 1)];
  const sample = samples[open[1]], cell = grid.cells[z][y][x];
  at("large").replaceChildren(medium(sample, `${cell.name}, seed ${sample.seed}`, true));
  const places = [["x", x], ["y", y], ["z", z]].filter(([side]) => grid.axes[side]).map(([side, n]) => `${title(side)} ${labels(side)[n]}`);
  at("caption").textContent = [`${cell.name} (${places.join(", ")})`, `seed ${sample.seed}`, ...scoreLine(sample)].join(" · ");
  if (!at("zoom").open) at("zoom").showModal();
}

function turn(by) { page = Math.max(0, Math.min(grid.prompts.length, page + by)); draw(); }

at("page").onchange = () => { page = Number(at("page").value); draw(); };
at("reward").onchange = draw;
at("before").onclick = () => turn(-1);
at("after").onclick = () => turn(1);
at("close").onclick = () => at("zoom").close();
at("size").oninput = () => {
  document.documentElement.style.setProperty("--side", `${at("size").value}px`);
  document.documentElement.style.setProperty("--pixels", Number(at("size").value) > 256 ? "pixelated" : "auto");
};
document.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0] };
  const move = moves[event.key];
  if (!move) return;
  if (at("zoom").open) {
    event.preventDefault();
    zoom(open[0].map((n, i) => n + move[i]), open[1]);
  } else if (!/INPUT|SELECT|AUDIO|VIDEO/.test(event.target.tagName) && !event.target.closest(".scroll") && move[2]) {
    turn(move[2]);
  }
});
draw();
