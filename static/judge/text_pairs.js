// Marks the words in which two texts of a page differ: those of the two .own-words in each [data-compared], and those of
// a policy's rules from what they say by default.

import { markRules } from "./rule_words.js";
import { comparableWords, diffWords, markWords } from "./word_diff.js";

function markAll() {
  markRules(document);
  for (const pair of document.querySelectorAll("[data-compared]")) {
    const texts = [...pair.querySelectorAll(".own-words")];
    if (texts.length !== 2) continue;
    const words = texts.map((text) => comparableWords(text.textContent));
    texts.forEach((text, index) => {
      const found = diffWords(words[index], words[1 - index]);
      markWords(text, text.textContent, new Set(found?.changed));
    });
  }
}

document.addEventListener("htmx:after:swap", markAll);
markAll();
