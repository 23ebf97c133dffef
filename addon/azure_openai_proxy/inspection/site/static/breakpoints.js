// Breakpoints: hold the next request or answer, edit it, and let it go on.

import * as api from "./api.js";
import { announce, field, h, replace } from "./dom.js";
import { route } from "./format.js";

export async function breakpoints(root) {
  const model = h("input", { placeholder: "gpt-4o, or empty for any", maxlength: "200" });
  const on = h("select", {}, h("option", { value: "request" }, "request"), h("option", { value: "answer" }, "answer"));
  const note = h("p", { class: "note" });
  const armed = h("ul", { "aria-label": "Breakpoints", class: "children" });
  const arriving = h("ul", { "aria-label": "Answers that arrive", class: "children" });
  const held = h("div", {});
  const cards = new Map();
  let shown = "";

  async function refresh() {
    const state = await api.get("breakpoints");
    note.textContent = state.note;
    // Buttons that are the same stay, so that they keep the focus.
    const lists = JSON.stringify([state.armed, state.arriving]);
    if (lists !== shown) list(state);
    shown = lists;
    for (const id of [...cards.keys()]) if (!state.held.some((one) => `${one.id} ${one.on}` === id)) cards.delete(id);
    // The text of a held message stays as it was edited.
    replace(
      held,
      state.held.length ? null : h("p", { class: "note" }, "nothing is held"),
      state.held.map((one) => {
        const key = `${one.id} ${one.on}`;
        if (!cards.has(key)) cards.set(key, card(one));
        return cards.get(key);
      }),
    );
  }

  function list(state) {
    replace(
      armed,
      state.armed.map((one) =>
        h("li", {}, `next ${one.on} of ${one.title ? `thread “${one.title}”` : one.model ? `model ${one.model}` : "any call"} `, h("button", { class: "quiet", onclick: () => act("disarm", { number: one.number }) }, "Remove"), one.note ? h("p", { class: "note" }, one.note) : null),
      ),
      state.armed.length ? null : h("li", { class: "note" }, "none"),
    );
    replace(
      arriving,
      state.arriving.map((one) =>
        h("li", {}, `answer of ${route(one)}: it is streamed, and held when it is complete `, h("button", { class: "quiet", onclick: () => act("resume", { id: one.id }) }, "Let it go on")),
      ),
    );
  }

  function card(one) {
    const body = h("textarea", { rows: "14", value: one.body, spellcheck: "false", readonly: one.editable ? null : true });
    return h(
      "form",
      {
        class: "panel held",
        "aria-label": `Held ${one.on}`,
        onsubmit: (event) => {
          event.preventDefault();
          act("resume", { id: one.id, body: one.editable && body.value !== one.body ? body.value : null });
        },
      },
      h("h3", {}, `Held ${one.on}: ${route(one)}`),
      field("Body", body),
      h("div", { class: "toolbar" }, h("button", { class: "primary" }, "Go on"), h("button", { type: "button", onclick: () => act("drop", { id: one.id }) }, "Drop")),
    );
  }

  async function act(name, value) {
    try {
      await api.post(name, value);
      await refresh();
    } catch (error) {
      announce(error.message);
    }
  }

  root.append(
    h("h2", {}, "Breakpoints"),
    h(
      "form",
      {
        class: "panel",
        "aria-label": "New breakpoint",
        onsubmit: (event) => {
          event.preventDefault();
          act("breakpoint", { model: model.value, on: on.value });
        },
      },
      h("div", { class: "fields" }, field("Hold the next", on), field("Of the model", model)),
      h("button", {}, "Hold"),
    ),
    note,
    h("h3", {}, "Armed"),
    armed,
    arriving,
    h("h3", {}, "Held"),
    held,
  );
  await refresh();
  return { update: () => refresh().catch((error) => announce(error.message)) };
}
