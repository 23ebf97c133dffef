// The difference of any two calls.

import * as api from "./api.js";
import { field, h } from "./dom.js";
import { changes } from "./changes.js";
import { route, time } from "./format.js";

const PARAMETERS = ["model", "parameters", "tools", "response_format"];

export async function diff(root, { parts: [a, b] }) {
  const answer = await api.get("diff", { a, b });
  const side = (name, call) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, h("a", { href: `#/thread/${encodeURIComponent(call.thread)}?call=${encodeURIComponent(call.id)}` }, `${route(call)}, ${time(call.started)}`)));
  root.append(
    h("h2", {}, "Diff of two calls"),
    h("dl", { class: "facts" }, side("Old", answer.a), side("New", answer.b)),
    h("div", { class: "toolbar" }, h("a", { class: "button", href: `#/diff/${encodeURIComponent(b)}/${encodeURIComponent(a)}` }, "Swap"), h("a", { class: "button", href: `#/compare?a=${encodeURIComponent(a)}` }, "Compare with another call")),
    section("Parameters", answer.blocks.filter(({ block }) => PARAMETERS.includes(block))),
    section("Request", answer.blocks.filter(({ block }) => block !== "answer" && !PARAMETERS.includes(block))),
    section("Answer", answer.blocks.filter(({ block }) => block === "answer")),
  );
  return {};
}

function section(title, list) {
  return h("section", { "aria-label": title }, h("h3", {}, title), changes(list));
}

/** Choose two calls. */
export async function compare(root, { parameters }) {
  const { calls } = await api.get("calls", { include: parameters.a || "" });
  const choices = (chosen) => {
    const select = h("select", {}, calls.map((call) => h("option", { value: call.id }, `${time(call.started)} · ${route(call)} · ${call.title}`)));
    if (chosen) select.value = chosen;
    return select;
  };
  const first = choices(parameters.a || calls[1]?.id);
  const second = choices(parameters.b || calls.find((call) => call.id !== first.value)?.id);
  root.append(
    h("h2", {}, "Compare two calls"),
    calls.length > 1
      ? h(
          "form",
          {
            class: "panel",
            onsubmit: (event) => {
              event.preventDefault();
              location.hash = `#/diff/${encodeURIComponent(first.value)}/${encodeURIComponent(second.value)}`;
            },
          },
          field("Old call", first),
          field("New call", second),
          h("button", {}, "Compare"),
        )
      : h("p", {}, "Two calls are needed for a comparison."),
  );
  return {};
}
