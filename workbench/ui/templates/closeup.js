// A row's pictures or clips, full screen: two laid over each other with a line between them, zoomed alike, and the values
// of the pixel under the pointer. Opened by a click on a picture, or by Enter.
(() => {
  const shown = (figure) => figure.querySelector("img:not(.wb-over), .wb-clip");
  const title = (figure) => figure.querySelector("figcaption span")?.innerText.trim() || "";
  const size = (n) => [n.naturalWidth || n.videoWidth || n.width, n.naturalHeight || n.videoHeight || n.height];
  const view = { zoom: 1, x: 0.5, y: 0.5, cut: 0.5 };
  let dialog, canvas, parts, frame;

  const build = () => {
    dialog = document.createElement("dialog");
    dialog.className = "wb-closeup"; dialog.setAttribute("aria-label", "Compare closely");
    dialog.innerHTML = `<form method="dialog"><label>Left <select data-is="left"></select></label><label>Right <select data-is="right"></select></label>
      <label>Line <input data-is="cut" type="range" min="0" max="1" step="0.005"></label><label>Zoom <input data-is="zoom" type="range" min="0" max="5" step="0.05"></label>
      <output></output><button>Close</button></form><canvas></canvas>
      <p>Wheel: zoom. Drag: move. Move the line with the slider or the arrow keys. Values are of the pixel under the pointer, 0 to 255.</p>`;
    document.body.append(dialog);
    canvas = dialog.querySelector("canvas");
    parts = Object.fromEntries([...dialog.querySelectorAll("[data-is]")].map((n) => [n.dataset.is, n]));
    parts.cut.oninput = () => { view.cut = +parts.cut.value; };
    parts.zoom.oninput = () => { view.zoom = 2 ** +parts.zoom.value; };
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      view.zoom = Math.min(Math.max(view.zoom * 2 ** (-e.deltaY / 400), 1), 32); parts.zoom.value = Math.log2(view.zoom);
    }, { passive: false });
    canvas.addEventListener("pointermove", (e) => {
      if (e.buttons) {
        const { width, height } = layout();
        view.x = Math.min(Math.max(view.x - e.movementX / width, 0), 1); view.y = Math.min(Math.max(view.y - e.movementY / height, 0), 1);
      }
      readPixel(e);
    });
    dialog.addEventListener("keydown", (e) => {
      if (e.target.matches("select, input")) return;
      const move = { ArrowLeft: -0.02, ArrowRight: 0.02 }[e.key];
      if (move) { view.cut = Math.min(Math.max(view.cut + move, 0), 1); parts.cut.value = view.cut; e.preventDefault(); }
    });
    dialog.addEventListener("close", () => cancelAnimationFrame(frame));
  };

  let figures = [];
  const chosen = (side) => shown(figures[+parts[side].value]);
  const layout = () => { // of the left one; the right one is drawn over the same place
    const [wide, high] = size(chosen("left")), fit = Math.min(canvas.width / wide, canvas.height / high) * view.zoom;
    const width = wide * fit, height = high * fit;
    return { width, height, left: canvas.width / 2 - width * view.x, top: canvas.height / 2 - height * view.y };
  };
  const draw = () => {
    const box = canvas.getBoundingClientRect(), pen = canvas.getContext("2d"), place = () => layout();
    if (canvas.width !== Math.round(box.width) || canvas.height !== Math.round(box.height)) [canvas.width, canvas.height] = [Math.round(box.width), Math.round(box.height)];
    const { left, top, width, height } = place(), line = Math.round(canvas.width * view.cut);
    pen.clearRect(0, 0, canvas.width, canvas.height); pen.imageSmoothingEnabled = width < size(chosen("left"))[0];
    for (const [side, from, to] of [["left", 0, line], ["right", line, canvas.width]]) {
      pen.save(); pen.beginPath(); pen.rect(from, 0, to - from, canvas.height); pen.clip();
      pen.drawImage(chosen(side), left, top, width, height); pen.restore();
    }
    pen.fillStyle = "#fff"; pen.fillRect(line - 1, 0, 2, canvas.height);
    frame = requestAnimationFrame(draw);
  };
  const probe = document.createElement("canvas"); probe.width = probe.height = 1;
  const readPixel = (e) => {
    const box = canvas.getBoundingClientRect(), { left, top, width, height } = layout();
    const u = (e.clientX - box.left - left) / width, v = (e.clientY - box.top - top) / height;
    const out = dialog.querySelector("output");
    if (u < 0 || v < 0 || u >= 1 || v >= 1) return void (out.textContent = "");
    const read = (node) => {
      const [wide, high] = size(node), pen = probe.getContext("2d", { willReadFrequently: true });
      pen.clearRect(0, 0, 1, 1); pen.drawImage(node, -Math.floor(u * wide), -Math.floor(v * high));
      return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const [wide, high] = size(chosen("left")), a = read(chosen("left")), b = read(chosen("right"));
    out.textContent = `x ${Math.floor(u * wide)} y ${Math.floor(v * high)} · ${a} | ${b} · difference ${b.map((n, i) => n - a[i])}`;
  };

  const open = (figure) => {
    if (!dialog) build();
    figures = [...figure.closest(".wb-row").querySelectorAll("figure")].filter((f) => shown(f));
    const at = figures.indexOf(figure), other = figures.length > 1 ? (at ? 0 : figures.length - 1) : at;
    for (const [side, index] of [["left", other], ["right", at]]) {
      parts[side].replaceChildren(...figures.map((f, n) => new Option(title(f), n)));
      parts[side].value = index;
    }
    Object.assign(view, { zoom: 1, x: 0.5, y: 0.5, cut: 0.5 }); parts.cut.value = 0.5; parts.zoom.value = 0;
    dialog.showModal(); draw();
  };
  document.addEventListener("click", (e) => {
    const figure = e.target.closest?.(".wb-row figure"), node = figure && e.target.closest("img, .wb-clip");
    if (!node || e.ctrlKey || e.metaKey || e.shiftKey || e.button || figure.querySelector("audio")) return;
    e.preventDefault(); open(figure);
  });
})();
