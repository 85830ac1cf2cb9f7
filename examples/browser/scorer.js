// The answerer: an entity (or a text) and a relation in, ranked entities out, by the rules of pmd.serving.Scorer.

import * as ort from "onnxruntime-web";

import { readBundle } from "./bundle.js";
import { answerSpan, within } from "./graph.js";
import { Lookup } from "./lookup.js";
import { freeTexts, queryTexts } from "./texts.js";
import { pairTokenizer } from "./tokens.js";
import { scoresOf, topK } from "./vectors.js";

const OUTPUT = "sentence_embedding";
const INPUTS = ["input_ids", "attention_mask", "token_type_ids"];

// Set after transformers.js has run, which tokens.js imports: it points onnxruntime at a distant host.
ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;

/** Answers questions from one bundle. */
export class Scorer {
  constructor(bundle, session, tokenise) {
    this.bundle = bundle;
    const { entities, relations } = bundle;
    this.entities = new Lookup(entities.map(({ id }) => id), entities.map(({ name }) => name), "entity");
    this.relations = new Lookup(relations.map(({ id }) => id), relations.map(({ text }) => text), "relation");
    this.session = session;
    this.tokenise = tokenise;
  }

  /** Read a bundle from a source. `threads` of the graph: more than 1 only in a cross-origin isolated page. */
  static async load(source, threads = 1) {
    const bundle = await readBundle(source);
    ort.env.wasm.numThreads = threads;
    const tokenise = await opened(`${source.name}: query/tokenizer.json`, async () => (
      pairTokenizer(bundle.tokenizer, bundle.manifest.max_tokens)
    ));
    const session = await opened(`${source.name}: query/onnx/model.onnx`, () => (
      ort.InferenceSession.create(bundle.model, { executionProviders: ["wasm"] })
    ));
    const unknown = session.inputNames.filter((name) => !INPUTS.includes(name));
    if (unknown.length || !session.outputNames.includes(OUTPUT)) {
      throw new Error(`${source.name}: the query tower must read ${INPUTS} and give ${OUTPUT}: export it again`);
    }
    return new Scorer({ ...bundle, model: null, tokenizer: null }, session, tokenise);
  }

  /**
   * The `k` best answers, [{id, name, score}], best first; equal scores in the order of the entities.
   *
   * entity: an id or name, or with `isText` the text of an entity that the graph does not hold. inverse: ask for
   * the heads of (?, relation, entity), not for tails. excludeKnown: leave out what the graph knows already.
   * reranked: add the manifest's weight to entities near the given one. Throws for what is not in the graph.
   */
  async ask({ entity, relation, k = 10, inverse = false, isText = false, excludeKnown = true, reranked = false }) {
    if (!Number.isInteger(k) || k < 1) throw new Error(`k must be a whole number from 1, found ${k}`);
    const { bundle } = this;
    const { entities, known, graph, manifest } = bundle;
    if (reranked && manifest.rerank === null) throw new Error("the bundle has no re-ranking settings: ask without");
    const directed = this.relations.find(relation) + (inverse ? bundle.relations.length : 0);
    const head = isText ? null : this.entities.find(entity);
    const texts = isText ? freeTexts(bundle, entity, directed) : queryTexts(bundle, head, directed);
    const scores = scoresOf(bundle.vectors, await this.encode(texts));
    if (head !== null && reranked) {
      const { hops, weight } = manifest.rerank;
      for (const near of within(graph, head, hops)) scores[near] += Math.fround(weight);
    }
    if (head !== null && excludeKnown) {
      const [start, end] = answerSpan(known, entities.length, head, directed);
      for (let place = start; place < end; place += 1) scores[known.answers[place]] = -Infinity;
    }
    return topK(scores, k).map((index) => ({ ...entities[index], score: scores[index] }));
  }

  /** The unit vector of a text pair, Float32Array (D,). */
  async encode(texts) {
    const { ids, types } = this.tokenise(texts);
    const rows = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
    const feeds = Object.fromEntries(this.session.inputNames.map((name) => [
      name, new ort.Tensor("int64", BigInt64Array.from(rows[name], BigInt), [1, ids.length]),
    ]));
    const { [OUTPUT]: vector } = await this.session.run(feeds, [OUTPUT]);
    if (vector.data.length !== this.bundle.manifest.width) {
      throw new Error(`the query tower gave ${vector.data.length} numbers, expected ${this.bundle.manifest.width}`);
    }
    return vector.data;
  }

  /** Give back the memory of the graph. */
  async close() {
    await this.session.release();
  }
}

/** What `open` gives; the errors of other people's code do not say which file they are about. */
async function opened(what, open) {
  try {
    return await open();
  } catch (error) {
    throw new Error(`${what} cannot be used: ${error.message ?? error}`, { cause: error });
  }
}
