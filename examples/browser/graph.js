// What is known of a graph. Both parts are rows of entity indices, one after another, cut by offsets.
//
// known: {keys, offsets, answers, splits}, a row for each directed query; its key is relation * E + head, and
// relation r + R is the inverse of r. graph: {offsets, targets}, a row for each entity: its neighbours in training.

/** Where the answers of a directed query stand among `known.answers`: [start, end], equal if it has none. */
export function answerSpan(known, entities, head, relation) {
  const wanted = relation * entities + head;
  let [low, high] = [0, known.keys.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (known.keys[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return known.keys[low] === wanted ? [known.offsets[low], known.offsets[low + 1]] : [0, 0];
}

/** Direct neighbours of an entity, rising. */
export function neighbours(graph, entity) {
  return graph.targets.subarray(graph.offsets[entity], graph.offsets[entity + 1]);
}

/** Entities at most `hops` edges away, the entity itself left out. */
export function within(graph, entity, hops) {
  const seen = new Set([entity]);
  let frontier = [entity];
  for (let hop = 0; hop < hops; hop += 1) {
    const reached = frontier.flatMap((one) => Array.from(neighbours(graph, one)));
    frontier = [...new Set(reached)].filter((one) => !seen.has(one));
    frontier.forEach((one) => seen.add(one));
  }
  seen.delete(entity);
  return seen;
}

/** Throws unless `offsets` cut `values` into `rows` rows of indices below `limit`. */
export function checkRows(offsets, values, rows, limit, what) {
  const fits = offsets.length === rows + 1 && offsets[0] === 0 && offsets[rows] === values.length;
  const rises = offsets.every((offset, index) => index === 0 || offset >= offsets[index - 1]);
  if (!fits || !rises) throw new Error(`${what}: the offsets do not cut ${values.length} values into ${rows} rows`);
  if (!values.every((value) => value >= 0 && value < limit)) {
    throw new Error(`${what}: an index is out of range, expected 0 to ${limit - 1}: export the bundle again`);
  }
}
