// What the boxes are made of: fields, and a form that sends a request and shows the answer, the request as curl, and the
// answer as JSON.

import { curl, json } from "../api.js";
import { copy, duration, element } from "../dom.js";

let made = 0;

function labelled(label, control, hint, settings = {}) {
  made += 1;
  control.id = `field-${made}`;
  const below = hint ? element("span", { class: "hint", id: `hint-${made}` }, hint) : null;
  if (below) control.setAttribute("aria-describedby", below.id);
  return element("div", { class: "field", ...settings }, element("label", { for: control.id }, label), control, below);
}

/** Several lines of text; `value()` is what stands in it. Control and Enter send the form. */
export function textArea(label, text, { rows = 3, hint = null } = {}) {
  const control = element("textarea", { rows, spellcheck: "false" });
  control.value = text;
  control.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) control.form.requestSubmit();
  });
  return { node: labelled(label, control, hint), control, value: () => control.value };
}

/** One line of text. */
export function textField(label, text, { hint = null } = {}) {
  const control = element("input", { type: "text", spellcheck: "false", autocomplete: "off" });
  control.value = text;
  return { node: labelled(label, control, hint), control, value: () => control.value };
}

/** A number; `value()` is undefined where none is given, so that the request does not have it. */
export function numberField(label, { min, max, step = 1, value = "", hint = null } = {}) {
  const control = element("input", { type: "number", min, max, step, inputmode: "decimal", placeholder: "default" });
  control.value = value;
  const read = () => (control.value === "" ? undefined : control.valueAsNumber);
  return { node: labelled(label, control, hint, { class: "field number" }), control, value: read };
}

/** One of several; `choices` by value, `value()` is undefined where that is empty. */
export function choice(label, choices, { hint = null } = {}) {
  const options = Object.entries(choices).map(([value, name]) => element("option", { value }, name));
  const control = element("select", {}, options);
  return { node: labelled(label, control, hint), control, value: () => control.value || undefined };
}

/** A yes or no. */
export function checkBox(label, checked = false) {
  const control = element("input", { type: "checkbox" });
  control.checked = checked;
  return { node: element("label", { class: "check" }, control, label), control, value: () => control.checked };
}

/** An error as a sentence, said aloud. */
export const alert = (error) => element("p", { class: "alert", role: "alert" }, error.message);

/** Text for programs that unfolds, with a button to copy it. `set` gives it a text, or hides it. */
export function folded(title) {
  const text = element("code");
  const button = element("button", { type: "button", class: "plain small" }, "Copy");
  button.addEventListener("click", () => copy(text.textContent, button));
  const pre = element("pre", { tabindex: "0" }, text);
  const node = element("details", { class: "folded" }, element("summary", {}, title), element("div", {}, pre, button));
  const set = (content) => {
    node.hidden = content === null;
    text.textContent = content ?? "";
  };
  return { node, set };
}

/**
 * A box that sends a form and shows what comes back.
 *
 * @param {object} settings
 *   `about`: a sentence; `fields`: their nodes; `button`: what it does; `path`: of the route;
 *   `body`: makes the request; `show`: makes elements of the answer and the request.
 */
export function requestBox({ about, fields, button, path, body, show }) {
  const submit = element("button", { type: "submit" }, button);
  const status = element("span", { class: "status", role: "status" });
  const result = element("div", { class: "result" });
  const asCurl = folded("This request as curl");
  const asJson = folded("The answer as JSON");
  const form = element("form", { class: "ask", novalidate: true }, ...fields, element("div", { class: "actions" }, submit, status));
  const showRequest = () => asCurl.set(curl(path, body()));
  asJson.set(null);
  form.addEventListener("input", showRequest);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    submit.disabled = true;
    status.textContent = "Working …";
    const asked = body();
    const began = performance.now();
    try {
      const answer = await json(path, { body: asked });
      status.textContent = `Answered in ${duration((performance.now() - began) / 1000)}`;
      result.replaceChildren(...[show(answer, asked)].flat());
      asJson.set(shortened(answer));
    } catch (error) {
      status.textContent = "";
      result.replaceChildren(alert(error));
      asJson.set(null);
    } finally {
      submit.disabled = false;
      showRequest();
    }
  });
  showRequest();
  return element("div", {}, element("p", { class: "about" }, about), form, result, asCurl.node, asJson.node);
}

const LONG = 8;

/** Indented, and of long lists of numbers, which are vectors, the first few. */
function shortened(answer) {
  const shorten = (_, value) => {
    if (!Array.isArray(value) || value.length <= LONG || typeof value[0] !== "number") return value;
    return [...value.slice(0, LONG), `… ${value.length.toLocaleString("en")} numbers in all`];
  };
  const text = JSON.stringify(answer, shorten, 2);
  // A number a line would be long all the same.
  return text.replace(/\[\s+((?:-?[\d.e-]+,\s+)+"… [^"]+")\s+\]/g, (_, items) => `[${items.replace(/\s*\n\s*/g, " ")}]`);
}
