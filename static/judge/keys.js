// Keys: which one does what. Each but the numbers can be another one; a key that is taken is refused.

import { keep, recall } from "./kept.js";
import { ask } from "./server.js";
import { announce } from "./telling.js";

// Numbers pick candidates; the others have their meaning everywhere, or move the image.
const TAKEN = /^([1-9]|Escape|Tab|[-+= ]|Arrow.*|Page.*|Home|End|Shift|Control|Alt|Meta|AltGraph|CapsLock|Dead|Process|Unidentified|F[0-9]+)$/;
const dialog = document.getElementById("keys-dialog");
const FIRST = Object.fromEntries(
  [...dialog.querySelectorAll("[data-action]")].map((line) => [line.dataset.action, line.dataset.first]),
);
const switchedOn = document.getElementById("keys-on");
let map = { ...FIRST };
let changing = "";

// A key's name: digits by their place on the keyboard, so that they work on every layout; letters in lower case.
export function nameOf(event) {
  const digit = digitOf(event);
  if (digit !== undefined && !(event.shiftKey && !/^[0-9]$/.test(event.key))) return digit;
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

export function digitOf(event) {
  return /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1] ?? (/^[0-9]$/.test(event.key) ? event.key : undefined);
}

export function actionOf(name) {
  return Object.keys(map).find((action) => map[action] === name);
}

function written(name) {
  return name.length === 1 ? name.toUpperCase() : name;
}

export function label(action) {
  return written(map[action]);
}

// Shows the keys that are in force on what is on the page.
export function relabel(root = document) {
  for (const place of root.querySelectorAll("kbd[data-key]")) {
    const words = label(place.dataset.key);
    if (place.textContent !== words) place.textContent = words;
  }
}

export function areOn() {
  return switchedOn.checked;
}

// Changing them

function say(text) {
  dialog.querySelector("[data-problem]").textContent = text;
}

function leaveChange() {
  dialog.querySelector(".is-changing")?.classList.remove("is-changing");
  changing = "";
}

function describe(action) {
  return dialog.querySelector(`[data-action="${action}"] .does`).textContent.split(/[,;:]/)[0];
}

function use(name) {
  const owner = actionOf(name);
  if (TAKEN.test(name)) {
    say(`${written(name)} cannot be used: it has its own meaning on this page or in the browser.`);
    return;
  }
  if (owner && owner !== changing) {
    say(`${written(name)} is taken: it means “${describe(owner)}”. Give that another key first.`);
    return;
  }
  map[changing] = name;
  save();
  announce(`${written(name)} now means ${describe(changing)}`);
  leaveChange();
}

function chosen() {
  return Object.fromEntries(Object.entries(map).filter(([action, name]) => FIRST[action] !== name));
}

function save() {
  keep("keys-unsent", chosen());
  say("");
  relabel();
  send();
}

// They are kept with the person; what could not be sent is sent when the page is opened the next time.
async function send() {
  const keys = recall("keys-unsent");
  if (!keys) return;
  const answer = await ask("/keys", Object.entries(keys)).catch(() => null);
  const isKept = answer?.ok || answer?.status === 422;
  if (isKept && JSON.stringify(recall("keys-unsent")) === JSON.stringify(keys)) keep("keys-unsent", null);
}

export function resetKeys() {
  map = { ...FIRST };
  leaveChange();
  save();
  announce("The keys are as they were at first.");
}

export function startKeys() {
  const kept = recall("keys-unsent", JSON.parse(dialog.dataset.chosen));
  for (const action of Object.keys(FIRST)) {
    if (typeof kept[action] === "string" && !TAKEN.test(kept[action])) map[action] = kept[action];
  }
  // Two of a kind can only come from elsewhere: then none of the changes counts.
  if (new Set(Object.values(map)).size < Object.keys(map).length) map = { ...FIRST };
  switchedOn.checked = recall("keys-on", true);
  switchedOn.addEventListener("change", () => keep("keys-on", switchedOn.checked));
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("[data-change-key]");
    if (!button) return;
    leaveChange();
    const line = button.closest("[data-action]");
    line.classList.add("is-changing");
    changing = line.dataset.action;
    say(`Press the new key for “${describe(changing)}”, or Escape.`);
  });
  dialog.addEventListener(
    "keydown",
    (event) => {
      if (!changing || ["Shift", "Control", "Alt", "Meta", "AltGraph"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key === "Escape" || event.key === "Tab") {
        leaveChange();
        say("");
      } else use(nameOf(event));
    },
    { capture: true },
  );
  dialog.addEventListener("close", () => {
    leaveChange();
    say("");
  });
  relabel();
  send();
}
