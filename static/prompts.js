// The list of prompts: selecting all on the page, and how many are selected.
(() => {
  "use strict";
  const form = document.querySelector("form.many");
  const holder = form?.querySelector("[data-select-all]");
  if (!holder) return;
  const all = holder.querySelector("input");
  const boxes = [...form.querySelectorAll('input[name="prompts"]')];
  const count = form.querySelector("[data-selected]");
  function show() {
    const selected = boxes.filter((box) => box.checked).length;
    count.textContent = selected ? `${selected} selected` : "";
    all.checked = selected === boxes.length;
    all.indeterminate = selected > 0 && selected < boxes.length;
  }
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    show();
  });
  for (const box of boxes) box.addEventListener("change", show);
  window.addEventListener("pageshow", show);
  holder.hidden = false;
  show();
})();
