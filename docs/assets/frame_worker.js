// Pages that are opened from the disk may start no worker, and the search runs in one. There it runs in a hidden frame.
(() => {
  if (location.protocol !== "file:") return
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inner = frame.contentWindow
      const waiting = []
      this.postMessage = data => waiting.push(data)
      inner.document.open()
      inner.document.write("<!doctype html><title>search</title>")
      inner.document.close()
      const load = source => new Promise((done, failed) => {
        const script = inner.document.createElement("script")
        script.src = source
        script.onload = done
        script.onerror = failed
        inner.document.head.appendChild(script)
      })
      inner.importScripts = (...sources) => sources.reduce((all, next) => all.then(() => load(next)), Promise.resolve())
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      load(url).then(() => {
        this.postMessage = data => inner.dispatchEvent(new inner.MessageEvent("message", { data }))
        waiting.forEach(this.postMessage)
      })
    }
  }
})()
