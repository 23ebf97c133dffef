// One thread: its calls on a time axis, and the conversation once, each call with what it added.

import * as api from "./api.js";
import { announce, h, replace } from "./dom.js";
import { blocks } from "./blocks.js";
import { brokenBecause, changes } from "./changes.js";
import { cost, count, duration, route, time, tokens } from "./format.js";

const PAGE = 30; // calls of one request
const SHARES = ["system", "tools", "history", "new"];

export async function thread(root, { parts: [id], parameters }) {
  let calls = [];
  let head = null;
  let version = -1;
  let closed = false;
  let busy = false;
  const top = h("div", {});
  const axis = h("div", {});
  const conversation = h("section", { "aria-label": "Conversation", class: "conversation" });
  const more = h("button", { class: "quiet", onclick: () => extend() });
  const cards = new Map(); // call id: [its state as text, element]

  async function extend() {
    const page = await api.get("thread", { id, offset: calls.length, limit: PAGE });
    calls = calls.concat(page.calls);
    head = page;
    draw();
  }

  function draw() {
    replace(top, facts(head));
    replace(axis, waterfall(head));
    const results = new Map();
    for (const call of calls) for (const block of call.new) if (block.kind === "tool_result" && block.call_id) results.set(block.call_id, block);
    const known = new Set();
    const made = calls.map((call, index) => {
      const fresh = call.new.filter((block) => !(block.kind === "tool_result" && known.has(block.call_id)));
      for (const block of call.answer) if (block.kind === "tool_call" && block.call_id) known.add(block.call_id);
      const here = new Map([...results].filter(([key]) => call.answer.some((block) => block.call_id === key)));
      const state = JSON.stringify([call, [...here], fresh.length]);
      const old = cards.get(call.id);
      if (old && old[0] === state) return old[1];
      const element = card(call, index + 1, fresh, here);
      cards.set(call.id, [state, element]);
      return element;
    });
    more.textContent = `Show more of ${count(head.total - calls.length)} calls`;
    const wanted = [...made, ...(calls.length < head.total ? [more] : [])];
    // Elements that are unchanged stay, with the focus and an opened text in them.
    wanted.forEach((element, index) => {
      if (conversation.childNodes[index] !== element) conversation.insertBefore(element, conversation.childNodes[index] || null);
    });
    while (conversation.childNodes.length > wanted.length) conversation.lastChild.remove();
  }

  head = await api.get("thread", { id, offset: 0, limit: PAGE });
  calls = head.calls;
  version = head.version;
  if (parameters.call && !calls.some((call) => call.id === parameters.call)) {
    const index = head.timeline.findIndex((call) => call.id === parameters.call);
    while (index >= calls.length && calls.length < head.total) {
      const page = await api.get("thread", { id, offset: calls.length, limit: PAGE });
      if (!page.calls.length) break;
      calls = calls.concat(page.calls);
    }
  }
  root.append(top, axis, conversation);
  draw();
  if (parameters.call) requestAnimationFrame(() => document.getElementById(`call-${parameters.call}`)?.scrollIntoView());

  return {
    async update(news) {
      if (busy || news.version === version) return;
      busy = true;
      try {
        const open = calls.findIndex((call) => call.running || call.held); // parallel calls end in any order
        const from = Math.max(0, open < 0 ? calls.length - 1 : open);
        let page = await api.get("thread", { id, offset: from, limit: PAGE });
        let fresh = page.calls;
        while (page.calls.length && from + fresh.length < calls.length) {
          page = await api.get("thread", { id, offset: from + fresh.length, limit: PAGE });
          fresh = fresh.concat(page.calls);
        }
        version = page.version;
        calls = calls.slice(0, from).concat(fresh);
        head = page;
        if (!closed) draw();
      } catch (error) {
        if (!closed) announce(error.message);
      } finally {
        busy = false;
      }
    },
    close() {
      closed = true;
    },
  };
}

function facts({ thread: one, children, total, parent }) {
  const pairs = [
    ["Client", one.client || "unknown"],
    ["Model", one.model || "unknown"],
    ["Started", time(one.started)],
    ["Duration", duration(one.duration_ms)],
    ["Calls", count(total)],
    ["Tokens", tokens(one) + (one.incomplete ? " (incomplete)" : "")],
    ["Cost", cost(one.cost_usd)],
    ["Errors", count(one.errors)],
  ];
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "All threads"), parent ? [" › ", h("a", { href: `#/thread/${encodeURIComponent(parent.id)}` }, parent.title || "parent")] : null),
    h("h2", {}, one.title || "(no text)"),
    h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h(
      "div",
      { class: "toolbar", role: "group", "aria-label": "Thread actions" },
      h("a", { class: "button", href: `#/share/${encodeURIComponent(one.id)}` }, "Share"),
      h("button", { onclick: () => arm({ thread: one.id, on: "request" }) }, "Hold next request"),
      h("button", { onclick: () => arm({ thread: one.id, on: "answer" }) }, "Hold next answer"),
    ),
    children.length
      ? h(
          "section",
          { "aria-label": "Subagents" },
          h("h3", {}, "Subagents"),
          h("ul", { class: "children" }, children.map((child) => h("li", {}, h("a", { href: `#/thread/${encodeURIComponent(child.id)}` }, child.title || "(no text)"), ` ${child.model || ""} · ${count(child.call_count)} calls · ${cost(child.cost_usd)}`))),
        )
      : null,
  ];
}

async function arm(where) {
  try {
    const { note } = await api.post("breakpoint", where);
    announce(`The next ${where.on} of this ${where.thread ? "thread" : "model"} will be held. See Breakpoints. ${note}`);
  } catch (error) {
    announce(error.message);
  }
}

/** The time axis: a bar for each call, and one for the tools that ran between two calls. Overlapping bars are in rows of their own. */
function waterfall({ timeline, total }) {
  const bars = [];
  for (const call of timeline) {
    bars.push({ start: call.start_ms, length: call.duration_ms ?? 0, label: `call ${call.number}`, name: call.model || "", call: call.id, bad: call.status >= 400 || call.status === null });
    for (const tool of call.tools) bars.push({ start: tool.start_ms, length: tool.duration_ms ?? 0, label: tool.name, name: "tool", tool: true });
  }
  if (!bars.length) return null;
  const end = Math.max(1, ...bars.map((bar) => bar.start + bar.length));
  const lanes = [];
  for (const bar of bars.sort((one, other) => one.start - other.start)) {
    let lane = lanes.findIndex((free) => free <= bar.start);
    if (lane < 0) lane = lanes.push(0) - 1;
    lanes[lane] = bar.start + Math.max(bar.length, end / 200);
    bar.lane = lane;
  }
  const place = (bar) => ({ left: `${(bar.start / end) * 100}%`, width: `${Math.max(0.5, (bar.length / end) * 100)}%`, top: `${bar.lane * 1.6}rem` });
  const description = (bar) => `${bar.label}: starts at ${duration(bar.start)}, takes ${duration(bar.length)}`;
  return h(
    "section",
    { "aria-label": "Time axis" },
    h("h3", {}, "Time axis"),
    h(
      "div",
      { class: "waterfall", tabindex: "0", role: "region", "aria-label": "Waterfall of calls and tool calls" },
      h(
        "div",
        { class: "lanes", style: { height: `${Math.max(1, lanes.length) * 1.6}rem` } },
        bars.map((bar) =>
          bar.call
            ? h("a", { class: bar.bad ? "bar bad" : "bar", href: `#call-${bar.call}`, style: place(bar), title: description(bar), "aria-label": description(bar), onclick: (event) => jump(event, bar.call) }, bar.label)
            : h("span", { class: "bar tool", style: place(bar), title: description(bar) }, bar.label),
        ),
      ),
    ),
    h("p", { class: "axis" }, h("span", {}, "0"), h("span", {}, duration(end / 2)), h("span", {}, duration(end))),
    timeline.length < total ? h("p", { class: "note" }, `The first ${count(timeline.length)} calls.`) : null,
  );
}

function jump(event, id) {
  event.preventDefault(); // the address names the view
  const target = document.getElementById(`call-${id}`);
  target?.scrollIntoView();
  target?.focus({ preventScroll: true });
}

/** A bar of parts, with its numbers as text. */
function bar(label, parts, whole) {
  const sum = whole || parts.reduce((total, [, value]) => total + value, 0);
  if (!sum) return null;
  const words = parts.map(([name, value]) => `${name} ${count(value)}`).join(", ");
  return h(
    "div",
    { class: "share" },
    h("span", { class: "share-label" }, `${label}: ${words}`),
    h("div", { class: "stack", "aria-hidden": "true" }, parts.map(([name, value]) => h("span", { class: `part part-${name.replace(/[^a-z]/gi, "-")}`, style: { width: `${Math.min(100, (value / sum) * 100)}%` } }))),
  );
}

function cacheBar(call) {
  const input = call.input_tokens;
  if (typeof input !== "number" || typeof call.cached_input_tokens !== "number") return null;
  const share = input ? Math.round((call.cached_input_tokens / input) * 100) : 0;
  return h(
    "div",
    { class: "share" },
    h("span", { class: "share-label" }, `Cache: ${count(call.cached_input_tokens)} of ${count(input)} input tokens (${share} %)`),
    h("meter", { min: "0", max: String(input || 1), value: call.cached_input_tokens, "aria-label": "Cache hit" }),
  );
}

const LATENCY = {
  proxy: "proxy",
  connect: "connect",
  azure_pre_inference: "Azure before inference",
  azure_engine_first_token: "engine's first token",
  azure_service_first_token: "service's first token",
  azure_total: "Azure in total",
  streaming: "streaming",
};

function latency(call) {
  const split = Object.entries(LATENCY).filter(([name]) => typeof call.latency?.[name] === "number").map(([name, text]) => [text, call.latency[name]]);
  for (const [name, text] of [["first_byte", "first byte"], ["total", "total"]]) if (typeof call.latency_ms?.[name] === "number") split.push([text, call.latency_ms[name]]);
  return split.length ? h("p", { class: "latency" }, "Latency: ", split.map(([name, value]) => `${name} ${duration(value)}`).join(" · ")) : null;
}

function card(call, number, fresh, results) {
  const bad = call.status === null || call.status >= 400;
  const context = call.context || {};
  const cache = call.cache || {};
  return h(
    "article",
    { class: bad ? "call bad" : "call", id: `call-${call.id}`, tabindex: "-1", "aria-label": `Call ${number}` },
    h(
      "header",
      {},
      h("h3", {}, `Call ${number}`),
      h("span", { class: "strong" }, route(call)),
      h("span", { class: bad ? "badge bad" : "badge" }, call.running ? "running" : `status ${call.status ?? "none"}`),
      call.retry ? h("span", { class: "badge" }, "client's retry") : null,
      call.is_replay ? h("span", { class: "badge" }, "replay") : null,
      call.handoff ? h("span", { class: "badge" }, "handoff") : null,
      call.held ? h("span", { class: "badge live" }, `${call.held} held`) : null,
      h("span", {}, tokens(call)),
      h("span", {}, cost(call.cost_usd)),
      h("span", {}, duration(call.latency_ms?.total)),
    ),
    cacheBar(call),
    bar(`Context (${context.unit || "tokens"})`, SHARES.filter((name) => typeof context[name] === "number").map((name) => [name, context[name]])),
    latency(call),
    call.attempts > 1 || call.attempt_list?.length > 1
      ? h("p", {}, `Attempts: ${count(call.attempts)}. `, (call.attempt_list || []).map((one) => `${one.backend} ${one.outcome}`).join(" → "))
      : null,
    call.repairs?.length ? h("p", {}, `Repairs: ${call.repairs.join("; ")}`) : null,
    call.error ? h("p", { class: "failure" }, call.error_message ? `${call.error}: ${call.error_message}` : call.error) : null,
    cache.broken_by ? broken(call) : null,
    h(
      "div",
      { class: "toolbar", role: "group", "aria-label": `Actions of call ${number}` },
      call.previous ? h("a", { class: "button", href: `#/diff/${encodeURIComponent(call.previous)}/${encodeURIComponent(call.id)}` }, "Diff with the previous call") : null,
      h("a", { class: "button", href: `#/compare?a=${encodeURIComponent(call.id)}` }, "Compare"),
      h("a", { class: "button", href: `#/replay/${encodeURIComponent(call.id)}` }, "Replay"),
      h("a", { class: "button", href: `../#/flows/${encodeURIComponent(call.flow)}/${call.flow === call.id ? "request" : "websocket"}` }, "Flow"),
    ),
    call.texts ? null : h("p", { class: "note" }, "The texts of this call are not stored any more."),
    call.more_blocks ? h("p", { class: "note" }, `${count(call.more_blocks)} further blocks are not shown.`) : null,
    h("p", { class: "note" }, `${count(call.new_messages ?? 0)} new ${call.new_messages === 1 ? "message" : "messages"}`),
    blocks(fresh),
    h("div", { class: "answer" }, blocks(call.answer, results)),
  );
}

function broken(call) {
  const { broken_by: reason, expected_tokens: expected, cached_tokens: cached } = call.cache;
  const detail = h("div", {});
  return h(
    "details",
    {
      class: "broken",
      ontoggle: async (event) => {
        if (!event.target.open || detail.firstChild) return;
        try {
          const answer = await api.get("cache", { id: call.id });
          replace(detail, answer.blocks.length ? changes(answer.blocks) : h("p", { class: "note" }, "The prompt itself goes on unchanged."));
        } catch (error) {
          replace(detail, h("p", { class: "failure" }, error.message));
        }
      },
    },
    h("summary", {}, `Cache broken: ${brokenBecause(reason)}. Expected ${count(expected)} cached tokens, got ${count(cached)}.`),
    detail,
  );
}
