// What keys do in the editor: choose a tool, add, select, move, resize, copy, delete, undo.

import { areaAt, resized, withArea } from "./geometry.mjs"

const STEP = 4 // pixels that an arrow key moves without snapping
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const TOOL_KEYS = { m: "box", o: "ellipse", b: "brush", e: "erase" }
const BRUSH_KEYS = { "[": 1 / 1.2, "]": 1.2 }

export function listenToKeys(editor) {
  const { panel, name, canvas } = editor.controls
  panel.addEventListener("keydown", (event) => {
    const taken = event.target === name ? typed(editor, event) : means(editor, event)
    if (taken) event.preventDefault()
    const command = event.ctrlKey || event.metaKey
    // ComfyUI's own undo has seen this event already and looks at its key a frame later: it is ours alone.
    if (taken && command) Object.defineProperty(event, "key", { value: "Unidentified" })
    if (taken || editor.screen.expanded || (!command && event.target !== canvas)) event.stopPropagation()
  })
  panel.addEventListener("keyup", (event) => {
    if (event.key === " ") editor.spaceDown = false
  })
}

/** In the field of a name every key is the field's own. */
function typed({ controls }, { key }) {
  if (key === "Enter" || key === "Escape") controls.name.blur()
  return key === "Escape"
}

/** True when the key meant something here. */
function means(editor, event) {
  const { key, altKey, shiftKey, target } = event
  const letter = key.toLowerCase()
  if ((event.ctrlKey || event.metaKey) && !altKey) {
    if (letter === "z" || letter === "y") editor.step(letter === "y" || shiftKey ? 1 : -1)
    else return !editor.failed && !shiftKey && onRegions(editor, letter)
    return true
  }
  const { canvas, list } = editor.controls
  if (altKey || (target !== canvas && !list.contains(target))) return key === "Escape" && leave(editor)
  return target === canvas || key === "Delete" || key === "Backspace" || key === "Escape" ? pressed(editor, event) : false
}

function onRegions(editor, letter) {
  if (letter === "a") return editor.selectAll()
  if (letter === "c") return editor.copy()
  if (letter === "v") return editor.paste()
  if (letter === "d") return editor.duplicate()
  if (letter !== "x" || !editor.copy()) return false
  editor.remove()
  return true
}

function pressed(editor, { key, shiftKey }) {
  const letter = key.toLowerCase()
  if (key === "Escape") return leave(editor)
  if (editor.failed) return false
  if (key in ARROWS) nudge(editor, ARROWS[key], shiftKey)
  else if (key === "Delete" || key === "Backspace") editor.remove()
  else if (key === "Enter") addInTheMiddle(editor)
  else if (key === "PageDown" || key === "PageUp") editor.selectNext(key === "PageDown" ? 1 : -1)
  else if (letter in TOOL_KEYS) editor.choose(TOOL_KEYS[letter])
  else if (key in BRUSH_KEYS) editor.setRadius(editor.radiusShown * BRUSH_KEYS[key], true)
  else if (key === " " && editor.screen.expanded) editor.spaceDown = true
  else return false
  return true
}

/** Out of a gesture, of the large window, or of a selection. */
function leave(editor) {
  if (editor.gesture.cancel()) return true
  if (editor.screen.expanded) editor.screen.close()
  else if (editor.selection.length) editor.select()
  else return false
  return true
}

function nudge(editor, [x, y], resize) {
  const { current, grid, time } = editor
  const { width, height } = editor.picture
  const step = grid ?? { x: STEP / width, y: STEP / height }
  const [dx, dy] = [x * step.x, y * step.y]
  if (!resize) editor.moveSelected(dx, dy)
  else if (current && current.kind !== "brush" && !editor.hasNoRoomForAKey())
    editor.replaceSelected(() => withArea(current, time, resized(areaAt(current, time), x ? "e" : "s", dx, dy, grid)))
}

function addInTheMiddle(editor) {
  const kind = editor.tool === "ellipse" ? "ellipse" : "box"
  const middle = { x: 0.375, y: 0.375, width: 0.25, height: 0.25 }
  const area = resized(resized(middle, "nw", 0, 0, editor.grid), "se", 0, 0, editor.grid)
  editor.add({ kind, name: editor.newName({ kind }), ...area })
}
