// The model in a thread of its own: it owns the session and the state, and takes one frame at a time.

import { Model } from "./model.js";
import { covering, whole } from "./resize.js";

const CHECKED_FRAMES = 3;
const AGREEMENT = 1e-3;

let model = null;
let backend = "";
let canvas = null;

/** The runtime; the GPU's is loaded only where it is asked for. */
async function runtime(gpu) {
  const build = gpu ? "jspi" : "wasm";
  const binary = gpu ? "ort-wasm-simd-threaded.jspi" : "ort-wasm-simd-threaded";
  const ort = await import(`./vendor/ort.${build}.min.mjs`);
  const at = (name) => new URL(`./vendor/${name}`, import.meta.url).href;
  ort.env.wasm.wasmPaths = { mjs: at(`${binary}.mjs`), wasm: at(`${binary}.wasm`) };
  ort.env.wasm.numThreads = threads();
  ort.env.logLevel = "error";
  return ort;
}

/** Threads need an isolated page; iOS has failed with more than one. */
function threads() {
  const isPhone = /iPhone|iPad|Android/.test(navigator.userAgent);
  return self.crossOriginIsolated && !isPhone ? Math.min(4, Math.max(1, navigator.hardwareConcurrency >> 1)) : 1;
}

async function open({ name, gpu }) {
  const folder = new URL(`./models/${name}`, import.meta.url).href;
  const ort = await runtime(false);
  model = await Model.open(ort, folder, { executionProviders: ["wasm"] });
  backend = `WASM, ${ort.env.wasm.numThreads} thread${ort.env.wasm.numThreads > 1 ? "s" : ""}`;
  let remark = "";
  if (gpu) {
    try {
      const other = await Model.open(await runtime(true), folder, { executionProviders: ["webgpu"] });
      const error = await disagreement(model, other);
      if (error <= AGREEMENT) [model, backend] = [other, "WebGPU"];
      else remark = `The GPU's results differ by ${error.toPrecision(2)}: WASM is used.`;
    } catch (error) {
      remark = `The GPU cannot run this model (${String(error.message ?? error).split("\n")[0]}): WASM is used.`;
    }
    model.reset();
  }
  const { labels, slots, preprocessing, image_size: imageSize } = model.manifest;
  return { labels, slots: slots && slots.spare, preprocessing, imageSize, backend, remark };
}

/** The largest difference of two models over a few carried frames, relative to the largest value. */
async function disagreement(one, two) {
  const [height, width] = one.imageSize;
  let worst = 0;
  for (const item of [one, two]) if (item.isTracker) item.add(0.4, 0.6);
  for (let frame = 0; frame < CHECKED_FRAMES; frame++) {
    const planes = Uint8ClampedArray.from({ length: 3 * height * width }, (_, i) => 127 + 120 * Math.sin(0.07 * i + frame));
    await one.step(planes);
    await two.step(planes);
    for (const name of Object.keys(one.results)) {
      const [right, other] = [one.results[name].data, two.results[name].data];
      let largest = 1e-6, difference = 0;
      for (let i = 0; i < right.length; i++) {
        largest = Math.max(largest, Math.abs(right[i]));
        difference = Math.max(difference, Math.abs(right[i] - other[i]));
        if (Number.isNaN(other[i])) return Infinity;
      }
      worst = Math.max(worst, difference / largest);
    }
  }
  return worst;
}

/** The pixels of a picture, at most `most` wide, in the model's size. */
function planesOf(picture) {
  const width = picture.displayWidth ?? picture.width, height = picture.displayHeight ?? picture.height;
  const scale = Math.min(1, 640 / width);
  const w = Math.round(width * scale), h = Math.round(height * scale);
  canvas ??= new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
  if (canvas.canvas.width !== w || canvas.canvas.height !== h) Object.assign(canvas.canvas, { width: w, height: h });
  canvas.drawImage(picture, 0, 0, w, h);
  picture.close();
  const { data } = canvas.getImageData(0, 0, w, h);
  return (model.isTracker ? whole : covering)(data, w, h, model.imageSize);
}

const actions = {
  open,
  async frame({ picture, edits }) {
    const added = [];
    for (const edit of edits) {
      if (edit.do === "reset") model.reset();
      else if (edit.do === "remove") model.remove(edit.id);
      else added.push({ ref: edit.ref, id: model.add(edit.x, edit.y) });
    }
    const start = performance.now();
    const planes = planesOf(picture);
    const stepped = performance.now();
    const result = await model.step(planes);
    return { ...result, added, prepare_ms: stepped - start, step_ms: performance.now() - stepped };
  },
};

// Messages are handled one after another: a frame may not overtake the model that it is for.
let last = Promise.resolve();
self.onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ reply: data.number, value: await actions[data.type](data) });
    } catch (error) {
      self.postMessage({ reply: data.number, error: String(error.message ?? error) });
    }
  });
};
