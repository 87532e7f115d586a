// Speaks the frontend's language: in the region editor, and for the values of our nodes' combos, which stay English in workflows.

import { app } from "../../scripts/app.js"
import { hasLabel, labelOf, speakLanguage } from "./words/words.mjs"

const CATEGORY = "RoPE Works"
const speakAsSet = () => speakLanguage(app.extensionManager?.setting?.get("Comfy.Locale"))

app.registerExtension({
  name: "ropeworks.words",
  init: speakAsSet,
  // A new language has the frontend fetch its nodes anew, and then make those in sight anew.
  refreshComboInNodes: speakAsSet,
  nodeCreated(node) {
    if (!node.constructor.nodeData?.category?.startsWith(CATEGORY)) return
    for (const { type, options } of node.widgets ?? [])
      if (type === "combo" && Array.isArray(options?.values) && options.values.some(hasLabel)) options.getOptionLabel = labelOf
  }
})
