// Vectors of texts by a tower of a bundle in transformers.js, which knows the tower as any model of the Hub.
//
//   echo '[["alpha"], [["alpha", "is a"]]]' | node reader.mjs BUNDLE/query
//
// Reads batches as JSON: each a list of texts, or a list of pairs of texts. Prints, for each batch, the vectors that
// the graph itself gives ("vectors") and, for texts, those of the feature-extraction pipeline ("pooled").

import { basename, dirname, resolve } from "node:path";
import { text } from "node:stream/consumers";

import { env, pipeline } from "@huggingface/transformers";

const folder = resolve(process.argv[2]);
env.localModelPath = dirname(folder);
env.allowRemoteModels = false;
env.useFSCache = false;

// To transformers.js "fp32" names the file onnx/model.onnx, whatever the precision of the numbers in it.
const extract = await pipeline("feature-extraction", basename(folder), { dtype: "fp32", device: "cpu" });

// A pair needs its token types, which only some tokenizers return unasked. Cutting is not left to transformers.js: it
// drops the last tokens, the closing separator with them, and of a pair the second text.
function tokenise(batch) {
  const pairs = Array.isArray(batch[0]);
  const texts = pairs ? batch.map(([first]) => first) : batch;
  const text_pair = pairs ? batch.map(([, second]) => second) : null;
  const most = extract.tokenizer.model_max_length;
  texts.forEach((one, index) => {
    const tokens = extract.tokenizer.encode(one, { text_pair: pairs ? text_pair[index] : null }).length;
    if (tokens > most) throw new Error(`${tokens} tokens, at most ${most} can be read: shorten ${one.slice(0, 40)}`);
  });
  return extract.tokenizer(texts, { text_pair, padding: true, return_token_type_ids: true });
}

const answers = [];
for (const batch of JSON.parse(await text(process.stdin))) {
  const { sentence_embedding } = await extract.model(tokenise(batch));
  const pooled = Array.isArray(batch[0]) ? null : await extract(batch, { pooling: "mean", normalize: true });
  answers.push({ vectors: sentence_embedding.tolist(), pooled: pooled && pooled.tolist() });
}
console.log(JSON.stringify(answers));
