// An exported model (docs/export.md) with its state: a frame in, predictions out. Points are added and removed by
// arithmetic on the state's tensors.

export class Model {
  /**
   * @param ort onnxruntime-web
   * @param manifest the folder's manifest.json
   * @param session of its step.onnx
   */
  constructor(ort, manifest, session) {
    this.ort = ort;
    this.manifest = manifest;
    this.session = session;
    this.reset();
  }

  static async open(ort, folder, options) {
    const response = await fetch(`${folder}/manifest.json`);
    if (!response.ok) throw new Error(`${folder}: the model's files are missing; scripts/page makes them`);
    const manifest = await response.json();
    return new Model(ort, manifest, await ort.InferenceSession.create(`${folder}/step.onnx`, options));
  }

  get isTracker() { return this.manifest.slots !== null; }

  /** Height and width of the model's frames. */
  get imageSize() { return this.manifest.image_size; }

  /** Forget all frames and points. */
  reset() {
    this.state = {};
    for (const { input, shape, initial } of this.manifest.state) {
      const numbers = new Float32Array(shape.reduce((product, side) => product * side, 1)).fill(initial);
      this.state[input] = new this.ort.Tensor("float32", numbers, shape);
    }
    this.slots = new Map(); // of each point's id
    this.nextId = 0;
  }

  /**
   * One step.
   * @param planes RGB planes of the model's size, 0 to 255
   * @returns probs, or points: the id, x and y from 0 to 1, visible and certainty of each point
   */
  async step(planes) {
    const [height, width] = this.imageSize;
    const pixels = Float32Array.from(planes, (value) => value / 255);
    const frame = new this.ort.Tensor("float32", pixels, [1, 1, 3, height, width]);
    const results = await this.session.run({ frame, ...this.state });
    for (const { input, output } of this.manifest.state) this.state[input] = results[output];
    this.results = results;
    if (!this.isTracker) return { probs: results.probs.data };
    const [xy, visible, certainty] = ["points_xy", "visible_logits", "certainty"].map((name) => results[name].data);
    const points = [...this.slots].map(([id, slot]) => ({
      id,
      x: xy[2 * slot] / width,
      y: xy[2 * slot + 1] / height,
      visible: visible[slot] > 0,
      certainty: certainty[slot],
    }));
    return { points };
  }

  /** Add a point at x, y (from 0 to 1) of the next frame; null where all slots are in use. */
  add(x, y) {
    const used = new Set(this.slots.values());
    const slot = [...Array(this.manifest.slots.spare).keys()].find((free) => !used.has(free));
    if (slot === undefined) return null;
    const [height, width] = this.imageSize;
    this.state["state.frames_since_query"].data[slot] = 0;
    this.state["state.query_points_yx"].data.set([y * height, x * width], 2 * slot);
    this.slots.set(this.nextId, slot);
    return this.nextId++;
  }

  /** Remove a point: its slot becomes a copy of the one that never has a point. */
  remove(id) {
    const slot = this.slots.get(id);
    if (slot === undefined) return;
    this.slots.delete(id);
    for (const { input, shape, slot_axis: axis, first_slot: first } of this.manifest.state) {
      if (axis === null) continue;
      const numbers = this.state[input].data;
      const inner = shape.slice(axis + 1).reduce((product, side) => product * side, 1);
      const outer = shape.slice(0, axis).reduce((product, side) => product * side, 1);
      for (let row = 0; row < outer; row++) {
        const start = row * shape[axis] + first;
        const spare = (start + this.manifest.slots.spare) * inner;
        numbers.copyWithin((start + slot) * inner, spare, spare + inner);
      }
    }
  }
}
