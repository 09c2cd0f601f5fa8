// The dialog that asks for an API key. The key stays in this tab.

import { onUnauthorized, storeKey, storedKey } from "./api.js";
import { element } from "./dom.js";

let asked = null; // the answer of the dialog that is open: all requests that were refused wait for one key

function dialog(reason) {
  const field = element("input", { id: "key-field", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const cancel = element("button", { type: "button", class: "plain", on: { click: () => made.close("") } }, "Cancel");
  const forget = element("button", { type: "button", class: "plain", hidden: storedKey() === null }, "Forget the key");
  const form = element(
    "form", {},
    element("h2", { id: "key-title" }, "This server asks for an API key"),
    element("p", { class: "quiet" }, reason),
    element("label", { for: "key-field" }, "API key"),
    field,
    element("p", { class: "hint" }, "Kept in this browser tab until you close it."),
    element("div", { class: "actions" }, element("button", { type: "submit" }, "Use this key"), cancel, forget),
  );
  const made = element("dialog", { "aria-labelledby": "key-title" }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    storeKey(field.value.trim());
    made.close("use");
  });
  forget.addEventListener("click", () => {
    storeKey(null);
    made.close("");
  });
  return made;
}

/** Ask for a key; says whether there is a new one. */
export function askForKey(reason) {
  asked ??= new Promise((resolve) => {
    const open = dialog(reason);
    document.body.append(open);
    open.addEventListener("close", () => {
      open.remove();
      resolve(open.returnValue === "use");
    }, { once: true });
    open.showModal();
  }).finally(() => { asked = null; });
  return asked;
}

/**
 * Ask whenever a request is refused for want of a key, and by a button that is there once one was wanted.
 * @param {HTMLElement} button hidden until then.
 * @param {function} retry what to do once there is a key that was typed in without being asked for.
 */
export function prepareKeys(button, retry) {
  const show = () => { button.hidden = false; };
  if (storedKey()) show();
  onUnauthorized((tried) => {
    show();
    return askForKey(tried ? "The key was not accepted." : "Whoever runs the server gives it to you.");
  });
  button.addEventListener("click", async () => {
    const reason = storedKey() ? "A key is in use; another one takes its place." : "Requests carry it from now on.";
    if (await askForKey(reason)) retry();
  });
}
