// The picture's source: a camera, a video file or the sample clip, played by the browser.

/** What to do about a camera that cannot be opened. */
function advice(error) {
  const messages = {
    NotAllowedError: "The camera was not allowed. Allow it beside the address, then choose Camera again, or choose a video file.",
    NotFoundError: "No camera was found. Connect one and choose Camera again, or choose a video file.",
    NotReadableError: "Another program is using the camera. Close it and choose Camera again, or choose a video file.",
  };
  return messages[error.name] ?? `The camera could not be opened (${error.message || error.name}). Choose a video file.`;
}

export class Source {
  /**
   * @param video a video element
   * @param onFrame called with each frame that is shown: its number from 1 and its time in seconds
   */
  constructor(video, onFrame) {
    this.video = video;
    this.onFrame = onFrame;
    this.number = 0;
    this.opened = 0;
  }

  async camera() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Cameras need a secure page: open this address over https or on localhost, or choose a video file.");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "environment" },
      });
    } catch (error) {
      throw new Error(advice(error));
    }
    await this.#play({ srcObject: stream });
  }

  async file(file) {
    await this.#play({ src: URL.createObjectURL(file) });
  }

  async clip(address) {
    await this.#play({ src: address });
  }

  /** Play a file from its beginning. */
  async again() {
    this.video.currentTime = 0;
    await this.video.play();
  }

  async #play({ src, srcObject }) {
    this.stop();
    const opened = ++this.opened;
    if (srcObject) this.video.srcObject = srcObject;
    else this.video.src = src;
    const failed = new Promise((_, reject) => {
      this.video.onerror = () => reject(new Error("This video cannot be played by the browser. Choose an MP4 or WebM file."));
    });
    await Promise.race([this.video.play(), failed]);
    this.#watch(opened);
  }

  stop() {
    this.opened++;
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    if (this.video.src.startsWith("blob:")) URL.revokeObjectURL(this.video.src);
    this.video.srcObject = null;
    this.video.removeAttribute("src");
    this.number = 0;
  }

  #watch(opened) {
    const shown = (_now, { mediaTime }) => {
      if (opened !== this.opened) return;
      this.video.requestVideoFrameCallback(shown);
      this.onFrame(++this.number, mediaTime);
    };
    this.video.requestVideoFrameCallback(shown);
  }

  /** The frame that is shown now, to be sent to a worker. */
  async picture() {
    if ("VideoFrame" in window) return new VideoFrame(this.video, { timestamp: 0 });
    return createImageBitmap(this.video);
  }
}
