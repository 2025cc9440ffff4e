// Files of the objects of a picture.

import { outlines } from "./masks.js";
import { paint } from "./picture.js";

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function stem(name) {
  return name.replace(/\.[^.]*$/, "") || "picture";
}

export function categories(objects) {
  return [...new Set(objects.map((object) => object.name.trim() || "object"))];
}

export function png(picture, objects) {
  const { image, name } = picture;
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  paint(canvas.getContext("2d"), image, objects, image.width, image.height);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(save(blob, `${stem(name)}-masks.png`)), "image/png"));
}

export function cocoOf({ image, name }, objects) {
  const names = categories(objects);
  return {
    images: [{ id: 1, file_name: name, width: image.width, height: image.height }],
    categories: names.map((category, i) => ({ id: i + 1, name: category })),
    annotations: objects.map((object, i) => ({
      id: i + 1,
      image_id: 1,
      category_id: names.indexOf(object.name.trim() || "object") + 1,
      segmentation: object.mask.segmentation,
      bbox: object.mask.bbox,
      area: object.mask.area,
      iscrowd: 0,
      score: object.mask.predicted_iou,
    })),
  };
}

export function coco(picture, objects) {
  save(new Blob([JSON.stringify(cocoOf(picture, objects), null, 1)], { type: "application/json" }), `${stem(picture.name)}.json`);
}

// One line per part: class and corners as shares of width and height.
export function yoloOf({ image }, objects) {
  const names = categories(objects);
  const lines = objects.flatMap((object) => outlines(object.mask.segmentation).map((corners) => {
    const values = corners.flatMap(([x, y]) => [(x / image.width).toFixed(6), (y / image.height).toFixed(6)]);
    return [names.indexOf(object.name.trim() || "object"), ...values].join(" ");
  }));
  return lines.length ? `${lines.join("\n")}\n` : "";
}

export function yolo(picture, objects) {
  save(new Blob([yoloOf(picture, objects)], { type: "text/plain" }), `${stem(picture.name)}.txt`);
}
