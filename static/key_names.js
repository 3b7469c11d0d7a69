// What a pressed key is called, on every page and every keyboard layout.
//
//   digits    by their place: AZERTY needs no Shift for them, and the number pad works
//   letters   as the layout types them; where it has no Latin letters, by their place on a US keyboard
//   others    as browsers name them: "Enter", "ArrowUp", "?"
//
// While an input method composes, keys belong to it and have no names here.
(() => {
  "use strict";
  const NAMED = /^[A-Z][A-Za-z0-9]+$/;
  const LATIN = /^\p{Script=Latin}+$/u;
  const LETTERS = /^[\p{L}\p{M}]+$/u;
  const QUESTION_MARKS = { "؟": "?", "՞": "?" };
  const DIGITS = [..."123456789"];
  const ALPHABET = [..."abcdefghijklmnopqrstuvwxyz"];
  // Which letters the keyboard typed last: "latin", "other", or "" before the first one.
  let script = "";

  // Safari ends the composition before it tells of the Enter that ended it: only the code 229 is left then.
  function isComposing(event) {
    return event.isComposing || event.keyCode === 229;
  }

  function isForeign(typed) {
    return LETTERS.test(typed) && !LATIN.test(typed);
  }

  function digitOf({ key, code, shiftKey }, isThirdLevel) {
    if (/^[0-9]$/.test(key)) return key;
    return shiftKey || isThirdLevel ? undefined : /^(?:Digit|Numpad)([0-9])$/.exec(code)?.[1];
  }

  // Capitals say nothing about the layout: Hebrew types Latin ones with Shift.
  function noteScript(typed, key) {
    if (typed === key && LETTERS.test(typed)) script = isForeign(typed) ? "other" : "latin";
  }

  // The names of a pressed key: what it types, then what a US keyboard types there, where the layout lacks that letter.
  function keyNames(event) {
    const { code } = event;
    const key = (event.key ?? "").normalize("NFKC");
    if (!key || isComposing(event)) return [];
    const isThirdLevel = event.getModifierState?.("AltGraph");
    const digit = digitOf({ key, code, shiftKey: event.shiftKey }, isThirdLevel);
    if (digit) return [digit];
    if (NAMED.test(key)) return [key];
    const typed = QUESTION_MARKS[key] ?? key.toLowerCase().replace("i\u0307", "i");
    noteScript(typed, key);
    const place = isThirdLevel ? undefined : /^Key([A-Z])$/.exec(code)?.[1].toLowerCase();
    // Hebrew and Greek have punctuation in places of letters; so do AZERTY and Dvorak, which have those letters elsewhere.
    const isLacking = isForeign(typed) || (!LATIN.test(typed) && script !== "latin");
    return place && isLacking ? [typed, place] : [typed];
  }

  // The one name to keep for a pressed key: the Latin letter where the keyboard types other ones.
  function keyName(event) {
    const names = keyNames(event);
    return (isForeign(names[0] ?? "") || script === "other" ? names.at(-1) : names[0]) ?? "";
  }

  // The keys that choose from a list: 1 to 9, then the letters that are not `taken` by something else.
  function choiceKeys(taken) {
    return [...DIGITS, ...ALPHABET.filter((letter) => !taken.includes(letter))];
  }

  // Writes the keys of a list into its labels: data-choice is the place in the list.
  function labelChoices(root, keys) {
    for (const label of root.querySelectorAll("[data-choice]")) {
      const text = keys[label.dataset.choice - 1]?.toUpperCase() ?? "";
      if (label.textContent !== text) label.textContent = text;
      label.hidden = !text;
    }
  }

  window.illume = { ...window.illume, isComposing, keyName, keyNames, choiceKeys, labelChoices };
})();
