// What the pointer does on the canvas: draw, select, move, resize, paint. A second finger ends it: that is the graph's zoom.

import { areaAt, areaBetween, clamp, dragged, handlePoints, movedTogether, resized, shapesAt, withArea, withPoint } from "./geometry.mjs"

const GRAB = 8 // CSS pixels around a handle
const COARSE_GRAB = 16 // for fingers
const LEAST_MOVE = 2 // CSS pixels between two points of a stroke
const DOUBLE_CLICK = 400 // ms

export class Gesture {
  constructor(editor) {
    this.editor = editor
    this.canvas = editor.controls.canvas
    this.pointer = null
    this.pressed = new Set() // pointers
    this.released = -Infinity // ms
    this.canvas.addEventListener("pointerdown", (event) => this.down(event))
    this.canvas.addEventListener("pointermove", (event) => this.move(event))
    this.canvas.addEventListener("pointerup", (event) => this.up(event))
    this.canvas.addEventListener("pointercancel", (event) => {
      this.pressed.delete(event.pointerId)
      this.cancel()
    })
    this.canvas.addEventListener("pointerleave", () => this.hover(null))
    this.canvas.addEventListener("dblclick", (event) => {
      event.stopPropagation()
      if (editor.current && !this.paints) editor.startRename()
    })
  }

  get active() {
    return this.pointer !== null
  }

  get paints() {
    return this.editor.tool === "brush" || this.editor.tool === "erase"
  }

  /** The pointer in fractions of the picture, also under zoom. */
  at(event) {
    const { left, top, width, height } = this.editor.screen.box
    return [clamp((event.clientX - left) / width, 0, 1), clamp((event.clientY - top) / height, 0, 1)]
  }

  down(event) {
    const { editor } = this
    if (event.button !== 0 || editor.failed) return
    event.stopPropagation()
    if (event.isPrimary) this.pressed.clear()
    this.pressed.add(event.pointerId)
    this.canvas.setPointerCapture(event.pointerId)
    if (this.pressed.size > 1) {
      this.cancel()
      return
    }
    this.canvas.focus({ preventScroll: true })
    this.pointer = event.pointerId
    this.from = this.at(event)
    this.before = { shapes: editor.shapes, selection: editor.selection }
    this.finish = null
    this.update = this.begin(event)
  }

  /** What moving the pointer does until it is released. */
  begin(event) {
    const { editor } = this
    if (this.paints) return this.painting(event)
    const handle = this.handleUnder(event)
    if (handle) return editor.hasNoRoomForAKey() ? () => {} : this.resizing(handle)
    const under = event.ctrlKey || event.metaKey ? [] : shapesAt(editor.shapes, editor.time, this.from, editor.aspect)
    if (under.length && event.shiftKey) {
      editor.toggle(under[0])
      return () => {}
    }
    if (under.length) return this.moving(under)
    editor.select()
    return this.drawing()
  }

  painting(event) {
    const { editor } = this
    const erase = editor.tool === "erase"
    const least = LEAST_MOVE / Math.max(editor.screen.box.width, 1)
    const name = editor.newName({ kind: "brush", erase })
    let points = [this.from]
    const stroke = () => ({ kind: "brush", name, radius: editor.radius, points, erase })
    this.finish = () => editor.add(stroke())
    const update = (moved) => {
      for (const each of moved.getCoalescedEvents?.() ?? []) points = withPoint(points, this.at(each), least)
      points = withPoint(points, this.at(moved), least)
      editor.draft([...this.before.shapes, stroke()], [])
    }
    update(event)
    return update
  }

  resizing(handle) {
    const { editor } = this
    const shape = editor.current
    const area = areaAt(shape, editor.time)
    this.finish = () => editor.commit()
    return (event) => {
      const [x, y] = this.at(event)
      const pulled = resized(area, handle, x - this.from[0], y - this.from[1], editor.grid)
      editor.replaceSelected(() => withArea(shape, editor.time, pulled), false)
    }
  }

  /** under: the shapes under the pointer. A click that moves nothing, on the one that was selected, selects the one below. */
  moving(under) {
    const { editor } = this
    const kept = under.find((index) => editor.selection.includes(index))
    const again = kept !== undefined && editor.selection.length === 1 && performance.now() - this.released > DOUBLE_CLICK
    if (kept === undefined) editor.select(under[0])
    if (editor.hasNoRoomForAKey()) return () => {}
    const [shapes, selection] = [editor.shapes, editor.selection]
    let far = false
    this.finish = () => {
      if (far) editor.commit()
      else if (again) editor.select(under[(under.indexOf(kept) + 1) % under.length])
    }
    return (event) => {
      const [x, y] = this.at(event)
      const [dx, dy] = [x - this.from[0], y - this.from[1]]
      const { width, height } = editor.screen.box
      far ||= Math.hypot(dx * width, dy * height) > LEAST_MOVE
      if (far) editor.draft(movedTogether(shapes, selection, editor.time, dx, dy, editor.grid))
    }
  }

  drawing() {
    const { editor } = this
    const name = editor.newName({ kind: editor.tool })
    let area = null
    this.finish = () => {
      if (area) editor.add({ kind: editor.tool, name, ...area })
    }
    return (event) => {
      const corners = dragged(this.from, this.at(event), { square: event.shiftKey, centred: event.altKey }, editor.aspect)
      area = areaBetween(...corners.map((corner) => corner.map((side) => clamp(side, 0, 1))), editor.grid)
      editor.draft(area ? [...this.before.shapes, { kind: editor.tool, name, ...area }] : this.before.shapes, [])
    }
  }

  move(event) {
    this.hover(event)
    if (event.pointerId === this.pointer) this.update(event)
    else if (!this.active) this.canvas.style.cursor = this.cursorFor(event)
  }

  /** Where a brush would paint. */
  hover(event) {
    const ring = event && this.paints && event.pointerType !== "touch" ? this.at(event) : null
    if (!ring && !this.editor.ring) return
    this.editor.ring = ring
    this.editor.refresh()
  }

  up(event) {
    this.pressed.delete(event.pointerId)
    if (event.pointerId !== this.pointer) return
    this.pointer = null
    const { finish, before } = this
    if (this.drewAnew()) this.editor.draft(before.shapes, before.selection)
    finish?.()
    this.released = performance.now()
  }

  /** A shape that is added at the end is only sketched until then. */
  drewAnew() {
    return this.editor.shapes.length > this.before.shapes.length
  }

  cancel() {
    if (!this.active) return false
    this.pointer = null
    this.editor.draft(this.before.shapes, this.before.selection)
    return true
  }

  handleUnder(event) {
    const { editor } = this
    if (!editor.current || editor.current.kind === "brush") return null
    const { width, height, zoom } = editor.screen.box
    const reach = (event.pointerType === "touch" ? COARSE_GRAB : GRAB) * zoom
    const [x, y] = this.at(event)
    const area = areaAt(editor.current, editor.time)
    const near = ([, hx, hy]) => Math.hypot((hx - x) * width, (hy - y) * height) <= reach
    return handlePoints(area, (area.width * width) / zoom, (area.height * height) / zoom).find(near)?.[0] ?? null
  }

  cursorFor(event) {
    if (this.paints) return "crosshair"
    const handle = this.handleUnder(event)
    if (handle) return `${handle}-resize`
    const { shapes, time, aspect } = this.editor
    return shapesAt(shapes, time, this.at(event), aspect).length ? "move" : "crosshair"
  }
}
