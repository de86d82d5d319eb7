// Masks as tokens (lesson 16): the decoder of the mask codec, and the masks of an answer in a
// picture. minipali/masks.py is the reference. Letters as in model.js. Here a row of a matrix is a
// pixel: (y x, c) is a picture of c channels, and `linear` is a 1 x 1 convolution.
"use strict";

// A box, the 16 codes of a mask (on a grid of 4 x 4), and a name.
const OBJECT = /((?:<loc\d{4}>){4})\s*((?:<seg\d{3}>){16})\s*([^;<]*)/g;

// 3 x 3, with zeros around the picture. x: (y x, c), weight: (o, c, 3, 3), bias: (o) -> (y x, o)
function convolve(x, weight, bias) {
  const c = weight.shape[1];
  const side = Math.sqrt(x.length / c);
  const windows = new Float32Array(x.length * 9); // (y x, c * 3 * 3)
  let i = 0;
  for (let row = 0; row < side; row++)
    for (let column = 0; column < side; column++)
      for (let channel = 0; channel < c; channel++)
        for (let y = row - 1; y <= row + 1; y++)
          for (let z = column - 1; z <= column + 1; z++, i++)
            if (y >= 0 && y < side && z >= 0 && z < side)
              windows[i] = x[(y * side + z) * c + channel];
  return linear(windows, weight, bias);
}

// 4 x 4, transposed, stride 2, padding 1: each pixel is spread over 4 x 4 of a picture with twice
// the side; what falls outside is lost. x: (y x, c), weight: (c, o, 4, 4), bias: (o) -> (2y 2x, o)
function convolveTransposed(x, weight, bias) {
  const [c, outputs] = weight.shape;
  const spread = outputs * 16;
  const turned = new Float32Array(weight.data.length); // (o * 4 * 4, c)
  weight.data.forEach((w, i) => (turned[(i % spread) * c + Math.floor(i / spread)] = w));
  const parts = linear(x, { data: turned, shape: [spread, c] }); // (y x, o * 4 * 4)
  const side = Math.sqrt(x.length / c);
  const sum = new Float32Array(4 * side * side * outputs).map((_, i) => bias.data[i % outputs]);
  let i = 0;
  for (let row = 0; row < side; row++)
    for (let column = 0; column < side; column++)
      for (let o = 0; o < outputs; o++)
        for (let y = 2 * row - 1; y < 2 * row + 3; y++)
          for (let z = 2 * column - 1; z < 2 * column + 3; z++, i++)
            if (y >= 0 && y < 2 * side && z >= 0 && z < 2 * side)
              sum[(y * 2 * side + z) * outputs + o] += parts[i];
  return sum;
}

// codes: (16), row by row -> (side side), above 0 inside the object. codec: see readSafetensors.
function decodeMask(codes, codec) {
  const { data, shape } = codec.get("codebook");
  const apply = (layer, x, name) =>
    layer(x, codec.get(`decoder.${name}.weight`), codec.get(`decoder.${name}.bias`));
  const applyRelu = (...given) => apply(...given).map((value) => Math.max(value, 0));
  const entry = (code) => [...data.subarray(code * shape[1], (code + 1) * shape[1])];
  let x = applyRelu(linear, Float32Array.from(codes.flatMap(entry)), 0); // (4 4, c)
  for (const block of [2, 3]) {
    let inner = applyRelu(convolve, x, `${block}.net.0`);
    inner = applyRelu(convolve, inner, `${block}.net.2`);
    x = add(x, apply(linear, inner, `${block}.net.4`));
  }
  let layer = 4; // every second one is a ReLU, which has no weights
  for (; codec.has(`decoder.${layer + 2}.weight`); layer += 2)
    x = applyRelu(convolveTransposed, x, layer);
  return apply(linear, x, layer);
}

// Bilinear, as Pillow resizes floats. values: (rows, from) -> turned, (to, rows)
function resizeAndTurn(values, from, to) {
  const rows = values.length / from;
  const resized = new Float32Array(to * rows);
  mixing(from, to, (x) => Math.max(0, 1 - x), 1).forEach(({ first, weights }, place) => {
    for (let row = 0; row < rows; row++) {
      let value = 0;
      for (let i = 0; i < weights.length; i++) value += values[row * from + first + i] * weights[i];
      resized[place * rows + row] = value;
    }
  });
  return resized;
}

// A decoded mask, put into its box [y0, x0, y1, x1] in pixels of a picture: bytes, (height width),
// 1 inside the object. The numbers are resized, and only then compared with 0.
function placeMask(values, box, height, width) {
  const side = Math.sqrt(values.length);
  const [y0, x0, y1, x1] = box.map(Math.round); // no box of 1023 steps ends in half a pixel
  const inside = new Uint8Array(height * width);
  if (y1 <= y0 || x1 <= x0) return inside;
  const resized = resizeAndTurn(resizeAndTurn(values, side, x1 - x0), side, y1 - y0);
  for (let y = y0, i = 0; y < y1; y++)
    for (let x = x0; x < x1; x++) inside[y * width + x] = resized[i++] > 0;
  return inside;
}

// All complete objects of an answer: [{name, box: [y0, x0, y1, x1], mask}], see placeMask. Passed
// over is what is incomplete, has numbers that do not exist, or a box without an inside.
function readMasks(answer, codec, height, width) {
  const found = [];
  for (const [, places, segments, name] of answer.matchAll(OBJECT)) {
    const codes = segments.match(/\d{3}/g).map(Number);
    const [{ box } = {}] = readBoxes(places, height, width);
    if (!box || Math.max(...codes) >= codec.get("codebook").shape[0]) continue;
    if (box[0] < box[2] && box[1] < box[3]) {
      const mask = placeMask(decodeMask(codes, codec), box, height, width);
      found.push({ name: name.trim(), box, mask });
    }
  }
  return found;
}
