// Search over everything said.

import * as api from "./api.js";
import { announce, h } from "./dom.js";
import { count } from "./format.js";

export async function search(root, { parameters }) {
  const form = document.getElementById("search");
  for (const element of form.elements) if (element.name) element.value = parameters[element.name] || "";
  const query = { ...parameters };
  if (query.since) query.since = new Date(query.since).toISOString();
  const { hits, more, note } = await api.get("search", query);
  root.append(
    h("h2", {}, "Search results"),
    h("p", { class: "summary" }, `${count(hits.length)}${more ? " or more" : ""} ${hits.length === 1 ? "call" : "calls"}${note ? `. ${note}` : ""}`),
    h(
      "ul",
      { class: "hits", "aria-label": "Search results" },
      hits.map((hit) =>
        h(
          "li",
          {},
          h("a", { href: `#/thread/${encodeURIComponent(hit.thread)}?call=${encodeURIComponent(hit.id)}` }, hit.title || "(no text)"),
          h("span", { class: "note" }, ` ${hit.role || ""} · ${hit.model || ""} · status ${hit.status ?? "none"}`),
          hit.parts ? h("p", { class: "excerpt" }, hit.parts[0], h("mark", {}, hit.parts[1]), hit.parts[2]) : null,
        ),
      ),
    ),
  );
  announce(`${hits.length} results`);
  return {};
}
