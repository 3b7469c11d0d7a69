// How a card is looked at: images that zoom in place, and long texts that are folded.

import { updateKeyLabels } from "./keys.js";
import { makeZoomable } from "./zoom.js";

const STEP = 60;
const stage = document.getElementById("stage");
const zoomableOf = new WeakMap();
let zoomables = [];

// Prepares a new card before it is painted.
export function prepareCard(element) {
  updateKeyLabels(element);
  zoomables = [...element.querySelectorAll(".picture")].map((pane) => {
    if (!zoomableOf.has(pane)) zoomableOf.set(pane, makeZoomable(pane, pane.querySelector("img")));
    return zoomableOf.get(pane);
  });
  const isFolded = [...element.querySelectorAll(".folds")].some((text) => text.scrollHeight > text.clientHeight + 2);
  const unfold = element.querySelector('[data-do="unfold"]');
  if (unfold) unfold.hidden = !isFolded; // it comes with the explanations
}

export function setPressed(action, isPressed) {
  stage.querySelector(`[data-do="${action}"]`)?.setAttribute("aria-pressed", String(isPressed));
}

export function unfoldTexts() {
  const card = stage.querySelector(".work");
  if (!card || (card.querySelector('[data-do="unfold"]')?.hidden ?? true)) return;
  setPressed("unfold", card.classList.toggle("unfolded"));
}

function focusedZoomable() {
  const at = [...stage.querySelectorAll(".picture")].indexOf(document.activeElement);
  return zoomables[Math.max(0, at)];
}

const moves = {
  "+": (image) => image.zoomBy(1.5),
  "=": (image) => image.zoomBy(1.5),
  "-": (image) => image.zoomBy(1 / 1.5),
  ArrowLeft: (image) => image.move(STEP, 0),
  ArrowRight: (image) => image.move(-STEP, 0),
  ArrowUp: (image) => image.move(0, STEP),
  ArrowDown: (image) => image.move(0, -STEP),
};

// Whether the key moved the image. Arrows move only an image that is zoomed; otherwise they scroll the page.
export function moveImage(key) {
  const image = focusedZoomable();
  if (!image || !moves[key] || (key.startsWith("Arrow") && image.scale() === 1)) return false;
  moves[key](image);
  return true;
}
