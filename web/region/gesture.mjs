// What the pointer does on the canvas: draw, select, move, resize, paint.

import { areaAt, areaBetween, clamp, handlePoints, moved, resized, shapeAt, withArea, withPoint } from "./geometry.mjs"

const GRAB = 8 // CSS pixels around a handle
const COARSE_GRAB = 16 // for fingers
const LEAST_MOVE = 2 // CSS pixels between two points of a stroke

export class Gesture {
  constructor(editor) {
    this.editor = editor
    this.canvas = editor.controls.canvas
    this.pointer = null
    this.canvas.addEventListener("pointerdown", (event) => this.down(event))
    this.canvas.addEventListener("pointermove", (event) => this.move(event))
    this.canvas.addEventListener("pointerup", (event) => this.up(event))
    this.canvas.addEventListener("pointercancel", () => this.cancel())
  }

  get active() {
    return this.pointer !== null
  }

  /** The pointer in fractions of the picture, also under zoom. */
  at(event) {
    const box = this.canvas.getBoundingClientRect()
    return [clamp((event.clientX - box.left) / box.width, 0, 1), clamp((event.clientY - box.top) / box.height, 0, 1)]
  }

  down(event) {
    const { editor } = this
    if (event.button !== 0 || this.active || editor.failed) return
    event.stopPropagation()
    this.canvas.focus({ preventScroll: true })
    this.canvas.setPointerCapture(event.pointerId)
    this.pointer = event.pointerId
    this.from = this.at(event)
    this.before = { shapes: editor.shapes, selected: editor.selected }
    this.finish = null
    this.update = this.begin(event)
  }

  /** What moving the pointer does until it is released; the new shapes and selection, or nothing. */
  begin(event) {
    const { editor } = this
    if (editor.tool === "brush" || editor.tool === "erase") return this.painting(event)
    const handle = this.handleUnder(event)
    if (handle) return editor.hasNoRoomForAKey(editor.current) ? () => {} : this.resizing(handle)
    const under = event.ctrlKey || event.metaKey ? -1 : shapeAt(editor.shapes, editor.time, this.from, editor.aspect)
    if (under >= 0) {
      editor.select(under)
      return editor.hasNoRoomForAKey(editor.current) ? () => {} : this.moving(under)
    }
    editor.select(-1)
    return this.drawing()
  }

  painting(event) {
    const { editor } = this
    const erase = editor.tool === "erase"
    const box = this.canvas.getBoundingClientRect()
    const least = LEAST_MOVE / Math.max(box.width, 1)
    const name = editor.newName(erase ? "eraser" : "brush")
    let points = [this.from]
    const stroke = () => ({ kind: "brush", name, radius: editor.radius, points, erase })
    this.finish = () => editor.add(stroke())
    const update = (moved) => {
      for (const each of moved.getCoalescedEvents?.() ?? []) points = withPoint(points, this.at(each), least)
      points = withPoint(points, this.at(moved), least)
      editor.draft([...this.before.shapes, stroke()], -1)
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
      editor.replaceSelected(withArea(shape, editor.time, pulled), false)
    }
  }

  moving(index) {
    const { editor } = this
    const shape = editor.shapes[index]
    let far = false
    this.finish = () => far && editor.commit()
    return (event) => {
      const [x, y] = this.at(event)
      const [dx, dy] = [x - this.from[0], y - this.from[1]]
      const box = this.canvas.getBoundingClientRect()
      far ||= Math.hypot(dx * box.width, dy * box.height) > LEAST_MOVE
      if (far) editor.replaceSelected(moved(shape, editor.time, dx, dy, editor.grid), false)
    }
  }

  drawing() {
    const { editor } = this
    const name = editor.newName(editor.tool)
    let area = null
    this.finish = () => {
      if (area) editor.add({ kind: editor.tool, name, ...area })
    }
    return (event) => {
      area = areaBetween(this.from, this.at(event), editor.grid)
      editor.draft(area ? [...this.before.shapes, { kind: editor.tool, name, ...area }] : this.before.shapes, -1)
    }
  }

  move(event) {
    if (event.pointerId === this.pointer) this.update(event)
    else if (!this.active) this.canvas.style.cursor = this.cursorFor(event)
  }

  up(event) {
    if (event.pointerId !== this.pointer) return
    this.pointer = null
    const { finish, before } = this
    if (this.drewAnew()) this.editor.draft(before.shapes, before.selected)
    finish?.()
  }

  /** A shape that is added at the end is only sketched until then. */
  drewAnew() {
    return this.editor.shapes.length > this.before.shapes.length
  }

  cancel() {
    if (!this.active) return false
    this.pointer = null
    this.editor.draft(this.before.shapes, this.before.selected)
    return true
  }

  handleUnder(event) {
    const { editor, canvas } = this
    if (!editor.current || editor.current.kind === "brush") return null
    const box = canvas.getBoundingClientRect()
    const zoom = box.width / Math.max(canvas.offsetWidth, 1)
    const reach = (event.pointerType === "touch" ? COARSE_GRAB : GRAB) * zoom
    const [x, y] = this.at(event)
    const near = ([, hx, hy]) => Math.hypot((hx - x) * box.width, (hy - y) * box.height) <= reach
    return handlePoints(areaAt(editor.current, editor.time)).find(near)?.[0] ?? null
  }

  cursorFor(event) {
    const { editor } = this
    if (editor.tool === "brush" || editor.tool === "erase") return "crosshair"
    const handle = this.handleUnder(event)
    if (handle) return `${handle}-resize`
    return shapeAt(editor.shapes, editor.time, this.at(event), editor.aspect) >= 0 ? "move" : "crosshair"
  }
}
