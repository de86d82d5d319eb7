// The page's own doing: pictures come in, answers are shown. The model is in model.js.
"use strict";

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const MOST_SIDE = 2048; // pixels: larger pictures are made smaller first, as a phone's memory asks
const SCENE = 288; // side of a composed scene in pixels
const GRID = 12; // pixels of it in which things move
const RIVALS = 6; // tokens that are shown for a place in the answer

// --- the model -----------------------------------------------------------------------------------

// Base64 of a zlib stream of the first bytes of all 16-bit numbers, then the second ones -> the
// bytes of a safetensors file. See _packed in __init__.py.
async function unpack(text) {
  if (typeof DecompressionStream === "undefined")
    throw new Error("the browser must be of 2023 or later, and this one is older: update it");
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const half = planes.length / 2;
  const file = new Uint8Array(planes.length);
  for (let i = 0; i < half; i++) {
    file[2 * i] = planes[i];
    file[2 * i + 1] = planes[half + i];
  }
  return file;
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // faster, in newer browsers
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const loading = (async () => {
  const tokenizer = new Tokenizer(bytesOf(data.tokenizer), data.config);
  const model = new PaliGemma(data.config, readSafetensors(await unpack($("weights").textContent)));
  const packed = $("codec").textContent;
  const codec = packed ? readSafetensors(await unpack(packed)) : null;
  for (const id of ["weights", "codec"]) $(id).remove(); // the text alone takes megabytes
  return { model, tokenizer, codec };
})();

// --- pictures ------------------------------------------------------------------------------------

// An example's name, a data URL, a file or an ImageData -> a canvas, and the size that was given.
async function openPicture(image) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (image instanceof ImageData) {
    [canvas.width, canvas.height] = [image.width, image.height];
    context.putImageData(image, 0, 0);
    return { canvas, width: image.width, height: image.height };
  }
  let address = image;
  if (image instanceof Blob) address = URL.createObjectURL(image);
  else if (Object.hasOwn(data.examples, image)) address = data.examples[image];
  if (typeof address !== "string" || !/^(data|blob):/.test(address)) {
    const names = Object.keys(data.examples).join(", ");
    throw new Error(
      `image must be ImageData, a data URL or one of ${names}; found ${String(image).slice(0, 80)}`,
    );
  }
  const drawn = new Image();
  drawn.src = address;
  try {
    await drawn.decode();
  } catch {
    const what = image.name ? `${image.name} must be` : "image must be";
    throw new Error(`${what} a picture that this browser can open, such as PNG or JPEG`);
  } finally {
    if (image instanceof Blob) URL.revokeObjectURL(address);
  }
  const width = drawn.naturalWidth || SCENE; // an SVG may have no size
  const height = drawn.naturalHeight || SCENE;
  const scale = Math.min(1, MOST_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  context.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  return { canvas, width, height };
}

function pixelsOf(canvas) {
  const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return toPixels(image, data.config.vision_config.image_size);
}

// --- for tests and for other pages ---------------------------------------------------------------

// ready: a promise of the model's name and sizes. ask: a promise of {text, tokens, boxes, masks};
// tokens have id, token and probability; boxes are {name, box: [y0, x0, y1, x1]} in pixels of the
// image; masks are {name, box, mask}, mask a Uint8Array with a number for each pixel of the image,
// row by row: 1 inside the object, else 0. A page without a codec has no masks.
window.minipali = {
  ready: loading.then(({ model }) => ({
    name: data.name,
    config: data.config,
    examples: Object.keys(data.examples),
    parameters: count(model),
  })),

  async ask({ image, prompt, temperature = 0, topP = 1, seed = 0, maxNewTokens = 64 }) {
    if (typeof prompt !== "string") throw new Error(`prompt must be text, found ${typeof prompt}`);
    if (!(temperature >= 0 && temperature < Infinity))
      throw new Error(`temperature must be a number, 0 or above, found ${temperature}`);
    if (!(topP > 0 && topP <= 1))
      throw new Error(`topP must be a number above 0 and at most 1, found ${topP}`);
    const { model, tokenizer, codec } = await loading;
    const { canvas, width, height } = await openPicture(image);
    const features = model.imageFeatures(pixelsOf(canvas));
    const tokens = [];
    const options = { maxNewTokens, temperature, topP, seed };
    for (const step of tokenSteps(model, features, tokenizer.promptIds(prompt), options))
      tokens.push({
        id: step.id,
        token: tokenizer.token(step.id),
        probability: distribution(step.logits, temperature, topP)[step.id],
      });
    const text = tokenizer.decode(tokens.map((token) => token.id));
    const masks = codec ? readMasks(text, codec, height, width) : [];
    return { text, tokens, boxes: readBoxes(text, height, width), masks };
  },
};

function count(model) {
  return [...model.weights.values()].reduce((sum, weight) => sum + weight.data.length, 0);
}

// --- the picture on the page ---------------------------------------------------------------------

const picture = $("picture");
const pen = picture.getContext("2d", { willReadFrequently: true });
const drawings = {}; // name -> an image that is ready to be drawn
let features = null; // of the picture that is shown, until it changes
let own = false; // whether the picture is a visitor's, of which the model may know nothing
let scene = null; // {background, things: [{name, x, y, size}]} while composing
let touched = null; // the thing of the scene that was touched last

// Show a canvas as the picture; label: what a screen reader says of it. Ends an answer that is
// under way: it would be about another picture.
function show(canvas, label) {
  run++;
  if (canvas !== picture) {
    [picture.width, picture.height] = [canvas.width, canvas.height];
    pen.drawImage(canvas, 0, 0);
  }
  picture.setAttribute("aria-label", label);
  features = null;
  drawFound([], []);
}

async function take(image, label, example = null) {
  try {
    const { canvas } = await openPicture(image);
    stopTools();
    own = example === null;
    show(canvas, label);
    if (example) askAbout(thingIn(titled(example)));
    for (const button of $("examples").children)
      button.setAttribute("aria-pressed", button.dataset.name === example);
    await answer();
  } catch (error) {
    report(error);
  }
}

// Masks half covered with a colour each, then boxes and names, over the picture.
function drawFound(boxes, masks) {
  const svg = $("boxes");
  const { width, height } = picture;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const scale = Math.max(width / (svg.clientWidth || width), height / (svg.clientHeight || height));
  const draw = (kind, attributes, text = "") => {
    const made = document.createElementNS(svg.namespaceURI, kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    svg.append(made);
  };
  masks.forEach(({ mask }, i) => {
    const colour = data.colours[i % data.colours.length];
    draw("image", { href: drawnMask(mask, colour), width, height });
  });
  for (const { name, box } of boxes) {
    const [y0, x0, y1, x1] = box;
    const [x, y] = [Math.min(x0, x1), Math.min(y0, y1)];
    const place = { x, y, width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
    // White on black shows on every background.
    draw("rect", { ...place, stroke: "#000", "stroke-width": 6 });
    draw("rect", { ...place, stroke: "#fff", "stroke-width": 2.5 });
    const at = `translate(${x + 6 * scale} ${y + 19 * scale}) scale(${scale})`;
    draw("text", { transform: at }, name);
  }
}

// A mask of the picture's size -> the address of a picture, transparent outside the object.
function drawnMask(mask, [red, green, blue]) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const image = new ImageData(canvas.width, canvas.height);
  mask.forEach((inside, i) => inside && image.data.set([red, green, blue, 128], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.toDataURL();
}

// --- composing a scene ---------------------------------------------------------------------------

const colour = (name) => `rgb(${data.backgrounds[name].join(" ")})`;

function drawScene() {
  [picture.width, picture.height] = [SCENE, SCENE];
  pen.fillStyle = colour(scene.background);
  pen.fillRect(0, 0, SCENE, SCENE);
  pen.imageSmoothingQuality = "high";
  for (const { name, x, y, size } of scene.things) pen.drawImage(drawings[name], x, y, size, size);
  const names = scene.things.map((thing) => data.names[thing.name]);
  show(picture, `A composed scene: ${names.join(", ") || "nothing"} on ${scene.background}`);
  for (const button of $("backgrounds").children)
    button.setAttribute("aria-pressed", button.dataset.name === scene.background);
  scene.things.forEach(({ name, x, y, size }, i) => {
    const handle = $("things").children[i];
    const percent = (pixels) => `${(100 * pixels) / SCENE}%`;
    Object.assign(handle.style, {
      left: percent(x),
      top: percent(y),
      width: percent(size),
      height: percent(size),
    });
    const rounded = (pixels) => `${Math.round((100 * pixels) / SCENE)} %`;
    const where = `${rounded(x)} from the left, ${rounded(y)} from the top`;
    handle.setAttribute("aria-label", `${name}, ${where}`);
    handle.classList.toggle("touched", scene.things[i] === touched);
  });
}

// A place for one more thing, beside the others where there is room: {x, y, size}
function room() {
  for (const thing of scene.things) thing.size = Math.min(thing.size, 120);
  for (let size = scene.things.length ? 108 : 132; size >= 60; size -= GRID) {
    const free = [];
    const apart = (x, y) => (t) =>
      x >= t.x + t.size || t.x >= x + size || y >= t.y + t.size || t.y >= y + size;
    for (let y = 0; y <= SCENE - size; y += GRID)
      for (let x = 0; x <= SCENE - size; x += GRID)
        if (scene.things.every(apart(x, y))) free.push({ x, y, size });
    if (free.length) return free[Math.floor(Math.random() * free.length)];
  }
  return { x: 114, y: 114, size: 60 };
}

function addThing(name, place = null) {
  if (scene.things.length === 3) removeThing(scene.things[0]);
  const thing = { name, ...(place ?? room()) };
  askAbout(name);
  touched = thing;
  const handle = document.createElement("button");
  handle.type = "button";
  scene.things.push(thing);
  $("things").append(handle);

  handle.addEventListener("focus", () => {
    touched = thing;
    drawScene();
    answerSoon();
  });
  handle.addEventListener("keydown", (event) => {
    const by = {
      ArrowLeft: { x: -GRID },
      ArrowRight: { x: GRID },
      ArrowUp: { y: -GRID },
      ArrowDown: { y: GRID },
      "+": { size: GRID },
      "=": { size: GRID },
      "-": { size: -GRID },
    }[event.key];
    if (by) changeThing(thing, by);
    else if (event.key === "Delete" || event.key === "Backspace") {
      removeThing(thing);
      $("things").children[0]?.focus();
    } else return;
    event.preventDefault();
    answerSoon();
  });
  let last = null;
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.focus(); // not every browser does
    last = [event.clientX, event.clientY];
  });
  handle.addEventListener("pointermove", (event) => {
    if (!last) return;
    const scale = SCENE / picture.clientWidth;
    const by = { x: (event.clientX - last[0]) * scale, y: (event.clientY - last[1]) * scale };
    changeThing(thing, by);
    last = [event.clientX, event.clientY];
  });
  for (const kind of ["pointerup", "pointercancel"])
    handle.addEventListener(kind, () => {
      last = null;
      answerSoon();
    });
  drawScene();
  answerSoon();
}

// by: {x, y, size}, how much more; it stays within the picture.
function changeThing(thing, by) {
  thing.size = Math.min(252, Math.max(60, thing.size + (by.size ?? 0)));
  thing.x = Math.min(SCENE - thing.size, Math.max(0, thing.x + (by.x ?? 0)));
  thing.y = Math.min(SCENE - thing.size, Math.max(0, thing.y + (by.y ?? 0)));
  drawScene();
}

function removeThing(thing) {
  const i = scene.things.indexOf(thing);
  scene.things.splice(i, 1);
  $("things").children[i].remove();
  touched = scene.things[0] ?? null;
  drawScene();
}

// --- drawing by hand -----------------------------------------------------------------------------

let stroke = null; // where the pen is

function penAt(event) {
  // The canvas keeps its picture's shape within the space that it has.
  const { left, top, width, height } = picture.getBoundingClientRect();
  const scale = Math.max(picture.width / width, picture.height / height);
  const x = (event.clientX - left - width / 2) * scale + picture.width / 2;
  return [x, (event.clientY - top - height / 2) * scale + picture.height / 2, scale];
}

picture.addEventListener("pointerdown", (event) => {
  if ($("draw-tools").hidden) return;
  picture.setPointerCapture(event.pointerId);
  stroke = penAt(event);
  drawTo(event); // a dot, if the pen does not move
});
picture.addEventListener("pointermove", (event) => stroke && drawTo(event));
for (const kind of ["pointerup", "pointercancel"])
  picture.addEventListener(kind, () => {
    if (!stroke) return;
    stroke = null;
    own = true;
    show(picture, "Your drawing");
    answerSoon();
  });

function drawTo(event) {
  const [x, y, scale] = penAt(event);
  Object.assign(pen, {
    strokeStyle: $("pen-colour").value,
    lineWidth: $("pen-width").value * scale,
    lineCap: "round",
  });
  pen.beginPath();
  pen.moveTo(stroke[0], stroke[1]);
  pen.lineTo(x, y);
  pen.stroke();
  stroke = [x, y];
}

// --- which tools are open ------------------------------------------------------------------------

function openTool(name) {
  stopTools();
  $(`${name}-tools`).hidden = false;
  $(name).setAttribute("aria-expanded", "true");
  for (const button of $("examples").children) button.setAttribute("aria-pressed", "false");
  $("stage").classList.toggle("drawing", name === "draw");
}

function stopTools() {
  scene = null;
  $("things").replaceChildren();
  $("stage").classList.remove("drawing");
  for (const tool of ["compose", "draw"]) {
    $(`${tool}-tools`).hidden = true;
    $(tool).setAttribute("aria-expanded", "false");
  }
}

// --- asking and answering ------------------------------------------------------------------------

let run = 0; // counts the questions: a new one ends the one before
let steps = []; // of the answer: {id, logits, seen, ids: what came before}
let chosen = 0; // which step is looked at
let seed = 0;
let timer = 0;

const settings = () => ({
  temperature: Number($("temperature").value),
  topP: Number($("top-p").value),
});
const pause = () => new Promise((done) => setTimeout(done));

function answerSoon() {
  clearTimeout(timer);
  timer = setTimeout(answer, 150);
}

async function answer() {
  clearTimeout(timer);
  const mine = ++run;
  const prompt = $("prompt").value;
  const output = $("answer");
  try {
    const { model, tokenizer, codec } = await loading;
    if (mine !== run) return;
    $("problem").hidden = true;
    output.setAttribute("aria-busy", "true"); // read out when it is whole
    output.textContent = "...";
    $("told").textContent = "";
    await pause();
    const ids = tokenizer.promptIds(prompt);
    features ??= model.imageFeatures(pixelsOf(picture));
    [steps, chosen] = [[], 0];
    $("tokens").replaceChildren();
    let text = "";
    for (const step of tokenSteps(model, features, ids, { ...settings(), seed })) {
      steps.push({ ...step, ids: [...ids, ...steps.map((one) => one.id)] });
      const soFar = tokenizer.decode(steps.map((one) => one.id));
      if (!soFar.endsWith("\uFFFD")) text = soFar; // not in the middle of a character
      output.textContent = text || "...";
      addToken(tokenizer, steps.length - 1);
      await pause();
      if (mine !== run) return;
    }
    finish(tokenizer, codec, prompt, tokenizer.decode(steps.map((one) => one.id)));
  } catch (error) {
    for (const id of ["answer", "told", "tokens"]) $(id).replaceChildren();
    report(error);
  } finally {
    if (mine === run) output.setAttribute("aria-busy", "false");
  }
}

function told({ name, box }) {
  const [y0, x0, y1, x1] = box.map(Math.round);
  return `${name}: x ${x0} to ${x1}, y ${y0} to ${y1}`;
}

// The whole answer in words, with its boxes and masks and what can be said about it.
function finish(tokenizer, codec, prompt, text) {
  const boxes = readBoxes(text, picture.height, picture.width);
  const masks = codec ? readMasks(text, codec, picture.height, picture.width) : [];
  const counts = new Map();
  for (const { name } of boxes) counts.set(name, (counts.get(name) ?? 0) + 1);
  const found = [...counts]
    .map(([name, times]) => (times > 1 ? `${name} (${times} boxes)` : name))
    .join(", ");
  $("answer").textContent = boxes.length ? found : text || "(nothing)";
  const notes = [];
  if (boxes.length) notes.push(`${boxes.map(told).join("; ")} (pixels of the picture).`);
  else if (/^(detect|segment) /.test(prompt))
    notes.push("No box: the model sees none, or the question is not one that it knows.");
  if (masks.length) {
    const sizes = masks.map(({ name, mask }) => {
      const size = mask.reduce((sum, inside) => sum + inside);
      return `${name} ${size.toLocaleString("en")} pixels`;
    });
    notes.push(`Outlines in colour: ${sizes.join("; ")}.`);
  } else if (/<seg/.test(text))
    notes.push(
      codec
        ? `The answer's <seg> tokens are no whole outline: it takes a box and 16 of them.`
        : "The answer holds an outline too, as <seg> tokens. This page has no mask decoder to" +
            " draw it with: `minipali page` with --codec makes a page that has one.",
    );
  if (steps.at(-1).id !== data.config.eos_token_id)
    notes.push("Cut off: the answer is longer than the page lets it be.");
  if (own) notes.push(data.limits[0]);
  $("told").textContent = notes.join(" ");
  drawFound(boxes, masks);
  lookAt(tokenizer, 0);
}

function report(error) {
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

// --- tokens, their rivals, attention -------------------------------------------------------------

const readable = (token) => token.replaceAll("▁", "·").replaceAll("\n", "⏎");
const percent = (p) =>
  p > 0 && p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(p >= 0.1 || p === 0 ? 0 : 1)} %`;

function addToken(tokenizer, i) {
  const button = document.createElement("button");
  const probability = document.createElement("small");
  button.type = "button";
  button.append(readable(tokenizer.token(steps[i].id)), probability);
  button.addEventListener("click", () => lookAt(tokenizer, i));
  $("tokens").append(button);
  showProbability(i);
}

function showProbability(i) {
  const { temperature, topP } = settings();
  const p = distribution(steps[i].logits, temperature, topP)[steps[i].id];
  const shown = $("tokens").children[i];
  shown.querySelector("small").textContent = percent(p);
  shown.setAttribute("aria-label", `${shown.firstChild.textContent}, probability ${percent(p)}`);
}

function lookAt(tokenizer, i) {
  chosen = i;
  [...$("tokens").children].forEach((button, j) => button.setAttribute("aria-pressed", i === j));
  showRivals(tokenizer);
  showAttention(tokenizer);
}

function showRivals(tokenizer) {
  if (!steps[chosen]) return;
  const { temperature, topP } = settings();
  const { logits, id } = steps[chosen];
  const probabilities = distribution(logits, temperature, topP);
  const shown = ranked(logits).slice(0, RIVALS);
  if (!shown.includes(id)) shown[RIVALS - 1] = id;
  const rows = shown.map((rival) => {
    const row = document.createElement("tr");
    const bar = document.createElement("i");
    const cells = [readable(tokenizer.token(rival)), bar, percent(probabilities[rival])].map(
      (content) => {
        const cell = document.createElement("td");
        cell.append(content);
        return cell;
      },
    );
    bar.style.width = `${100 * probabilities[rival]}%`;
    row.className = rival === id ? "chosen" : "";
    row.append(...cells);
    return row;
  });
  $("rivals").tBodies[0].replaceChildren(...rows);
  const token = readable(tokenizer.token(id));
  $("rivals").caption.textContent =
    `What might have come in the place of ${token}, token ${chosen + 1} of ${steps.length}` +
    " (· is a space):";
}

function showAttention(tokenizer) {
  if (!steps[chosen]) return;
  const { seen, ids } = steps[chosen];
  const s = ids.length;
  const { vision_config } = data.config;
  const across = vision_config.image_size / vision_config.patch_size;
  const n = across ** 2;
  const layer = seen[$("layer").value];
  const heads = layer.length / s;
  const head = $("head").value;
  // The weights of one head, or the mean of all: (s)
  const weights = Array.from({ length: s }, (_, j) => {
    if (head !== "mean") return layer[head * s + j];
    let sum = 0;
    for (let h = 0; h < heads; h++) sum += layer[h * s + j];
    return sum / heads;
  });
  const patches = weights.slice(0, n);
  const brightest = Math.max(...patches);
  const canvas = $("spotlight");
  const context = canvas.getContext("2d");
  const cell = 48;
  [canvas.width, canvas.height] = [across * cell, across * cell];
  // Squeezed into a square, as the model sees it.
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  patches.forEach((weight, i) => {
    context.fillStyle = `rgb(0 0 0 / ${0.82 * (1 - weight / brightest)})`;
    context.fillRect((i % across) * cell, Math.floor(i / across) * cell, cell, cell);
  });

  const words = ids.slice(n).map((id) => tokenizer.token(id));
  const ofWords = weights.slice(n);
  const most = Math.max(...ofWords);
  $("words").replaceChildren(
    ...words.map((word, i) => {
      const span = document.createElement("span");
      const weight = document.createElement("small");
      weight.textContent = percent(ofWords[i]);
      span.append(readable(word), weight);
      const strength = Math.round((45 * ofWords[i]) / most);
      span.style.background = `color-mix(in srgb, var(--accent) ${strength}%, transparent)`;
      return span;
    }),
  );
  const onPicture = patches.reduce((a, b) => a + b, 0);
  const place = patches.indexOf(brightest);
  const token = readable(tokenizer.token(steps[chosen].id));
  const [row, column] = [Math.floor(place / across) + 1, (place % across) + 1];
  const word = readable(words[ofWords.indexOf(most)]);
  const looked =
    `Before ${token}: ${percent(onPicture)} of the weight is on the picture, most of it on row` +
    ` ${row}, column ${column} of ${across}; ${percent(1 - onPicture)} is on the words, most of` +
    ` it on ${word}.`;
  $("looked").textContent = looked;
  canvas.setAttribute("aria-label", `The picture, bright where the model looked. ${looked}`);
}

// --- what is on the page -------------------------------------------------------------------------

function button(parent, text, press, more = {}) {
  const made = document.createElement("button");
  made.type = "button";
  if (more.image) made.append(Object.assign(new Image(), { src: more.image, alt: "" }));
  else made.textContent = text;
  if (more.image || more.label) made.setAttribute("aria-label", more.label ?? text);
  if (more.name) [made.dataset.name, made.title] = [more.name, text];
  made.addEventListener("click", press);
  parent.append(made);
  return made;
}

const titled = (example) => example.replace("_test_artist", "").replaceAll("_", " ");

// The thing that a title names first, such as the frog of "two frogs and pizza".
const thingIn = (title) =>
  title
    .split(" ")
    .flatMap((word) => [word, word.replace(/s$/, "")])
    .find((word) => word in data.names);

function askAbout(name) {
  $("name").value = name;
  fillPrompts();
}

function fillPrompts() {
  const name = $("name").value;
  $("prompts").replaceChildren();
  for (const template of data.prompts) {
    const prompt = template.replace("{name}", name).replace("{a name}", data.names[name]);
    button($("prompts"), prompt, () => {
      $("prompt").value = prompt;
      answer();
    });
  }
}

for (const [name, url] of Object.entries(data.examples))
  button($("examples"), titled(name), () => take(name, `Example: ${titled(name)}`, name), {
    image: url,
    name,
  });
for (const [name, url] of Object.entries(data.drawings)) {
  const made = button($("drawings"), name, () => addThing(name), { image: url, name });
  drawings[name] = made.firstChild;
  $("name").add(new Option(name));
}
for (const name of Object.keys(data.backgrounds)) {
  const paint = () => {
    scene.background = name;
    drawScene();
    answerSoon();
  };
  const made = button($("backgrounds"), "", paint, { name, label: name });
  [made.style.background, made.title] = [colour(name), name];
}
for (const [text, by] of [
  ["Larger", { size: GRID }],
  ["Smaller", { size: -GRID }],
  ["Remove", null],
])
  button($("touched"), text, () => {
    if (!touched) return;
    if (by) changeThing(touched, by);
    else removeThing(touched);
    answerSoon();
  });
for (const limit of data.limits)
  $("limits").append(Object.assign(document.createElement("li"), { textContent: limit }));
const { num_hidden_layers: layers, num_attention_heads: heads } = data.config.text_config;
for (let i = 0; i < layers; i++) $("layer").add(new Option(`${i + 1} of ${layers}`, i));
$("head").add(new Option("mean of all", "mean"));
for (let i = 0; i < heads; i++) $("head").add(new Option(`${i + 1} of ${heads}`, i));
$("layer").value = layers - 1;

$("name").addEventListener("change", fillPrompts);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  answer();
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) take(file, `Your picture: ${file.name}`);
  $("file").value = ""; // so that the same file can be chosen again
});
$("compose").addEventListener("click", () => {
  if (scene) return stopTools();
  openTool("compose");
  own = false;
  scene = { background: "blue", things: [] };
  addThing("apple", { x: 168, y: 108, size: 96 });
  addThing("cat", { x: 24, y: 72, size: 120 });
});
$("draw").addEventListener("click", () =>
  $("draw-tools").hidden ? openTool("draw") : stopTools(),
);
$("blank").addEventListener("click", () => {
  [picture.width, picture.height] = [SCENE, SCENE];
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, SCENE, SCENE);
  own = true;
  show(picture, "A blank page");
  answerSoon();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
});
addEventListener("dragleave", () => $("stage").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file, `Your picture: ${file.name}`);
  else report(new Error("what is dropped must be a picture's file: this page fetches nothing"));
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) take(file, "Your picture, pasted");
});
for (const [slider, after] of [
  ["temperature", "temperature-value"],
  ["top-p", "top-p-value"],
]) {
  $(slider).addEventListener("input", async () => {
    $(after).textContent = Number($(slider).value);
    const { tokenizer } = await loading;
    steps.forEach((_, i) => showProbability(i));
    showRivals(tokenizer);
  });
  $(slider).addEventListener("change", answer);
}
$("again").addEventListener("click", () => {
  if (!Number($("temperature").value)) {
    $("temperature").value = 1;
    $("temperature-value").textContent = "1";
  }
  seed++;
  answer();
});
for (const id of ["layer", "head"])
  $(id).addEventListener("change", async () => showAttention((await loading).tokenizer));

window.minipali.ready.then(({ name, parameters }) => {
  const size =
    parameters >= 1e6
      ? `${(parameters / 1e6).toFixed(1)} million`
      : parameters.toLocaleString("en");
  $("about-model").textContent =
    `${name[0].toUpperCase()}${name.slice(1)}, a vision-language model of ${size} parameters,`;
}, report);
const first = Object.keys(data.examples)[0];
take(first, `Example: ${titled(first)}`, first);
