// Where a bundle's bytes come from: a zip or a folder that the user picks, or a folder beside the page.
//
// A source is {name, file(path)}: `file` gives a Blob, or null where there is no such file. Of a picked file only
// the parts that are asked for are read, so a zip is never unpacked.

const [LOCAL, MEMBER, END] = [0x04034b50, 0x02014b50, 0x06054b50]; // signatures of a zip's records
const [LOCAL_BYTES, MEMBER_BYTES, END_BYTES, COMMENT_BYTES] = [30, 46, 22, 65535];
const ENCRYPTED = 0x1 | 0x40;
const IN_ANOTHER_RECORD = 0xffffffff; // the size or place stands in a zip64 record

/** The source of files picked with <input webkitdirectory>; the first part of every path is the folder's name. */
export function folderSource(files) {
  const paths = new Map();
  for (const file of files) paths.set(file.webkitRelativePath.split("/").slice(1).join("/"), file);
  const name = files[0].webkitRelativePath.split("/")[0];
  return { name, file: async (path) => paths.get(path) ?? null };
}

/** The source of a folder on the page's own site. Throws for an address elsewhere. */
export function addressSource(address) {
  const root = new URL(address.endsWith("/") ? address : `${address}/`, document.baseURI);
  if (root.origin !== location.origin) {
    throw new Error(`the bundle is at ${root.origin}, expected a folder on the page's own site: copy it there`);
  }
  async function file(path) {
    const answer = await fetch(new URL(path, root)).catch((error) => {
      throw new Error(`${address}: ${path} cannot be fetched: is the server still running?`, { cause: error });
    });
    if (answer.status === 404) return null;
    if (!answer.ok) throw new Error(`${address}: ${path}: the site answered ${answer.status}; try again`);
    return answer.blob();
  }
  return { name: address, file };
}

/** The source of an uncompressed zip, read in place. Throws if it is damaged, compressed or encrypted. */
export async function zipSource(blob, name) {
  const places = new Map();
  for (const member of await membersOf(blob, name)) {
    if (places.has(member.path)) throw new Error(`${name}: member ${member.path} is there twice; pack it again`);
    places.set(member.path, member);
  }
  async function file(path) {
    const member = places.get(path);
    return member === undefined ? null : dataOf(blob, member, `${name}: member ${path}`);
  }
  return { name, file };
}

async function membersOf(blob, name) {
  const tail = await view(blob, Math.max(0, blob.size - END_BYTES - COMMENT_BYTES), blob.size);
  let end = tail.byteLength - END_BYTES;
  while (end >= 0 && !endsAt(tail, end)) end -= 1;
  if (end < 0) throw new Error(`${name} is not a zip, or was cut: choose a bundle's .zip, or its folder`);
  const count = tail.getUint16(end + 10, true);
  const [bytes, start] = [tail.getUint32(end + 12, true), tail.getUint32(end + 16, true)];
  if (start === IN_ANOTHER_RECORD) throw new Error(`${name} is a zip of 4 GB or more: unpack it, take the folder`);
  if (start + bytes > blob.size) throw new Error(`${name} is a damaged zip: copy the bundle again`);
  return parseDirectory(await view(blob, start, start + bytes), count, name);
}

/** Whether the last record of a zip starts here: it and its comment reach to the very end. */
function endsAt(tail, place) {
  const left = tail.byteLength - place - END_BYTES;
  return tail.getUint32(place, true) === END && tail.getUint16(place + 20, true) === left;
}

function parseDirectory(directory, count, name) {
  const members = [];
  let at = 0;
  for (let index = 0; index < count; index += 1) {
    if (at + MEMBER_BYTES > directory.byteLength || directory.getUint32(at, true) !== MEMBER) {
      throw new Error(`${name} is a damaged zip: copy the bundle again`);
    }
    const [pathBytes, extraBytes, commentBytes] = [28, 30, 32].map((part) => directory.getUint16(at + part, true));
    members.push({
      path: new TextDecoder().decode(new Uint8Array(directory.buffer, at + MEMBER_BYTES, pathBytes)),
      encrypted: (directory.getUint16(at + 8, true) & ENCRYPTED) !== 0,
      stored: directory.getUint16(at + 10, true) === 0,
      bytes: directory.getUint32(at + 24, true),
      header: directory.getUint32(at + 42, true),
    });
    at += MEMBER_BYTES + pathBytes + extraBytes + commentBytes;
  }
  return members;
}

async function dataOf(blob, member, what) {
  if (member.encrypted) throw new Error(`${what} is encrypted: pack it without a password`);
  if (!member.stored) throw new Error(`${what} is compressed: pack it uncompressed (zip -0)`);
  const header = await view(blob, member.header, member.header + LOCAL_BYTES);
  if (header.byteLength < LOCAL_BYTES || header.getUint32(0, true) !== LOCAL) {
    throw new Error(`${what} has no header where the directory says: the file is damaged`);
  }
  const start = member.header + LOCAL_BYTES + header.getUint16(26, true) + header.getUint16(28, true);
  if (start + member.bytes > blob.size) throw new Error(`${what} runs past the end: the file was cut`);
  return blob.slice(start, start + member.bytes);
}

async function view(blob, start, end) {
  return new DataView(await blob.slice(start, end).arrayBuffer());
}
