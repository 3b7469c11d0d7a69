// Messages to the critic: toasts for everybody, and a live region for screen readers.

const announcer = document.getElementById("announcer");

export const toast = window.illume.toast;

export function announce(text) {
  announcer.textContent = "";
  // A change in a later task is read aloud even when the text is the same.
  setTimeout(() => {
    announcer.textContent = text;
  }, 50);
}

// Screen readers read a toast aloud by themselves.
export function hint(text) {
  toast(text, "warn");
}
