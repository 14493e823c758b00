// Resizing as in training: bilinear with antialiasing, first along rows, then along columns, each rounded to 8 bits.

/** The weights of each output pixel: its first input pixel and a triangle as wide as the reduction. */
function triangles(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const centre = scale * (index + 0.5);
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const last = Math.min(Math.trunc(centre + reach + 0.5), from);
    const weights = new Float32Array(last - first);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) {
      weights[i] = Math.max(1 - Math.abs((first + i - centre + 0.5) / reach), 0);
      sum += weights[i];
    }
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** RGBA pixels of `width` x `height` as RGB planes of `toWidth` x `toHeight`, 0 to 255. */
export function resized(rgba, width, height, toWidth, toHeight) {
  const rows = new Uint8ClampedArray(3 * height * toWidth);
  const columns = new Uint8ClampedArray(3 * toHeight * toWidth);
  const across = triangles(width, toWidth);
  const down = triangles(height, toHeight);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < toWidth; x++) {
      const { first, weights } = across[x];
      let red = 0, green = 0, blue = 0;
      for (let i = 0, at = 4 * (y * width + first); i < weights.length; i++, at += 4) {
        const weight = weights[i];
        red += weight * rgba[at];
        green += weight * rgba[at + 1];
        blue += weight * rgba[at + 2];
      }
      const to = y * toWidth + x, plane = height * toWidth;
      rows[to] = red;
      rows[plane + to] = green;
      rows[2 * plane + to] = blue;
    }
  }
  for (let colour = 0; colour < 3; colour++) {
    const plane = rows.subarray(colour * height * toWidth, (colour + 1) * height * toWidth);
    for (let y = 0; y < toHeight; y++) {
      const { first, weights } = down[y];
      for (let x = 0; x < toWidth; x++) {
        let sum = 0;
        for (let i = 0, at = first * toWidth + x; i < weights.length; i++, at += toWidth) sum += weights[i] * plane[at];
        columns[(colour * toHeight + y) * toWidth + x] = sum;
      }
    }
  }
  return columns;
}

/** A frame for a tracker: the whole picture, in any aspect. */
export function whole(rgba, width, height, [toHeight, toWidth]) {
  return resized(rgba, width, height, toWidth, toHeight);
}

/** A frame for a classifier: resized to cover the size, then cut at the centre. */
export function covering(rgba, width, height, [toHeight, toWidth]) {
  const scale = Math.max(toHeight / height, toWidth / width);
  const wide = Math.max(toWidth, Math.round(width * scale)), high = Math.max(toHeight, Math.round(height * scale));
  const planes = resized(rgba, width, height, wide, high);
  if (wide === toWidth && high === toHeight) return planes;
  const top = (high - toHeight) >> 1, left = (wide - toWidth) >> 1;
  const cut = new Uint8ClampedArray(3 * toHeight * toWidth);
  for (let colour = 0; colour < 3; colour++) {
    for (let y = 0; y < toHeight; y++) {
      const from = (colour * high + top + y) * wide + left;
      cut.set(planes.subarray(from, from + toWidth), (colour * toHeight + y) * toWidth);
    }
  }
  return cut;
}
