// Undo and redo over texts, the editor's own.

const LONGEST = 100

export class History {
  constructor(text = "") {
    this.reset(text)
  }

  reset(text) {
    this.past = []
    this.now = text
    this.future = []
  }

  push(text) {
    if (text === this.now) return
    this.past.push(this.now)
    if (this.past.length > LONGEST) this.past.shift()
    this.now = text
    this.future = []
  }

  get canUndo() {
    return this.past.length > 0
  }

  get canRedo() {
    return this.future.length > 0
  }

  undo() {
    if (!this.canUndo) return this.now
    this.future.push(this.now)
    this.now = this.past.pop()
    return this.now
  }

  redo() {
    if (!this.canRedo) return this.now
    this.past.push(this.now)
    this.now = this.future.pop()
    return this.now
  }
}
