// What the critic says of the picture field by field: before any explanation is shown, and corrected afterwards.
//
// One field at a time is asked for: the numbers choose its value, and 0 the one that nothing applies. Once all that are
// needed are there, they are sent, and the answer has the explanations. What was chosen is kept in the draft: without
// the network it is sent again until the server answers, also after a reload.

import { announce, hint, toast } from "./announce.js";
import { prepareCard } from "./card_view.js";
import { canJudge, currentCard, showNext } from "./cards.js";
import { checkboxes, chosenIn, fieldSets, fieldValues, restoreDraft, saveDraft, valuesIn } from "./draft.js";
import { keyLabel } from "./keys.js";
import { markRules } from "./rule_words.js";
import { messageIn, parseHtml, request } from "./server.js";
import { checkSession, pauseSending } from "./session.js";

const RETRY_AFTER = 2000;
const ARROWS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
const judge = document.querySelector(".judge");
const stage = document.getElementById("stage");
// The card whose values are being sent, and whether the last change of a value was made by an arrow key.
let sending = null;
let byArrow = false;

function isBlind(element) {
  return "blind" in element.dataset;
}

function isMissing(fieldSet) {
  return "required" in fieldSet.dataset && !chosenIn(fieldSet);
}

// The field that is asked for now; undefined for none.
export function askedSet() {
  return stage.querySelector("fieldset.is-asked") ?? undefined;
}

function ask(fieldSet) {
  for (const one of fieldSets()) one.classList.toggle("is-asked", one === fieldSet);
  currentCard().element.classList.toggle("correcting", Boolean(fieldSet) && !isBlind(currentCard().element));
  if (!fieldSet) return;
  fieldSet.scrollIntoView({ block: "nearest" });
  announce(fieldSet.querySelector("legend").textContent.trim());
}

judge.addEventListener("shown", (event) => {
  const { element, verdict } = event.detail.card;
  markRules(element);
  if (!fieldSets().length) return;
  showClash();
  markTold();
  if (!isBlind(element)) ask(null);
  else if (verdict) ask(null);
  else askNext();
});

// Asks for the first value that is missing; once there is none, shows the explanations.
function askNext() {
  const next = fieldSets().find(isMissing);
  ask(next ?? null);
  if (!next) reveal();
}

// Choosing values

function choose(fieldSet, box) {
  box.checked = true;
  announce(gettext("%(value)s chosen", { value: box.value }));
  afterChoice(fieldSet);
}

function afterChoice(fieldSet) {
  const { element } = currentCard();
  saveDraft();
  showClash();
  markTold();
  if (isBlind(element)) {
    askNext();
    return;
  }
  const sets = fieldSets();
  if (fieldSet === askedSet()) ask(sets[sets.indexOf(fieldSet) + 1] ?? null);
}

export function chooseValue(number) {
  const fieldSet = askedSet();
  const box = valuesIn(fieldSet).filter((one) => !("none" in one.dataset))[number - 1];
  if (box && canJudge()) choose(fieldSet, box);
}

// The value that nothing applies, where such a field is asked for. Whether one is.
export function chooseNone() {
  const fieldSet = askedSet();
  const box = fieldSet && valuesIn(fieldSet).find((one) => "none" in one.dataset);
  if (box) choose(fieldSet, box);
  return Boolean(box);
}

document.addEventListener("keydown", (event) => {
  byArrow = ARROWS.includes(event.key);
}, { capture: true });
document.addEventListener("pointerdown", () => {
  byArrow = false;
}, { capture: true });

// Who moves through the values by arrow keys has not decided yet: Enter goes on then.
export function valueChanged(box) {
  if (!canJudge()) {
    // The choice that stood before is taken up again.
    for (const one of valuesIn(box.closest("fieldset"))) one.checked = one.defaultChecked;
    restoreDraft(currentCard().element);
    return;
  }
  if (byArrow) {
    saveDraft();
    showClash();
    markTold();
  } else afterChoice(box.closest("fieldset"));
}

// Whether the picture has been rated. Says what is missing, or sends what is there.
export function isRated() {
  const { element, verdict } = currentCard();
  if (!isBlind(element)) return true;
  const missing = fieldSets().find(isMissing);
  if (verdict) hint(gettext("You did not rate this picture: only skipping and flagging are possible."));
  else if (missing) hint(gettext("Rate the picture first: %(field)s", { field: missing.dataset.field }));
  else askNext();
  return false;
}

// Correcting

// Before the explanations show it takes back the last choice; afterwards it asks for all of them again.
export function correctValues() {
  if (!currentCard() || !fieldSets().length) return;
  const { element, verdict } = currentCard();
  if (!isBlind(element)) {
    ask(fieldSets()[0]);
    return;
  }
  const last = [...fieldSets()].reverse().find(chosenIn);
  if (!last || verdict || sending === element) return;
  chosenIn(last).checked = false;
  saveDraft();
  showClash();
  ask(fieldSets().find(isMissing) ?? last);
}

export function endCorrecting() {
  if (!askedSet() || !currentCard() || isBlind(currentCard().element)) return false;
  ask(null);
  return true;
}

export function showRules() {
  const section = stage.querySelector("[data-assess]");
  if (!section) return;
  const isOn = section.classList.toggle("all-rules");
  section.querySelector('[data-do="rules"]')?.setAttribute("aria-pressed", String(isOn));
}

// Marks the values of explanations that are not the critic's own.
function markTold() {
  const own = fieldValues();
  for (const one of stage.querySelectorAll("[data-told-field]")) {
    one.classList.toggle("differs", one.dataset.toldField in own && own[one.dataset.toldField] !== one.dataset.value);
  }
}

// Values that do not go together

function clashText() {
  const section = stage.querySelector("[data-assess]");
  const { rating, category, pairs } = JSON.parse(section?.dataset.clashes ?? "{}");
  const own = fieldValues();
  const kind = pairs?.[own[rating]]?.[own[category]];
  const names = { rating: own[rating], category: own[category] };
  if (kind === "none") return gettext("%(rating)s does not go with %(category)s.", names);
  if (kind === "allowed") return gettext("The policy allows %(category)s, but you say %(rating)s.", names);
  if (kind === "strict") return gettext("The policy is strict about %(category)s, but you say %(rating)s.", names);
  return "";
}

function showClash() {
  const place = stage.querySelector("[data-clash]");
  if (!place) return;
  const text = clashText();
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
}

// The values that a verdict is sent with: those that the server does not know, and all in place of an earlier verdict's.
export function correctedValues() {
  const { verdict } = currentCard();
  const sets = fieldSets().filter((fieldSet) => verdict || !chosenIn(fieldSet)?.defaultChecked);
  const names = sets.filter(chosenIn).map((fieldSet) => fieldSet.dataset.field);
  return Object.fromEntries(Object.entries(fieldValues()).filter(([name]) => names.includes(name)));
}

// Whether the values go together, or the critic has been asked once and means them.
export function acceptsClash() {
  const text = clashText();
  const { element } = currentCard();
  if (!text || element.dataset.meant === text) return true;
  element.dataset.meant = text;
  hint(gettext("%(problem)s Press the key again to submit it as it is, or %(key)s to change it.", { problem: text, key: keyLabel("correct") }));
  return false;
}

// Showing the explanations

async function reveal() {
  const { element, assignment, verdict } = currentCard();
  if (verdict || sending === element || !isBlind(element)) return;
  sending = element;
  const send = () => request(`/assignments/${assignment}/fields`, [["fields", JSON.stringify(fieldValues())]]).catch(() => null);
  let answer = await send();
  // The form token may belong to an older session: it is renewed once.
  if (answer?.status === 403 && (await checkSession()) === "same") answer = await send();
  sending = null;
  if (!answer || answer.status >= 500 || answer.status === 429 || answer.status === 401) {
    if (answer?.status === 401) pauseSending();
    showWaiting(element);
    setTimeout(() => currentCard()?.element === element && !fieldSets().some(isMissing) && reveal(), RETRY_AFTER);
    return;
  }
  if (answer.ok) showExplanations(element, parseHtml(answer.text).querySelector("#work"));
  else giveUp(element, answer.text);
}

function showWaiting(element) {
  const place = element.querySelector("[data-reveal]");
  const text = gettext("Your rating is kept. The explanations appear once the server answers.");
  if (place && place.textContent !== text) place.textContent = text;
}

function showExplanations(element, fresh) {
  const isCurrent = currentCard()?.element === element;
  element.querySelector("[data-explanations]").replaceWith(fresh.querySelector("[data-explanations]"));
  delete element.dataset.blind;
  // What was given blind is what the server knows: later changes are corrections.
  for (const box of element.querySelectorAll(".asked input")) box.defaultChecked = box.checked;
  if (!isCurrent) return;
  restoreDraft(element);
  prepareCard(element);
  ask(null);
  markTold();
  element.querySelector("[data-assess]").scrollIntoView({ block: "nearest" });
  announce(ngettext("%(num)s explanation", "%(num)s explanations", checkboxes().length));
}

// The claim has lapsed, or other values are stored already: the server gives out the prompt again, and the draft stays.
function giveUp(element, text) {
  toast(messageIn(text) || gettext("Not saved: the server could not be reached. Please try again."), "bad");
  if (currentCard()?.element === element) showNext();
}
