// Scores of a query vector against the table of entity vectors, and the best of them.
//
// As in pmd.serving.vectors, the query is rounded to a grid of 2^-26, and float64 holds every sum of products
// exactly. So the order of summation cannot matter, equal vectors always tie, and a given query vector has the same
// scores here as there, to the last bit.

const GRID = 2 ** 26;
const ROUNDS = 1.5 * 2 ** 52; // added and taken off again, it rounds float64 as numpy's rint: halves to even

/** A table {values, scales, rows, width, byColumn}: int8 with a scale for each row, or float32 and scales null. */
export function vectorTable({ values, shape, byColumn }, scales) {
  const [rows, width] = shape;
  if (scales === null) {
    // Grid steps up to 2^26 of a float32 below 1 are float32 again, so they replace the numbers themselves.
    for (let place = 0; place < values.length; place += 1) values[place] = rounded(values[place] * GRID);
  }
  return { values, scales, rows, width, byColumn };
}

/** Scores of a query vector (D,) against every entity, Float32Array (E,). Throws if one is not finite. */
export function scoresOf(table, query) {
  const steps = Float64Array.from(query, (number) => rounded(number * GRID));
  const sums = table.byColumn ? sumsByColumn(table, steps) : sumsByRow(table, steps);
  const { scales, rows } = table;
  const scores = new Float32Array(rows);
  for (let row = 0; row < rows; row += 1) {
    scores[row] = sums[row] * (scales === null ? 1 / (GRID * GRID) : scales[row] / GRID);
  }
  if (!scores.every(Number.isFinite)) throw new Error("a score is not finite; export the bundle again");
  return scores;
}

/** Indices of the `k` highest scores, best first, of equal ones the lower index first; -Infinity is left out. */
export function topK(scores, k) {
  const bar = k < scores.length ? scores.toSorted()[scores.length - k] : -Infinity;
  const candidates = [];
  scores.forEach((score, index) => {
    if (score >= bar && score > -Infinity) candidates.push(index);
  });
  return candidates.sort((one, other) => scores[other] - scores[one] || one - other).slice(0, k);
}

function sumsByRow({ values, rows, width }, steps) {
  const sums = new Float64Array(rows);
  for (let row = 0; row < rows; row += 1) {
    const start = row * width;
    let sum = 0;
    for (let column = 0; column < width; column += 1) sum += steps[column] * values[start + column];
    sums[row] = sum;
  }
  return sums;
}

function sumsByColumn({ values, rows, width }, steps) {
  const sums = new Float64Array(rows);
  let column = 0;
  for (; column + 4 <= width; column += 4) { // four at a time: half the time of one by one
    const [one, two, three, four] = steps.subarray(column, column + 4);
    const [a, b, c, d] = [0, 1, 2, 3].map((more) => (column + more) * rows);
    for (let row = 0; row < rows; row += 1) {
      sums[row] += one * values[a + row] + two * values[b + row] + three * values[c + row] + four * values[d + row];
    }
  }
  for (; column < width; column += 1) {
    for (let row = 0; row < rows; row += 1) sums[row] += steps[column] * values[column * rows + row];
  }
  return sums;
}

function rounded(number) {
  return number + ROUNDS - ROUNDS;
}
