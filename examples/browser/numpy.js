// Arrays of plain numbers in numpy's files: `.npy`, and `.npz`, which is a zip of them.

import { zipSource } from "./source.js";

const MAGIC = "\x93NUMPY";
const MOST_HEADER_BYTES = 4096;
const HEADER = /^\{'descr': '[<|](i1|u1|i4|i8|f4)', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \}\s*$/;
const ARRAYS = { i1: Int8Array, u1: Uint8Array, i4: Int32Array, i8: BigInt64Array, f4: Float32Array };

/**
 * The array of a `.npy` file: {values, shape, byColumn}. `byColumn` tells that a column's numbers stand together
 * (Fortran order), not a row's. 64-bit whole numbers come as a Float64Array, which holds them up to 2^53.
 * Throws unless header and data agree to the byte; `what` names the file in messages.
 */
export async function readNpy(blob, what) {
  const head = new Uint8Array(await blob.slice(0, MOST_HEADER_BYTES).arrayBuffer());
  const text = Array.from(head, (byte) => String.fromCharCode(byte)).join("");
  if (head.length < 12 || !text.startsWith(MAGIC) || (head[6] !== 1 && head[6] !== 2)) {
    throw new Error(`${what} is not a numpy file of version 1 or 2: copy the bundle again`);
  }
  const sizes = new DataView(head.buffer);
  const [first, bytes] = head[6] === 1 ? [10, sizes.getUint16(8, true)] : [12, sizes.getUint32(8, true)];
  const header = HEADER.exec(text.slice(first, first + bytes));
  if (header === null) throw new Error(`${what} is not an array of plain numbers; it was not read`);
  const [, type, fortran, sides] = header;
  const shape = sides.split(",").filter((side) => side.trim()).map(Number);
  const expected = shape.reduce((product, side) => product * side, 1) * ARRAYS[type].BYTES_PER_ELEMENT;
  const found = blob.size - first - bytes;
  if (found !== expected) throw new Error(`${what} holds ${found} bytes, expected ${expected}: copy it again`);
  const values = new ARRAYS[type](await blob.slice(first + bytes).arrayBuffer());
  return { values: type === "i8" ? asNumbers(values, what) : values, shape, byColumn: fortran === "True" };
}

/** The values of the named one-dimensional arrays of an uncompressed `.npz` file, in this order. */
export async function readNpz(blob, what, names) {
  const archive = await zipSource(blob, what);
  return Promise.all(names.map(async (name) => {
    const member = await archive.file(`${name}.npy`);
    if (member === null) throw new Error(`${what} has no array ${name}: export the bundle again`);
    const { values, shape } = await readNpy(member, `${what}[${name}]`);
    if (shape.length !== 1) throw new Error(`${what}[${name}] has ${shape.length} dimensions, expected 1`);
    return values;
  }));
}

function asNumbers(integers, what) {
  const numbers = Float64Array.from(integers, Number);
  if (!numbers.every(Number.isSafeInteger)) throw new Error(`${what} holds numbers beyond 2^53: too large to read`);
  return numbers;
}
