// Paints the regions over the picture.

import { areaAt, boundsAt, handlePoints, keyIndexAt, radii } from "./geometry.mjs"

const REGION = "#ff9a3c"
const ERASER = "#e5484d"
const SELECTED = "#4aa3ff"
const HANDLE = 7 // CSS pixels
const FEWEST_PIXELS_PER_CELL = 5

/**
 * scene: {width, height} in CSS pixels, scale of the backing store, shapes, selected, time, picture, background, start, grid (drawn or not).
 */
export function paint(canvas, scene) {
  const context = canvas.getContext("2d")
  const [width, height] = [scene.width, scene.height].map((side) => Math.max(Math.round(side * scene.scale), 1))
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
  context.setTransform(1, 0, 0, 1, 0, 0)
  context.clearRect(0, 0, width, height)
  const style = getComputedStyle(canvas)
  context.fillStyle = style.getPropertyValue("--comfy-input-bg") || "#222"
  context.fillRect(0, 0, width, height)
  if (scene.background) context.drawImage(scene.background, 0, 0, width, height)
  if (scene.grid) cells(context, scene, width, height)
  context.globalAlpha = 0.45
  context.drawImage(layer(scene, width, height), 0, 0)
  context.globalAlpha = 1
  context.setTransform(width / scene.width, 0, 0, height / scene.height, 0, 0)
  scene.shapes.forEach((shape, index) => outline(context, scene, shape, index === scene.selected))
}

function cells(context, { picture, width: shownWidth }, width, height) {
  const [across, down] = [(picture.cell / picture.width) * width, (picture.cell / picture.height) * height]
  if ((across / width) * shownWidth < FEWEST_PIXELS_PER_CELL) return
  context.beginPath()
  for (let x = across; x < width; x += across) line(context, x, 0, x, height)
  for (let y = down; y < height; y += down) line(context, 0, y, width, y)
  context.strokeStyle = "rgba(128, 128, 128, 0.35)"
  context.lineWidth = 1
  context.stroke()
}

function line(context, x1, y1, x2, y2) {
  context.moveTo(x1, y1)
  context.lineTo(x2, y2)
}

/** All regions in one colour, so that overlaps do not add up and the eraser shows what it takes away. */
function layer(scene, width, height) {
  const made = document.createElement("canvas")
  Object.assign(made, { width, height })
  const context = made.getContext("2d")
  if (scene.start) {
    context.drawImage(scene.start, 0, 0, width, height)
    context.globalCompositeOperation = "multiply"
    context.fillStyle = REGION
    context.fillRect(0, 0, width, height)
    dropBlack(context, width, height)
  }
  context.fillStyle = context.strokeStyle = REGION
  for (const shape of scene.shapes) {
    context.globalCompositeOperation = shape.erase ? "destination-out" : "source-over"
    trace(context, shape, scene, width, height)
    if (shape.kind === "brush") context.stroke()
    else context.fill()
  }
  return made
}

function dropBlack(context, width, height) {
  const image = context.getImageData(0, 0, width, height)
  for (let index = 0; index < image.data.length; index += 4) image.data[index + 3] = image.data[index]
  context.putImageData(image, 0, 0)
}

function trace(context, shape, { time, picture }, width, height) {
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
  context.strokeStyle = selected ? SELECTED : shape.erase ? ERASER : REGION
  context.lineWidth = selected ? 2 : 1.25
  context.setLineDash(shape.kind === "brush" ? [4, 3] : [])
  if (shape.kind === "ellipse") {
    trace(context, shape, scene, width, height)
    context.stroke()
  }
  if (selected || shape.kind === "box") context.strokeRect(bounds.x * width, bounds.y * height, bounds.width * width, bounds.height * height)
  context.setLineDash([])
  if (shape.kind !== "brush") label(context, shape, bounds, scene)
  if (selected && shape.kind !== "brush")
    for (const [, x, y] of handlePoints(bounds)) {
      context.fillStyle = "#fff"
      context.fillRect(x * width - HANDLE / 2, y * height - HANDLE / 2, HANDLE, HANDLE)
      context.strokeRect(x * width - HANDLE / 2, y * height - HANDLE / 2, HANDLE, HANDLE)
    }
}

function label(context, shape, bounds, { width, height, time }) {
  const keys = shape.keys?.length ? ` ${keyIndexAt(shape, time) >= 0 ? "◆" : "◇"}${shape.keys.length}` : ""
  const text = `${shape.name}${keys}`
  if (!text) return
  context.font = "11px Inter, Arial, sans-serif"
  const [x, y] = [bounds.x * width + 4, Math.min(bounds.y * height + 13, height - 4)]
  context.lineWidth = 3
  context.strokeStyle = "rgba(0, 0, 0, 0.65)"
  context.strokeText(text, x, y)
  context.fillStyle = "#fff"
  context.fillText(text, x, y)
  context.lineWidth = 2
  context.strokeStyle = SELECTED
}
