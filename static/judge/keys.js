// Keyboard shortcuts: which key does what. All but the numbers can be changed; a key that is in use is refused.
// Letters that no shortcut uses choose the tenth explanation and those after it.

import { announce } from "./announce.js";
import { request } from "./server.js";
import { readStored, store } from "./storage.js";

// Numbers pick candidates; the other keys have a fixed meaning in browsers, or move the image.
const RESERVED = /^([1-9]|Escape|Tab|[-+= ]|Arrow.*|Page.*|Home|End|Shift|Control|Alt|Meta|AltGraph|CapsLock|Dead|Process|Unidentified|F[0-9]+)$/;
const { choiceKeys, keyName, keyNames, labelChoices } = window.illume;
const dialog = document.getElementById("keys-dialog");
const DEFAULTS = Object.fromEntries(
  [...dialog.querySelectorAll("[data-action]")].map((row) => [row.dataset.action, row.dataset.first]),
);
const enabledBox = document.getElementById("keys-on");
let keyOf = { ...DEFAULTS };
let changing = "";

// The action of a key with these names. What it types counts before its place: it may have been chosen by that.
export function actionFor(names) {
  return names.map((name) => Object.keys(keyOf).find((action) => keyOf[action] === name)).find(Boolean);
}

// The place in a list, from 1, that a key with these names chooses; 0 for none.
export function choiceNumber(names) {
  const keys = choiceKeys(Object.values(keyOf));
  return names.map((name) => keys.indexOf(name) + 1).find(Boolean) ?? 0;
}

function displayName(name) {
  return name.length === 1 ? name.toUpperCase() : name;
}

// The key of an action, as pages show it.
export function keyLabel(action) {
  return displayName(keyOf[action]);
}

// Writes the current keys into the page's labels.
export function updateKeyLabels(root = document) {
  for (const place of root.querySelectorAll("kbd[data-key]")) {
    const text = keyLabel(place.dataset.key);
    if (place.textContent !== text) place.textContent = text;
  }
  labelChoices(root, choiceKeys(Object.values(keyOf)));
}

export function keysAreEnabled() {
  return enabledBox.checked;
}

// Changing keys

function showMessage(text) {
  dialog.querySelector("[data-problem]").textContent = text;
}

function stopChanging() {
  dialog.querySelector(".is-changing")?.classList.remove("is-changing");
  changing = "";
}

function describe(action) {
  return dialog.querySelector(`[data-action="${action}"]`).dataset.short;
}

function assignKey(event) {
  const name = keyName(event);
  if (!name) return;
  const owner = actionFor(keyNames(event));
  if (RESERVED.test(name)) {
    showMessage(gettext("%(key)s cannot be used: this page or your browser already uses it.", { key: displayName(name) }));
    return;
  }
  if (owner && owner !== changing) {
    const taken = { key: displayName(keyOf[owner]), action: describe(owner) };
    showMessage(gettext("%(key)s is already used to “%(action)s”. Change that shortcut first.", taken));
    return;
  }
  keyOf[changing] = name;
  saveKeys();
  announce(gettext("New shortcut %(key)s: %(action)s", { key: displayName(name), action: describe(changing) }));
  stopChanging();
}

function changedKeys() {
  return Object.fromEntries(Object.entries(keyOf).filter(([action, name]) => DEFAULTS[action] !== name));
}

function saveKeys() {
  store("keys-unsent", changedKeys());
  showMessage("");
  updateKeyLabels();
  sendKeys();
}

// The server keeps them with the account. What could not be sent is sent when the page is opened the next time.
async function sendKeys() {
  const keys = readStored("keys-unsent");
  if (!keys) return;
  const answer = await request("/keys", Object.entries(keys)).catch(() => null);
  const isDone = answer?.ok || answer?.status === 422;
  if (isDone && JSON.stringify(readStored("keys-unsent")) === JSON.stringify(keys)) store("keys-unsent", null);
}

export function resetKeys() {
  keyOf = { ...DEFAULTS };
  stopChanging();
  saveKeys();
  announce(gettext("Shortcuts reset to defaults"));
}

export function startKeys() {
  const saved = readStored("keys-unsent", JSON.parse(dialog.dataset.chosen));
  for (const action of Object.keys(DEFAULTS)) {
    if (typeof saved[action] === "string" && !RESERVED.test(saved[action])) keyOf[action] = saved[action];
  }
  // This page never saves one key for two actions. If the saved keys do so, the defaults are used.
  if (new Set(Object.values(keyOf)).size < Object.keys(keyOf).length) keyOf = { ...DEFAULTS };
  enabledBox.checked = readStored("keys-on", true);
  enabledBox.addEventListener("change", () => store("keys-on", enabledBox.checked));
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("[data-change-key]");
    if (!button) return;
    stopChanging();
    const row = button.closest("[data-action]");
    row.classList.add("is-changing");
    changing = row.dataset.action;
    showMessage(gettext("Press the new key for “%(action)s”, or Escape.", { action: describe(changing) }));
  });
  dialog.addEventListener(
    "keydown",
    (event) => {
      if (!changing || ["Shift", "Control", "Alt", "Meta", "AltGraph"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      if (["Escape", "Tab"].includes(keyName(event))) {
        stopChanging();
        showMessage("");
      } else assignKey(event);
    },
    { capture: true },
  );
  dialog.addEventListener("close", () => {
    stopChanging();
    showMessage("");
  });
  updateKeyLabels();
  sendKeys();
}
