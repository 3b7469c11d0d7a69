// Applies the chosen theme before the first paint. It is loaded in the head without defer for this reason only.
(() => {
  "use strict";
  try {
    const theme = localStorage.getItem("illume.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be disabled; the page then uses the theme of the system.
  }
})();
