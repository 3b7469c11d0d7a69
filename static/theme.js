// Sets the chosen theme before the first paint. Loaded in the head, without defer, for that reason alone.
(() => {
  "use strict";
  try {
    const theme = localStorage.getItem("illume.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be closed to us; the system's theme serves.
  }
})();
