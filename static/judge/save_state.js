// The indicator that shows whether all verdicts are saved, and the dialog that asks to sign in again.

import { announce } from "./announce.js";

const indicator = document.getElementById("save-state");
const signedOutDialog = document.getElementById("signed-out-dialog");

// `state` is "saved", "saving", "waiting" (the server cannot be reached) or "signed-out".
export function showSaveState(state, count) {
  const verdicts = count === 1 ? "1 verdict" : `${count} verdicts`;
  const labels = {
    saved: "Saved",
    saving: "Saving…",
    waiting: `Offline, ${count} waiting`,
    "signed-out": count ? `Signed out, ${count} waiting` : "Signed out",
  };
  const before = indicator.dataset.state;
  indicator.dataset.state = state;
  indicator.querySelector("[data-label]").textContent = labels[state];
  if (state === "waiting" && before !== "waiting") {
    announce("No connection. Your verdicts are kept and will be sent once it is back.");
  }
  if (state === "saved" && (before === "waiting" || before === "signed-out")) announce("All verdicts are saved.");
  if (state === "signed-out") {
    signedOutDialog.querySelector("[data-waiting]").textContent = count ? verdicts : "what you typed";
    if (before !== "signed-out" && !document.querySelector("dialog[open]")) signedOutDialog.showModal();
  }
}

export function saveState() {
  return indicator.dataset.state;
}

export function closeSignedOutDialog() {
  signedOutDialog.close();
}
