// Draws what the server says (props.value) and answers with triggers: 'ask', 'decide' and 'undo'. What comes from people
// or runs is only ever set as text. Buttons sleep until both media have loaded, and were heard or seen for a while.
const WATCHED = {image: 0, video: 3, audio: 5}; // seconds that each side must have had
const DONE = 'Nothing left to vote on: there is no pair here that you have not voted on. New comparisons bring new pairs; under ' +
  '“What to vote on” there may be others.';
const root = () => element.querySelector('.mw-vote');
const $ = (what) => root().querySelector(what);
let shown = false, now = null, key = '', phase = 'wait', busy = 0, loaded = {}, spent = {}, ticking = null, last = null, asked = 0, held = 0;

const token = () => [...crypto.getRandomValues(new Uint8Array(16))].map(b => b.toString(16).padStart(2, '0')).join('');
const rater = () => {
  let name = localStorage.getItem('workbench-rater');
  if (!name) localStorage.setItem('workbench-rater', name = token());
  return name;
};
const visible = () => element.isConnected && element.getClientRects().length > 0;
const say = (text, hold = 0) => { $('.mw-vote-told').textContent = text; held = Date.now() + hold; };
const needed = (side) => Math.min(WATCHED[now.modality] ?? 0, now.modality === 'audio' ? loaded[side] : now.seconds || 0);
const awake = () => phase === 'battle' && loaded.left && loaded.right && ['left', 'right'].every(s => spent[s] >= needed(s) - 0.05);

function refresh() {
  const open = awake() && Date.now() > busy;
  root().querySelectorAll('[data-choice]').forEach(b => { b.disabled = !open; });
  $('[data-do=skip]').disabled = phase === 'revealed';
  $('[data-do=next]').disabled = phase !== 'revealed' && phase !== 'undone';
  $('[data-do=undo]').disabled = phase !== 'revealed';
  $('.mw-vote-told').classList.toggle('wb-empty', phase === 'empty');
  root().classList.toggle('mw-revealed', phase === 'revealed' || phase === 'undone');
  if (phase !== 'battle' || Date.now() < busy || Date.now() < held) return;
  if (!loaded.left || !loaded.right) return say('Both are loading…');
  const left = Object.fromEntries(['left', 'right'].map(s => [s, Math.max(0, needed(s) - spent[s])]));
  if (open) return say('Which is better? Names are told after the vote.');
  if (now.modality === 'audio') return say(`Listen to both first: A ${left.left.toFixed(0)} s, B ${left.right.toFixed(0)} s to go.`);
  if (left.left > 0) say(`Watch both for a moment: ${left.left.toFixed(0)} s to go.`);
}

function tick() {
  if (!visible() || document.hidden || phase !== 'battle') { last = null; return; }
  const t = performance.now(), gone = last === null ? 0 : (t - last) / 1000;
  last = t;
  if (loaded.left && loaded.right && now.modality !== 'audio') { spent.left += gone; spent.right += gone; }
  refresh();
}

function player(side, url) {
  const sound = now.modality === 'audio', film = !sound && url.endsWith('.mp4'); // animations are pictures to a browser
  const media = document.createElement(sound ? 'audio' : film ? 'video' : 'img'), mine = now.battle, name = side === 'left' ? 'A' : 'B';
  const ready = (how) => { if (now && now.battle === mine) { loaded[side] = how || 1; refresh(); } };
  if (sound) {
    media.controls = true; media.preload = 'auto'; media.setAttribute('aria-label', `Sound ${name}`);
    let at = null;
    media.addEventListener('canplaythrough', () => ready(media.duration));
    media.addEventListener('play', () => {
      at = media.currentTime;
      root().querySelectorAll('audio').forEach(o => { if (o !== media) o.pause(); });
    });
    media.addEventListener('seeking', () => { at = null; }); // a jump is no listening
    media.addEventListener('timeupdate', () => {
      if (at !== null) spent[side] += Math.max(0, media.currentTime - at);
      at = media.currentTime; refresh();
    });
  } else if (film) {
    Object.assign(media, {muted: true, loop: true, playsInline: true, preload: 'auto'}); media.setAttribute('aria-label', `Clip ${name}`);
    media.addEventListener('canplay', () => { ready(); if (loaded.left && loaded.right) root().querySelectorAll('video').forEach(v => { v.currentTime = 0; v.play().catch(() => {}); }); }, {once: true});
  } else {
    media.alt = `${now.modality === 'video' ? 'Clip' : 'Picture'} ${name}`; media.draggable = false;
    media.addEventListener('load', () => {
      media.classList.toggle('mw-small', media.naturalWidth < 256); ready();
    });
  }
  media.addEventListener('error', () => { if (now && now.battle === mine) say('One of the two could not be loaded; skip this pair.', 1e9); });
  media.src = url;
  return media;
}

// What both were made from: no part of the choice, so buttons don't wait for it.
function given(input) {
  const figure = document.createElement('figure'), sound = input.modality === 'audio';
  const media = document.createElement(sound ? 'audio' : 'img');
  if (sound) {
    media.controls = true; media.preload = 'metadata'; media.setAttribute('aria-label', input.label);
    media.addEventListener('play', () => root().querySelectorAll('audio').forEach(o => { if (o !== media) o.pause(); }));
  } else {
    media.alt = `${input.label}: what both were made from`; media.draggable = false;
    media.addEventListener('load', () => media.classList.toggle('mw-small', media.naturalWidth < 256));
  }
  media.src = input.file.url;
  figure.className = sound ? 'mw-vote-heard' : '';
  figure.append(text('figcaption', input.label), media);
  return figure;
}

function battle(value) {
  now = value; key = token(); loaded = {}; spent = {left: 0, right: 0}; last = null; phase = 'battle'; held = 0;
  $('.mw-vote-round').hidden = false;
  $('.mw-vote-prompt').textContent = value.prompt;
  $('.mw-vote-given').hidden = !value.inputs?.length;
  $('.mw-vote-given').replaceChildren(...(value.inputs ?? []).map(given));
  $('.mw-vote-reason input').value = '';
  for (const side of ['left', 'right']) {
    const pane = $(`[data-side=${side}]`);
    pane.classList.remove('mw-won');
    pane.querySelector('.mw-vote-who').replaceChildren();
    pane.querySelector('.mw-vote-media').replaceChildren(player(side, value[side].url));
  }
}

function text(tag, words, name) {
  const node = document.createElement(tag);
  node.textContent = words; if (name) node.className = name;
  return node;
}

function reveal(value) {
  phase = 'revealed';
  localStorage.setItem('workbench-voted', '1');
  root().querySelectorAll('audio').forEach(a => a.pause());
  for (const side of ['left', 'right']) {
    const told = value[side], table = document.createElement('table'), pane = $(`[data-side=${side}]`);
    for (const [reward, score] of Object.entries(told.scores)) {
      const row = table.insertRow();
      row.append(text('th', reward), text('td', score === null ? '–' : (Math.round(score * 1000) / 1000 + 0).toFixed(3).replace('-', '−')));
    }
    pane.classList.toggle('mw-won', value.choice === side);
    pane.querySelector('.mw-vote-who').replaceChildren(text('strong', told.contestant), text('span', told.pipeline), table);
  }
  const said = {left: 'A is better', right: 'B is better', tie: 'a tie', bad: 'both bad'}[value.choice];
  say(`Kept: ${said}. Here is who they were; N goes on, U takes it back.`);
}

const drawn = {
  wait() { asked += 1; phase = 'wait'; say('Looking for a pair…'); },
  battle,
  revealed: reveal,
  undone() { phase = 'undone'; say('Taken back. The names are known now, so this pair is not asked again: N goes on.'); },
  empty(value) { phase = 'empty'; $('.mw-vote-round').hidden = true; say(localStorage.getItem('workbench-voted') ? DONE : value.told); },
  refused(value) { say(value.told, 6000); if (phase === 'wait') busy = Date.now() + 8000; },
};

function draw() {
  const value = props.value;
  if (!value || !drawn[value.phase] || (value.asked ?? asked) !== asked) return; // an answer to an older question
  busy = 0;
  drawn[value.phase](value);
  if (value.phase !== 'refused') refresh();
}

function ask() {
  asked += 1; busy = Date.now() + 8000; phase = 'wait';
  say('Looking for a pair…');
  trigger('ask', {rater: rater(), asked});
}
function decide(choice) {
  if (!awake() || Date.now() < busy) return;
  busy = Date.now() + 8000; // an answer that never came may be asked for again: the key makes it one vote
  refresh(); say('Keeping your vote…');
  trigger('decide', {battle: now.battle, choice, key, reason: $('.mw-vote-reason input').value,
                     dwell: [spent.left, spent.right].map(s => Math.min(86400, Math.round(s * 10) / 10))});
}
const act = {
  skip() { if (phase === 'battle') ask(); },
  next() { if (phase === 'revealed' || phase === 'undone') ask(); },
  undo() { if (phase === 'revealed') trigger('undo', {battle: now.battle, key: 'undo-' + key}); },
};
const KEYS = {a: () => decide('left'), arrowleft: () => decide('left'), b: () => decide('right'), arrowright: () => decide('right'),
              t: () => decide('tie'), x: () => decide('bad'), s: act.skip, u: act.undo, n: act.next};

element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button || button.disabled) return;
  if (button.dataset.choice) decide(button.dataset.choice); else if (button.dataset.do) act[button.dataset.do]();
});
const pressed = (event) => {
  if (!element.isConnected) return document.removeEventListener('keydown', pressed, true);
  if (!visible() || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest('input, textarea, select, audio, video, [contenteditable=true], [role=listbox], [role=dialog]')) return;
  const does = KEYS[event.key.toLowerCase()];
  if (does) { event.preventDefault(); event.stopPropagation(); does(); }
};
document.addEventListener('keydown', pressed, true);
watch('value', draw);
ticking = setInterval(() => {
  if (!element.isConnected) return clearInterval(ticking);
  const returned = !shown && visible();
  shown = visible();
  if (shown && Date.now() > busy && (phase === 'wait' || (phase === 'empty' && returned))) ask(); // not before the tab is looked at
  tick();
}, 200);
