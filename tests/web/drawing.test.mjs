import assert from "node:assert/strict"
import { test } from "node:test"
import { LIMITS, parseRegions } from "../../web/region/document.mjs"
import { Drawing } from "../../web/region/drawing.mjs"

const box = (name, x, more = {}) => ({ kind: "box", name, x, y: 0.25, width: 0.25, height: 0.25, ...more })

function drawing(...shapes) {
  const made = new Drawing()
  made.told = []
  made.onChange = (text) => made.told.push(text)
  if (shapes.length) made.text = JSON.stringify({ version: 1, shapes })
  return made
}

const names = (made) => parseRegions(made.text).map((shape) => shape.name)

test("copies stand a cell beside, under a name of their own, and are what is selected", () => {
  const made = drawing(box("face", 0.25), box("hand", 0.5))
  made.select(0)
  assert.ok(made.copy() && made.paste())
  assert.deepEqual(names(made), ["face", "hand", "box 1"])
  assert.deepEqual(made.selection, [2])
  assert.equal(made.shapes[2].x, 0.25 + 32 / 1024)
  const other = drawing()
  assert.ok(other.paste(), "another editor of the page")
  assert.deepEqual(names(other), ["face"])
})

test("a copy keeps its way through a video, and stays inside the picture", () => {
  const keys = [{ at: 0, x: 0.75, y: 0, width: 0.25, height: 0.25 }, { at: 1, x: 0.5, y: 0, width: 0.25, height: 0.25 }]
  const made = drawing(box("a", 0.75, { keys }))
  made.selectAll()
  assert.ok(made.duplicate())
  const copy = parseRegions(made.text)[1]
  const cell = 32 / 1024
  assert.deepEqual(copy.keys.map((key) => [key.x, key.y]), [[0.75 - cell, cell], [0.5 - cell, cell]])
})

test("all are selected, moved, deleted and brought back together", () => {
  const made = drawing(box("a", 0), box("b", 0.5))
  made.selectAll()
  made.moveSelected(0.125, 0)
  assert.deepEqual(made.shapes.map((shape) => shape.x), [0.125, 0.625])
  made.remove()
  assert.equal(made.text, "")
  made.step(-1)
  assert.deepEqual(names(made), ["a", "b"])
  made.clear()
  assert.deepEqual([made.text, made.selection], ["", []])
  assert.equal(made.told.length, 4)
})

test("nothing is pasted beyond what a document may hold", () => {
  const made = drawing(...Array.from({ length: LIMITS.shapes - 1 }, (_, index) => box(`box ${index}`, 0)))
  made.selectAll()
  made.duplicate()
  assert.equal(made.shapes.length, LIMITS.shapes - 1)
  assert.match(made.notice, /At most 64/)
})

test("a selected line takes another brush size, a box none", () => {
  const made = drawing({ kind: "brush", name: "line", radius: 0.05, points: [[0.5, 0.5]], erase: false }, box("a", 0))
  made.select(0)
  made.resizeStrokes(0.125, true)
  assert.equal(parseRegions(made.text)[0].radius, 0.125)
  made.select(1)
  made.resizeStrokes(0.25, true)
  assert.deepEqual(parseRegions(made.text).map((shape) => shape.radius), [0.125, undefined])
})

test("from key to key, of what is selected or of all", () => {
  const at = (...times) => ({ keys: times.map((time) => ({ at: time, x: 0, y: 0, width: 0.5, height: 0.5 })) })
  const made = drawing(box("a", 0, at(0, 0.5)), box("b", 0, at(0.25, 1)))
  const way = (by, steps) => Array.from({ length: steps }, () => (made.goToKey(by), made.time))
  assert.deepEqual(way(1, 4), [0.25, 0.5, 1, 1])
  made.select(0)
  assert.deepEqual(way(-1, 3), [0.5, 0, 0])
})

test("an unreadable text is neither undone nor drawn over", () => {
  const made = drawing(box("a", 0))
  made.text = "{"
  made.step(-1)
  assert.ok(made.failed)
  assert.equal(made.text, "{")
})
