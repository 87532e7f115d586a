// The region editor: a canvas with tools. It knows nothing of ComfyUI; region_mask.js gives it a text, a picture and takes the text back.

import { buildControls } from "./controls.mjs"
import { Drawing, called } from "./drawing.mjs"
import { clamp, keyIndexAt } from "./geometry.mjs"
import { Gesture } from "./gesture.mjs"
import { listenToKeys } from "./keyboard.mjs"
import { RegionList } from "./list.mjs"
import { UNKNOWN_MODEL, inWords, predict } from "./readout.mjs"
import { Screen } from "./screen.mjs"
import { paint } from "./view.mjs"
import { say } from "../words/words.mjs"

const READOUT_DELAY = 80 // ms
const SHARPEST = 3 // backing pixels per CSS pixel
const [THINNEST, THICKEST] = [0.005, 0.25] // brushes

export class RegionEditor extends Drawing {
  /** onChange: told the new text after every finished edit. */
  constructor(onChange) {
    super()
    this.onChange = onChange
    this.controls = buildControls()
    this.root = this.controls.root
    this.tool = "box"
    this.radius = 0.03
    this.reason = ""
    this.model = UNKNOWN_MODEL
    this.screen = new Screen(this)
    this.gesture = new Gesture(this)
    this.list = new RegionList(this)
    listenToKeys(this)
    this.listen()
    this.observer = new ResizeObserver(() => this.refresh())
    this.resume()
  }

  resume() {
    this.observer.observe(this.controls.stage)
    this.refresh()
  }

  pause() {
    this.screen.close()
    this.observer.disconnect()
    clearTimeout(this.readoutTimer)
  }

  /**
   * picture: {width, height, frames, length, cell, still, known}; length: frames of the video itself, if known; still: there is no time in it;
   * known: this is the size that the node will get; pending: a region to start from is linked and not known yet. background, start: images or null.
   */
  show(picture, background, start) {
    const names = Object.keys({ ...picture, ...this.picture })
    if (names.every((name) => picture[name] === this.picture[name]) && background === this.background && start === this.start) return
    if (start !== this.start) this.startCells = start ? cellsOf(start) : null
    Object.assign(this, { picture, background, start })
    this.controls.time.step = picture.frames > 1 ? 1 / (picture.frames - 1) : 0.01
    this.refresh()
  }

  /** What the regions are for: see readout.mjs. */
  reckonWith(model) {
    if (JSON.stringify(model) === JSON.stringify(this.model)) return
    this.model = model
    this.refresh()
  }

  /** With a reason nothing can be drawn; without one it can again. */
  lock(reason) {
    if (reason === this.reason) return
    this.reason = reason
    this.controls.panel.inert = Boolean(reason)
    if (reason) this.screen.close()
    this.refresh()
  }

  choose(tool) {
    this.tool = tool
    this.ring = null
    this.refresh()
  }

  get radiusShown() {
    return this.chosen.find((shape) => shape.kind === "brush")?.radius ?? this.radius
  }

  setRadius(radius, finished) {
    this.radius = clamp(radius, THINNEST, THICKEST)
    this.resizeStrokes(this.radius, finished)
    this.refresh()
  }

  startRename() {
    if (!this.current) return
    this.draw()
    this.controls.name.focus({ preventScroll: true })
    this.controls.name.select()
  }

  listen() {
    const { controls } = this
    const press = (button, action) =>
      button.addEventListener("click", () => {
        action()
        this.refresh()
      })
    for (const [tool, button] of Object.entries(controls.tools)) press(button, () => this.choose(tool))
    press(controls.undo, () => this.step(-1))
    press(controls.redo, () => this.step(1))
    press(controls.remove, () => this.remove())
    press(controls.clear, () => this.clear())
    press(controls.snap, () => (this.snap = !this.snap))
    press(controls.key, () => this.toggleKey())
    press(controls.back, () => this.goToKey(-1))
    press(controls.next, () => this.goToKey(1))
    press(controls.reset, () => {
      this.keep("")
      this.load()
      controls.canvas.focus({ preventScroll: true })
    })
    controls.copy.addEventListener("click", () => navigator.clipboard?.writeText(this.text))
    controls.name.addEventListener("change", () => this.rename(controls.name.value))
    controls.radius.addEventListener("input", () => this.setRadius(Number(controls.radius.value), false))
    controls.radius.addEventListener("change", () => this.setRadius(Number(controls.radius.value), true))
    controls.time.addEventListener("input", () => {
      this.time = Number(controls.time.value)
      this.refresh()
    })
  }

  refresh() {
    cancelAnimationFrame(this.frame)
    this.frame = requestAnimationFrame(() => this.draw())
  }

  draw() {
    this.drawPicture()
    this.drawControls()
    this.drawTime()
    this.list.draw()
    clearTimeout(this.readoutTimer)
    this.readoutTimer = setTimeout(() => this.writeReadout(), READOUT_DELAY)
  }

  drawPicture() {
    const { canvas } = this.controls
    const { stage, place, seen, box } = this.screen
    if (stage.width && stage.height && seen.width > 0 && seen.height > 0) {
      const pixels = Object.entries(seen).map(([name, value]) => [name, `${value}px`])
      Object.assign(canvas.style, Object.fromEntries(pixels))
      const scale = Math.min(Math.max(box.zoom, 1) * window.devicePixelRatio, SHARPEST)
      const { shapes, selection, time, picture, background, start, ring, snap } = this
      const unknown = picture.known ? "" : say("size known after the first run")
      const shown = { width: place.width, height: place.height, left: seen.left - place.left, top: seen.top - place.top, seen, scale }
      paint(canvas, { ...shown, shapes, selection, time, picture, background, start, ring, radius: this.radiusShown, grid: snap, note: unknown })
    }
    canvas.setAttribute("aria-label", this.described())
  }

  drawControls() {
    const { controls, shapes, current, selection } = this
    for (const [tool, button] of Object.entries(controls.tools)) pressed(button, tool === this.tool, this.failed)
    pressed(controls.snap, this.snap, this.failed)
    pressed(controls.expand, this.screen.expanded, false)
    controls.undo.disabled = this.failed || !this.history.canUndo
    controls.redo.disabled = this.failed || !this.history.canRedo
    controls.remove.disabled = !selection.length
    controls.clear.disabled = !shapes.length
    controls.name.disabled = !current
    if (document.activeElement !== controls.name || !current) controls.name.value = current?.name ?? ""
    controls.radius.value = this.radiusShown
    controls.radius.hidden = !this.gesture.paints && !this.chosen.some((shape) => shape.kind === "brush")
    controls.error.hidden = !this.failed
    controls.message.textContent = this.error ?? ""
  }

  drawTime() {
    const { controls, current, picture, keyTimes } = this
    controls.timeRow.hidden = picture.still && !this.shapes.some((shape) => shape.keys)
    controls.time.value = this.time
    controls.moment.textContent = moment(this.time, picture)
    controls.key.disabled = !current || current.kind === "brush"
    pressed(controls.key, Boolean(current) && keyIndexAt(current, this.time) >= 0, controls.key.disabled)
    controls.back.disabled = controls.next.disabled = !keyTimes.length
    const places = keyTimes.join()
    if (controls.marks.dataset.places === places) return
    controls.marks.dataset.places = places
    controls.marks.replaceChildren(
      ...keyTimes.map((at) => {
        const mark = document.createElement("span")
        mark.style.left = `${100 * at}%`
        return mark
      })
    )
  }

  described() {
    const count = this.shapes.length
    const chosen = this.current ? `, ${this.current.name || called(this.current)}` : ""
    const size = this.picture.known ? "" : ` (${say("size known after the first run")})`
    return say("Region canvas{size}: {count} regions{chosen}. Enter adds a box, arrows move, Shift and arrows resize, Delete deletes, Page Up and Page Down select.", {
      size, count, chosen
    })
  }

  writeReadout() {
    const { readout } = this.controls
    if (this.reason || this.notice) readout.textContent = this.reason || this.notice
    else if (this.failed) readout.textContent = say("unreadable regions")
    else if (!this.shapes.length && !this.picture.pending && !this.start) readout.textContent = say("Drag on the picture to draw a region.")
    else if (this.picture.pending) readout.textContent = say("The connected region counts too: the cost is known after a run.")
    else readout.textContent = inWords(predict(this.shapes, this.picture, this.model, this.startCells), this.model)
    readout.title = readout.textContent
  }
}

/** A time as a frame's number: of the video, or of its latent where only that is known. */
function moment(time, { frames, length }) {
  if (length > 1) return say("frame {number} / {count}", { number: Math.round(time * (length - 1)) + 1, count: length })
  if (frames > 1) return say("latent frame {number} / {count}", { number: Math.round(time * (frames - 1)) + 1, count: frames })
  return `${Math.round(100 * time)} %`
}

/** The pixels of a starting region: 1 where it is. */
function cellsOf(image) {
  const { naturalWidth: width, naturalHeight: height } = image
  const canvas = document.createElement("canvas")
  Object.assign(canvas, { width, height })
  const context = canvas.getContext("2d")
  context.drawImage(image, 0, 0)
  const { data } = context.getImageData(0, 0, width, height)
  return { width, height, cells: Uint8Array.from({ length: width * height }, (_, index) => Number(data[4 * index] > 0)) }
}

function pressed(button, on, disabled) {
  button.setAttribute("aria-pressed", String(on))
  button.disabled = disabled
}
