// Comparing texts word by word, and marking words in the page.

// Texts whose parts that differ have more pairs of words than this are not compared: the time grows with the pairs.
const MAX_PAIRS = 400_000;
const LETTER = /[\p{L}\p{M}\p{N}\p{Extended_Pictographic}\p{Regional_Indicator}]/u;
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;
// The time a segmenter takes grows with the square of the text: it gets this many characters at a time.
const WINDOW = 256;
const WINDOW_OVERLAP = 8;
// Older browsers have none: there, texts without spaces are one word.
const segmenter = Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

// Spaces, and words with the punctuation around them.
function splitWords(text) {
  return text
    .split(/(\s+)/)
    .filter(Boolean)
    .flatMap((part) => (segmenter && UNSPACED.test(part) ? splitUnspaced(part) : part));
}

// Segments of a window are found again in the next one if they are among its last: words may be cut off at its end.
function* segmentsOf(part) {
  for (let start = 0; start < part.length; ) {
    const found = [...segmenter.segment(part.slice(start, start + WINDOW))].map((one) => one.segment);
    const isLast = start + WINDOW >= part.length;
    const kept = isLast ? found : found.slice(0, Math.max(1, found.length - WINDOW_OVERLAP));
    yield* kept;
    start += kept.join("").length;
  }
}

// The words of a part in a script that puts no spaces between them. Punctuation stays with the word before it.
function splitUnspaced(part) {
  const words = [];
  let hasWord = false;
  for (const segment of segmentsOf(part)) {
    const isWord = LETTER.test(segment);
    if (!words.length || (isWord && hasWord)) words.push(segment);
    else words[words.length - 1] += segment;
    hasWord ||= isWord;
  }
  return words;
}

// The word without case, and without what comes before its first letter or digit and after its last one.
function normalizeWord(word) {
  const letters = [...word.toLowerCase()];
  let start = 0;
  let end = letters.length;
  while (start < end && !LETTER.test(letters[start])) start += 1;
  while (end > start && !LETTER.test(letters[end - 1])) end -= 1;
  return letters.slice(start, end).join("");
}

// The words of a text without spaces, punctuation and case.
export function comparableWords(text) {
  return splitWords(text).filter((word) => word.trim()).map(normalizeWord);
}

// The indices of the words in `a` that are not in the longest common subsequence of `a` and `b`, and its length.
// Null where the texts are too long and too different to be compared.
export function diffWords(a, b) {
  const shorter = Math.min(a.length, b.length);
  let before = 0;
  while (before < shorter && a[before] === b[before]) before += 1;
  let after = 0;
  while (after < shorter - before && a[a.length - 1 - after] === b[b.length - 1 - after]) after += 1;
  const middle = [a, b].map((words) => words.slice(before, words.length - after));
  if (middle[0].length * middle[1].length > MAX_PAIRS) return null;
  const { changed, common } = diffMiddle(...middle);
  return { changed: changed.map((index) => index + before), common: common + before + after };
}

function diffMiddle(a, b) {
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
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
