// What is being said of the prompt on the page: picks, own words, what candidates lack. It is kept in the browser's
// storage until it is submitted, so that a reload or an ended session loses nothing.

import { keep, recall } from "./kept.js";

const MOST_DRAFTS = 6;
const stage = document.getElementById("stage");

export function checkboxes() {
  return [...stage.querySelectorAll('input[name="picks"]')];
}

export function picked() {
  return checkboxes().filter((box) => box.checked);
}

export function ownWords() {
  return stage.querySelector("#own-rationale");
}

export function lines() {
  return [...stage.querySelectorAll("[data-candidate]")];
}

export function lineOf(number) {
  return lines()[number - 1];
}

export function textOf(line) {
  return line.querySelector(".text").textContent.trim();
}

export function isUntouched() {
  return !picked().length && !ownWords()?.value && !lines().some((line) => tagsOf(line).length);
}

// What candidates lack

export function tagsOf(line) {
  return JSON.parse(line.dataset.tags);
}

export function setTags(line, tags) {
  line.dataset.tags = JSON.stringify(tags);
  const place = line.querySelector(".lacks");
  place.replaceChildren(
    ...tags.map((tag) => {
      const badge = document.createElement("span");
      badge.className = "badge warn";
      badge.textContent = tag;
      return badge;
    }),
  );
}

// Where own words come from

export function editedFrom() {
  return stage.querySelector(".own")?.dataset.editedFrom ?? "";
}

export function setEditedFrom(id) {
  const own = stage.querySelector(".own");
  own.dataset.editedFrom = id;
  const line = lines().find((one) => one.dataset.candidate === id);
  own.querySelector(".edited").hidden = !line;
  if (line) own.querySelector("[data-edited]").textContent = `edited from ${line.dataset.number}`;
}

// Own words as they are sent. A candidate that was taken over and left as it was is that candidate, picked.
export function said() {
  const words = ownWords().value.trim();
  const from = words ? editedFrom() : "";
  const source = lines().find((line) => line.dataset.candidate === from);
  const picks = picked().map((box) => box.value);
  if (source && textOf(source) === words) return { picks: [...new Set([...picks, from])], rationale: "", from: "" };
  return { picks, rationale: words, from };
}

export function tagFields() {
  return lines().flatMap((line) => tagsOf(line).map((tag) => ["tags", `${line.dataset.candidate} ${tag}`]));
}

// Keeping it

function nameOf(work) {
  return `${work.dataset.assignment}/${work.dataset.verdict}`;
}

export function keepDraft() {
  const work = stage.querySelector("#work[data-assignment]");
  if (!work) return;
  const others = Object.entries(recall("drafts", {})).filter(([name]) => name !== nameOf(work));
  const draft = {
    picks: picked().map((box) => box.value),
    rationale: ownWords().value,
    from: editedFrom(),
    tags: Object.fromEntries(lines().map((line) => [line.dataset.candidate, tagsOf(line)])),
  };
  keep("drafts", Object.fromEntries([...others.slice(1 - MOST_DRAFTS), [nameOf(work), draft]]));
}

export function takeDraft(work) {
  const draft = recall("drafts", {})[nameOf(work)];
  for (const line of lines()) setTags(line, draft?.tags[line.dataset.candidate] ?? tagsOf(line));
  if (draft) {
    for (const box of checkboxes()) box.checked = draft.picks.includes(box.value);
    ownWords().value = draft.rationale;
  }
  setEditedFrom(draft?.from ?? editedFrom());
}

export function dropDraft(work) {
  const drafts = recall("drafts", {});
  if (!(nameOf(work) in drafts)) return;
  delete drafts[nameOf(work)];
  keep("drafts", drafts);
}
