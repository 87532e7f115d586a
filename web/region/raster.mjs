// Shapes become pixels and cells, as rope_core/region_raster.py and regions.py make them.

import { areaAt } from "./geometry.mjs"

const TOO_MANY_PIXELS = 16e6
const TOO_MANY_SPANS = 5e6 // rows crossed by all segments of all strokes: half a second
const SHORTEST_SEGMENT = 1e-6 // pixels; a shorter one has no direction that can be trusted and is a dot

export const timeOf = (frame, frames) => (frames > 1 ? frame / (frames - 1) : 0)

/**
 * How many cells of a picture, over all its frames, are sharp in themselves, how many of them lie in the band within the boundary and how many
 * others in the one outside of it, and how many there are; nothing where counting takes too long.
 * picture: {width, height, frames, cell} in pixels. Exact up to 16 million pixels, drawn at half the size or less beyond.
 * start: what is sharp before anything is drawn, as in maskAt. outer, inner: cells across of the bands.
 */
export function countCells(shapes, picture, { start = null, outer = 0, inner = 0 } = {}) {
  const moving = shapes.some((shape) => shape.keys?.length > 1)
  const drawn = moving ? picture.frames : 1
  const pixels = (scale) => (picture.width * picture.height * drawn) / scale ** 2
  const spans = (scale) => shapes.reduce((sum, shape) => sum + spansOf(shape, picture.width / scale, picture.height / scale), 0) * drawn
  let scale = 1
  while (pixels(scale) > TOO_MANY_PIXELS) scale *= 2
  while (spans(scale) > TOO_MANY_SPANS && scale < picture.cell) scale *= 2
  if (spans(scale) > TOO_MANY_SPANS) return null
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(Math.round(side / scale), 1))
  const rows = Math.ceil(picture.height / picture.cell)
  const columns = Math.ceil(picture.width / picture.cell)
  const counts = { inside: 0, outer: 0, inner: 0, cells: rows * columns * drawn }
  for (let frame = 0; frame < drawn; frame++) {
    const mask = maskAt(shapes, timeOf(frame, drawn), width, height, start)
    const cells = touchedCells(mask, width, height, picture, rows, columns)
    counts.inside += sum(cells)
    counts.outer += sum(widened(cells, rows, columns, outer)) - sum(cells)
    counts.inner += sum(widened(cells.map((cell) => 1 - cell), rows, columns, inner)) - (cells.length - sum(cells))
  }
  const copies = picture.frames / drawn
  return Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, count * copies]))
}

const sum = (cells) => cells.reduce((total, cell) => total + cell, 0)

/** Every cell within `by` rows and columns of one that is set. */
function widened(cells, rows, columns, by) {
  if (by <= 0) return cells
  const along = (from, count, step, next, lines) => {
    const made = new Uint8Array(from.length)
    for (let line = 0; line < lines; line++)
      for (let at = 0; at < count; at++)
        if (from[line * next + at * step])
          for (let near = Math.max(at - by, 0); near <= Math.min(at + by, count - 1); near++) made[line * next + near * step] = 1
    return made
  }
  return along(along(cells, columns, 1, columns, rows), rows, columns, 1, columns)
}

/** Rows that the segments of a stroke cross, each counted by itself. */
function spansOf(shape, width, height) {
  if (shape.kind !== "brush") return 0
  const thick = 2 * shape.radius * Math.min(width, height) + 1
  const far = (y, index) => Math.abs(y - shape.points[Math.max(index - 1, 0)][1]) * height
  return shape.points.reduce((sum, [, y], index) => sum + Math.min(far(y, index) + thick, height), 0)
}

/**
 * Uint8Array of height * width: 1 where the shapes, drawn and erased one after the other, leave a region.
 * start: {width, height, cells} of what there is before, in any size.
 */
export function maskAt(shapes, time, width, height, start = null) {
  const mask = new Uint8Array(width * height)
  if (start) spread(start, mask, width, height)
  for (const shape of shapes) {
    const value = shape.kind === "brush" && shape.erase ? 0 : 1
    let any = false
    eachSpan(shape, time, width, height, (row, enter, leave) => {
      const [first, stop] = [pixel(enter, width), pixel(leave, width)]
      if (stop <= first) return
      mask.fill(value, row * width + first, row * width + stop)
      any = true
    })
    if (!any) mask[onePixel(shape, time, width, height)] = value
  }
  return mask
}

function spread(start, mask, width, height) {
  const columns = Array.from({ length: width }, (_, x) => Math.floor(((x + 0.5) * start.width) / width))
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * start.height) / height) * start.width
    for (let x = 0; x < width; x++) mask[y * width + x] = start.cells[row + columns[x]]
  }
}

/** The first pixel with its centre at or after an edge. */
const pixel = (edge, size) => Math.min(Math.max(Math.ceil(edge - 0.5), 0), size)

function onePixel(shape, time, width, height) {
  const area = shape.kind === "brush" ? null : areaAt(shape, time)
  const [x, y] = area ? [area.x + area.width / 2, area.y + area.height / 2] : shape.points[0]
  const [column, row] = [Math.min(Math.floor(x * width), width - 1), Math.min(Math.floor(y * height), height - 1)]
  return row * width + column
}

function eachSpan(shape, time, width, height, paint) {
  if (shape.kind === "brush") return eachStrokeSpan(shape, width, height, paint)
  const area = areaAt(shape, time)
  const [left, right] = [area.x * width, (area.x + area.width) * width]
  const [top, bottom] = [pixel(area.y * height, height), pixel((area.y + area.height) * height, height)]
  for (let row = top; row < bottom; row++) {
    if (shape.kind === "box") paint(row, left, right)
    else {
      const away = ((row + 0.5) / height - (area.y + area.height / 2)) / (area.height / 2)
      const half = ((area.width * width) / 2) * Math.sqrt(Math.max(1 - away ** 2, 0))
      paint(row, (left + right) / 2 - half, (left + right) / 2 + half)
    }
  }
}

function eachStrokeSpan(shape, width, height, paint) {
  const radius = shape.radius * Math.min(width, height)
  const points = shape.points.map(([x, y]) => [x * width, y * height])
  const segments = points.length === 1 ? [[points[0], points[0]]] : points.slice(1).map((end, index) => [points[index], end])
  for (const [start, end] of segments) {
    const top = pixel(Math.min(start[1], end[1]) - radius, height)
    const bottom = pixel(Math.max(start[1], end[1]) + radius, height)
    for (let row = top; row < bottom; row++) paint(row, ...capsule(start, end, radius, row + 0.5))
  }
}

/** Where a row enters and leaves all points within `radius` of a line. */
function capsule(start, end, radius, y) {
  let [enter, leave] = [Infinity, -Infinity]
  for (const [x, centre] of [start, end]) {
    const left = radius ** 2 - (y - centre) ** 2
    if (left < 0) continue
    enter = Math.min(enter, x - Math.sqrt(left))
    leave = Math.max(leave, x + Math.sqrt(left))
  }
  const length = Math.hypot(end[0] - start[0], end[1] - start[1])
  if (length >= SHORTEST_SEGMENT) {
    const [across, down] = [(end[0] - start[0]) / length, (end[1] - start[1]) / length]
    const one = between(across, (y - start[1]) * down, 0, length)
    const other = between(-down, (y - start[1]) * across, -radius, radius)
    const [from, to] = [Math.max(one[0], other[0]), Math.min(one[1], other[1])]
    if (from <= to) [enter, leave] = [Math.min(enter, start[0] + from), Math.max(leave, start[0] + to)]
  }
  return [enter, leave]
}

/** The x with low <= slope * x + offset <= high. */
function between(slope, offset, low, high) {
  if (Math.abs(slope) < 1e-9) return low <= offset && offset <= high ? [-Infinity, Infinity] : [Infinity, -Infinity]
  const [one, other] = [(low - offset) / slope, (high - offset) / slope]
  return [Math.min(one, other), Math.max(one, other)]
}

/** Uint8Array of rows * columns: 1 where a cell holds a pixel of the mask. */
function touchedCells(mask, width, height, picture, rows, columns) {
  const ranges = (count, size, length) =>
    Array.from({ length: count }, (_, index) => {
      const first = Math.min(Math.floor(((index * picture.cell) / size) * length + 1e-9), length - 1)
      return [first, Math.max(Math.min(Math.ceil((((index + 1) * picture.cell) / size) * length - 1e-9), length), first + 1)]
    })
  const [down, across] = [ranges(rows, picture.height, height), ranges(columns, picture.width, width)]
  const cells = new Uint8Array(rows * columns)
  down.forEach(([top, bottom], row) => across.forEach(([left, right], column) => (cells[row * columns + column] = Number(anySet(mask, width, top, bottom, left, right)))))
  return cells
}

function anySet(mask, width, top, bottom, left, right) {
  for (let row = top; row < bottom; row++)
    for (let index = row * width + left; index < row * width + right; index++) if (mask[index]) return true
  return false
}
