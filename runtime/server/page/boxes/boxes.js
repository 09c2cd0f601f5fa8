// Which boxes a model has, by its task.

import { element } from "../dom.js";
import { chat } from "./chat.js";
import { completion } from "./completion.js";
import * as encoders from "./encoders.js";

const BOXES = {
  "feature-extraction": [["Embeddings", encoders.embeddings]],
  "text-ranking": [["Rerank", encoders.rerank]],
  "text-classification": [["Classify", encoders.classify]],
  "zero-shot-classification": [["Zero-shot", encoders.zeroShot]],
  "token-classification": [["Entities", encoders.tag]],
  "question-answering": [["Answer", encoders.answer]],
  "fill-mask": [["Fill", encoders.fill]],
  "text-generation": [["Chat", chat], ["Completion", completion]],
};

/** A model's box; where it has several, with a button for each above. */
export function boxFor(model) {
  const heading = element("h3", {}, model.id);
  const kinds = BOXES[model.task];
  if (!kinds) return element("div", {}, heading, element("p", {}, `This page has nothing to try for the task ${model.task}.`));
  if (kinds.length === 1) return element("div", {}, heading, kinds[0][1](model));
  const places = kinds.map(([, make]) => element("div", {}, make(model)));
  const buttons = kinds.map(([name], chosen) => element(
    "button", { type: "button", class: "plain", on: { click: () => show(chosen) } }, name,
  ));
  const show = (chosen) => {
    for (const [place, node] of places.entries()) node.hidden = place !== chosen;
    for (const [place, button] of buttons.entries()) button.setAttribute("aria-pressed", String(place === chosen));
  };
  show(0);
  const switcher = element("div", { class: "switch", role: "group", "aria-label": "What to try" }, buttons);
  return element("div", {}, element("div", { class: "heading" }, heading, switcher), places);
}
