// The wording of entities and queries, by the rules of pmd.serving.texts: a text is "name: description" as the
// bundle's templates say; a short description is followed by names of neighbours, but never by those that are
// training answers of the very query.

import { answerSpan, neighbours } from "./graph.js";

const TRAIN = 0; // among known.splits
// What Python takes for space, which is not what \s is here.
const SPACES = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]";
const [WORDS_APART, OUTER] = [new RegExp(`${SPACES}+`, "u"), new RegExp(`^${SPACES}+|${SPACES}+$`, "gu")];
const FIELD = /\{([\p{L}\p{N}_]+)\}/gu;
const FIELDS = { entity: ["name", "description"], bare_entity: ["name"], inverse: ["relation"] };
const DEFAULTS = {
  entity: "{name}: {description}",
  bare_entity: "{name}",
  inverse: "inverse {relation}",
  neighbours: 10,
  short_description_words: 20,
};

/** The templates of a manifest, defaults filled in. Throws for an unknown template or field. */
export function checkedTemplates(given, what) {
  for (const [key, value] of Object.entries(given)) {
    if (!Object.hasOwn(DEFAULTS, key)) throw new Error(`${what}: unknown text template ${key}: update the page`);
    if (typeof value !== typeof DEFAULTS[key]) {
      throw new Error(`${what}: text template ${key} must be a ${typeof DEFAULTS[key]}: export the bundle again`);
    }
  }
  const templates = { ...DEFAULTS, ...given };
  for (const [key, allowed] of Object.entries(FIELDS)) {
    const unknown = [...templates[key].matchAll(FIELD)].find(([, field]) => !allowed.includes(field));
    if (unknown) throw new Error(`${what}: template ${key} has unknown field ${unknown[1]}; it may use ${allowed}`);
  }
  return templates;
}

/** The text pair [head text, relation text] of a directed query of the bundle's graph. */
export function queryTexts(bundle, head, relation) {
  const [start, end] = answerSpan(bundle.known, bundle.entities.length, head, relation);
  return [wording(bundle, head, start, end), relationText(bundle, relation)];
}

/** The text pair of a query whose head is given as text. Throws if there is nothing in it, or half a character. */
export function freeTexts(bundle, text, relation) {
  if (!text.replace(OUTER, "")) throw new Error("the text of an entity is empty: type some");
  if (!text.isWellFormed()) throw new Error("the text of an entity is not valid Unicode: type it again");
  return [joined(bundle.templates, text, ""), relationText(bundle, relation)];
}

function relationText(bundle, relation) {
  const count = bundle.relations.length;
  if (relation < count) return bundle.relations[relation].text;
  return fill(bundle.templates.inverse, { relation: bundle.relations[relation - count].text });
}

function wording({ entities, graph, known, templates }, index, start, end) {
  const { name, description } = entities[index];
  const words = description.split(WORDS_APART).filter(Boolean).length;
  if (templates.neighbours <= 0 || words >= templates.short_description_words) {
    return joined(templates, name, description);
  }
  const hidden = new Set();
  for (let place = start; place < end; place += 1) {
    if (known.splits[place] === TRAIN) hidden.add(known.answers[place]);
  }
  const shown = neighbours(graph, index).filter((other) => !hidden.has(other)).subarray(0, templates.neighbours);
  const names = Array.from(shown, (other) => entities[other].name);
  return joined(templates, name, [description, ...names].join(" ").replace(OUTER, ""));
}

function joined(templates, name, description) {
  return fill(description ? templates.entity : templates.bare_entity, { name, description });
}

function fill(template, fields) {
  return template.replace(FIELD, (_, field) => fields[field]);
}
