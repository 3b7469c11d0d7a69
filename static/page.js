// What every page needs beyond hypertext: the theme button, toasts, dialogs, and forms that are sent once.
//
// Attributes that pages use:
//   data-theme-button      cycles system -> light -> dark
//   data-opens="ID"        opens the <dialog> of that id; data-closes closes the one around it
//   data-dialog            on an htmx target inside a <dialog>: the dialog opens when content arrives
//   data-copy="SELECTOR"   copies that element's text
//   data-confirm="TEXT"    asks before the form is sent
//   data-shows-current     a row that scrolls so far that its [aria-current] is in sight
//   data-address="PATH"    the address the page stands at, where it is the answer to a form
(() => {
  "use strict";
  const root = document.documentElement;

  // Toasts: one template in the page, text only. What went wrong stays until it is dismissed; the rest leaves by itself,
  // though not while it is looked at.
  const lifetimes = { good: 8000, warn: 8000 };
  function leaveLater(element, lifetime) {
    setTimeout(() => {
      if (element.matches(":hover, :focus-within")) leaveLater(element, lifetime);
      else element.remove();
    }, lifetime);
  }
  function toast(text, tone = "bad") {
    const holder = document.getElementById("toasts");
    const template = document.getElementById("toast-template");
    if (!holder || !template) return;
    const element = template.content.firstElementChild.cloneNode(true);
    element.classList.add(tone);
    element.querySelector("[data-text]").textContent = text;
    // The same sentence twice tells nothing more.
    for (const other of holder.children) {
      if (other.querySelector("[data-text]")?.textContent === text) other.remove();
    }
    holder.append(element);
    if (lifetimes[tone]) leaveLater(element, lifetimes[tone]);
  }
  window.illume = { ...window.illume, toast };

  const themes = ["", "light", "dark"];
  const themeNames = { "": "as the system", light: "light", dark: "dark" };
  function showTheme() {
    const theme = root.dataset.theme ?? "";
    for (const button of document.querySelectorAll("[data-theme-button]")) {
      const label = `Theme: ${themeNames[theme]}`;
      button.setAttribute("aria-label", label);
      button.title = label;
    }
  }
  function nextTheme() {
    const theme = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % themes.length];
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    try {
      if (theme) localStorage.setItem("illume.theme", theme);
      else localStorage.removeItem("illume.theme");
    } catch {
      // The choice then lasts as long as the page.
    }
    showTheme();
  }

  async function copy(button) {
    const text = document.querySelector(button.dataset.copy)?.textContent.trim();
    if (!text) return;
    try {
      await navigator.clipboard.writeText(text);
      toast("Copied.", "good");
    } catch {
      toast("The browser did not allow copying: select the text and copy it yourself.", "warn");
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button, a, summary");
    if (!button) {
      for (const menu of document.querySelectorAll("details.menu[open]")) {
        if (!menu.contains(event.target)) menu.open = false;
      }
      return;
    }
    if (button.matches("[data-theme-button]")) nextTheme();
    if (button.matches("[data-opens]")) document.getElementById(button.dataset.opens)?.showModal();
    if (button.matches("[data-closes]")) button.closest("dialog")?.close();
    if (button.matches("[data-dismiss]")) button.closest(".toast")?.remove();
    if (button.matches("[data-copy]")) copy(button);
  });

  // Escape closes an open menu and gives the focus back.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const menu = document.querySelector("details.menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // A form is sent once: a second click while the first is under way does nothing.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.sent === "yes") {
      event.preventDefault();
      return;
    }
    if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) {
      event.preventDefault();
      return;
    }
    if (form.method !== "dialog" && !form.matches("[data-many]") && !event.defaultPrevented) form.dataset.sent = "yes";
  });
  // Coming back by the browser's history shows the page as it was, sent marks included.
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // htmx swaps every status by default. An answer that was not made for swapping must never overwrite the page.
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx } = event.detail;
    const status = ctx?.response?.status ?? 0;
    if (status < 400 || ctx.hx?.retarget) return;
    event.preventDefault();
    if (!ctx.sourceElement?.matches("[data-live]")) {
      toast(`That did not work (${status}). Nothing on this page was changed; please try again.`);
    }
  });
  document.addEventListener("htmx:error", (event) => {
    const { ctx } = event.detail;
    if (!ctx || ctx.sourceElement?.matches("[data-live]")) return;
    toast("The server could not be reached. Nothing on this page was changed; please try again.");
  });
  document.addEventListener("htmx:after:swap", (event) => {
    const target = event.detail.ctx?.target;
    if (target instanceof Element && target.matches("[data-dialog]")) {
      const dialog = target.closest("dialog");
      if (dialog && !dialog.open) dialog.showModal();
    }
  });

  // A page that answers a form stands at another address than the form's, so that a reload sends nothing again.
  const address = document.querySelector("[data-address]")?.dataset.address;
  if (address) history.replaceState(null, "", address);

  // Where a row is wider than the screen, what is current in it is brought into sight.
  for (const row of document.querySelectorAll("[data-shows-current]")) {
    const current = row.querySelector("[aria-current]");
    if (!current) continue;
    const [frame, box] = [row, current].map((one) => one.getBoundingClientRect());
    row.scrollLeft += box.left + box.width / 2 - frame.left - frame.width / 2;
  }

  showTheme();
})();
