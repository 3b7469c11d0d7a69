// Talking with the server: requests with the form token of the session, and the figures on top of the page.
//
// A figure that changed is told by a `figures` event on the page's <main>, with what they were and what they are.

import { parse } from "./telling.js";

const judge = document.querySelector(".judge");
const { slug, user } = judge.dataset;
const PATIENCE = 20000;
export const base = `/annotate/${slug}`;

let token = document.getElementById("figures-now").dataset.csrf;

export function formToken() {
  return token;
}

export async function ask(path, fields) {
  const options = { headers: { "HX-Request": "true", "X-CSRF-Token": token }, signal: AbortSignal.timeout(PATIENCE) };
  if (fields) Object.assign(options, { method: "POST", body: new URLSearchParams(fields) });
  const response = await fetch(base + path, options);
  return { status: response.status, ok: response.ok, text: await response.text() };
}

export function showFigures(html) {
  const fresh = parse(html).querySelector("#figures-now");
  if (!fresh || fresh.dataset.user !== user) return;
  const old = document.getElementById("figures-now");
  token = fresh.dataset.csrf;
  if (old.outerHTML === fresh.outerHTML) return;
  const line = document.querySelector(".round-line progress");
  line.max = Number(fresh.dataset.lineMax);
  line.value = Number(fresh.dataset.lineValue);
  line.setAttribute("aria-label", fresh.dataset.lineLabel);
  // Who stands on a figure by the keyboard stays there.
  const held = [...old.children].findIndex((one) => one === document.activeElement);
  old.replaceWith(fresh);
  if (held >= 0) fresh.children[held]?.focus({ preventScroll: true });
  judge.dispatchEvent(new CustomEvent("figures", { detail: { before: old.dataset, now: fresh.dataset } }));
}

// Who is signed in now? Takes over the form token of a new session of the same person.
export async function renew() {
  let answer;
  try {
    answer = await ask("/figures");
  } catch {
    return "unreachable";
  }
  if (answer.status === 401) return "signed-out";
  if (!answer.ok) return answer.status >= 500 ? "unreachable" : "same";
  if (parse(answer.text).querySelector("#figures-now")?.dataset.user !== user) return "other";
  showFigures(answer.text);
  return "same";
}
