// What stands around the model: text and pictures become numbers (lesson 06), a file becomes
// weights (14), an answer becomes boxes (15). minipali/*.py is the reference, as in model.js.
"use strict";

// --- 06 tokens and pixels ------------------------------------------------------------------------

const LOCATIONS = 1024;
const SEGMENTS = 128;
const LOCATION = "<loc(?:0[0-9]{3}|10[01][0-9]|102[0-3])>";
const SEGMENT = "<seg(?:0[0-9]{2}|1[01][0-9]|12[0-7])>";
const SPECIAL = new RegExp(`(<image>|<bos>|<eos>|<pad>|<unk>|${LOCATION}|${SEGMENT})`);
const NORMAL = 1;
const UNKNOWN = 2;
const USER_DEFINED = 4;
const BYTE = 6; // kinds of a piece in the file

// The fields of a protobuf message: [number, value] each; a value is a number or bytes.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    let factor = 1;
    for (; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag & 7;
    const size = kind === 0 ? 0 : kind === 1 ? 8 : kind === 5 ? 4 : varint();
    yield [tag >> 3, kind === 0 ? varint() : bytes.subarray(at, (at += size))];
  }
}

class Tokenizer {
  // file: the bytes of tokenizer.model (SentencePiece, byte-pair encoding, text taken as it is).
  constructor(file, config) {
    this.config = config;
    this.pieces = []; // {text, score, kind} by token id
    for (const [number, message] of fields(file)) {
      if (number !== 1) continue;
      const found = Object.fromEntries(fields(message));
      const score = found[2] ? new DataView(found[2].slice().buffer).getFloat32(0, true) : 0;
      this.pieces.push({
        text: new TextDecoder().decode(found[1]),
        score,
        kind: found[3] ?? NORMAL,
      });
    }
    this.firstSegment = config.image_token_index - SEGMENTS;
    this.firstLocation = this.firstSegment - LOCATIONS;
    this.pieces.length = Math.min(this.pieces.length, this.firstLocation);
    this.ids = new Map(this.pieces.map((piece, id) => [piece.text, id]));
    const written = this.pieces.filter((piece) => piece.kind === USER_DEFINED).map((p) => p.text);
    this.whole = written.sort((a, b) => b.length - a.length); // the longest first
    this.hasBytes = this.pieces.some((piece) => piece.kind === BYTE);
    this.unknown = this.pieces.findIndex((piece) => piece.kind === UNKNOWN);
  }

  // Text -> token ids. `<loc0000>` and its kin are one token.
  encode(text) {
    if (/\p{Surrogate}/u.test(text))
      throw new Error("a prompt must be text, found half a character");
    return text
      .split(SPECIAL)
      .flatMap((part, i) => (i % 2 ? [this.specialId(part)] : this.encodePlain(part)));
  }

  specialId(token) {
    const { config } = this;
    const number = Number(token.slice(4, -1));
    if (token.startsWith("<loc")) return this.firstLocation + number;
    if (token.startsWith("<seg")) return this.firstSegment + number;
    return {
      "<image>": config.image_token_index,
      "<bos>": config.bos_token_id,
      "<eos>": config.eos_token_id,
      "<pad>": config.pad_token_id,
      "<unk>": this.unknown,
    }[token];
  }

  // Byte-pair encoding: of all neighbours that make a piece together, join the pair of the best
  // score, the leftmost of equal ones, until no pair is left.
  encodePlain(text) {
    const symbols = [];
    for (let rest = text.replaceAll(" ", "▁"); rest;) {
      const whole = this.whole.find((piece) => rest.startsWith(piece));
      const symbol = whole ?? String.fromCodePoint(rest.codePointAt(0));
      symbols.push({ text: symbol, fixed: whole !== undefined });
      rest = rest.slice(symbol.length);
    }
    const score = (left, right) => {
      const piece = this.pieces[this.ids.get(left.text + right.text)];
      return left.fixed || right.fixed || piece?.kind !== NORMAL ? -Infinity : piece.score;
    };
    for (;;) {
      let best = -1;
      let highest = -Infinity;
      for (let i = 0; i + 1 < symbols.length; i++) {
        const found = score(symbols[i], symbols[i + 1]);
        if (found > highest) [best, highest] = [i, found];
      }
      if (best < 0) break;
      symbols[best] = { text: symbols[best].text + symbols[best + 1].text, fixed: false };
      symbols.splice(best + 1, 1);
    }
    return symbols.flatMap(({ text }) => this.ids.get(text) ?? this.spell(text));
  }

  // A character without a piece: the tokens of its bytes.
  spell(text) {
    if (!this.hasBytes) return [this.unknown];
    const name = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
    return [...new TextEncoder().encode(text)].map((byte) => this.ids.get(name(byte)));
  }

  // One token as it is written: "▁dog", "<loc0512>", "<image>".
  token(id) {
    if (id === this.config.image_token_index) return "<image>";
    const digits = (first, size) => String(id - first).padStart(size, "0");
    if (id > this.config.image_token_index) return `<unused${id}>`;
    if (id >= this.firstSegment) return `<seg${digits(this.firstSegment, 3)}>`;
    if (id >= this.firstLocation) return `<loc${digits(this.firstLocation, 4)}>`;
    return this.pieces[id].text;
  }

  // Token ids -> text. bos, eos, padding, unknown and image tokens leave no trace.
  decode(ids) {
    const { config } = this;
    const silent = [config.bos_token_id, config.eos_token_id, config.pad_token_id, this.unknown];
    let text = "";
    let bytes = [];
    for (const id of ids) {
      if (silent.includes(id)) continue;
      if (this.pieces[id]?.kind === BYTE) {
        bytes.push(parseInt(this.pieces[id].text.slice(3, 5), 16));
        continue;
      }
      text += readBytes(bytes);
      bytes = [];
      if (id !== config.image_token_index)
        text += this.pieces[id] ? this.token(id).replaceAll("▁", " ") : this.token(id);
    }
    return text + readBytes(bytes);
  }

  // Image tokens, bos, prompt, newline.
  promptIds(prompt) {
    if (prompt.includes("<image>"))
      throw new Error("a prompt must not contain '<image>': it is added by itself");
    const { config } = this;
    const n = (config.vision_config.image_size / config.vision_config.patch_size) ** 2;
    const ids = [
      ...Array(n).fill(config.image_token_index),
      config.bos_token_id,
      ...this.encode(`${prompt}\n`),
    ];
    const most = config.text_config.max_position_embeddings;
    if (ids.length >= most)
      throw new Error(
        `a prompt must leave room in ${most} tokens, found ${ids.length}: shorten it`,
      );
    return ids;
  }
}

// UTF-8 to text; each byte that is no part of a character becomes U+FFFD.
function readBytes(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length;) {
    let size = 4;
    let character = null;
    for (; size > 0 && character === null; size--) {
      try {
        const read = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(
          Uint8Array.from(bytes.slice(at, at + size)),
        );
        if ([...read].length === 1) [character, at] = [read, at + size];
      } catch {} // no character of this size
    }
    if (character === null) at++;
    text += character ?? "\uFFFD";
  }
  return text;
}

// How Pillow mixes `from` numbers into `to`, antialiased: for each of `to` places {first, weights},
// of the numbers first, first + 1, ... curve: a weight by its distance, 0 from `reach` on.
function mixing(from, to, curve, reach) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach * wide + 0.5));
    const weights = [];
    for (let i = first; i < last; i++)
      weights.push(curve(Math.abs((i - centre + 0.5) * (1 / wide))));
    const sum = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

function cubic(x) {
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// Bicubic, to the bit as Pillow does it: one axis after the other, whole numbers with 22 bits
// behind the point. pixels: (rows, from, c) of bytes -> (rows, to, c).
function resizeAxis(pixels, rows, from, to) {
  const ONE = 2 ** 22;
  const resized = new Uint8Array(rows * to * 3);
  mixing(from, to, cubic, 2).forEach(({ first, weights }, place) => {
    const whole = weights.map((weight) => Math.trunc(weight * ONE + (weight < 0 ? -0.5 : 0.5)));
    for (let row = 0; row < rows; row++)
      for (let c = 0; c < 3; c++) {
        let value = ONE / 2; // rounds
        for (let i = 0; i < whole.length; i++)
          value += pixels[(row * from + first + i) * 3 + c] * whole[i];
        resized[(row * to + place) * 3 + c] = Math.min(255, Math.max(0, Math.floor(value / ONE)));
      }
  });
  return resized;
}

// (rows, columns, c) -> (columns, rows, c)
function turn(pixels, rows, columns) {
  const turned = new Uint8Array(pixels.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      for (let c = 0; c < 3; c++)
        turned[(column * rows + row) * 3 + c] = pixels[(row * columns + column) * 3 + c];
  return turned;
}

// A picture {data: RGBA, width, height}, as a canvas gives it -> (3, side, side) in [-1, 1].
function toPixels({ data, width, height }, side) {
  const rgb = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < data.length; i += 4)
    for (let c = 0; c < 3; c++) {
      // What is transparent becomes white, rounded as Pillow does.
      const alpha = data[i + 3];
      const sum = data[i + c] * alpha + 255 * (255 - alpha) + 128;
      rgb[j++] = ((sum >> 8) + sum) >> 8;
    }
  // The width first; since Pillow 13 the height, where it shrinks by much more.
  const tall = height - side > 2 * Math.max(0, width - side);
  const resizeWidth = (yxc, rows) => resizeAxis(yxc, rows, width, side);
  const resizeHeight = (yxc, columns) =>
    turn(resizeAxis(turn(yxc, height, columns), columns, height, side), columns, side);
  const square = tall
    ? resizeWidth(resizeHeight(rgb, width), side)
    : resizeHeight(resizeWidth(rgb, height), side);
  const pixels = new Float32Array(square.length);
  for (let i = 0; i < square.length; i++)
    pixels[(i % 3) * side * side + Math.floor(i / 3)] = Math.fround(square[i] / 255) * 2 - 1;
  return pixels;
}

// --- 14 weights ----------------------------------------------------------------------------------

// The bytes of a safetensors file -> Map of our name -> {data: Float32Array, shape}.
function readSafetensors(file) {
  const view = new DataView(file.buffer, file.byteOffset);
  const size = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + size)));
  const weights = new Map();
  for (const [key, { dtype, shape, data_offsets: place }] of Object.entries(header)) {
    if (key === "__metadata__") continue;
    const bytes = file.slice(8 + size + place[0], 8 + size + place[1]).buffer;
    if (dtype !== "F32" && dtype !== "F16")
      throw new Error(`${key} must be of dtype F32 or F16, found ${dtype}`);
    const data = dtype === "F32" ? new Float32Array(bytes) : fromHalf(new Uint16Array(bytes));
    weights.set(ourName(key), { data, shape });
  }
  return weights;
}

// The key of a weight in any of the published layouts -> its name in the Python model.
function ourName(key) {
  return key
    .replace(/^model\./, "")
    .replace(/^language_model\.model\./, "language_model.")
    .replace(/^vision_tower\.(vision_model\.)?(encoder\.)?/, "vision_tower.")
    .replace("projector.linear.", "projector.");
}

// float16 as bits: sign 1, exponent 5, fraction 10 -> float32. There are 65,536 of them.
const HALVES = Float32Array.from({ length: 2 ** 16 }, (_, half) => {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
});

function fromHalf(halves) {
  const floats = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) floats[i] = HALVES[halves[i]];
  return floats;
}

// --- 15 locations --------------------------------------------------------------------------------

// All complete boxes of an answer, in pixels of a picture: [{name, box: [y0, x0, y1, x1]}].
function readBoxes(answer, height, width) {
  const found = [];
  for (const match of answer.matchAll(
    /<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*(?:<seg\d{3}>\s*)*([^;<]*)/g,
  )) {
    const places = match.slice(1, 5).map(Number);
    const sides = [height, width, height, width];
    if (Math.max(...places) < LOCATIONS)
      found.push({
        name: match[5].trim(),
        box: places.map((place, i) => (place / (LOCATIONS - 1)) * sides[i]),
      });
  }
  return found;
}
