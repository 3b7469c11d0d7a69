// Images that zoom: wheel and pinch where the pointer is, dragging moves, and all of it by key. In place, and large.

const MOST = 16;
const STEP = 80;

// Lets `image` be zoomed and moved within `pane`, which clips it.
export function makePan(pane, image) {
  let scale = 1;
  let x = 0;
  let y = 0;
  let dragged = false;
  const fingers = new Map();

  function draw() {
    const width = pane.clientWidth;
    const height = pane.clientHeight;
    // The image never leaves the pane.
    x = Math.min(0, Math.max(width * (1 - scale), x));
    y = Math.min(0, Math.max(height * (1 - scale), y));
    image.style.transform = scale === 1 ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
    pane.classList.toggle("is-zoomed", scale > 1);
  }

  function zoomBy(factor, atX = pane.clientWidth / 2, atY = pane.clientHeight / 2) {
    const next = Math.min(MOST, Math.max(1, scale * factor));
    x = atX - ((atX - x) * next) / scale;
    y = atY - ((atY - y) * next) / scale;
    scale = next;
    draw();
  }

  function move(dx, dy) {
    x += dx;
    y += dy;
    draw();
  }

  pane.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const box = pane.getBoundingClientRect();
      zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  pane.addEventListener("pointerdown", (event) => {
    if (!fingers.size) dragged = false;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (scale > 1 || fingers.size > 1) pane.setPointerCapture(event.pointerId);
  });
  pane.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      const box = pane.getBoundingClientRect();
      zoomBy(spread(now) / spread(before), (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
      dragged = true;
    } else if (scale > 1) {
      move(now[0] - before[0], now[1] - before[1]);
      dragged ||= Math.hypot(now[0] - before[0], now[1] - before[1]) > 2;
    }
    fingers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  // The end of a drag is no click.
  pane.addEventListener(
    "click",
    (event) => {
      if (!dragged) return;
      dragged = false;
      event.preventDefault();
      event.stopPropagation();
    },
    { capture: true },
  );

  return { zoomBy, move, scale: () => scale };
}

// The dialog with one image large, of several.
export function makeZoom(dialog, pane) {
  let images = [];
  let at = 0;
  let pan = null;

  function show(index) {
    if (!images[index]) return;
    at = index;
    const image = new Image();
    image.src = images[at].currentSrc || images[at].src;
    image.alt = "";
    image.draggable = false;
    const frame = document.createElement("div");
    frame.className = "zoom-frame";
    frame.append(image);
    pane.replaceChildren(frame);
    pan = makePan(frame, image);
    frame.addEventListener("dblclick", () => pan.zoomBy(pan.scale() > 1 ? 0 : 3));
    const which = `${at + 1} of ${images.length}`;
    dialog.querySelector("[data-which]").textContent = images.length > 1 ? `${which}: press a number or N` : "";
    pane.setAttribute("aria-label", `The image, large${images.length > 1 ? `, ${which}` : ""}: plus and minus zoom, arrows move it, Escape closes`);
  }

  const keys = {
    "+": () => pan.zoomBy(1.5),
    "=": () => pan.zoomBy(1.5),
    "-": () => pan.zoomBy(1 / 1.5),
    0: () => pan.zoomBy(0),
    n: () => show((at + 1) % images.length),
    ArrowLeft: () => pan.move(STEP, 0),
    ArrowRight: () => pan.move(-STEP, 0),
    ArrowUp: () => pan.move(0, STEP),
    ArrowDown: () => pan.move(0, -STEP),
  };

  // Whether a key did something to the image.
  function onKey(key) {
    const act = keys[key.length === 1 ? key.toLowerCase() : key];
    if (act) act();
    else if (/^[1-9]$/.test(key)) show(Number(key) - 1);
    else return false;
    return true;
  }

  function open(sources, index) {
    images = sources;
    show(index);
    dialog.showModal();
    pane.focus();
  }

  return { open, onKey, dialog };
}
