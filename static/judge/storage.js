// Values in the browser's local storage. Keys contain the person's id, so that two people never share a value.

const { user } = document.querySelector(".judge").dataset;

function storageKey(name) {
  return `illume.${name}.${user}`;
}

export function readStored(name, fallback = null) {
  try {
    return JSON.parse(localStorage.getItem(storageKey(name)) ?? "null") ?? fallback;
  } catch {
    // Storage is disabled, or the value is not JSON.
    return fallback;
  }
}

export function store(name, value) {
  try {
    localStorage.setItem(storageKey(name), JSON.stringify(value));
  } catch {
    // Storage is disabled or full: the value lasts as long as the page.
  }
}
