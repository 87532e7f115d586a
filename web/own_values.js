// Whoever edits a value that a preset decides has left the preset: it becomes "custom".

import { app } from "../../scripts/app.js"

const CUSTOM = "custom"
const DECIDED = {
  SharedAttentionStyleRef: ["s_hf_start", "s_hf_end", "s_lf_start", "s_lf_end", "beta"],
  MixedResRegionCRPA: ["budget"]
}

app.registerExtension({
  name: "ropeworks.ownValues",
  nodeCreated(node) {
    const preset = node.widgets?.find((widget) => widget.name === "preset")
    if (!preset || !Object.hasOwn(DECIDED, node.comfyClass)) return
    for (const widget of node.widgets.filter(({ name }) => DECIDED[node.comfyClass].includes(name))) {
      const before = widget.callback
      let last = widget.value
      const configured = node.onConfigure
      node.onConfigure = function (...given) {
        const result = configured?.apply(this, given)
        last = widget.value
        return result
      }
      widget.callback = function (value, ...more) {
        const result = before?.call(this, value, ...more)
        if (value !== last && preset.value !== CUSTOM) {
          preset.value = CUSTOM
          preset.callback?.(CUSTOM)
          node.setDirtyCanvas?.(true, true)
        }
        last = value
        return result
      }
    }
  }
})
