// Paints the picture: sharp in the regions; outside of them coarse, one colour for each coarse token, and dimmed.

import { areaAt, boundsAt, handlePoints, keyIndexAt, radii } from "./geometry.mjs"

const REGION = "#ffffff"
const ERASER = "#e5484d"
const SELECTED = "#4aa3ff"
const [PAPER, DIM] = ["#8b95a3", "rgba(0, 0, 0, 0.45)"] // a region without a picture, and what lies over the rest
const HANDLE = 7 // CSS pixels
const FEWEST_PIXELS_PER_CELL = 5
const FONT = "Inter, Arial, sans-serif"

/**
 * scene: {width, height} of the picture in CSS pixels, {left, top} of the part of it that the canvas shows, {width, height} of that in `seen`,
 * scale of the backing store, shapes, selection, time, picture, background, start, grid (drawn or not), ring and radius of a brush, note.
 */
export function paint(canvas, scene) {
  const context = canvas.getContext("2d")
  fit(canvas, scene)
  onPicture(context, scene)
  const ground = getComputedStyle(canvas).getPropertyValue("--comfy-input-bg") || "#222"
  const any = scene.start || scene.shapes.some((shape) => !shape.erase)
  drawGround(context, scene, any ? PAPER : ground)
  if (any) outside(context, scene, ground)
  onPicture(context, scene)
  if (scene.grid) cells(context, scene)
  scene.shapes.forEach((shape, index) => outline(context, scene, shape, scene.selection.includes(index)))
  if (scene.ring) brushRing(context, scene)
  if (scene.note) note(context, scene)
}

function fit(canvas, { seen, scale }) {
  const [width, height] = [seen.width, seen.height].map((side) => Math.max(Math.round(side * scale), 1))
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
}

/** From here on lengths are CSS pixels of the whole picture. */
function onPicture(context, { seen, left, top }) {
  const [x, y] = [context.canvas.width / seen.width, context.canvas.height / seen.height]
  context.setTransform(x, 0, 0, y, -left * x, -top * y)
}

function drawGround(context, { background, width, height }, colour) {
  context.fillStyle = colour
  context.fillRect(0, 0, width, height)
  if (background) context.drawImage(background, 0, 0, width, height)
}

function another(context, scene) {
  const made = document.createElement("canvas")
  Object.assign(made, { width: context.canvas.width, height: context.canvas.height })
  const found = made.getContext("2d")
  onPicture(found, scene)
  return found
}

/** What is not sharp: its own layer, with the regions cut out of it. */
function outside(context, scene, ground) {
  const { width, height, background } = scene
  const layer = another(context, scene)
  layer.fillStyle = ground
  layer.fillRect(0, 0, width, height)
  if (background) {
    layer.imageSmoothingEnabled = false
    layer.drawImage(coarse(scene), 0, 0, width, height)
    layer.fillStyle = DIM
    layer.fillRect(0, 0, width, height)
  }
  layer.globalCompositeOperation = "destination-out"
  layer.setTransform(1, 0, 0, 1, 0, 0)
  layer.drawImage(inside(context, scene).canvas, 0, 0)
  context.setTransform(1, 0, 0, 1, 0, 0)
  context.drawImage(layer.canvas, 0, 0)
}

/** One pixel for each coarse token. */
function coarse({ background, picture }) {
  const made = document.createElement("canvas")
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(Math.ceil(side / picture.cell), 1))
  Object.assign(made, { width, height })
  const context = made.getContext("2d")
  context.imageSmoothingQuality = "high"
  context.drawImage(background, 0, 0, width, height)
  return made
}

/** All regions together, so that overlaps do not add up and the eraser shows what it takes away. */
function inside(context, scene) {
  const layer = another(context, scene)
  if (scene.start) {
    layer.drawImage(scene.start, 0, 0, scene.width, scene.height)
    dropBlack(layer)
  }
  for (const shape of scene.shapes) {
    layer.globalCompositeOperation = shape.erase ? "destination-out" : "source-over"
    trace(layer, shape, scene)
    if (shape.kind === "brush") layer.stroke()
    else layer.fill()
  }
  return layer
}

function dropBlack(context) {
  const image = context.getImageData(0, 0, context.canvas.width, context.canvas.height)
  for (let index = 0; index < image.data.length; index += 4) image.data[index + 3] = image.data[index]
  context.putImageData(image, 0, 0)
}

function cells(context, { picture, width, height }) {
  const [across, down] = [(picture.cell / picture.width) * width, (picture.cell / picture.height) * height]
  if (across < FEWEST_PIXELS_PER_CELL) return
  context.beginPath()
  for (let x = across; x < width; x += across) line(context, x, 0, x, height)
  for (let y = down; y < height; y += down) line(context, 0, y, width, y)
  context.strokeStyle = "rgba(128, 128, 128, 0.3)"
  context.lineWidth = 1
  context.stroke()
}

function line(context, x1, y1, x2, y2) {
  context.moveTo(x1, y1)
  context.lineTo(x2, y2)
}

function trace(context, shape, { time, picture, width, height }) {
  context.beginPath()
  if (shape.kind === "brush") {
    const [rx] = radii(shape.radius, picture.width / picture.height)
    Object.assign(context, { lineWidth: 2 * rx * width, lineCap: "round", lineJoin: "round" })
    const [x, y] = shape.points[0]
    context.moveTo(x * width, y * height)
    for (const [px, py] of shape.points.length > 1 ? shape.points.slice(1) : shape.points) context.lineTo(px * width, py * height)
    return
  }
  const area = areaAt(shape, time)
  const [x, y, across, down] = [area.x * width, area.y * height, area.width * width, area.height * height]
  if (shape.kind === "box") context.rect(x, y, across, down)
  else context.ellipse(x + across / 2, y + down / 2, across / 2, down / 2, 0, 0, 2 * Math.PI)
}

function outline(context, scene, shape, selected) {
  const { width, height, time, picture } = scene
  const bounds = boundsAt(shape, time, picture.width / picture.height)
  const [x, y, across, down] = [bounds.x * width, bounds.y * height, bounds.width * width, bounds.height * height]
  context.beginPath()
  if (shape.kind === "ellipse") trace(context, shape, scene)
  if (selected || shape.kind === "box") context.rect(x, y, across, down)
  const dashes = shape.kind === "brush" ? [4, 3] : []
  stroke(context, selected ? SELECTED : shape.erase ? ERASER : REGION, selected ? 2 : 1.25, dashes)
  if (shape.kind !== "brush") label(context, shape, bounds, scene)
  if (!selected || scene.selection.length > 1 || shape.kind === "brush") return
  for (const [, hx, hy] of handlePoints(bounds, across, down)) {
    context.fillStyle = "#fff"
    context.beginPath()
    context.rect(hx * width - HANDLE / 2, hy * height - HANDLE / 2, HANDLE, HANDLE)
    context.fill()
    stroke(context, SELECTED, 2)
  }
}

/** A line that shows on light and on dark. */
function stroke(context, colour, lineWidth, dashes = []) {
  context.setLineDash([])
  Object.assign(context, { strokeStyle: "rgba(0, 0, 0, 0.6)", lineWidth: lineWidth + 1.5 })
  if (!dashes.length) context.stroke()
  context.setLineDash(dashes)
  Object.assign(context, { strokeStyle: colour, lineWidth })
  context.stroke()
  context.setLineDash([])
}

function label(context, shape, bounds, { width, height, time }) {
  const keys = shape.keys?.length ? ` ${keyIndexAt(shape, time) >= 0 ? "◆" : "◇"}${shape.keys.length}` : ""
  const text = `${shape.name}${keys}`
  if (text) written(context, text, bounds.x * width + 5, Math.min(bounds.y * height + 14, height - 4), 11)
}

function written(context, text, x, y, size) {
  context.font = `${size}px ${FONT}`
  Object.assign(context, { lineWidth: 3, strokeStyle: "rgba(0, 0, 0, 0.7)", fillStyle: "#fff" })
  context.strokeText(text, x, y)
  context.fillText(text, x, y)
}

function brushRing(context, { ring, radius, picture, width, height }) {
  const [rx, ry] = radii(radius, picture.width / picture.height)
  context.beginPath()
  context.ellipse(ring[0] * width, ring[1] * height, rx * width, ry * height, 0, 0, 2 * Math.PI)
  stroke(context, "#fff", 1)
}

function note(context, { note: text, left, top, seen }) {
  context.font = `12px ${FONT}`
  const across = context.measureText(text).width
  const [x, y] = [left + Math.max((seen.width - across) / 2, 4), top + seen.height - 10]
  context.fillStyle = "rgba(0, 0, 0, 0.55)"
  context.fillRect(x - 6, y - 14, across + 12, 20)
  written(context, text, x, y, 12)
}
