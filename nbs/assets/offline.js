// A page opened from disk may not fetch its search index, but it may load it as a script.
if (location.protocol === "file:") {
  const ask = window.fetch;
  window.fetch = (url, ...rest) => !/search\.json$/.test(String(url)) ? ask(url, ...rest) : new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = String(url).replace(/\.json$/, ".js");
    script.onload = () => done({ ok: true, json: async () => window.searchEntries });
    script.onerror = () => fail(new Error("no search index"));
    document.head.append(script);
  });
}
