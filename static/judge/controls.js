// What buttons and keys do on the critic's page.

import { announce } from "./announce.js";
import { back, cancelChange, isChanging, keepReturned } from "./back.js";
import { moveImage, unfoldTexts } from "./card_view.js";
import { canJudge, currentCard, isCardSeen, reloadImages, revealImages } from "./cards.js";
import { openDay } from "./day.js";
import { toggleDifferences } from "./differences.js";
import { candidateRow, candidateTags, candidateText, checkboxes, checkedBoxes, saveDraft, setTags } from "./draft.js";
import { editCandidate, focusRationale, forgetEditedFrom } from "./edit.js";
import { askedSet, chooseValue, correctValues, endCorrecting, showRules, valueChanged } from "./fields.js";
import { toggleInstructions } from "./instructions.js";
import { actionFor, choiceNumber, keysAreEnabled, resetKeys } from "./keys.js";
import { giveVerdict, submit, submitNoneFits, submitOnPick } from "./submit.js";
import { makeZoomDialog } from "./zoom.js";

const { keyNames } = window.illume;
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
const candidateDialog = document.getElementById("about-dialog");
const zoom = makeZoomDialog(document.getElementById("zoom-dialog"), document.getElementById("zoom-pane"));
// The action that waits for the number of a candidate; empty where none does.
let waitingAction = "";

// Picking, skipping and flagging

function togglePick(number) {
  const box = checkboxes()[number - 1];
  if (!box) return;
  box.checked = !box.checked;
  saveDraft();
  announce(box.checked ? gettext("%(number)s picked", { number }) : gettext("%(number)s unpicked", { number }));
  submitOnPick(box);
}

function openReasons(kind) {
  if (!(kind === "skip" ? isCardSeen() : canJudge())) return;
  const dialog = document.getElementById(`${kind}-dialog`);
  dialog.dataset.about = currentCard().assignment;
  dialog.showModal();
}

// Some actions concern one candidate: the focused one, else the one whose number or letter is pressed next.
const QUESTIONS = { edit: gettext("Edit which one?"), lacks: gettext("Which one has a problem?") };

function askForNumber(action) {
  waitingAction = action;
  const place = stage.querySelector("[data-prompting]");
  if (!place) return;
  place.dataset.before ??= place.textContent;
  const press = checkboxes().length > 9 ? gettext("Press its number or letter.") : gettext("Press its number.");
  const question = `${QUESTIONS[action]} ${press}`;
  place.textContent = action ? question : place.dataset.before;
  judge.toggleAttribute("data-asking", Boolean(action));
  if (action) announce(question);
}

function focusedNumber() {
  return Number(document.activeElement?.closest("[data-candidate]")?.dataset.number ?? 0);
}

function startEdit() {
  const checked = checkedBoxes();
  const number = focusedNumber() || (checked.length === 1 ? Number(checked[0].dataset.number) : 0);
  if (number) editCandidate(number);
  else if (checkboxes().length) askForNumber("edit");
}

// The dialog of one candidate: what it lacks

function openCandidateDialog(number) {
  const row = candidateRow(number);
  if (!row) return;
  candidateDialog.dataset.number = String(number);
  candidateDialog.querySelector("[data-number]").textContent = String(number);
  candidateDialog.querySelector("[data-words]").textContent = candidateText(row);
  const tags = candidateTags(row);
  for (const box of tagBoxes()) box.checked = tags.includes(box.value);
  candidateDialog.showModal();
}

function tagBoxes() {
  return [...candidateDialog.querySelectorAll('input[name="tag"]')];
}

function saveTags() {
  const row = candidateRow(Number(candidateDialog.dataset.number));
  if (!row) return;
  setTags(row, tagBoxes().filter((box) => box.checked).map((box) => box.value));
  saveDraft();
}

function openZoom(event) {
  const panes = [...stage.querySelectorAll(".picture")];
  if (!panes.length || stage.querySelector(".work.blurred")) {
    revealImages();
    return;
  }
  const pane = event?.target.closest(".picture") ?? document.activeElement?.closest(".picture") ?? panes[0];
  zoom.open(panes.map((one) => one.querySelector("img")), panes.indexOf(pane));
}

// By the names in `data-do` and in the map of keys.
const actions = {
  submit,
  none: submitNoneFits,
  back,
  write: focusRationale,
  differences: toggleDifferences,
  unfold: unfoldTexts,
  correct: correctValues,
  rules: showRules,
  reveal: revealImages,
  edit: startEdit,
  lacks: () => (focusedNumber() ? openCandidateDialog(focusedNumber()) : checkboxes().length && askForNumber("lacks")),
  skip: () => openReasons("skip"),
  flag: () => openReasons("flag"),
  zoom: openZoom,
  keys: () => document.getElementById("keys-dialog").showModal(),
  instructions: toggleInstructions,
  day: openDay,
  about: (event) => openCandidateDialog(Number(event.target.closest("[data-candidate]").dataset.number)),
  "edit-this": () => {
    candidateDialog.close();
    editCandidate(Number(candidateDialog.dataset.number));
  },
  "forget-edit": forgetEditedFrom,
  "leave-back": cancelChange,
  keep: keepReturned,
  "reload-image": reloadImages,
  "reset-keys": resetKeys,
};

function onClick(event) {
  const button = event.target.closest("[data-do], [data-reason]");
  // The second click of a double click was meant for what stood there before.
  if (!button || event.detail > 1) return;
  if (button.dataset.do) {
    actions[button.dataset.do](event);
    return;
  }
  const dialog = button.closest("dialog");
  dialog.close();
  if (currentCard()?.assignment === dialog.dataset.about) giveVerdict(dialog.id === "skip-dialog" ? "skipped" : "flagged", button.dataset.reason);
}

// The second click of a double click that gave a verdict must not pick on the next card.
function ignoreEarlierClick(event) {
  if (event.detail < 2 || isCardSeen()) return;
  event.preventDefault();
  event.stopPropagation();
}

// Keys. Each function says whether the key did something.

function onReasonsKey(dialog, event, names) {
  const reasons = [...dialog.querySelectorAll("[data-reason]")];
  const number = choiceNumber(names);
  let choice;
  if (number) choice = reasons.filter((one) => one.dataset.reason)[number - 1];
  else if (names.includes("Enter") && !event.target.closest("button")) choice = reasons.find((one) => !one.dataset.reason);
  choice?.click();
  return Boolean(choice);
}

function onCandidateDialogKey(event, names) {
  const box = tagBoxes()[choiceNumber(names) - 1];
  if (box) {
    box.checked = !box.checked;
    saveTags();
  } else if (actionFor(names) === "edit") actions["edit-this"]();
  else if (names.includes("Enter") && !event.target.closest("button")) candidateDialog.close();
  else return false;
  return true;
}

function onDialogKey(dialog, event, names) {
  if (event.ctrlKey || event.metaKey) return false;
  if (dialog === candidateDialog) return onCandidateDialogKey(event, names);
  if (dialog.matches(".reasons")) return onReasonsKey(dialog, event, names);
  if (dialog !== zoom.dialog) return false;
  if (actionFor(names) === "zoom") dialog.close();
  else return names.some(zoom.onKey);
  return true;
}

function onPageKey(event, names) {
  const number = choiceNumber(names);
  if (names.includes("Escape") && waitingAction) askForNumber("");
  else if (names.includes("Escape") && endCorrecting()) return true;
  else if (names.includes("Escape") && isChanging()) cancelChange();
  else if (askedSet() && !waitingAction && number) chooseValue(number);
  else if (candidateRow(number)) {
    const action = waitingAction;
    if (action) askForNumber("");
    if (action === "edit") editCandidate(number);
    else if (action === "lacks") openCandidateDialog(number);
    else togglePick(number);
  } else if (names.includes("Enter") && event.target.closest("button, a, summary")) return false;
  else if (actionFor(names)) {
    if (waitingAction) askForNumber("");
    actions[actionFor(names)]();
  } else return names.some(moveImage);
  return true;
}

function onKey(event) {
  if (event.defaultPrevented || event.altKey) return;
  const names = keyNames(event);
  if (!names.length) return;
  const dialog = document.querySelector("dialog[open]");
  const isTyping = event.target.closest('textarea, select, input:not([type="checkbox"], [type="radio"])');
  // A key that is held down moves the image, but never gives a second verdict, nor picks and puts back.
  if (event.repeat && event.target.closest("button, a, summary") && names.includes("Enter")) event.preventDefault();
  if (dialog) {
    if (!isTyping && (!event.repeat || dialog === zoom.dialog) && onDialogKey(dialog, event, names)) event.preventDefault();
    return;
  }
  if (names.includes("Enter") && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) submit();
    return;
  }
  if (isTyping) {
    if (names.includes("Escape")) stage.querySelector("#question").focus({ preventScroll: true });
    return;
  }
  if (event.ctrlKey || event.metaKey || !keysAreEnabled()) return;
  if (event.repeat ? names.some(moveImage) : onPageKey(event, names)) event.preventDefault();
}

export function startControls() {
  document.addEventListener("click", onClick);
  document.addEventListener("keydown", onKey);
  // A dialog of reasons opens with none of them focused, so that Enter does not choose the first one by accident.
  for (const dialog of document.querySelectorAll("dialog.reasons")) {
    dialog.tabIndex = -1;
    dialog.addEventListener("toggle", () => dialog.open && dialog.focus());
  }
  candidateDialog.addEventListener("change", saveTags);
  stage.addEventListener("input", saveDraft);
  stage.addEventListener("change", (event) => {
    if (event.target.name === "picks") submitOnPick(event.target);
    else if (event.target.type === "radio") valueChanged(event.target);
  });
  stage.addEventListener("click", ignoreEarlierClick, { capture: true });
  stage.addEventListener("submit", (event) => event.preventDefault());
}
