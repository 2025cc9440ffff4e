// The picture on its canvas: masks, prompts, the cross of the keyboard; clicks, drags and keys on it.

const DRAG = 6; // pixels of the screen from which a click is a box
const STEP = 0.01; // of the longer side, by an arrow key

export class Picture {
  // handlers: point(x, y, label), box([x0, y0, x1, y1]), in pixels of the picture; label() gives the one of a plain click
  constructor(canvas, handlers) {
    this.canvas = canvas;
    this.handlers = handlers;
    this.image = null;
    this.cross = null;
    this.corner = null;
    this.drag = null;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => { this.drag = null; this.draw(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cross = null; this.corner = null; this.draw(); });
    new ResizeObserver(() => this.fit()).observe(canvas.parentElement);
  }

  show(image) {
    this.image = image;
    this.objects = [];
    this.cross = this.corner = this.drag = null;
    this.fit();
  }

  // The largest size that fits the column and the window, at the screen's resolution.
  fit() {
    if (!this.image) return;
    const available = this.canvas.parentElement.clientWidth;
    const narrow = window.innerWidth <= 860;
    const height = Math.max(220, window.innerHeight * (narrow ? 0.58 : 0.74));
    const { width: w, height: h } = this.image;
    this.scale = Math.min(available / w, height / h, Math.max(4, 320 / Math.max(w, h)));
    this.canvas.style.width = `${Math.round(w * this.scale)}px`;
    this.canvas.style.height = `${Math.round(h * this.scale)}px`;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(w * this.scale * ratio);
    this.canvas.height = Math.round(h * this.scale * ratio);
    this.draw();
  }

  update(objects, active) {
    this.objects = objects;
    this.active = active;
    this.draw();
  }

  draw() {
    if (!this.image) return;
    const context = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    paint(context, this.image, this.objects, this.canvas.width, this.canvas.height, this.active);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.active) {
      if (this.active.box) this.rectangle(context, this.active.box);
      for (const { x, y, label } of this.active.points) this.point(context, x, y, label);
    }
    const dragged = this.drag?.box || (this.corner && this.cross && ordered(this.corner, this.cross));
    if (dragged) this.rectangle(context, dragged);
    if (this.cross) this.drawCross(context);
  }

  point(context, x, y, label) {
    const [px, py] = [x * this.scale, y * this.scale];
    context.beginPath();
    context.arc(px, py, 7, 0, 2 * Math.PI);
    context.fillStyle = label ? "#12a150" : "#d92d20";
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath(); // plus and minus: not by colour alone
    context.moveTo(px - 3.5, py);
    context.lineTo(px + 3.5, py);
    if (label) { context.moveTo(px, py - 3.5); context.lineTo(px, py + 3.5); }
    context.stroke();
  }

  rectangle(context, [x0, y0, x1, y1]) {
    const box = [x0 * this.scale, y0 * this.scale, (x1 - x0) * this.scale, (y1 - y0) * this.scale];
    context.lineWidth = 3;
    context.strokeStyle = "rgb(0 0 0 / 55%)";
    context.strokeRect(...box);
    context.lineWidth = 1.5;
    context.setLineDash([6, 4]);
    context.strokeStyle = "#fff";
    context.strokeRect(...box);
    context.setLineDash([]);
  }

  drawCross(context) {
    const [x, y] = this.cross.map((value) => value * this.scale);
    for (const [width, colour] of [[4, "rgb(0 0 0 / 60%)"], [1.5, "#fff"]]) {
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 4 * dx, y + 4 * dy);
        context.lineTo(x + 14 * dx, y + 14 * dy);
      }
      context.stroke();
    }
  }

  at(event) {
    const area = this.canvas.getBoundingClientRect();
    const bound = (value, limit) => Math.min(Math.max(value / this.scale, 0), limit);
    return [bound(event.clientX - area.left, this.image.width), bound(event.clientY - area.top, this.image.height)];
  }

  down(event) {
    if (!this.image || (event.button !== 0 && event.button !== 2)) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = { start: this.at(event), button: event.button, x: event.clientX, y: event.clientY, box: null };
  }

  moved(event) {
    if (!this.drag) return;
    const far = Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) >= DRAG;
    if (!far && !this.drag.box) return;
    this.drag.box = ordered(this.drag.start, this.at(event));
    this.draw();
  }

  up() {
    if (!this.drag) return;
    const { start, button, box } = this.drag;
    this.drag = null;
    if (box && box[2] > box[0] && box[3] > box[1]) this.handlers.box(box.map(rounded));
    else this.handlers.point(...start.map(rounded), button === 2 ? 0 : this.handlers.label());
  }

  key(event) {
    if (!this.image || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { width, height } = this.image;
    if (moves[event.key]) {
      const far = Math.max(width, height) * STEP * (event.shiftKey ? 5 : 1);
      const [x, y] = this.cross || [width / 2, height / 2];
      const [dx, dy] = moves[event.key];
      this.cross = [Math.min(Math.max(x + dx * far, 0), width), Math.min(Math.max(y + dy * far, 0), height)];
    } else if (event.key === "Enter" || event.key.toLowerCase() === "x") {
      this.cross ||= [width / 2, height / 2];
      this.handlers.point(...this.cross.map(rounded), event.key === "Enter" ? this.handlers.label() : 0);
    } else if (event.key.toLowerCase() === "b") {
      this.cross ||= [width / 2, height / 2];
      const box = this.corner && ordered(this.corner, this.cross);
      this.corner = this.corner ? null : [...this.cross];
      if (box && box[2] > box[0] && box[3] > box[1]) this.handlers.box(box.map(rounded));
    } else if (event.key === "Escape" && this.corner) {
      this.corner = null;
    } else return;
    event.preventDefault();
    this.draw();
  }
}

// The picture with its masks; the active object's is drawn last.
export function paint(context, image, objects, width, height, active = null) {
  context.clearRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  for (const object of [...objects.filter((other) => other !== active), ...(active ? [active] : [])]) {
    if (object.bitmap) context.drawImage(object.bitmap, 0, 0, width, height);
  }
}

function ordered([x0, y0], [x1, y1]) {
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

function rounded(value) {
  return Math.round(value * 10) / 10;
}
