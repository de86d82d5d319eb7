// PaliGemma once more, in plain JavaScript, in the order of the lessons. minipali/*.py is the
// reference, and tests/test_page.py holds the two equal: ids, pixels, logits, answers, boxes.
//
// A matrix is a Float32Array, row after row; a weight is {data, shape}. Letters as in the Python:
// n patches, d width, t queries, s keys, h heads, g key/value heads, k head dim, v vocabulary,
// c y x pixels. There is one picture and one prompt at a time, so no batch and no padding.
"use strict";

// --- 01 patches ----------------------------------------------------------------------------------

// pixels: (c, side, side) -> (n, c * size * size), in reading order; a patch as a Conv2d weight is.
function patchify(pixels, side, size) {
  const across = side / size;
  const patches = new Float32Array(pixels.length);
  let i = 0;
  for (let n = 0; n < across * across; n++) {
    const top = Math.floor(n / across) * size;
    const left = (n % across) * size;
    for (let c = 0; c < pixels.length / (side * side); c++)
      for (let y = top; y < top + size; y++)
        for (let x = left; x < left + size; x++) patches[i++] = pixels[(c * side + y) * side + x];
  }
  return patches;
}

// x: (t, d), weight: (o, d), bias: (o) or none -> x W^T + b: (t, o). Nearly all time is spent here,
// so four rows share each number of the weight, and none is converted more than once.
function linear(x, weight, bias) {
  const outputs = weight.shape[0];
  const d = weight.data.length / outputs;
  const rows = x.length / d;
  const fours = rows - (rows % 4);
  const y = new Float32Array(rows * outputs);
  const x64 = Float64Array.from(x);
  const w = new Float64Array(d);
  for (let o = 0; o < outputs; o++) {
    const start = bias ? bias.data[o] : 0;
    if (fours) w.set(weight.data.subarray(o * d, (o + 1) * d));
    for (let t = 0; t < fours; t += 4) {
      const t0 = t * d;
      const t1 = t0 + d;
      const t2 = t1 + d;
      const t3 = t2 + d;
      const at = t * outputs + o;
      let y0 = start;
      let y1 = start;
      let y2 = start;
      let y3 = start;
      for (let i = 0; i < d; i++) {
        y0 += w[i] * x64[t0 + i];
        y1 += w[i] * x64[t1 + i];
        y2 += w[i] * x64[t2 + i];
        y3 += w[i] * x64[t3 + i];
      }
      y[at] = y0;
      y[at + outputs] = y1;
      y[at + 2 * outputs] = y2;
      y[at + 3 * outputs] = y3;
    }
    for (let t = fours; t < rows; t++)
      y[t * outputs + o] = start + dot(x, t * d, weight.data, o * d, d);
  }
  return y;
}

// The product of two stretches of length d; four sums at a time, which do not wait for each other.
function dot(x, i, w, j, d) {
  let a = 0;
  let b = 0;
  let c = 0;
  let e = 0;
  const end = i + d;
  for (; i + 4 <= end; i += 4, j += 4) {
    a += x[i] * w[j];
    b += x[i + 1] * w[j + 1];
    c += x[i + 2] * w[j + 2];
    e += x[i + 3] * w[j + 3];
  }
  for (; i < end; i++, j++) a += x[i] * w[j];
  return a + b + (c + e);
}

function add(x, y) {
  const sum = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) sum[i] = x[i] + y[i % y.length];
  return sum;
}

// --- 02 norms ------------------------------------------------------------------------------------

// Each token (row) to mean 0 and variance 1 over its d features: (t, d) -> (t, d).
function layerNorm(x, weight, bias, eps) {
  const d = weight.data.length;
  const y = new Float32Array(x.length);
  for (let row = 0; row < x.length; row += d) {
    let mean = 0;
    let variance = 0;
    for (let i = 0; i < d; i++) mean += x[row + i] / d;
    for (let i = 0; i < d; i++) variance += (x[row + i] - mean) ** 2 / d;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < d; i++)
      y[row + i] = (x[row + i] - mean) * scale * weight.data[i] + bias.data[i];
  }
  return y;
}

// Each token divided by the root mean square of its features, times 1 + weight: (t, d) -> (t, d).
function rmsNorm(x, weight, eps) {
  const d = weight.data.length;
  const y = new Float32Array(x.length);
  for (let row = 0; row < x.length; row += d) {
    let square = 0;
    for (let i = 0; i < d; i++) square += x[row + i] ** 2 / d;
    const scale = 1 / Math.sqrt(square + eps);
    for (let i = 0; i < d; i++) y[row + i] = x[row + i] * scale * (1 + weight.data[i]);
  }
  return y;
}

// --- 03 attention, 09 grouped queries ------------------------------------------------------------

// In place: scores -> exp(score - largest) / their sum.
function softmax(scores) {
  let largest = -Infinity;
  let sum = 0;
  for (const score of scores) largest = Math.max(largest, score);
  for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp(scores[i] - largest);
  for (let i = 0; i < scores.length; i++) scores[i] /= sum;
  return scores;
}

// query: (t, h k); keys, values: (s, g k) -> (t, h k). Query head i reads key/value head i g / h.
// seen: takes the weights with which the last query looks at the keys, (h, s).
//
// No mask is needed. The prefix (picture and prompt) comes in one call, and all of it sees all of
// it. Answer tokens come one by one, and each sees everything before it.
function attend(query, keys, values, heads, kvHeads, k, seen) {
  const t = query.length / (heads * k);
  const s = keys.length / (kvHeads * k);
  const mixed = new Float32Array(query.length);
  const scores = new Float32Array(s);
  for (let row = 0; row < t; row++)
    for (let head = 0; head < heads; head++) {
      const from = (row * heads + head) * k;
      const shared = Math.floor((head * kvHeads) / heads) * k;
      for (let j = 0; j < s; j++)
        scores[j] = dot(query, from, keys, j * kvHeads * k + shared, k) / Math.sqrt(k);
      softmax(scores);
      for (let j = 0; j < s; j++)
        for (let i = 0; i < k; i++)
          mixed[from + i] += scores[j] * values[j * kvHeads * k + shared + i];
      if (seen && row === t - 1) seen.set(scores, head * s);
    }
  return mixed;
}

// --- 04 the vision tower -------------------------------------------------------------------------

function geluTanh(x) {
  const inner = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x);
  return x - x / (1 + Math.exp(2 * inner)); // 0.5 x (1 + tanh(inner)), by the faster exp
}

// pixels: (c, y, x) in [-1, 1] -> one vector a patch, (n, d). w(name): a weight of the tower.
function visionTower(pixels, w, config) {
  const { patch_size, image_size, num_attention_heads: heads, layer_norm_eps: eps } = config;
  const affine = (x, name) => linear(x, w(`${name}.weight`), w(`${name}.bias`));
  const norm = (x, name) => layerNorm(x, w(`${name}.weight`), w(`${name}.bias`), eps);
  const patches = patchify(pixels, image_size, patch_size);
  let x = affine(patches, "embeddings.patch_embedding"); // (n, d)
  x = add(x, w("embeddings.position_embedding.weight").data);
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const layer = `layers.${i}`;
    const normed = norm(x, `${layer}.layer_norm1`);
    const [q, k, v] = ["q", "k", "v"].map((p) => affine(normed, `${layer}.self_attn.${p}_proj`));
    const mixed = attend(q, k, v, heads, heads, config.hidden_size / heads);
    x = add(x, affine(mixed, `${layer}.self_attn.out_proj`));
    const hidden = affine(norm(x, `${layer}.layer_norm2`), `${layer}.mlp.fc1`).map(geluTanh);
    x = add(x, affine(hidden, `${layer}.mlp.fc2`));
  }
  return norm(x, "post_layernorm");
}

// --- 07 rotary positions -------------------------------------------------------------------------

// In place: turns each pair (x[i], x[i + k/2]) of a head by position * theta ** (-2 i / k).
// x: (t, heads * k), the first row at position `start`.
function applyRope(x, start, heads, k, theta) {
  for (let at = 0; at < x.length; at += k) {
    const position = start + Math.floor(at / (heads * k));
    for (let i = 0; i < k / 2; i++) {
      const angle = position * theta ** ((-2 * i) / k);
      const cos = Math.cos(angle);
      const sin = Math.sin(angle);
      const first = x[at + i];
      const second = x[at + i + k / 2];
      x[at + i] = first * cos - second * sin;
      x[at + i + k / 2] = second * cos + first * sin;
    }
  }
  return x;
}

// --- 08 the KV cache -----------------------------------------------------------------------------

// The rotated keys and the values of everything so far, for each layer, allocated once.
class KVCache {
  constructor({ num_hidden_layers, num_key_value_heads, head_dim }, longest) {
    const empty = () => new Float32Array(longest * num_key_value_heads * head_dim);
    this.layers = Array.from({ length: num_hidden_layers }, () => ({
      keys: empty(),
      values: empty(),
    }));
    this.width = num_key_value_heads * head_dim;
    this.length = 0;
  }

  // Store those of new tokens, (t, g k) -> all so far, (s, g k) each.
  update(layer, keys, values) {
    const stored = this.layers[layer];
    const end = this.length * this.width + keys.length;
    stored.keys.set(keys, this.length * this.width);
    stored.values.set(values, this.length * this.width);
    return [stored.keys.subarray(0, end), stored.values.subarray(0, end)];
  }
}

// --- 10 Gemma ------------------------------------------------------------------------------------

// x: (t, d), new tokens behind those in the cache -> (t, d). Fills the cache. seen: for each layer,
// what the last token looks at, (h, s).
function gemma(x, w, config, cache, seen = []) {
  const {
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: k,
    rope_theta: theta,
  } = config;
  const project = (x, name) => linear(x, w(`${name}.weight`));
  const norm = (x, name) => rmsNorm(x, w(`${name}.weight`), config.rms_norm_eps);
  const t = x.length / config.hidden_size;
  const position = cache.length + 1; // counted from 1
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const attention = `layers.${i}.self_attn`;
    const mlp = `layers.${i}.mlp`;
    let normed = norm(x, `layers.${i}.input_layernorm`);
    const query = applyRope(project(normed, `${attention}.q_proj`), position, heads, k, theta);
    const key = applyRope(project(normed, `${attention}.k_proj`), position, kvHeads, k, theta);
    const [keys, values] = cache.update(i, key, project(normed, `${attention}.v_proj`));
    seen[i] = new Float32Array(heads * (cache.length + t));
    const mixed = attend(query, keys, values, heads, kvHeads, k, seen[i]);
    x = add(x, project(mixed, `${attention}.o_proj`));
    normed = norm(x, `layers.${i}.post_attention_layernorm`);
    const hidden = project(normed, `${mlp}.gate_proj`).map(geluTanh);
    const up = project(normed, `${mlp}.up_proj`);
    const gated = hidden.map((gate, j) => gate * up[j]);
    x = add(x, project(gated, `${mlp}.down_proj`));
  }
  cache.length += t;
  return norm(x, "norm");
}

// --- 11 PaliGemma --------------------------------------------------------------------------------

class PaliGemma {
  // config: the content of config.json; weights: see readSafetensors.
  constructor(config, weights) {
    this.config = config;
    this.weights = weights;
    this.part = (part) => (name) => {
      const weight = weights.get(`${part}.${name}`);
      if (!weight)
        throw new Error(`the weights must hold ${part}.${name}: they are another model's`);
      return weight;
    };
  }

  // (c, y, x) in [-1, 1] -> image tokens for the decoder, (n, d). They are not scaled, as text is.
  imageFeatures(pixels) {
    const w = this.part("multi_modal_projector");
    const seen = visionTower(pixels, this.part("vision_tower"), this.config.vision_config);
    return linear(seen, w("weight"), w("bias"));
  }

  // ids: (t), features: (n, d) where the ids are image tokens -> (t, d).
  embed(ids, features) {
    const d = this.config.text_config.hidden_size;
    const table = this.part("language_model")("embed_tokens.weight").data;
    const x = new Float32Array(ids.length * d);
    let patch = 0;
    ids.forEach((id, t) => {
      const isImage = id === this.config.image_token_index;
      const row = isImage
        ? features.subarray(patch * d, ++patch * d)
        : table.subarray(id * d, (id + 1) * d);
      for (let i = 0; i < d; i++)
        x[t * d + i] = isImage ? row[i] : row[i] * Math.fround(Math.sqrt(d));
    });
    return x;
  }

  // New ids behind those in the cache -> {logits: (v) for what follows the last of them, seen}.
  next(ids, features, cache) {
    const w = this.part("language_model");
    const { text_config } = this.config;
    const seen = [];
    const x = gemma(this.embed(ids, features), w, text_config, cache, seen);
    const last = x.subarray(x.length - text_config.hidden_size);
    return { logits: linear(last, w("embed_tokens.weight")), seen }; // the table is also the head
  }
}

// --- 12 generation -------------------------------------------------------------------------------

// The probabilities that the next token is drawn with: (v) -> (v). Of the tokens only the fewest
// whose probabilities reach topP together remain. Temperature 0 shows those at temperature 1.
function distribution(logits, temperature = 1, topP = 1) {
  const probabilities = softmax(Float64Array.from(logits, (logit) => logit / (temperature || 1)));
  if (topP >= 1) return probabilities;
  let reached = 0;
  for (const id of ranked(probabilities)) {
    if (reached >= topP) probabilities[id] = 0;
    else reached += probabilities[id];
  }
  return probabilities.map((p) => p / reached);
}

// The numbers of all entries, the largest first.
function ranked(values) {
  return Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
}

// Temperature 0 takes the most likely token; above 0 one is drawn. random: () -> [0, 1).
function choose(logits, temperature, topP, random) {
  if (!temperature) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const probabilities = distribution(logits, temperature, topP);
  let left = random();
  let last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    if (probabilities[id] > 0) last = id;
    left -= probabilities[id];
    if (left < 0) break;
  }
  return last; // where rounding let the sum end below 1, the last that has a probability
}

// Random numbers that a seed repeats (mulberry32). They are not torch's.
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Yields {id, logits: (v), seen: (h, s) of each layer} for each token, eos included.
function* tokenSteps(model, features, ids, options) {
  const { maxNewTokens = 64, temperature = 0, topP = 1, seed = 0 } = options;
  const { config } = model;
  const longest = Math.min(config.text_config.max_position_embeddings, ids.length + maxNewTokens);
  const cache = new KVCache(config.text_config, longest);
  const random = randomFrom(seed);
  for (let next = ids; cache.length + next.length < longest;) {
    const { logits, seen } = model.next(next, features, cache);
    // The image token and the rows that fill up the table are no text.
    logits.fill(-Infinity, config.image_token_index);
    const id = choose(logits, temperature, topP, random);
    if (!Number.isFinite(logits[id]))
      throw new Error("the model's logits must be numbers: its weights are damaged");
    yield { id, logits, seen };
    if (id === config.eos_token_id) return;
    next = [id];
  }
}
