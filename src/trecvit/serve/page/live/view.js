// What is shown: the frame of each result with its points and their trails, class bars, and figures.

const TRAIL = 40;
const MIN_SIDE = 800;
const byId = (id) => document.getElementById(id);

/** Hue of a point by its id: neighbours differ most. */
export const colourOf = (id) => `hsl(${(id * 137.5) % 360} 85% 60%)`;

export class View {
  constructor() {
    this.canvas = byId("view");
    this.scale = 1; // pixels of the canvas for one of the frame
    this.trails = new Map();
    this.times = [];
    this.latencies = [];
  }

  clear() {
    this.trails.clear();
    this.times = [];
    this.latencies = [];
    byId("bars").replaceChildren();
    byId("list").replaceChildren();
    for (const id of ["fps", "latency", "step", "batch", "dropped", "seen"]) byId(id).textContent = "–";
  }

  show(result, picture, captureUs, dropped) {
    if (picture) this.draw(picture, result.points);
    if (result.top.length) this.bars(result.top);
    this.list(result.points);
    this.figures(result, captureUs, dropped);
  }

  draw(picture, points) {
    const { canvas } = this;
    this.scale = Math.max(1, MIN_SIDE / Math.max(picture.width, picture.height)); // so that points are smooth
    const width = Math.round(picture.width * this.scale), height = Math.round(picture.height * this.scale);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.resetTransform();
    pen.scale(this.scale, this.scale);
    pen.drawImage(picture, 0, 0);
    const unit = Math.max(picture.width, picture.height) / 160;
    const kept = new Set(points.map((point) => point.id));
    for (const id of this.trails.keys()) if (!kept.has(id)) this.trails.delete(id);
    for (const point of points) {
      const trail = this.trails.get(point.id) ?? [];
      trail.push(point);
      if (trail.length > TRAIL) trail.shift();
      this.trails.set(point.id, trail);
      pen.strokeStyle = colourOf(point.id);
      pen.lineWidth = unit * 0.7;
      for (let index = 1; index < trail.length; index++) {
        if (!trail[index - 1].visible || !trail[index].visible) continue;
        pen.globalAlpha = index / trail.length;
        pen.beginPath();
        pen.moveTo(trail[index - 1].x, trail[index - 1].y);
        pen.lineTo(trail[index].x, trail[index].y);
        pen.stroke();
      }
      pen.globalAlpha = 1;
      pen.beginPath();
      pen.arc(point.x, point.y, unit * 1.5, 0, 2 * Math.PI);
      pen.lineWidth = unit * 0.9;
      pen.strokeStyle = "#000b";
      pen.stroke();
      pen.lineWidth = unit * 0.5;
      pen.strokeStyle = pen.fillStyle = colourOf(point.id);
      if (point.visible) pen.fill();
      pen.stroke();
    }
  }

  bars(top) {
    const list = byId("bars");
    while (list.children.length < top.length) {
      const row = document.createElement("li");
      for (const name of ["bar", "name", "value"]) row.appendChild(document.createElement("span")).className = name;
      list.append(row);
    }
    top.forEach((item, index) => {
      const [bar, name, value] = list.children[index].children;
      bar.style.transform = `scaleX(${item.probability})`;
      name.textContent = item.label;
      value.textContent = `${(100 * item.probability).toFixed(1)} %`;
    });
  }

  list(points) {
    byId("list").replaceChildren(...points.map((point) => {
      const row = document.createElement("li");
      row.className = point.visible ? "" : "gone";
      const dot = document.createElement("i");
      dot.style.background = colourOf(point.id);
      row.append(dot, `${point.x.toFixed(0)}, ${point.y.toFixed(0)}${point.visible ? "" : " hidden"}`);
      return row;
    }));
  }

  figures(result, captureUs, dropped) {
    const now = performance.now();
    this.times = [...this.times, now].slice(-30);
    if (captureUs !== undefined) this.latencies = [...this.latencies, now - captureUs / 1000].slice(-30);
    const span = now - this.times[0];
    if (span > 0) byId("fps").textContent = (((this.times.length - 1) * 1000) / span).toFixed(1);
    const median = [...this.latencies].sort((a, b) => a - b)[this.latencies.length >> 1];
    if (median !== undefined) byId("latency").textContent = `${median.toFixed(0)} ms`;
    byId("step").textContent = `${result.step_ms.toFixed(1)} ms`;
    byId("batch").textContent = result.batch;
    byId("dropped").textContent = dropped + result.dropped;
    byId("seen").textContent = result.seen;
  }
}
