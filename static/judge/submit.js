// Giving a verdict on the current card.

import { hint } from "./announce.js";
import { endTakeBack, isChanging } from "./back.js";
import { canJudge, currentCard, showNext } from "./cards.js";
import { checkedBoxes, deleteDraft, draftedVerdict, saveDraft, tagFields } from "./draft.js";
import { acceptsClash, chooseNone, correctedValues, isRated } from "./fields.js";
import { keyLabel } from "./keys.js";
import { addVerdict, flush } from "./outbox.js";
import { saveState } from "./save_state.js";
import { base } from "./server.js";

export function submit() {
  if (!canJudge() || !isRated() || !acceptsClash()) return;
  const { picks, rationale } = draftedVerdict();
  if (!picks.length && !rationale) {
    hint(gettext("Pick what fits, or press %(key)s for None fits.", { key: keyLabel("none") }));
    return;
  }
  giveVerdict("picked");
}

// Where the project says so, a single pick is a verdict at once. It says nothing about what was not picked.
export function submitOnPick(box) {
  const isOn = document.getElementById("figures-now").hasAttribute("data-submits-on-pick");
  if (!isOn || !box.checked || isChanging() || !canJudge() || !acceptsClash()) return;
  const { picks, rationale } = draftedVerdict();
  if (picks.length === 1 && !rationale) giveVerdict("picked", "", [["exhaustive", "no"]]);
}

export function submitNoneFits() {
  if (!canJudge() || chooseNone() || !isRated()) return;
  if (checkedBoxes().length > 0) {
    for (const box of checkedBoxes()) box.checked = false;
    saveDraft();
    hint(gettext("Picks cleared. Press %(key)s again for None fits.", { key: keyLabel("none") }));
    return;
  }
  if (acceptsClash()) giveVerdict("none_fit");
}

// A change that was asked for in the list of verdicts leads back there, once it is saved.
async function returnToList(element) {
  if (!element.dataset.backTo) return;
  await flush();
  if (saveState() === "saved") window.location.assign(element.dataset.backTo);
}

export function giveVerdict(kind, reason = "", more = []) {
  const { assignment, verdict, clock, element } = currentCard();
  clock.stop();
  const fields = [["kind", kind], ["reason", reason], ["seconds", clock.seconds().toFixed(2)], ...more];
  if (endTakeBack(element)) fields.push(["again", "yes"]);
  if (kind === "picked" || kind === "none_fit") {
    const { picks, rationale, from } = draftedVerdict();
    if (kind === "picked") fields.push(...picks.map((id) => ["picks", id]));
    fields.push(["rationale", rationale], ["edited_from", from], ...tagFields());
    const values = correctedValues();
    if (Object.keys(values).length) fields.push(["fields", JSON.stringify(values)]);
  }
  const url = verdict ? `${base}/verdicts/${verdict}` : `${base}/assignments/${assignment}/verdict`;
  deleteDraft(element);
  // The verdict is stored in the browser before the next card shows; it is sent in the background.
  addVerdict(url, fields, element);
  showNext();
  returnToList(element);
}
