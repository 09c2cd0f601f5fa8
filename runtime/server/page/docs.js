// The API reference: what the OpenAPI document of this server says, as a page.

import { curl, json } from "./api.js";
import { byId, copy, element } from "./dom.js";
import { prepareKeys } from "./keys.js";
import { Schemas } from "./schema.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

/** A route's name in the address of the page. */
const place = ({ method, path }) => `${method}${path}`.replace(/[^a-z0-9]+/gi, "-").replace(/-$/, "");

/** The operations, in the document's order. */
function operations({ paths = {} }) {
  return Object.entries(paths).flatMap(([path, item]) => METHODS.filter((method) => item[method]).map((method) => ({
    method, path, ...item[method], parameters: [...(item.parameters ?? []), ...(item[method].parameters ?? [])],
  })));
}

/** Groups of operations by their first tag. */
function byTag(all) {
  const groups = new Map();
  for (const operation of all) {
    const tag = operation.tags?.[0] ?? "other";
    groups.set(tag, [...(groups.get(tag) ?? []), operation]);
  }
  return [...groups];
}

const method = (name) => element("span", { class: `method ${name}` }, name.toUpperCase());

// Docstrings have code between backticks; nothing else of their markup is shown as more than text.
function prose(text) {
  return text.trim().split(/\n\s*\n/).map((paragraph) => element(
    "p", {}, paragraph.split("`").map((part, odd) => (odd % 2 ? element("code", {}, part) : part.replace(/\s+/g, " "))),
  ));
}

function fieldRow(schemas, { name, depth = 0, type, required, schema, description }) {
  const found = schemas.resolve(schema);
  const facts = schemas.limits(schema);
  const given = schema.default ?? found.default;
  if (given !== undefined && given !== null) facts.push(`default ${JSON.stringify(given)}`);
  const title = element("th", { scope: "row", class: `depth-${Math.min(depth, 4)}` },
    element("code", {}, name), required ? element("span", { class: "required" }, " required") : null);
  const says = description ?? schema.description ?? (found.properties ? null : found.description);
  return element("tr", {}, title, element("td", {},
    element("span", { class: "type" }, type), facts.length ? element("span", { class: "facts" }, ` · ${facts.join(" · ")}`) : null,
    says ? element("div", { class: "says" }, prose(says)) : null));
}

const table = (caption, rows) => element(
  "div", { class: "scroll" }, element("table", { class: "fields" }, element("caption", { class: "unseen" }, caption), element("tbody", {}, rows)),
);

const section = (title, ...parts) => element("div", { class: "part" }, element("h4", {}, title), ...parts);

function code(text) {
  const button = element("button", { type: "button", class: "plain small" }, "Copy");
  button.addEventListener("click", () => copy(text, button));
  return element("div", { class: "code" }, element("pre", { tabindex: "0" }, element("code", {}, text)), button);
}

const content = (holder) => Object.entries(holder?.content ?? {})[0] ?? [null, null];

function parameters(schemas, { parameters: all }) {
  if (!all.length) return null;
  const rows = all.map((found) => schemas.resolve(found)).map(({ name, required, schema = {}, description, in: where }) => (
    fieldRow(schemas, { name, required, type: `${schemas.type(schema)}, in the ${where}`, schema, description })
  ));
  return section("Parameters", table("Parameters", rows));
}

function requestPart(schemas, { path, requestBody }) {
  const [, media] = content(schemas.resolve(requestBody));
  if (!media) return [];
  // What may be left out may be null, too; that need not be said each time.
  const optional = (field) => (field.required ? field : { ...field, type: field.type.replace(/ or null$/, "") });
  const rows = schemas.fields(media.schema).map((field) => fieldRow(schemas, optional(field)));
  const example = media.example ?? Object.values(media.examples ?? {})[0]?.value ?? schemas.example(media.schema);
  return [
    rows.length ? section("Request", table("Fields of the request", rows)) : null,
    section("Example", code(curl(path.replace(/^\//, ""), example))),
  ];
}

function answers(schemas, { responses = {} }) {
  return section("Answers", Object.entries(responses).map(([status, response]) => {
    const found = schemas.resolve(response);
    const [type, media] = content(found);
    const rows = media?.schema ? schemas.fields(media.schema).map((field) => fieldRow(schemas, { ...field, required: false })) : [];
    const example = media?.example ?? (type === "application/json" && /^2/.test(status) ? schemas.example(media.schema) : undefined);
    const shown = example === undefined ? null : code(JSON.stringify(example, null, 2));
    const kind = /^[45]/.test(status) ? "bad" : "good";
    const summary = [element("span", { class: `code-of ${kind}` }, status), ` ${found.description ?? ""}`];
    if (!rows.length) return element("p", { class: "answer" }, ...summary, type ? element("span", { class: "facts" }, ` · ${type}`) : null);
    return element("details", { class: "answer" }, element("summary", {}, ...summary), table(`Fields of the answer ${status}`, rows), shown);
  }));
}

function route(schemas, operation) {
  const id = place(operation);
  return element(
    "article", { class: "card route", id, "aria-labelledby": `${id}-title` },
    element("h3", { id: `${id}-title` }, method(operation.method), element("code", {}, operation.path)),
    element("div", { class: "about" }, prose(operation.description ?? operation.summary ?? "")),
    parameters(schemas, operation), ...requestPart(schemas, operation), answers(schemas, operation),
  );
}

function show(document) {
  const schemas = new Schemas(document);
  const groups = byTag(operations(document));
  byId("about").textContent = `${document.info.title} ${document.info.version}, OpenAPI ${document.openapi}`;
  byId("contents").replaceChildren(...groups.map(([tag, found]) => element(
    "div", {}, element("h2", {}, tag),
    element("ul", {}, found.map((operation) => element(
      "li", {}, element("a", { href: `#${place(operation)}` }, method(operation.method), element("span", {}, operation.path)),
    ))),
  )));
  byId("routes").replaceChildren(...groups.flatMap(([tag, found]) => [
    element("h2", {}, tag), ...found.map((operation) => route(schemas, operation)),
  ]));
  byId(location.hash.slice(1))?.scrollIntoView(); // it was not there when the page was opened
}

async function start() {
  try {
    show(await json("openapi.json"));
  } catch (error) {
    byId("routes").replaceChildren(element("p", { class: "alert", role: "alert" }, error.message));
  }
}

prepareKeys(byId("key"), start);
start();
