import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { parseRegions } from "../../web/region/document.mjs"
import { History } from "../../web/region/history.mjs"
import { countCells } from "../../web/region/raster.mjs"
import { UNKNOWN_MODEL, inWords, predict } from "../../web/region/readout.mjs"

const predictions = JSON.parse(readFileSync(new URL("predictions.json", import.meta.url), "utf8"))

for (const { text, picture, area, tokens, speedup, model, margin = 0 } of predictions)
  test(`predicts ${speedup.toFixed(3)} times the speed at ${area.toFixed(2)} of the area, as the node does`, () => {
    const found = predict(parseRegions(text), picture, model)
    for (const [name, wanted] of Object.entries({ area, tokens, speedup })) assert.ok(Math.abs(found[name] - wanted) <= 1e-9 * wanted, name)
    assert.ok(Math.abs((found.margin ?? 0) - margin) <= 1e-9)
  })

test("the read-out is short, and says what it counts and on which model", () => {
  const predicted = { area: 0.25, tokens: 0.4375, speedup: 2.345 }
  assert.equal(inWords(predicted), "25 % of the area, 44 % of the tokens, about 2.3× faster (on Flux.1; on this model after a run)")
  assert.equal(inWords(predicted, { outer: 1, inner: 2, told: true }), "25 % of the area, 44 % of the tokens, bands included, about 2.3× faster")
  const withMargin = inWords({ ...predicted, margin: 0.0625 }, { margin: 1, told: true })
  assert.equal(withMargin, "25 % of the area + 6 % at half resolution, 44 % of the tokens, about 2.3× faster")
  assert.match(inWords({ area: 1, tokens: 1, speedup: 1 }), /nothing to save/)
})

test("a region to start from counts too, and the eraser takes from it", () => {
  const picture = { width: 256, height: 256, frames: 1, cell: 32 }
  const start = { width: 2, height: 2, cells: Uint8Array.from([1, 1, 0, 0]) } // the upper half
  assert.equal(predict([], picture, UNKNOWN_MODEL, start).area, 0.5)
  const full = { width: 1, height: 1, cells: Uint8Array.from([1]) }
  const box = parseRegions('{"version":1,"shapes":[{"kind":"box","x":0.5,"y":0.5,"width":0.25,"height":0.25}]}')
  assert.deepEqual(predict(box, picture, UNKNOWN_MODEL, full), { area: 1, tokens: 1, speedup: 1 })
  const eraser = parseRegions('{"version":1,"shapes":[{"kind":"brush","radius":0.5,"points":[[0.25,0],[0.25,1]],"erase":true}]}')
  assert.equal(predict(eraser, picture, UNKNOWN_MODEL, start).area, 0.125)
})

test("pictures too large to draw in full are counted nearly right", () => {
  const shapes = parseRegions('{"version":1,"shapes":[{"kind":"box","x":0,"y":0,"width":0.5,"height":0.5}]}')
  const { inside, cells } = countCells(shapes, { width: 8192, height: 8192, frames: 1, cell: 32 })
  assert.equal(cells, 256 ** 2)
  assert.equal(inside, 128 ** 2)
})

test("a document as heavy as may be is counted coarsely or not at all, and soon", () => {
  const points = Array.from({ length: 2000 }, (_, index) => [(index % 40) / 40, index % 2])
  const shapes = Array.from({ length: 41 }, () => ({ kind: "brush", name: "", radius: 0.5, points, erase: false }))
  const started = performance.now()
  for (const side of [1024, 4096]) {
    const found = predict(shapes, { width: side, height: side, frames: 1, cell: 32 })
    assert.ok(inWords(found).length > 10)
  }
  assert.equal(predict(shapes, { width: 4096, height: 4096, frames: 64, cell: 1 }), predict(shapes, { width: 4096, height: 4096, frames: 1, cell: 1 }))
  assert.ok(performance.now() - started < 20_000)
})

test("undo and redo go through the texts, and a new one ends what could be redone", () => {
  const history = new History("")
  for (const text of ["a", "b", "b", "c"]) history.push(text)
  assert.deepEqual([history.undo(), history.undo(), history.undo(), history.undo()], ["b", "a", "", ""])
  assert.deepEqual([history.redo(), history.redo()], ["a", "b"])
  history.push("d")
  assert.ok(!history.canRedo && history.redo() === "d")
  history.reset("e")
  assert.ok(!history.canUndo && history.now === "e")
})

test("the history forgets its oldest steps", () => {
  const history = new History("start")
  for (let index = 0; index < 500; index++) history.push(String(index))
  let steps = 0
  while (history.canUndo) steps += history.undo() && 1
  assert.ok(steps >= 50 && steps <= 200)
})
