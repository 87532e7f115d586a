import assert from "node:assert/strict"
import { test } from "node:test"
import { regionOf } from "../../web/region/downstream.mjs"

/** A graph of nodes in a row, each linked to the next by its first output. */
function row(...nodes) {
  const made = { links: {}, nodes, getNodeById: (id) => nodes[id] }
  nodes.forEach((node, id) => {
    const last = id + 1 === nodes.length
    if (!last) made.links[id] = { target_id: id + 1 }
    const widgets = Object.entries(node.fields ?? {}).map(([name, value]) => ({ name, value }))
    Object.assign(node, { id, graph: made, widgets, outputs: [{ type: id ? "MODEL" : "MASK", links: last ? [] : [id] }] })
  })
  return nodes[0]
}

const crpa = (ratio = 2) => ({ type: "MixedResRegionCRPA", fields: { ratio } })
const bands = (fields, more = {}) => ({ type: "BoundaryExpandReplace", fields: { width: 2, outer_width: -1, inner_width: -1, ...fields }, ...more })
const found = (...nodes) => regionOf(row({ type: "MixedResRegionMask" }, ...nodes))

test("the ratio, and bands of the common width: fine tokens outside as cells, rounded up", () => {
  assert.deepEqual(found(crpa(3), bands({ width: 4 })), { ratio: 3, outer: 2, inner: 4, node: 1 })
  assert.deepEqual(found(crpa()), { ratio: 2, outer: 0, inner: 0, node: 1 })
})

test("widths of their own, and nodes between", () => {
  const chain = [{ type: "Reroute" }, crpa(), { type: "LoraLoader" }, bands({ outer_width: 0, inner_width: 3 })]
  assert.deepEqual(found(...chain), { ratio: 2, outer: 0, inner: 3, node: 2 })
})

test("a margin at ratio 4 has no bands beside it, and at other ratios there is none", () => {
  const margined = (ratio, margin) => ({ type: "MixedResRegionCRPA", fields: { ratio, margin } })
  assert.deepEqual(found(margined(4, 2), bands({ width: 4 })), { ratio: 4, outer: 0, inner: 0, margin: 2, node: 1 })
  assert.deepEqual(found(margined(4, 0)), { ratio: 4, outer: 0, inner: 0, node: 1 })
  assert.deepEqual(found(margined(3, 2)), { ratio: 3, outer: 0, inner: 0, node: 1 })
  assert.deepEqual(found(margined(4, "<b>")), { ratio: 4, outer: 0, inner: 0, node: 1 })
})

test("a bypassed band is none, and a mask for another node has no ratio", () => {
  assert.deepEqual(found(crpa(), bands({}, { mode: 4 })), { ratio: 2, outer: 0, inner: 0, node: 1 })
  assert.equal(found({ type: "MaskPreview" }), null)
  assert.equal(found(crpa("<b>")), null)
})
