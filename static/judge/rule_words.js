// Marks the words of a policy's rules in which they differ from what the policy says by default (data-default).

import { comparableWords, diffWords, markWords } from "./word_diff.js";

export function markRules(root) {
  for (const rule of root.querySelectorAll("[data-default]")) {
    const words = [rule.textContent, rule.dataset.default].map(comparableWords);
    const found = diffWords(...words);
    // Of a rule that has little in common with the default every word would be marked, which tells nothing.
    if (found && found.common * 2 >= words[0].length) markWords(rule, rule.textContent, new Set(found.changed));
  }
}
