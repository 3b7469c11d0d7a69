// Verdicts that the server has not confirmed yet. They are kept in the browser's storage under the person's id, oldest
// first, so that they survive a lost connection, a restart of the server and a reload. The last ones that it has
// confirmed are known too: one may be answered while a reload that was asked for before still brings its prompt.

import { readStored, storageKey, store } from "./storage.js";

export const PENDING_KEY = storageKey("outbox");
const MAX_JUDGED = 20;
let memory = [];

// Each item is {key, url, fields, about}: `about` is its assignment.
export function readPending() {
  try {
    memory = JSON.parse(localStorage.getItem(PENDING_KEY) ?? "[]");
  } catch {
    // Storage is disabled: the items last as long as the page.
  }
  return memory;
}

export function writePending(items) {
  memory = items;
  try {
    localStorage.setItem(PENDING_KEY, JSON.stringify(items));
  } catch {
    // As above.
  }
}

export function countPending() {
  return readPending().length;
}

export function pendingAssignments() {
  return readPending().map((item) => item.about);
}

export function noteJudged(assignment) {
  store("judged", [...readStored("judged", []), assignment].slice(-MAX_JUDGED));
}

// Whether a verdict on it was given in this browser: a pending one, or one of the last that the server has confirmed.
export function wasJudged(assignment) {
  return [...pendingAssignments(), ...readStored("judged", [])].includes(assignment);
}
