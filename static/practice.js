// Keyboard shortcuts of the practice page, the same as on the critic's page: numbers and letters pick, Enter continues.
(() => {
  "use strict";
  const { choiceKeys, keyNames, labelChoices } = window.illume;
  const form = document.querySelector(".practice");
  const boxes = [...form.querySelectorAll('input[name="picks"]:enabled')];
  const keys = choiceKeys(JSON.parse(form.dataset.taken));
  labelChoices(form, keys);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const names = keyNames(event);
    const box = boxes.find((_, index) => names.includes(keys[index]));
    if (box) box.click();
    else if (names.includes("Enter") && !event.target.closest("a, button, summary")) document.querySelector("[data-go]").click();
    else return;
    event.preventDefault();
  });
})();
