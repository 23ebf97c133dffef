// Numbers and times as text.

const NUMBER = new Intl.NumberFormat("en");
const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export const UNKNOWN = "?";

export function count(value) {
  return typeof value === "number" ? NUMBER.format(value) : UNKNOWN;
}

export function cost(usd) {
  if (typeof usd !== "number") return "cost unknown";
  if (usd === 0 || usd >= 1) return `$${usd.toFixed(2)}`;
  return `$${usd.toFixed(Math.min(9, 1 - Math.floor(Math.log10(usd))))}`;
}

export function duration(ms) {
  if (typeof ms !== "number") return UNKNOWN;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

export function time(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? UNKNOWN : CLOCK.format(date);
}

export function tokens(call) {
  return `${count(call.input_tokens)} in, ${count(call.cached_input_tokens)} cached, ${count(call.output_tokens)} out`;
}

/** `gpt-4o → prod @ west` */
export function route(call) {
  const model = call.model || "unknown model";
  const deployment = call.deployment ? ` → ${call.deployment}` : "";
  return `${model}${deployment}${call.backend ? ` @ ${call.backend}` : ""}`;
}
