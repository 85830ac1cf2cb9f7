// Ids, and names where only one has them, to indices.

const NEAREST = 3;
const MOST_LISTED = 10;

/** A lookup of distinct ids and their names. `kind` says in messages what they are. */
export class Lookup {
  constructor(ids, names, kind) {
    this.ids = ids;
    this.names = names;
    this.kind = kind;
    this.byId = new Map(ids.map((id, index) => [id, index]));
    this.byName = new Map();
    names.forEach((name, index) => {
      if (this.byName.has(name)) this.byName.get(name).push(index);
      else this.byName.set(name, [index]);
    });
  }

  /** The index of an id, or else of a name that only one has. Throws with the name's bearers or the nearest ids. */
  find(key) {
    const named = this.byName.get(key) ?? [];
    const index = this.byId.get(key) ?? (named.length === 1 ? named[0] : undefined);
    if (index !== undefined) return index;
    const shown = key.length > 100 ? `${key.slice(0, 100)}…` : key;
    if (named.length > 1) {
      const bearers = named.slice(0, MOST_LISTED).map((one) => this.ids[one]).join(", ");
      const more = named.length > MOST_LISTED ? ` and ${named.length - MOST_LISTED} more` : "";
      throw new Error(`${named.length} share the ${this.kind} name "${shown}"; give an id: ${bearers}${more}`);
    }
    throw new Error(`no ${this.kind} has the id or name "${shown}"; nearest: ${this.nearest(key).join(", ")}`);
  }

  /** Up to `count` ids whose id or name holds a text, letter case aside; those that start with it come first. */
  holding(text, count) {
    const wanted = text.toLowerCase();
    const found = [[], []];
    for (let index = 0; index < this.ids.length && found[0].length < count; index += 1) {
      const places = [this.ids[index], this.names[index]].map((one) => one.toLowerCase().indexOf(wanted));
      if (places.includes(0)) found[0].push(index);
      else if (Math.max(...places) > 0) found[1].push(index);
    }
    return found.flat().slice(0, count);
  }

  /** The ids that share most pairs of letters with a key, in themselves or in their names. */
  nearest(key) {
    const wanted = letterPairs(key.slice(0, 100));
    const likeness = (text) => {
      const pairs = letterPairs(text);
      let shared = 0;
      for (const pair of pairs) shared += wanted.has(pair) ? 1 : 0;
      return shared / (pairs.size + wanted.size);
    };
    const likest = this.ids.map((id, index) => [Math.max(likeness(id), likeness(this.names[index])), id]);
    return likest.sort(([one], [other]) => other - one).slice(0, NEAREST).map(([, id]) => id);
  }
}

function letterPairs(text) {
  const padded = ` ${text.toLowerCase()} `;
  return new Set(Array.from({ length: padded.length - 1 }, (_, start) => padded.slice(start, start + 2)));
}
