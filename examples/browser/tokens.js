// A bundle's tokenizer in transformers.js, cut as the `tokenizers` library cuts a pair: from the longer text first.
//
// transformers.js itself would cut the end off the joined pair, and with it the relation and the last separator. So
// each text is tokenised alone, cut, and set between the special tokens, whose places a probe shows.

import { env, PreTrainedTokenizer } from "@huggingface/transformers";

const TEXT_CHARACTERS = 20_000; // no bundle reads more tokens than these hold
const PROBE = "a";

env.allowRemoteModels = false;
env.allowLocalModels = false;
env.useBrowserCache = false;

/** A function [head text, relation text] -> {ids, types}, at most `most` of them, for a parsed tokenizer.json. */
export function pairTokenizer(json, most) {
  const tokenizer = new PreTrainedTokenizer(json, { unk_token: json.model?.unk_token });
  const tokenise = (text) => tokenizer.encode(clipped(text), { add_special_tokens: false });
  const { before, between, after, firstType, secondType } = frame(tokenizer, tokenise(PROBE), json.post_processor);
  const room = most - before.ids.length - between.ids.length - after.ids.length;
  return (texts) => {
    const [first, second] = cutLongest(texts.map(tokenise), room);
    const [firstTypes, secondTypes] = [first.map(() => firstType), second.map(() => secondType)];
    return {
      ids: [...before.ids, ...first, ...between.ids, ...second, ...after.ids],
      types: [...before.types, ...firstTypes, ...between.types, ...secondTypes, ...after.types],
    };
  };
}

/** Two lists of ids cut to `room` together: the shorter keeps up to half (rounded down), the longer the rest. */
export function cutLongest([first, second], room) {
  if (first.length + second.length <= room) return [first, second];
  const short = Math.min(first.length, second.length, Math.floor(room / 2));
  const [one, other] = first.length <= second.length ? [short, room - short] : [room - short, short];
  return [first.slice(0, one), second.slice(0, other)];
}

function clipped(text) {
  return text.length <= TEXT_CHARACTERS ? text : Array.from(text).slice(0, TEXT_CHARACTERS).join("");
}

/** What stands before, between and after the texts of a pair, {ids, types} each, and the types of the texts. */
function frame(tokenizer, probe, postProcessor) {
  const options = { text_pair: PROBE, return_token_type_ids: true, return_tensor: false };
  const { input_ids: ids, token_type_ids: given } = tokenizer(PROBE, options);
  // The `tokenizers` library gives 0 for both texts of a RoBERTa pair, transformers.js gives 1 for the second.
  const types = given && postProcessor?.type !== "RobertaProcessing" ? given : ids.map(() => 0);
  const first = placeOf(probe, ids, 0);
  const second = placeOf(probe, ids, first + probe.length);
  const part = (start, end) => ({ ids: ids.slice(start, end), types: types.slice(start, end) });
  return {
    before: part(0, first),
    between: part(first + probe.length, second),
    after: part(second + probe.length, ids.length),
    firstType: types[first],
    secondType: types[second],
  };
}

function placeOf(run, ids, from) {
  const place = ids.findIndex((_, start) => start >= from && run.every((id, index) => ids[start + index] === id));
  if (!run.length || place < 0) throw new Error("the tokenizer does not join pairs of texts: export it again");
  return place;
}
