// The page on which raters vote. Votes wait in localStorage until the server has them, each under a key of its own, so
// neither a lost answer nor a server that starts again loses or doubles one. What comes from others is only set as text.
'use strict';
const WATCHED = {image: 0.4, frames: 3, film: 3, sound: 5}; // seconds that each side must have had before the buttons wake, so
// that no key that is pressed twice votes on a pair that nobody has seen
const CHOICES = {left: ['A is better', 'A', '←'], tie: ['Tie', 'Tie', '↓'], bad: ['Both bad', 'Bad', '↑'], right: ['B is better', 'B', '→']};
const SIDES = ['left', 'right'];
const STUDY = location.pathname.replace(/\/+$/, '').split('/').pop();
const QUEUE = `workbench-votes-${STUDY}`, READ = `workbench-read-${STUDY}`;
const $ = (what) => document.querySelector(what);
const pane = (side) => $(`[data-side=${side}]`);
const token = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, '0')).join('');
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const store = (name, value) => { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* private windows have none */ } };
const load = (name) => { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } };

let about = null, pair = null, ahead = null, loaded = {}, spent = {}, answers = {}, player = null;
let busy = false, last = null, sending = false, queue = load(QUEUE) ?? [], generation = 0;

function text(tag, words, name = '') {
  const node = document.createElement(tag);
  node.textContent = words; node.className = name;
  return node;
}
function say(words, warn = false) { const status = $('.status'); status.textContent = words; status.classList.toggle('warn', warn); }
function only(...shown) {
  for (const part of ['.enter', '.instructions', 'main', '.end', '.studies']) $(part).hidden = !shown.includes(part);
}

// ---- the server

class Refused extends Error { constructor(status, body) { super(body.error ?? 'Refused.'); this.status = status; this.body = body; } }

async function call(name, body = {}, patient = true) {
  for (let tries = 0; ; tries++) {
    try {
      const reply = await fetch(name, {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});
      if (reply.ok) return await reply.json();
      if (reply.status < 500 || !patient) throw new Refused(reply.status, await reply.json().catch(() => ({})));
    } catch (error) {
      if (error instanceof Refused || !patient) throw error;
    }
    say('The server does not answer; trying again. Your votes are kept here.', true);
    await sleep(Math.min(8000, 400 * 2 ** tries) * (0.7 + 0.6 * Math.random()));
  }
}
const ask = (name, body) => call(`${STUDY}/${name}`, body);

async function flush() { // sends what waits, one by one
  if (sending) return;
  sending = true;
  try {
    while (queue.length) {
      const ballot = queue[0];
      try {
        const kept = await ask('vote', ballot);
        count(kept.done);
        last = {battle: ballot.battle, key: 'undo-' + ballot.key};
        ballot.done?.(kept);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (error.status === 401) { stranger(error.body); return; }
        say(error.message, true);
        ballot.done?.(null);
      }
      queue.shift(); store(QUEUE, queue);
    }
  } finally { sending = false; refresh(); }
}

function count(done) {
  about.done = done;
  $('.progress').hidden = false;
  $('progress').max = about.target || 1; $('progress').value = done;
  $('.count').textContent = `${done} of ${about.target}`;
}

// ---- coming and going

function stranger(body) {
  about = null; pair = null; ahead = null; stop();
  only('.enter');
  $('.password').hidden = body.enter === 'name';
  $('.enter .why').textContent = body.enter === 'name'
    ? 'Under which name do you vote? Whoever runs this study sees it; other raters do not.' : 'Log in to vote.';
  $('[data-do=leave]').hidden = $('[data-do=help]').hidden = $('.progress').hidden = true;
  say('');
  $('.enter [name=name]').focus();
}

async function start() {
  if (STUDY === 'vote' || STUDY === '') return listStudies();
  try { about = await ask('state'); } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) return stranger(error.body);
    return say(error.message, true);
  }
  $('[data-do=leave]').hidden = false; $('[data-do=leave]').textContent = `${about.rater} · leave`;
  $('[data-do=help]').hidden = false;
  $('.words').textContent = about.instructions || 'Two of a kind are shown. Say which one is better.';
  count(about.done); drawAnswers(); flush();
  if (about.instructions && load(READ) !== about.rater && !about.closed) { only('.instructions'); say(''); $('[data-do=begin]').focus(); return; }
  await advance();
}

async function listStudies() {
  try {
    const {studies} = await call('studies');
    only('.studies'); say(studies.length ? 'Your studies:' : 'There is no study to vote in now.');
    $('.studies').replaceChildren(...studies.map((name) => { const li = document.createElement('li'), a = text('a', name); a.href = name; li.append(a); return li; }));
  } catch { say('Open the link of your study: an address that ends in /vote/ and its name.'); }
}

$('.enter').addEventListener('submit', async (event) => {
  event.preventDefault();
  const form = event.target, body = {name: form.name.value}, login = !$('.password').hidden;
  if (login) body.password = form.password.value;
  for (let tries = 0; ; tries++) {
    try { await call(`${STUDY}/${login ? 'login' : 'enter'}`, body, false); form.password.value = ''; return await start(); }
    catch (error) {
      const wait = error instanceof Refused && error.status === 429;
      say(wait ? 'Too many people log in at once, or with wrong passwords; one moment…' : error instanceof Refused ? error.message : 'The server does not answer.', true);
      if (!wait || tries >= 3) return;
      await sleep(1000 * (2 + 2 * Math.random()));
    }
  }
});

// ---- pairs

async function fetchPair() {
  const mine = generation, have = [pair?.battle, ahead?.battle, ...queue.map((ballot) => ballot.battle)].filter(Boolean);
  const next = await ask('next', {have});
  if (next.battle) for (const side of SIDES) { const img = next.kind === 'image' || next.kind === 'frames' ? new Image() : null; if (img) img.src = `media/${next[side].url}`; }
  return mine === generation ? next : null;
}

async function advance() { // shows the pair that is ready, or asks for one
  stop(); only('main');
  generation += ahead ? 0 : 1;
  let next = ahead; ahead = null;
  try { next ??= await (async () => { say('Looking for a pair…'); pair = null; return fetchPair(); })(); } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return error.status === 401 ? stranger(error.body) : say(error.message, true);
  }
  if (!next) return;
  if (next.end === 'wait') { await flush(); await sleep(300); return advance(); }
  if (next.end) return finish(next);
  show(next);
}

async function lookAhead() {
  if (ahead || !pair || about.reveal === 'each') return;
  try { const next = await fetchPair(); if (next?.battle) ahead = next; } catch { /* asked again when it is needed */ }
}

async function finish(end) {
  await flush();
  if (about.reveal === 'end') { try { end = await ask('next', {have: []}); } catch { /* then without a summary */ } }
  if (end.battle) return show(end);
  pair = null; only('.end'); say('');
  $('.thanks').textContent = end.message;
  const rows = end.summary ?? [];
  $('.end table').hidden = !rows.length;
  $('.end tbody').replaceChildren(...rows.map((row) => {
    const tr = document.createElement('tr'), who = text('th', row.contestant);
    who.scope = 'row'; tr.append(who, ...['won', 'lost', 'other'].map((key) => text('td', row[key])));
    return tr;
  }));
}

function show(next) {
  stop();
  pair = next; loaded = {}; spent = {left: 0, right: 0}; answers = {}; busy = false;
  only('main'); say('Both are loading…'); shownAt = 0;
  $('.prompt').textContent = pair.prompt;
  $('.reason input').value = '';
  $('.given').hidden = !pair.inputs.length;
  $('.given').replaceChildren(...pair.inputs.map(given));
  $('.sides').classList.remove('wide');
  $('[data-do=next]').hidden = true; $('.answers').hidden = false;
  for (const side of SIDES) { pane(side).classList.remove('won', 'sounding'); pane(side).querySelector('.who').textContent = ''; }
  player = {image: showPictures, frames: showFrames, film: showFilms, sound: showSounds}[pair.kind]();
  $('.player').hidden = pair.kind === 'image';
  for (const name of ['back', 'forth']) $(`[data-do=${name}]`).hidden = pair.kind === 'sound';
  $('[data-do=switch]').textContent = pair.kind === 'sound' ? 'A ⇄ B' : 'Speed 1×';
  refresh();
}

function stop() { player?.stop?.(); player = null; $('.large').hidden = true; }
function ready(side, battle) { if (pair?.battle === battle) { loaded[side] = true; if (loaded.left && loaded.right) { player?.begin?.(); lookAhead(); } refresh(); } }
function broken(battle) { if (pair?.battle === battle && !pair.again) { reload(); } }
async function reload() { // the server has started anew, and its addresses with it
  const battle = pair.battle; pair = null; ahead = null; generation += 1;
  const next = await fetchPair();
  if (next?.battle) { next.again = next.battle === battle; show(next); } else if (next?.end) finish(next);
}
function media(tag, side, url) {
  const node = document.createElement(tag), battle = pair.battle;
  node.addEventListener('error', () => broken(battle));
  node.src = `media/${url}`;
  return node;
}
function place(side, ...nodes) { pane(side).querySelector('.media').replaceChildren(...nodes); }
function shape(node, width, height) {
  node.classList.toggle('small', width < 256);
  if (width > 1.2 * height) $('.sides').classList.add('wide');
}
function given(input) {
  const figure = document.createElement('figure'), sound = input.kind === 'audio', node = document.createElement(sound ? 'audio' : 'img');
  if (sound) { node.controls = true; node.setAttribute('aria-label', input.label); node.addEventListener('play', () => player?.pause?.()); }
  else { node.alt = input.label; node.addEventListener('load', () => node.classList.toggle('small', node.naturalWidth < 256)); }
  node.src = `media/${input.url}`;
  figure.append(text('figcaption', input.label), node);
  return figure;
}

function showPictures() {
  for (const side of SIDES) {
    const battle = pair.battle, img = media('img', side, pair[side].url);
    img.alt = side === 'left' ? 'Picture A' : 'Picture B'; img.draggable = false;
    img.addEventListener('load', () => { shape(img, img.naturalWidth, img.naturalHeight); ready(side, battle); });
    img.addEventListener('click', () => enlarge(side));
    place(side, img);
  }
  return {tick: (seconds) => { for (const side of SIDES) spent[side] += seconds; }};
}
function enlarge(side) {
  const large = $('.large');
  large.hidden = false; large.dataset.side = side;
  large.querySelector('span').textContent = side === 'left' ? 'A' : 'B';
  large.querySelector('img').src = pane(side).querySelector('img').src;
}
$('.large').addEventListener('click', () => { $('.large').hidden = true; });

// One clock for both clips: `at` in seconds, which every frame is drawn from.
function clock(length, draw) {
  const speeds = [1, 0.5, 0.25];
  const c = {at: 0, playing: false, speed: 0, length,
    tick(seconds, real) {
      if (c.playing) { c.at += seconds * speeds[c.speed]; if (c.at >= c.length) c.at = 0; }
      if (loaded.left && loaded.right) for (const side of SIDES) spent[side] += real;
      draw(c.at); scrub(c.at / c.length);
    },
    toggle() { c.playing = !c.playing; label(); }, pause() { c.playing = false; label(); },
    begin() { c.playing = true; label(); }, replay() { c.at = 0; c.begin(); },
    seek(share) { c.at = Math.min(share, 0.9999) * c.length; draw(c.at); },
    step(by, frame) { c.pause(); c.at = Math.max(0, Math.min(c.length - frame / 2, (Math.round(c.at / frame) + by) * frame)); draw(c.at); scrub(c.at / c.length); },
    slow() { c.speed = (c.speed + 1) % speeds.length; $('[data-do=switch]').textContent = `Speed ${['1×', '½×', '¼×'][c.speed]}`; },
    rate: () => speeds[c.speed]};
  const label = () => { $('[data-do=play]').textContent = c.playing ? 'Pause' : 'Play'; };
  return c;
}
const scrub = (share) => { if (document.activeElement !== $('.player input')) $('.player input').value = 1000 * share; };

function showFrames() {
  const parts = SIDES.map((side) => {
    const sheet = pair[side].sheet, canvas = document.createElement('canvas'), battle = pair.battle, picture = media('img', side, pair[side].url);
    [canvas.width, canvas.height] = sheet.size;
    canvas.setAttribute('role', 'img'); canvas.setAttribute('aria-label', side === 'left' ? 'Clip A' : 'Clip B');
    shape(canvas, ...sheet.size); place(side, canvas);
    picture.addEventListener('load', () => ready(side, battle));
    return {sheet, picture, context: canvas.getContext('2d'), drawn: -1};
  });
  const c = clock(Math.max(...parts.map((p) => p.sheet.order.length / p.sheet.rate)), (at) => {
    for (const p of parts) {
      const frame = p.sheet.order[Math.min(Math.floor(at * p.sheet.rate + 1e-6), p.sheet.order.length - 1)], [w, h] = p.sheet.size;
      if (p.drawn === frame || !p.picture.complete || !p.picture.naturalWidth) continue;
      p.context.drawImage(p.picture, frame % p.sheet.columns * w, Math.floor(frame / p.sheet.columns) * h, w, h, 0, 0, w, h);
      p.drawn = frame;
    }
  });
  c.pause();
  const frame = 1 / Math.max(...parts.map((p) => p.sheet.rate));
  return {...c, tick: c.tick, toggle: c.toggle, pause: c.pause, begin: c.begin, replay: c.replay, seek: c.seek, other: c.slow, step: (by) => c.step(by, frame), at: () => c.at};
}

function showFilms() {
  const films = SIDES.map((side) => {
    const film = media('video', side, pair[side].url), battle = pair.battle;
    film.muted = true; film.playsInline = true; film.preload = 'auto'; film.setAttribute('aria-label', side === 'left' ? 'Clip A' : 'Clip B');
    film.addEventListener('canplay', () => { shape(film, film.videoWidth, film.videoHeight); ready(side, battle); }, {once: true});
    place(side, film);
    return film;
  });
  let playing = false, speed = 0;
  const rates = [1, 0.5, 0.25], length = () => Math.max(...films.map((f) => f.duration || 0)) || 1;
  const label = () => { $('[data-do=play]').textContent = playing ? 'Pause' : 'Play'; };
  const run = () => films.forEach((f) => { if (playing && f.currentTime < f.duration - 0.03) f.play().catch(() => {}); else f.pause(); });
  const seek = (at) => films.forEach((f) => { f.currentTime = Math.min(at, Math.max(0, (f.duration || 0) - 0.001)); });
  const set = (value) => { playing = value; run(); label(); };
  return {
    tick(seconds, real) {
      if (loaded.left && loaded.right) for (const side of SIDES) spent[side] += real;
      const [a, b] = films, lead = a.duration >= b.duration ? a : b, other = lead === a ? b : a;
      if (playing && (lead.ended || lead.currentTime >= lead.duration - 0.03)) { seek(0); run(); }
      else if (playing && !other.ended && Math.abs(lead.currentTime - other.currentTime) > 0.06 && lead.currentTime < other.duration) other.currentTime = lead.currentTime;
      scrub(lead.currentTime / length());
    },
    toggle: () => set(!playing), pause: () => set(false), begin: () => set(true), replay: () => { seek(0); set(true); },
    seek: (share) => seek(share * length()), at: () => films[0].currentTime,
    step: (by) => { set(false); seek(Math.max(0, films[0].currentTime + by / 24)); },
    other: () => { speed = (speed + 1) % rates.length; films.forEach((f) => { f.playbackRate = rates[speed]; }); $('[data-do=switch]').textContent = `Speed ${['1×', '½×', '¼×'][speed]}`; },
    stop: () => films.forEach((f) => f.pause()),
  };
}

// Both sounds play together and one is heard, so that a switch goes on at the same place. They are equally loud and long.
function showSounds() {
  const sounds = SIDES.map((side) => {
    const sound = media('audio', side, pair[side].url), battle = pair.battle, button = text('button', `Listen to ${side === 'left' ? 'A' : 'B'}`);
    button.type = 'button'; sound.preload = 'auto';
    sound.addEventListener('canplaythrough', () => ready(side, battle), {once: true});
    sound.addEventListener('ended', () => { if (side === heard && playing) { listen(sound.duration); set(false); } });
    button.addEventListener('click', () => { hear(side); set(true); });
    place(side, sound, button);
    return sound;
  });
  let heard = 'left', playing = false, at = null;
  const active = () => sounds[SIDES.indexOf(heard)], length = () => active().duration || 1;
  const label = () => { $('[data-do=play]').textContent = playing ? 'Pause' : 'Play'; for (const side of SIDES) pane(side).classList.toggle('sounding', playing && heard === side); };
  const meet = () => sounds.forEach((s) => { s.muted = s !== active(); if (s !== active() && Math.abs(s.currentTime - active().currentTime) > 0.03) s.currentTime = active().currentTime; });
  const set = (value) => { playing = value; at = null; if (playing && (active().ended || active().currentTime >= length() - 0.02)) sounds.forEach((s) => { s.currentTime = 0; }); meet(); at = playing ? active().currentTime : null; sounds.forEach((s) => (playing ? s.play().catch(() => {}) : s.pause())); label(); };
  const hear = (side) => { const now = active().currentTime; heard = side; active().currentTime = now; at = null; meet(); label(); };
  label();
  const listen = (now) => { if (at !== null && now > at && now - at < 1) spent[heard] += now - at; at = now; }; // a jump is no listening
  return {
    tick() { if (playing) listen(active().currentTime); scrub(active().currentTime / length()); },
    toggle: () => set(!playing), pause: () => set(false), replay: () => { sounds.forEach((s) => { s.currentTime = 0; }); set(true); },
    seek: (share) => { sounds.forEach((s) => { s.currentTime = share * length(); }); at = null; },
    other: () => { hear(heard === 'left' ? 'right' : 'left'); if (!playing) set(true); }, step: () => {}, at: () => active().currentTime,
    stop: () => sounds.forEach((s) => s.pause()),
  };
}

// ---- answers

function drawAnswers() {
  const several = about.criteria.length > 1;
  $('.answers').classList.toggle('several', several);
  $('.answers').replaceChildren(...about.criteria.map((axis) => {
    const row = document.createElement('fieldset');
    row.className = 'row'; row.dataset.axis = axis;
    if (several) row.append(text('legend', axis)); else row.setAttribute('aria-label', 'Which is better?');
    for (const [choice, [long, short, key]] of Object.entries(CHOICES)) {
      const button = text('button', `${several ? short : long} `);
      button.type = 'button'; button.dataset.choice = choice; button.disabled = true;
      if (several) button.setAttribute('aria-label', `${axis}: ${long}`);
      button.append(text('kbd', key));
      button.addEventListener('click', () => decide(axis, choice));
      row.append(button);
    }
    return row;
  }));
}
const needed = () => (pair.kind === 'image' ? WATCHED.image : Math.min(WATCHED[pair.kind], pair.seconds || 0));
const awake = () => pair && !busy && loaded.left && loaded.right && SIDES.every((s) => spent[s] >= needed() - 0.05);
const open = () => about.criteria.find((axis) => !(axis in answers));

function refresh() {
  if (!about) return;
  const can = Boolean(awake());
  for (const row of document.querySelectorAll('.row')) {
    row.classList.toggle('now', row.dataset.axis === open());
    for (const button of row.querySelectorAll('button')) { button.disabled = !can; button.setAttribute('aria-pressed', answers[row.dataset.axis] === button.dataset.choice); }
  }
  $('[data-do=undo]').disabled = !last || about.reveal === 'each' || busy || !pair;
  if (!pair || busy || !loaded.left || !loaded.right) return;
  const left = SIDES.map((s) => Math.max(0, needed() - spent[s]));
  if (can) say(queue.length ? 'Keeping your vote…' : about.criteria.length > 1 ? `${open()}: which is better?` : '');
  else if (pair.kind === 'sound') say(`Listen to both first: A ${left[0].toFixed(0)} s, B ${left[1].toFixed(0)} s to go.`);
  else if (pair.kind !== 'image') say(`Watch both for a moment: ${left[0].toFixed(0)} s to go.`);
}

function decide(axis, choice) { // one action is a vote, where one thing is asked
  if (!awake()) return;
  answers[axis] = choice;
  if (open()) return refresh();
  busy = true;
  const ballot = {battle: pair.battle, choices: answers, key: token(), reason: $('.reason input').value,
                  dwell: SIDES.map((s) => Math.min(86400, Math.round(spent[s] * 10) / 10))};
  if (about.reveal === 'each') Object.defineProperty(ballot, 'done', {value: reveal, enumerable: false});
  queue.push(ballot); store(QUEUE, queue);
  const sent = flush();
  if (about.reveal === 'each') { say('Keeping your vote…'); sent.catch(() => {}); } else advance();
}
function reveal(kept) {
  if (!kept) return advance();
  player?.pause?.();
  for (const side of SIDES) {
    pane(side).querySelector('.who').textContent = kept[side].contestant;
    pane(side).classList.toggle('won', answers[about.criteria[0]] === side);
  }
  $('.answers').hidden = true; $('[data-do=next]').hidden = false; $('[data-do=next]').focus();
  say('Kept. Here is who they were.');
}

const act = {
  async undo() {
    if (!last || busy || !pair || about.reveal === 'each') return;
    busy = true; await flush();
    const undone = last; last = null;
    try { const again = await ask('undo', undone); if (!ahead && pair) ahead = pair; about.done -= 1; count(about.done); show(again); say('Taken back: vote on it again.'); }
    catch (error) { busy = false; say(error.message, true); }
  },
  async skip() { if (!pair || busy) return; busy = true; const gone = pair.battle; await ask('skip', {battle: gone}).catch(() => {}); await advance(); },
  next() { advance(); },
  help() { stop(); only('.instructions'); },
  begin() { store(READ, about.rater); if (pair) show(pair); else advance(); },
  async leave() { await flush(); await call(`${STUDY}/leave`).catch(() => {}); queue = []; store(QUEUE, queue); last = null; generation += 1; await start(); },
  play: () => player?.toggle?.(), replay: () => player?.replay?.(), back: () => player?.step?.(-1), forth: () => player?.step?.(1), switch: () => player?.other?.(),
};
document.addEventListener('click', (event) => { const button = event.target.closest('[data-do]'); if (button && !button.disabled) act[button.dataset.do]?.(); });
$('.player input').addEventListener('input', (event) => player?.seek?.(event.target.value / 1000));

const vote = (choice) => () => decide(open(), choice);
const KEYS = {arrowleft: vote('left'), a: vote('left'), arrowright: vote('right'), b: vote('right'), arrowdown: vote('tie'), t: vote('tie'),
              arrowup: vote('bad'), x: vote('bad'), u: act.undo, k: act.skip, ' ': act.play, r: act.replay, ',': act.back, '.': act.forth, n: () => { if (!$('[data-do=next]').hidden) act.next(); },
              s: () => ($('.large').hidden ? act.switch() : enlarge($('.large').dataset.side === 'left' ? 'right' : 'left')),
              z: () => { if (pair?.kind === 'image') $('.large').hidden ? enlarge('left') : ($('.large').hidden = true); }, escape: () => { $('.large').hidden = true; }};
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !pair || $('main').hidden) return;
  if (event.target.closest('input[type=text], .enter')) { if (event.key === 'Enter' || event.key === 'Escape') event.target.blur(); return; }
  if (event.key === ' ' && event.target.closest('button')) return; // it presses that button
  const does = KEYS[event.key.toLowerCase()];
  if (does) { event.preventDefault(); does(); }
});

let before = performance.now(), shownAt = 0;
function tick(now) {
  const seconds = Math.min((now - before) / 1000, 0.25); before = now;
  if (pair && player && !document.hidden && !$('main').hidden && !busy) {
    if (loaded.left && loaded.right) player.tick?.(seconds, seconds);
    if (now - shownAt > 200) { shownAt = now; refresh(); }
  }
  requestAnimationFrame(tick);
}
requestAnimationFrame(tick);
start();
