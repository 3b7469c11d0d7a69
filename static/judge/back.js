// Going back to an earlier verdict: a pending one is taken back, a saved one is fetched to be changed.

import { announce, hint, toast } from "./announce.js";
import { currentCard, setAside, showCard, showNext } from "./cards.js";
import { deleteDraft } from "./draft.js";
import { flush, putBack, takeBackNewest } from "./outbox.js";
import { countPending } from "./pending.js";
import { saveState } from "./save_state.js";
import { messageIn, parseHtml, request } from "./server.js";
import { updateFigures } from "./session.js";

// Outbox items that were taken back, by the elements of their cards.
const takenBack = new Map();
let stepsLeft = 0;

function showTakenBack(element, isTakenBack) {
  element.querySelector(".taken-back").hidden = !isTakenBack;
}

function restoreVerdict(element, fields) {
  const values = (name) => fields.filter(([one]) => one === name).map(([, value]) => value);
  for (const box of element.querySelectorAll('input[name="picks"]')) box.checked = values("picks").includes(box.value);
  const corrected = JSON.parse(values("fields").join("") || "{}");
  for (const one of element.querySelectorAll("fieldset[data-field]")) {
    const value = corrected[one.dataset.field];
    if (value) for (const box of one.querySelectorAll("input")) box.checked = box.value === value;
  }
  const rationale = element.querySelector('[name="rationale"]');
  if (rationale) rationale.value = values("rationale").join("");
}

// Takes back the newest pending verdict and shows it as it was given. Whether there was one.
function takeBack() {
  // Pending verdicts are newer than a saved one: who changes a saved one has gone back past them.
  if (currentCard()?.verdict && !takenBack.has(currentCard().element)) return false;
  const newest = takeBackNewest();
  if (!newest) return false;
  const { item, card } = newest;
  takenBack.set(card, item);
  if (currentCard()) setAside();
  restoreVerdict(card, item.fields);
  showTakenBack(card, true);
  showCard(card, { seconds: Number(item.fields.find(([name]) => name === "seconds")[1]) });
  announce(gettext("Last verdict taken back before it was sent"));
  return true;
}

// Marks the card as no longer taken back, because a new verdict is given on it. Whether it was.
export function endTakeBack(element) {
  if (!takenBack.delete(element)) return false;
  showTakenBack(element, false);
  return true;
}

// Pressed twice, it goes back twice, however slow the server is.
export async function back() {
  stepsLeft += 1;
  if (stepsLeft > 1) return;
  while (stepsLeft > 0) {
    await goBackOne();
    stepsLeft -= 1;
  }
}

async function goBackOne() {
  try {
    if (saveState() !== "saving" && takeBack()) return;
    await flush();
    if (takeBack()) return;
    if (countPending()) {
      hint(gettext("You cannot go back yet: another tab of yours is still saving verdicts."));
      return;
    }
    const current = currentCard();
    const answer = await request(`/back?before=${current?.verdict ?? ""}`);
    const element = answer.ok ? parseHtml(answer.text).querySelector("#work") : null;
    if (!element) {
      hint(messageIn(answer.text) || gettext("You have no earlier verdict."));
      return;
    }
    // A verdict that was taken back may have reached the server before; then the answer is the same prompt.
    if (current && !current.verdict && current.assignment !== element.dataset.assignment) setAside();
    showCard(element);
    announce(gettext("You are changing your earlier verdict"));
  } catch {
    hint(gettext("You cannot go back now: the server could not be reached."));
  }
}

// Leaves the earlier verdict unchanged and returns to the next card.
export function cancelChange() {
  const current = currentCard();
  const item = current && takenBack.get(current.element);
  if (!item && !current?.verdict) return;
  if (item) {
    endTakeBack(current.element);
    putBack(item, current.element);
  }
  deleteDraft(current.element);
  announce(gettext("Verdict unchanged"));
  const { backTo } = current.element.dataset;
  if (backTo) window.location.assign(backTo);
  else showNext();
}

// Lets a verdict that a reviewer sent back stand as it is.
export async function keepReturned() {
  const { element, verdict } = currentCard();
  const { returned } = element.querySelector("[data-returned]").dataset;
  const answer = await request(`/returned/${returned}/keep`, []).catch(() => null);
  if (!answer?.ok) {
    hint(messageIn(answer?.text ?? "") || gettext("Not saved: the server could not be reached. Please try again."));
    return;
  }
  updateFigures(answer.text);
  toast(gettext("Verdict kept. The reviewer can see that you took another look."), "good");
  deleteDraft(element);
  if (currentCard()?.verdict === verdict) showNext();
}

export function isChanging() {
  const current = currentCard();
  return Boolean(current && (current.verdict || takenBack.has(current.element)));
}
