(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const copy = async (text, node) => {
    await navigator.clipboard.writeText(text);
    const was = node.textContent; node.textContent = "Copied"; setTimeout(() => node.textContent = was, 1200);
  };
  document.addEventListener("click", (e) => {
    if (e.target.closest?.("#wb-compare") && innerWidth < 760) document.getElementById("wb-stage")?.scrollIntoView();
    const node = e.target.closest?.("[data-wb-copy],[data-wb-link]"); if (!node) return;
    e.preventDefault();
    copy(node.dataset.wbCopy ?? new URL(node.dataset.wbLink, location.href).href, node);
  });
})();
