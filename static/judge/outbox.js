// The outbox: sends pending verdicts to the server.
//
// A verdict enters the outbox the moment it is given. It is sent in the background, oldest first, and stays there until
// the server has answered for good. Every item has an idempotency key, so that the server stores it at most once. Items
// are sent only while the person who gave them is signed in.
//
// What an answer means:
//   2xx                       saved: removed from the outbox
//   401, or another person    kept until the person has signed in again
//   403                       the form token may belong to an older session: it is renewed once, then the item is refused
//   408, 425, 429, 5xx, none  retried with exponential backoff (at most half a minute)
//   any other 4xx             refused: removed from the outbox, and the page says why
//
// A pending verdict can be taken back. If it was sent before, the server may have stored it although its answer was
// lost. The verdict given instead is therefore sent with `again`, and the server then takes it as a change.

import { toast } from "./announce.js";
import { addCard, fieldsForNext, lacksNext, prefetch } from "./cards.js";
import { PENDING_KEY, countPending, noteJudged, readPending, writePending } from "./pending.js";
import { closeSignedOutDialog, saveState, showSaveState } from "./save_state.js";
import { formToken, messageIn, parseHtml } from "./server.js";
import { checkSession, isSendingPaused, pauseSending, unpauseSending, updateFigures } from "./session.js";

const TIMEOUT = 20000;
const MAX_BACKOFF = 30000;
const RETRIED = [408, 425, 429];
const MAX_CARDS = 200;
// The cards of pending verdicts, by idempotency key, so that these can be taken back without the server.
const cards = new Map();
let running = null;
let failures = 0;
let timer = 0;
let sending = "";

function makeKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function report(state) {
  showSaveState(state, countPending());
}

function enqueue(item, card) {
  cards.set(item.key, card);
  if (cards.size > MAX_CARDS) cards.delete(cards.keys().next().value);
  writePending([...readPending(), item]);
  report(isSendingPaused() ? "signed-out" : "saving");
  flush();
}

// Adds the verdict that was given on `card`.
export function addVerdict(url, fields, card) {
  enqueue({ key: makeKey(), url, fields, about: card.dataset.assignment }, card);
}

// Removes an item, unless it is being sent at this moment. The item, or null.
function removePending(key) {
  const items = readPending();
  const item = key !== sending && items.find((one) => one.key === key);
  if (!item) return null;
  writePending(items.filter((one) => one !== item));
  if (isSendingPaused() || items.length > 1) report(saveState());
  else report("saved");
  return item;
}

// Takes back the newest pending verdict of this page: {item, card}, or null where there is none.
export function takeBackNewest() {
  for (const [key, card] of [...cards].reverse()) {
    const item = removePending(key);
    if (!item) continue;
    cards.delete(key);
    return { item, card };
  }
  return null;
}

// Puts an item that was taken back at the end of the queue, unchanged.
export function putBack(item, card) {
  enqueue(item, card);
}

export function flush() {
  clearTimeout(timer);
  if (isSendingPaused()) return Promise.resolve();
  running ??= withLock(sendAll).finally(() => {
    running = null;
  });
  return running;
}

// Two tabs of one person share the outbox: only one of them sends at a time.
function withLock(work) {
  return navigator.locks ? navigator.locks.request(PENDING_KEY, work) : work();
}

async function sendAll() {
  for (let item = readPending()[0]; item; item = readPending()[0]) {
    report("saving");
    sending = item.key;
    const outcome = await send(item);
    sending = "";
    if (outcome === "later") return retryLater();
    if (outcome === "signed-out") return pauseSending();
    failures = 0;
    writePending(readPending().filter((other) => other.key !== item.key));
  }
  report("saved");
}

async function send(item, renewed = false) {
  let response;
  let text;
  try {
    response = await fetch(item.url, {
      method: "POST",
      body: new URLSearchParams([...item.fields, ...fieldsForNext()]),
      headers: { "HX-Request": "true", "X-CSRF-Token": formToken(), "Idempotency-Key": item.key },
      signal: AbortSignal.timeout(TIMEOUT),
    });
    text = await response.text();
  } catch {
    return "later";
  }
  if (response.ok) {
    onSaved(item, text);
    return "saved";
  }
  if (response.status === 401) return "signed-out";
  if (response.status >= 500 || RETRIED.includes(response.status)) return "later";
  if (response.status === 403 && !renewed) {
    const who = await checkSession();
    if (who === "same") return send(item, true);
    return who === "unreachable" ? "later" : "signed-out";
  }
  onRefused(item, response.status, text);
  return "refused";
}

function onSaved(item, text) {
  cards.delete(item.key);
  noteJudged(item.about);
  updateFigures(text);
  const message = messageIn(text);
  if (message) toast(message, "warn");
  // The answer contains the next prompt. Where it could not, the claim that has just ended makes room for another one.
  if (!addCard(parseHtml(text).querySelector("#work")) && lacksNext()) prefetch();
}

function onRefused(item, status, text) {
  cards.delete(item.key);
  const typed = item.fields.find(([name]) => name === "rationale")?.[1];
  const sentences = [
    // A conflict says itself which verdict counts.
    status === 409 ? "" : gettext("A verdict could not be saved."),
    messageIn(text) || gettext("The server answered %(status)s.", { status }),
    typed ? gettext("You wrote: “%(text)s”", { text: typed }) : "",
  ];
  toast(sentences.filter(Boolean).join(" "), "bad");
}

function retryLater() {
  failures += 1;
  report("waiting");
  timer = setTimeout(flush, Math.min(MAX_BACKOFF, 1000 * 2 ** (failures - 1)));
}

// Goes on sending once the person has signed in again, perhaps in another tab.
export async function resumeAfterSignIn() {
  if (saveState() !== "signed-out") return;
  if ((await checkSession()) !== "same") return;
  closeSignedOutDialog();
  unpauseSending();
  failures = 0;
  await flush();
  prefetch();
}

window.addEventListener("online", () => flush());
window.addEventListener("storage", (event) => {
  if (event.key === PENDING_KEY && !running) report(countPending() ? "saving" : "saved");
});
