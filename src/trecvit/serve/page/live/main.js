// The live page: a source, a session, and what is shown of its results.

import { Capture } from "./capture.js";
import { Session } from "./protocol.js";
import { View } from "./view.js";

const byId = (id) => document.getElementById(id);
const NEAR = 0.03; // of the picture's longer side: a click this close to a point is on it
// The server's token is in the fragment of the address, which browsers do not send, and then only in this page.
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
if (token) history.replaceState(null, "", location.pathname);

const view = new View();
const pictures = new Map(); // by frame: what was sent, until its result
let models = [];
let model = null;
let session = null;
let last = null;
let dropped = 0;
let count = 0;

const capture = new Capture(byId("source"), {
  wants: () => session?.hasCredit ?? false,
  offer: ({ picture, ...frame }) => {
    const number = session?.sendFrame(frame) ?? null;
    if (number === null) dropped += 1;
    else pictures.set(number, { picture, captureUs: frame.captureUs });
  },
  skipped: (frames) => { dropped += frames; },
});

function say(text, isBad = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("bad", isBad);
}

const handlers = {
  ready: (message) => {
    pictures.clear();
    say(message.frame === null ? "" : `Resumed after frame ${message.frame}.`);
  },
  result: (result) => {
    const sent = pictures.get(result.frame);
    for (const frame of pictures.keys()) if (frame <= result.frame) pictures.delete(frame);
    last = result;
    view.show(result, sent?.picture, sent?.captureUs, dropped);
    document.dispatchEvent(new CustomEvent("trecvit-result", { detail: result }));
  },
  refused: (message) => say(`Expected ${message.expected}, got ${message.got}.`, true),
  lost: (seconds) => say(`Connection lost; trying again in ${seconds} s.`, true),
  closed: (reason) => say(`The server ended the session: ${reason}.`, true),
};

function connect() {
  session?.close();
  pictures.clear();
  view.clear();
  last = null;
  dropped = 0;
  const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/stream`;
  session = new Session(url, { model: model.name, token, handlers });
}

function choose(chosen) {
  model = chosen;
  for (const button of byId("models").children) {
    button.setAttribute("aria-pressed", String(button.textContent === model.name));
  }
  const tracks = model.task === "track";
  byId("classes").hidden = tracks;
  byId("points").hidden = byId("clear").hidden = !tracks;
  byId("clear").hidden = !tracks || !capture.running;
  byId("view").classList.toggle("clickable", tracks);
  if (capture.running) connect();
}

async function begin(open) {
  say("Starting …");
  try {
    await open();
  } catch (error) {
    say(error.name === "NotAllowedError"
      ? "The browser refused the camera; allow it for this page, or open a video."
      : `This source cannot be played: ${error.message}`, true);
    return;
  }
  say("");
  byId("start").hidden = true;
  byId("stop").hidden = byId("reset").hidden = false;
  byId("clear").hidden = model.task !== "track";
  connect();
}

byId("camera").onclick = () => begin(() => capture.camera());
byId("file").onchange = (event) => {
  if (event.target.files.length) begin(() => capture.file(event.target.files[0]));
  event.target.value = "";
};
byId("stop").onclick = () => {
  capture.stop();
  session?.close();
  session = null;
  byId("start").hidden = false;
  byId("stop").hidden = byId("reset").hidden = byId("clear").hidden = true;
  say("");
};
byId("reset").onclick = () => session?.reset();
byId("clear").onclick = () => last?.points.forEach((point) => session?.remove(point.id));
byId("view").onclick = (event) => {
  if (model?.task !== "track" || !last || !session) return;
  const { canvas } = view;
  const box = canvas.getBoundingClientRect();
  const width = canvas.width / view.scale, height = canvas.height / view.scale;
  const shown = Math.min(box.width / width, box.height / height); // object-fit: contain
  const x = (event.clientX - box.left - (box.width - width * shown) / 2) / shown;
  const y = (event.clientY - box.top - (box.height - height * shown) / 2) / shown;
  if (x < 0 || y < 0 || x > width || y > height) return;
  const near = NEAR * Math.max(width, height);
  const hit = last.points.find((point) => Math.hypot(point.x - x, point.y - y) < near);
  if (hit) session.remove(hit.id);
  else session.add(`p${count++}`, x, y);
};

async function main() {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch("/v1/models", { headers });
  if (!answer.ok) {
    say(answer.status === 401 ? "Open this page with #token=… at the end of its address." : `Error ${answer.status}.`, true);
    return;
  }
  models = (await answer.json()).models;
  byId("models").replaceChildren(...models.map((each) => {
    const button = document.createElement("button");
    button.textContent = each.name;
    button.onclick = () => choose(each);
    return button;
  }));
  choose(models[0]);
}

main();
