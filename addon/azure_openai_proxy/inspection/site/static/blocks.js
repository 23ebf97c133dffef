// Blocks of a conversation: messages, reasoning, tool calls with their results, images and audio.

import { audio, h, image } from "./dom.js";
import { count } from "./format.js";

const SHORT = 800; // characters of a text that is shown at once
const SHOWN = 200; // blocks that are shown at once

/** A text of any length. A long one is shown in part until the button is pressed. */
export function longText(text, more = 0) {
  const whole = String(text ?? "");
  const rest = more ? h("p", { class: "note" }, `… ${count(more)} more characters. The flow in mitmweb has the whole text.`) : null;
  if (whole.length <= SHORT) return [h("pre", { class: "text" }, whole), rest];
  const body = h("pre", { class: "text" }, whole.slice(0, SHORT));
  const button = h(
    "button",
    {
      class: "quiet",
      onclick: () => {
        body.replaceWith(h("pre", { class: "text" }, whole));
        button.remove();
      },
    },
    `Show all ${count(whole.length)} characters`,
  );
  return [body, button, rest];
}

function medium({ kind, name, data }) {
  const shown = kind === "image" ? image(data, name || "image") : kind === "audio" ? audio(data, name || "audio") : null;
  return shown || h("p", { class: "note" }, `${kind}: ${name || (data.startsWith("data:") ? "not shown" : data.slice(0, 500)) || "too large to be shown"}`);
}

function content(block) {
  return [block.text || !block.media?.length ? longText(block.text, block.more_characters) : null, (block.media || []).map(medium)];
}

function heading(block) {
  const name = block.name ? ` ${block.name}` : "";
  switch (block.kind) {
    case "tool_call":
      return `tool call${name}`;
    case "tool_result":
      return `result${name}`;
    case "reasoning":
      return "reasoning";
    default:
      return `${block.kind || "message"}${name}`;
  }
}

function element(block, result) {
  return h(
    "div",
    { class: `block block-${String(block.kind || "other").replace(/[^a-z_]/g, "")}` },
    h("h4", {}, heading(block)),
    content(block),
    result ? h("div", { class: "result" }, h("h5", {}, `result${result.name ? ` of ${result.name}` : ""}`), content(result)) : null,
  );
}

/** The blocks, each result next to its call. `results`: results by call id that arrive with a later call of the thread. */
export function blocks(items, results = new Map()) {
  const beside = new Set();
  const own = new Map(items.filter((one) => one.kind === "tool_result" && one.call_id).map((one) => [one.call_id, one]));
  const made = [];
  for (const item of items) {
    if (item.kind === "tool_call" && item.call_id) {
      const result = own.get(item.call_id) || results.get(item.call_id);
      if (result) beside.add(item.call_id);
      made.push(() => element(item, result));
    } else if (!(item.kind === "tool_result" && beside.has(item.call_id))) {
      made.push(() => element(item));
    }
  }
  const box = h("div", { class: "blocks" });
  let next = 0;
  const more = h("button", { class: "quiet", onclick: () => append() });
  function append() {
    more.remove();
    box.append(...made.slice(next, next + SHOWN).map((make) => make()));
    next += SHOWN;
    if (next < made.length) {
      more.textContent = `Show ${count(Math.min(SHOWN, made.length - next))} more of ${count(made.length - next)} blocks`;
      box.append(more);
    }
  }
  append();
  return box;
}
