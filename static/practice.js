// Keyboard shortcuts of the practice page, the same as on the critic's page: numbers and letters pick, Enter continues.
//
// Where answers have fields, the numbers choose the value of the field that is asked for, as on the critic's page: before
// the explanations show one field after the other, and afterwards those that the critic wants to change.
(() => {
  "use strict";
  const { choiceKeys, keyNames, labelChoices } = window.illume;
  const ARROWS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"];
  const form = document.querySelector(".practice");
  const isBlind = "blind" in form.dataset;
  const bound = JSON.parse(form.dataset.keys);
  const boxes = [...form.querySelectorAll('input[name="picks"]:enabled')];
  const fieldSets = [...form.querySelectorAll("fieldset[data-field]:enabled")];
  const keys = choiceKeys(Object.values(bound));
  let byArrow = false;

  const valuesIn = (fieldSet) => [...fieldSet.querySelectorAll('input[type="radio"]')];
  const chosenIn = (fieldSet) => valuesIn(fieldSet).find((box) => box.checked);
  const missing = () => fieldSets.find((one) => "required" in one.dataset && !chosenIn(one));
  const askedSet = () => fieldSets.find((one) => one.classList.contains("is-asked"));

  function ask(fieldSet) {
    for (const one of fieldSets) one.classList.toggle("is-asked", one === fieldSet);
    form.classList.toggle("correcting", Boolean(fieldSet) && !isBlind);
    fieldSet?.scrollIntoView({ block: "nearest" });
  }

  function goOn() {
    if (isBlind && missing()) ask(missing());
    else document.querySelector("[data-go]").click();
  }

  function chosen(fieldSet) {
    if (isBlind) goOn();
    else ask(fieldSets[fieldSets.indexOf(fieldSet) + 1]);
  }

  // Before the explanations show it takes back the last choice; afterwards it asks for all of them again.
  function correct() {
    const last = isBlind ? [...fieldSets].reverse().find(chosenIn) : fieldSets[0];
    if (isBlind && last) chosenIn(last).checked = false;
    if (last) ask(last);
  }

  function showRules(button) {
    button.setAttribute("aria-pressed", String(button.closest("[data-assess]").classList.toggle("all-rules")));
  }

  function valueFor(names) {
    const values = valuesIn(askedSet());
    if (names.includes(bound.none)) return values.find((box) => "none" in box.dataset);
    return values.filter((box) => !("none" in box.dataset)).find((_, index) => names.includes(keys[index]));
  }

  labelChoices(form, keys);
  for (const label of form.querySelectorAll("[data-key]")) {
    const key = bound[label.dataset.key];
    label.textContent = key.length === 1 ? key.toUpperCase() : key;
  }
  if (isBlind) ask(missing() ?? fieldSets[0]);

  document.addEventListener("keydown", (event) => {
    byArrow = ARROWS.includes(event.key);
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const names = keyNames(event);
    const value = askedSet() && valueFor(names);
    const box = !askedSet() && boxes.find((_, index) => names.includes(keys[index]));
    if (value) {
      value.checked = true;
      chosen(askedSet());
    } else if (box) box.click();
    else if (names.includes("Escape") && askedSet() && !isBlind) ask();
    else if (names.includes(bound.correct) && fieldSets.length) correct();
    else if (names.includes("Enter") && !event.target.closest("a, button, summary")) goOn();
    else return;
    event.preventDefault();
  });
  document.addEventListener("pointerdown", () => {
    byArrow = false;
  });
  form.addEventListener("change", (event) => {
    // Who moves through the values by arrow keys has not decided yet: Enter goes on then.
    if (event.target.type === "radio" && !byArrow) chosen(event.target.closest("fieldset"));
  });
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (button?.dataset.do === "rules") showRules(button);
    else if (button) correct();
  });
})();
