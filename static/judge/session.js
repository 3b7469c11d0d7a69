// The session: the figures at the top of the page, who is signed in, and whether sending is paused until they sign in again.
//
// When a figure changes, a `figures` event with the old and the new values is sent to the page's <main>.

import { countPending } from "./pending.js";
import { showSaveState } from "./save_state.js";
import { parseHtml, request, setFormToken } from "./server.js";

const judge = document.querySelector(".judge");
const { user } = judge.dataset;
let isPaused = false;

// Shows the figures in an answer, and takes over its form token.
export function updateFigures(html) {
  const fresh = parseHtml(html).querySelector("#figures-now");
  if (!fresh || fresh.dataset.user !== user) return;
  const old = document.getElementById("figures-now");
  setFormToken(fresh.dataset.csrf);
  if (old.outerHTML === fresh.outerHTML) return;
  const progress = document.querySelector(".round-line progress");
  progress.max = Number(fresh.dataset.lineMax);
  progress.value = Number(fresh.dataset.lineValue);
  progress.setAttribute("aria-label", fresh.dataset.lineLabel);
  // A figure that has the keyboard focus keeps it.
  const focused = [...old.children].findIndex((figure) => figure === document.activeElement);
  old.replaceWith(fresh);
  if (focused >= 0) fresh.children[focused]?.focus({ preventScroll: true });
  judge.dispatchEvent(new CustomEvent("figures", { detail: { before: old.dataset, now: fresh.dataset } }));
}

// Asks who is signed in: "same" person, "other", "signed-out" or "unreachable". Takes over the form token of a new
// session of the same person.
export async function checkSession() {
  let answer;
  try {
    answer = await request("/figures");
  } catch {
    return "unreachable";
  }
  if (answer.status === 401) return "signed-out";
  if (!answer.ok) return answer.status >= 500 ? "unreachable" : "same";
  if (parseHtml(answer.text).querySelector("#figures-now")?.dataset.user !== user) return "other";
  updateFigures(answer.text);
  return "same";
}

// Nothing is sent while nobody, or another person, is signed in.
export function pauseSending() {
  isPaused = true;
  showSaveState("signed-out", countPending());
}

export function unpauseSending() {
  isPaused = false;
}

export function isSendingPaused() {
  return isPaused;
}
