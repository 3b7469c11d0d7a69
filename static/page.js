// Behaviour that every page shares: the theme button, toasts, dialogs, and forms that are submitted only once and on purpose.
//
// Attributes that pages use:
//   data-theme-button      cycles through the themes: system, light, dark
//   data-opens="ID"        opens the <dialog> with that id; data-closes closes the dialog that contains it
//   data-dialog            on an htmx target inside a <dialog>: the dialog opens when content is swapped in
//   data-copy="SELECTOR"   copies the text of that element
//   data-confirm="TEXT"    asks for confirmation before the form is submitted
//   data-shows-current     scrolls the row until its [aria-current] element is visible
//   data-address="PATH"    the address to show, where the page is the response to a form
//   data-seen-first        what is in it cannot be pressed before it was there for LOOK_MS, nor by the second click of a
//                          double click, nor by a key that is held down; data-seen="yes" says that it can be pressed
(() => {
  "use strict";
  const root = document.documentElement;
  const { isComposing, keyNames } = window.illume;

  // Toasts are made from one template and contain only text. Errors stay until they are dismissed; the others disappear
  // by themselves, but not while they have the pointer or the focus.
  const lifetimes = { good: 8000, warn: 8000, plain: 8000 };
  function removeLater(element, lifetime) {
    setTimeout(() => {
      if (element.matches(":hover, :focus-within")) removeLater(element, lifetime);
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
    // A toast with the same text replaces the older one.
    for (const other of holder.children) {
      if (other.querySelector("[data-text]")?.textContent === text) other.remove();
    }
    holder.append(element);
    if (lifetimes[tone]) removeLater(element, lifetimes[tone]);
  }

  // Messages never cover the field that is being filled in: where they would, they move to the top of the window.
  function overlap(one, other) {
    const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
    return Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) *
      Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
  }
  function keepClear() {
    const holder = document.getElementById("toasts");
    const field = document.activeElement;
    if (!holder) return;
    holder.classList.remove("at-top");
    if (!field?.matches("input, textarea, select")) return;
    const below = overlap(holder, field);
    if (!below) return;
    holder.classList.add("at-top");
    if (overlap(holder, field) >= below) holder.classList.remove("at-top");
  }
  for (const kind of ["focusin", "focusout", "input", "scroll"]) {
    document.addEventListener(kind, () => requestAnimationFrame(keepClear), { capture: true, passive: true });
  }
  window.addEventListener("resize", keepClear);
  const messages = document.getElementById("toasts");
  if (messages) new MutationObserver(keepClear).observe(messages, { childList: true });
  keepClear();

  // Nobody decides in so short a time: what is pressed then was meant for what stood there before.
  const LOOK_MS = 400;
  const lookTimers = new WeakMap();
  function startLooking(element) {
    delete element.dataset.seen;
    clearTimeout(lookTimers.get(element));
    const see = () => {
      element.dataset.seen = "yes";
    };
    lookTimers.set(element, setTimeout(see, LOOK_MS));
  }
  function isSeen(element) {
    return element.dataset.seen === "yes";
  }
  function stop(event) {
    event.preventDefault();
    event.stopImmediatePropagation();
  }
  function pressed(event) {
    return event.target.closest("button, a, summary")?.closest("[data-seen-first]");
  }
  function startAllLooking() {
    for (const element of document.querySelectorAll("[data-seen-first]")) startLooking(element);
  }
  document.addEventListener(
    "click",
    (event) => {
      const element = pressed(event);
      if (!element) return;
      if (event.detail > 1 || !isSeen(element)) stop(event);
      else if ([...element.querySelectorAll('img:not([loading="lazy"])')].some((image) => !image.complete)) {
        stop(event);
        toast(gettext("The image is still loading. Please wait until you can see it."), "warn");
      }
    },
    { capture: true },
  );
  document.addEventListener("keydown", (event) => event.repeat && event.key === "Enter" && pressed(event) && stop(event), {
    capture: true,
  });
  document.addEventListener("load", (event) => {
    const element = event.target.closest?.("[data-seen-first]");
    if (element) startLooking(element);
  }, { capture: true });
  startAllLooking();

  window.illume = { ...window.illume, toast, startLooking, isSeen };

  const themes = ["", "light", "dark"];
  const themeNames = { "": gettext("Theme: as the system"), light: gettext("Theme: light"), dark: gettext("Theme: dark") };
  function showTheme() {
    const theme = root.dataset.theme ?? "";
    for (const button of document.querySelectorAll("[data-theme-button]")) {
      const label = themeNames[theme];
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
      // Storage is disabled: the choice lasts as long as the page.
    }
    showTheme();
  }

  async function copy(button) {
    const text = document.querySelector(button.dataset.copy)?.textContent.trim();
    if (!text) return;
    try {
      await navigator.clipboard.writeText(text);
      toast(gettext("Copied."), "good");
    } catch {
      toast(gettext("Your browser blocked copying. Select the text and copy it yourself."), "warn");
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

  // Escape closes an open menu and returns the focus to its button.
  document.addEventListener("keydown", (event) => {
    if (!keyNames(event).includes("Escape")) return;
    const menu = document.querySelector("details.menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // The Enter that ends a composition accepts what was composed; it does not submit the form.
  document.addEventListener(
    "keydown",
    (event) => {
      const isEnter = event.key === "Enter" || event.code === "Enter" || event.code === "NumpadEnter";
      if (isEnter && isComposing(event) && event.target.closest("input, select")) event.preventDefault();
    },
    { capture: true },
  );

  // A form is submitted once: a second click before the response arrives does nothing.
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
  // A page restored from the browser's history may still carry the marks of submitted forms.
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) startAllLooking();
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  // htmx swaps the response of any status by default. An error that was not made for swapping must not overwrite the page.
  document.addEventListener("htmx:before:swap", (event) => {
    const { ctx } = event.detail;
    const status = ctx?.response?.status ?? 0;
    if (status < 400 || ctx.hx?.retarget) return;
    event.preventDefault();
    if (!ctx.sourceElement?.matches("[data-live]")) {
      toast(gettext("Something went wrong (%(status)s). Nothing was changed. Please try again.", { status }));
    }
  });
  document.addEventListener("htmx:error", (event) => {
    const { ctx } = event.detail;
    if (!ctx || ctx.sourceElement?.matches("[data-live]")) return;
    toast(gettext("The server could not be reached. Nothing was changed. Please try again."));
  });
  document.addEventListener("htmx:after:swap", (event) => {
    const target = event.detail.ctx?.target;
    if (target instanceof Element && target.matches("[data-dialog]")) {
      const dialog = target.closest("dialog");
      if (dialog && !dialog.open) dialog.showModal();
    }
  });

  // A page that is the response to a form gets another address, so that a reload does not submit the form again.
  const address = document.querySelector("[data-address]")?.dataset.address;
  if (address) history.replaceState(null, "", address);

  // Where a row is wider than the screen, its current element is scrolled into view.
  for (const row of document.querySelectorAll("[data-shows-current]")) {
    const current = row.querySelector("[aria-current]");
    if (!current) continue;
    const [frame, box] = [row, current].map((one) => one.getBoundingClientRect());
    row.scrollLeft += box.left + box.width / 2 - frame.left - frame.width / 2;
  }

  showTheme();
})();
