// The cards of prompts on the page: the current one, the next ones, and those set aside.
//
//   current    the card that is judged; its clock runs from the moment its images are painted, while the tab is visible
//   upcoming   the next cards, claimed and with their images decoded while the current one is judged
//   aside      cards set aside while an earlier verdict is changed

import { announce, hint } from "./announce.js";
import { prepareCard } from "./card_view.js";
import { makeClock } from "./clock.js";
import { checkboxes, restoreDraft, saveDraft } from "./draft.js";
import { keyLabel } from "./keys.js";
import { countPending, pendingAssignments } from "./pending.js";
import { parseHtml, request } from "./server.js";
import { checkSession, pauseSending } from "./session.js";

const MAX_UPCOMING = 2;
const { startLooking, isSeen } = window.illume;
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
const upcoming = [];
const aside = [];
let current = null;
let fetching = null;

// {element, assignment, verdict, isReady, clock}, or null where there is nothing to judge.
export function currentCard() {
  return current;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) current?.clock.stop();
  else if (current?.isReady) current.clock.start();
});

// Showing a card

function imagesIn(element) {
  return [...element.querySelectorAll(".picture img")];
}

async function decodeImages(element) {
  const images = imagesIn(element);
  await Promise.all(images.map((image) => image.decode()));
  // A decoded image is painted in the same frame as the rest of its card.
  for (const image of images) image.decoding = "sync";
  element.dataset.decoded = "yes";
}

// Resolves after the browser has painted what is on the page now.
function nextPaint() {
  return new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(resolve, 0));
  });
}

// `seconds` is the time that the person has looked at it before.
export async function showCard(element, { quietly = false, seconds = 0 } = {}) {
  const isCard = Boolean(element.dataset.assignment);
  current = isCard
    ? {
        element,
        assignment: element.dataset.assignment,
        verdict: element.dataset.verdict,
        isReady: false,
        clock: makeClock(seconds),
      }
    : null;
  if (element.parentElement !== stage) stage.replaceChildren(element);
  startLooking(judge);
  // A card whose images are decoded appears within a frame and needs no sign of waiting.
  judge.dataset.state = !isCard ? "empty" : element.dataset.decoded ? "swapping" : "waiting";
  if (isCard) {
    restoreDraft(element);
    prepareCard(element);
    judge.dispatchEvent(new CustomEvent("shown", { detail: { card: current } }));
  }
  if (!quietly) {
    element.querySelector("#question").focus({ preventScroll: true });
    if (isCard && "blind" in element.dataset) announce(gettext("Next prompt: rate the picture"));
    else if (isCard && !element.dataset.verdict) announce(ngettext("Next prompt, %(num)s explanation", "Next prompt, %(num)s explanations", checkboxes().length));
  }
  if (!isCard) return;
  const rendering = renderImages(current);
  // The answer to a pending verdict brings the next prompt; only without one does the page ask for it.
  if (!upcoming.length || !countPending()) prefetch();
  await rendering;
}

async function renderImages(card) {
  const problem = card.element.querySelector(".picture-problem");
  try {
    if (!card.element.dataset.decoded) await decodeImages(card.element);
    problem.hidden = true;
    await nextPaint();
  } catch {
    problem.hidden = false;
    return;
  }
  if (card.element.classList.contains("blurred")) {
    if (card === current) judge.dataset.state = "blurred";
    return;
  }
  card.isReady = true;
  if (card !== current) return;
  startLooking(judge);
  judge.dataset.state = "judging";
  if (!document.hidden) card.clock.start();
}

export function revealImages() {
  if (!current?.element.classList.contains("blurred")) return;
  current.element.classList.remove("blurred");
  current.element.querySelector(".reveal")?.remove();
  current.element.querySelector("#question").focus({ preventScroll: true });
  renderImages(current);
}

export function reloadImages() {
  for (const image of imagesIn(current.element)) image.src = image.getAttribute("src");
  renderImages(current);
}

// Whether the card has been there for long enough to be meant by what is pressed.
export function isCardSeen() {
  return Boolean(current) && isSeen(judge);
}

// Whether a verdict may be given now. Says why not, but for a card that has only just appeared.
export function canJudge() {
  if (!isCardSeen()) return false;
  if (current.isReady) return true;
  const isBlurred = judge.dataset.state === "blurred";
  if (isBlurred) hint(gettext("The image is blurred. Press %(key)s to see it first.", { key: keyLabel("reveal") }));
  else hint(gettext("The image is still loading. Please wait until you can see it."));
  return false;
}

// The next cards

// The assignments that the server must not send again.
function knownFields() {
  const ids = [current?.assignment, ...[...upcoming, ...aside].map((element) => element.dataset.assignment)];
  return [...new Set([...ids, ...pendingAssignments()].filter(Boolean))].map((id) => ["known", id]);
}

export function lacksNext() {
  return !current || upcoming.length === 0;
}

export function prefetch() {
  if (upcoming.length >= MAX_UPCOMING) return Promise.resolve();
  fetching ??= fetchNext().then((added) => {
    fetching = null;
    if (added) prefetch();
  });
  return fetching;
}

async function fetchNext() {
  const element = await claim();
  if (element?.dataset.empty && !current) showEmpty(element);
  return addCard(element);
}

// Adds a card that the server sent. Whether it was added.
export function addCard(element) {
  if (!element?.dataset.assignment) return false;
  // It may have been judged on this page in the meantime.
  if (knownFields().some(([, id]) => id === element.dataset.assignment)) return false;
  if (!current) {
    showCard(element);
    return true;
  }
  upcoming.push(element);
  decodeImages(element)
    .then(publishDecoded)
    .catch(() => {
      // Decoding is tried again when the card is shown, which then reports the problem.
    });
  return true;
}

// Publishes in the markup how many cards can be shown without the network.
function publishDecoded() {
  judge.dataset.ahead = String(upcoming.filter((element) => element.dataset.decoded).length);
}

// The fields that a verdict is sent with, so that its answer can contain the next prompt.
export function fieldsForNext() {
  return upcoming.length < MAX_UPCOMING ? [["room", "yes"], ...knownFields()] : [];
}

async function claim() {
  let answer;
  try {
    answer = await request("/next", knownFields());
  } catch {
    return null;
  }
  if (answer.status === 401) pauseSending();
  if (answer.status === 403 && ["signed-out", "other"].includes(await checkSession())) pauseSending();
  return answer.ok ? parseHtml(answer.text).querySelector("#work") : null;
}

function showEmpty(element) {
  const before = stage.querySelector("#work");
  if (before?.dataset.empty && before.textContent === element.textContent) return;
  showCard(element, { quietly: Boolean(before?.dataset.empty) && before.dataset.empty === element.dataset.empty });
}

export async function showNext() {
  const next = aside.pop() ?? upcoming.shift();
  publishDecoded();
  if (next) {
    await showCard(next);
    return;
  }
  current = null;
  judge.dataset.state = "empty";
  // A claim that is under way excludes the judged prompt already: its answer is the next one. If it brings none, ask again.
  await prefetch();
  if (!current) await prefetch();
  if (!current && !stage.querySelector("[data-empty]")) stage.replaceChildren(makeWaitingNote());
}

function makeWaitingNote() {
  const element = document.createElement("section");
  element.id = "work";
  element.className = "empty nothing";
  element.dataset.empty = "looking";
  const title = document.createElement("h1");
  title.id = "question";
  title.tabIndex = -1;
  title.textContent = navigator.onLine ? gettext("Looking for the next prompt…") : gettext("No connection");
  const text = document.createElement("p");
  text.textContent = gettext("It will appear here automatically. Your verdicts are kept and will be sent.");
  element.append(title, text);
  return element;
}

export function setAside() {
  saveDraft();
  current.clock.stop();
  aside.push(current.element);
}

// Open claims

export function openClaims() {
  const others = [...upcoming, ...aside].map((element) => element.dataset.assignment);
  return [current?.verdict ? null : current?.assignment, ...others].filter(Boolean);
}

// Drops the cards whose claims have lapsed. The current one stays where the person has begun to judge it.
export function dropLapsed(lapsed, isUntouched) {
  const before = upcoming.length;
  upcoming.splice(0, before, ...upcoming.filter((element) => !lapsed.includes(element.dataset.assignment)));
  publishDecoded();
  if (upcoming.length < before) prefetch();
  if (current && lapsed.includes(current.assignment) && isUntouched()) showNext();
}
