// The settings page: search, marks of what differs from the default, and a reset for each setting.
//
// A field that has a default carries it in data-reset, as its value is in the form; `yes` is a ticked box.
(() => {
  "use strict";
  const form = document.querySelector("form.settings");
  const holder = document.querySelector("[data-settings-search]");
  if (!form || !holder) return;
  const fields = [...form.querySelectorAll(".field")];
  const controlOf = (field) => field.querySelector("input, select, textarea");
  const valueOf = (control) => (control.type === "checkbox" ? (control.checked ? "yes" : "") : control.value);

  function mark(field) {
    const changed = valueOf(controlOf(field)) !== field.dataset.reset;
    field.classList.toggle("changed", changed);
    field.querySelector("[data-reset-row]").hidden = !changed;
  }
  function reset(field) {
    const control = controlOf(field);
    if (control.type === "checkbox") control.checked = field.dataset.reset === "yes";
    else control.value = field.dataset.reset;
    control.dispatchEvent(new Event("input", { bubbles: true }));
    control.focus();
  }
  for (const field of fields.filter((one) => "reset" in one.dataset)) {
    const button = field.querySelector("[data-reset-button]");
    button.hidden = false;
    button.addEventListener("click", () => reset(field));
    field.addEventListener("input", () => mark(field));
    field.addEventListener("change", () => mark(field));
  }

  // Buttons that fill a field with an example.
  for (const row of form.querySelectorAll("[data-presets]")) {
    row.hidden = false;
    row.addEventListener("click", (event) => {
      const button = event.target.closest("[data-fills]");
      if (!button) return;
      const control = document.getElementById(button.dataset.fills);
      control.value = button.dataset.text;
      control.dispatchEvent(new Event("input", { bubbles: true }));
      control.focus();
    });
  }

  // Each word must occur in the label, the help or the name of a setting. Folds are open while something is searched.
  const search = document.getElementById("settings-search");
  const found = holder.querySelector("[data-found]");
  const textOf = (field) => `${field.textContent} ${controlOf(field).name.replaceAll("_", " ")}`.toLowerCase();
  const texts = new Map(fields.map((field) => [field, textOf(field)]));
  const folds = [...form.querySelectorAll("details.advanced")];
  const opened = new Map();
  function show() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const field of fields) {
      const fits = words.every((word) => texts.get(field).includes(word));
      field.hidden = !fits;
      if (fits) count += 1;
    }
    for (const part of form.querySelectorAll("details.advanced, [data-group]")) {
      part.hidden = ![...part.querySelectorAll(".field")].some((field) => !field.hidden);
    }
    for (const extra of form.querySelectorAll("#template-preview, #proposed-slug")) extra.hidden = words.length > 0;
    for (const fold of folds) {
      if (words.length && !opened.has(fold)) opened.set(fold, fold.open);
      if (words.length) fold.open = true;
      else if (opened.has(fold)) fold.open = opened.get(fold);
    }
    if (!words.length) opened.clear();
    found.textContent = words.length ? ngettext("%(num)s setting found", "%(num)s settings found", count) : "";
  }
  holder.hidden = false;
  search.addEventListener("input", show);
  show();
})();
