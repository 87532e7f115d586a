// The region editor's pure code: documents, geometry, undo, read-outs. Run by node's own runner.

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"

import { parseRegions, RegionError, serialiseRegions } from "../../web/region/document.mjs"
import { areaAt, areaBetween, moved, resized, shapeAt, withKey, withoutKey } from "../../web/region/geometry.mjs"
import { History } from "../../web/region/history.mjs"
import { countCells, maskAt } from "../../web/region/raster.mjs"
import { predict } from "../../web/region/readout.mjs"

const { valid, invalid } = JSON.parse(readFileSync(new URL("documents.json", import.meta.url), "utf8"))
const box = { kind: "box", name: "a", x: 0.25, y: 0.25, width: 0.5, height: 0.25 }
const near = (found, wanted, by = 1e-9) => assert.ok(Math.abs(found - wanted) <= by, `${found} is not ${wanted}`)

for (const [name, text] of Object.entries(valid))
  test(`reads: ${name}`, () => {
    const written = serialiseRegions(parseRegions(text))
    assert.equal(parseRegions(written).length, parseRegions(text).length)
    assert.equal(serialiseRegions(parseRegions(written)), serialiseRegions(parseRegions(serialiseRegions(parseRegions(written)))))
  })

for (const [name, text] of Object.entries(invalid))
  test(`refuses: ${name}`, () => assert.throws(() => parseRegions(text), RegionError))

test("a shape with keys moves linearly between them and rests outside", () => {
  const keys = [0.2, 0.6].map((at, i) => ({ at, x: 0.1 + 0.4 * i, y: 0.25, width: 0.5, height: 0.25 }))
  const shape = { ...box, keys }
  for (const [time, x] of [[0, 0.1], [0.2, 0.1], [0.4, 0.3], [0.6, 0.5], [1, 0.5]]) near(areaAt(shape, time).x, x)
})

test("keys are added where the shape is, and taken away", () => {
  const keyed = withKey(withKey(box, 0), 1)
  assert.deepEqual(keyed.keys.map((key) => key.at), [0, 1])
  near(areaAt(keyed, 0.5).x, 0.25)
  assert.equal(withoutKey(keyed, 1).keys.length, 1)
})

test("moving keeps a shape inside the picture and its size", () => {
  const right = moved(box, 0, 0.9, -0.9, null)
  near(right.x + right.width, 1)
  near(right.y, 0)
  near(right.width, box.width)
})

test("resizing by a corner holds the opposite one", () => {
  const larger = resized(box, "se", 0.1, 0.2, null)
  near(larger.x, 0.25)
  near(larger.width, 0.6)
  near(larger.height, 0.45)
  const smaller = resized(box, "nw", 0.1, 0.1, null)
  near(smaller.x + smaller.width, 0.75)
})

test("a box between two points, whichever comes first", () => {
  assert.deepEqual(areaBetween([0.75, 0.5], [0.25, 0.25], null), areaBetween([0.25, 0.25], [0.75, 0.5], null))
})

test("the topmost shape under the pointer is found", () => {
  const shapes = [box, { ...box, kind: "ellipse" }]
  assert.equal(shapeAt(shapes, 0, [0.5, 0.375], 1), 1)
  assert.equal(shapeAt(shapes, 0, [0.26, 0.26], 1), 0)
  assert.ok(!(shapeAt(shapes, 0, [0.9, 0.9], 1) >= 0))
})

test("undo and redo walk the same way back", () => {
  const history = new History("a")
  history.push("b")
  history.push("c")
  assert.deepEqual([history.undo(), history.undo()], ["b", "a"])
  assert.equal(history.redo(), "b")
  history.push("d")
  assert.ok(!history.canRedo)
})

test("masks of boxes and ellipses have the areas of the formulas", () => {
  const area = (shape) => maskAt([shape], 0, 400, 400).reduce((sum, pixel) => sum + (pixel ? 1 : 0), 0) / 400 ** 2
  near(area(box), 0.125)
  near(area({ ...box, kind: "ellipse" }), (Math.PI / 4) * 0.125, 1e-3)
  near(area({ kind: "brush", name: "", radius: 0.1, points: [[0.5, 0.5]], erase: false }), Math.PI * 0.01, 1e-3)
})

test("read-outs: everything in the region saves nothing, a quarter saves something", () => {
  const picture = { width: 1024, height: 1024, frames: 1, cell: 32 }
  const all = predict([{ ...box, x: 0, y: 0, width: 1, height: 1 }], picture)
  near(all.area, 1)
  near(all.tokens, 1)
  const part = predict([{ ...box, x: 0, y: 0, width: 0.5, height: 0.5 }], picture)
  near(part.area, 0.25)
  near(part.tokens, 0.25 + 0.75 / 4)
  assert.ok(part.speedup > 1.5 && all.speedup < 1.1)
  assert.ok(countCells([box], picture))
})
