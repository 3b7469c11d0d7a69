// Saying things: to everybody by a toast, to who listens to the page by a live region.

const announcer = document.getElementById("announcer");

export const toast = window.illume.toast;

export function announce(text) {
  announcer.textContent = "";
  // A change in a later turn is read even when the words are the same.
  setTimeout(() => {
    announcer.textContent = text;
  }, 50);
}

// A toast is read aloud by itself.
export function hint(text) {
  toast(text, "warn");
}

export function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return document.importNode(template.content, true);
}

// The sentence in an answer of the server's.
export function sentence(html) {
  return parse(html).querySelector("[data-text]")?.textContent.trim() ?? "";
}
