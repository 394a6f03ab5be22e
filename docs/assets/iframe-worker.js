// The search runs in a worker, which browsers refuse to start for pages that are opened from disk.
// There, this worker runs the same script in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.ready = new Promise(loaded => { frame.onload = loaded })
      frame.srcdoc = `<script>
        postMessage = data => parent.postMessage({ fromFrame: data }, "*")
      </script><script src="${new URL(url, document.baseURI)}"></script>`
      this.frame = frame
      window.addEventListener("message", event => {
        if (event.source === frame.contentWindow && event.data && "fromFrame" in event.data)
          this.dispatchEvent(new MessageEvent("message", { data: event.data.fromFrame }))
      })
      document.body ? document.body.append(frame)
        : addEventListener("DOMContentLoaded", () => document.body.append(frame))
    }
    postMessage(data) {
      this.ready.then(() => {
        const inside = this.frame.contentWindow
        inside.dispatchEvent(new inside.MessageEvent("message", { data }))
      })
    }
    terminate() { this.frame.remove() }
  }
}
