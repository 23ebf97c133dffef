// Send a call again with changes, and see both answers side by side.

import * as api from "./api.js";
import { announce, field, h, replace } from "./dom.js";
import { blocks } from "./blocks.js";
import { cost, duration, route, tokens } from "./format.js";

const RECENT = 12; // messages that are shown opened

export async function replay(root, { parts: [id] }) {
  const original = await api.get("replay", { id });
  const texts = [];
  const close = [];

  const model = h("input", { value: original.model || "", maxlength: "200" });
  const deployment = h("input", { value: original.deployment || "", maxlength: "200" });
  const tools = json(original.tools, "[]");
  const parameters = json(original.parameters, "{}");
  const editors = original.items.map((item, index) => {
    const plain = typeof item.text === "string";
    const area = h("textarea", { rows: String(Math.min(12, 2 + String(plain ? item.text : item.json).split("\n").length)), value: plain ? item.text : item.json, spellcheck: plain ? null : "false" });
    texts.push({ plain, area, index });
    return field(`${index}: ${item.label}${plain ? "" : " (JSON)"}`, area);
  });
  const early = editors.slice(0, Math.max(0, editors.length - RECENT));
  const output = h("div", { class: "sides" });
  const button = h("button", { class: "primary", disabled: Boolean(original.missing) }, "Replay");
  const form = h(
    "form",
    { class: "panel", "aria-label": "Replay with a change", onsubmit: start },
    h("div", { class: "fields" }, field("Model", model), field("Deployment", deployment)),
    h("fieldset", {}, h("legend", {}, "Prompt"), early.length ? h("details", {}, h("summary", {}, `${early.length} earlier messages`), early) : null, editors.slice(early.length)),
    h("details", {}, h("summary", {}, "Tools"), field("Tools (JSON)", tools)),
    h("details", {}, h("summary", {}, "Parameters"), field("Parameters (JSON)", parameters)),
    button,
  );
  root.append(
    h("h2", {}, "Replay"),
    h("p", { class: "crumbs" }, h("a", { href: `#/thread/${encodeURIComponent(original.thread)}?call=${encodeURIComponent(id)}` }, "Back to the thread")),
    original.missing ? h("p", { class: "failure", role: "alert" }, original.missing) : "",
    form,
    output,
  );
  replace(output, side("Original", original.call));

  async function start(event) {
    event.preventDefault();
    const problem = h("p", { class: "failure", role: "alert" });
    let body;
    try {
      body = {
        id,
        model: model.value === (original.model || "") ? null : model.value,
        deployment: deployment.value === (original.deployment || "") ? null : deployment.value,
        items: texts.map(({ plain, area }) => (plain ? { text: area.value } : { json: JSON.parse(area.value) })),
        tools: JSON.parse(tools.value || "[]"),
        parameters: JSON.parse(parameters.value || "{}"),
      };
    } catch (error) {
      problem.textContent = `This is not JSON: ${error.message}`;
      replace(output, side("Original", original.call), problem);
      return;
    }
    button.disabled = true;
    try {
      const { id: made } = await api.post("replay", body);
      announce("The request was sent.");
      follow(made);
    } catch (error) {
      problem.textContent = error.message;
      replace(output, side("Original", original.call), problem);
      button.disabled = false;
    }
  }

  function follow(made) {
    const text = h("pre", { class: "text streaming" });
    const running = h("section", { class: "side", "aria-label": "Replay", "aria-busy": "true" }, h("h3", {}, "Replay"), h("p", { class: "note" }, "running"), text);
    replace(output, side("Original", original.call), running);
    const stop = api.events("answer", { id: made }, async (news, source) => {
      text.textContent = news.text;
      if (!news.done) return;
      source.close();
      button.disabled = false;
      try {
        replace(output, side("Original", original.call), side("Replay", await api.get("call", { id: made })));
        announce("The replay is complete.");
      } catch (error) {
        announce(error.message);
      }
    });
    close.push(stop);
  }
  return { close: () => close.forEach((stop) => stop()) };
}

function json(value, empty) {
  const text = value === null || value === undefined ? empty : JSON.stringify(value, null, 2);
  return h("textarea", { rows: String(Math.min(16, 2 + text.split("\n").length)), value: text, spellcheck: "false" });
}

function side(title, call) {
  return h(
    "section",
    { class: "side", "aria-label": title },
    h("h3", {}, title),
    h("p", { class: "facts" }, [route(call), `status ${call.status ?? "none"}`, tokens(call), cost(call.cost_usd), `first byte ${duration(call.latency_ms?.first_byte)}`, `total ${duration(call.latency_ms?.total)}`].map((text) => h("span", {}, text))),
    call.error ? h("p", { class: "failure" }, call.error_message ? `${call.error}: ${call.error_message}` : call.error) : null,
    blocks(call.answer),
  );
}
