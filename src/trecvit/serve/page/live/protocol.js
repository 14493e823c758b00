// The protocol trecvit.v1 (docs/serving.md): frames as bytes, and a session over a WebSocket.

export const PROTOCOL = "trecvit.v1";
const HEADER_BYTES = 24;
const JPEG = 1;

/** A binary message: 24 bytes, little endian, and the JPEG. */
export function frameMessage({ frame, captureUs, width, height, jpeg }) {
  const message = new Uint8Array(HEADER_BYTES + jpeg.byteLength);
  const header = new DataView(message.buffer);
  message.set([0x54, 0x52, 0x56, 0x31, 1, JPEG]); // "TRV1", type, codec; the flags stay 0
  header.setUint32(8, frame, true);
  header.setBigUint64(12, BigInt(Math.round(captureUs)), true);
  header.setUint16(20, width, true);
  header.setUint16(22, height, true);
  message.set(new Uint8Array(jpeg), HEADER_BYTES);
  return message;
}

/**
 * One session that survives lost sockets: it reconnects with a growing delay and resumes with its token.
 * Handlers: ready(message), result(message), refused(message), lost(seconds until the next attempt), closed(reason).
 */
export class Session {
  constructor(url, { model, token, handlers, policy = "latest" }) {
    Object.assign(this, { url, model, token, handlers, policy });
    this.resume = null;
    this.ended = false;
    this.attempts = 0;
    this.inFlight = [];
    this.nextFrame = 0;
    this.ready = null;
    this.connect();
  }

  connect() {
    const offered = this.token ? [PROTOCOL, `trecvit.token.${this.token}`] : [PROTOCOL];
    const socket = new WebSocket(this.url, offered);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      const hello = { type: "hello", model: this.model, policy: this.policy };
      if (this.resume) hello.resume = this.resume;
      socket.send(JSON.stringify(hello));
    };
    socket.onmessage = (event) => {
      if (socket === this.socket && !this.ended) this.receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket === this.socket && !this.ended) this.onClose(event);
    };
  }

  receive(message) {
    if (message.type === "ready") {
      this.resume = message.token;
      this.ready = message;
      this.attempts = 0;
      this.inFlight = [];
      this.nextFrame = message.frame === null ? 0 : Math.max(message.frame + 1, this.nextFrame);
      this.handlers.ready(message);
    } else if (message.type === "result") {
      this.inFlight = this.inFlight.filter((frame) => frame > message.frame);
      this.sendText({ type: "ack", frame: message.frame });
      this.handlers.result(message);
    } else if (message.type === "error") {
      this.failure = message;
      this.handlers.refused(message);
    }
  }

  onClose(event) {
    this.ready = null;
    const expired = this.failure && this.failure.code === "resume";
    if (expired) this.resume = null; // begin a new session instead
    const isFinal = [1008, 4001].includes(event.code) && !expired;
    this.failure = null;
    if (isFinal) {
      this.ended = true;
      this.handlers.closed(event.reason || `code ${event.code}`);
      return;
    }
    const delay = Math.min(0.25 * 2 ** this.attempts++, 8);
    this.handlers.lost(delay);
    this.timer = setTimeout(() => this.connect(), delay * 1000);
  }

  /** Whether another frame may be sent now. */
  get hasCredit() {
    return this.ready !== null && this.socket.readyState === WebSocket.OPEN && this.inFlight.length < this.ready.credit;
  }

  /** Send a frame and return its number, or null if there is no credit any more. */
  sendFrame({ captureUs, width, height, jpeg }) {
    if (!this.hasCredit || jpeg.byteLength + HEADER_BYTES > this.ready.max_bytes) return null;
    const frame = this.nextFrame++;
    this.inFlight.push(frame);
    this.socket.send(frameMessage({ frame, captureUs, width, height, jpeg }));
    return frame;
  }

  sendText(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  add(ref, x, y) { this.sendText({ type: "add", ref, x, y }); }
  remove(id) { this.sendText({ type: "remove", id }); }
  reset() { this.sendText({ type: "reset" }); }

  close() {
    this.ended = true;
    clearTimeout(this.timer);
    this.socket.close();
  }
}
