// Live fragments: an element with data-live, hx-get and hx-trigger="live" is asked for again every 2 s, every 10 s
// once nothing has changed for a while, and never while the page is hidden. The server names each state by an ETag
// and answers 304 when it is still the same, which htmx does not swap.
(() => {
  "use strict";
  const BUSY = 2000;
  const IDLE = 10000;
  const QUIET_ANSWERS = 10;
  let quiet = 0;
  let timer = 0;
  let failing = false;

  function ask() {
    clearTimeout(timer);
    if (!document.hidden) {
      for (const element of document.querySelectorAll("[data-live]")) {
        // What somebody is reading or about to press stays as it is.
        if (element.querySelector("dialog[open], details.menu[open]")) continue;
        element.dispatchEvent(new CustomEvent("live", { bubbles: false }));
      }
    }
    timer = setTimeout(ask, quiet >= QUIET_ANSWERS ? IDLE : BUSY);
  }

  document.addEventListener("htmx:config:request", (event) => {
    const { ctx } = event.detail;
    const element = ctx?.sourceElement;
    if (!element?.matches("[data-live]")) return;
    ctx.request.cache = "no-store";
    if (element.dataset.etag) ctx.request.headers["If-None-Match"] = element.dataset.etag;
  });

  document.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail;
    const element = ctx?.sourceElement;
    if (!element?.matches("[data-live]")) return;
    if (ctx.response.status === 401) window.location.reload();
    failing = ctx.response.status >= 400;
    if (ctx.response.status === 304) quiet += 1;
    else quiet = 0;
    const etag = ctx.response.headers.get("etag");
    if (etag && ctx.response.status === 200) element.dataset.etag = etag;
    show();
  });

  document.addEventListener("htmx:error", (event) => {
    if (!event.detail.ctx?.sourceElement?.matches("[data-live]")) return;
    failing = true;
    show();
  });

  function show() {
    const notice = document.getElementById("live-state");
    if (notice) notice.hidden = !failing;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    quiet = 0;
    ask();
  });
  // An open page that is worked on is looked at closely again.
  document.addEventListener("pointerdown", () => {
    if (quiet >= QUIET_ANSWERS) {
      quiet = 0;
      ask();
    }
  });

  timer = setTimeout(ask, BUSY);
})();
