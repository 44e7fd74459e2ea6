"use strict";
(() => {
  const figure = document.getElementById("chart");
  const readout = document.getElementById("readout");
  const hidden = new Set();
  const invitation = readout.textContent;
  const plots = JSON.parse(document.getElementById("stops").textContent);
  let at = -1;

  const shownSvg = () => [...figure.querySelectorAll("svg[data-plot]")].find((svg) => svg.getClientRects().length);
  const stopsOf = (svg) => plots[svg.dataset.plot].filter((stop) => !hidden.has(stop.key));

  const show = (svg, index) => {
    const stop = stopsOf(svg)[index];
    const cursor = svg.querySelector(".cursor");
    cursor.classList.toggle("on", Boolean(stop));
    at = stop ? index : -1;
    if (stop) {
      cursor.setAttribute("cx", stop.x);
      cursor.setAttribute("cy", stop.y);
    }
    readout.textContent = stop ? stop.text : invitation;
  };

  figure.addEventListener("pointermove", (event) => {
    const svg = shownSvg();
    if (!svg || !svg.contains(event.target)) return;
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const y = (event.clientY - box.top) * scale;
    let best = -1;
    let least = 60 * 60;
    stopsOf(svg).forEach((stop, index) => {
      const far = (stop.x - x) ** 2 + (stop.y - y) ** 2;
      if (far < least) [least, best] = [far, index];
    });
    show(svg, best);
  });

  figure.querySelector(".plot").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const svg = shownSvg();
    if (!step || !svg) return;
    const count = stopsOf(svg).length;
    if (count) show(svg, (at + step + count) % count);
    event.preventDefault();
  });

  for (const button of figure.querySelectorAll("button[data-key]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      const off = !hidden.delete(key) && Boolean(hidden.add(key));
      button.setAttribute("aria-pressed", String(!off));
      for (const part of figure.querySelectorAll(`svg [data-key="${CSS.escape(key)}"]`)) part.classList.toggle("off", off);
      const svg = shownSvg();
      if (svg) show(svg, -1);
    });
  }
})();
