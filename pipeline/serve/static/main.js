// The page: its parts, and what happens between them.

import * as api from "./api.js";
import * as download from "./download.js";
import { Objects, promptOf } from "./objects.js";
import { Picture } from "./picture.js";

const element = (id) => document.getElementById(id);
let current = null; // {name, image, blob, imageId}
let opening = null, asking = null, running = null; // AbortControllers
const objects = new Objects(() => show());
const picture = new Picture(element("canvas"), {
  point: (x, y, label) => prompt((object) => ({ points: [...object.points, { x, y, label }] })),
  box: (box) => {
    if (objects.active?.points.length === 0 && objects.active.box) objects.select(null); // another box, another object
    prompt(() => ({ box }));
  },
  label: () => Number(document.querySelector("input[name=label]:checked").value),
});

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

function fail(error) {
  if (error.name !== "AbortError") say(error.message, true);
}

// --- picture ---

async function open(blob, name) {
  stop();
  opening = new AbortController();
  const { signal } = opening;
  element("start").classList.remove("over");
  say("Opening the picture.");
  let image;
  try {
    image = await createImageBitmap(blob);
  } catch {
    say("The file is not a picture that this browser shows.", true);
    return;
  }
  if (signal.aborted) return;
  current = { name, image, blob, imageId: null };
  for (const id of ["view", "tools", "side"]) element(id).hidden = false;
  element("start").hidden = true;
  objects.reset();
  picture.show(image);
  element("canvas").focus({ preventScroll: true });
  try {
    await encode(signal);
    say("Ready.");
    ask();
  } catch (error) {
    fail(error);
  }
}

async function encode(signal) {
  const of = current;
  working(true);
  try {
    const start = performance.now();
    say("Encoding the picture.");
    const answer = await api.embed(of.blob, signal);
    const [height, width] = answer.size;
    if (height !== of.image.height || width !== of.image.width) throw new Error("Server and browser turn this picture differently: save it upright.");
    of.imageId = answer.image_id;
    latency({ "picture": performance.now() - start });
  } finally {
    working(false);
  }
}

function close() {
  stop();
  current = null;
  picture.image = null;
  for (const id of ["view", "tools", "side"]) element(id).hidden = true;
  element("start").hidden = false;
  say("");
  element("file").focus();
}

function stop() {
  for (const controller of [opening, asking, running]) controller?.abort();
  opening = asking = running = null;
}

// --- prompts ---

function prompt(change) {
  if (!current) return;
  objects.prompt(change);
  ask();
}

// Ask for the masks of objects whose prompts are newer than their mask, one at a time.
async function ask() {
  if (asking || !current?.imageId) return;
  const object = objects.list.find((other) => other.stale);
  if (!object) return;
  const controller = (asking = new AbortController());
  working(true);
  try {
    const { mask, milliseconds } = await again(() => api.predict(current.imageId, promptOf(object), controller.signal), controller.signal);
    objects.answer(object, mask);
    latency({ "prompt": milliseconds.decode, "mask": milliseconds.masks });
    say(mask.area ? `${object.name}: predicted IoU ${mask.predicted_iou.toFixed(2)}, ${mask.area.toLocaleString("en")} pixels.` : `${object.name}: the mask is empty.`);
  } catch (error) {
    object.stale = false;
    fail(error);
  }
  if (asking === controller) asking = null;
  working(Boolean(running));
  ask();
}

// Send the picture again if the server dropped it.
async function again(request, signal) {
  try {
    return await request();
  } catch (error) {
    if (error.status !== 404) throw error;
    await encode(signal);
    return request();
  }
}

async function everything() {
  if (!current?.imageId) return;
  if (running) {
    running.abort();
    return;
  }
  const controller = (running = new AbortController());
  const settings = {
    points_per_side: Number(element("grid").value),
    pred_iou_thresh: Number(element("iou").value),
    stability_score_thresh: Number(element("stability").value),
  };
  element("everything").textContent = "Stop";
  say("Everything: asking the model.");
  working(true);
  try {
    const masks = [];
    for await (const line of api.everything(current.imageId, settings, controller.signal)) {
      if (line.type === "progress") say(`Everything: ${line.prompts} points done.`);
      if (line.type === "mask") masks.push(line.mask);
      if (line.type === "error") throw new Error(line.detail);
    }
    if (masks.length) objects.addMasks(masks);
    say(masks.length ? `Everything: ${masks.length} masks.` : "Everything: no mask reaches the thresholds; lower them in the settings.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    fail(error);
  }
  if (running === controller) running = null;
  element("everything").textContent = "Everything";
  working(Boolean(asking));
}

// --- what is shown ---

function working(busy) {
  element("working").hidden = !busy;
}

const times = {};
function latency(milliseconds) {
  for (const [name, value] of Object.entries(milliseconds)) if (value !== undefined) times[name] = value;
  element("latency").textContent = Object.entries(times).map(([name, value]) => `${name} ${value < 10 ? value.toFixed(1) : Math.round(value)} ms`).join(" · ");
}

function show() {
  if (!current) return;
  picture.update(objects.list, objects.active);
  element("undo").disabled = !objects.past.length;
  element("redo").disabled = !objects.future.length;
  const masks = objects.list.filter((object) => object.mask?.area);
  for (const id of ["png", "coco", "yolo"]) element(id).disabled = !masks.length;
  element("empty").hidden = objects.list.length > 0;
  list();
}

function list() {
  const focused = document.activeElement?.closest?.("#objects li")?.dataset.id;
  const kind = document.activeElement?.className;
  element("objects").replaceChildren(...objects.list.map(row));
  if (focused !== undefined && kind) element("objects").querySelector(`li[data-id="${focused}"] [class="${kind}"]`)?.focus();
}

function row(object) {
  const item = document.createElement("li");
  const active = object.id === objects.present.active;
  item.dataset.id = object.id;
  item.classList.toggle("active", active);
  const swatch = button("swatch", `Edit ${object.name}`, () => objects.select(active ? null : object.id));
  swatch.setAttribute("aria-pressed", active);
  const colour = document.createElement("i");
  colour.style.setProperty("--colour", `rgb(${object.colour.join(" ")})`);
  swatch.append(colour);
  const name = Object.assign(document.createElement("input"), { className: "name", value: object.name, maxLength: 60 });
  name.setAttribute("aria-label", `Name of ${object.name}`);
  name.addEventListener("input", () => objects.rename(object.id, name.value));
  const score = Object.assign(document.createElement("span"), { className: "score", textContent: object.mask ? object.mask.predicted_iou.toFixed(2) : "…" });
  score.title = "Predicted IoU";
  const remove = button("remove", `Remove ${object.name}`, () => objects.remove(object.id));
  remove.textContent = "×";
  item.append(swatch, name, score, remove);
  return item;
}

function button(className, label, action) {
  const made = Object.assign(document.createElement("button"), { className, type: "button", title: label });
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

// --- controls ---

const on = (id, action) => element(id).addEventListener("click", action);
on("undo", () => { objects.undo(); ask(); });
on("redo", () => { objects.redo(); ask(); });
on("everything", everything);
on("close", close);
on("add", () => { objects.select(null); say("The next click or box begins a new object."); element("canvas").focus(); });
for (const [id, write] of [["png", download.png], ["coco", download.coco], ["yolo", download.yolo]]) {
  on(id, () => write(current, objects.list.filter((object) => object.mask?.area)));
}
for (const id of ["iou", "stability"]) {
  element(id).addEventListener("input", () => { element(`${id}-shown`).textContent = Number(element(id).value).toFixed(2); });
}
element("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file, file.name);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) open(file, file.name || "pasted.png");
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input:not([type=radio]):not([type=range]), select");
  if (typing || !current || element("key-dialog").open) return;
  const letter = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && (letter === "z" || letter === "y")) {
    event.preventDefault();
    element(letter === "y" || event.shiftKey ? "redo" : "undo").click();
  } else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (letter === "n") element("add").click();
  else if (letter === "e") everything();
  else if (event.key === "Delete" && objects.active) objects.remove(objects.active.id);
  else if (event.key === "Escape" && running) running.abort();
});

async function begin() {
  const { name, precision, version } = await api.model();
  element("model").textContent = [name, precision, version && `version ${version}`].filter(Boolean).join(" · ");
  for (const sample of await api.samples()) {
    const item = document.createElement("li");
    const choose = button("sample", sample.title, async () => {
      try {
        open(await (await fetch(sample.url)).blob(), sample.name);
      } catch (error) {
        fail(error);
      }
    });
    const image = Object.assign(document.createElement("img"), { src: sample.url, alt: "" });
    const credit = Object.assign(document.createElement("span"), { textContent: sample.credit || sample.title });
    choose.append(image, credit);
    item.append(choose);
    element("samples").append(item);
  }
}

begin().catch(fail);
