// Clips of a group on one clock, whatever their files are; sounds of a group one at a time, at one place.
(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const FRAME = 1e-6; // so that a time which stands for a frame never falls before it

  // Pictures in a file: decoded once, and drawn frame by frame.
  const openFrames = async (canvas) => {
    const answer = await fetch(canvas.dataset.src);
    const type = canvas.dataset.type || "image/png";
    const decoder = new ImageDecoder({ data: await answer.arrayBuffer(), type });
    await decoder.tracks.ready; await decoder.completed;
    const frames = [];
    for (let k = 0; k < decoder.tracks.selectedTrack.frameCount; k++) {
      const { image } = await decoder.decode({ frameIndex: k });
      frames.push(await createImageBitmap(image)); image.close();
    }
    [canvas.width, canvas.height] = [frames[0].width, frames[0].height];
    const rate = +canvas.dataset.rate;
    const show = (time) => {
      const k = Math.floor(time * rate + FRAME) % frames.length;
      canvas.getContext("2d").drawImage(frames[k], 0, 0); canvas.dataset.frame = k;
    };
    return { node: canvas, rate, long: frames.length / rate, show, run: () => {} };
  };

  // Films: the browser plays them, and is set right where it falls out of step.
  const openFilm = async (film) => {
    if (film.readyState < 1) await new Promise((ready) => film.addEventListener("loadedmetadata", ready, { once: true }));
    const rate = +film.dataset.rate || 24, long = film.duration || 1;
    const show = (time) => {
      const place = time % long, off = Math.abs(film.currentTime - place);
      if (film.paused ? off > 0.25 / rate : off > 0.12 && off < long - 0.12) film.currentTime = Math.min(place + 0.5 / rate, long);
      film.dataset.frame = Math.floor(place * rate + FRAME);
    };
    const run = (on, speed) => { film.playbackRate = speed; on ? film.play().catch(() => {}) : film.pause(); };
    return { node: film, rate, long, show, run };
  };

  const wakeClips = async (group) => {
    const nodes = all(group, ".wb-clip"), films = nodes.filter((n) => n.tagName === "VIDEO");
    if (films.length < nodes.length && !window.ImageDecoder) { // each plays by itself
      for (const n of nodes) { if (n.tagName === "VIDEO") continue; const i = new Image(); i.src = n.dataset.src; i.className = n.className; n.replaceWith(i); }
      return all(group, ".wb-player").forEach((bar) => bar.textContent = "This browser can't hold clips in step.");
    }
    const clips = await Promise.all(nodes.map((n) => n.tagName === "VIDEO" ? openFilm(n) : openFrames(n)));
    const part = (name) => group.querySelector(`[data-wb=${name}]`);
    const clock = group.querySelector("output"), seek = part("seek"), button = part("play"), speed = part("speed");
    const long = Math.max(...clips.map((c) => c.long)), rate = Math.max(...clips.map((c) => c.rate));
    const state = { now: 0, playing: false };
    seek.max = long;
    const draw = () => {
      clips.forEach((c) => c.show(state.now)); seek.value = state.now;
      clock.textContent = `${state.now.toFixed(2)} s · frame ${Math.floor(state.now * rate + FRAME)}`;
    };
    const play = (on) => {
      state.playing = on; button.textContent = on ? "Pause" : "Play";
      clips.forEach((c) => c.run(on, +speed.value));
      let last = performance.now();
      const step = (at) => {
        if (!state.playing || !group.isConnected) return;
        state.now = (state.now + Math.max(0, at - last) / 1000 * +speed.value) % long; last = at;
        draw(); requestAnimationFrame(step);
      };
      if (on) requestAnimationFrame(step); else draw();
    };
    const go = (time) => { play(false); state.now = Math.min(Math.max(time, 0), long - FRAME); draw(); };
    const stepBy = (frames) => go((Math.floor(state.now * rate + FRAME) + frames) / rate);
    button.onclick = () => play(!state.playing);
    seek.oninput = () => go(+seek.value);
    speed.onchange = () => play(state.playing);
    part("back").onclick = () => stepBy(-1); part("on").onclick = () => stepBy(1);
    group.tabIndex = 0;
    group.addEventListener("keydown", (e) => {
      if (e.target.closest("input, select, textarea, button, a")) return;
      const act = { " ": () => play(!state.playing), ",": () => stepBy(-1), ".": () => stepBy(1), 0: () => go(0) }[e.key];
      if (act) { e.preventDefault(); act(); }
    });
    draw(); play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  };

  // Sounds: one at a time, all as loud as the quietest; another goes on where the last one was.
  const wakeSounds = (group) => {
    const sounds = all(group, "audio"), part = (name) => group.querySelector(`[data-wb=${name}]`);
    const match = part("match"), stay = part("stay");
    const level = () => sounds.forEach((a) => a.volume = match.checked ? +a.dataset.wbVolume : 1);
    match.onchange = level; level();
    let last = null;
    sounds.forEach((a) => a.addEventListener("play", () => {
      const row = a.closest(".wb-row");
      if (last && last !== a && stay?.checked && last.closest(".wb-row") === row) a.currentTime = Math.min(last.currentTime, a.duration || Infinity);
      sounds.forEach((b) => b === a || b.pause());
      last = a;
    }));
  };

  const wake = () => all(document, ".wb-sync:not([data-awake])").forEach((group) => {
    group.dataset.awake = "1";
    if (group.querySelector(".wb-clip")) wakeClips(group); else if (group.querySelector("audio")) wakeSounds(group);
  });
  new MutationObserver(wake).observe(document.documentElement, { childList: true, subtree: true });
})();
