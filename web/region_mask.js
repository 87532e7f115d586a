// Puts the region editor into the node Mixed-Res Region Mask, in place of the text field of its input `regions`.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { regionOf } from "./region/downstream.mjs"
import { RegionEditor } from "./region/editor.mjs"
import { UNKNOWN_MODEL } from "./region/readout.mjs"
import { originOf, sizeAtInput, sizeOfFields, sizeOfPicture } from "./region/size.mjs"
import { say } from "./words/words.mjs"

const NODE = "MixedResRegionMask"
const INPUT = "regions"
const SIZE = [440, 710] // a square picture is 420 wide in it
const EDITOR_HEIGHT = 320
const LOOK_AROUND = 1000 // ms between looks at what is connected
const CELL = 32 // pixels, at ratio 2
const RUN_EVENT = "ropeworks.run" // nodes/run_event.py
const SQUARE = { width: 1024, height: 1024, frames: 1 }
const lastRuns = new Map() // by graph and node, so that undo and another tab keep the background
const models = new Map() // by node of a region: what its model was in the last run

app.registerExtension({
  name: "ropeworks.regionMask",
  init() {
    const style = document.createElement("link")
    Object.assign(style, { rel: "stylesheet", href: new URL("./region/editor.css", import.meta.url).href })
    document.head.append(style)
    api.addEventListener(RUN_EVENT, ({ detail }) => {
      const { node, hidden, text } = detail ?? {}
      if (typeof node === "string" && hidden > 0 && text >= 0) models.set(node.split(":").at(-1), { hidden, text })
    })
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) attach(node)
  }
})

function attach(node) {
  const index = node.widgets?.findIndex((widget) => widget.name === INPUT) ?? -1
  if (index < 0) return
  let unread = null // a value that is no text at all, kept as it came
  const editor = new RegionEditor((text) => {
    unread = null
    widget.callback?.(text)
    changed(node)
  })
  const widget = node.addDOMWidget(INPUT, "ropeworks_regions", editor.root, {
    getValue: () => (unread === null ? editor.text : unread.value),
    setValue: (value) => {
      unread = typeof value === "string" || value == null ? null : { value }
      // Twice, so that it shows as what it is to the node: no drawing.
      editor.text = unread ? JSON.stringify(JSON.stringify(value)) : (value ?? "")
    },
    getMinHeight: () => EDITOR_HEIGHT,
    hideOnZoom: false,
    hideInPanel: true // the properties panel would give the editor its own width for good
  })
  // At the place of the text field, so that saved values keep their order.
  node.widgets.pop()
  const [field] = node.widgets.splice(index, 1, widget)
  widget.label = field.label
  field.onRemove?.()
  node.setSize([Math.max(SIZE[0], node.size[0]), Math.max(SIZE[1], node.size[1])])

  const look = () => editor.root.isConnected && lookAround(node, editor)
  const shown = new ResizeObserver(look) // the picture has its shape before the first stroke
  let timer
  const stop = () => {
    clearInterval(timer)
    shown.disconnect()
    editor.pause()
  }
  // Copying makes nodes that are never added, and never removed either.
  chain(node, "onAdded", () => {
    stop()
    timer = setInterval(look, LOOK_AROUND)
    shown.observe(editor.root)
    editor.resume()
  })
  chain(node, "onRemoved", stop)
  chain(node, "onConnectionsChange", look)
  chain(node, "onExecuted", (output) => {
    const found = readRun(output?.ropeworks_regions?.[0])
    if (found) lastRuns.set(keyOf(node), found)
    look()
  })
  editor.root.addEventListener("pointerenter", look)
  forwardPanAndZoom(editor.root)
}

function chain(node, name, after) {
  const before = node[name]
  node[name] = function (...given) {
    const result = before?.apply(this, given)
    after(...given)
    return result
  }
}

/** Tells the graph that the workflow has changed: a repaint, and a step of its own undo. */
function changed(node) {
  node.setDirtyCanvas?.(true, true)
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState?.()
}

const keyOf = (node) => `${node.graph?.rootGraph?.id ?? node.graph?.id} ${node.graph?.id} ${node.id}`

/** What the node says after a run, or nothing if it is not what this node says. */
function readRun(found) {
  const sides = ["width", "height", "frames", "cell"].map((name) => found?.[name])
  if (!sides.every((side) => Number.isInteger(side) && side > 0 && side < 1e6)) return null
  const [width, height, frames, cell] = sides
  return { width, height, frames, cell, background: loaded(found.background), start: loaded(found.start) }
}

function loaded(file) {
  if (typeof file?.filename !== "string") return null
  const query = new URLSearchParams({ filename: file.filename, subfolder: String(file.subfolder ?? ""), type: "temp" })
  const image = new Image()
  image.src = api.apiURL(`/view?${query}`)
  return image
}

const ready = (image) => (image?.complete && image.naturalWidth ? image : null)

/** Shows the editor the picture that the node would get now: of the latent, of the image, or of its own width and height. */
function lookAround(node, editor) {
  const run = lastRuns.get(keyOf(node))
  const [byLatent, byImage] = ["latent", "image"].map((name) => isLinked(node, name))
  for (const widget of node.widgets) if (widget.name === "width" || widget.name === "height") widget.disabled = byLatent || byImage
  editor.lock(isLinked(node, INPUT) ? say("The regions come from the node that is linked to regions.") : "")
  const seen = byImage ? ready(originOf(node, "image")?.node.imgs?.[0]) : null
  const background = seen ?? (byImage ? ready(run?.background) : null)
  const start = ready(run?.start)
  const known = (byLatent ? sizeAtInput(node, "latent") : byImage ? sizeAtInput(node, "image") : sizeOfFields(node)) ?? run
  const { width, height, frames, length } = known ?? (background && sizeOfPicture({ imgs: [background] })) ?? sizeOfFields(node) ?? SQUARE
  const region = regionOf(node)
  const told = models.get(String(region?.node))
  editor.reckonWith({ ...UNKNOWN_MODEL, ...region, ...told, told: Boolean(told) })
  const cell = ((byLatent && run ? run.cell : CELL) / UNKNOWN_MODEL.ratio) * editor.model.ratio
  const linked = isLinked(node, "mask") || isLinked(node, "boxes")
  const picture = { width, height, frames, length, cell, still: !known || frames === 1, known: Boolean(known), pending: linked && !run }
  editor.show(picture, background, linked ? start : null)
}

const isLinked = (node, name) => node.inputs?.find((input) => input.name === name)?.link != null

/** In the classic renderer the editor lies over the graph's canvas: wheel and middle button go on to it. */
function forwardPanAndZoom(root) {
  const overCanvas = () => !root.closest("[data-node-id]")
  root.addEventListener("wheel", (event) => overCanvas() && app.canvas.processMouseWheel(event), { passive: false })
  for (const [name, method] of [["pointerdown", "processMouseDown"], ["pointermove", "processMouseMove"], ["pointerup", "processMouseUp"]])
    root.addEventListener(name, (event) => {
      const middle = event.button === 1 || (event.buttons & 4) === 4
      if (middle && overCanvas()) app.canvas[method](event)
    })
}
