// The list of regions: a click selects, Ctrl or Shift adds, a double click renames.

import { element } from "./controls.mjs"
import { called } from "./drawing.mjs"

const SIGNS = { box: "▭", ellipse: "◯", brush: "~", eraser: "−" }

export class RegionList {
  constructor(editor) {
    this.editor = editor
    this.list = editor.controls.list
    this.list.addEventListener("click", (event) => {
      const index = this.indexOf(event)
      if (index < 0) return
      if (event.ctrlKey || event.metaKey || event.shiftKey) editor.toggle(index)
      else editor.select(index)
    })
    this.list.addEventListener("dblclick", (event) => {
      event.stopPropagation()
      if (this.indexOf(event) >= 0) editor.startRename()
    })
  }

  indexOf(event) {
    return [...this.list.children].indexOf(event.target)
  }

  /** Entries are kept and told anew, so that a double click meets the same one twice. */
  draw() {
    const { shapes, selection } = this.editor
    while (this.list.children.length > shapes.length) this.list.lastChild.remove()
    while (this.list.children.length < shapes.length) this.list.append(element("button", { type: "button" }))
    shapes.forEach((shape, index) => {
      const entry = this.list.children[index]
      const text = `${SIGNS[shape.erase ? "eraser" : shape.kind]} ${shape.name || called(shape)}`
      if (entry.textContent !== text) entry.textContent = text
      entry.setAttribute("aria-pressed", String(selection.includes(index)))
    })
  }
}
