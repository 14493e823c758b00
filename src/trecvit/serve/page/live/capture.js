// Frames of a camera or a video file, as they are shown: each is drawn, encoded and offered once.

const MAX_SIDE = 512;
const QUALITY = 0.9;

export class Capture {
  /**
   * @param video The element that plays the source.
   * @param wants Called before a frame is encoded: whether it may be sent now.
   * @param offer Called with {captureUs, width, height, jpeg, picture}.
   * @param skipped Called for each frame of the source that is not offered.
   */
  constructor(video, { wants, offer, skipped }) {
    Object.assign(this, { video, wants, offer, skipped });
    this.running = false;
    this.encoding = false;
  }

  async camera() {
    if (!navigator.mediaDevices) throw new Error("browsers give cameras to pages on https or localhost only");
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
    this.stop();
    this.stream = stream;
    this.video.srcObject = stream;
    await this.start();
  }

  async file(file) {
    this.stop();
    this.address = URL.createObjectURL(file);
    this.video.src = this.address;
    this.video.loop = true;
    await this.start();
  }

  async start() {
    await this.video.play();
    this.running = true;
    this.shown = null;
    this.next();
  }

  stop() {
    this.running = false;
    this.video.pause();
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.address) URL.revokeObjectURL(this.address);
    this.stream = this.address = null;
    this.video.srcObject = null;
    this.video.removeAttribute("src");
  }

  next() {
    if (!this.running) return;
    if (this.video.requestVideoFrameCallback) {
      this.video.requestVideoFrameCallback((_now, metadata) => this.take(metadata.presentedFrames));
    } else { // older browsers: at the rate of the screen, without a count of what was missed
      requestAnimationFrame(() => this.take(null));
    }
  }

  take(presented) {
    if (!this.running) return;
    if (presented !== null && this.shown !== null) this.skipped(Math.max(presented - this.shown - 1, 0));
    this.shown = presented;
    if (this.encoding || !this.video.videoWidth || !this.wants()) this.skipped(1);
    else this.encode();
    this.next();
  }

  async encode() {
    this.encoding = true;
    try {
      const captureUs = performance.now() * 1000;
      const { videoWidth, videoHeight } = this.video;
      const scale = Math.min(1, MAX_SIDE / Math.max(videoWidth, videoHeight));
      const picture = document.createElement("canvas");
      picture.width = Math.max(1, Math.round(videoWidth * scale));
      picture.height = Math.max(1, Math.round(videoHeight * scale));
      picture.getContext("2d").drawImage(this.video, 0, 0, picture.width, picture.height);
      const blob = await new Promise((resolve) => picture.toBlob(resolve, "image/jpeg", QUALITY));
      const jpeg = await blob.arrayBuffer();
      if (this.running) this.offer({ captureUs, width: picture.width, height: picture.height, jpeg, picture });
    } finally {
      this.encoding = false;
    }
  }
}
