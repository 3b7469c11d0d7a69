// Values in the browser's local storage. Keys contain the sub-path of the installation and the person's id, so that
// neither two installations on one host nor two people share a value.

const { home, user } = document.querySelector(".judge").dataset;

export function storageKey(name) {
  return `illume${home.slice(0, -1)}.${name}.${user}`;
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
