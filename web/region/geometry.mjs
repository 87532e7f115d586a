// Where shapes are, what lies under a point, and how shapes move. Fractions of the picture; times are shares of a video's length.

import { LIMITS } from "./document.mjs"

const SMALLEST = 0.002
const [ROOM_FOR_CORNERS, ROOM_FOR_ALL] = [24, 48] // CSS pixels
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"]

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high)

export function areaOf({ x, y, width, height }) {
  return { x, y, width, height }
}

/** The place of a box or ellipse at a time: linear between two keys, still before the first and after the last. */
export function areaAt(shape, time) {
  const keys = shape.keys ?? []
  if (!keys.length) return areaOf(shape)
  const next = keys.findIndex((key) => key.at > time)
  if (next === 0) return areaOf(keys[0])
  if (next < 0) return areaOf(keys[keys.length - 1])
  const [before, after] = [keys[next - 1], keys[next]]
  const share = (time - before.at) / (after.at - before.at)
  const blend = (name) => (1 - share) * before[name] + share * after[name]
  return { x: blend("x"), y: blend("y"), width: blend("width"), height: blend("height") }
}

/** The box around a shape at a time. aspect: the picture's width over its height. */
export function boundsAt(shape, time, aspect) {
  if (shape.kind !== "brush") return areaAt(shape, time)
  const [rx, ry] = radii(shape.radius, aspect)
  const xs = shape.points.map(([x]) => x)
  const ys = shape.points.map(([, y]) => y)
  const [left, top] = [Math.min(...xs) - rx, Math.min(...ys) - ry]
  return { x: left, y: top, width: Math.max(...xs) + rx - left, height: Math.max(...ys) + ry - top }
}

/** A share of the shorter side as fractions of width and height. */
export function radii(radius, aspect) {
  return [radius * Math.min(1, 1 / aspect), radius * Math.min(1, aspect)]
}

/** The shape with its place at a time set: with keys the key at that time, which is added if there is none. */
export function withArea(shape, time, area) {
  if (!shape.keys?.length) return { ...shape, ...area }
  return withKey(shape, time, area)
}

export function keyIndexAt(shape, time) {
  return (shape.keys ?? []).findIndex((key) => Math.abs(key.at - time) < 1e-4)
}

export function withKey(shape, time, area = areaAt(shape, time)) {
  const index = keyIndexAt(shape, time)
  const keys = [...(shape.keys ?? [])]
  if (index >= 0) keys[index] = { at: keys[index].at, ...area }
  else if (keys.length >= LIMITS.keys) return shape
  else keys.push({ at: time, ...area })
  return { ...shape, keys: keys.sort((one, other) => one.at - other.at) }
}

/** Without the key at a time; the last one to go leaves the shape where it was. */
export function withoutKey(shape, time) {
  const index = keyIndexAt(shape, time)
  if (index < 0) return shape
  const { keys, ...rest } = shape
  const left = keys.filter((_, number) => number !== index)
  return left.length ? { ...shape, keys: left } : { ...rest, ...areaOf(keys[index]) }
}

/** The shapes at `indices` moved by the same fractions, as far as all of them stay in the picture; the others as they are. */
export function movedTogether(shapes, indices, time, dx, dy, grid) {
  const extents = indices.map((index) => extentOf(shapes[index], time))
  const room = (start, end, by) => clamp(by, -Math.min(...extents.map((e) => e[start])), 1 - Math.max(...extents.map((e) => e[end])))
  const [right, down] = indices.length > 1 ? [room("left", "right", dx), room("top", "bottom", dy)] : [dx, dy]
  return shapes.map((shape, index) => (indices.includes(index) ? moved(shape, time, right, down, grid) : shape))
}

function extentOf(shape, time) {
  if (shape.kind !== "brush") {
    const { x, y, width, height } = areaAt(shape, time)
    return { left: x, top: y, right: x + width, bottom: y + height }
  }
  const [xs, ys] = [0, 1].map((axis) => shape.points.map((point) => point[axis]))
  return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys) }
}

/** Moved by fractions, never over the picture's edge. grid: see snapped. */
export function moved(shape, time, dx, dy, grid) {
  if (shape.kind === "brush") {
    const xs = shape.points.map(([x]) => x)
    const ys = shape.points.map(([, y]) => y)
    const right = clamp(dx, -Math.min(...xs), 1 - Math.max(...xs))
    const down = clamp(dy, -Math.min(...ys), 1 - Math.max(...ys))
    return { ...shape, points: shape.points.map(([x, y]) => [clamp(x + right, 0, 1), clamp(y + down, 0, 1)]) }
  }
  const area = areaAt(shape, time)
  const x = clamp(snapped(area.x + dx, grid?.x), 0, 1 - area.width)
  const y = clamp(snapped(area.y + dy, grid?.y), 0, 1 - area.height)
  return withArea(shape, time, { ...area, x, y })
}

/** One of eight handles of an area pulled by fractions. */
export function resized(area, handle, dx, dy, grid) {
  const result = { ...area }
  for (const [start, size, low, high, by, step] of [
    ["x", "width", "w", "e", dx, grid?.x],
    ["y", "height", "n", "s", dy, grid?.y]
  ]) {
    const smallest = step ? Math.min(step, 1) : SMALLEST
    const end = area[start] + area[size]
    if (handle.includes(low)) {
      result[start] = clamp(snapped(area[start] + by, step), 0, Math.max(end - smallest, 0))
      result[size] = end - result[start]
    } else if (handle.includes(high)) {
      const stop = clamp(snapped(end + by, step), Math.min(area[start] + smallest, 1), 1)
      result[size] = stop - area[start]
    }
  }
  return result
}

/** The corners of what is dragged out. square: as many pixels across as down; centred: `from` is the middle. aspect: as in boundsAt. */
export function dragged(from, to, { square, centred }, aspect) {
  let [dx, dy] = [to[0] - from[0], to[1] - from[1]]
  if (square) {
    const room = (at, by) => (centred ? Math.min(at, 1 - at) : by < 0 ? at : 1 - at)
    const side = Math.min(Math.max(Math.abs(dx) * aspect, Math.abs(dy)), room(from[0], dx) * aspect, room(from[1], dy))
    ;[dx, dy] = [((dx < 0 ? -1 : 1) * side) / aspect, (dy < 0 ? -1 : 1) * side]
  }
  return [centred ? [from[0] - dx, from[1] - dy] : from, [from[0] + dx, from[1] + dy]]
}

/** The area between two corners, at least a cell of the grid or a sliver large, or nothing for a mere click. */
export function areaBetween([x1, y1], [x2, y2], grid) {
  if (Math.abs(x1 - x2) < SMALLEST && Math.abs(y1 - y2) < SMALLEST) return null
  const [x, width] = stretch(x1, x2, grid?.x)
  const [y, height] = stretch(y1, y2, grid?.y)
  return { x, y, width, height }
}

function stretch(one, other, step) {
  const [low, high] = [Math.min(one, other), Math.max(one, other)].map((edge) => clamp(snapped(edge, step), 0, 1))
  const smallest = step ? Math.min(step, 1) : SMALLEST
  if (high - low >= smallest - 1e-9) return [low, high - low]
  const start = clamp(step ? Math.floor(Math.min(one, other) / step) * step : low, 0, 1 - smallest)
  return [start, smallest]
}

/** The nearest multiple of `step`, or the picture's far edge, if that is nearer; the value itself without a step. */
export function snapped(value, step) {
  if (!step) return value
  const line = Math.round(value / step) * step
  return Math.abs(1 - value) < Math.abs(line - value) ? 1 : line
}

/** Indices of the shapes under a point, the topmost first. */
export function shapesAt(shapes, time, [x, y], aspect) {
  return [...shapes.keys()].filter((index) => covers(shapes[index], time, x, y, aspect)).reverse()
}

function covers(shape, time, x, y, aspect) {
  if (shape.kind === "brush") {
    const scaled = shape.points.map(([px, py]) => [px * aspect, py])
    return distance(scaled, x * aspect, y) <= shape.radius * Math.min(aspect, 1)
  }
  const area = areaAt(shape, time)
  const [u, v] = [(x - area.x) / area.width, (y - area.y) / area.height]
  if (shape.kind === "ellipse") return (2 * u - 1) ** 2 + (2 * v - 1) ** 2 <= 1
  return u >= 0 && u <= 1 && v >= 0 && v <= 1
}

/** From a point to a line through points. */
export function distance(points, x, y) {
  let nearest = Math.hypot(x - points[0][0], y - points[0][1])
  for (let index = 1; index < points.length; index++) {
    const [[ax, ay], [bx, by]] = [points[index - 1], points[index]]
    const length = (bx - ax) ** 2 + (by - ay) ** 2
    const along = length ? clamp(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1) : 0
    nearest = Math.min(nearest, Math.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
  }
  return nearest
}

/** [name, x, y] of the handles of an area that is so many CSS pixels across and down: fewer on a small one, which they would cover. */
export function handlePoints({ x, y, width, height }, across, down) {
  const small = Math.min(across, down)
  return HANDLES.filter((name) => small >= ROOM_FOR_ALL || (small >= ROOM_FOR_CORNERS ? name.length === 2 : name === "se")).map((name) => [
    name,
    name.includes("w") ? x : name.includes("e") ? x + width : x + width / 2,
    name.includes("n") ? y : name.includes("s") ? y + height : y + height / 2
  ])
}

/** A stroke with so many points thinned out that another one fits. */
export function withPoint(points, point, least) {
  const last = points[points.length - 1]
  if (last && Math.hypot(point[0] - last[0], point[1] - last[1]) < least) return points
  const kept = points.length < LIMITS.points ? points : points.filter((_, index) => index % 2 === 0)
  return [...kept, point]
}
