// The panel with the project's instructions. What has changed since the critic read them last is marked.

import { toast } from "./announce.js";
import { parseHtml, request } from "./server.js";
import { readStored, store } from "./storage.js";
import { comparableWords, diffWords, markWords } from "./word_diff.js";

const { slug } = document.querySelector(".judge").dataset;
const stage = document.getElementById("stage");
const panel = document.getElementById("instructions");

function lastRead() {
  return readStored(`read.${slug}`);
}

function currentVersion() {
  return panel.querySelector("#instructions-now").dataset.version;
}

function instructionTexts() {
  return [...panel.querySelectorAll("[data-told]")];
}

export function toggleInstructions() {
  const opens = panel.hidden;
  panel.hidden = !opens;
  store("panel", opens);
  updateButtons();
  if (opens) {
    markAsRead();
    panel.querySelector("#instructions-title").focus({ preventScroll: true });
  } else stage.querySelector("#question")?.focus({ preventScroll: true });
}

function updateButtons() {
  for (const button of document.querySelectorAll('[data-do="instructions"][aria-expanded]')) {
    button.setAttribute("aria-expanded", String(!panel.hidden));
    button.classList.toggle("is-new", hasChanged());
  }
}

function hasChanged() {
  const last = lastRead();
  return last !== null && last.version !== currentVersion();
}

function markAsRead() {
  const last = lastRead();
  if (hasChanged()) {
    const oldWords = comparableWords(last.words);
    for (const element of instructionTexts()) {
      const text = element.textContent;
      const words = comparableWords(text);
      const found = diffWords(words, oldWords);
      if (!found) continue;
      panel.querySelector("[data-changed]").hidden = false;
      markWords(element, text, new Set(found.common ? found.changed : words.keys()));
    }
  }
  rememberAsRead();
  updateButtons();
}

function rememberAsRead() {
  const words = instructionTexts().map((element) => element.textContent.trim()).join("\n");
  store(`read.${slug}`, { version: currentVersion(), words });
}

function reportChange() {
  updateButtons();
  if (!hasChanged()) return;
  if (panel.hidden) toast(gettext("The instructions have changed. Please read them before you go on."), "warn");
  else markAsRead();
}

export async function reloadInstructions() {
  const answer = await request("/instructions").catch(() => null);
  const fresh = answer?.ok ? parseHtml(answer.text).querySelector("#instructions-now") : null;
  if (!fresh || fresh.dataset.version === currentVersion()) return;
  panel.replaceChildren(fresh);
  reportChange();
}

export function startInstructions() {
  const isFirstVisit = lastRead() === null;
  if (isFirstVisit) rememberAsRead();
  const isWide = window.matchMedia("(min-width: 1181px)").matches;
  if (isFirstVisit || (isWide && readStored("panel", false))) panel.hidden = false;
  reportChange();
}
