// The outbox: verdicts on their way to the server.
//
// A verdict is put here the moment it is given and sent in the background, oldest first. It stays in the browser's
// storage until the server has answered for good, so it survives a lost connection, a restart of the server and a
// reload. Every item carries a key under which the server takes it at most once. The outbox belongs to one person:
// items are kept under the person's id and sent only while that person is signed in.
//
// What an answer means:
//   2xx                       saved: gone from the outbox
//   401, or another person    kept until the person has signed in again
//   403                       the form token may be of an older session: it is renewed once, then the item is refused
//   408, 425, 429, 5xx, none  tried again, waiting longer each time (at most half a minute)
//   any other 4xx             refused: gone from the outbox, and the page says why
//
// What waits here may be taken back. Where it was tried before, the server may have it although nobody heard of that:
// what is given instead is sent with `again`, and the server takes it as a change then.

const LONGEST_WAIT = 30000;
const TRY_AGAIN = [408, 425, 429];

function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// `page` has: token(), renew() -> "same" | "signed-out" | "other" | "unreachable", onState(state, waiting),
// onSaved(item, response, text), onRefused(item, status, text), asides() -> more fields, as they are when it is sent.
export function makeOutbox(user, page) {
  const place = `illume.outbox.${user}`;
  let memory = [];
  let running = null;
  let failures = 0;
  let timer = 0;
  let held = false;
  let sending = "";
  let saidLast = "saved";

  function read() {
    try {
      memory = JSON.parse(localStorage.getItem(place) ?? "[]");
    } catch {
      // Storage is closed to us: the items then live as long as the page.
    }
    return memory;
  }

  function write(items) {
    memory = items;
    try {
      localStorage.setItem(place, JSON.stringify(items));
    } catch {
      // As above.
    }
  }

  function report(state) {
    saidLast = state;
    page.onState(state, read().length);
  }

  function put(url, fields, about) {
    const key = newKey();
    write([...read(), { key, url, fields, about }]);
    report(held ? "signed-out" : "saving");
    flush();
    return key;
  }

  // Takes the item with this key back, unless it is on its way at this moment. The item, or null.
  function takeBack(key) {
    const items = read();
    const item = key !== sending && items.find((one) => one.key === key);
    if (!item) return null;
    write(items.filter((one) => one !== item));
    if (held || items.length > 1) report(saidLast);
    else report("saved");
    return item;
  }

  // Puts an item that was taken back to the end of the queue, as it was.
  function putBack(item) {
    write([...read(), item]);
    report(held ? "signed-out" : "saving");
    flush();
  }

  function flush() {
    clearTimeout(timer);
    if (held) return Promise.resolve();
    running ??= alone(sendAll).finally(() => {
      running = null;
    });
    return running;
  }

  // Two tabs of one person share the outbox: one of them sends at a time.
  function alone(work) {
    return navigator.locks ? navigator.locks.request(place, work) : work();
  }

  async function sendAll() {
    for (let item = read()[0]; item; item = read()[0]) {
      report("saving");
      sending = item.key;
      const outcome = await send(item);
      sending = "";
      if (outcome === "later") return later();
      if (outcome === "signed-out") return hold();
      failures = 0;
      write(read().filter((other) => other.key !== item.key));
    }
    report("saved");
  }

  async function send(item, renewed = false) {
    let response;
    let text;
    try {
      response = await fetch(item.url, {
        method: "POST",
        body: new URLSearchParams([...item.fields, ...page.asides()]),
        headers: { "HX-Request": "true", "X-CSRF-Token": page.token(), "Idempotency-Key": item.key },
        signal: AbortSignal.timeout(20000),
      });
      text = await response.text();
    } catch {
      return "later";
    }
    if (response.ok) {
      page.onSaved(item, response, text);
      return "saved";
    }
    if (response.status === 401) return "signed-out";
    if (response.status >= 500 || TRY_AGAIN.includes(response.status)) return "later";
    if (response.status === 403 && !renewed) {
      const who = await page.renew();
      if (who === "same") return send(item, true);
      return who === "unreachable" ? "later" : "signed-out";
    }
    page.onRefused(item, response.status, text);
    return "refused";
  }

  function later() {
    failures += 1;
    report("waiting");
    timer = setTimeout(flush, Math.min(LONGEST_WAIT, 1000 * 2 ** (failures - 1)));
  }

  function hold() {
    held = true;
    report("signed-out");
  }

  function resume() {
    held = false;
    failures = 0;
    return flush();
  }

  window.addEventListener("online", () => flush());
  window.addEventListener("storage", (event) => {
    if (event.key === place && !running) report(read().length ? "saving" : "saved");
  });

  return {
    put,
    takeBack,
    putBack,
    flush,
    hold,
    resume,
    get size() {
      return read().length;
    },
    about: () => read().map((item) => item.about),
  };
}
