// What is drawn, what of it is selected, and the edits on it, without a page. The editor shows it.

import { LIMITS, RegionError, parseRegions, serialiseRegions } from "./document.mjs"
import { clamp, keyIndexAt, movedTogether, withKey, withoutKey } from "./geometry.mjs"
import { History } from "./history.mjs"
import { say } from "../words/words.mjs"

const PASTED = 16 // pixels beside what was copied, where nothing snaps
const clipboard = { shapes: [] } // of all editors in a page

/** What shapes like this one are called. */
export function called({ kind, erase }) {
  if (kind === "brush") return erase ? say("eraser") : say("brush")
  return kind === "box" ? say("box") : say("ellipse")
}

export class Drawing {
  constructor() {
    this.history = new History("")
    this.shapes = []
    this.selection = [] // indices
    this.snap = true
    this.time = 0
    this.picture = { width: 1024, height: 1024, frames: 1, cell: 32, still: true, known: true, pending: false }
    this.notice = ""
    this.error = null
  }

  /** Called after anything that can be seen, and with the new text after every finished edit. */
  refresh() {}
  onChange() {}

  /** Exactly what was set, until an edit. */
  get text() {
    return this.history.now
  }

  set text(text) {
    if (text === this.history.now) return
    this.history.reset(text)
    this.load()
  }

  get failed() {
    return this.error !== null
  }

  get aspect() {
    return this.picture.width / this.picture.height
  }

  /** The grid that shapes snap to, in fractions, or nothing. */
  get grid() {
    const { width, height, cell } = this.picture
    return this.snap ? { x: cell / width, y: cell / height } : null
  }

  /** The one shape that is selected, where it is one. */
  get current() {
    return this.selection.length === 1 ? this.shapes[this.selection[0]] : undefined
  }

  get chosen() {
    return this.selection.map((index) => this.shapes[index])
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
    this.selection = this.selection.filter((index) => index < this.shapes.length)
    this.refresh()
  }

  /** Says why an edit was not taken, until the next one. */
  warn(text) {
    this.notice = text
    this.refresh()
  }

  /** Shapes of an edit that is not finished yet. */
  draft(shapes, selection = this.selection) {
    Object.assign(this, { shapes, selection })
    this.refresh()
  }

  commit(shapes = this.shapes, selection = this.selection) {
    const text = serialiseRegions(shapes)
    if (text.length > LIMITS.characters) {
      this.load()
      this.warn(say("That would be more than a workflow can carry. Delete a brush line first."))
      return
    }
    this.draft(shapes, selection)
    this.keep(text)
  }

  keep(text) {
    if (text === this.text) return
    this.notice = ""
    this.history.push(text)
    this.refresh()
    this.onChange(text)
  }

  step(direction) {
    if (this.failed) return
    const before = this.text
    const text = direction < 0 ? this.history.undo() : this.history.redo()
    if (text === before) return
    this.load()
    this.onChange(text)
  }

  /** Shapes on top of the others, then selected. */
  add(...added) {
    if (this.shapes.length + added.length > LIMITS.shapes) {
      this.warn(say("At most {most} regions. Delete one first.", { most: LIMITS.shapes }))
      return
    }
    const first = this.shapes.length
    this.commit([...this.shapes, ...added], added.map((_, index) => first + index))
  }

  /** For a new shape {kind, erase}: what such shapes are called, and a number. */
  newName(shape, shapes = this.shapes) {
    const names = new Set(shapes.map(({ name }) => name))
    let number = 1
    while (names.has(`${called(shape)} ${number}`)) number++
    return `${called(shape)} ${number}`
  }

  /** replace: from a selected shape to the one in its place. */
  replaceSelected(replace, finished = true) {
    const shapes = this.shapes.map((shape, index) => (this.selection.includes(index) ? replace(shape) : shape))
    if (finished) this.commit(shapes)
    else this.draft(shapes)
  }

  rename(name) {
    if (this.current) this.replaceSelected((shape) => ({ ...shape, name: [...name].slice(0, LIMITS.name).join("") }))
  }

  /** The brush size of selected lines. */
  resizeStrokes(radius, finished) {
    if (this.chosen.some((shape) => shape.kind === "brush"))
      this.replaceSelected((shape) => (shape.kind === "brush" ? { ...shape, radius } : shape), finished)
  }

  moveSelected(dx, dy) {
    if (this.selection.length && !this.hasNoRoomForAKey())
      this.commit(movedTogether(this.shapes, this.selection, this.time, dx, dy, this.grid))
  }

  select(...indices) {
    this.selection = indices
    this.refresh()
  }

  /** Adds a shape to those selected, or takes it out. */
  toggle(index) {
    this.select(...(this.selection.includes(index) ? this.selection.filter((other) => other !== index) : [...this.selection, index]))
  }

  selectAll() {
    this.select(...this.shapes.keys())
    return this.shapes.length > 0
  }

  selectNext(by) {
    const count = this.shapes.length
    const last = this.selection.at(-1)
    if (count) this.select(last === undefined ? (by > 0 ? 0 : count - 1) : (last + by + count) % count)
  }

  remove() {
    if (this.selection.length) this.commit(this.shapes.filter((_, index) => !this.selection.includes(index)), [])
  }

  clear() {
    if (this.shapes.length) this.commit([], [])
  }

  /** Whether there was something to copy. */
  copy() {
    if (this.selection.length) clipboard.shapes = structuredClone(this.chosen)
    return this.selection.length > 0
  }

  paste(shapes = clipboard.shapes) {
    if (!shapes.length) return false
    const { width, height } = this.picture
    const { x, y } = this.grid ?? { x: PASTED / width, y: PASTED / height }
    const named = []
    for (const shape of structuredClone(shapes)) {
      const others = [...this.shapes, ...named]
      const taken = others.some((other) => other.name === shape.name)
      named.push(taken ? { ...shape, name: this.newName(shape, others) } : shape)
    }
    this.add(...named.map((shape) => beside(shape, x, y)))
    return true
  }

  duplicate() {
    return this.paste(this.chosen)
  }

  toggleKey() {
    const shape = this.current
    if (!shape || shape.kind === "brush" || this.hasNoRoomForAKey()) return
    this.replaceSelected(() => (keyIndexAt(shape, this.time) >= 0 ? withoutKey(shape, this.time) : withKey(shape, this.time)))
  }

  /** Moments of the keys of what is selected, or of everything where nothing is, in order. */
  get keyTimes() {
    const shapes = this.selection.length ? this.chosen : this.shapes
    return [...new Set(shapes.flatMap((shape) => (shape.keys ?? []).map((key) => key.at)))].sort((one, other) => one - other)
  }

  goToKey(by) {
    const [times, near] = [this.keyTimes, 1e-4]
    const found = by > 0 ? times.find((at) => at > this.time + near) : times.findLast((at) => at < this.time - near)
    if (found !== undefined) this.time = found
    this.refresh()
  }

  /** Warns where an edit at this time would take one key too many. */
  hasNoRoomForAKey() {
    const full = this.chosen.some((shape) => shape.keys?.length >= LIMITS.keys && keyIndexAt(shape, this.time) < 0)
    if (full) this.warn(say("At most {most} key frames. Go to one of them, or remove one.", { most: LIMITS.keys }))
    return full
  }
}

/** A copy a little to the right and below, with all its keys, or to the left and above where there is no room. */
function beside(shape, x, y) {
  const areas = shape.kind === "brush" ? shape.points.map(([px, py]) => ({ x: px, y: py, width: 0, height: 0 })) : [shape, ...(shape.keys ?? [])]
  const room = (start, size, by) => (areas.every((area) => area[start] + area[size] + by <= 1) ? by : areas.every((area) => area[start] >= by) ? -by : 0)
  const [dx, dy] = [room("x", "width", x), room("y", "height", y)]
  const shift = (area) => ({ ...area, x: area.x + dx, y: area.y + dy })
  if (shape.kind === "brush") return { ...shape, points: shape.points.map(([px, py]) => [clamp(px + dx, 0, 1), clamp(py + dy, 0, 1)]) }
  return { ...shift(shape), ...(shape.keys ? { keys: shape.keys.map(shift) } : {}) }
}
