// The page: which models there are, the box of the chosen one, the key, and the live figures.

import { json, onUnauthorized, storeKey, storedKey } from "./api.js";
import { boxFor } from "./boxes/boxes.js";
import { byId, counted, element } from "./dom.js";
import { watch, watchHealth } from "./live.js";

const boxes = new Map(); // by model: what was typed stays when another model is looked at

const PLACE = "#model=";
let chosen = null; // the model whose box is shown

/** The model that the address names; without one, the one that is shown, or the first. */
function named(models) {
  const name = location.hash.startsWith(PLACE) ? location.hash.slice(PLACE.length) : null;
  return models.find(({ id }) => encodeURIComponent(id) === name) ?? chosen ?? models[0];
}

function card(model) {
  const facts = [model.variant, model.provider?.replace("ExecutionProvider", "")].filter(Boolean).join(" · ");
  return element(
    "a",
    { href: PLACE + encodeURIComponent(model.id), class: "model" },
    element("strong", {}, model.id),
    element("span", { class: "task" }, model.task),
    element("span", { class: "facts" }, facts),
  );
}

function choose(models) {
  chosen = named(models);
  for (const [place, link] of [...byId("models").children].entries()) {
    if (models[place] === chosen) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  if (!boxes.has(chosen.id)) boxes.set(chosen.id, boxFor(chosen));
  byId("box").replaceChildren(boxes.get(chosen.id));
}

async function showModels() {
  const { data: models } = await json("v1/models");
  byId("models-note").textContent = `${counted(models.length, "model")} loaded`;
  byId("models").replaceChildren(...models.map(card));
  if (models.length) choose(models);
  window.addEventListener("hashchange", () => choose(models));
  return models;
}

let asked = null; // the answer of the dialog that is open: all requests that were refused wait for one key

function askForKey(reason) {
  asked ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-reason").textContent = reason;
    byId("key-field").value = "";
    byId("key-forget").hidden = storedKey() === null;
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use"), { once: true });
  }).finally(() => {
    asked = null;
    showKeyButton(true);
  });
  return asked;
}

function showKeyButton(needed) {
  byId("key").hidden = !needed && storedKey() === null;
}

function prepareKeys() {
  const dialog = byId("key-dialog");
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    storeKey(byId("key-field").value.trim());
    dialog.close("use");
  });
  byId("key-cancel").addEventListener("click", () => dialog.close(""));
  byId("key-forget").addEventListener("click", () => {
    storeKey(null);
    dialog.close("");
  });
  byId("key").addEventListener("click", async () => {
    const reason = storedKey() ? "A key is in use. Another one takes its place." : "Requests carry it from now on.";
    if ((await askForKey(reason)) && !byId("models").children.length) start();
  });
  onUnauthorized(askForKey);
  showKeyButton(false);
}

async function start() {
  try {
    watch(await showModels());
  } catch (error) {
    byId("box").replaceChildren(element("p", { class: "alert", role: "alert" }, error.message));
  }
}

prepareKeys();
watchHealth();
start();
