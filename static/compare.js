// Blind comparison: keys press their buttons (1, 2, 0; U goes back to the last pair, Esc keeps what was said there), and
// the time is measured while the page is visible.
(() => {
  "use strict";
  const { keyNames } = window.illume;
  const form = document.querySelector("[data-blind]");
  if (!form) return;
  let total = 0;
  let since = document.hidden ? 0 : performance.now();

  document.addEventListener("visibilitychange", () => {
    if (document.hidden && since) total += performance.now() - since;
    since = document.hidden ? 0 : performance.now();
  });
  form.addEventListener("submit", () => {
    const time = total + (since ? performance.now() - since : 0);
    form.querySelector("[data-seconds]").value = (time / 1000).toFixed(1);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const names = keyNames(event);
    const button = [...form.querySelectorAll("[data-key]")].find((one) => names.includes(one.dataset.key));
    if (!button) return;
    event.preventDefault();
    button.click();
  });
})();
