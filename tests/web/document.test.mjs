// The same texts as tests/core/test_region_document.py reads: both readers take and refuse the same, and count the same cells.

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { LIMITS, RegionError, parseRegions, serialiseRegions } from "../../web/region/document.mjs"
import { countCells, maskAt, timeOf } from "../../web/region/raster.mjs"

const corpus = JSON.parse(readFileSync(new URL("region_documents.json", import.meta.url), "utf8"))

/** Equal but for the rounding of numbers. */
function alike(found, wanted) {
  if (typeof wanted === "number") assert.ok(Math.abs(found - wanted) < 3e-5, `${found}, not ${wanted}`)
  else if (typeof wanted !== "object") assert.equal(found, wanted)
  else {
    assert.deepEqual(Object.keys(found), Object.keys(wanted))
    for (const name of Object.keys(wanted)) alike(found[name], wanted[name])
  }
}

for (const { name, text, picture, pixels, cells } of corpus.valid)
  test(`takes ${name}`, () => {
    const shapes = parseRegions(text)
    assert.deepEqual(parseRegions(JSON.stringify({ version: 1, shapes })), shapes)
    alike(parseRegions(serialiseRegions(shapes)), shapes)
    assert.equal(countCells(shapes, picture).inside, cells)
    let drawn = 0
    for (let frame = 0; frame < picture.frames; frame++)
      drawn += maskAt(shapes, timeOf(frame, picture.frames), picture.width, picture.height).reduce((sum, value) => sum + value, 0)
    assert.equal(drawn, pixels)
  })

for (const { name, text, says } of corpus.invalid)
  test(`refuses ${name}`, () => {
    assert.throws(() => parseRegions(text), (error) => {
      assert.ok(error instanceof RegionError, String(error))
      for (const words of says) assert.ok(error.message.includes(words), `${words}: ${error.message}`)
      return error.message.length < 400
    })
  })

test("refuses what is no text, or too long, or too deep", () => {
  for (const given of [null, undefined, 3, {}, ["x"]]) assert.throws(() => parseRegions(given), RegionError)
  assert.throws(() => parseRegions(" ".repeat(LIMITS.characters + 1)), /characters long/)
  assert.throws(() => parseRegions("[".repeat(100000)), RegionError)
})

test("no shapes are an empty text", () => assert.equal(serialiseRegions([]), ""))

test("numbers in the text are short, and close", () => {
  const shapes = [{ kind: "box", name: "", x: 1 / 3, y: 0, width: 2 / 3, height: 1 }]
  assert.ok(serialiseRegions(shapes).includes('"x":0.33333,'))
  assert.ok(Math.abs(parseRegions(serialiseRegions(shapes))[0].x - 1 / 3) < 1e-5)
})

test("what rounding would make unreadable is written in full", () => {
  const box = { kind: "box", name: "", x: 0.5, y: 0.5, width: 0.25, height: 0.25 }
  const { x, y, width, height } = box
  for (const shapes of [
    [{ ...box, width: 4e-6 }],
    [{ ...box, x: 0.999996, width: 4e-6 }],
    [{ ...box, keys: [{ at: 0.5, x, y, width, height }, { at: 0.500002, x, y, width, height }] }],
    [{ kind: "brush", name: "", radius: 3e-6, points: [[0.1, 0.1]], erase: false }]
  ])
    assert.deepEqual(parseRegions(serialiseRegions(shapes)), parseRegions(JSON.stringify({ version: 1, shapes })))
})
