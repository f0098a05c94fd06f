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
    group.seek.value = group.now; group.clock.textContent = group.now.toFixed(2) + " s";
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
      seek: group.querySelector("[data-wb=seek]"), clock: group.querySelector("output") });
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
