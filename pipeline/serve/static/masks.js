// Masks: COCO's run-length encoding, bitmaps to draw, outlines.

const LARGEST = 1280; // side of a bitmap in pixels

// Pixels of a compressed RLE, column by column: 1 inside.
export function decode({ size: [height, width], counts }) {
  const pixels = new Uint8Array(height * width);
  const runs = [];
  let position = 0;
  for (let i = 0; i < counts.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = counts.charCodeAt(i++) - 48;
      value |= (code & 0x1f) << shift;
      shift += 5;
      more = Boolean(code & 0x20);
      if (!more && code & 0x10) value |= -1 << shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    if (runs.length % 2) pixels.fill(1, position, position + value);
    runs.push(value);
    position += value;
  }
  return pixels;
}

// A canvas with the mask in a colour, its border opaque; scaled down for large pictures.
export function bitmap(rle, colour) {
  const [height, width] = rle.size;
  const scale = Math.min(1, LARGEST / Math.max(height, width));
  const w = Math.max(1, Math.round(width * scale)), h = Math.max(1, Math.round(height * scale));
  const pixels = decode(rle);
  const inside = (x, y) => x >= 0 && y >= 0 && x < w && y < h
    && pixels[Math.min(width - 1, Math.floor((x + 0.5) / scale)) * height + Math.min(height - 1, Math.floor((y + 0.5) / scale))];
  const canvas = Object.assign(document.createElement("canvas"), { width: w, height: h });
  const context = canvas.getContext("2d");
  const image = context.createImageData(w, h);
  const [red, green, blue] = colour;
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      if (!inside(x, y)) continue;
      const border = !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
      image.data.set([red, green, blue, border ? 255 : 110], 4 * (y * w + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// Outer outlines of a mask's parts along the edges of its pixels: lists of [x, y], the mask on the right hand.
export function outlines(rle) {
  const [height, width] = rle.size;
  const pixels = decode(rle);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[x * height + y] === 1;
  const seen = new Set(); // top edges, by the pixel below
  const found = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside(x, y) || inside(x, y - 1) || seen.has(y * width + x)) continue;
      const outline = trace(inside, x, y, (px, py) => seen.add(py * width + px));
      if (area(outline) > 0) found.push(outline); // holes run the other way round
    }
  }
  return found;
}

// Steps along pixel edges: right, down, left, up; and the pixels ahead on either hand, from the corner stood on.
const STEPS = [[1, 0], [0, 1], [-1, 0], [0, -1]];
const LEFT = [[0, -1], [0, 0], [-1, 0], [-1, -1]];
const RIGHT = [[0, 0], [-1, 0], [-1, -1], [0, -1]];

function trace(inside, x0, y0, mark) {
  const corners = [];
  let x = x0, y = y0, direction = 0;
  do {
    if (direction === 0) mark(x, y);
    x += STEPS[direction][0];
    y += STEPS[direction][1];
    const left = inside(x + LEFT[direction][0], y + LEFT[direction][1]);
    const right = inside(x + RIGHT[direction][0], y + RIGHT[direction][1]);
    const next = left ? (direction + 3) % 4 : right ? direction : (direction + 1) % 4;
    if (next !== direction) corners.push([x, y]);
    direction = next;
  } while (x !== x0 || y !== y0 || direction !== 0);
  return corners;
}

function area(corners) {
  return corners.reduce((sum, [x, y], i) => {
    const [nextX, nextY] = corners[(i + 1) % corners.length];
    return sum + (x * nextY - nextX * y) / 2;
  }, 0);
}
