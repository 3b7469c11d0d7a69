// Keyboard shortcuts of the practice page, the same as on the critic's page: numbers pick, Enter continues.
(() => {
  "use strict";
  const boxes = [...document.querySelectorAll('.practice input[name="picks"]:enabled')];
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    if (digit) boxes[Number(digit) - 1]?.click();
    else if (event.key === "Enter" && !event.target.closest("a, button, summary")) document.querySelector("[data-go]").click();
    else return;
    event.preventDefault();
  });
})();
