// The page of imports: files that are dropped anywhere on it. Pictures are sent at once; another file is chosen.
(() => {
  "use strict";
  const zone = document.querySelector(".drop-zone");
  const photos = document.getElementById("photos");
  const file = document.getElementById("file");
  if (!zone || !photos || !file) return;
  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    zone.classList.remove("over");
    const dropped = [...event.dataTransfer.files];
    if (dropped.length && dropped.every((one) => one.type.startsWith("image/"))) {
      photos.files = event.dataTransfer.files;
      photos.form.requestSubmit();
    } else if (dropped.length === 1) {
      file.files = event.dataTransfer.files;
      file.focus();
    } else {
      window.illume.toast("Drop pictures, or one file of prompts.", "warn");
    }
  });
})();
