// Live fragments: an element with data-live, hx-get and hx-trigger="live" is polled every 2 s, every 10 s once it has not
// changed for a while, and never while the page is hidden. The server sends an ETag for each state and answers 304 while
// the state is the same; htmx does not swap a 304.
(() => {
  "use strict";
  const POLL_EVERY = 2000;
  const POLL_EVERY_IDLE = 10000;
  const IDLE_AFTER = 10; // unchanged responses in a row
  let unchanged = 0;
  let timer = 0;
  let isFailing = false;

  function poll() {
    clearTimeout(timer);
    if (!document.hidden) {
      for (const element of document.querySelectorAll("[data-live]")) {
        // An open dialog or menu in it must not be swapped away.
        if (element.querySelector("dialog[open], details.menu[open]")) continue;
        element.dispatchEvent(new CustomEvent("live", { bubbles: false }));
      }
    }
    timer = setTimeout(poll, unchanged >= IDLE_AFTER ? POLL_EVERY_IDLE : POLL_EVERY);
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
    isFailing = ctx.response.status >= 400;
    if (ctx.response.status === 304) unchanged += 1;
    else unchanged = 0;
    const etag = ctx.response.headers.get("etag");
    if (etag && ctx.response.status === 200) element.dataset.etag = etag;
    showState();
  });

  document.addEventListener("htmx:error", (event) => {
    if (!event.detail.ctx?.sourceElement?.matches("[data-live]")) return;
    isFailing = true;
    showState();
  });

  function showState() {
    const notice = document.getElementById("live-state");
    if (notice) notice.hidden = !isFailing;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    unchanged = 0;
    poll();
  });
  // Activity on the page returns to the short interval.
  document.addEventListener("pointerdown", () => {
    if (unchanged >= IDLE_AFTER) {
      unchanged = 0;
      poll();
    }
  });

  timer = setTimeout(poll, POLL_EVERY);
})();
