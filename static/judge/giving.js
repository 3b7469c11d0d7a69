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
    showFigures(text);
    const words = sentence(text);
    if (words) toast(words, "warn");
    // The answer brings the next prompt along; where it could not, the claim that was given up makes room for one.
    if (!take(parse(text).querySelector("#work")) && lacksNext()) prefetch();
  },
  asides: whatIsKnown,
  onRefused(item, status, text) {
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
  if (kind === "picked" || kind === "none_fit") {
    const { picks, rationale, from } = said();
    if (kind === "picked") fields.push(...picks.map((id) => ["picks", id]));
    fields.push(["rationale", rationale], ["edited_from", from], ...tagFields());
  }
  const url = verdict ? `${base}/verdicts/${verdict}` : `${base}/assignments/${assignment}/verdict`;
  dropDraft(work);
  // The next prompt first: the verdict is stored by then, and the eye waits for nothing.
  outbox.put(url, fields, assignment);
  advance();
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
    await outbox.flush();
    if (outbox.size) {
      hint("Going back needs the server: your last verdicts still wait to be saved.");
      return;
    }
    const current = currentPrompt();
    const answer = await ask(`/back?before=${current?.verdict ?? ""}`);
    const work = answer.ok ? parse(answer.text).querySelector("#work") : null;
    if (!work) {
      hint(sentence(answer.text) || "There is no earlier verdict.");
      return;
    }
    if (current && !current.verdict) putAside();
    show(work);
    announce("Your earlier verdict, to change");
  } catch {
    hint("Going back needs the server, which could not be reached.");
  }
}

export function leaveBack() {
  const current = currentPrompt();
  if (!current?.verdict) return;
  dropDraft(current.work);
  announce("The verdict stays as it was.");
  advance();
}

// Signing in again

export async function tryAgain() {
  if (saveState.dataset.state !== "signed-out") return;
  if ((await renew()) !== "same") return;
  signedOut.close();
  await outbox.resume();
  prefetch();
}

export function isSaved() {
  return saveState.dataset.state === "saved";
}

export function isSignedOut() {
  return saveState.dataset.state === "signed-out";
}

