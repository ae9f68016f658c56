// Three planes of a case. Reads the strips of `slice_viewer.py` out of the page; needs no network, no storage and no other page.
"use strict";
const ERRORS = { right: [51, 191, 77], wrong: [230, 26, 26], missed: [26, 77, 242] };
const OPACITY = 0.55;

function voxelsOf(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return Uint8Array.from({ length: rgba.length / 4 }, (_, i) => rgba[4 * i]);
}

function errorColor(truth, prediction) {
  if (truth && truth === prediction) return ERRORS.right;
  if (prediction) return ERRORS.wrong;
  return truth ? ERRORS.missed : null;
}

function numbers(text) {
  return text.split(" ").map(Number);
}

async function start(viewer) {
  const shape = numbers(viewer.dataset.shape), spacing = numbers(viewer.dataset.spacing), place = numbers(viewer.dataset.start);
  const palette = viewer.dataset.colors.split(" ").map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const volumes = {};
  for (const picture of viewer.querySelectorAll("img")) {
    await picture.decode();
    volumes[picture.dataset.name] = voxelsOf(picture);
  }
  const [, ySize, xSize] = shape;
  const canvases = [...viewer.querySelectorAll("canvas")], sliders = [...viewer.querySelectorAll("input")];
  const shown = viewer.querySelector("select");

  function colorAt(index) {
    const [what, model] = shown.value.split("|");
    if (what === "errors") return errorColor(volumes.truth[index], volumes[model][index]);
    const label = what === "labels" ? volumes[model][index] : 0;
    return label ? palette[(label - 1) % palette.length] : null;
  }

  function draw(plane) {
    const [rows, columns] = [0, 1, 2].filter((axis) => axis !== plane);
    const canvas = canvases[plane];
    const height = canvas.height = shape[rows], width = canvas.width = shape[columns];
    canvas.style.aspectRatio = `${width * spacing[columns]} / ${height * spacing[rows]}`;
    const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
    const at = [...place];
    for (let row = 0; row < height; row++) {
      at[rows] = plane ? height - 1 - row : row;
      for (let column = 0; column < width; column++) {
        at[columns] = column;
        const index = (at[0] * ySize + at[1]) * xSize + at[2], grey = volumes.image[index], color = colorAt(index);
        const pixel = 4 * (row * width + column);
        for (let i = 0; i < 3; i++) pixels.data[pixel + i] = color ? (1 - OPACITY) * grey + OPACITY * color[i] : grey;
        pixels.data[pixel + 3] = 255;
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  function drawAll() {
    canvases.forEach((_, plane) => draw(plane));
    sliders.forEach((slider, plane) => { slider.value = place[plane]; });
  }

  canvases.forEach((canvas, plane) => canvas.addEventListener("click", (event) => {
    const [rows, columns] = [0, 1, 2].filter((axis) => axis !== plane), box = canvas.getBoundingClientRect();
    const row = Math.min(shape[rows] - 1, Math.floor((event.clientY - box.top) / box.height * shape[rows]));
    place[rows] = plane ? shape[rows] - 1 - row : row;
    place[columns] = Math.min(shape[columns] - 1, Math.floor((event.clientX - box.left) / box.width * shape[columns]));
    drawAll();
  }));
  sliders.forEach((slider, plane) => slider.addEventListener("input", () => { place[plane] = Number(slider.value); draw(plane); }));
  shown.addEventListener("change", drawAll);
  drawAll();
  viewer.dataset.ready = "yes";
}

document.querySelectorAll("figure.viewer").forEach(start);
