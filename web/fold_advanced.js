// Folds advanced inputs on the classic canvas too, behind its own menu entry "Show Advanced". Nodes 2.0 does so by itself.

import { app } from "../../scripts/app.js"

const CATEGORY = "RoPE Works"
const BETWEEN = 4 // pixels that the canvas adds to a widget's height

app.registerExtension({
  name: "ropeworks.foldAdvanced",
  nodeCreated(node) {
    if (!node.constructor.nodeData?.category?.startsWith(CATEGORY)) return
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
    for (const widget of advanced) {
      widget.advanced = true
      // The canvas would leave a folded widget's place empty.
      widget.computeSize = (width) => [width, node.showAdvanced ? window.LiteGraph.NODE_WIDGET_HEIGHT : -BETWEEN]
    }
    if (advanced.length) node.setSize([node.size[0], node.computeSize()[1]])
  }
})
