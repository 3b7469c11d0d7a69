// Looking: images that zoom in place, long texts that fold, words in which candidates differ, and the instructions.

import { lines } from "./draft.js";
import { keep, recall } from "./kept.js";
import { relabel } from "./keys.js";
import { ask } from "./server.js";
import { announce, hint, parse, toast } from "./telling.js";
import { makePan } from "./zoom.js";

const LEAST_ALIKE = 0.6;
const MOST_WORDS = 400;
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
const panel = document.getElementById("instructions");
const { slug } = judge.dataset;
const panOf = new WeakMap();
let pans = [];

// A new card, before it is painted.
export function settle(work) {
  relabel(work);
  pans = [...work.querySelectorAll(".picture")].map((pane) => {
    if (!panOf.has(pane)) panOf.set(pane, makePan(pane, pane.querySelector("img")));
    return panOf.get(pane);
  });
  const folded = [...work.querySelectorAll(".folds")].some((text) => text.scrollHeight > text.clientHeight + 2);
  work.querySelector('[data-do="unfold"]').hidden = !folded;
}

function press(name, isOn) {
  stage.querySelector(`[data-do="${name}"]`)?.setAttribute("aria-pressed", String(isOn));
}

// Long texts

export function unfold() {
  const work = stage.querySelector(".work");
  if (!work || work.querySelector('[data-do="unfold"]').hidden) return;
  press("unfold", work.classList.toggle("unfolded"));
}

// The image in place

function panInUse() {
  const at = [...stage.querySelectorAll(".picture")].indexOf(document.activeElement);
  return pans[Math.max(0, at)];
}

const STEP = 60;
const moves = {
  "+": (pan) => pan.zoomBy(1.5),
  "=": (pan) => pan.zoomBy(1.5),
  "-": (pan) => pan.zoomBy(1 / 1.5),
  ArrowLeft: (pan) => pan.move(STEP, 0),
  ArrowRight: (pan) => pan.move(-STEP, 0),
  ArrowUp: (pan) => pan.move(0, STEP),
  ArrowDown: (pan) => pan.move(0, -STEP),
};

// Whether a key moved the image. Arrows move only what is zoomed; else they scroll, as everywhere.
export function moveImage(key) {
  const pan = panInUse();
  if (!pan || !moves[key] || (key.startsWith("Arrow") && pan.scale() === 1)) return false;
  moves[key](pan);
  return true;
}

// Differences

function wordsOf(text) {
  return text.split(/(\s+)/).filter(Boolean);
}

function bare(word) {
  return word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");
}

// Which places of `a` are not in the longest run of words that `a` and `b` have in common, in order.
export function differing(a, b) {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const places = [];
  let i = 0;
  let j = 0;
  while (i < a.length) {
    if (j < b.length && a[i] === b[j]) {
      i += 1;
      j += 1;
    } else if (j < b.length && lengths[i][j + 1] > lengths[i + 1][j]) j += 1;
    else {
      places.push(i);
      i += 1;
    }
  }
  return { places, common: lengths[0][0] };
}

function mark(place, text, marked) {
  let at = -1;
  place.replaceChildren(
    ...wordsOf(text).map((word) => {
      if (word.trim()) at += 1;
      if (!word.trim() || !marked.has(at)) return word;
      const element = document.createElement("mark");
      element.textContent = word;
      return element;
    }),
  );
}

function plainWords(text) {
  return wordsOf(text).filter((word) => word.trim()).map(bare).slice(0, MOST_WORDS);
}

export function differences() {
  const work = stage.querySelector(".work");
  if (!work) return;
  const isOn = work.classList.toggle("differing");
  press("differences", isOn);
  const texts = lines().map((line) => line.querySelector(".text"));
  const words = texts.map((text) => plainWords(text.textContent));
  let alike = 0;
  texts.forEach((text, index) => {
    const line = lines()[index];
    delete line.dataset.against;
    const compared = words.map((other, at) => ({ at, ...differing(words[index], other), size: words[index].length + other.length }));
    const likeness = (one) => (2 * one.common) / (one.size || 1);
    const nearest = compared.filter((one) => one.at !== index).sort((one, two) => likeness(two) - likeness(one))[0];
    const shows = isOn && nearest && likeness(nearest) >= LEAST_ALIKE;
    if (shows) {
      line.dataset.against = String(nearest.at + 1);
      alike += 1;
    }
    mark(text, text.textContent, new Set(shows ? nearest.places : []));
  });
  if (isOn && !alike) hint("No two candidates are alike enough to be compared word by word.");
  else announce(isOn ? `Marked: where ${alike} candidates differ from the one most like them` : "Marks are gone");
}

// The instructions

function readVersion() {
  return recall(`read.${slug}`);
}

function versionNow() {
  return panel.querySelector("#instructions-now").dataset.version;
}

function told() {
  return [...panel.querySelectorAll("[data-told]")];
}

export function toggleInstructions() {
  const opens = panel.hidden;
  panel.hidden = !opens;
  keep("panel", opens);
  showPanelState();
  if (opens) {
    read();
    panel.querySelector("#instructions-title").focus({ preventScroll: true });
  } else stage.querySelector("#question")?.focus({ preventScroll: true });
}

function showPanelState() {
  for (const button of document.querySelectorAll('[data-do="instructions"][aria-expanded]')) {
    button.setAttribute("aria-expanded", String(!panel.hidden));
    button.classList.toggle("is-new", isNew());
  }
}

function isNew() {
  const before = readVersion();
  return before !== null && before.version !== versionNow();
}

// What somebody has read before is kept, so that what changed since can be marked.
function read() {
  const before = readVersion();
  if (isNew()) {
    const old = plainWords(before.words);
    panel.querySelector("[data-changed]").hidden = false;
    for (const place of told()) {
      const text = place.textContent;
      const { places, common } = differing(plainWords(text), old);
      mark(place, text, new Set(common ? places : plainWords(text).keys()));
    }
  }
  remember();
  showPanelState();
}

function remember() {
  const words = told().map((place) => place.textContent.trim()).join("\n");
  keep(`read.${slug}`, { version: versionNow(), words });
}

function noteChange() {
  showPanelState();
  if (!isNew()) return;
  if (panel.hidden) toast("The instructions have changed: please read them before you go on.", "warn");
  else read();
}

export async function loadInstructions() {
  const answer = await ask("/instructions").catch(() => null);
  const fresh = answer?.ok ? parse(answer.text).querySelector("#instructions-now") : null;
  if (!fresh || fresh.dataset.version === versionNow()) return;
  panel.replaceChildren(fresh);
  noteChange();
}

export function startInstructions() {
  if (readVersion() === null) remember();
  const isWide = window.matchMedia("(min-width: 1181px)").matches;
  if (isWide && recall("panel", false)) panel.hidden = false;
  noteChange();
}
