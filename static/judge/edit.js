// The critic's own rationale: written from scratch, or edited from a candidate.

import { announce, hint } from "./announce.js";
import { candidateRow, candidateRows, candidateText, editedFrom, rationaleField, saveDraft, setEditedFrom } from "./draft.js";

export function focusRationale() {
  rationaleField()?.focus();
}

// Copies a candidate into the field. The candidate itself is no longer picked.
export function editCandidate(number) {
  const row = candidateRow(number);
  if (!row) return;
  const field = rationaleField();
  const before = field.value.trim();
  const source = candidateRows().find((one) => one.dataset.candidate === editedFrom());
  if (before && !(source && candidateText(source) === before)) {
    field.focus();
    hint(gettext("You have already written something. Clear the field first, then edit an explanation."));
    return;
  }
  row.querySelector("input").checked = false;
  field.value = candidateText(row);
  setEditedFrom(row.dataset.candidate);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
  announce(gettext("Editing explanation %(number)s", { number }));
  saveDraft();
}

// Makes the rationale one written from scratch; its text stays.
export function forgetEditedFrom() {
  setEditedFrom("");
  saveDraft();
  rationaleField().focus();
}
