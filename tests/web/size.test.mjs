import assert from "node:assert/strict"
import { test } from "node:test"
import { originOf, sizeAtInput, sizeOfFields } from "../../web/region/size.mjs"

/** A graph as ComfyUI's: nodes by id, {type, fields, from: {input: [id, slot]}}; links from -10 come from the subgraph's inputs. */
function graph(nodes, more = {}) {
  const made = { links: new Map(), nodes: [], getNodeById: (id) => made.nodes.find((node) => node.id === id), ...more }
  made.getLink = (id) => made.links.get(id)
  for (const [key, { type, fields = {}, from = {}, output = "LATENT", ...rest }] of Object.entries(nodes)) {
    const inputs = Object.entries(from).map(([name, [origin_id, origin_slot, kind = "LATENT"]]) => {
      const link = made.links.size + 1
      made.links.set(link, { id: link, origin_id, origin_slot, type: kind })
      return { name, link, type: kind, widget: name in fields ? { name } : undefined }
    })
    const widgets = Object.entries(fields).map(([name, value]) => ({ name, value }))
    made.nodes.push({ id: Number(key), type, graph: made, inputs, widgets, outputs: [{ type: output }], ...rest })
  }
  return made
}

const empty = { type: "EmptySD3LatentImage", fields: { width: 1152, height: 480 } }
const sizeOf = (made, id = 1) => sizeAtInput(made.getNodeById(id), "latent")
const mask = (origin, slot = 0) => ({ type: "MixedResRegionMask", from: { latent: [origin, slot] } })
const still = (width, height) => ({ width, height, frames: 1 })

test("an empty latent, behind a reroute and a bypassed node", () => {
  const made = graph({ 1: mask(2), 2: { type: "Reroute", from: { "": [3, 0] } }, 3: { type: "LatentUpscaleBy", mode: 4, fields: { scale_by: 2 }, from: { samples: [4, 0] } }, 4: empty })
  assert.deepEqual(sizeOf(made), still(1152, 480))
})

test("scaled by a factor, by fields, and after a sampler", () => {
  const chain = (type, fields) => graph({ 1: mask(2), 2: { type, fields, from: { samples: [3, 0] } }, 3: { type: "KSampler", from: { latent_image: [4, 0] } }, 4: empty })
  assert.deepEqual(sizeOf(chain("LatentUpscaleBy", { scale_by: 2 })), still(2304, 960))
  assert.deepEqual(sizeOf(chain("LatentUpscale", { width: 2048, height: 0 })), still(2048, 856))
  assert.deepEqual(sizeOf(chain("LatentUpscale", { width: 512, height: 512 })), still(512, 512))
  assert.equal(sizeOf(chain("SomebodysUpscaler", { scale_by: 2 })), null)
})

test("an encoded picture, in whole latent pixels", () => {
  const loaded = { type: "LoadImage", output: "IMAGE", imgs: [{ complete: true, naturalWidth: 1001, naturalHeight: 515 }] }
  assert.deepEqual(sizeOf(graph({ 1: mask(2), 2: { type: "VAEEncode", from: { pixels: [3, 0, "IMAGE"] } }, 3: loaded })), still(1000, 512))
  const half = { type: "ImageScaleBy", output: "IMAGE", fields: { scale_by: 0.5 }, from: { image: [4, 0, "IMAGE"] } }
  assert.deepEqual(sizeOf(graph({ 1: mask(2), 2: { type: "VAEEncode", from: { pixels: [3, 0, "IMAGE"] } }, 3: half, 4: loaded })), still(496, 256))
})

test("frames of a video, by the node that makes it", () => {
  const video = (type, length) => graph({ 1: mask(2), 2: { type, fields: { width: 512, height: 320, length } } })
  assert.deepEqual(sizeOf(video("EmptyHunyuanLatentVideo", 17)), { width: 512, height: 320, frames: 5, length: 17 })
  assert.deepEqual(sizeOf(video("EmptyLTXVLatentVideo", 97)), { width: 512, height: 320, frames: 13, length: 97 })
})

test("a field that a link decides is read from a primitive, and not guessed from anything else", () => {
  const linked = (other) => graph({ 1: mask(2), 2: { ...empty, from: { width: [3, 0, "INT"] } }, 3: other })
  assert.deepEqual(sizeOf(linked({ type: "PrimitiveInt", output: "INT", fields: { value: 640 } })), still(640, 480))
  assert.equal(sizeOf(linked({ type: "TrainLoraNode", output: "INT", fields: { width: 640 } })), null)
})

test("out of a subgraph by its input, and by a promoted field; into one by its output", () => {
  const inner = graph({ 1: mask(-10), 2: { ...empty, from: { width: [-10, 1, "INT"] } }, 3: mask(2) })
  const holder = { type: "a-b-c", subgraph: inner, fields: { width: 768 }, from: { latent: [8, 0] } }
  const outer = graph({ 7: holder, 8: empty, 9: { type: "MixedResRegionMask", from: { latent: [7, 0] } } })
  outer.getNodeById(7).inputs.push({ name: "width", link: null, type: "INT", widget: { name: "width" } })
  inner.rootGraph = outer
  inner.outputs = [{ linkIds: [inner.nodes[2].inputs[0].link] }]
  assert.deepEqual(sizeOf(inner), still(1152, 480))
  assert.deepEqual(sizeOf(inner, 3), still(768, 480))
  assert.deepEqual(sizeOf(outer, 9), still(768, 480))
  outer.nodes.push({ ...outer.getNodeById(7), id: 10 })
  assert.equal(sizeOf(inner), null, "two nodes stand for it, and may be fed differently")
})

test("a chain without end, a name of every object and a missing node are no size", () => {
  assert.equal(sizeOf(graph({ 1: mask(2), 2: { type: "KSampler", from: { latent_image: [2, 0] } } })), null)
  assert.equal(sizeOf(graph({ 1: mask(2), 2: { type: "Reroute", from: { "": [2, 0] } } })), null)
  assert.equal(sizeOf(graph({ 1: mask(2), 2: { type: "toString" } })), null)
  assert.equal(originOf(graph({ 1: mask(5) }).getNodeById(1), "latent"), null)
  assert.equal(sizeOfFields({ widgets: [{ name: "width", value: "<b>" }, { name: "height", value: 5 }] }), null)
})
