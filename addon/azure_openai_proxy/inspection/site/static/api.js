// Requests to the page's own server.

const TOKEN = document.querySelector("meta[name=xsrf-token]").content;

export class Failure extends Error {}

function address(name, parameters) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(parameters)) if (value !== "" && value !== null && value !== undefined) query.set(key, value);
  return `api/${name}?${query}`;
}

async function send(name, parameters, options) {
  let response;
  try {
    response = await fetch(address(name, parameters), { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("mitmweb does not respond.");
  }
  const text = await response.text();
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // a text or an error page
  }
  if (!response.ok) throw new Failure((value && value.error) || `mitmweb responded with status ${response.status}.`);
  return value;
}

export function get(name, parameters = {}, signal = undefined) {
  return send(name, parameters, { signal });
}

export function post(name, value) {
  const headers = { "content-type": "application/json", "x-xsrftoken": TOKEN };
  return send(name, {}, { method: "POST", headers, body: JSON.stringify(value) });
}

export function url(name, parameters) {
  return address(name, parameters);
}

/** Events of the server: `receive(value)` for each. The returned function closes the stream. */
export function events(name, parameters, receive) {
  const source = new EventSource(address(name, parameters));
  source.addEventListener("message", (event) => receive(JSON.parse(event.data), source));
  return () => source.close();
}
