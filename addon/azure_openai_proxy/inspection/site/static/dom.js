// Building of elements. Texts become text nodes and never markup: everything in a conversation is untrusted.

const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const IMAGE = /^data:image\/(png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=\s]*$/;
const AUDIO = /^data:audio\/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=\s]*$/;

/** Show control characters and overrides of the writing direction as symbols. */
export function visible(text) {
  return String(text).replace(CONTROLS, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
  });
}

/** An element. `on…` are event handlers, `style` sets properties, null and false leave an attribute out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : visible(value));
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(child instanceof Node ? child : document.createTextNode(visible(child)));
    }
  }
  return element;
}

/** Show these elements in `parent` and no others. An element that is there already is not moved, so that it keeps the focus. */
export function replace(parent, ...children) {
  const wanted = children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);
  const kept = new Set(wanted);
  for (const child of [...parent.childNodes]) if (!kept.has(child)) child.remove();
  wanted.forEach((child, place) => {
    if (parent.childNodes[place] !== child) parent.insertBefore(child, parent.childNodes[place] || null);
  });
}

/** A thumbnail, or null: an image is shown only if the request contains it. */
export function image(url, description) {
  return IMAGE.test(url) ? h("img", { src: url, alt: description, loading: "lazy", class: "thumbnail" }) : null;
}

export function audio(url, description) {
  return AUDIO.test(url) ? h("audio", { src: url, controls: true, "aria-label": description, preload: "none" }) : null;
}

export function announce(text) {
  document.getElementById("status").textContent = visible(text);
}

let labels = 0;

/** A labelled form field: `[label, field]`. */
export function field(label, element) {
  element.id = element.id || `field-${(labels += 1)}`;
  return h("div", { class: "field" }, h("label", { for: element.id }, label), element);
}
