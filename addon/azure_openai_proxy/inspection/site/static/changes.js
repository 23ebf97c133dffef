// Changes between two requests, by block and character: `<ins>` and `<del>`, and `<mark>` for parts that change by themselves.

import { h } from "./dom.js";
import { count } from "./format.js";

const CONTEXT = 300; // unchanged characters on each side of a change
const LONGEST = 50000; // characters of a changed part

const REASONS = {
  system: "the system prompt changed",
  tools: "the tools or their order changed",
  model: "another model",
  response_format: "the response format changed",
  message: "an earlier message changed",
  backend: "another backend",
  expired: "the cache expired",
  short: "shorter than 1,024 tokens",
  prompt_cache_key: "another prompt_cache_key",
  unexplained: "no visible cause",
};

export function brokenBecause({ block, index }) {
  const reason = REASONS[block] || block;
  return typeof index === "number" ? `${reason} (message ${index})` : reason;
}

function shortened(text, first, last) {
  if (text.length <= 2 * CONTEXT + 100) return text;
  const note = `\n… ${count(text.length - (first || last ? CONTEXT : 2 * CONTEXT))} characters unchanged …\n`;
  if (first) return note + text.slice(-CONTEXT);
  if (last) return text.slice(0, CONTEXT) + note;
  return text.slice(0, CONTEXT) + note + text.slice(-CONTEXT);
}

function cut(text) {
  return text.length > LONGEST ? `${text.slice(0, LONGEST)}… ${count(text.length - LONGEST)} more characters` : text;
}

/** Text with its changes, from pieces {change: equal, delete or insert; text; volatile}. */
export function marked(pieces) {
  return h(
    "pre",
    { class: "text changes" },
    pieces.map(({ change, text, volatile: changing }, index) => {
      if (change === "equal") return shortened(text, index === 0 && pieces.length > 1, index === pieces.length - 1 && index > 0);
      const inside = changing ? h("mark", { title: "changes by itself, as ids and dates do" }, cut(text)) : cut(text);
      return h(change === "insert" ? "ins" : "del", {}, inside);
    }),
  );
}

const NAMES = { response_format: "response format" };

function title({ block, index, change, pieces }) {
  const name = NAMES[block] || block;
  const itself = pieces?.length && pieces.every((piece) => piece.change === "equal" || piece.volatile) ? ", only parts that change by themselves" : "";
  return `${name}${typeof index === "number" ? ` ${index}` : ""}: ${change}${itself}`;
}

/** All blocks that differ, and how many are equal. */
export function changes(list) {
  const shown = list.filter((block) => block.change !== "equal");
  const equal = list.length - shown.length;
  return [
    shown.map((block) => h("div", { class: `change ${block.change}` }, h("h4", {}, title(block)), marked(block.pieces))),
    equal || !shown.length ? h("p", { class: "note" }, shown.length ? `${count(equal)} ${equal === 1 ? "block is" : "blocks are"} equal.` : "No difference.") : null,
  ];
}
