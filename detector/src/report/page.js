// Filters the findings. Without it everything is there to be read all the same.
"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const findings = all("article.finding");
  const form = document.getElementById("filter");
  const dots = new Map(all("svg a[data-n]").map((dot) => [dot.dataset.n, dot]));
  const open = (yes) => findings.forEach((finding) => { finding.firstElementChild.open = yes; });

  if (form) {
    let texts;
    const apply = () => {
      const severities = new Set([...form.querySelectorAll("[name=severity]:checked")].map((box) => box.value));
      const technique = form.elements.technique.value;
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (words.length > 0) texts ??= findings.map((finding) => finding.textContent.toLowerCase());
      let shown = 0;
      findings.forEach((finding, n) => {
        const { severity, technique: of } = finding.dataset;
        const fits = severities.has(severity) && (!technique || technique === of)
          && words.every((word) => texts[n].includes(word));
        finding.hidden = !fits;
        dots.get(finding.dataset.n)?.classList.toggle("off", !fits);
        shown += fits;
      });
      document.getElementById("shown").value = `${shown} of ${findings.length} shown`;
      document.getElementById("nothing").hidden = shown > 0;
    };
    form.hidden = false;
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    document.getElementById("open").addEventListener("click", () => open(true));
    document.getElementById("close").addEventListener("click", () => open(false));
    apply();
  }

  // Where a link leads into a closed finding, newer browsers open it by themselves.
  const reveal = () => {
    const details = document.getElementById(location.hash.slice(1))?.closest("details");
    if (details) {
      details.open = true;
      details.scrollIntoView();
    }
  };
  addEventListener("hashchange", reveal);
  reveal();
  addEventListener("beforeprint", () => all("details").forEach((details) => { details.open = true; }));
})();
