// The critic's day: the dialog with their figures, messages about rounds and versions, and the reminder of a break.

import { toast } from "./announce.js";
import { parseHtml, request } from "./server.js";
import { readStored, store } from "./storage.js";

const BREAK_LENGTH = 5 * 60 * 1000; // so long without activity counts as a break
const CHECK_EVERY = 15 * 1000;
const DEFAULT_MINUTES = 50;
const dialog = document.getElementById("day-dialog");
const content = document.getElementById("day");
const minutesSelect = document.getElementById("break-minutes");
const { slug } = document.querySelector(".judge").dataset;
let workingSince = Date.now();
let lastActive = Date.now();

async function loadDay() {
  const answer = await request("/day").catch(() => null);
  const fresh = answer?.ok ? parseHtml(answer.text).querySelector("#day-now") : null;
  if (fresh) content.replaceChildren(fresh);
  return fresh;
}

export function openDay() {
  dialog.showModal();
  loadDay();
}

// Says once what the newest round made of the critic's picks.
export async function reportCredit() {
  const fresh = await loadDay();
  const latest = fresh?.dataset.latest;
  if (!latest || readStored(`credited.${slug}`) === latest) return;
  store(`credited.${slug}`, latest);
  const credit = fresh.querySelector("[data-credit]");
  const { tone } = credit.dataset;
  // A worse version is news, not an error: the message disappears by itself.
  toast(`${credit.textContent}.`, tone === "bad" ? "warn" : tone || "plain");
}

// Says which round has started and which version is active, by the figures before and now.
export function reportRounds(before, now) {
  if (before.round !== now.round && now.round) {
    toast(gettext("%(round)s has started. It learns from the picks so far.", { round: now.round }), "good");
  }
  if (before.version !== now.version && before.version) {
    toast(gettext("%(version)s is now active and writes the new explanations.", { version: now.version }), "good");
  }
  if (before.round && before.round !== now.round) reportCredit();
  if (Number(now.returned) > Number(before.returned)) {
    toast(gettext("A reviewer asked you to take another look at a verdict. Open it with “Returned to you” at the top."), "warn");
  }
}

// The reminder of a break

export function noteActivity() {
  const now = Date.now();
  if (now - lastActive > BREAK_LENGTH) workingSince = now;
  lastActive = now;
}

function remindOfBreak() {
  const wanted = Number(minutesSelect.value) * 60 * 1000;
  if (!wanted || Date.now() - workingSince < wanted || Date.now() - lastActive > BREAK_LENGTH) return;
  workingSince = Date.now();
  const text = ngettext(
    "You have been judging for %(num)s minute. Time for a short break? “Your day” lets you turn this reminder off.",
    "You have been judging for %(num)s minutes. Time for a short break? “Your day” lets you turn this reminder off.",
    Number(minutesSelect.value),
  );
  toast(text, "note");
}

export function startDay() {
  minutesSelect.value = String(readStored("break", DEFAULT_MINUTES));
  minutesSelect.addEventListener("change", () => store("break", Number(minutesSelect.value)));
  setInterval(remindOfBreak, CHECK_EVERY);
}
