// Search without a server: a page that was opened from disk may start no Worker, so its script runs in a hidden frame instead.
if (location.protocol === "file:") {
  class FrameWorker extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow, here = new URL(url, location);
      // What a worker calls: scripts are loaded one after the other, messages go to the page.
      inside.importScripts = (...urls) =>
        urls.reduce((before, next) => before.then(() => new Promise((done, failed) => {
          const script = frame.contentDocument.createElement("script");
          script.src = new URL(next, here);
          script.onload = done;
          script.onerror = failed;
          frame.contentDocument.body.append(script);
        })), Promise.resolve());
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        if (this.onmessage) this.onmessage(event);
        this.dispatchEvent(event);
      };
      inside.importScripts(here).then(() => {
        this.inside = inside;
        this.waiting.forEach((data) => this.postMessage(data));
      });
    }
    postMessage(data) {
      if (!this.inside) this.waiting.push(data);
      else this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() {}
  }
  window.Worker = FrameWorker;
}
