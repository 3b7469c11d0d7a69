// Requests to the server with the session's form token, and reading the HTML it answers with.

const { home, slug } = document.querySelector(".judge").dataset;
const TIMEOUT = 20000;
export const base = `${home}annotate/${slug}`;

let token = document.getElementById("figures-now").dataset.csrf;

export function formToken() {
  return token;
}

export function setFormToken(value) {
  token = value;
}

// Sends a POST where there are fields, else a GET.
export async function request(path, fields) {
  const options = { headers: { "HX-Request": "true", "X-CSRF-Token": token }, signal: AbortSignal.timeout(TIMEOUT) };
  if (fields) Object.assign(options, { method: "POST", body: new URLSearchParams(fields) });
  const response = await fetch(base + path, options);
  return { status: response.status, ok: response.ok, text: await response.text() };
}

export function parseHtml(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return document.importNode(template.content, true);
}

// The message in an answer; empty where it has none.
export function messageIn(html) {
  return parseHtml(html).querySelector("[data-text]")?.textContent.trim() ?? "";
}
