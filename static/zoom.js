// The image, large: wheel and pinch zoom where the pointer is, dragging and arrows move, + - 0 do it by key.
(() => {
  "use strict";
  const MOST = 16;
  const STEP = 80;

  function makeZoom(dialog, pane) {
    let image = null;
    let scale = 1;
    let x = 0;
    let y = 0;
    const fingers = new Map();

    function draw() {
      const width = pane.clientWidth;
      const height = pane.clientHeight;
      // The image never leaves the pane.
      x = Math.min(0, Math.max(width * (1 - scale), x));
      y = Math.min(0, Math.max(height * (1 - scale), y));
      image.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
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

    function open(source) {
      image = new Image();
      image.src = source.currentSrc || source.src;
      image.alt = "";
      image.draggable = false;
      pane.replaceChildren(image);
      scale = 1;
      x = 0;
      y = 0;
      fingers.clear();
      dialog.showModal();
      pane.focus();
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
      pane.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    pane.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
        zoomBy(spread(now) / spread(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      } else {
        move(now[0] - before[0], now[1] - before[1]);
      }
      fingers.set(event.pointerId, now);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    pane.addEventListener("dblclick", () => (scale > 1 ? zoomBy(0) : zoomBy(3)));
    dialog.addEventListener("keydown", (event) => {
      const keys = {
        "+": () => zoomBy(1.5),
        "=": () => zoomBy(1.5),
        "-": () => zoomBy(1 / 1.5),
        0: () => zoomBy(0),
        ArrowLeft: () => move(STEP, 0),
        ArrowRight: () => move(-STEP, 0),
        ArrowUp: () => move(0, STEP),
        ArrowDown: () => move(0, -STEP),
        z: () => dialog.close(),
      };
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      act();
    });
    return { open };
  }

  window.illume = { ...window.illume, makeZoom };
})();
