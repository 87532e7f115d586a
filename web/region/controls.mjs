// The editor's elements, built by hand: text reaches the page through textContent alone.

const PATHS = {
  box: "M2.5 3.5h11v9h-11z",
  ellipse: "M8 3.2c3.2 0 5.6 2.1 5.6 4.8S11.2 12.8 8 12.8 2.4 10.7 2.4 8 4.8 3.2 8 3.2z",
  brush: "M13.5 2.5 7 9M7 9c-2.2 0-2.4 2-2.6 3-.2.9-.9 1.4-1.9 1.5 3.2.8 6.2-.6 6.1-2.9Z",
  erase: "M6.5 13 2.8 9.3a1 1 0 0 1 0-1.4l5.1-5.1a1 1 0 0 1 1.4 0l3.9 3.9a1 1 0 0 1 0 1.4L8.4 13zM5.3 5.4l5.3 5.3M6.5 13h7",
  undo: "M6 3 2.8 6.2 6 9.4M3 6.2h6.3a3.6 3.6 0 0 1 0 7.2H6.5",
  redo: "m10 3 3.2 3.2L10 9.4m3-3.2H6.7a3.6 3.6 0 0 0 0 7.2h2.8",
  delete: "M3 4.5h10M6.3 4.3V2.8h3.4v1.5M4.3 4.7l.6 8.5h6.2l.6-8.5",
  snap: "M2.5 2.5h11v11h-11zM2.5 8h11M8 2.5v11",
  key: "M8 2.4 13.6 8 8 13.6 2.4 8z"
}
const TOOLS = { box: "Box", ellipse: "Ellipse", brush: "Brush", erase: "Eraser" }

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

function button(name, label, picture) {
  return element("button", { type: "button", title: label, "aria-label": label, ...tested(name) }, icon(picture))
}

function slider(name, label, low, high, step) {
  return element("input", { type: "range", min: low, max: high, step, "aria-label": label, title: label, ...tested(name) })
}

const row = (label, ...children) => element("div", { class: "ropeworks-regions-row", role: "group", "aria-label": label }, ...children)

/** Every element of an editor by name; `root` holds them all. */
export function buildControls() {
  const tools = Object.fromEntries(Object.entries(TOOLS).map(([name, label]) => [name, button(`tool-${name}`, label, name)]))
  const canvas = element("canvas", { tabindex: "0", role: "application", ...tested("canvas") })
  const undo = button("undo", "Undo (Ctrl+Z)", "undo")
  const redo = button("redo", "Redo (Ctrl+Shift+Z)", "redo")
  const remove = button("delete", "Delete the selected region (Del)", "delete")
  const snap = button("snap", "Snap to token cells", "snap")
  const name = element("input", { type: "text", maxlength: "64", placeholder: "no region selected", "aria-label": "Name of the selected region", ...tested("name") })
  const radius = slider("radius", "Brush size", 0.005, 0.25, 0.005)
  const time = slider("time", "Time in the video", 0, 1, 0.01)
  const moment = element("output", tested("moment"))
  const key = button("key", "Add or remove a key frame of the selected region at this time", "key")
  const title = "At ratio 2 on a model as wide as Flux.1: share of the area and of the tokens, and the predicted speed-up of a mixed step"
  const readout = element("div", { class: "ropeworks-regions-readout", role: "status", title, "aria-live": "polite", ...tested("readout") })
  const message = element("p")
  const kept = element("div")
  kept.textContent = "The text is kept as it is, and this node does not run with it."
  const reset = element("button", { type: "button", ...tested("reset") })
  reset.textContent = "Start anew"
  const copy = element("button", { type: "button", ...tested("copy") })
  copy.textContent = "Copy the text"
  const ways = row("What to do", copy, reset)
  const error = element("div", { class: "ropeworks-regions-error", role: "alert", hidden: "", ...tested("error") }, message, kept, ways)
  const stage = element("div", { class: "ropeworks-regions-stage" }, canvas, error)
  const gap = element("span", { class: "ropeworks-regions-gap" })
  const timeRow = row("Key frames", time, moment, key)
  const root = element(
    "div",
    { class: "ropeworks-regions", role: "group", "aria-label": "Regions", "data-testid": "ropeworks-regions" },
    row("Tools", ...Object.values(tools), gap, undo, redo, remove, snap),
    stage,
    row("Selected region", name, radius),
    timeRow,
    readout
  )
  return { root, tools, stage, canvas, undo, redo, remove, snap, name, radius, time, timeRow, moment, key, readout, error, message, reset, copy }
}
