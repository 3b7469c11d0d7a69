// The prompts on the page, now and next.
//
//   current    the prompt that is judged; its clock runs from the moment its images are rendered, while the tab is seen
//   upcoming   the next prompts, claimed and their images decoded while the current one is judged
//   aside      prompts put aside while an earlier verdict is changed

import { checkboxes, keepDraft, takeDraft } from "./draft.js";
import { outbox } from "./giving.js";
import { label } from "./keys.js";
import { settle } from "./looking.js";
import { ask, renew } from "./server.js";
import { announce, hint, parse } from "./telling.js";

const AHEAD = 2;
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
const upcoming = [];
const aside = [];
let current = null;
let fetching = null;

export function currentPrompt() {
  return current;
}

// Time

function makeClock(before = 0) {
  let total = 1000 * before;
  let since = null;
  return {
    start() {
      since ??= performance.now();
    },
    stop() {
      if (since !== null) total += performance.now() - since;
      since = null;
    },
    seconds() {
      return (total + (since === null ? 0 : performance.now() - since)) / 1000;
    },
  };
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) current?.clock.stop();
  else if (current?.ready) current.clock.start();
});

// Showing a prompt

function pictures(work) {
  return [...work.querySelectorAll(".picture img")];
}

async function decode(work) {
  await Promise.all(pictures(work).map((picture) => picture.decode()));
  // What is decoded is painted together with the rest of its card.
  for (const picture of pictures(work)) picture.decoding = "sync";
  work.dataset.decoded = "yes";
}

// Resolves behind the paint of what is on the page now.
function painted() {
  return new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(resolve, 0));
  });
}

// `seconds` is what somebody has looked at it already.
export async function show(work, { quietly = false, seconds = 0 } = {}) {
  const isCard = Boolean(work.dataset.assignment);
  current = isCard
    ? { work, assignment: work.dataset.assignment, verdict: work.dataset.verdict, ready: false, clock: makeClock(seconds) }
    : null;
  if (work.parentElement !== stage) stage.replaceChildren(work);
  // What was decoded ahead is there in a frame: nothing needs to be shown as waiting for it.
  judge.dataset.state = !isCard ? "empty" : work.dataset.decoded ? "swapping" : "waiting";
  if (isCard) {
    takeDraft(work);
    settle(work);
  }
  if (!quietly) {
    work.querySelector("#question").focus({ preventScroll: true });
    if (isCard && !work.dataset.verdict) announce(`Next prompt, ${checkboxes().length} candidates`);
  }
  if (!isCard) return;
  const rendering = render(current);
  // A verdict on its way brings the next prompt along; it is asked for where none is there yet.
  if (!upcoming.length || !outbox.size) prefetch();
  await rendering;
}

export async function render(shown) {
  const problem = shown.work.querySelector(".picture-problem");
  try {
    if (!shown.work.dataset.decoded) await decode(shown.work);
    problem.hidden = true;
    await painted();
  } catch {
    problem.hidden = false;
    return;
  }
  if (shown.work.classList.contains("blurred")) {
    if (shown === current) judge.dataset.state = "blurred";
    return;
  }
  shown.ready = true;
  if (shown !== current) return;
  judge.dataset.state = "judging";
  if (!document.hidden) shown.clock.start();
}

export function reveal() {
  if (!current?.work.classList.contains("blurred")) return;
  current.work.classList.remove("blurred");
  current.work.querySelector(".reveal")?.remove();
  current.work.querySelector("#question").focus({ preventScroll: true });
  render(current);
}

export function loadImagesAgain() {
  for (const picture of pictures(current.work)) picture.src = picture.getAttribute("src");
  render(current);
}

// Whether a verdict may be given now; says why not.
export function mayJudge() {
  if (!current) return false;
  if (current.ready) return true;
  const isBlurred = judge.dataset.state === "blurred";
  hint(isBlurred ? `The image is blurred: press ${label("reveal")} to see it first.` : "The image is not there yet: a verdict needs it.");
  return false;
}

// The next prompts

function known() {
  const ids = [current?.assignment, ...[...upcoming, ...aside].map((one) => one.dataset.assignment)];
  return [...new Set([...ids, ...outbox.about()].filter(Boolean))].map((id) => ["known", id]);
}

export function lacksNext() {
  return !current || upcoming.length === 0;
}

export function prefetch() {
  if (upcoming.length >= AHEAD) return Promise.resolve();
  fetching ??= fetchNext().then((found) => {
    fetching = null;
    if (found) prefetch();
  });
  return fetching;
}

async function fetchNext() {
  const work = await claim();
  if (work?.dataset.empty && !current) showEmpty(work);
  return take(work);
}

// Takes in a prompt that the server sent. Whether it did.
export function take(work) {
  if (!work?.dataset.assignment) return false;
  // Meanwhile it may have been judged here: then it is no next one.
  if (known().some(([, id]) => id === work.dataset.assignment)) return false;
  if (!current) {
    show(work);
    return true;
  }
  upcoming.push(work);
  decode(work)
    .then(tellAhead)
    .catch(() => {
      // It is tried again, and said, when the prompt is shown.
    });
  return true;
}

// How many prompts can be shown without the network.
function tellAhead() {
  judge.dataset.ahead = String(upcoming.filter((work) => work.dataset.decoded).length);
}

// What a verdict takes along, so that its answer can bring the next prompt.
export function whatIsKnown() {
  return upcoming.length < AHEAD ? [["room", "yes"], ...known()] : [];
}

async function claim() {
  let answer;
  try {
    answer = await ask("/next", known());
  } catch {
    return null;
  }
  if (answer.status === 401) outbox.hold();
  if (answer.status === 403 && ["signed-out", "other"].includes(await renew())) outbox.hold();
  return answer.ok ? parse(answer.text).querySelector("#work") : null;
}

function showEmpty(work) {
  const before = stage.querySelector("#work");
  if (before?.dataset.empty && before.textContent === work.textContent) return;
  show(work, { quietly: Boolean(before?.dataset.empty) && before.dataset.empty === work.dataset.empty });
}

export async function advance() {
  const next = aside.pop() ?? upcoming.shift();
  tellAhead();
  if (next) {
    await show(next);
    return;
  }
  current = null;
  judge.dataset.state = "empty";
  // A claim that is under way was asked with what was judged as known: its answer is the next prompt.
  await prefetch();
  if (!current) await prefetch();
  if (!current && !stage.querySelector("[data-empty]")) stage.replaceChildren(lookingFor());
}

function lookingFor() {
  const work = document.createElement("section");
  work.id = "work";
  work.className = "empty nothing";
  work.dataset.empty = "looking";
  const title = document.createElement("h1");
  title.id = "question";
  title.tabIndex = -1;
  title.textContent = navigator.onLine ? "Looking for the next prompt…" : "No connection";
  const text = document.createElement("p");
  text.textContent = "It appears here by itself. What you judged is kept and sent.";
  work.append(title, text);
  return work;
}

export function putAside() {
  keepDraft();
  current.clock.stop();
  aside.push(current.work);
}

// What is held, and what of it is lost

export function heldClaims() {
  const works = [...upcoming, ...aside].map((one) => one.dataset.assignment);
  return [current?.verdict ? null : current?.assignment, ...works].filter(Boolean);
}

export function lose(lost, isUntouched) {
  const before = upcoming.length;
  upcoming.splice(0, before, ...upcoming.filter((work) => !lost.includes(work.dataset.assignment)));
  tellAhead();
  if (upcoming.length < before) prefetch();
  if (current && lost.includes(current.assignment) && isUntouched()) advance();
}
