// The page: which models there are, the box of the chosen one, the key, and the live figures.

import { json } from "./api.js";
import { boxFor } from "./boxes/boxes.js";
import { byId, counted, element } from "./dom.js";
import { prepareKeys } from "./keys.js";
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
  window.addEventListener("hashchange", () => {
    choose(models);
    // Where the box lies below the list, it is out of sight.
    if (location.hash.startsWith(PLACE) && matchMedia("(max-width: 900px)").matches) byId("box").scrollIntoView();
  });
  return models;
}

async function start() {
  try {
    watch(await showModels());
  } catch (error) {
    byId("box").replaceChildren(element("p", { class: "alert", role: "alert" }, error.message));
  }
}

prepareKeys(byId("key"), () => { if (!chosen) start(); });
watchHealth();
start();
