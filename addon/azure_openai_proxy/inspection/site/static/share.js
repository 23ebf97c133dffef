// Share a thread: a file without secrets, with a preview before it is saved.

import * as api from "./api.js";
import { field, h, replace } from "./dom.js";

const FORMATS = { html: "HTML, one file", jsonl: "JSONL", markdown: "Markdown" };
const KINDS = { emails: "E-mail addresses", ips: "IP addresses", hosts: "Names of hosts", paths: "Paths" };

export async function share(root, { parts: [thread] }) {
  const format = h("select", {}, Object.entries(FORMATS).map(([value, text]) => h("option", { value }, text)));
  const boxes = Object.entries(KINDS).map(([value, text]) => [value, h("input", { type: "checkbox", checked: true, value }), text]);
  const patterns = h("textarea", { rows: "2", spellcheck: "false", placeholder: "one regular expression a line" });
  const summary = h("p", { class: "note", role: "status" });
  const preview = h("div", { class: "preview" });
  const save = h("a", { class: "button primary", download: true }, "Save file");

  const parameters = () => ({
    id: thread,
    format: format.value,
    redact: boxes.filter(([, box]) => box.checked).map(([value]) => value).join(","),
    patterns: patterns.value.trim(),
  });

  async function show() {
    save.setAttribute("href", api.url("share", { ...parameters(), download: "yes" }));
    try {
      const { text, more, removed } = await api.get("preview", parameters());
      const words = Object.entries(removed).map(([kind, number]) => `${number} ${kind}${number === 1 ? "" : "s"}`);
      summary.textContent = words.length ? `Removed: ${words.join(", ")}.` : "Nothing was removed.";
      if (format.value === "html") {
        // An opaque origin without scripts: the sandbox, and the response's own policy.
        replace(preview, h("iframe", { sandbox: true, title: "Preview of the shared file", src: api.url("share", parameters()) }));
      } else {
        replace(preview, h("pre", { class: "text", tabindex: "0" }, text + (more ? "\n…" : "")));
      }
    } catch (error) {
      replace(preview, h("p", { class: "failure", role: "alert" }, error.message));
    }
  }

  for (const element of [format, patterns, ...boxes.map(([, box]) => box)]) element.addEventListener("change", show);
  root.append(
    h("h2", {}, "Share"),
    h("p", { class: "crumbs" }, h("a", { href: `#/thread/${encodeURIComponent(thread)}` }, "Back to the thread")),
    h(
      "form",
      { class: "panel", "aria-label": "Share", onsubmit: (event) => event.preventDefault() },
      field("Format", format),
      h("fieldset", {}, h("legend", {}, "Redact, besides keys"), boxes.map(([, box, text]) => h("label", { class: "check" }, box, ` ${text}`))),
      field("Patterns to redact", patterns),
      h("div", { class: "toolbar" }, h("button", { onclick: show }, "Preview"), save),
    ),
    h("h3", {}, "Preview"),
    summary,
    preview,
  );
  await show();
  return {};
}
