// The critic's page.
//
// The server renders every prompt as a fragment (templates/annotate/_card.html). This script does what hypertext
// cannot: keys, the time a verdict took, showing the next prompt at once, and not losing anything.
//
//   current    the prompt that is judged; its clock runs from the moment its images are rendered, while the tab is seen
//   upcoming   the next prompt, claimed and its images decoded while the current one is judged
//   aside      prompts put aside while an earlier verdict is changed
//   outbox     verdicts on their way (outbox.js)
//   draft      picks and words of the current prompt, kept in the browser's storage until they are submitted
(() => {
  "use strict";
  const judge = document.querySelector(".judge");
  const stage = document.getElementById("stage");
  const announcer = document.getElementById("announcer");
  const saveState = document.getElementById("save-state");
  const signedOut = document.getElementById("signed-out-dialog");
  const { slug, user } = judge.dataset;
  const base = `/annotate/${slug}`;
  const leaseMs = Number(judge.dataset.leaseSeconds) * 1000;
  const draftPlace = `illume.draft.${user}`;
  const POLL = 2000;
  const FIGURES_EVERY = 15000;

  let token = document.getElementById("figures-now").dataset.csrf;
  let current = null;
  let upcoming = null;
  let fetching = null;
  let stepsBack = 0;
  let lastActive = Date.now();
  const aside = [];
  const zoom = window.illume.makeZoom(document.getElementById("zoom-dialog"), document.getElementById("zoom-pane"));
  const toast = window.illume.toast;

  // Saying things

  function announce(text) {
    announcer.textContent = "";
    // A change in a later turn is read even when the words are the same.
    setTimeout(() => {
      announcer.textContent = text;
    }, 50);
  }

  function showState(state, waiting) {
    const many = waiting === 1 ? "1 verdict" : `${waiting} verdicts`;
    const labels = {
      saved: "Saved",
      saving: "Saving…",
      waiting: `Offline, ${waiting} waiting`,
      "signed-out": waiting ? `Signed out, ${waiting} waiting` : "Signed out",
    };
    const before = saveState.dataset.state;
    saveState.dataset.state = state;
    saveState.querySelector("[data-label]").textContent = labels[state];
    if (state === "waiting" && before !== "waiting") {
      announce("No connection. Your verdicts are kept and sent when it is back.");
    }
    if (state === "saved" && (before === "waiting" || before === "signed-out")) announce("All verdicts are saved.");
    if (state === "signed-out") {
      signedOut.querySelector("[data-waiting]").textContent = waiting ? many : "what you typed";
      if (before !== "signed-out" && !document.querySelector("dialog[open]")) signedOut.showModal();
    }
  }

  // Talking with the server

  async function ask(path, fields) {
    const options = { headers: { "HX-Request": "true", "X-CSRF-Token": token }, signal: AbortSignal.timeout(20000) };
    if (fields) Object.assign(options, { method: "POST", body: new URLSearchParams(fields) });
    const response = await fetch(base + path, options);
    return { status: response.status, ok: response.ok, text: await response.text() };
  }

  function parse(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    return document.importNode(template.content, true);
  }

  function sentence(html) {
    return parse(html).querySelector("[data-text]")?.textContent.trim() ?? "";
  }

  function showFigures(html) {
    const fresh = parse(html).querySelector("#figures-now");
    if (!fresh || fresh.dataset.user !== user) return;
    const old = document.getElementById("figures-now");
    token = fresh.dataset.csrf;
    if (old.outerHTML === fresh.outerHTML) return;
    const line = document.querySelector(".round-line progress");
    line.max = Number(fresh.dataset.lineMax);
    line.value = Number(fresh.dataset.lineValue);
    line.setAttribute("aria-label", fresh.dataset.lineLabel);
    if (old.dataset.round !== fresh.dataset.round && fresh.dataset.round) {
      toast(`${fresh.dataset.round} has started: it trains on what was picked.`, "good");
    }
    if (old.dataset.version !== fresh.dataset.version && old.dataset.version) {
      toast(`${fresh.dataset.version} is active now: new candidates come from it.`, "good");
    }
    old.replaceWith(fresh);
  }

  // Who is signed in now? Takes over the form token of a new session of the same person.
  async function renew() {
    let answer;
    try {
      answer = await ask("/figures");
    } catch {
      return "unreachable";
    }
    if (answer.status === 401) return "signed-out";
    if (!answer.ok) return answer.status >= 500 ? "unreachable" : "same";
    if (parse(answer.text).querySelector("#figures-now")?.dataset.user !== user) return "other";
    showFigures(answer.text);
    return "same";
  }

  const outbox = window.illume.makeOutbox(user, {
    token: () => token,
    renew,
    onState: showState,
    onSaved(item, response, text) {
      showFigures(text);
      const said = sentence(text);
      if (said) toast(said, "warn");
    },
    onRefused(item, status, text) {
      toast(`A verdict was not taken. ${sentence(text) || `The server said ${status}.`}`, "bad");
    },
  });

  // The time a verdict takes

  function makeClock() {
    let total = 0;
    let since = null;
    return {
      start() {
        since ??= performance.now();
      },
      stop() {
        if (since !== null) total += performance.now() - since;
        since = null;
      },
      seconds() {
        return (total + (since === null ? 0 : performance.now() - since)) / 1000;
      },
    };
  }

  // The draft

  function checkboxes() {
    return [...stage.querySelectorAll('input[name="picks"]')];
  }

  function picked() {
    return checkboxes().filter((box) => box.checked);
  }

  function ownWords() {
    return stage.querySelector("#own-rationale");
  }

  function keepDraft() {
    if (!current) return;
    const draft = {
      assignment: current.assignment,
      verdict: current.verdict,
      picks: picked().map((box) => box.value),
      rationale: ownWords().value,
    };
    try {
      localStorage.setItem(draftPlace, JSON.stringify(draft));
    } catch {
      // Without storage the draft lives in the page alone.
    }
  }

  function takeDraft() {
    let draft = null;
    try {
      draft = JSON.parse(localStorage.getItem(draftPlace) ?? "null");
    } catch {
      return;
    }
    if (draft?.assignment !== current.assignment || draft.verdict !== current.verdict) return;
    for (const box of checkboxes()) box.checked = draft.picks.includes(box.value);
    ownWords().value = draft.rationale;
  }

  function dropDraft() {
    try {
      localStorage.removeItem(draftPlace);
    } catch {
      // Nothing was kept, then.
    }
  }

  // Showing a prompt

  function pictures(work) {
    return [...work.querySelectorAll(".picture img")];
  }

  function decode(work) {
    return Promise.all(pictures(work).map((picture) => picture.decode()));
  }

  function nextFrame() {
    return new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  }

  async function show(work, { quietly = false } = {}) {
    const card = Boolean(work.dataset.assignment);
    current = card
      ? { work, assignment: work.dataset.assignment, verdict: work.dataset.verdict, ready: false, clock: makeClock() }
      : null;
    if (work.parentElement !== stage) stage.replaceChildren(work);
    judge.dataset.state = card ? "waiting" : "empty";
    if (card) takeDraft();
    if (!quietly) {
      work.querySelector("#question").focus({ preventScroll: true });
      if (card && !work.dataset.verdict) announce(`Next prompt, ${checkboxes().length} candidates`);
    }
    if (card) await render(current);
    prefetch();
  }

  async function render(shown) {
    const problem = shown.work.querySelector(".picture-problem");
    try {
      await decode(shown.work);
      problem.hidden = true;
      await nextFrame();
    } catch {
      problem.hidden = false;
      return;
    }
    shown.ready = true;
    if (shown !== current) return;
    judge.dataset.state = "judging";
    if (!document.hidden) shown.clock.start();
  }

  // The next prompt

  function known() {
    const ids = [current?.assignment, upcoming?.dataset.assignment, ...aside.map((one) => one.dataset.assignment)];
    return [...new Set([...ids, ...outbox.about()].filter(Boolean))].map((id) => ["known", id]);
  }

  function prefetch() {
    if (upcoming) return Promise.resolve();
    fetching ??= fetchNext();
    return fetching;
  }

  async function fetchNext() {
    const work = await claim();
    fetching = null;
    if (!work) return;
    if (!work.dataset.assignment) {
      if (!current) showEmpty(work);
      return;
    }
    // Meanwhile it may have been judged here: then it is no next one.
    if (known().some(([, id]) => id === work.dataset.assignment)) return;
    if (!current) {
      show(work);
      return;
    }
    upcoming = work;
    decode(work).catch(() => {
      // It is tried again, and said, when the prompt is shown.
    });
  }

  async function claim() {
    let answer;
    try {
      answer = await ask("/next", known());
    } catch {
      return null;
    }
    if (answer.status === 401) outbox.hold();
    if (answer.status === 403 && ["signed-out", "other"].includes(await renew())) outbox.hold();
    return answer.ok ? parse(answer.text).querySelector("#work") : null;
  }

  function showEmpty(work) {
    const before = stage.querySelector("#work");
    if (before?.dataset.empty && before.textContent === work.textContent) return;
    show(work, { quietly: Boolean(before?.dataset.empty) });
  }

  async function advance() {
    const again = aside.pop();
    if (again) return show(again);
    if (upcoming) {
      const work = upcoming;
      upcoming = null;
      return show(work);
    }
    current = null;
    judge.dataset.state = "empty";
    // A claim that is under way was asked with what was judged as known: its answer is the next prompt.
    await prefetch();
    if (!current) await prefetch();
    if (!current && !stage.querySelector("[data-empty]")) stage.replaceChildren(lookingFor());
  }

  function lookingFor() {
    const work = document.createElement("section");
    work.id = "work";
    work.className = "empty nothing";
    work.dataset.empty = "looking";
    const title = document.createElement("h1");
    title.id = "question";
    title.tabIndex = -1;
    title.textContent = navigator.onLine ? "Looking for the next prompt…" : "No connection";
    const text = document.createElement("p");
    text.textContent = "It appears here by itself. What you judged is kept and sent.";
    work.append(title, text);
    return work;
  }

  // Giving a verdict

  function hint(text) {
    announce(text);
    toast(text, "warn");
  }

  function mayJudge() {
    if (!current) return false;
    if (current.ready) return true;
    hint("The image is not there yet: a verdict needs it.");
    return false;
  }

  function submit() {
    if (!mayJudge()) return;
    if (picked().length === 0 && !ownWords().value.trim()) {
      hint("Pick what fits, or press 0 where none does.");
      return;
    }
    give("picked", picked().map((box) => box.value));
  }

  function noneFits() {
    if (!mayJudge()) return;
    if (picked().length > 0) {
      for (const box of picked()) box.checked = false;
      keepDraft();
      hint("The picks are put back. Press 0 once more: none fits.");
      return;
    }
    give("none_fit", []);
  }

  function give(kind, picks, reason = "") {
    const { assignment, verdict, clock } = current;
    clock.stop();
    const fields = [
      ["kind", kind],
      ...picks.map((id) => ["picks", id]),
      ["reason", reason],
      ["rationale", kind === "picked" || kind === "none_fit" ? ownWords().value.trim() : ""],
      ["seconds", clock.seconds().toFixed(2)],
    ];
    const url = verdict ? `${base}/verdicts/${verdict}` : `${base}/assignments/${assignment}/verdict`;
    dropDraft();
    outbox.put(url, fields, assignment);
    advance();
  }

  // Going back

  // Pressed twice, it goes back twice, however slow the server is.
  async function back() {
    stepsBack += 1;
    if (stepsBack > 1) return;
    while (stepsBack > 0) {
      await oneBack();
      stepsBack -= 1;
    }
  }

  async function oneBack() {
    try {
      await outbox.flush();
      if (outbox.size) {
        hint("Going back needs the server: your last verdicts still wait to be saved.");
        return;
      }
      const answer = await ask(`/back?before=${current?.verdict ?? ""}`);
      const work = answer.ok ? parse(answer.text).querySelector("#work") : null;
      if (!work) {
        hint(sentence(answer.text) || "There is no earlier verdict.");
        return;
      }
      if (current && !current.verdict) putAside();
      show(work);
    } catch {
      hint("Going back needs the server, which could not be reached.");
    }
  }

  function putAside() {
    keepDraft();
    current.clock.stop();
    aside.push(current.work);
  }

  function leaveBack() {
    if (!current?.verdict) return;
    dropDraft();
    announce("The verdict stays as it was.");
    advance();
  }

  // Keys and clicks

  function toggle(number) {
    const box = checkboxes()[number - 1];
    if (!box) return;
    box.checked = !box.checked;
    keepDraft();
    announce(`${number} ${box.checked ? "picked" : "put back"}`);
  }

  function openReasons(name) {
    if (name === "skip" ? current : mayJudge()) document.getElementById(`${name}-dialog`).showModal();
  }

  function openInstructions() {
    const details = document.getElementById("instructions");
    if (details) details.open = !details.open;
  }

  const actions = {
    submit,
    none: noneFits,
    back,
    skip: () => openReasons("skip"),
    flag: () => openReasons("flag"),
    write: () => ownWords()?.focus(),
    zoom: (event) => {
      const picture = event?.target.closest(".picture")?.querySelector("img") ?? stage.querySelector(".picture img");
      if (picture) zoom.open(picture);
    },
    keys: () => document.getElementById("keys-dialog").showModal(),
    instructions: openInstructions,
    "leave-back": leaveBack,
    "reload-image": () => {
      for (const picture of pictures(current.work)) picture.src = picture.getAttribute("src");
      render(current);
    },
  };
  const letters = {
    s: "skip",
    f: "flag",
    u: "back",
    w: "write",
    z: "zoom",
    i: "instructions",
    "?": "keys",
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do], [data-reason]");
    if (!button) return;
    if (button.dataset.do) {
      actions[button.dataset.do](event);
      return;
    }
    const dialog = button.closest("dialog");
    dialog.close();
    if (current) give(dialog.id === "skip-dialog" ? "skipped" : "flagged", [], button.dataset.reason);
  });

  function digitOf(event) {
    return /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1] ?? (/^[0-9]$/.test(event.key) ? event.key : undefined);
  }

  function inDialog(dialog, event) {
    if (!dialog.matches(".reasons") || event.ctrlKey || event.metaKey) return;
    const reasons = [...dialog.querySelectorAll("[data-reason]")];
    const digit = digitOf(event);
    const onButton = event.target.closest("button");
    let choice;
    if (digit) choice = reasons.filter((one) => one.dataset.reason)[Number(digit) - 1];
    else if (event.key === "Enter" && !onButton) choice = reasons.find((one) => !one.dataset.reason);
    if (!choice) return;
    event.preventDefault();
    choice.click();
  }

  const keysOn = document.getElementById("keys-on");

  function onKey(event) {
    if (event.defaultPrevented || event.isComposing || event.altKey || event.repeat) return;
    const dialog = document.querySelector("dialog[open]");
    if (dialog) {
      inDialog(dialog, event);
      return;
    }
    const typing = event.target.closest('textarea, select, input:not([type="checkbox"])');
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      submit();
      return;
    }
    if (typing) {
      if (event.key === "Escape") stage.querySelector("#question").focus({ preventScroll: true });
      return;
    }
    if (event.ctrlKey || event.metaKey || !keysOn.checked) return;
    onBareKey(event);
  }

  function onBareKey(event) {
    const digit = digitOf(event);
    if (event.key === "Escape" && current?.verdict) leaveBack();
    else if (digit === "0") noneFits();
    else if (digit) toggle(Number(digit));
    else if (event.key === "Enter") {
      if (event.target.closest("button, a, summary")) return;
      submit();
    } else if (letters[event.key.toLowerCase()]) actions[letters[event.key.toLowerCase()]]();
    else return;
    event.preventDefault();
  }

  document.addEventListener("keydown", onKey);
  // A dialog of reasons opens without any of them chosen, so that Enter does not take the first by accident.
  for (const dialog of document.querySelectorAll("dialog.reasons")) {
    dialog.tabIndex = -1;
    dialog.addEventListener("toggle", () => dialog.open && dialog.focus());
  }
  stage.addEventListener("input", keepDraft);
  stage.addEventListener("submit", (event) => event.preventDefault());

  function rememberKeys() {
    try {
      keysOn.checked = localStorage.getItem("illume.keys") !== "off";
      keysOn.addEventListener("change", () => localStorage.setItem("illume.keys", keysOn.checked ? "on" : "off"));
    } catch {
      // The choice then lasts as long as the page.
    }
  }

  // What goes on by itself

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) current?.clock.stop();
    else {
      if (current?.ready) current.clock.start();
      beat();
    }
  });
  for (const kind of ["keydown", "pointerdown"]) {
    document.addEventListener(kind, () => {
      const idle = Date.now() - lastActive;
      lastActive = Date.now();
      if (idle > leaseMs / 3) beat();
    });
  }
  window.addEventListener("focus", async () => {
    if (saveState.dataset.state !== "signed-out") return;
    if ((await renew()) !== "same") return;
    signedOut.close();
    await outbox.resume();
    prefetch();
  });

  // Keeps what is claimed while somebody is at it, and finds out what is not ours any more.
  async function beat() {
    if (document.hidden || Date.now() - lastActive > leaseMs) return;
    const held = [current?.verdict ? null : current?.assignment, upcoming?.dataset.assignment];
    const ids = [...held, ...aside.map((one) => one.dataset.assignment)].filter(Boolean);
    if (!ids.length) return;
    let answer;
    try {
      answer = await ask("/heartbeat", ids.map((id) => ["held", id]));
    } catch {
      return;
    }
    if (!answer.ok) return;
    const lost = answer.text.split(" ");
    if (upcoming && lost.includes(upcoming.dataset.assignment)) {
      upcoming = null;
      prefetch();
    }
    if (current && lost.includes(current.assignment) && !picked().length && !ownWords().value) advance();
  }

  setInterval(beat, Math.max(1000, leaseMs / 3));
  setInterval(async () => {
    if (document.hidden || saveState.dataset.state !== "saved") return;
    if ((await renew()) === "signed-out") outbox.hold();
  }, FIGURES_EVERY);
  setInterval(() => {
    const wanted = !current || (!upcoming && Date.now() - lastActive < 60000);
    if (!document.hidden && wanted && saveState.dataset.state !== "signed-out") prefetch();
  }, POLL);

  async function start() {
    rememberKeys();
    const work = stage.querySelector("#work");
    // A reload may bring back what was judged here and is still on its way.
    if (outbox.about().includes(work.dataset.assignment)) advance();
    else show(work, { quietly: true });
    if (outbox.size) outbox.flush();
  }
  start();
})();
