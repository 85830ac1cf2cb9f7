// A bundle, read from a source and checked: its manifest, tables, tokenizer and query tower.

import { checkRows } from "./graph.js";
import { readNpy, readNpz } from "./numpy.js";
import { checkedTemplates } from "./texts.js";
import { vectorTable } from "./vectors.js";

const [SCHEMA, VERSION] = ["pmd-bundle", 1];
const COUNTS = { width: 1, max_tokens: 5 }; // fields of the manifest and their least values
const SPLITS = 3;

/**
 * The bundle of a source: {manifest, templates, entities: [{id, name, description}], relations: [{id, text}],
 * vectors, known, graph, tokenizer (parsed JSON), model (bytes)}. Throws, in one line, if a part is missing or
 * damaged.
 */
export async function readBundle(source) {
  const manifest = await readManifest(source);
  const read = async (name) => {
    const [blob, listed] = [await source.file(name), manifest.files[name]];
    if (blob === null || listed === undefined) throw new Error(`${source.name}: ${name} is missing: copy it again`);
    if (blob.size === listed.bytes) return blob;
    throw new Error(`${source.name}: ${name} has ${blob.size} bytes, expected ${listed.bytes}: copy it again`);
  };
  const rows = async (name, columns) => parseRows(await textOf(await read(name), name), columns, name);
  const arrays = async (name, ...parts) => readNpz(await read(name), name, parts);
  const tower = (name) => read(`query/${name}`);

  const entities = (await rows("entities.tsv", 3)).map(([id, name, description]) => ({ id, name, description }));
  const relations = (await rows("relations.tsv", 2)).map(([id, text]) => ({ id, text }));
  const [keys, offsets, answers, splits] = await arrays("known.npz", "keys", "offsets", "answers", "splits");
  const [starts, targets] = await arrays("graph.npz", "offsets", "targets");
  const bundle = {
    manifest,
    templates: checkedTemplates(manifest.templates, `${source.name}: manifest.json`),
    entities,
    relations,
    vectors: await readVectors(read, manifest, entities.length),
    known: { keys, offsets, answers, splits },
    graph: { offsets: starts, targets },
    tokenizer: parseJson(await textOf(await tower("tokenizer.json"), "tokenizer.json"), "tokenizer.json"),
    model: new Uint8Array(await (await tower("onnx/model.onnx")).arrayBuffer()),
  };
  checkTables(bundle);
  return bundle;
}

async function readManifest(source) {
  const [blob, what] = [await source.file("manifest.json"), `${source.name}: manifest.json`];
  if (blob === null) throw new Error(`${source.name} is not a bundle: it has no manifest.json at its top level`);
  const manifest = parseJson(await textOf(blob, what), what);
  checkSchema(manifest?.schema, what);
  for (const [field, least] of Object.entries(COUNTS)) {
    if (!Number.isInteger(manifest[field]) || manifest[field] < least) {
      throw new Error(`${what}: ${field} must be a whole number from ${least}, found ${manifest[field]}`);
    }
  }
  for (const field of ["templates", "vectors", "files"]) {
    if (!isObject(manifest[field])) throw new Error(`${what} has no object ${field}: export the bundle again`);
  }
  const { rerank, vectors } = manifest;
  if (!["int8", "float32"].includes(vectors.dtype)) {
    throw new Error(`${what}: vectors.dtype must be int8 or float32, found ${vectors.dtype}`);
  }
  if (rerank !== null && !(Number.isInteger(rerank?.hops) && rerank.hops > 0 && Number.isFinite(rerank.weight))) {
    throw new Error(`${what}: rerank must be null, or hold whole hops from 1 and a weight: export it again`);
  }
  return manifest;
}

function checkSchema(found, what) {
  const [, version] = /^pmd-bundle\/(\d+)$/.exec(found) ?? [];
  if (Number(version) > VERSION) {
    throw new Error(`${what} is of schema ${found}, newer than ${SCHEMA}/${VERSION} of this page: update it`);
  }
  if (Number(version) !== VERSION) {
    throw new Error(`${what} is of schema ${String(found).slice(0, 60)}, expected ${SCHEMA}/${VERSION}`);
  }
}

async function readVectors(read, { vectors: { dtype }, width }, entities) {
  const array = await readNpy(await read("entities.npy"), "entities.npy");
  const kind = dtype === "int8" ? Int8Array : Float32Array;
  const [rows, columns] = array.shape;
  if (!(array.values instanceof kind) || array.shape.length !== 2 || rows !== entities || columns !== width) {
    const found = array.shape.join(" x ");
    throw new Error(`entities.npy must be ${dtype} of ${entities} x ${width}, found ${found}: copy it again`);
  }
  if (dtype === "float32") return vectorTable(array, null);
  const { values: scales } = await readNpy(await read("scales.npy"), "scales.npy");
  if (!(scales instanceof Float32Array) || scales.length !== entities || !scales.every((one) => one > 0)) {
    throw new Error(`scales.npy must hold ${entities} positive numbers of float32: export the bundle again`);
  }
  return vectorTable(array, scales);
}

function checkTables({ entities, relations, known, graph }) {
  for (const [rows, kind] of [[entities, "entities"], [relations, "relations"]]) {
    const ids = new Set(rows.map(({ id }) => id));
    if (!rows.length || ids.size !== rows.length || ids.has("")) {
      throw new Error(`${kind}.tsv has ${rows.length} rows and ${ids.size} different ids: export the bundle again`);
    }
  }
  checkRows(known.offsets, known.answers, known.keys.length, entities.length, "known.npz");
  checkRows(graph.offsets, graph.targets, entities.length, entities.length, "graph.npz");
  const most = 2 * relations.length * entities.length;
  if (!known.keys.every((key, index) => key < most && (index === 0 ? key >= 0 : key > known.keys[index - 1]))) {
    throw new Error("known.npz: the keys do not rise from 0 within the graph: export the bundle again");
  }
  if (known.splits.length !== known.answers.length || !known.splits.every((split) => split < SPLITS)) {
    throw new Error(`known.npz: each answer needs a split from 0 to ${SPLITS - 1}: export the bundle again`);
  }
}

function parseRows(text, columns, what) {
  if (text && !text.endsWith("\n")) throw new Error(`${what} does not end in a line break; it was cut`);
  return text.split("\n").slice(0, -1).map((line, index) => {
    const row = line.split("\t");
    if (row.length === columns) return row;
    throw new Error(`${what}, line ${index + 1}: expected ${columns} columns, found ${row.length}`);
  });
}

async function textOf(blob, what) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await blob.arrayBuffer());
  } catch (error) {
    throw new Error(`${what} is not UTF-8: copy the bundle again`, { cause: error });
  }
}

function parseJson(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is not JSON: ${error.message}`, { cause: error });
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
