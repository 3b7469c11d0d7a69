// The draft of a verdict on the current card: picks, the critic's own rationale, and tags that say what candidates lack.
// It is kept in the browser's storage until it is submitted, so that a reload or an ended session loses nothing.

import { readStored, store } from "./storage.js";

const MAX_DRAFTS = 60;
const stage = document.getElementById("stage");

export function checkboxes() {
  return [...stage.querySelectorAll('input[name="picks"]')];
}

export function checkedBoxes() {
  return checkboxes().filter((box) => box.checked);
}

export function rationaleField() {
  return stage.querySelector("#own-rationale");
}

export function candidateRows() {
  return [...stage.querySelectorAll("[data-candidate]")];
}

export function candidateRow(number) {
  return candidateRows()[number - 1];
}

export function candidateText(row) {
  return row.querySelector(".text").textContent.trim();
}

export function isUntouched() {
  return !valueBoxes().some((box) => box.checked !== box.defaultChecked) && !checkedBoxes().length && !rationaleField()?.value && !candidateRows().some((row) => candidateTags(row).length);
}

// The values of a structured answer, by the names of its fields

export function fieldSets() {
  return [...stage.querySelectorAll("fieldset[data-field]")];
}

export function valuesIn(fieldSet) {
  return [...fieldSet.querySelectorAll('input[type="radio"]')];
}

function valueBoxes() {
  return fieldSets().flatMap(valuesIn);
}

export function chosenIn(fieldSet) {
  return valuesIn(fieldSet).find((box) => box.checked);
}

export function fieldValues() {
  const chosen = fieldSets().filter(chosenIn);
  return Object.fromEntries(chosen.map((fieldSet) => [fieldSet.dataset.field, chosenIn(fieldSet).value]));
}

function setFieldValues(values) {
  for (const fieldSet of fieldSets()) {
    const value = values[fieldSet.dataset.field];
    for (const box of valuesIn(fieldSet)) box.checked = value === undefined ? box.checked : box.value === value;
  }
}

// What candidates lack

export function candidateTags(row) {
  return JSON.parse(row.dataset.tags);
}

// A tag as the page shows it: the dialog of one candidate lists them all.
function shownTag(tag) {
  const boxes = [...document.querySelectorAll('#about-dialog input[name="tag"]')];
  return boxes.find((box) => box.value === tag)?.dataset.shown ?? tag;
}

export function setTags(row, tags) {
  row.dataset.tags = JSON.stringify(tags);
  const place = row.querySelector(".lacks");
  place.replaceChildren(
    ...tags.map((tag) => {
      const badge = document.createElement("span");
      badge.className = "badge warn";
      badge.textContent = shownTag(tag);
      return badge;
    }),
  );
}

// The candidate that the rationale was edited from

export function editedFrom() {
  return stage.querySelector(".own")?.dataset.editedFrom ?? "";
}

export function setEditedFrom(id) {
  const own = stage.querySelector(".own");
  if (!own) return;
  own.dataset.editedFrom = id;
  const row = candidateRows().find((one) => one.dataset.candidate === id);
  own.querySelector(".edited").hidden = !row;
  if (row) own.querySelector("[data-edited]").textContent = gettext("edited from %(number)s", { number: row.dataset.number });
}

// Picks and rationale as they are sent. A candidate that was copied and left unchanged counts as picked.
export function draftedVerdict() {
  const rationale = rationaleField()?.value.trim() ?? "";
  const from = rationale ? editedFrom() : "";
  const source = candidateRows().find((row) => row.dataset.candidate === from);
  const picks = checkedBoxes().map((box) => box.value);
  if (source && candidateText(source) === rationale) {
    return { picks: [...new Set([...picks, from])], rationale: "", from: "" };
  }
  return { picks, rationale, from };
}

export function tagFields() {
  return candidateRows().flatMap((row) => candidateTags(row).map((tag) => ["tags", `${row.dataset.candidate} ${tag}`]));
}

// Storing the draft

// By the prompt: a claim that lapsed comes back as another assignment, and its draft with it.
function draftKey(card) {
  return `${card.dataset.prompt}/${card.dataset.verdict}`;
}

export function saveDraft() {
  const card = stage.querySelector("#work[data-assignment]");
  if (!card) return;
  if (!card.dataset.verdict && isUntouched()) {
    deleteDraft(card);
    return;
  }
  const others = Object.entries(readStored("drafts", {})).filter(([key]) => key !== draftKey(card));
  const draft = {
    picks: checkedBoxes().map((box) => box.value),
    fields: fieldValues(),
    rationale: rationaleField()?.value ?? "",
    from: editedFrom(),
    tags: Object.fromEntries(candidateRows().map((row) => [row.dataset.candidate, candidateTags(row)])),
  };
  store("drafts", Object.fromEntries([...others.slice(1 - MAX_DRAFTS), [draftKey(card), draft]]));
}

export function restoreDraft(card) {
  const draft = readStored("drafts", {})[draftKey(card)];
  for (const row of candidateRows()) setTags(row, draft?.tags?.[row.dataset.candidate] ?? candidateTags(row));
  if (draft) {
    for (const box of checkboxes()) box.checked = draft.picks.includes(box.value);
    setFieldValues(draft.fields ?? {});
    const field = rationaleField();
    // What was typed before this script ran is newer than the draft.
    if (field && field.value === field.defaultValue) field.value = draft.rationale;
  }
  const isKnown = !draft?.from || candidateRows().some((row) => row.dataset.candidate === draft.from);
  setEditedFrom(isKnown ? (draft?.from ?? editedFrom()) : "");
}

export function deleteDraft(card) {
  const drafts = readStored("drafts", {});
  if (!(draftKey(card) in drafts)) return;
  delete drafts[draftKey(card)];
  store("drafts", drafts);
}
