// The editor in its node, or over the whole window, where the wheel zooms and the middle button (or Space) pans.

import { element } from "./controls.mjs"
import { WHOLE, inSight, panned, placed, zoomed } from "./viewport.mjs"

const WHEEL = 0.0015 // of a power of e for each pixel of the wheel

export class Screen {
  constructor(editor) {
    this.editor = editor
    this.view = WHOLE
    this.dialog = null
    const { stage, expand } = editor.controls
    expand.addEventListener("click", () => this.toggle())
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false })
    stage.addEventListener("pointerdown", (event) => this.down(event), true)
    stage.addEventListener("auxclick", (event) => this.expanded && event.preventDefault())
  }

  get expanded() {
    return this.dialog !== null
  }

  toggle() {
    if (this.expanded) this.close()
    else this.open()
  }

  open() {
    const { panel, canvas } = this.editor.controls
    this.dialog = element("dialog", { class: "ropeworks-regions-window", "data-testid": "ropeworks-regions-window" })
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault()
      this.close()
    })
    this.dialog.append(panel)
    document.body.append(this.dialog)
    this.dialog.showModal()
    canvas.focus({ preventScroll: true })
    this.editor.refresh()
  }

  close() {
    if (!this.expanded) return
    const { root, panel, canvas } = this.editor.controls
    root.append(panel)
    this.dialog.remove()
    this.dialog = null
    this.view = WHOLE
    canvas.focus({ preventScroll: true })
    this.editor.refresh()
  }

  get stage() {
    const { clientWidth: width, clientHeight: height } = this.editor.controls.stage
    return { width, height }
  }

  /** Of the picture, and of its part in sight, in the stage. */
  get place() {
    return placed(this.stage, this.editor.aspect, this.view)
  }

  get seen() {
    return inSight(this.place, this.stage)
  }

  /** The picture in the window, also under the graph's own zoom. */
  get box() {
    const { stage } = this.editor.controls
    const [shown, place] = [stage.getBoundingClientRect(), this.place]
    const zoom = shown.width / Math.max(stage.offsetWidth, 1) || 1
    return { left: shown.left + place.left * zoom, top: shown.top + place.top * zoom, width: place.width * zoom, height: place.height * zoom, zoom }
  }

  wheel(event) {
    if (!this.expanded) return
    event.preventDefault()
    event.stopPropagation()
    const shown = this.editor.controls.stage.getBoundingClientRect()
    const factor = Math.exp(-WHEEL * event.deltaY * (event.deltaMode ? 16 : 1))
    this.view = zoomed(this.view, this.stage, this.editor.aspect, factor, [event.clientX - shown.left, event.clientY - shown.top])
    this.editor.refresh()
  }

  down(event) {
    if (!this.expanded || !(event.button === 1 || (event.button === 0 && this.editor.spaceDown))) return
    event.preventDefault()
    event.stopPropagation()
    const { stage } = this.editor.controls
    stage.setPointerCapture(event.pointerId)
    let [x, y] = [event.clientX, event.clientY]
    const move = (moved) => {
      this.view = panned(this.view, this.stage, this.editor.aspect, moved.clientX - x, moved.clientY - y)
      ;[x, y] = [moved.clientX, moved.clientY]
      this.editor.refresh()
    }
    const end = () => {
      stage.removeEventListener("pointermove", move)
      for (const name of ["pointerup", "pointercancel"]) stage.removeEventListener(name, end)
    }
    stage.addEventListener("pointermove", move)
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, end)
  }
}
