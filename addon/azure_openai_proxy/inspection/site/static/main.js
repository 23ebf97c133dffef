// The page's frame: which view the address names, live updates, and the search form.

import * as api from "./api.js";
import { announce, h, replace } from "./dom.js";
import { breakpoints } from "./breakpoints.js";
import { compare, diff } from "./diff.js";
import { list } from "./list.js";
import { replay } from "./replay.js";
import { search } from "./search.js";
import { share } from "./share.js";
import { thread } from "./thread.js";

const main = document.getElementById("main");
const VIEWS = { "": list, single: list, thread, diff, compare, replay, search, share, breakpoints };

let current = null; // the view on display: {update(news), close()}
let shown = 0;

/** A part of the address. One that was typed or cut may be no valid encoding. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function show({ focus = true } = {}) {
  const [name, ...parts] = location.hash.replace(/^#\/?/, "").split("?")[0].split("/").map(decoded);
  const parameters = Object.fromEntries(new URLSearchParams(location.hash.split("?")[1] || ""));
  const number = (shown += 1);
  current?.close?.();
  current = null;
  announce("");
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const view = VIEWS[name] || list;
  const root = h("div", { class: `view view-${name || "list"}` });
  try {
    const made = await view(root, { name, parts, parameters });
    if (number !== shown) {
      made?.close?.();
      return;
    }
    current = made;
    replace(main, root);
  } catch (error) {
    if (number !== shown) return;
    if (!(error instanceof api.Failure)) console.error(error);
    replace(main, h("p", { class: "failure", role: "alert" }, error.message));
  }
  if (focus) main.focus({ preventScroll: true });
  main.dataset.ready = String(number);
}

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(event.target)) if (value) query.set(name, value);
  location.hash = `#/search?${query}`;
});

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    document.getElementById("query").focus();
  }
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  main.focus();
});

addEventListener("hashchange", () => show());
show({ focus: false });
api.events("events", {}, (news) => {
  const link = document.querySelector('nav [data-view="breakpoints"]');
  link.textContent = news.held ? `Breakpoints (${news.held} held)` : "Breakpoints";
  current?.update?.(news);
});
