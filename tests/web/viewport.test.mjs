import assert from "node:assert/strict"
import { test } from "node:test"
import { WHOLE, inSight, panned, placed, zoomed } from "../../web/region/viewport.mjs"

const stage = { width: 400, height: 200 }

test("a picture fills the stage as far as its shape allows, in the middle", () => {
  assert.deepEqual(placed(stage, 1, WHOLE), { left: 100, top: 0, width: 200, height: 200 })
  assert.deepEqual(placed(stage, 4, WHOLE), { left: 0, top: 50, width: 400, height: 100 })
})

test("what lies under the pointer stays there while the wheel zooms", () => {
  const at = [250, 150]
  const under = ({ left, top, width, height }) => [(at[0] - left) / width, (at[1] - top) / height]
  let view = WHOLE
  for (const factor of [2, 3, 2]) {
    const before = under(placed(stage, 1, view))
    view = zoomed(view, stage, 1, factor, at)
    if (placed(stage, 1, view).width > stage.width) under(placed(stage, 1, view)).forEach((place, axis) => assert.ok(Math.abs(place - before[axis]) < 1e-9))
  }
  assert.equal(view.zoom, 12)
})

test("zoom has an end on both sides, and at the one the whole picture is in sight", () => {
  let view = WHOLE
  for (let step = 0; step < 50; step++) view = zoomed(view, stage, 1, 1.5, [120, 20])
  assert.equal(view.zoom, 32)
  for (let step = 0; step < 50; step++) view = zoomed(view, stage, 1, 1 / 1.5, [390, 190])
  assert.deepEqual(placed(stage, 1, view), placed(stage, 1, WHOLE))
})

test("panning moves by what the pointer moves, stops at the picture's edge, and turns back at once", () => {
  const view = zoomed(WHOLE, stage, 1, 4, [200, 100])
  const [before, after] = [view, panned(view, stage, 1, 30, -20)].map((each) => placed(stage, 1, each))
  assert.ok(Math.abs(after.left - before.left - 30) < 1e-9 && Math.abs(after.top - before.top + 20) < 1e-9)
  const far = panned(view, stage, 1, 5000, 5000)
  assert.deepEqual([placed(stage, 1, far).left, placed(stage, 1, far).top].map(Math.abs), [0, 0])
  assert.ok(Math.abs(placed(stage, 1, panned(far, stage, 1, -10, 0)).left + 10) < 1e-9)
})

test("the part in sight is what lies in the stage", () => {
  assert.deepEqual(inSight({ left: -100, top: 50, width: 800, height: 100 }, stage), { left: 0, top: 50, width: 400, height: 100 })
})
