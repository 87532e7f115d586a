// The editor's elements, built by hand: text reaches the page through textContent alone.

import { say } from "../words/words.mjs"

const PATHS = {
  box: "M2.5 3.5h11v9h-11z",
  ellipse: "M8 3.2c3.2 0 5.6 2.1 5.6 4.8S11.2 12.8 8 12.8 2.4 10.7 2.4 8 4.8 3.2 8 3.2z",
  brush: "M13.5 2.5 7 9M7 9c-2.2 0-2.4 2-2.6 3-.2.9-.9 1.4-1.9 1.5 3.2.8 6.2-.6 6.1-2.9Z",
  erase: "M6.5 13 2.8 9.3a1 1 0 0 1 0-1.4l5.1-5.1a1 1 0 0 1 1.4 0l3.9 3.9a1 1 0 0 1 0 1.4L8.4 13zM5.3 5.4l5.3 5.3M6.5 13h7",
  undo: "M6 3 2.8 6.2 6 9.4M3 6.2h6.3a3.6 3.6 0 0 1 0 7.2H6.5",
  redo: "m10 3 3.2 3.2L10 9.4m3-3.2H6.7a3.6 3.6 0 0 0 0 7.2h2.8",
  delete: "M3 4.5h10M6.3 4.3V2.8h3.4v1.5M4.3 4.7l.6 8.5h6.2l.6-8.5",
  snap: "M2.5 2.5h11v11h-11zM2.5 8h11M8 2.5v11",
  clear: "M4 4l8 8M12 4l-8 8",
  expand: "M9.5 2.5h4v4M13.5 2.5 9 7M6.5 13.5h-4v-4M2.5 13.5 7 9",
  back: "M10.5 3.5 5.5 8l5 4.5M3.5 3.5v9",
  next: "M5.5 3.5l5 4.5-5 4.5M12.5 3.5v9",
  key: "M8 2.4 13.6 8 8 13.6 2.4 8z"
}
const toolLabels = () => ({
  box: say("Box (M). Shift: square, Alt: from the centre, Ctrl: also over another region"),
  ellipse: say("Ellipse (O). Shift: circle, Alt: from the centre, Ctrl: also over another region"),
  brush: say("Brush (B)"),
  erase: say("Eraser (E): takes away from everything drawn before it")
})

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  made.append(...children)
  return made
}

function icon(name) {
  const [svg, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag))
  svg.setAttribute("viewBox", "0 0 16 16")
  svg.setAttribute("aria-hidden", "true")
  path.setAttribute("d", PATHS[name])
  svg.append(path)
  return svg
}

const tested = (name) => ({ "data-testid": `ropeworks-regions-${name}` })

function button(name, label, picture = name) {
  return element("button", { type: "button", title: label, "aria-label": label, ...tested(name) }, icon(picture))
}

function slider(name, label, low, high, step) {
  return element("input", { type: "range", min: low, max: high, step, "aria-label": label, title: label, ...tested(name) })
}

function worded(name, label) {
  const made = element("button", { type: "button", ...tested(name) })
  made.textContent = label
  return made
}

const row = (label, ...children) => element("div", { class: "ropeworks-regions-row", role: "group", "aria-label": label }, ...children)

/** Every element of an editor by name; `root` stands in the node and holds `panel`, which holds all others. */
export function buildControls() {
  const tools = Object.fromEntries(Object.entries(toolLabels()).map(([name, label]) => [name, button(`tool-${name}`, label, name)]))
  const canvas = element("canvas", { tabindex: "0", role: "application", ...tested("canvas") })
  const undo = button("undo", say("Undo (Ctrl+Z)"))
  const redo = button("redo", say("Redo (Ctrl+Shift+Z)"))
  const remove = button("delete", say("Delete what is selected (Del)"))
  const clear = button("clear", say("Delete all regions"))
  const snap = button("snap", say("Snap to token cells"))
  const expand = button("expand", say("Over the whole window and back (Esc). There the wheel zooms, the middle button or Space pans"))
  const name = element("input", {
    type: "text", maxlength: "64", placeholder: say("no region selected"), "aria-label": say("Name of the selected region"), ...tested("name")
  })
  const radius = slider("radius", say("Brush size ([ and ]), also of selected lines"), 0.005, 0.25, 0.005)
  const time = slider("time", say("Time in the video"), 0, 1, 0.01)
  const marks = element("div", { class: "ropeworks-regions-marks", "aria-hidden": "true", ...tested("marks") })
  const moment = element("output", tested("moment"))
  const back = button("key-back", say("To the key frame before"), "back")
  const next = button("key-next", say("To the next key frame"), "next")
  const key = button("key", say("Add or remove a key frame of the selected region at this time"))
  const readout = element("div", { class: "ropeworks-regions-readout", role: "status", "aria-live": "polite", ...tested("readout") })
  const message = element("p")
  const kept = element("div")
  kept.textContent = say("The text is kept as it is, and this node does not run with it.")
  const [copy, reset] = [worded("copy", say("Copy the text")), worded("reset", say("Start anew"))]
  const error = element(
    "div", { class: "ropeworks-regions-error", role: "alert", hidden: "", ...tested("error") },
    message, kept, row(say("What to do"), copy, reset)
  )
  const stage = element("div", { class: "ropeworks-regions-stage" }, canvas, error)
  const list = element("div", { class: "ropeworks-regions-list", role: "group", "aria-label": say("Regions"), ...tested("list") })
  const gap = element("span", { class: "ropeworks-regions-gap" })
  const timeRow = row(say("Key frames"), back, element("div", { class: "ropeworks-regions-time" }, marks, time), next, moment, key)
  const panel = element(
    "div", { class: "ropeworks-regions", role: "group", "aria-label": say("Regions") },
    row(say("Tools"), ...Object.values(tools), gap, undo, redo, remove, clear, snap, expand),
    stage, list, row(say("Selected region"), name, radius), timeRow, readout
  )
  const root = element("div", { class: "ropeworks-regions-root", "data-testid": "ropeworks-regions" }, panel)
  return {
    root, panel, tools, stage, canvas, undo, redo, remove, clear, snap, expand, list, name, radius, time, marks, timeRow, moment, back, next, key, readout,
    error, message, reset, copy
  }
}
