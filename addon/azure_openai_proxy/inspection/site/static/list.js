// The list of threads, or of single calls. Only the rows on display are elements, so that any number of threads scrolls smoothly.

import * as api from "./api.js";
import { announce, h } from "./dom.js";
import { cost, count, duration, time } from "./format.js";

const PAGE = 100; // rows of one request
const MARGIN = 8; // rows above and below the visible ones

export async function list(root, { name }) {
  const kind = name === "single" ? "single" : "threads";
  const pages = new Map(); // number of the page: its rows
  const wanted = new Set();
  let total = 0;
  let version = -1;
  let focused = 0;
  let jumped = false;
  let closed = false;

  const drawn = new Map(); // index: [its data, row height, element]
  const rows = h("ul", { class: "rows", "aria-label": kind === "single" ? "Single calls" : "Threads" });
  const box = h("div", { class: "list", tabindex: "0", role: "region", "aria-label": "List" }, rows);
  const summary = h("p", { class: "summary" });
  root.append(summary, box);

  const height = () => parseFloat(getComputedStyle(box).getPropertyValue("--row")) * 16 || 80;

  async function load(number) {
    wanted.add(number);
    try {
      const page = await api.get("threads", { kind, offset: number * PAGE, limit: PAGE });
      if (page.version !== version) {
        version = page.version;
        pages.clear();
      }
      pages.set(number, page.threads);
      total = page.total;
    } finally {
      wanted.delete(number);
    }
  }

  function draw() {
    const tall = height();
    rows.style.setProperty("height", `${total * tall}px`);
    summary.textContent = total
      ? `${count(total)} ${kind === "single" ? "single calls" : total === 1 ? "thread" : "threads"}`
      : kind === "single"
        ? "No single calls yet: embeddings, images, audio and realtime sessions appear here."
        : "No threads yet. Send a chat completion or a response through the proxy, or open a file of flows.";
    const first = Math.max(0, Math.floor(box.scrollTop / tall) - MARGIN);
    const last = Math.min(total, Math.ceil((box.scrollTop + box.clientHeight) / tall) + MARGIN);
    const active = jumped || rows.contains(document.activeElement);
    const made = [];
    for (let index = first; index < last; index += 1) {
      const page = pages.get(Math.floor(index / PAGE));
      if (page && page[index % PAGE]) made.push(drawnRow(page[index % PAGE], index, tall));
      else if (!page && !wanted.has(Math.floor(index / PAGE))) load(Math.floor(index / PAGE)).then(() => !closed && draw(), failed);
    }
    // Rows that stay are not touched: they are neither made nor laid out again, and keep the focus.
    const kept = new Set(made);
    for (const [index, [, , element]] of drawn) {
      if (!kept.has(element)) {
        element.remove();
        drawn.delete(index);
      }
    }
    let next = rows.firstChild;
    for (const element of made) {
      if (element === next) next = next.nextSibling;
      else rows.insertBefore(element, next);
    }
    const target = active && rows.querySelector(`[data-index="${focused}"]`);
    if (target) {
      jumped = false;
      target.focus({ preventScroll: true });
    }
  }

  function drawnRow(item, index, tall) {
    const [data, size, element] = drawn.get(index) || [];
    if (data === item && size === tall) return element;
    element?.remove();
    const made = row(item, index, tall);
    drawn.set(index, [item, tall, made]);
    return made;
  }

  function row(item, index, tall) {
    const state = item.errors ? h("span", { class: "badge bad" }, `${count(item.errors)} failed`) : null;
    const running = item.running ? h("span", { class: "badge live" }, "running") : null;
    return h(
      "li",
      { style: { transform: `translateY(${index * tall}px)` }, "aria-setsize": total, "aria-posinset": index + 1 },
      h(
        "a",
        {
          href: `#/thread/${encodeURIComponent(item.id)}`,
          class: item.depth ? "row child" : "row",
          "data-index": index,
          onfocus: () => (focused = index),
        },
        h("span", { class: "title" }, item.depth ? "↳ " : "", item.title || "(no text)"),
        h(
          "span",
          { class: "facts" },
          h("span", { class: "strong" }, item.model || "unknown model"),
          item.client ? h("span", {}, item.client) : null,
          h("span", {}, `${count(item.call_count)} ${item.call_count === 1 ? "call" : "calls"}`),
          h("span", {}, duration(item.duration_ms)),
          h("span", {}, `${count(item.input_tokens)} in · ${count(item.cached_input_tokens)} cached · ${count(item.output_tokens)} out`),
          h("span", {}, cost(item.cost_usd)),
          item.child_count ? h("span", {}, `${count(item.child_count)} ${item.child_count === 1 ? "subagent" : "subagents"}`) : null,
          state,
          running,
          h("time", { datetime: item.started }, time(item.started)),
        ),
      ),
    );
  }

  function failed(error) {
    if (!closed) announce(error.message);
  }

  function go(index) {
    const target = Math.max(0, Math.min(total - 1, index));
    const tall = height();
    if (target * tall < box.scrollTop) box.scrollTop = target * tall;
    if ((target + 1) * tall > box.scrollTop + box.clientHeight) box.scrollTop = (target + 1) * tall - box.clientHeight;
    focused = target;
    jumped = true; // the row may have to be loaded first
    draw();
  }

  let scheduled = false;
  box.addEventListener("scroll", () => {
    if (!scheduled) {
      scheduled = true;
      requestAnimationFrame(() => {
        scheduled = false;
        if (!closed) draw();
      });
    }
  });
  box.addEventListener("keydown", (event) => {
    const screen = Math.max(1, Math.floor(box.clientHeight / height()) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: screen, PageUp: -screen, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(rows.contains(document.activeElement) ? focused + steps[event.key] : focused);
  });
  const resized = new ResizeObserver(() => !closed && draw());
  await load(0);
  resized.observe(box);

  async function update(news) {
    const number = Math.floor(box.scrollTop / height() / PAGE);
    if (news.version === version || wanted.has(number)) return;
    await load(number).catch(failed);
    if (!closed) draw();
  }
  return {
    update,
    close() {
      closed = true;
      resized.disconnect();
    },
  };
}
