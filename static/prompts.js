// The list of prompts: selecting all on the page or all that match, and how many are selected. The list is swapped while
// many are changed in steps, so what is in it is looked up anew each time.
(() => {
  "use strict";
  const found = document.getElementById("found");
  const one = (selector) => found?.querySelector(selector);
  const boxes = () => [...found.querySelectorAll('input[name="prompts"]')];

  function show() {
    const holder = one("[data-select-all]");
    if (!holder) return;
    holder.hidden = false;
    const all = holder.querySelector("input");
    const selected = boxes().filter((box) => box.checked).length;
    const matching = one('[data-matches] input[name="all"]');
    const isAll = matching?.checked ?? false;
    one("[data-selected]").textContent = !isAll && selected ? ngettext("%(num)s selected", "%(num)s selected", selected) : "";
    all.checked = selected === boxes().length;
    all.indeterminate = selected > 0 && !all.checked;
    // All that match can be asked for once all on the page are selected; they are counted then.
    const beyond = one("[data-matches]");
    if (!beyond) return;
    beyond.hidden = !all.checked && !isAll;
    if (all.checked && !matching && beyond.dataset.asked !== "yes") {
      beyond.dataset.asked = "yes";
      beyond.dispatchEvent(new CustomEvent("matches"));
    }
  }

  found?.addEventListener("change", (event) => {
    const matching = one('[data-matches] input[name="all"]');
    if (event.target.closest("[data-select-all]")) {
      for (const box of boxes()) box.checked = event.target.checked;
    } else if (event.target === matching && matching.checked) {
      for (const box of boxes()) box.checked = true;
    }
    // Whoever takes one out does not mean all any more.
    if (matching && boxes().some((box) => !box.checked)) matching.checked = false;
    show();
  });
  document.addEventListener("htmx:after:swap", show);
  window.addEventListener("pageshow", show);
  show();
})();
