// What keys do on the canvas: add, select, move, resize, delete, undo.

import { areaAt, moved, resized, withArea } from "./geometry.mjs"

const STEP = 4 // pixels that an arrow key moves without snapping
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }

export function listenToKeys(editor) {
  const { root, canvas, name } = editor.controls
  root.addEventListener("keydown", (event) => {
    const command = event.ctrlKey || event.metaKey
    const letter = event.key.toLowerCase()
    if (event.target === name) {
      if (event.key === "Enter") name.blur()
    } else if (command && (letter === "z" || letter === "y") && !event.altKey) {
      event.preventDefault()
      editor.step(letter === "y" || event.shiftKey ? 1 : -1)
      // ComfyUI's own undo has seen this event already and looks at its key a frame later: it is ours alone.
      Object.defineProperty(event, "key", { value: "Unidentified" })
    } else if (event.target !== canvas || !pressed(editor, event)) {
      if (command || event.target === canvas) return
    } else event.preventDefault()
    event.stopPropagation()
  })
}

/** True when the key meant something here. */
function pressed(editor, { key, shiftKey, ctrlKey, metaKey, altKey }) {
  if (ctrlKey || metaKey || altKey || editor.failed) return false
  if (key in ARROWS) nudge(editor, ARROWS[key], shiftKey)
  else if (key === "Delete" || key === "Backspace") editor.remove()
  else if (key === "Enter") addInTheMiddle(editor)
  else if (key === "PageDown" || key === "PageUp") cycle(editor, key === "PageDown" ? 1 : -1)
  else if (key === "Escape" && (editor.gesture.active || editor.current)) editor.gesture.cancel() || editor.select(-1)
  else return false
  return true
}

function nudge(editor, [x, y], resize) {
  const { current, grid, time } = editor
  if (!current || editor.hasNoRoomForAKey(current)) return
  const { width, height } = editor.picture
  const step = grid ?? { x: STEP / width, y: STEP / height }
  const [dx, dy] = [x * step.x, y * step.y]
  if (!resize) editor.replaceSelected(moved(current, time, dx, dy, grid))
  else if (current.kind !== "brush")
    editor.replaceSelected(withArea(current, time, resized(areaAt(current, time), x ? "e" : "s", dx, dy, grid)))
}

function addInTheMiddle(editor) {
  const kind = editor.tool === "ellipse" ? "ellipse" : "box"
  const middle = { x: 0.375, y: 0.375, width: 0.25, height: 0.25 }
  const area = resized(resized(middle, "nw", 0, 0, editor.grid), "se", 0, 0, editor.grid)
  editor.add({ kind, name: editor.newName(kind), ...area })
}

function cycle(editor, by) {
  const count = editor.shapes.length
  if (count) editor.select(editor.selected < 0 ? (by > 0 ? 0 : count - 1) : (editor.selected + by + count) % count)
}
