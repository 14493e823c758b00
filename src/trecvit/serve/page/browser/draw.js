// Points with fading trails, and class bars.

const TRAIL = 24; // frames

export const hue = (id) => (id * 137.5) % 360; // neighbours differ most

/** The past places of each point. */
export class Trails {
  constructor() { this.past = new Map(); }

  clear() { this.past.clear(); }

  push(points) {
    const ids = new Set(points.map((point) => point.id));
    for (const id of [...this.past.keys()]) if (!ids.has(id)) this.past.delete(id);
    for (const point of points) {
      const places = this.past.get(point.id) ?? [];
      places.push(point);
      if (places.length > TRAIL) places.shift();
      this.past.set(point.id, places);
    }
  }

  draw(context, width, height) {
    const radius = Math.max(4, width / 110);
    for (const [id, places] of this.past) {
      for (let i = 1; i < places.length; i++) {
        if (!places[i].visible || !places[i - 1].visible) continue;
        context.strokeStyle = `hsl(${hue(id)} 90% 60% / ${i / places.length})`;
        context.lineWidth = radius / 2;
        context.beginPath();
        context.moveTo(places[i - 1].x * width, places[i - 1].y * height);
        context.lineTo(places[i].x * width, places[i].y * height);
        context.stroke();
      }
      const now = places[places.length - 1];
      context.beginPath();
      context.arc(now.x * width, now.y * height, radius, 0, 2 * Math.PI);
      context.lineWidth = 2;
      context.strokeStyle = now.visible ? "#fff" : `hsl(${hue(id)} 90% 60% / 0.7)`;
      context.fillStyle = now.visible ? `hsl(${hue(id)} 90% 55%)` : "transparent";
      context.fill();
      context.stroke();
    }
  }
}

/** A cross where the keyboard would add or remove a point. */
export function drawCursor(context, { x, y }, width, height) {
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.beginPath();
  for (const [dx, dy] of [[12, 0], [0, 12]]) {
    context.moveTo(x * width - dx, y * height - dy);
    context.lineTo(x * width + dx, y * height + dy);
  }
  context.stroke();
}

/** The most probable classes, in place: rows are kept, so that screen readers and transitions follow. */
export function showBars(list, labels, probs, count = 5) {
  const order = [...probs.keys()].sort((a, b) => probs[b] - probs[a]).slice(0, count);
  while (list.children.length < order.length) {
    const row = document.createElement("li");
    for (const name of ["label", "share", "bar"]) row.append(Object.assign(document.createElement("span"), { className: name }));
    row.lastChild.append(document.createElement("i"));
    list.append(row);
  }
  order.forEach((index, rank) => {
    const [label, share, bar] = list.children[rank].children;
    label.textContent = labels[index] ?? `class ${index}`;
    share.textContent = `${(100 * probs[index]).toFixed(1)} %`;
    bar.firstChild.style.width = `${100 * probs[index]}%`;
  });
  return order.map((index) => ({ label: labels[index] ?? `class ${index}`, probability: probs[index] }));
}
