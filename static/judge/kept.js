// What a critic's browser keeps for them: each thing under the person's id, so that two people never share it.

const { user } = document.querySelector(".judge").dataset;

function place(name) {
  return `illume.${name}.${user}`;
}

export function recall(name, otherwise = null) {
  try {
    return JSON.parse(localStorage.getItem(place(name)) ?? "null") ?? otherwise;
  } catch {
    // Storage is closed to us, or holds what is not ours.
    return otherwise;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(place(name), JSON.stringify(value));
  } catch {
    // Without storage it lives as long as the page.
  }
}
