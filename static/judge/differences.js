// Marks the words in which each candidate differs from the one most similar to it.

import { announce, hint } from "./announce.js";
import { setPressed } from "./card_view.js";
import { candidateRows } from "./draft.js";
import { comparableWords, diffWords, markWords } from "./word_diff.js";

const MIN_SIMILARITY = 0.6;
const stage = document.getElementById("stage");

export function toggleDifferences() {
  const card = stage.querySelector(".work");
  if (!card) return;
  const isOn = card.classList.toggle("differing");
  setPressed("differences", isOn);
  const texts = candidateRows().map((row) => row.querySelector(".text"));
  const words = texts.map((text) => comparableWords(text.textContent));
  let markedRows = 0;
  texts.forEach((text, index) => {
    const row = candidateRows()[index];
    delete row.dataset.against;
    const nearest = findNearest(words, index);
    const isMarked = isOn && nearest && nearest.similarity >= MIN_SIMILARITY;
    if (isMarked) {
      row.dataset.against = String(nearest.index + 1);
      markedRows += 1;
    }
    markWords(text, text.textContent, new Set(isMarked ? nearest.changed : []));
  });
  if (isOn && !markedRows) hint(gettext("No two explanations are similar enough to compare word by word."));
  else if (isOn) announce(ngettext("Differences highlighted in %(num)s explanation", "Differences highlighted in %(num)s explanations", markedRows));
  else announce(gettext("Highlighting off"));
}

// The text most similar to the one at `index`; undefined where there is no other that can be compared.
function findNearest(texts, index) {
  return texts
    .map((other, at) => {
      const found = at === index ? null : diffWords(texts[index], other);
      return found && { index: at, changed: found.changed, similarity: (2 * found.common) / (texts[index].length + other.length || 1) };
    })
    .filter(Boolean)
    .sort((one, two) => two.similarity - one.similarity)[0];
}
