// Images that zoom, in place and in a dialog: wheel and pinch zoom at the pointer, dragging moves, and keys do all of it.

const MAX_SCALE = 16;
const STEP = 80;

const enlarged = new WeakSet();

// Replaces an image by the one it is a derivative of, once that is there: pages load the original only for this.
function showOriginal(image) {
  const url = image.dataset.original;
  if (!url || enlarged.has(image) || image.currentSrc === new URL(url, document.baseURI).href) return;
  enlarged.add(image);
  const full = new Image();
  full.src = url;
  full.decode().then(
    () => {
      image.removeAttribute("srcset");
      image.src = url;
    },
    () => enlarged.delete(image), // the next zoom tries again
  );
}

// Makes `image` zoom and move within `pane`, which clips it.
export function makeZoomable(pane, image) {
  // Images stored long ago may be transparent: white lies behind the picture, and not on what it leaves free of the
  // pane. It is a pixel smaller, so that no edge of it is seen around a dark picture.
  function backPicture() {
    const { naturalWidth: width, naturalHeight: height } = image;
    if (!width || !height) return;
    const fit = Math.min(pane.clientWidth / width, pane.clientHeight / height);
    image.style.backgroundSize = `${Math.max(0, width * fit - 1)}px ${Math.max(0, height * fit - 1)}px`;
  }
  image.addEventListener("load", backPicture);
  new ResizeObserver(backPicture).observe(pane);

  let scale = 1;
  let x = 0;
  let y = 0;
  let dragged = false;
  const pointers = new Map();

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
    const next = Math.min(MAX_SCALE, Math.max(1, scale * factor));
    x = atX - ((atX - x) * next) / scale;
    y = atY - ((atY - y) * next) / scale;
    scale = next;
    if (scale > 1) showOriginal(image);
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
      // Among texts the wheel scrolls past a picture that is not zoomed yet; a pinch, which browsers send so, zooms it.
      if (scale === 1 && !event.ctrlKey && pane.closest(".in-order")) return;
      event.preventDefault();
      const box = pane.getBoundingClientRect();
      zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  pane.addEventListener("pointerdown", (event) => {
    if (!pointers.size) dragged = false;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (scale > 1 || pointers.size > 1) pane.setPointerCapture(event.pointerId);
  });
  pane.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const after = [event.clientX, event.clientY];
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      const box = pane.getBoundingClientRect();
      zoomBy(distance(after) / distance(before), (after[0] + other[0]) / 2 - box.left, (after[1] + other[1]) / 2 - box.top);
      dragged = true;
    } else if (scale > 1) {
      move(after[0] - before[0], after[1] - before[1]);
      dragged ||= Math.hypot(after[0] - before[0], after[1] - before[1]) > 2;
    }
    pointers.set(event.pointerId, after);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    pane.addEventListener(end, (event) => pointers.delete(event.pointerId));
  }
  // The click that ends a drag is not a click on the image.
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

// The dialog that shows one of several images large.
export function makeZoomDialog(dialog, pane) {
  let images = [];
  let current = 0;
  let zoomable = null;

  function show(index) {
    if (!images[index]) return;
    current = index;
    const image = new Image();
    image.src = images[current].currentSrc || images[current].src;
    image.dataset.original = images[current].dataset.original ?? "";
    showOriginal(image);
    image.alt = "";
    image.draggable = false;
    const frame = document.createElement("div");
    frame.className = "zoom-frame";
    frame.append(image);
    pane.replaceChildren(frame);
    zoomable = makeZoomable(frame, image);
    frame.addEventListener("dblclick", () => zoomable.zoomBy(zoomable.scale() > 1 ? 0 : 3));
    const place = { number: current + 1, all: images.length };
    const isOneOfMany = images.length > 1;
    dialog.querySelector("[data-which]").textContent = isOneOfMany ? gettext("%(number)s of %(all)s: press a number or N", place) : "";
    const label = isOneOfMany
      ? gettext("Enlarged image, %(number)s of %(all)s: plus and minus zoom, arrow keys move it, Escape closes", place)
      : gettext("Enlarged image: plus and minus zoom, arrow keys move it, Escape closes");
    pane.setAttribute("aria-label", label);
  }

  const keys = {
    "+": () => zoomable.zoomBy(1.5),
    "=": () => zoomable.zoomBy(1.5),
    "-": () => zoomable.zoomBy(1 / 1.5),
    0: () => zoomable.zoomBy(0),
    n: () => show((current + 1) % images.length),
    ArrowLeft: () => zoomable.move(STEP, 0),
    ArrowRight: () => zoomable.move(-STEP, 0),
    ArrowUp: () => zoomable.move(0, STEP),
    ArrowDown: () => zoomable.move(0, -STEP),
  };

  // Whether the key did something to the image.
  function onKey(key) {
    const action = keys[key];
    if (action) action();
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
