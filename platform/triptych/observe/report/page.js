// Values under the pointer, for every chart.
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const { width, names, points } = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const tip = figure.querySelector(".tip");

  const leave = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };

  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    const [at, step, values] = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    const head = document.createElement("b");
    head.textContent = `step ${step}`;
    const lines = names.map((name, index) => [name, values[index]]).filter(([, value]) => value !== null);
    tip.replaceChildren(head, ...lines.map(([name, value]) => {
      const line = document.createElement("div");
      line.textContent = `${name} ${value}`;
      return line;
    }));
    tip.hidden = false;
    const left = svg.offsetLeft + (at / width) * box.width;
    const room = figure.clientWidth - tip.offsetWidth - 4;
    tip.style.left = `${left + 12 <= room ? left + 12 : Math.max(4, left - tip.offsetWidth - 12)}px`;
  };

  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerleave", leave);
}
