// Comparing texts word by word, and marking words in the page.

const MAX_WORDS = 400;

function splitWords(text) {
  return text.split(/(\s+)/).filter(Boolean);
}

function normalizeWord(word) {
  return word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");
}

// The words of a text without spaces, punctuation and case; at most MAX_WORDS.
export function comparableWords(text) {
  return splitWords(text).filter((word) => word.trim()).map(normalizeWord).slice(0, MAX_WORDS);
}

// The indices of the words in `a` that are not in the longest common subsequence of `a` and `b`, and its length.
export function diffWords(a, b) {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const changed = [];
  let i = 0;
  let j = 0;
  while (i < a.length) {
    if (j < b.length && a[i] === b[j]) {
      i += 1;
      j += 1;
    } else if (j < b.length && lengths[i][j + 1] > lengths[i + 1][j]) j += 1;
    else {
      changed.push(i);
      i += 1;
    }
  }
  return { changed, common: lengths[0][0] };
}

// Writes `text` into `element`, with a <mark> around the words at the indices in `marked`.
export function markWords(element, text, marked) {
  let index = -1;
  element.replaceChildren(
    ...splitWords(text).map((word) => {
      if (word.trim()) index += 1;
      if (!word.trim() || !marked.has(index)) return word;
      const mark = document.createElement("mark");
      mark.textContent = word;
      return mark;
    }),
  );
}
