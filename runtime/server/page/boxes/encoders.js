// A box for each task of models that read: embeddings, reranking, classification, entities, answers, gaps.

import { counted, element, lines } from "../dom.js";
import { checkBox, choice, requestBox, textArea, textField } from "./form.js";
import { bars, marked, matrix, percent } from "./shapes.js";

const MOST_IN_MATRIX = 12;

const remark = (...parts) => element("p", { class: "remark" }, ...parts);

export function embeddings(model) {
  const texts = textArea("Texts, one a line", [
    "How do I return a parcel that arrived damaged?",
    "My order came broken and I want to send it back.",
    "收到的包裹坏了，怎么退货？",
    "When does the museum open on Sundays?",
  ].join("\n"), { rows: 5 });
  const names = Object.entries(model.prompts ?? {}).filter(([, text]) => text).map(([name]) => name);
  const own = model.default_prompt_name ? `the model's default, ${model.default_prompt_name}` : "none";
  const prompt = choice("Prompt before each text", { "": own, ...Object.fromEntries(names.map((name) => [name, name])) });
  return requestBox({
    about: "Turns each text into a vector. Below, how similar the texts are: the cosine of their vectors.",
    fields: [texts.node, names.length ? prompt.node : null],
    button: "Compare",
    path: "v1/embeddings",
    body: () => ({ model: model.id, input: lines(texts.value()), prompt_name: prompt.value() }),
    show: ({ data, usage }, { input }) => {
      const vectors = data.slice(0, MOST_IN_MATRIX).map(({ embedding }) => embedding);
      const left = data.length > vectors.length ? `; the first ${MOST_IN_MATRIX} are compared` : "";
      const sizes = `${counted(data.length, "vector")} of ${counted(vectors[0].length, "number")}, ${counted(usage.prompt_tokens, "token")} read${left}`;
      return [matrix(input.slice(0, vectors.length), vectors.map((a) => vectors.map((b) => cosine(a, b)))), remark(sizes)];
    },
  });
}

function cosine(a, b) {
  const dot = (x, y) => x.reduce((total, value, place) => total + value * y[place], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)) || 0;
}

export function rerank(model) {
  const query = textField("Query", "How long can I take to send something back?");
  const texts = textArea("Documents, one a line", [
    "We ship to all countries of the European Union.",
    "Goods can be returned within 30 days of delivery.",
    "Our shops are open from 9 to 18 o'clock.",
    "退货请在收到商品后三十天内寄回。",
  ].join("\n"), { rows: 5 });
  return requestBox({
    about: "Reads the query together with each document, and puts the documents in order.",
    fields: [query.node, texts.node],
    button: "Rank",
    path: "rerank",
    body: () => ({ model: model.id, query: query.value(), texts: lines(texts.value()) }),
    show: (ranked, { texts: given }) => {
      const scores = ranked.map(({ score }) => score);
      const low = Math.min(0, ...scores);
      const width = Math.max(1, ...scores) - low;
      return bars("Documents, the best first", ranked.map(({ index, score }, place) => ({
        name: given[index], share: (score - low) / width, value: score.toPrecision(3), best: place === 0,
      })));
    },
  });
}

const scoreBars = (scores, caption) => bars(caption, Object.entries(scores).map(([name, share], place) => ({
  name, share, value: percent(share), best: place === 0,
})));

/** What was found of each text, below the text. */
const each = (texts, found, show) => texts.map((text, place) => element(
  "section", { class: "found" }, texts.length > 1 ? element("h4", {}, text) : null, show(found[place]),
));

export function classify(model) {
  const texts = textArea("Texts, one a line", [
    "The update made everything faster. Thank you!",
    "Third time it crashes today, and nobody answers.",
    "这家店的服务非常好。",
  ].join("\n"), { rows: 4 });
  return requestBox({
    about: "Says how well each of the model's labels fits a text.",
    fields: [texts.node],
    button: "Classify",
    path: "classify",
    body: () => ({ model: model.id, input: lines(texts.value()) }),
    show: ({ data }, { input }) => each(input, data, ({ scores }) => scoreBars(scores, "Labels, the best first")),
  });
}

export function zeroShot(model) {
  const texts = textArea("Texts, one a line", "The central bank raised its rate by a quarter point.", { rows: 2 });
  const labels = textField("Labels, with commas between", "economy, sports, science, politics");
  const several = checkBox("Several labels may fit");
  return requestBox({
    about: "Chooses among labels that you name, which the model was never trained on.",
    fields: [texts.node, labels.node, several.node],
    button: "Choose",
    path: "zero-shot",
    body: () => ({
      model: model.id,
      input: lines(texts.value()),
      labels: labels.value().split(/[,，、]/).map((label) => label.trim()).filter(Boolean),
      multi_label: several.value(),
    }),
    show: ({ data }, { input }) => each(input, data, ({ scores }) => scoreBars(scores, "Labels, the best first")),
  });
}

export function tag(model) {
  const text = textArea("Text", "Ada Lovelace wrote to Charles Babbage in London, long before Apple or 华为 existed.", { rows: 3 });
  return requestBox({
    about: "Finds names of people, places and whatever else the model has labels for.",
    fields: [text.node],
    button: "Find",
    path: "tag",
    body: () => ({ model: model.id, input: text.value() }),
    show: ({ data: entities }, { input }) => {
      const kinds = [...new Set(entities.map(({ label }) => label))];
      const spans = entities.map(({ start, end, label, score }) => ({
        start, end, note: `${label} ${percent(score)}`, kind: kinds.indexOf(label) % 5,
      }));
      return [marked(input, spans), remark(entities.length ? counted(entities.length, "name") : "No name was found.")];
    },
  });
}

export function answer(model) {
  const question = textField("Question", "Who wrote the first program?");
  const context = textArea("Text that has the answer", "The Analytical Engine was designed by Charles Babbage. "
    + "Ada Lovelace wrote the first program for it, although the engine was never built.", { rows: 4 });
  return requestBox({
    about: "Finds the words of a text that answer a question.",
    fields: [question.node, context.node],
    button: "Answer",
    path: "answer",
    body: () => ({ model: model.id, question: question.value(), context: context.value(), top_k: 3 }),
    show: ({ data }, { context: given }) => {
      const [best] = data;
      if (!best?.text) return remark("The model finds no answer in this text.");
      return [
        marked(given, [{ start: best.start, end: best.end, kind: 0 }]),
        bars("Answers, the best first", data.map(({ text, score }, place) => ({
          name: text || "no answer", share: score, value: percent(score), best: place === 0,
        }))),
      ];
    },
  });
}

export function fill(model) {
  const mask = model.mask_token ?? "[MASK]";
  const text = textArea("Text with a gap", `The capital of France is ${mask}.`, { rows: 2, hint: `${mask} marks the gap.` });
  return requestBox({
    about: "Proposes words for a gap.",
    fields: [text.node],
    button: "Fill",
    path: "fill",
    body: () => ({ model: model.id, input: text.value(), top_k: 5 }),
    show: ({ data }) => {
      const gaps = Array.isArray(data[0]) ? data : [data];
      return gaps.map((proposals) => bars("Proposals, the best first", proposals.map(({ token, score }, place) => ({
        name: token, share: score, value: percent(score), best: place === 0,
      }))));
    },
  });
}
