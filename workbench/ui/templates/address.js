// The address is the state: `?run=` the comparison on the page, `?tab=` its tab; other parameters stay. The form is kept
// in this browser. And names that the page's parts lack.
(() => {
  const KEY = "wb-draft";
  const asked = () => new URL(location.href).searchParams;
  const store = (text) => {
    try { localStorage.setItem(KEY, text); } catch { /* a browser that keeps nothing: the form is lost with its tab */ }
  };
  const stored = () => {
    try { return localStorage.getItem(KEY) ?? ""; } catch { return ""; }
  };

  const state = (name, value) => {
    const url = new URL(location.href);
    if (value) url.searchParams.set(name, value); else url.searchParams.delete(name);
    if (name === "run") url.searchParams.delete("contestants");  // it was made of them
    if (url.href !== location.href) history.pushState({}, "", url);
  };
  const shownRun = () => document.querySelector("[data-wb-run]")?.dataset.wbRun ?? "";
  const tabs = () => [...document.querySelectorAll(".tab-container:not(.visually-hidden) > button[role=tab]")];
  const first = () => tabs()[0]?.dataset.tabId;
  const chosenTab = () => tabs().find((tab) => tab.ariaSelected === "true")?.dataset.tabId;
  const chooseTab = () => {
    const wanted = asked().get("tab") ?? first();
    if (wanted === chosenTab()) return;
    const more = [...document.querySelectorAll(".overflow-dropdown button")];  // where a phone has no room for it
    const id = (tab) => tab.textContent.trim().split(" ").at(-1).toLowerCase();
    (tabs().find((tab) => tab.dataset.tabId === wanted) ?? more.find((tab) => id(tab) === wanted))?.click();
  };

  // The form, as it was left: only what a person did is kept, and of a link that somebody opened nothing.
  let touched = false;
  for (const kind of ["pointerdown", "keydown", "input"]) addEventListener(kind, () => { touched = true; }, true);
  window.wbKeepDraft = (values, memories) => {
    if (!touched) return;
    const cut = values.length - memories;
    store(JSON.stringify({ run: asked().get("run") ?? "", values: values.slice(0, cut), memories: values.slice(cut) }));
  };
  window.wbDraft = () => {
    const text = stored(), run = asked().get("run");
    if (!text || asked().has("contestants")) return "";
    return !run || JSON.parse(text).run === run ? text : "";
  };

  let begun = false;
  const follow = () => {
    if (!tabs().length) return;
    if (!begun) { begun = true; chooseTab(); return; }
    const run = shownRun(), tab = chosenTab();
    if (run && run !== asked().get("run")) {
      state("run", run);
      if (touched && stored()) store(JSON.stringify({ ...JSON.parse(stored()), run }));
    }
    if (tab && tab !== (asked().get("tab") ?? first())) state("tab", tab === first() ? "" : tab);
  };
  addEventListener("popstate", () => {
    if ((asked().get("run") ?? "") !== shownRun()) location.reload(); else chooseTab();
  });

  // Gradio opens a list again when its field is left by Tab, and it would lie over what comes next.
  addEventListener("keydown", (e) => {
    if (e.key === "Tab" && e.target.matches?.("input[role=combobox]")) e.stopImmediatePropagation();
  }, true);
  const name = () => {
    for (const input of document.querySelectorAll("input[type=file]:not([aria-label])")) {
      const words = input.closest(".block")?.querySelector("label, [data-testid=block-label]")?.innerText.trim();
      input.ariaLabel = words || "Upload a file";
    }
  };
  let waiting = false;
  const wake = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); name(); });
  };
  new MutationObserver(wake).observe(document.documentElement, {
    childList: true, subtree: true, attributes: true, attributeFilter: ["aria-selected", "data-wb-run"],
  });
})();
