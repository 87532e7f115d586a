// The region editor: a canvas with tools. It knows nothing of ComfyUI; region_mask.js gives it a text, a picture and takes the text back.

import { buildControls } from "./controls.mjs"
import { LIMITS, RegionError, parseRegions, serialiseRegions } from "./document.mjs"
import { keyIndexAt, withKey, withoutKey } from "./geometry.mjs"
import { Gesture } from "./gesture.mjs"
import { History } from "./history.mjs"
import { listenToKeys } from "./keyboard.mjs"
import { inWords, predict } from "./readout.mjs"
import { paint } from "./view.mjs"

const READOUT_DELAY = 80 // ms
const SHARPEST = 3 // backing pixels per CSS pixel

export class RegionEditor {
  /** onChange: told the new text after every finished edit. */
  constructor(onChange) {
    this.onChange = onChange
    this.controls = buildControls()
    this.root = this.controls.root
    this.history = new History("")
    this.shapes = []
    this.selected = -1
    this.tool = "box"
    this.snap = true
    this.radius = 0.03
    this.time = 0
    this.picture = { width: 1024, height: 1024, frames: 1, cell: 32, still: true }
    this.notice = this.reason = ""
    this.gesture = new Gesture(this)
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
    this.observer.disconnect()
    clearTimeout(this.readoutTimer)
  }

  /** Exactly what was set, until an edit. */
  get text() {
    return this.history.now
  }

  set text(text) {
    if (text === this.history.now) return
    this.history.reset(text)
    this.load()
  }

  /** picture: {width, height, frames, cell, still}, still: there is no time in it; background, start: images or null. */
  show(picture, background, start) {
    const same = Object.keys(picture).every((name) => picture[name] === this.picture[name])
    if (same && background === this.background && start === this.start) return
    Object.assign(this, { picture, background, start })
    this.controls.time.step = picture.frames > 1 ? 1 / (picture.frames - 1) : 0.01
    this.refresh()
  }

  /** With a reason nothing can be drawn; without one it can again. */
  lock(reason) {
    if (reason === this.reason) return
    this.reason = reason
    this.root.inert = Boolean(reason)
    this.refresh()
  }

  /** Says why an edit was not taken, until the next one. */
  warn(text) {
    this.notice = text
    this.refresh()
  }

  get failed() {
    return Boolean(this.error)
  }

  get aspect() {
    return this.picture.width / this.picture.height
  }

  /** The grid that shapes snap to, in fractions, or nothing. */
  get grid() {
    const { width, height, cell } = this.picture
    return this.snap ? { x: cell / width, y: cell / height } : null
  }

  load() {
    this.error = null
    try {
      this.shapes = parseRegions(this.text)
    } catch (error) {
      if (!(error instanceof RegionError)) throw error
      this.error = error.message
      this.shapes = []
    }
    this.selected = Math.min(this.selected, this.shapes.length - 1)
    this.refresh()
  }

  /** Shapes of an edit that is not finished yet. */
  draft(shapes, selected = this.selected) {
    Object.assign(this, { shapes, selected })
    this.refresh()
  }

  commit(shapes = this.shapes, selected = this.selected) {
    const text = serialiseRegions(shapes)
    if (text.length > LIMITS.characters) {
      this.load()
      this.warn("That would be more than a workflow can carry. Delete a brush line first.")
      return
    }
    this.draft(shapes, selected)
    this.keep(text)
  }

  keep(text) {
    if (text === this.text) return
    this.notice = ""
    this.history.push(text)
    this.refresh()
    this.onChange(text)
  }

  add(shape) {
    if (this.shapes.length >= LIMITS.shapes) {
      this.warn(`At most ${LIMITS.shapes} regions. Delete one first.`)
      return
    }
    this.commit([...this.shapes, shape], this.shapes.length)
  }

  newName(kind) {
    const names = new Set(this.shapes.map((shape) => shape.name))
    let number = 1
    while (names.has(`${kind} ${number}`)) number++
    return `${kind} ${number}`
  }

  replaceSelected(shape, finished = true) {
    const shapes = this.shapes.map((old, index) => (index === this.selected ? shape : old))
    if (finished) this.commit(shapes)
    else this.draft(shapes)
  }

  get current() {
    return this.shapes[this.selected]
  }

  select(index) {
    this.selected = index
    this.refresh()
  }

  remove() {
    if (!this.current) return
    this.commit(this.shapes.filter((_, index) => index !== this.selected), -1)
  }

  step(direction) {
    const before = this.text
    const text = direction < 0 ? this.history.undo() : this.history.redo()
    if (text === before) return
    this.load()
    this.onChange(text)
  }

  toggleKey() {
    const shape = this.current
    if (!shape || shape.kind === "brush" || this.hasNoRoomForAKey(shape)) return
    this.replaceSelected(keyIndexAt(shape, this.time) >= 0 ? withoutKey(shape, this.time) : withKey(shape, this.time))
  }

  /** Warns where an edit at this time would take one key too many. */
  hasNoRoomForAKey(shape) {
    const full = shape.keys?.length >= LIMITS.keys && keyIndexAt(shape, this.time) < 0
    if (full) this.warn(`At most ${LIMITS.keys} key frames. Go to one of them, or remove one.`)
    return full
  }

  listen() {
    const { canvas, tools, undo, redo, remove, snap, name, radius, time, key, reset, copy } = this.controls
    const press = (button, action) =>
      button.addEventListener("click", () => {
        action()
        this.refresh()
      })
    for (const [tool, button] of Object.entries(tools)) press(button, () => (this.tool = tool))
    press(undo, () => this.step(-1))
    press(redo, () => this.step(1))
    press(remove, () => this.remove())
    press(snap, () => (this.snap = !this.snap))
    press(key, () => this.toggleKey())
    press(reset, () => {
      this.keep("")
      this.load()
      canvas.focus({ preventScroll: true })
    })
    copy.addEventListener("click", () => navigator.clipboard?.writeText(this.text))
    name.addEventListener("change", () => {
      if (this.current) this.replaceSelected({ ...this.current, name: [...name.value].slice(0, LIMITS.name).join("") })
    })
    radius.addEventListener("input", () => (this.radius = Number(radius.value)))
    time.addEventListener("input", () => {
      this.time = Number(time.value)
      this.refresh()
    })
  }

  refresh() {
    cancelAnimationFrame(this.frame)
    this.frame = requestAnimationFrame(() => this.draw())
  }

  draw() {
    const { controls, shapes, current, picture } = this
    const { stage, canvas } = controls
    const [wide, high] = [stage.clientWidth, stage.clientHeight]
    if (wide && high) {
      const width = Math.max(Math.min(wide, high * this.aspect), 1)
      const height = Math.max(Math.min(high, wide / this.aspect), 1)
      const left = (wide - width) / 2
      Object.assign(canvas.style, { width: `${width}px`, height: `${height}px`, left: `${left}px`, top: `${(high - height) / 2}px` })
      const zoom = canvas.getBoundingClientRect().width / width || 1
      const scale = Math.min(Math.max(zoom, 1) * window.devicePixelRatio, SHARPEST)
      const { selected, time, background, start } = this
      paint(canvas, { width, height, scale, shapes, selected, time, picture, background, start, grid: this.snap })
    }
    for (const [tool, button] of Object.entries(controls.tools)) pressed(button, tool === this.tool, this.failed)
    pressed(controls.snap, this.snap, this.failed)
    controls.undo.disabled = !this.history.canUndo
    controls.redo.disabled = !this.history.canRedo
    controls.remove.disabled = !current
    controls.name.disabled = !current
    if (document.activeElement !== controls.name || !current) controls.name.value = current?.name ?? ""
    controls.radius.value = this.radius
    controls.radius.hidden = this.tool !== "brush" && this.tool !== "erase"
    controls.timeRow.hidden = picture.still && !shapes.some((shape) => shape.keys)
    controls.time.value = this.time
    controls.moment.textContent = `${Math.round(100 * this.time)} %`
    controls.key.disabled = !current || current.kind === "brush"
    pressed(controls.key, Boolean(current) && keyIndexAt(current, this.time) >= 0, controls.key.disabled)
    controls.error.hidden = !this.failed
    controls.message.textContent = this.error ?? ""
    canvas.setAttribute("aria-label", this.described())
    clearTimeout(this.readoutTimer)
    this.readoutTimer = setTimeout(() => this.writeReadout(), READOUT_DELAY)
  }

  described() {
    const count = `${this.shapes.length} region${this.shapes.length === 1 ? "" : "s"}`
    const chosen = this.current ? `, ${this.current.name || this.current.kind} selected` : ""
    const keys = "Enter adds a box, arrows move, Shift and arrows resize, Delete deletes, Page Up and Page Down select."
    return `Region canvas: ${count}${chosen}. ${keys}`
  }

  writeReadout() {
    const { readout } = this.controls
    if (this.reason || this.notice) readout.textContent = this.reason || this.notice
    else if (this.failed) readout.textContent = "unreadable regions"
    else if (!this.shapes.length && !this.start) readout.textContent = "Drag on the picture to draw a region."
    else if (!this.shapes.length) readout.textContent = "Nothing drawn: the connected region alone."
    else readout.textContent = inWords(predict(this.shapes, this.picture)) + (this.start ? " (drawn part)" : "")
  }
}

function pressed(button, on, disabled) {
  button.setAttribute("aria-pressed", String(on))
  button.disabled = disabled
}
