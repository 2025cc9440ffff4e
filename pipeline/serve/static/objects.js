// The objects of a picture, and the history of what was done. An object is never changed by an action, but replaced.

import { bitmap } from "./masks.js";

// Colours far apart in hue, bright enough on any picture.
function colourOf(number) {
  const hue = (215 + number * 137.5) % 360;
  const channel = (shift) => {
    const k = (shift + hue / 30) % 12;
    return Math.round(255 * (0.58 - 0.37 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export class Objects {
  constructor(changed) {
    this.changed = changed;
    this.reset();
  }

  reset() {
    this.number = 0;
    this.present = { objects: [], active: null };
    this.past = [];
    this.future = [];
    this.changed();
  }

  get list() { return this.present.objects; }
  get active() { return this.list.find((object) => object.id === this.present.active) || null; }

  commit(objects, active) {
    this.past.push(this.present);
    this.future = [];
    this.present = { objects, active };
    this.changed();
  }

  undo() { this.move(this.past, this.future); }
  redo() { this.move(this.future, this.past); }

  move(from, to) {
    if (!from.length) return;
    to.push(this.present);
    this.present = from.pop();
    this.changed();
  }

  create(fields = {}) {
    const number = this.number++;
    return { id: number, name: `object ${number + 1}`, colour: colourOf(number), points: [], box: null, mask: null, stale: false, ...fields };
  }

  // Add a point or a box to the active object, or to a new one.
  prompt(change) {
    const before = this.active?.prompted === false ? null : this.active;
    const object = before || this.create();
    const after = { ...object, ...change(object), stale: true };
    const objects = before ? this.list.map((other) => (other === before ? after : other)) : [...this.list, after];
    this.commit(objects, after.id);
  }

  // The answer for one version of an object; later versions do not change.
  answer(object, mask) {
    object.mask = mask;
    object.bitmap = mask.area ? bitmap(mask.segmentation, object.colour) : null;
    object.stale = false;
    this.changed();
  }

  addMasks(masks) {
    const created = masks.map((mask) => {
      const object = this.create({ prompted: false, mask });
      object.bitmap = bitmap(mask.segmentation, object.colour);
      return object;
    });
    this.commit([...this.list, ...created], null);
  }

  select(id) {
    this.present = { ...this.present, active: id };
    this.changed();
  }

  remove(id) { this.commit(this.list.filter((object) => object.id !== id), this.present.active === id ? null : this.present.active); }

  rename(id, name) {
    for (const object of this.list) if (object.id === id) object.name = name;
  }
}

// What the server needs to know of an object.
export function promptOf(object) {
  const prompt = {};
  if (object.points.length) {
    prompt.point_coords = object.points.map(({ x, y }) => [x, y]);
    prompt.point_labels = object.points.map(({ label }) => label);
  }
  if (object.box) prompt.box = object.box;
  const earlier = object.mask?.low_res_mask;
  if (earlier && object.points.length) prompt.mask_input = earlier;
  return prompt;
}
