// A critic's day: what rounds and versions do, what the picks trained, and a break now and then.

import { keep, recall } from "./kept.js";
import { ask } from "./server.js";
import { parse, toast } from "./telling.js";

const PAUSE = 5 * 60 * 1000;
const LOOK = 15 * 1000;
const FIRST_BREAK = 50;
const dialog = document.getElementById("day-dialog");
const place = document.getElementById("day");
const minutes = document.getElementById("break-minutes");
const { slug } = document.querySelector(".judge").dataset;
let since = Date.now();
let lastActive = Date.now();

async function load() {
  const answer = await ask("/day").catch(() => null);
  const fresh = answer?.ok ? parse(answer.text).querySelector("#day-now") : null;
  if (fresh) place.replaceChildren(fresh);
  return fresh;
}

export function openDay() {
  dialog.showModal();
  load();
}

// Says once what the newest round made of the critic's picks.
export async function tellCredit() {
  const fresh = await load();
  const latest = fresh?.dataset.latest;
  if (!latest || recall(`credited.${slug}`) === latest) return;
  keep(`credited.${slug}`, latest);
  toast(`${fresh.querySelector("[data-credit]").textContent}.`, "good");
}

export function onFigures(before, now) {
  if (before.round !== now.round && now.round) {
    toast(`${now.round} has started: it trains on what was picked.`, "good");
  }
  if (before.version !== now.version && before.version) {
    toast(`${now.version} is active now: new candidates come from it.`, "good");
  }
  if (before.round && before.round !== now.round) tellCredit();
}

// A break

export function wasActive() {
  const now = Date.now();
  if (now - lastActive > PAUSE) since = now;
  lastActive = now;
}

function remind() {
  const wanted = Number(minutes.value) * 60 * 1000;
  if (!wanted || Date.now() - since < wanted || Date.now() - lastActive > PAUSE) return;
  since = Date.now();
  toast(`You have judged for ${minutes.value} minutes. A short break keeps the eye fresh; “Your day” turns this reminder off.`, "note");
}

export function startDay() {
  minutes.value = String(recall("break", FIRST_BREAK));
  minutes.addEventListener("change", () => keep("break", Number(minutes.value)));
  setInterval(remind, LOOK);
}
