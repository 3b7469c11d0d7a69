// The critic's page: where it starts, and what runs in the background.
//
// The server renders every prompt as a fragment (templates/judging/_card.html). These modules do what hypertext cannot:
// keyboard shortcuts, the time a verdict took, the next prompt without delay, and losing nothing. Imports go downwards
// in this list, never upwards:
//
//   controls                    what buttons and keys do
//   submit                      giving a verdict
//   fields                      rating the picture before explanations show, and correcting it
//   back                        going back to an earlier verdict
//   outbox                      sends verdicts to the server
//   cards                       the current prompt and the next ones
//   session                     the figures, and who is signed in
//   pending, save_state         verdicts to be sent, and the indicator that tells of them
//   differences, edit           comparing candidates, editing one
//   card_view, clock            folding and zooming, the stopwatch
//   day, instructions           the critic's day, the panel of instructions
//   draft, keys                 the verdict being prepared, keyboard shortcuts
//   word_diff, zoom             comparing texts, zooming an image
//   announce, server, storage   messages, requests, local storage
//
// How keys are called is decided in static/key_names.js, for all pages.

import { currentCard, dropLapsed, lacksNext, openClaims, prefetch, showCard, showNext } from "./cards.js";
import { startControls } from "./controls.js";
import { noteActivity, reportCredit, reportRounds, startDay } from "./day.js";
import { isUntouched } from "./draft.js";
import { reloadInstructions, startInstructions } from "./instructions.js";
import { startKeys } from "./keys.js";
import { flush, resumeAfterSignIn } from "./outbox.js";
import { countPending, wasJudged } from "./pending.js";
import { saveState } from "./save_state.js";
import { request } from "./server.js";
import { checkSession, pauseSending } from "./session.js";

const PREFETCH_EVERY = 2000;
const FIGURES_EVERY = 15000;
const IDLE_AFTER = 60000;
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
const leaseMs = Number(judge.dataset.leaseSeconds) * 1000;
const HEARTBEAT_EVERY = Math.max(1000, leaseMs / 3);
let lastActive = Date.now();

// Extends the open claims while somebody is active in this tab, and drops those that have lapsed.
async function sendHeartbeat() {
  if (document.hidden || Date.now() - lastActive > HEARTBEAT_EVERY) return;
  const ids = openClaims();
  if (!ids.length) return;
  const answer = await request("/heartbeat", ids.map((id) => ["held", id])).catch(() => null);
  if (answer?.ok) dropLapsed(answer.text.split(" "), isUntouched);
}

function watchActivity() {
  for (const kind of ["keydown", "pointerdown"]) {
    document.addEventListener(kind, () => {
      const idle = Date.now() - lastActive;
      lastActive = Date.now();
      noteActivity();
      if (idle > leaseMs / 3) sendHeartbeat();
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) sendHeartbeat();
  });
  window.addEventListener("focus", resumeAfterSignIn);
}

function watchFigures() {
  judge.addEventListener("figures", (event) => {
    const { before, now } = event.detail;
    reportRounds(before, now);
    if (before.revision !== now.revision) reloadInstructions();
  });
}

function startTimers() {
  setInterval(sendHeartbeat, HEARTBEAT_EVERY);
  setInterval(async () => {
    if (document.hidden || saveState() !== "saved") return;
    if ((await checkSession()) === "signed-out") pauseSending();
  }, FIGURES_EVERY);
  setInterval(() => {
    const isNeeded = !currentCard() || (lacksNext() && Date.now() - lastActive < IDLE_AFTER);
    if (!document.hidden && isNeeded && saveState() !== "signed-out") prefetch();
  }, PREFETCH_EVERY);
}

function start() {
  startControls();
  watchActivity();
  watchFigures();
  startTimers();
  startKeys();
  startInstructions();
  startDay();
  const element = stage.querySelector("#work");
  // After a reload the server may send a prompt that was judged here, before it has stored the verdict. Where it is open
  // all the same, it comes again.
  if (!element.dataset.verdict && wasJudged(element.dataset.assignment)) showNext();
  else showCard(element, { quietly: true });
  if (countPending()) flush();
  setTimeout(reportCredit, 1000);
}

start();
