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
      window.illume.toast(gettext("Drop pictures, or one file of prompts."), "warn");
    }
  });

  // Photographs are sent one at a time, so that the page can say how far it is. The form itself is sent last, with what
  // is left: the last photograph, those that the server did not take, and the hashes of all others.
  const form = photos.form;
  const status = form.querySelector("[data-sent]");
  async function storePhoto(photo) {
    const body = new FormData();
    body.set("csrf_token", form.elements.csrf_token.value);
    body.set("photos", photo);
    const answer = await fetch(form.action, { method: "POST", body });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    return answer.ok ? [...page.querySelectorAll(".photo-row input[type=hidden]")] : [];
  }
  form.addEventListener("submit", async (event) => {
    const chosen = [...photos.files];
    if (chosen.length < 2 || chosen.length > Number(photos.dataset.most)) return;
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    for (const one of form.querySelectorAll("[name=sha256], [name=name]")) one.remove();
    const left = new DataTransfer();
    for (const [place, photo] of chosen.entries()) {
      status.textContent = gettext("Reading photo %(number)s of %(all)s…", { number: place + 1, all: chosen.length });
      const fields = place < chosen.length - 1 ? await storePhoto(photo).catch(() => []) : [];
      form.append(...fields);
      if (!fields.length) left.items.add(photo);
    }
    photos.files = left.files;
    button.disabled = false;
    form.submit();
  });
})();
