// Reads the JSON schemas of an OpenAPI 3.1 document: their types in words, their fields, an example.

const DEEPEST = 6; // a schema may hold itself

export class Schemas {
  constructor(document) {
    this.document = document;
  }

  /** What a schema stands for: a reference is followed, within this document only. */
  resolve(schema) {
    let found = schema ?? {};
    for (let hops = 0; found.$ref?.startsWith("#/") && hops < DEEPEST; hops += 1) {
      const path = found.$ref.slice(2).split("/").map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
      found = path.reduce((place, part) => place?.[part], this.document) ?? {};
    }
    return found;
  }

  /** A type in words: `string`, `list of number`, `string or null`, `"float" or "base64"`. */
  type(schema, depth = 0) {
    const found = this.resolve(schema);
    if (depth > DEEPEST) return "…";
    if ("const" in found) return JSON.stringify(found.const);
    if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(" or ");
    const choices = found.anyOf ?? found.oneOf;
    if (choices) return [...new Set(choices.map((choice) => this.type(choice, depth + 1)))].join(" or ");
    if (found.allOf?.length === 1) return this.type(found.allOf[0], depth + 1);
    if (found.type === "array") return `list of ${found.items ? this.type(found.items, depth + 1) : "anything"}`;
    if (found.properties) return found.title ?? "object";
    return [found.type ?? "anything"].flat().join(" or ");
  }

  /** The limits of a value, in words. */
  limits(schema) {
    const found = this.resolve(schema);
    const words = {
      minimum: (value) => `at least ${value}`,
      exclusiveMinimum: (value) => `above ${value}`,
      maximum: (value) => `at most ${value.toLocaleString("en")}`,
      exclusiveMaximum: (value) => `below ${value}`,
      minLength: (value) => `at least ${value} characters`,
      maxLength: (value) => `at most ${value.toLocaleString("en")} characters`,
      minItems: (value) => `at least ${value} in a list`,
      maxItems: (value) => `at most ${value.toLocaleString("en")} in a list`,
      pattern: (value) => `fits ${value}`,
    };
    const own = Object.entries(words).filter(([name]) => found[name] !== undefined).map(([name, say]) => say(found[name]));
    const inner = (found.anyOf ?? found.oneOf ?? []).flatMap((choice) => this.limits(choice));
    return [...new Set([...own, ...inner])];
  }

  /**
   * The fields of an object, those of objects within it after their parent: `{name, depth, type, required, schema}`.
   * A schema that holds itself, or that is one of several choices more than once, is shown once.
   */
  fields(schema, depth = 0, above = []) {
    const objects = new Set();
    this.objects(schema, objects);
    return [...objects].filter((found) => !above.includes(found) && depth <= DEEPEST).flatMap((found) => (
      Object.entries(found.properties).flatMap(([name, property]) => [
        { name, depth, type: this.type(property), required: found.required?.includes(name) ?? false, schema: property },
        ...this.fields(property, depth + 1, [...above, found]),
      ])
    ));
  }

  /** Adds the schemas with fields that a value, or an item of it, may have. */
  objects(schema, into, depth = 0) {
    const found = this.resolve(schema);
    if (depth > DEEPEST) return;
    if (found.properties) into.add(found);
    const parts = [found.items, ...(found.anyOf ?? found.oneOf ?? found.allOf ?? [])];
    for (const part of parts.filter(Boolean)) this.objects(part, into, depth + 1);
  }

  /** A value that fits: the document's own example, else one made of types, with required fields. */
  example(schema, depth = 0) {
    const found = this.resolve(schema);
    if (found.examples?.length) return found.examples[0];
    if ("example" in found) return found.example;
    if ("const" in found) return found.const;
    if (found.enum) return found.enum[0];
    if (depth > DEEPEST) return null;
    const choices = found.anyOf ?? found.oneOf ?? found.allOf;
    if (choices) return this.example(choices[0], depth + 1);
    if (found.properties) {
      const wanted = Object.entries(found.properties).filter(([name]) => found.required?.includes(name));
      return Object.fromEntries(wanted.map(([name, property]) => [name, this.example(property, depth + 1)]));
    }
    if (found.type === "array") return [this.example(found.items, depth + 1)];
    return { string: "text", integer: found.minimum ?? 1, number: found.minimum ?? 1, boolean: false, object: {} }[found.type] ?? null;
  }
}
