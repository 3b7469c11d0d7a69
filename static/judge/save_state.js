// The indicator that shows whether all verdicts are saved, and the dialog that asks to sign in again.

import { announce } from "./announce.js";

const indicator = document.getElementById("save-state");
const signedOutDialog = document.getElementById("signed-out-dialog");

// `state` is "saved", "saving", "waiting" (the server cannot be reached) or "signed-out".
export function showSaveState(state, count) {
  const labels = {
    saved: gettext("Saved"),
    saving: gettext("Saving…"),
    waiting: ngettext("Offline, %(num)s waiting", "Offline, %(num)s waiting", count),
    "signed-out": count ? ngettext("Signed out, %(num)s waiting", "Signed out, %(num)s waiting", count) : gettext("Signed out"),
  };
  const before = indicator.dataset.state;
  indicator.dataset.state = state;
  indicator.querySelector("[data-label]").textContent = labels[state];
  if (state === "waiting" && before !== "waiting") {
    announce(gettext("No connection. Your verdicts are kept and will be sent once it is back."));
  }
  if (state === "saved" && (before === "waiting" || before === "signed-out")) announce(gettext("All verdicts are saved."));
  if (state === "signed-out") {
    signedOutDialog.querySelector("[data-waiting]").textContent = count
      ? ngettext(
          "Nothing is lost. This browser has kept %(num)s verdict and will send everything once you sign in again.",
          "Nothing is lost. This browser has kept %(num)s verdicts and will send everything once you sign in again.",
          count,
        )
      : gettext("Nothing is lost. This browser has kept what you typed and will send everything once you sign in again.");
    if (before !== "signed-out" && !document.querySelector("dialog[open]")) signedOutDialog.showModal();
  }
}

export function saveState() {
  return indicator.dataset.state;
}

export function closeSignedOutDialog() {
  signedOutDialog.close();
}
