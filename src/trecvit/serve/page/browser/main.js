// The page: sources, points, classes and numbers. The model is in worker.js.

import { drawCursor, showBars, Trails } from "./draw.js";
import { Source } from "./source.js";

const $ = (id) => document.getElementById(id);
const NEAR_PX = 14; // a click this close to a point removes it
const GRID = 4;
const TITLES = {
  motions: "motions: how things move",
  points: "points: where things go",
};

// A module with one SIMD instruction.
const HAS_SIMD = WebAssembly.validate(Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
));

const trails = new Trails();
const source = new Source($("video"), considered);
let worker = null;
let info = null; // of the model, null while none is loaded
let edits = []; // of points, for the next frame
let busy = false;
let newest = null; // the frame that is shown
let waits = false; // whether it is due while another is in flight
let used = { time_s: -Infinity, count: 0, frame: 0 };
let dropped = 0;
let finished = []; // times of the last results
let points = []; // of the last result
let cursor = null;
let nextRef = 0;
let epoch = 0; // changes when everything is forgotten, so that a frame in flight does not bring it back

function tell(message) { $("message").textContent = message; }

// ---- the worker ----------------------------------------------------------------------------------------------------

const waiting = new Map();
let nextNumber = 0;

function call(type, content = {}, transfer = []) {
  const number = nextNumber++;
  worker.postMessage({ type, number, ...content }, transfer);
  return new Promise((resolve, reject) => waiting.set(number, { resolve, reject }));
}

function startWorker() {
  worker?.terminate();
  waiting.clear();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data: { reply, value, error } }) => {
    const { resolve, reject } = waiting.get(reply);
    waiting.delete(reply);
    if (error === undefined) resolve(value);
    else reject(new Error(error));
  };
  worker.onerror = (event) => tell(`The model's thread failed: ${event.message ?? "it could not be loaded"}`);
}

async function load() {
  info = null;
  busy = false;
  startWorker();
  const started = worker;
  tell("Loading the model …");
  try {
    const opened = await call("open", { name: $("model").value, gpu: $("gpu").checked });
    if (started !== worker) return;
    info = opened;
  } catch (error) {
    if (started === worker) tell(`The model could not be loaded. ${error.message}`);
    return;
  }
  const isTracker = info.slots !== null;
  $("point-buttons").hidden = !isTracker;
  $("class-buttons").hidden = isTracker;
  $("bars").hidden = isTracker;
  $("overlay").classList.toggle("tracking", isTracker);
  $("backend").textContent = info.backend;
  $("restart-frames").textContent = info.preprocessing.num_frames;
  $("hint").textContent = [
    isTracker
      ? `Click on the video to add a point, up to ${info.slots}; click on a point to remove it. Or focus the video, move with the arrow keys and press Enter.`
      : "The bars are the answer for all frames since the start.",
    info.remark,
  ].filter(Boolean).join(" ");
  forget();
  tell(newest ? "" : "Choose a camera, a video file or the sample clip.");
  document.dispatchEvent(new CustomEvent("trecvit-ready", { detail: info }));
}

// ---- frames: one in flight, the newest wins ------------------------------------------------------------------------

function considered(number, time_s) {
  newest = { frame: number, time_s, shown_ms: performance.now() };
  if (!info || !isDue(newest)) return;
  if (!busy) return send();
  if (waits) dropped++; // the frame that waited until now
  waits = true;
}

/** Whether the model wants a frame: classifiers are trained at a frame rate of their own. */
function isDue({ time_s }) {
  const fps = info.preprocessing.frame_rate_fps;
  return !fps || time_s < used.time_s || time_s - used.time_s >= 1 / fps - 0.01;
}

async function send() {
  busy = true;
  waits = false;
  const [now, started] = [newest, worker];
  let began = epoch;
  try {
    const picture = await source.picture();
    if (started !== worker) return picture.close();
    const frames = info.preprocessing.num_frames;
    const restarts = info.slots === null && $("restart").checked && used.count >= frames;
    if (restarts) edits.unshift({ do: "reset" });
    if (edits.some((edit) => edit.do === "reset")) used.count = 0;
    used = { time_s: now.time_s, count: used.count + 1, frame: now.frame };
    const sent = edits;
    edits = [];
    began = epoch;
    const result = await call("frame", { picture, edits: sent }, [picture]);
    if (started === worker && began === epoch) show(now, result);
  } catch (error) {
    if (started === worker) tell(`The model failed: ${error.message}`);
  } finally {
    if (started === worker) busy = false;
  }
  if (started === worker && info && waits) send();
}

function show(sent, result) {
  const now = performance.now();
  finished = [...finished.filter((time) => now - time < 2000), now];
  const span_s = (now - finished[0]) / 1000;
  $("numbers").hidden = false;
  $("rate").textContent = span_s > 0 ? ((finished.length - 1) / span_s).toFixed(1) : "–";
  $("latency").textContent = `${Math.round(now - sent.shown_ms)} ms`;
  $("dropped").textContent = dropped;
  let top = [];
  if (result.probs) {
    top = showBars($("bars"), info.labels, Array.from(result.probs));
  } else {
    points = result.points;
    trails.push(points);
  }
  draw();
  const { frame, time_s } = sent;
  const detail = { frame, time_s, frames_seen: used.count, newest: newest?.frame ?? frame, dropped, top, ...result };
  document.dispatchEvent(new CustomEvent("trecvit-result", { detail }));
}

function draw() {
  const canvas = $("overlay"), box = canvas.getBoundingClientRect(), scale = window.devicePixelRatio;
  Object.assign(canvas, { width: box.width * scale, height: box.height * scale });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  trails.draw(context, box.width, box.height);
  if (cursor && document.activeElement === canvas) drawCursor(context, cursor, box.width, box.height);
}

/** Start over: no frames, no points. */
function forget() {
  epoch++;
  edits = [{ do: "reset" }];
  points = [];
  used = { time_s: -Infinity, count: 0, frame: 0 };
  dropped = 0;
  finished = [];
  trails.clear();
  draw();
}

// ---- points --------------------------------------------------------------------------------------------------------

function pointNear(x, y) {
  const { width, height } = $("overlay").getBoundingClientRect();
  const distance = (point) => Math.hypot((point.x - x) * width, (point.y - y) * height);
  const nearest = points.reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), null);
  return nearest && distance(nearest) <= NEAR_PX ? nearest : null;
}

function addOrRemove(x, y) {
  if (!info || info.slots === null || !newest) return;
  const near = pointNear(x, y);
  const adding = edits.filter((edit) => edit.do === "add").length;
  if (near) {
    edits.push({ do: "remove", id: near.id });
    points = points.filter((point) => point !== near);
    tell("");
  } else if (points.length + adding >= info.slots) {
    tell(`All ${info.slots} points are in use: click on one to remove it.`);
  } else {
    edits.push({ do: "add", x, y, ref: nextRef++ });
    tell("");
  }
}

$("overlay").addEventListener("click", (event) => {
  const box = $("overlay").getBoundingClientRect();
  addOrRemove((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});

$("overlay").addEventListener("keydown", (event) => {
  if (!info || info.slots === null) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  cursor ??= { x: 0.5, y: 0.5 };
  if (moves[event.key]) {
    const step = event.shiftKey ? 0.1 : 0.02;
    const [dx, dy] = moves[event.key];
    cursor = { x: Math.min(1, Math.max(0, cursor.x + dx * step)), y: Math.min(1, Math.max(0, cursor.y + dy * step)) };
  } else if (event.key === "Enter" || event.key === " ") {
    addOrRemove(cursor.x, cursor.y);
  } else {
    return;
  }
  event.preventDefault();
  draw();
});
for (const event of ["focus", "blur"]) $("overlay").addEventListener(event, draw);

$("grid").addEventListener("click", () => {
  forget();
  for (let row = 0; row < GRID; row++) {
    for (let column = 0; column < GRID && row * GRID + column < info.slots; column++) {
      edits.push({ do: "add", x: (column + 0.5) / GRID, y: (row + 0.5) / GRID, ref: nextRef++ });
    }
  }
});
for (const id of ["clear", "reset"]) $(id).addEventListener("click", forget);

// ---- sources -------------------------------------------------------------------------------------------------------

async function play(button, open) {
  newest = null;
  waits = false;
  forget();
  tell("Opening …");
  for (const id of ["camera", "sample"]) $(id).setAttribute("aria-pressed", String($(id) === button));
  $("file").parentElement.classList.toggle("pressed", $("file") === button);
  $("again").hidden = true;
  try {
    await open();
    tell(info ? "" : "Loading the model …");
  } catch (error) {
    button.setAttribute("aria-pressed", "false");
    tell(error.message);
  }
}

$("camera").addEventListener("click", (event) => play(event.currentTarget, () => source.camera()));
$("sample").addEventListener("click", (event) => play(event.currentTarget, () => source.clip("sample.webm")));
$("file").addEventListener("change", (event) => {
  const [file] = event.currentTarget.files;
  if (file) play(event.currentTarget, () => source.file(file));
  event.currentTarget.value = ""; // so that the same file can be chosen again
});
$("video").addEventListener("resize", () => {
  const { videoWidth, videoHeight } = $("video");
  // Tall videos stay on the screen; picture and overlay keep one shape.
  if (videoHeight) $("stage").style.maxWidth = `${(80 * videoWidth) / videoHeight}vh`;
  $("stage").classList.toggle("playing", videoHeight > 0);
});
$("video").addEventListener("ended", () => { $("again").hidden = false; });
$("again").addEventListener("click", () => {
  $("again").hidden = true;
  forget();
  source.again();
});
$("model").addEventListener("change", load);
$("gpu").addEventListener("change", load);
new ResizeObserver(draw).observe($("stage"));

/** Isolate the page where threads would help and the host does not do it; true where the page is about to load again. */
async function isolating() {
  const helps = navigator.hardwareConcurrency >= 4 && window.isSecureContext && "serviceWorker" in navigator;
  if (window.crossOriginIsolated || !helps || sessionStorage.getItem("isolating")) return false;
  sessionStorage.setItem("isolating", "tried"); // once: a host may forbid it
  try {
    await navigator.serviceWorker.register("isolation.js");
    await navigator.serviceWorker.ready;
  } catch {
    return false;
  }
  window.location.reload();
  return true;
}

/** Offer the models that the page was built with. */
async function offerModels() {
  const response = await fetch("models/index.json").catch(() => null);
  if (!response?.ok) {
    tell("The models' files are missing: scripts/page builds them.");
    return false;
  }
  $("model").replaceChildren(...(await response.json()).map((name) => new Option(TITLES[name] ?? name, name)));
  return true;
}

if (!HAS_SIMD) {
  tell("This browser has no WebAssembly SIMD, which the model needs. Update it, or use a current Chrome, Edge, Firefox or Safari.");
} else if (!HTMLVideoElement.prototype.requestVideoFrameCallback) {
  tell("This browser does not report video frames. Update it, or use a current Chrome, Edge, Firefox or Safari.");
} else {
  $("gpu-row").hidden = !("gpu" in navigator && "Suspending" in WebAssembly);
  if (!(await isolating()) && (await offerModels())) load();
}
