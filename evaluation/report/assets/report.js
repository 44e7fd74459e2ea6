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

  const operate = document.getElementById("operate");
  if (!operate) return;
  const curves = plots.operate;
  const chooser = document.getElementById("operate-score");
  const slider = document.getElementById("operate-at");
  const said = document.getElementById("operate-said");
  const share = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;

  const say = (name, figure, note = "") => {
    operate.querySelector(`[data-figure="${name}"]`).textContent = figure;
    operate.querySelector(`[data-note="${name}"]`).textContent = note;
  };

  const move = () => {
    const curve = curves[Number(chooser.value)];
    const index = Number(slider.value);
    const [threshold, escalated, quality, low, high, cost, harmed] = curve.points[index];
    const all = threshold === null;
    say("threshold", all ? "–" : threshold.toPrecision(4), all ? "everything goes large" : curve.label);
    say("quality", share(quality), `${share(low)} to ${share(high)}`);
    say("cost", share(cost), cost <= 1 ? `${share(1 - cost)} saved` : `${share(cost - 1)} more`);
    say("escalated", share(escalated), `${share(1 - escalated)} answered small`);
    say("harmed", share(harmed), "small and wrong where large is right");
    slider.setAttribute("aria-valuetext", `${all ? "escalate all" : `threshold ${threshold.toPrecision(4)}`}, passes ${share(quality)}, costs ${share(cost)}`);
    const policy = `policy: {kind: threshold, score: ${curve.key}, threshold: ${threshold}}`;
    said.textContent = all || !curve.configurable ? "" : `In smallcall.yaml: ${policy}`;
    for (const svg of figure.querySelectorAll("svg[data-plot]")) {
      const stop = plots[svg.dataset.plot].filter((each) => each.key === curve.key)[index];
      const ring = svg.querySelector(".operating");
      ring.classList.toggle("on", Boolean(stop));
      if (!stop) continue;
      ring.setAttribute("cx", stop.x);
      ring.setAttribute("cy", stop.y);
    }
  };

  const choose = () => {
    const points = curves[Number(chooser.value)].points;
    slider.max = String(points.length - 1);
    let nearest = 0;
    points.forEach((point, index) => {
      if (Math.abs(point[1] - 0.5) < Math.abs(points[nearest][1] - 0.5)) nearest = index;
    });
    slider.value = String(nearest);
    move();
  };

  slider.addEventListener("input", move);
  chooser.addEventListener("change", choose);
  operate.hidden = false;
  choose();
})();
