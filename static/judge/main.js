// The critic's page.
//
// The server renders every prompt as a fragment (templates/judging/_card.html). These modules do what hypertext
// cannot: keys, the time a verdict took, showing the next prompt at once, and not losing anything.
//
//   stage    the prompts on the page, now and next      draft    picks, words and tags of the current one
//   giving   verdicts, and going back                   outbox   verdicts on their way
//   looking  zoom in place, folds, differences          zoom     images, large
//   keys     which key does what                        day      rounds, credits, breaks
//   server   requests and figures                       kept, telling   the browser's storage, saying things

import { onFigures, openDay, startDay, tellCredit, wasActive } from "./day.js";
import { checkboxes, isUntouched, keepDraft, lineOf, picked, setTags, tagsOf, textOf } from "./draft.js";
import { back, edit, forgetEdit, give, isChanging, isSaved, isSignedOut, leaveBack, noneFits, outbox, submit, tryAgain, write } from "./giving.js";
import { actionOf, areOn, digitOf, nameOf, resetKeys, startKeys } from "./keys.js";
import { differences, loadInstructions, moveImage, startInstructions, toggleInstructions, unfold } from "./looking.js";
import { ask, renew } from "./server.js";
import { advance, currentPrompt, heldClaims, lacksNext, loadImagesAgain, lose, mayJudge, prefetch, reveal, show } from "./stage.js";
import { announce } from "./telling.js";
import { makeZoom } from "./zoom.js";

const POLL = 2000;
const FIGURES_EVERY = 15000;
const IDLE = 60000;
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
const about = document.getElementById("about-dialog");
const leaseMs = Number(judge.dataset.leaseSeconds) * 1000;
const BEAT = Math.max(1000, leaseMs / 3);
const zoom = makeZoom(document.getElementById("zoom-dialog"), document.getElementById("zoom-pane"));
let lastActive = Date.now();
let asked = "";

// What keys and buttons do

function toggle(number) {
  const box = checkboxes()[number - 1];
  if (!box) return;
  box.checked = !box.checked;
  keepDraft();
  announce(`${number} ${box.checked ? "picked" : "put back"}`);
}

function openReasons(name) {
  if (name === "skip" ? currentPrompt() : mayJudge()) document.getElementById(`${name}-dialog`).showModal();
}

// Some actions are about one candidate: the one in focus, else the number that is pressed next.
const QUESTIONS = { edit: "Edit which one? Press its number.", lacks: "Which one lacks something? Press its number." };

function askWhich(action) {
  asked = action;
  const place = stage.querySelector("[data-prompting]");
  if (!place) return;
  place.dataset.before ??= place.textContent;
  place.textContent = QUESTIONS[action] ?? place.dataset.before;
  judge.toggleAttribute("data-asking", Boolean(action));
  if (action) announce(QUESTIONS[action]);
}

function focused() {
  return Number(document.activeElement?.closest("[data-candidate]")?.dataset.number ?? 0);
}

function editSome() {
  const chosen = picked();
  const number = focused() || (chosen.length === 1 ? Number(chosen[0].dataset.number) : 0);
  if (number) edit(number);
  else if (checkboxes().length) askWhich("edit");
}

function openAbout(number) {
  const line = lineOf(number);
  if (!line) return;
  about.dataset.number = String(number);
  about.querySelector("[data-number]").textContent = String(number);
  about.querySelector("[data-words]").textContent = textOf(line);
  const tags = tagsOf(line);
  for (const box of tagBoxes()) box.checked = tags.includes(box.value);
  about.showModal();
}

function tagBoxes() {
  return [...about.querySelectorAll('input[name="tag"]')];
}

function keepTags() {
  const line = lineOf(Number(about.dataset.number));
  if (!line) return;
  setTags(line, tagBoxes().filter((box) => box.checked).map((box) => box.value));
  keepDraft();
}

function openZoom(event) {
  const panes = [...stage.querySelectorAll(".picture")];
  if (!panes.length || stage.querySelector(".work.blurred")) {
    reveal();
    return;
  }
  const pane = event?.target.closest(".picture") ?? document.activeElement?.closest(".picture") ?? panes[0];
  zoom.open(panes.map((one) => one.querySelector("img")), panes.indexOf(pane));
}

const actions = {
  submit,
  none: noneFits,
  back,
  write,
  differences,
  unfold,
  reveal,
  edit: editSome,
  lacks: () => (focused() ? openAbout(focused()) : checkboxes().length && askWhich("lacks")),
  skip: () => openReasons("skip"),
  flag: () => openReasons("flag"),
  zoom: openZoom,
  keys: () => document.getElementById("keys-dialog").showModal(),
  instructions: toggleInstructions,
  day: openDay,
  about: (event) => openAbout(Number(event.target.closest("[data-candidate]").dataset.number)),
  "edit-this": () => {
    about.close();
    edit(Number(about.dataset.number));
  },
  "forget-edit": forgetEdit,
  "leave-back": leaveBack,
  "reload-image": loadImagesAgain,
  "reset-keys": resetKeys,
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do], [data-reason]");
  if (!button) return;
  if (button.dataset.do) {
    actions[button.dataset.do](event);
    return;
  }
  const dialog = button.closest("dialog");
  dialog.close();
  if (currentPrompt()) give(dialog.id === "skip-dialog" ? "skipped" : "flagged", button.dataset.reason);
});

// Keys

function inReasons(dialog, event) {
  const reasons = [...dialog.querySelectorAll("[data-reason]")];
  const digit = digitOf(event);
  let choice;
  if (digit) choice = reasons.filter((one) => one.dataset.reason)[Number(digit) - 1];
  else if (event.key === "Enter" && !event.target.closest("button")) choice = reasons.find((one) => !one.dataset.reason);
  choice?.click();
  return Boolean(choice);
}

function inAbout(event) {
  const box = tagBoxes()[Number(digitOf(event) ?? 0) - 1];
  if (box) {
    box.checked = !box.checked;
    keepTags();
  } else if (actionOf(nameOf(event)) === "edit") actions["edit-this"]();
  else if (event.key === "Enter" && !event.target.closest("button")) about.close();
  else return false;
  return true;
}

function inDialog(dialog, event) {
  if (event.ctrlKey || event.metaKey) return false;
  if (dialog === about) return inAbout(event);
  if (dialog.matches(".reasons")) return inReasons(dialog, event);
  if (dialog !== zoom.dialog) return false;
  if (actionOf(nameOf(event)) === "zoom") dialog.close();
  else return zoom.onKey(event.key);
  return true;
}

function onBareKey(event) {
  const name = nameOf(event);
  if (name === "Escape" && asked) askWhich("");
  else if (name === "Escape" && isChanging()) leaveBack();
  else if (/^[1-9]$/.test(name)) {
    const wanted = asked;
    if (wanted) askWhich("");
    if (wanted === "edit") edit(Number(name));
    else if (wanted === "lacks") openAbout(Number(name));
    else toggle(Number(name));
  } else if (name === "Enter" && event.target.closest("button, a, summary")) return false;
  else if (actionOf(name)) {
    if (asked) askWhich("");
    actions[actionOf(name)]();
  } else return moveImage(event.key);
  return true;
}

function onKey(event) {
  if (event.defaultPrevented || event.isComposing || event.altKey) return;
  const dialog = document.querySelector("dialog[open]");
  const typing = event.target.closest('textarea, select, input:not([type="checkbox"])');
  if (dialog) {
    if (!typing && inDialog(dialog, event)) event.preventDefault();
    return;
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) submit();
    return;
  }
  if (typing) {
    if (event.key === "Escape") stage.querySelector("#question").focus({ preventScroll: true });
    return;
  }
  if (event.ctrlKey || event.metaKey || !areOn()) return;
  // A key that is held down moves the image, and gives no second verdict.
  if (event.repeat ? moveImage(event.key) : onBareKey(event)) event.preventDefault();
}

document.addEventListener("keydown", onKey);
// A dialog of reasons opens without any of them chosen, so that Enter does not take the first by accident.
for (const dialog of document.querySelectorAll("dialog.reasons")) {
  dialog.tabIndex = -1;
  dialog.addEventListener("toggle", () => dialog.open && dialog.focus());
}
about.addEventListener("change", keepTags);
stage.addEventListener("input", keepDraft);
stage.addEventListener("submit", (event) => event.preventDefault());

// What goes on by itself

for (const kind of ["keydown", "pointerdown"]) {
  document.addEventListener(kind, () => {
    const idle = Date.now() - lastActive;
    lastActive = Date.now();
    wasActive();
    if (idle > leaseMs / 3) beat();
  });
}
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) beat();
});
window.addEventListener("focus", tryAgain);
judge.addEventListener("figures", (event) => {
  const { before, now } = event.detail;
  onFigures(before, now);
  if (before.revision !== now.revision) loadInstructions();
});

// Keeps what is claimed while somebody is at it in this tab, and finds out what is not ours any more.
async function beat() {
  if (document.hidden || Date.now() - lastActive > BEAT) return;
  const ids = heldClaims();
  if (!ids.length) return;
  const answer = await ask("/heartbeat", ids.map((id) => ["held", id])).catch(() => null);
  if (answer?.ok) lose(answer.text.split(" "), isUntouched);
}

setInterval(beat, BEAT);
setInterval(async () => {
  if (document.hidden || !isSaved()) return;
  if ((await renew()) === "signed-out") outbox.hold();
}, FIGURES_EVERY);
setInterval(() => {
  const wanted = !currentPrompt() || (lacksNext() && Date.now() - lastActive < IDLE);
  if (!document.hidden && wanted && !isSignedOut()) prefetch();
}, POLL);

async function start() {
  startKeys();
  startInstructions();
  startDay();
  const work = stage.querySelector("#work");
  // A reload may bring back what was judged here and is still on its way.
  if (outbox.about().includes(work.dataset.assignment)) advance();
  else show(work, { quietly: true });
  if (outbox.size) outbox.flush();
  setTimeout(tellCredit, 1000);
}
start();
