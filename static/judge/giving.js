// Giving verdicts, and going back to those given.

import { dropDraft, editedFrom, keepDraft, lineOf, lines, ownWords, picked, said, setEditedFrom, tagFields, textOf } from "./draft.js";
import { label } from "./keys.js";
import { makeOutbox } from "./outbox.js";
import { ask, base, formToken, renew, showFigures } from "./server.js";
import { advance, currentPrompt, lacksNext, mayJudge, prefetch, putAside, show, take, whatIsKnown } from "./stage.js";
import { announce, hint, parse, sentence, toast } from "./telling.js";

const judge = document.querySelector(".judge");
const saveState = document.getElementById("save-state");
const signedOut = document.getElementById("signed-out-dialog");
const MOST_WAITING = 200;
const waiting = new Map();
const takenBack = new Map();
let stepsBack = 0;

function showState(state, waiting) {
  const many = waiting === 1 ? "1 verdict" : `${waiting} verdicts`;
  const labels = {
    saved: "Saved",
    saving: "Saving…",
    waiting: `Offline, ${waiting} waiting`,
    "signed-out": waiting ? `Signed out, ${waiting} waiting` : "Signed out",
  };
  const before = saveState.dataset.state;
  saveState.dataset.state = state;
  saveState.querySelector("[data-label]").textContent = labels[state];
  if (state === "waiting" && before !== "waiting") {
    announce("No connection. Your verdicts are kept and sent when it is back.");
  }
  if (state === "saved" && (before === "waiting" || before === "signed-out")) announce("All verdicts are saved.");
  if (state === "signed-out") {
    signedOut.querySelector("[data-waiting]").textContent = waiting ? many : "what you typed";
    if (before !== "signed-out" && !document.querySelector("dialog[open]")) signedOut.showModal();
  }
}

export const outbox = makeOutbox(judge.dataset.user, {
  token: formToken,
  renew,
  onState: showState,
  onSaved(item, response, text) {
    waiting.delete(item.key);
    showFigures(text);
    const words = sentence(text);
    if (words) toast(words, "warn");
    // The answer brings the next prompt along; where it could not, the claim that was given up makes room for one.
    if (!take(parse(text).querySelector("#work")) && lacksNext()) prefetch();
  },
  asides: whatIsKnown,
  onRefused(item, status, text) {
    waiting.delete(item.key);
    toast(`A verdict was not taken. ${sentence(text) || `The server said ${status}.`}`, "bad");
  },
});

export function submit() {
  if (!mayJudge()) return;
  const { picks, rationale } = said();
  if (!picks.length && !rationale) {
    hint(`Pick what fits, or press ${label("none")} where none does.`);
    return;
  }
  give("picked");
}

export function noneFits() {
  if (!mayJudge()) return;
  if (picked().length > 0) {
    for (const box of picked()) box.checked = false;
    keepDraft();
    hint(`The picks are put back. Press ${label("none")} once more: none fits.`);
    return;
  }
  give("none_fit");
}

export function give(kind, reason = "") {
  const { assignment, verdict, clock, work } = currentPrompt();
  clock.stop();
  const fields = [["kind", kind], ["reason", reason], ["seconds", clock.seconds().toFixed(2)]];
  if (takenBack.delete(work)) {
    fields.push(["again", "yes"]);
    showTakenBack(work, false);
  }
  if (kind === "picked" || kind === "none_fit") {
    const { picks, rationale, from } = said();
    if (kind === "picked") fields.push(...picks.map((id) => ["picks", id]));
    fields.push(["rationale", rationale], ["edited_from", from], ...tagFields());
  }
  const url = verdict ? `${base}/verdicts/${verdict}` : `${base}/assignments/${assignment}/verdict`;
  dropDraft(work);
  // The next prompt first: the verdict is stored by then, and the eye waits for nothing.
  remember(outbox.put(url, fields, assignment), work);
  advance();
}

// The cards of verdicts that wait to be sent, by the keys of these, so that they can be taken back without the server.

function remember(key, work) {
  waiting.set(key, work);
  if (waiting.size > MOST_WAITING) waiting.delete(waiting.keys().next().value);
}

function showTakenBack(work, isTaken) {
  work.querySelector(".taken-back").hidden = !isTaken;
}

function showGiven(work, fields) {
  const told = (name) => fields.filter(([one]) => one === name).map(([, value]) => value);
  for (const box of work.querySelectorAll('input[name="picks"]')) box.checked = told("picks").includes(box.value);
  work.querySelector('[name="rationale"]').value = told("rationale").join("");
}

// Takes the newest verdict that waits back, and shows it as it was given. Whether there was one.
function takeBack() {
  // Somebody who changes an older one that is saved is behind those already.
  if (currentPrompt()?.verdict && !takenBack.has(currentPrompt().work)) return false;
  for (const [key, work] of [...waiting].reverse()) {
    const item = outbox.takeBack(key);
    if (!item) continue;
    waiting.delete(key);
    takenBack.set(work, item);
    if (currentPrompt()) putAside();
    showGiven(work, item.fields);
    showTakenBack(work, true);
    show(work, { seconds: Number(item.fields.find(([name]) => name === "seconds")[1]) });
    announce("Your last verdict is taken back: it was not sent yet");
    return true;
  }
  return false;
}

// Own words

export function write() {
  ownWords()?.focus();
}

// A candidate as the beginning of one's own words: it is not picked as it stands, then.
export function edit(number) {
  const line = lineOf(number);
  if (!line) return;
  const own = ownWords();
  const before = own.value.trim();
  const source = lines().find((one) => one.dataset.candidate === editedFrom());
  if (before && !(source && textOf(source) === before)) {
    own.focus();
    hint("There are words of yours already: empty the field first, then edit a candidate.");
    return;
  }
  line.querySelector("input").checked = false;
  own.value = textOf(line);
  setEditedFrom(line.dataset.candidate);
  own.focus();
  own.setSelectionRange(own.value.length, own.value.length);
  announce(`Editing candidate ${number}`);
  keepDraft();
}

export function forgetEdit() {
  setEditedFrom("");
  keepDraft();
  ownWords().focus();
}

// Going back. Pressed twice, it goes back twice, however slow the server is.

export async function back() {
  stepsBack += 1;
  if (stepsBack > 1) return;
  while (stepsBack > 0) {
    await oneBack();
    stepsBack -= 1;
  }
}

async function oneBack() {
  try {
    if (!isSending() && takeBack()) return;
    await outbox.flush();
    if (takeBack()) return;
    if (outbox.size) {
      hint("Going back needs the server: verdicts of another page of yours still wait to be saved.");
      return;
    }
    const current = currentPrompt();
    const answer = await ask(`/back?before=${current?.verdict ?? ""}`);
    const work = answer.ok ? parse(answer.text).querySelector("#work") : null;
    if (!work) {
      hint(sentence(answer.text) || "There is no earlier verdict.");
      return;
    }
    // A verdict that was taken back may have reached the server before: it is the same prompt, then.
    if (current && !current.verdict && current.assignment !== work.dataset.assignment) putAside();
    show(work);
    announce("Your earlier verdict, to change");
  } catch {
    hint("Going back needs the server, which could not be reached.");
  }
}

export function leaveBack() {
  const current = currentPrompt();
  const item = current && takenBack.get(current.work);
  if (!item && !current?.verdict) return;
  if (item) {
    takenBack.delete(current.work);
    showTakenBack(current.work, false);
    outbox.putBack(item);
    remember(item.key, current.work);
  }
  dropDraft(current.work);
  announce("The verdict stays as it was.");
  advance();
}

export function isChanging() {
  const current = currentPrompt();
  return Boolean(current && (current.verdict || takenBack.has(current.work)));
}

// Signing in again

export async function tryAgain() {
  if (saveState.dataset.state !== "signed-out") return;
  if ((await renew()) !== "same") return;
  signedOut.close();
  await outbox.resume();
  prefetch();
}

function isSending() {
  return saveState.dataset.state === "saving";
}

export function isSaved() {
  return saveState.dataset.state === "saved";
}

export function isSignedOut() {
  return saveState.dataset.state === "signed-out";
}

