import assert from "node:assert/strict"
import { test } from "node:test"
import { LIMITS, parseRegions, serialiseRegions } from "../../web/region/document.mjs"
import * as geometry from "../../web/region/geometry.mjs"
import { maskAt } from "../../web/region/raster.mjs"

const { areaAt, areaBetween, boundsAt, distance, moved, resized, shapesAt, withArea, withKey, withPoint, withoutKey } = geometry
const box = { kind: "box", name: "a", x: 0.2, y: 0.2, width: 0.2, height: 0.4 }
const grid = { x: 1 / 32, y: 1 / 24 }

function near(found, wanted) {
  for (const [name, value] of Object.entries(wanted)) assert.ok(Math.abs(found[name] - value) < 1e-9, `${name}: ${found[name]}, not ${value}`)
}

/** Always the same numbers in [0, 1). */
function* chances(seed = 1) {
  for (;;) yield (seed = (seed * 48271) % 2147483647) / 2147483647
}

const whole = (value, step) => Math.abs(value / step - Math.round(value / step)) < 1e-6

test("a moving shape is between its keys, and rests before and after", () => {
  const keys = [{ at: 0.25, x: 0, y: 0.2, width: 0.2, height: 0.2 }, { at: 0.75, x: 0.4, y: 0.2, width: 0.4, height: 0.2 }]
  const shape = { ...box, keys }
  near(areaAt(shape, 0), { x: 0, width: 0.2 })
  near(areaAt(shape, 0.5), { x: 0.2, width: 0.3 })
  near(areaAt(shape, 0.625), { x: 0.3, width: 0.35 })
  near(areaAt(shape, 1), { x: 0.4, width: 0.4 })
})

test("a key is added where the shape is, moved where it exists, and the last one leaves the shape in its place", () => {
  const one = withKey(box, 0)
  const two = withArea(one, 1, { x: 0.6, y: 0.2, width: 0.2, height: 0.4 })
  assert.deepEqual(two.keys.map((key) => key.at), [0, 1])
  near(areaAt(two, 0.5), { x: 0.4 })
  assert.equal(withArea(two, 1, { ...geometry.areaOf(box), x: 0.3 }).keys.length, 2)
  const bare = withoutKey(withoutKey(two, 0), 1)
  assert.equal(bare.keys, undefined)
  near(bare, { x: 0.6 })
  assert.equal(withoutKey(two, 0.5), two)
})

test("there are never more keys than the document may hold", () => {
  let shape = box
  for (let index = 0; index < 2 * LIMITS.keys; index++) shape = withKey(shape, index / (2 * LIMITS.keys))
  assert.equal(shape.keys.length, LIMITS.keys)
})

test("moving stops at the edge and keeps the size", () => {
  near(moved(box, 0, -1, 1), { x: 0, y: 0.6, width: 0.2, height: 0.4 })
  const stroke = { kind: "brush", name: "", radius: 0.1, points: [[0.2, 0.5], [0.4, 0.9]], erase: false }
  assert.deepEqual(moved(stroke, 0, 1, -1).points.map(([x, y]) => [x.toFixed(3), y.toFixed(3)]), [["0.800", "0.000"], ["1.000", "0.400"]])
})

test("every handle moves its own edges, and none past the opposite one", () => {
  const area = geometry.areaOf(box)
  for (const handle of geometry.HANDLES) {
    const pulled = resized(area, handle, 0.05, 0.05)
    near({ left: pulled.x, right: pulled.x + pulled.width }, { left: handle.includes("w") ? 0.25 : 0.2, right: handle.includes("e") ? 0.45 : 0.4 })
    near({ top: pulled.y, bottom: pulled.y + pulled.height }, { top: handle.includes("n") ? 0.25 : 0.2, bottom: handle.includes("s") ? 0.65 : 0.6 })
    for (const by of [-3, 3]) {
      const far = resized(area, handle, by, by)
      assert.ok(far.width > 0 && far.height > 0 && far.x >= 0 && far.y >= 0 && far.x + far.width <= 1 && far.y + far.height <= 1)
    }
  }
})

test("whatever is drawn, moved and pulled, the document stays one that can be read, and lies on the grid where that is asked for", () => {
  const next = chances()
  const chance = () => next.next().value
  for (let round = 0; round < 500; round++) {
    const cells = round % 3 ? { x: 1 / Math.ceil(chance() * 40), y: 1 / Math.ceil(chance() * 40) } : null
    const area = areaBetween([chance(), chance()], [chance(), chance()], cells)
    if (!area) continue
    let shape = { kind: "ellipse", name: "", ...area }
    if (round % 5 === 0) shape = withKey(shape, chance())
    if (cells) for (const [start, step] of [[area.x, cells.x], [area.x + area.width, cells.x], [area.y, cells.y]]) assert.ok(whole(start, step))
    for (let edit = 0; edit < 4; edit++) {
      const [dx, dy] = [2 * chance() - 1, 2 * chance() - 1]
      if (edit % 2) shape = moved(shape, chance(), dx, dy, cells)
      else shape = withArea(shape, 0.5, resized(areaAt(shape, 0.5), geometry.HANDLES[Math.floor(8 * chance())], dx, dy, cells))
    }
    assert.equal(parseRegions(serialiseRegions([shape])).length, 1)
  }
})

test("a click draws nothing, a short drag one cell", () => {
  assert.equal(areaBetween([0.5, 0.5], [0.5005, 0.5], grid), null)
  const cell = areaBetween([0.51, 0.51], [0.515, 0.515], grid)
  near(cell, { width: grid.x, height: grid.y })
  assert.ok(cell.x <= 0.51 && cell.x + cell.width >= 0.515)
})

test("the shapes under the pointer are found from the top, an ellipse not in its corners", () => {
  const shapes = [box, { ...box, kind: "ellipse" }, { kind: "brush", name: "", radius: 0.05, points: [[0.8, 0.8]], erase: false }]
  assert.deepEqual(shapesAt(shapes, 0, [0.3, 0.4], 1), [1, 0])
  assert.deepEqual(shapesAt(shapes, 0, [0.21, 0.21], 1), [0])
  assert.deepEqual(shapesAt(shapes, 0, [0.84, 0.8], 1), [2])
  assert.deepEqual(shapesAt(shapes, 0, [0.84, 0.8], 4), [])
  assert.deepEqual(shapesAt(shapes, 0, [0.95, 0.1], 1), [])
})

test("the bounds of a stroke are a circle's on a picture of any aspect", () => {
  const dot = { kind: "brush", radius: 0.1, points: [[0.5, 0.5]] }
  near(boundsAt(dot, 0, 2), { x: 0.45, y: 0.4, width: 0.1, height: 0.2 })
  near(boundsAt(dot, 0, 0.5), { x: 0.4, y: 0.45, width: 0.2, height: 0.1 })
})

test("a stroke thins out instead of growing beyond what the document may hold", () => {
  let points = []
  for (let index = 0; index <= 5000; index++) points = withPoint(points, [index / 5000, 0.5], 0)
  assert.ok(points.length <= LIMITS.points && points.length > LIMITS.points / 4)
  assert.deepEqual(points[0], [0, 0.5])
  assert.deepEqual(points[points.length - 1], [1, 0.5])
  assert.equal(withPoint(points, [0.9999, 0.5], 0.01), points)
})

test("a stroke covers the pixels within its radius", () => {
  const next = chances(7)
  const chance = () => next.next().value
  for (let round = 0; round < 60; round++) {
    const [width, height] = [5 + Math.floor(40 * chance()), 5 + Math.floor(40 * chance())]
    const points = Array.from({ length: 1 + (round % 4) }, () => [chance(), round % 2 ? chance() : 0.5])
    const radius = 0.1 + 0.3 * chance()
    const mask = maskAt([{ kind: "brush", name: "", radius, points, erase: false }], 0, width, height)
    const scaled = points.map(([x, y]) => [x * width, y * height])
    mask.forEach((value, index) => {
      const away = distance(scaled, (index % width) + 0.5, Math.floor(index / width) + 0.5) - radius * Math.min(width, height)
      if (Math.abs(away) > 1e-6) assert.equal(value, away <= 0 ? 1 : 0)
    })
  }
})

test("with snapping a drag over everything reaches the edge of a picture of any size", () => {
  for (const size of [576, 584, 1000, 1024, 1032]) {
    const cells = { x: 32 / size, y: 32 / size }
    near(areaBetween([0, 0], [1, 1], cells), { x: 0, y: 0, width: 1, height: 1 })
    near(resized({ x: 0, y: 0, width: 0.5, height: 0.5 }, "se", 0.5, 0.5, cells), { width: 1, height: 1 })
  }
})

test("with Shift as many pixels across as down, with Alt from the centre, both inside the picture", () => {
  const plain = { square: false, centred: false }
  assert.deepEqual(geometry.dragged([0.5, 0.5], [0.75, 0.625], plain, 2), [[0.5, 0.5], [0.75, 0.625]])
  assert.deepEqual(geometry.dragged([0.5, 0.5], [0.75, 0.625], { ...plain, centred: true }, 2), [[0.25, 0.375], [0.75, 0.625]])
  assert.deepEqual(geometry.dragged([0.5, 0.5], [0.625, 0.375], { ...plain, square: true }, 2), [[0.5, 0.5], [0.625, 0.25]])
  assert.deepEqual(geometry.dragged([0.5, 0.75], [0.9, 0.76], { square: true, centred: true }, 1), [[0.25, 0.5], [0.75, 1]])
  assert.deepEqual(geometry.dragged([0.5, 0.5], [0.25, 0.5], { ...plain, square: true }, 1), [[0.5, 0.5], [0.25, 0.75]])
})

test("several shapes move as one, as far as the first of them meets the edge", () => {
  const stroke = { kind: "brush", name: "", radius: 0.05, points: [[0.5, 0.5], [0.75, 0.5]], erase: false }
  const found = geometry.movedTogether([box, stroke, box], [0, 1], 0, 0.5, 0.125)
  near(found[0], { x: 0.45, y: 0.325 })
  assert.deepEqual(found[1].points, [[0.75, 0.625], [1, 0.625]])
  assert.equal(found[2], box)
})

test("a small area has fewer handles", () => {
  const count = (across, down) => geometry.handlePoints(box, across, down).map(([name]) => name)
  assert.equal(count(100, 60).length, 8)
  assert.deepEqual(count(100, 30), ["nw", "ne", "se", "sw"])
  assert.deepEqual(count(12, 100), ["se"])
})
